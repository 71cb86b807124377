"""Fit the names of a checkpoint onto a model: prefixes, ties, buffers; and say exactly what does not fit."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ..counted import counted
from ..errors import CheckpointError
from .adapters import PREFIX, adapter_of, is_adapter_file
from .converted import by_its_library

# Names that torch puts inside a module's names when it is compiled, checkpointed or sharded; nobody else uses them.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_SHOWN = 6


@dataclass(frozen=True)
class Fitted:
    """The weights under the model's names, ready for `load_state_dict`, what was said on the way, and {name in the
    file: name in the model}.
    """

    weights: dict[str, torch.Tensor]
    notes: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)


def fit(weights: Mapping[str, torch.Tensor], model: nn.Module) -> Fitted:
    """Return the weights under the names of `model` (already unwrapped), complete and in the right shapes.

    One common prefix on either side whose removal makes the names equal is removed, and so are the names that
    torch.compile and other wrappers put inside. Tied weights stored once are filled in from their tie; buffers
    that the model does not save, and `num_batches_tracked` missing in old files, are no difference. All of
    these are said in the notes. A file of an adapter alone (PEFT) is completed by the base model's tensors as `model`
    has them. Dtypes are left as they are in the file. Cost: names only, no pass over data.

    Raises CheckpointError naming the missing, extra and misshapen names (at most six of each, with shapes, and
    the nearest names), and where the model has no storage (meta device) or ties what differs in the file.
    """
    expected = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
    if any(v.is_meta for v in expected.values()):
        raise CheckpointError("the task's model is on the meta device, where weights have no values; build it on cpu")
    if not expected.keys() <= weights.keys() and (completed := _adapter_alone(weights, expected, model)) is not None:
        return completed
    target = _Target(expected, _unsaved_buffers(model, expected))
    names, said = _rename(list(weights), target)
    notes = [said] if said else []
    fitted = {names[k]: v for k, v in weights.items() if k in names}
    missing = [k for k in expected if k not in fitted]
    extra = [k for k in fitted if k not in expected]
    notes += _fill_ties(fitted, missing, target)
    notes += _skip_counters(missing)
    notes += _drop_unsaved(fitted, extra, target)
    missing = [k for k in missing if k not in fitted and not _may_be_absent(k)]
    extra = [k for k in extra if k in fitted]
    wrong = [k for k, v in fitted.items() if k in expected and not _same_shape(v, expected[k])]
    if (missing or extra) and not wrong and (renamed := _by_own_hooks(fitted, model)) is not None:
        return Fitted(renamed, (*notes, "older names of the file translated by the model's own loading hooks"))
    if (missing or extra or wrong) and (converted := by_its_library(weights, model)) is not None:
        return Fitted(converted, ("converted from its published form by the model's own library",))
    if missing or extra or wrong:
        raise CheckpointError(_difference(fitted, expected, missing, extra, wrong, weights, model))
    for name, value in fitted.items():
        if value.is_floating_point() != expected[name].is_floating_point() or (
            value.is_complex() != expected[name].is_complex()
        ):
            raise CheckpointError(
                f"{name!r} is {_type(value)} in the file and {_type(expected[name])} in the model; a quantized or "
                "packed file must be unpacked first"
            )
    notes += _types(fitted, expected)
    return Fitted(
        {k: fitted[k].reshape(v.shape) if not is_lazy(v) else fitted[k] for k, v in expected.items() if k in fitted},
        tuple(notes),
        names,
    )


@dataclass(frozen=True)
class _Target:
    """The model's side: what it saves, and the buffers that it does not save."""

    expected: dict[str, torch.Tensor]
    unsaved: dict[str, torch.Tensor]

    def ties(self) -> dict[str, list[str]]:
        """Return each name that shares its tensor with others, and those others."""
        groups: dict[Any, list[str]] = {}
        for name, value in self.expected.items():
            if not is_lazy(value) and value.numel():
                key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype, value.device)
                groups.setdefault(key, []).append(name)
        return {n: [m for m in group if m != n] for group in groups.values() if len(group) > 1 for n in group}


def _adapter_alone(
    weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], model: nn.Module
) -> Fitted | None:
    """Return the adapter of a file beside the base model's own tensors; None where the file is no adapter's."""
    adapter = adapter_of(model)
    given = {k.removeprefix(PREFIX): v for k, v in weights.items()}
    if adapter is None and is_adapter_file(weights):
        raise CheckpointError(
            f"holds an adapter alone (PEFT), and {type(model).__name__} has none: put it around the base model in the "
            "task file: peft.PeftModel.from_pretrained(base, folder, is_trainable=True)"
        )
    if adapter is None or adapter.names.keys().isdisjoint(given):
        return None
    wanted = {k: expected[name] for k, name in adapter.names.items()}
    missing = [k for k in wanted if k not in given]
    extra = [k for k in given if k not in wanted and k not in adapter.beside]
    wrong = [k for k, v in given.items() if k in wanted and not _same_shape(v, wanted[k])]
    if (missing or extra or wrong) and (converted := by_its_library(weights, model)) is not None:
        return Fitted(converted, ("converted from its published form by the model's own library",))
    if missing or extra or wrong:
        raise CheckpointError(_difference(given, wanted, missing, extra, wrong, given, model))
    fitted = {{**adapter.beside, **adapter.names}[k]: v for k, v in given.items()}
    base = {k: v.detach() for k, v in expected.items() if k not in fitted}
    note = f"an adapter alone (PEFT): {len(fitted)} tensors; the base model's {len(base)} are as the task makes them"
    if adapter.made_from_config:
        note += ", from its config: make it with from_pretrained where its weights lie in a file"
    return Fitted({**base, **fitted}, (note, *_types(fitted, expected)))


