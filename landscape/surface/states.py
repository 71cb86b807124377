"""States of a model beside its own: out of whatever people have them in, under the model's names, and held for a while.

A state is a state_dict, a module, a `Checkpoint`, or the path of a checkpoint file or folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..aliases import following
from ..checkpoint import Checkpoint, read_for
from ..checkpoints.contents import take_apart
from ..checkpoints.fit import fit
from ..checkpoints.mapped import map_file
from ..errors import CheckpointError, MeasurementError
from ..parameters import unwrap


@dataclass(frozen=True)
class State:
    """One state under the model's own names: every parameter and buffer that the model saves, as in the file."""

    weights: Mapping[str, torch.Tensor]
    label: str
    step: int | None = None
    epoch: int | None = None
    notes: tuple[str, ...] = ()

    def chosen(self, names: tuple[str, ...]) -> list[torch.Tensor]:
        """Return the tensors of these parameters, in this order. Raises CheckpointError where one is not there."""
        missing = [n for n in names if n not in self.weights]
        if missing:
            raise CheckpointError(
                f"{self.label} does not hold the parameter {missing[0]!r}, which the model doesn't save under this name"
            )
        return [self.weights[n] for n in names]


def read_state(given: Any, model: nn.Module, number: int) -> State:
    """Return a state fitted onto `model` (unwrapped); the tensors of a torch file stay on disk until they are read.

    `number` counts the states from 1, for errors. Nothing is copied: the tensors are the caller's, or the file's. A
    State that was read already is returned as it is.

    Raises CheckpointError that names what is missing, extra or misshapen; TypeError for something that is no state.
    """
    label = f"state {number}"
    step = epoch = None
    notes: tuple[str, ...] = ()
    if isinstance(given, State):
        return given
    if isinstance(given, nn.Module):
        weights = {k: v for k, v in unwrap(given).state_dict().items() if isinstance(v, torch.Tensor)}
    elif isinstance(given, Checkpoint):
        weights, step, epoch, notes = given.weights, given.step, given.epoch, given.notes
        label = given.path or label
    elif isinstance(given, str | os.PathLike):
        label = str(given)
        found = map_file(Path(given), model) or read_for(model, given)
        weights, step, epoch, notes = found.weights, found.step, found.epoch, found.notes
    elif isinstance(given, Mapping):
        try:
            found = take_apart(given, model=model)
        except CheckpointError as error:
            raise CheckpointError(f"{label}: {error}") from None
        weights, step, epoch, notes = found.weights, found.step, found.epoch, found.notes
    else:
        raise TypeError(
            f"{label} is a {type(given).__name__}; give a state_dict, a module, a Checkpoint or the path of one"
        )
    try:
        fitted = fit(weights, model)
    except CheckpointError as error:
        raise CheckpointError(f"{label} {error}") from None
    return State(fitted.weights, label, step, epoch, (*notes, *fitted.notes))


@contextlib.contextmanager
def holding(model: nn.Module, state: State) -> Iterator[None]:
    """Let `model` (unwrapped) hold a state's tensors, in its own dtypes and devices; on every way out its own again.

    The model's tensor objects stay: only what they point to changes. Nothing is written into either side's storage,
    and nothing must be meanwhile: an Objective entered inside works on copies.
    """
    own = {k: v for k, v in model.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
    kept = {id(v): (v, v.data) for v in own.values()}
    with following(model) as follow:
        try:
            for name, value in state.weights.items():
                held = own[name]
                data = value.detach().to(held.device, held.dtype)
                if data.stride() != held.stride():  # what follows a parameter relies on its layout
                    data = torch.empty_like(held.data).copy_(data)
                held.data = data
            follow()
            yield
        finally:
            for held, data in kept.values():
                held.data = data


def others(state: State, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return what a state holds beside the trainable parameters `names`: frozen ones, running statistics, counters."""
    return {k: v for k, v in state.weights.items() if k not in names}


def differ(a: State, b: State) -> bool:
    """Say whether any tensor of two states that can be mixed differs; counters don't count."""
    return any(mixable(v) and not same(v, b.weights[k]) for k, v in a.weights.items() if k in b.weights)


def mixable(tensor: torch.Tensor) -> bool:
    """Say whether something lies between two such tensors: real or complex numbers, no counters, masks or indices."""
    return tensor.is_floating_point() or tensor.is_complex()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say whether two tensors hold the same numbers, whatever their devices and precisions."""
    return torch.equal(a.detach().to(b.device, b.dtype), b.detach())


def check_finite(state: State, names: tuple[str, ...]) -> None:
    """Raise MeasurementError naming the first of these parameters that holds a NaN or an infinity."""
    for name, value in zip(names, state.chosen(names), strict=True):
        if not bool(torch.isfinite(value).all()):
            raise MeasurementError(
                f"{state.label} is not finite in {name!r}: leave this state out (diverged weights have no place on a "
                "picture)"
            )
