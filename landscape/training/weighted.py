"""A weighted sum of losses whose weights may be scheduled, with every term recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from ..reduction import known_weight, split_value
from .loss import bind
from .schedule import Progress, Schedule


@dataclass(frozen=True)
class Term:
    """One summand: a coefficient times schedules times a loss."""

    name: str
    loss: Any
    coefficient: float = 1.0
    schedules: tuple[Schedule, ...] = ()

    def weight(self, progress: Progress) -> float:
        """Return the weight in force at this point of the run."""
        value = self.coefficient
        for schedule in self.schedules:
            value *= schedule(progress)
        return value


class WeightedLoss(nn.Module):
    """A sum of losses; its value is {term: weight * mean}, and the loss is the sum of the terms.

    Scheduled weights follow `advance(progress)`, which `drive` calls at each step; before the first call they are
    those of the start of a run. A term is named by its loss, a second one of the same name gets _2; a loss with terms
    of its own gives name.term. Where every loss knows its own denominator and they agree, the value is (terms,
    denominator); otherwise `Objective` verifies that the sum is a mean over samples.

    `rebatch` is False where a loss couples the samples of a batch.
    """

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__()
        if not terms:
            raise TrainingError("a weighted sum needs at least one loss")
        self.names = _distinct([t.name for t in terms])
        self._terms = tuple(terms)
        self.parts = nn.ModuleDict({n: t.loss for n, t in zip(self.names, terms, strict=True)})
        self.rebatch = all(getattr(t.loss, "rebatch", True) for t in terms)
        #: The weights in force, by term.
        self.weights: dict[str, float] = {}
        self.advance(Progress(0, 1))

    def advance(self, progress: Progress) -> dict[str, float]:
        """Set the weights in force at this point of the run, and return them."""
        self.weights = {n: t.weight(progress) for n, t in zip(self.names, self._terms, strict=True)}
        return dict(self.weights)

    def check(self, total: int, steps_per_epoch: int = 1) -> tuple[str, ...]:
        """Return what is worth knowing about the scheduled weights in a run of this length.

        Raises TrainingError where a schedule is longer than the run.
        """
        found = [s.check(total, steps_per_epoch) for t in self._terms for s in t.schedules]
        return tuple(note for notes in found for note in notes)

    @property
    def scheduled(self) -> tuple[str, ...]:
        """The terms whose weights change."""
        return tuple(n for n, t in zip(self.names, self._terms, strict=True) if t.schedules)

    def bind(self, model: nn.Module) -> WeightedLoss:
        """Show the model to the terms that look at its weights; return the loss itself."""
        for part in self.parts.values():
            bind(part, model)
        return self

    def forward(self, outputs: Any, target: Any = None) -> Any:
        found: dict[str, torch.Tensor] = {}
        denominators: list[float | None] = []
        for name, part in self.parts.items():
            weight = self.weights[name]
            value = part(outputs, target)
            mean, own, _ = split_value(value)
            denominators.append(float(own) if own is not None else known_weight(part, outputs, target))
            value = value[0] if isinstance(value, tuple) else value
            if isinstance(value, dict):
                found.update({f"{name}.{k}": weight * v for k, v in value.items()})
            else:
                found[name] = weight * mean
        first = denominators[0]
        agreed = first is not None and all(d == first for d in denominators)
        return (found, first) if agreed else found

    def extra_repr(self) -> str:
        return ", ".join(f"{n}: weight {w:.6g}" for n, w in self.weights.items())


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = []
    for name in names:
        count = sum(1 for n in found if n == name or n.rpartition("_")[0] == name) + 1
        found.append(name if count == 1 else f"{name}_{count}")
    return tuple(found)
