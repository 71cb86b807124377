"""Which of a model's parameters each optimizer moves, under which names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from landscape.curvature.optimizer_state import read_optimizer
from landscape.errors import MeasurementError
from landscape.parameters import unwrap
from landscape.several import by_name, hooked, innermost

from .gradients import climbs
from .probe import Followed

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | Mapping[str, torch.optim.Optimizer]


def named_optimizers(optimizer: Any) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers by name (see `landscape.several`), without what other libraries wrapped around them.

    Raises TypeError for what is no optimizer, MeasurementError for none, and for one that is given twice.
    """
    found = {name: innermost(one) for name, one in by_name(optimizer).items()}
    if not found:
        raise MeasurementError("the recorder got no optimizer; pass the one that trains the model")
    for one in found.values():
        if isinstance(one, torch.optim.Optimizer) and not hooked(one):
            raise MeasurementError(
                f"{type(one).__name__} never called torch.optim.Optimizer.__init__, so that nothing tells of its "
                "steps: let it call super().__init__(params, defaults), or pass the optimizer that it steps by"
            )
        if not isinstance(one, torch.optim.Optimizer):
            within = one.values() if isinstance(one, Mapping) else one if isinstance(one, list | tuple) else ()
            holds = ", ".join(dict.fromkeys(type(v).__name__ for v in within))
            got = type(one).__name__ + (f" of {holds}" if holds else "")
            raise TypeError(f"expected a torch.optim.Optimizer, a list of them or {{name: optimizer}}, got {got}")
    return found


def wrappers(optimizer: Any) -> tuple[str, ...]:
    """Return in words which optimizers are recorded inside wrappers that may move the weights by themselves."""
    told = []
    for given in by_name(optimizer).values():
        inner = innermost(given)
        if inner is not given and type(given).__name__ != "AcceleratedOptimizer":
            kind, own = type(given).__name__, type(inner).__name__
            told.append(
                f"steps are those of {own} inside {kind}: what {kind} does to the weights behind a step counts to the "
                "next one"
            )
    return tuple(told)


def sharpness_aware(followed: Sequence[Followed]) -> tuple[str, ...]:
    """Return in words whose gradient is recorded of optimizers that climb before they step, SAM's kin."""
    told = []
    for f in followed:
        with contextlib.suppress(MeasurementError):
            state = read_optimizer(f.optimizer)
            if not (state.climbs or type(f.optimizer).__name__.upper().endswith("SAM")):  # GSAM, LookSAM ...
                continue
            there = f"`ascent_norm{f.suffix}`" if climbs(f.optimizer) else "not known"
            told.append(
                f"{type(f.optimizer).__name__} climbs before it steps: `gradient_norm{f.suffix}` is at the weights it "
                f"climbed to, whose gradient it steps by; the norm at the weights themselves is {there}"
                + "".join(f"; {note}" for note in state.notes)
            )
    return tuple(told)


def follow(model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> tuple[Followed, ...]:
    """Return what each optimizer moves: the model's parameters in the model's order, then any others that it holds.

    Raises MeasurementError where an optimizer holds none of the model's parameters.
    """
    names = {id(p): plain_name(n) for n, p in unwrap(model).named_parameters()}
    order = {key: i for i, key in enumerate(names)}
    found = []
    for name, optimizer in optimizers.items():
        held = [
            (p, f"group {g}, {i}")
            for g, group in enumerate(optimizer.param_groups)
            for i, p in enumerate(group["params"])
        ]
        if not any(id(p) in names for p, _ in held):
            which = f"the optimizer {name!r}" if name else "the optimizer"
            raise MeasurementError(
                f"{which} holds {len(held)} parameters, none of them the model's: make it from this model's "
                "parameters, after the model was moved or wrapped"
            )
        held.sort(key=lambda item: order.get(id(item[0]), len(order)))
        labels = tuple(names.get(id(p), label) for p, label in held)
        suffix = f".{name}" if len(optimizers) > 1 else ""
        found.append(Followed(name, optimizer, labels, tuple(p for p, _ in held), suffix))
    return tuple(found)


def difference(old: Followed, new: Followed) -> str:
    """Return in words which parameters came and which went."""
    came = [n for n in new.names if n not in old.names]
    gone = [n for n in old.names if n not in new.names]
    told = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in ((came, "came"), (gone, "went"))
        if names
    ]
    return " and ".join(told or ["replaced"])


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers inside a model put into it."""
    for part in ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        name = name.replace(part, "")
    return name