# Names --------------------------------------------------------------------------------------------------------


def _rename(found: list[str], target: _Target) -> tuple[dict[str, str], str]:
    """Return {name in the file: name in the model} of the best common renaming, and what it was."""
    wanted = list(target.expected)
    best: tuple[int, int, dict[str, str], str] | None = None
    for drop, said_inside in _INSIDE:
        file_side, model_side = _shortened(found, drop), _shortened(wanted, drop)
        if file_side is None or model_side is None:
            continue
        back = {short: name for name, short in model_side.items()}
        for old in _prefixes(file_side.values()):
            for new in _prefixes(model_side.values()):
                named = {k: new + short.removeprefix(old) for k, short in file_side.items()}
                named = {k: back.get(v, v) for k, v in named.items()}
                said = "; ".join(
                    filter(
                        None,
                        [
                            f"prefix {old!r} removed from the names in the file" if old else "",
                            f"prefix {new!r} added to the names in the file" if new else "",
                            said_inside,
                        ],
                    )
                )
                off = _distance(named.values(), target)
                if off == 0:
                    return named, said
                if best is None or (off, len(said)) < best[:2]:
                    best = (off, len(said), named, said)
    assert best is not None  # the first renaming, that of nothing, is always possible
    return best[2], best[3]


def _distance(names: Iterable[str], target: _Target) -> int:
    """Count the names that are missing or extra beyond what is tolerated."""
    names = set(names)
    absent = [k for k in target.expected if k not in names]
    ties = target.ties() if absent else {}
    missing = sum(not _may_be_absent(k) and not any(t in names for t in ties.get(k, ())) for k in absent)
    return missing + sum(k not in target.expected and k not in target.unsaved for k in names)


_INSIDE: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset(), ""),
    (_WRAPPERS, "the names of torch's wrappers (_orig_mod, ...) inside the names set aside"),
    (_WRAPPERS | {"module"}, "'module' inside the names set aside"),
)


def _shortened(names: list[str], drop: frozenset[str]) -> dict[str, str] | None:
    """Return {name: name without these parts}; None where two names would become one."""
    short = {n: ".".join(p for p in n.split(".") if p not in drop) for n in names} if drop else {n: n for n in names}
    return short if len(set(short.values())) == len(names) else None


def _prefixes(names: Iterable[str]) -> list[str]:
    """Return the prefixes, ending in a dot, that all names share; the empty one first."""
    names = list(names)
    if not names:
        return [""]
    low, high = min(names).split("."), max(names).split(".")
    common = 0
    while common < min(len(low), len(high)) - 1 and low[common] == high[common]:
        common += 1
    return ["".join(f"{p}." for p in low[:n]) for n in range(common + 1)]


