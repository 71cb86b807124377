"""From the object in a checkpoint to its parts: which entry is the weights, the optimizer, the step, the facts."""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

from ..counted import counted
from ..errors import CheckpointError
from . import optimizers
from .files import SAVE_STATE_DICT
from .joined import fits, joined, side_by_side, under_keys
from .rebuilt import NumpyArray
from .strangers import Inert

# Where training scripts keep the weights, most telling first (PyTorch's examples, Lightning, timm, mmengine,
# Composer, Accelerate, Detectron2, nanoGPT; the order chosen by us).
_MODEL_NAMES = (
    *("model", "state_dict", "model_state_dict", "model_state", "model_dict", "module", "net", "network"),
    *("net_state_dict", "weights", "params", "current_model_state"),
)
_EMA = re.compile(r"(^|[_.\-])(ema|swa|averaged|average|shadow)($|[_.\-\d])|ema_?model|model_?ema")
_EMA_PREFIXES = ("ema_model.module.", "ema_model.", "model_ema.module.", "model_ema.", "ema.module.", "ema.")
# Branches of a checkpoint that hold tensors, but never the weights.
_ELSEWHERE = re.compile(
    r"optim|^opt$|sched|scaler|^rng|rng_state|random|callbacks|^loops$|averaging_state|hyper_parameters|dataloader"
)
_LEVELS = ("app", "state", "train_state", "checkpoint")  # FSDP examples, JAX habits: everything one level down
_STEP_NAMES = ("step", "global_step", "iteration", "iter", "iter_num", "num_steps", "steps", "it", "num_updates")
_EPOCH_NAMES = ("epoch", "epochs", "current_epoch")
_NO_FACTS = ("loops",)  # Lightning's progress counters: long, and in step and epoch already
_LONGEST_LIST = 256  # entries of a list or dict kept as a fact: settings, not logs (chosen by us)
_LONGEST_TEXT = 10_000
_LARGEST_TENSOR = 16


class NeedsPickle(CheckpointError):
    """The weights can only be had by running the file's own code: refused unless the file is trusted."""


@dataclasses.dataclass(frozen=True)
class Contents:
    """The parts of a checkpoint; `where` names the entry that the weights came from, "" for the top.

    `optimizers` are states by name, one alone as "". `prefix` is what was taken from the front of the weights' names,
    of which then only those are there that had it. `own` is what `save_checkpoint` wrote beside the weights, None in
    everybody else's files.
    """

    weights: dict[str, torch.Tensor]
    where: str
    prefix: str
    optimizers: dict[str, dict[str, Any]]
    step: int | None
    epoch: int | None
    facts: dict[str, Any]
    own: dict[str, Any] | None
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Something in the file that looks like a state_dict."""

    path: tuple[str, ...]
    tensors: Mapping[Any, Any]
    #: What was taken from the front of their names.
    prefix: str = ""

    @property
    def name(self) -> str:
        return ".".join(self.path)


def take_apart(value: Any, *, weights: str | None = None, model: nn.Module | None = None) -> Contents:
    """Return the parts of what a file held; `weights` is "ema", "model", the name of an entry, or a key prefix.

    Where several entries are parts of `model`, and none is it alone, its weights are put together from them.

    Raises CheckpointError where there are no weights, or several and no choice; NeedsPickle where only the
    file's own code could make them.
    """
    if isinstance(value, nn.Module):
        value = {"model": value}
    value = _opened(value)
    if isinstance(value, Inert):
        raise NeedsPickle(_whole_object(value))
    if not isinstance(value, Mapping):
        raise CheckpointError(f"it holds a {type(value).__name__}, not a state_dict or a dict with one")
    top = dict(value)
    for level in _LEVELS:
        inner = top.get(level)
        if isinstance(inner, Mapping) and "param_groups" not in top and any(map(_is_branch, inner.values())):
            top = {**{k: v for k, v in top.items() if k != level}, **inner}
    entries = list(_entries(top, ()))
    if not entries:
        raise _no_weights(top)
    average = "averaging_state" in top and "current_model_state" in top
    whole = _joined(entries, model) if model is not None and weights is None and not average else None
    entry, notes = whole or _choose(entries, weights, average)
    tensors, said = _tensors(entry)
    notes += said
    states, state_names, said = optimizers.states_of(top, _copied)
    notes += said
    step, step_name = _whole_number(top, _STEP_NAMES)
    epoch, epoch_name = _whole_number(top, _EPOCH_NAMES)
    own = top.get("landscape")
    used = {*state_names, step_name, epoch_name, *_NO_FACTS}
    if isinstance(own, Mapping):
        used |= {"landscape"}
    used |= {e.path[0] for e in entries} if entry.path else set(entry.tensors)
    used |= {k for k in (*optimizers.NAMES, *_STEP_NAMES, *_EPOCH_NAMES) if k in top and top[k] is None}
    facts, left_out = plain_facts({k: v for k, v in top.items() if k not in used})
    if left_out:
        notes.append(f"not kept, being no plain values: {_shown(left_out)}")
    kept = dict(own) if isinstance(own, Mapping) else None
    return Contents(tensors, entry.name, entry.prefix, states, step, epoch, facts, kept, tuple(notes))


def without_ema(tensors: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]] | None:
    """Return the prefix of averaged weights that stand among the others, and the others; None without any."""
    part = _ema_inside(tensors)
    return (part[0], {k: v for k, v in tensors.items() if not k.startswith(part[0])}) if part else None


def plain_facts(values: Mapping[Any, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the plain (JSON-able) values of a mapping, and the names of those left out."""
    left_out: list[str] = []
    kept = {str(k): _plain(v, str(k), left_out, 0) for k, v in values.items()}
    return {k: v for k, v in kept.items() if v is not _GONE}, left_out


