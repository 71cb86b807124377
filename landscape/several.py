"""Several optimizers of one training, by name: what a recorder, a checkpoint and a measurement are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .errors import MeasurementError

#: Where wrappers keep the optimizer that they step.
_INNER = ("optimizer", "base_optimizer", "base")


def by_name(optimizers: Any) -> dict[str, Any]:
    """Return optimizers, or their states, by name: {name: optimizer} as it is, one alone as "", None as none.

    Those of a list are called by their class ("muon", "adamw") where each is of another, else by their place ("0",
    "1"). Plain settings of one optimizer, and a list of its groups' settings, are one optimizer.
    Raises MeasurementError for one that is given twice.
    """
    if optimizers is None:
        return {}
    if isinstance(optimizers, Mapping):
        found = {str(k): v for k, v in optimizers.items()} if all(map(_is_one, optimizers.values())) else None
    elif isinstance(optimizers, list | tuple) and all(map(_is_one, optimizers)):
        found = dict(zip(_names(optimizers), optimizers, strict=True))
    else:
        found = None
    if found is None:
        return {"": optimizers}
    for name, one in found.items():
        twice = next((n for n, other in found.items() if other is one and n != name), None)
        if twice is not None:
            raise MeasurementError(f"{name!r} and {twice!r} are one optimizer: give each once")
    return found


def innermost(optimizer: Any) -> Any:
    """Return an optimizer without what was wrapped around it: Accelerate's, and all whose steps torch knows nothing of.

    Those are no torch.optim.Optimizer, or one that never called its __init__, as many a Lookahead.
    """
    while type(optimizer).__name__ == "AcceleratedOptimizer" or not hooked(optimizer):
        held = (getattr(optimizer, name, None) for name in _INNER)
        inner = next((o for o in held if o is not None and o is not optimizer), None)
        if inner is None:
            return optimizer
        optimizer = inner
    return optimizer


def hooked(optimizer: Any) -> bool:
    """Whether torch calls hooks at the steps of an optimizer."""
    return isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")


def _is_one(value: Any) -> bool:
    """Whether something is an optimizer, or the state of one, as opposed to a setting or a group's settings."""
    return "param_groups" in value if isinstance(value, Mapping) else hasattr(innermost(value), "param_groups")


def _names(optimizers: list[Any] | tuple[Any, ...]) -> list[str]:
    if len(optimizers) == 1:
        return [""]
    kinds = [type(innermost(o)).__name__.lower() for o in optimizers]
    states = any(isinstance(o, Mapping) for o in optimizers)  # which do not say of which class they are
    return [str(i) for i in range(len(kinds))] if states or len({*kinds}) < len(kinds) else kinds