def _by_own_hooks(fitted: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the state after the model's own loading hooks renamed old names (weight_g of weight_norm, timm, ...).

    The model is as before afterwards. None where it has no such hooks, or they don't help.
    """
    if not any(getattr(m, "_load_state_dict_pre_hooks", None) for m in model.modules()):
        return None
    before = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in model.state_dict().items()}
    try:
        result = model.load_state_dict(dict(fitted), strict=False)
        if result.unexpected_keys or not all(map(_may_be_absent, result.missing_keys)):
            return None
        return {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    except RuntimeError:  # other shapes after renaming
        return None
    finally:
        model.load_state_dict(before)


def _may_be_absent(name: str) -> bool:
    return name.endswith("num_batches_tracked")


# What is no difference ----------------------------------------------------------------------------------------


def _unsaved_buffers(model: nn.Module, expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.named_buffers(remove_duplicate=False) if k not in expected}


def _fill_ties(fitted: dict[str, torch.Tensor], missing: list[str], target: _Target) -> list[str]:
    ties = target.ties()
    filled = []
    for name in missing:
        source = next((t for t in ties.get(name, ()) if t in fitted), None)
        if source is not None:
            fitted[name] = fitted[source]
            filled.append(f"{name} = {source}")
    for name, others in ties.items():
        for other in others:
            if name in fitted and other in fitted and not _equal(fitted[name], fitted[other]):
                raise CheckpointError(
                    f"the model ties {name!r} and {other!r}, but the file holds two different tensors for them; "
                    "build the model without the tie"
                )
    return [f"tied weights, stored once, filled in: {_some(filled)}"] if filled else []


def _skip_counters(missing: list[str]) -> list[str]:
    counters = [k for k in missing if _may_be_absent(k)]
    if not counters:
        return []
    return [f"num_batches_tracked is not in the file for {len(counters)} BatchNorm layers; left as the model has it"]


def _drop_unsaved(fitted: dict[str, torch.Tensor], extra: list[str], target: _Target) -> list[str]:
    notes = []
    same, other = [], []
    for name in extra:
        if name in target.unsaved:
            value, own = fitted.pop(name), target.unsaved[name]
            alike = value.shape == own.shape and _equal(value.to(own.dtype), own.detach().cpu())
            (same if alike else other).append(name)
    if same:
        notes.append(f"buffers that the model makes itself left out: {_some(same)}")
    if other:
        notes.append(
            f"buffers that the model makes itself DIFFER from the file's; the model's are kept: {_some(other)}"
        )
    return notes


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and (a.data_ptr() == b.data_ptr() or torch.equal(a.to(b.dtype), b))


def _same_shape(value: torch.Tensor, own: torch.Tensor) -> bool:
    if is_lazy(own):
        return True
    # PyTorch before 0.4 had no tensors without dimensions: a number was saved as one of shape (1,).
    return value.shape == own.shape or (own.ndim == 0 and value.shape == (1,))


def _types(fitted: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    floats = [(v.dtype, expected[k].dtype) for k, v in fitted.items() if k in expected and v.is_floating_point()]
    return [
        f"{counted(count, 'tensor is', 'tensors are')} {_name(a)} in the file and converted to the model's {_name(b)}"
        + (", which loses digits" if torch.finfo(b).eps > torch.finfo(a).eps else "")
        for (a, b), count in Counter(floats).items()
        if a != b
    ]


# What is a difference -----------------------------------------------------------------------------------------


def _difference(
    fitted: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    missing: list[str],
    extra: list[str],
    wrong: list[str],
    weights: Mapping[str, torch.Tensor],
    model: nn.Module,
) -> str:
    parts = []
    if missing:
        near = {k: difflib.get_close_matches(k, extra, n=1, cutoff=0.7) for k in missing[:_SHOWN]}

        def lacking(name: str) -> str:
            like = f", the file has {near[name][0]!r} {_shape(fitted[near[name][0]])}" if near[name] else ""
            return f"{name!r} {_shape(expected[name])}{like}"

        parts.append(f"missing in the file: {_some(missing, lacking)}")
    if extra:
        parts.append(f"not in the model: {_some(extra, lambda k: f'{k!r} {_shape(fitted[k])}')}")
    if wrong:

        def shapes(name: str) -> str:
            return f"{name!r} {_shape(fitted[name])} in the file, {_shape(expected[name])} in the model"

        parts.append(f"other shapes: {_some(wrong, shapes)}")
    said = f"does not fit {type(model).__name__} ({len(expected)} tensors): {'; '.join(parts)}"
    part = _complete_part(weights, expected) if missing or extra else None
    if part is not None:
        return f"{said}. All that the model needs stands under {part!r}: pass --weights {part} to take only that"
    if not extra and not wrong and _are_the_trained(fitted, model):
        return (
            f"{said}. All that the model trains is there, so that this may be an adapter's file: put the base's "
            "weights and these into the model (load_state_dict(..., strict=False)), and write it whole with "
            "landscape.save_checkpoint(path, model)"
        )
    return f"{said}. Build the model that wrote this file"


def _are_the_trained(fitted: Mapping[str, torch.Tensor], model: nn.Module) -> bool:
    """Whether the file lacks nothing but frozen parameters and buffers, of a model that has frozen ones."""
    trained = {n: p.requires_grad for n, p in model.named_parameters()}
    return not all(trained.values()) and any(trained.values()) and all(n in fitted for n, t in trained.items() if t)


def _complete_part(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str | None:
    """Return a prefix under which the file holds the whole model, beside other things (a loss, a teacher)."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in weights.items():
        steps = name.split(".")
        for depth in range(1, min(len(steps), 4)):
            prefix = "".join(f"{step}." for step in steps[:depth])
            parts.setdefault(prefix, {})[name.removeprefix(prefix)] = value
    for prefix, inside in parts.items():
        if inside.keys() == expected.keys() and all(_same_shape(v, expected[k]) for k, v in inside.items()):
            return prefix
    return None


def _some(names: list[str], text: Callable[[str], str] = str) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(text(n) for n in names[:_SHOWN]) + more


def _shape(value: torch.Tensor) -> str:
    return "(not yet known)" if is_lazy(value) else str(tuple(value.shape))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _type(value: torch.Tensor) -> str:
    return _name(value.dtype)