# Weights ------------------------------------------------------------------------------------------------------


def _choose(entries: list[_Entry], weights: str | None, lightning_average: bool) -> tuple[_Entry, list[str]]:
    # Lightning's averaging callback puts the average under state_dict, what is trained under current_model_state.
    ema = [e for e in entries if _EMA.search(e.name.lower()) or (lightning_average and e.name == "state_dict")]
    model = [e for e in entries if e not in ema]
    if weights is None:
        return _default(entries, model, ema, lightning_average)
    if weights == "model" and (chosen := _by_name(model)):
        return chosen, [f"weights taken from {chosen.name!r}"] if len(entries) > 1 else []
    if weights == "ema" and ema:
        chosen = _by_name(ema) or ema[0]
        return chosen, [f"averaged weights taken from {chosen.name!r}"]
    default = _by_name(model) or _by_name(ema)
    if weights == "ema" and default and (part := _ema_inside(default.tensors)):
        return _Entry(default.path, part[1], part[0]), [f"averaged weights taken from the names under {part[0]!r}"]
    if named := next((e for e in entries if e.name == weights), None):
        return named, [f"weights taken from {weights!r}"]
    prefix = weights.rstrip(".") + "."
    inside = {k: v for k, v in default.tensors.items() if k.startswith(prefix)} if default else {}
    if default and inside:
        note = f"only the {len(inside)} of {len(default.tensors)} names under {prefix!r} are taken"
        return _Entry(default.path, {k.removeprefix(prefix): v for k, v in inside.items()}, prefix), [note]
    what = "averaged (EMA) weights" if weights == "ema" else f"weights {weights!r}"
    raise CheckpointError(f"it holds no {what}; it has: {_list(entries)}")


def _joined(entries: list[_Entry], model: nn.Module) -> tuple[_Entry, list[str]] | None:
    """Return the entry that several make together; None where one fits alone, or nothing fits exactly."""
    parts = [e for e in entries if not _EMA.search(e.name.lower())]
    if len(parts) < 2:
        return None
    common = next((i for i, s in enumerate(zip(*(e.path for e in parts), strict=False)) if len(set(s)) > 1), 0)
    named = {".".join(e.path[common:]): e for e in parts}
    try:
        if (one := _by_name(parts)) is not None and fits(_tensors(one)[0], model):
            return None
        found = joined({key: _tensors(e)[0] for key, e in named.items()}, model)
    except CheckpointError:  # no plain tensors: whoever takes that entry says so
        return None
    if found is None:
        return None
    keys, prefixed, said = found
    raw = {key: named[key].tensors for key in keys}
    left = [e for e in entries if e not in [named[k] for k in keys]]
    said += f"; also there: {_list(left)}" if left else ""
    return _Entry((" + ".join(keys),), (under_keys(raw) if prefixed else side_by_side(raw)) or {}), [said]


