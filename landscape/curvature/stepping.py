"""Which of several optimizers a measurement is about: the one that steps the model's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import MeasurementError
from .optimizer_state import read_optimizer
from .preconditioned import assigned


def stepping(optimizers: Mapping[str, Any], model: nn.Module, which: str | None = None) -> Any:
    """Return the optimizer of this name; without one the only optimizer, or the only one that steps the model.

    Args:
        optimizers: torch optimizers or their state_dicts, by name.
        model: as it is measured: of a GAN's checkpoint perhaps the generator alone.

    Raises MeasurementError where there is none of this name, and where none or several of them are known to step
    parameters of the model (`assigned`: by identity, names, or order).
    """
    there = ", ".join(map(repr, optimizers))
    if which is not None:
        if which not in optimizers:
            only = "a single optimizer, without a name" if [*optimizers] == [""] else there
            raise MeasurementError(f"no optimizer is called which={which!r}; there is {only}")
        return optimizers[which]
    if len(optimizers) == 1:
        return next(iter(optimizers.values()))
    counts = {name: _stepped(one, model) for name, one in optimizers.items()}
    found = [name for name, count in counts.items() if count]
    if len(found) == 1:
        return optimizers[found[0]]
    every = sum(1 for _ in model.parameters())
    if found:
        told = " and ".join(f"{name!r} ({counts[name]} of {every} tensors)" for name in found)
        why = f"{told} step parameters of this model"
    else:
        why = f"none of the optimizers {there} is known to step this model's parameters, by names or by order"
    example = (found or [*optimizers])[0]
    raise MeasurementError(
        f"{why}; say which one is meant: --option stability.which={example} on the command line, "
        f"which={example!r} or Task(optimizer=...) of that one in Python"
    )


def _stepped(optimizer: Any, model: nn.Module) -> int:
    """Return how many of the model's parameters an optimizer is known to step."""
    try:
        return len(assigned(read_optimizer(optimizer), model))
    except MeasurementError:  # of other names, counts or shapes: another model's
        return 0