def _default(
    entries: list[_Entry], model: list[_Entry], ema: list[_Entry], lightning_average: bool
) -> tuple[_Entry, list[str]]:
    if lightning_average and (chosen := next((e for e in ema if e.name == "state_dict"), None)):
        return chosen, ["'state_dict' holds averaged weights (--weights model takes those that were trained)"]
    if not model:
        chosen = _by_name(ema) or ema[0]
        return chosen, [f"only averaged weights ({chosen.name!r}) are in the file"]
    chosen = _by_name(model)
    if chosen is None:
        raise CheckpointError(
            f"it holds {len(model)} sets of weights; choose one with --weights: {_list(entries)}; where they are parts "
            "of one model, call its submodules in the task as these entries are called, and all are loaded"
        )
    if ema:
        return chosen, [f"averaged (EMA) weights are there too: --weights ema takes {(_by_name(ema) or ema[0]).name!r}"]
    if part := _ema_inside(chosen.tensors):
        return chosen, [f"averaged (EMA) weights are there too, under {part[0]!r}: --weights ema takes them"]
    others = [e for e in entries if e is not chosen]
    return chosen, [f"weights taken from {chosen.name!r}; also there: {_list(others)}"] if others else []


def _entries(value: Mapping[Any, Any], path: tuple[str, ...]) -> Iterator[_Entry]:
    """Walk to all that looks like a state_dict; tensors among other things count only if no dict below them does."""
    if _is_state_dict(value):
        yield _Entry(path, value)
        return
    found = False
    for key, raw in value.items():
        inner = raw.state_dict() if isinstance(raw, nn.Module) else _opened(raw)
        elsewhere = not isinstance(key, str) or _ELSEWHERE.search(key.lower())
        if len(path) < 4 and isinstance(inner, Mapping) and not elsewhere and "param_groups" not in inner:
            for entry in _entries(inner, (*path, key)):
                found = True
                yield entry
    loose = {k: v for k, v in value.items() if _is_weight_name(k) and (_is_tensor(v) or isinstance(v, Inert))}
    if not found and any(_unwrap(v).ndim for v in loose.values() if _is_tensor(v)):
        yield _Entry(path, loose)


def _is_state_dict(value: Mapping[Any, Any]) -> bool:
    tensors = [_unwrap(v) for v in value.values() if _is_tensor(v)]
    others = [(k, v) for k, v in value.items() if not _is_tensor(v)]
    return any(t.ndim for t in tensors) and all(
        not isinstance(v, Mapping) and (v is None or _is_weight_name(k) or str(k).endswith("_extra_state"))
        for k, v in others
    )


def _is_weight_name(name: Any) -> bool:
    return isinstance(name, str) and (
        "." in name or name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray | NumpyArray)


def _is_branch(value: Any) -> bool:
    return isinstance(value, Mapping | nn.Module)


def _unwrap(value: Any) -> Any:
    return value.value if isinstance(value, NumpyArray) else value


def _opened(value: Any) -> Any:
    """Return the dict inside somebody's own dict class; everything else as it is."""
    inert_dict = isinstance(value, Inert) and value.entries and not isinstance(value.state, Mapping)
    return dict(value.entries) if inert_dict else value


def _by_name(entries: list[_Entry]) -> _Entry | None:
    """Return the entry with the most telling name, or the only one."""
    if len(entries) == 1:
        return entries[0]
    for name in _MODEL_NAMES:
        hits = [e for e in entries if e.path and name in (e.path[0], e.path[-1])]
        if len(hits) == 1:
            return hits[0]
    return None


def _ema_inside(tensors: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return averaged weights that a module keeps as a submodule of its own."""
    for prefix in _EMA_PREFIXES:
        inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if inside and len(inside) < len(tensors):
            return prefix, inside
    return None


def _tensors(entry: _Entry) -> tuple[dict[str, torch.Tensor], list[str]]:
    made: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    extra = []
    for name, raw in entry.tensors.items():
        value = _unwrap(raw)
        if isinstance(value, np.ndarray):
            if value.dtype.kind not in "biufc":
                raise CheckpointError(f"{name!r} is a NumPy array of {value.dtype}, which is no weight")
            made[name] = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
        elif isinstance(value, torch.Tensor):
            if value.is_meta:
                raise CheckpointError(f"{name!r} was saved from the meta device: it has a shape, but no values")
            made[name] = value.detach()
        elif isinstance(value, Inert) and not name.endswith("_extra_state"):
            raise NeedsPickle(
                f"its weights {name!r} are made by a call of {value!r}, which was not done; save plain tensors with "
                f"{SAVE_STATE_DICT}, or pass --trust-pickle if you wrote this file yourself"
            )
        else:
            extra.append(name)
    if extra:
        notes.append(f"entries without a tensor left out: {_shown(extra)}")
    if "n_averaged" in made and all(k.startswith("module.") for k in made if k != "n_averaged"):
        notes.append(f"averaged over {int(made.pop('n_averaged').item())} models (torch.optim.swa_utils)")
    return made, notes


def _no_weights(top: Mapping[Any, Any]) -> CheckpointError:
    stuck = next((v for v in _walk(top) if isinstance(v, Inert) and v.args is not None), None)
    modules = (v for v in _walk(top) if isinstance(v, Inert) and _is_module(v))
    stuck = next(modules, stuck)
    if stuck is not None:
        return NeedsPickle(_whole_object(stuck))
    names = _shown([repr(k) for k in top]) or "nothing"
    return CheckpointError(f"it holds no weights (it has: {names}); save {SAVE_STATE_DICT}")


def _whole_object(stuck: Inert) -> str:
    what = f"a whole pickled object ({stuck.name})" if stuck.state is not None else f"the result of {stuck!r}"
    return (
        f"it holds {what}, which only the code that it names can make; save the weights instead, with "
        f"{SAVE_STATE_DICT}, or pass --trust-pickle if you wrote this file yourself"
    )


def _is_module(value: Inert) -> bool:
    return isinstance(value.state, Mapping) and "_parameters" in value.state


def _walk(value: Mapping[Any, Any], depth: int = 0) -> Iterator[Any]:
    for key, inner in value.items():
        if isinstance(key, str) and _ELSEWHERE.search(key.lower()):
            continue
        yield inner
        if isinstance(inner, Mapping) and depth < 4:
            yield from _walk(inner, depth + 1)


def _list(entries: list[_Entry]) -> str:
    return _shown([f"{e.name or 'the top'} ({counted(len(e.tensors), 'tensor')})" for e in entries])


def _shown(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


# Copies, step, epoch ---------------------------------------------------------------------------------------


def _copied(value: Any) -> Any:
    """Return a state as plain containers of tensors and numbers, in their order."""
    value = _unwrap(value)
    if isinstance(value, Inert):
        raise CheckpointError(value.name)
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(_copied, value)) if isinstance(value, tuple) else [_copied(v) for v in value]
    return value


def _whole_number(top: Mapping[Any, Any], names: tuple[str, ...]) -> tuple[int | None, str | None]:
    for name in names:
        value = _unwrap(top.get(name))
        if isinstance(value, torch.Tensor | np.ndarray | np.generic):
            value = value.item() if math.prod(value.shape) == 1 else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        if value == int(value):
            return int(value), name
    return None, None


# Facts --------------------------------------------------------------------------------------------------------

_GONE = object()


def _plain(value: Any, name: str, left_out: list[str], depth: int) -> Any:
    """Return a value as JSON would hold it, _GONE where it cannot."""
    value = _unwrap(value)
    if value is None or type(value) in (bool, int, float):  # not NumPy's float64, not an IntEnum
        return value
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, torch.dtype | torch.device | PurePath):
        return str(value)
    if isinstance(value, str) and len(value) <= _LONGEST_TEXT:
        return str(value)
    if isinstance(value, torch.Tensor):
        if not (value.is_meta or value.is_complex()) and value.numel() <= _LARGEST_TENSOR:
            return value.tolist()
    elif isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind in "biufU" and value.size <= _LARGEST_TENSOR:
            return value.tolist()
    elif isinstance(value, Mapping) and len(value) <= _LONGEST_LIST and depth < 20:
        kept = {str(k): _plain(v, f"{name}.{k}", left_out, depth + 1) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v is not _GONE}
    elif isinstance(value, list | tuple | set | frozenset) and len(value) <= _LONGEST_LIST and depth < 20:
        items = [_plain(v, name, left_out, depth + 1) for v in value]
        return [v for v in items if v is not _GONE]
    elif isinstance(value, Inert) and depth < 20:
        return _plain(_fields(value), name, left_out, depth + 1)
    elif isinstance(value, Namespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return _plain(dict(vars(value)), name, left_out, depth + 1)
    if name not in left_out:
        left_out.append(name)
    return _GONE


def _fields(value: Inert) -> Any:
    """Return what an inert object was given: its fields, entries or items, else how it was called."""
    if value.args is None:
        return value.name
    if value.name.startswith("pathlib."):
        return "/".join(map(str, value.args)).replace("//", "/")
    state = value.state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):  # a class with __slots__
        state = {**(state[0] or {}), **state[1]}
    if isinstance(state, Mapping):
        for content in ("_content", "_val"):  # omegaconf keeps its values under these
            if content in state:
                return state[content]
        return state
    return dict(value.entries) if value.entries else value.items or repr(value)[:200]
