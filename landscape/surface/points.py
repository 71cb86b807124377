"""The numbers at points of a slice: every quantity in one pass, kept in a journal, within the time there is."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch

from ..errors import MeasurementError
from ..identity import describe, text_of
from ..journal import journal
from ..objective import Objective
from ..passes import Evaluation
from .adaptive import OutOfTime
from .directions import Direction

Criteria = Mapping[str, Callable[[Any, Any], Any]]
Autocast = Literal["bfloat16", "float16"]


class Points:
    """What is measured at theta + sum_i c_i d_i, a row of numbers for each point.

    `names` says what the columns are: "loss", "accuracy", "held-out loss", "held-out accuracy", then the terms of the
    loss and the criteria. `checkpoint` is what the loss gave at step 0; `evaluated` counts the points of this run,
    `reused` those found in the journal.
    """

    def __init__(
        self,
        objective: Objective,
        directions: Sequence[Direction],
        *,
        checkpoint: Evaluation,
        accuracy: bool = True,
        held_out: Objective | None = None,
        criteria: Criteria | None = None,
        autocast: Autocast | None = None,
    ) -> None:
        self.objective, self.held_out = objective, held_out
        self.along = [d.tensors(objective.names) for d in directions]
        self.criteria = dict(criteria or {})
        self.autocast: Autocast | None = autocast
        self.terms = tuple(dict.fromkeys([*checkpoint.terms, *self.criteria]))
        self._accuracy = [o is not None and accuracy and o.has_labels for o in (objective, held_out)]
        optional = (
            ("accuracy", self._accuracy[0]),
            ("held-out loss", held_out),
            ("held-out accuracy", self._accuracy[1]),
        )
        self.names = ("loss", *(name for name, there in optional if there), *self.terms)
        self.evaluated = self.reused = 0
        self._journal = journal()
        self._key, self._kept = "", {}
        if self._journal.wanted:
            width = len(self.along) + len(self.names)
            self._key, kept = self._journal.rows(_facts(objective, directions, self), checkpoint.loss, width)
            self._kept = {tuple(row[: len(self.along)]): row[len(self.along) :] for row in kept.tolist()}

    def rows(self, points: Iterable[tuple[float, ...]]) -> Iterator[list[float]]:
        """Yield the row of each point, in order. Raises OutOfTime before a point for which no time is left."""
        for steps in points:
            found = self._kept.get(steps)
            if found is not None:
                self.reused += 1
                self._journal.reused += 1
                yield found
                continue
            if self._journal.deadline is not None and self.objective.agreed(self._journal.out_of_time):
                raise OutOfTime
            row = self.at(steps)
            self.evaluated += 1
            self._journal.add(self._key, (*steps, *row))
            yield row

    def at(self, steps: tuple[float, ...], autocast: bool = True) -> list[float]:
        """Evaluate one point, whatever is kept of it; `autocast=False` does so in the objective's own precision."""
        # Each point from the centre, so that no rounding error is carried along the path.
        self.objective.move(self.along, steps)
        with autocasting(self.objective.device, self.autocast if autocast else None):
            own = self.objective.evaluate(accuracy=self._accuracy[0], criteria=self.criteria)
            found = {"loss": own.loss, "accuracy": own.accuracy, **own.terms}
            if self.held_out is not None:
                other = self.held_out.evaluate(accuracy=self._accuracy[1])
                found |= {"held-out loss": other.loss, "held-out accuracy": other.accuracy}
        return [found.get(name, math.nan) for name in self.names]


def check_criteria(criteria: Criteria | None, checkpoint: Evaluation) -> None:
    """Refuse criteria that are no functions, or take a name that is taken."""
    for name, criterion in (criteria or {}).items():
        if not callable(criterion):
            raise TypeError(
                f"the criterion {name!r} must be a function of (outputs, target), got {type(criterion).__name__}"
            )
        if name in checkpoint.terms or name in ("loss", "accuracy", "held-out loss", "held-out accuracy"):
            raise MeasurementError(f"the criterion {name!r} has the name of what is measured already: rename it")


@contextlib.contextmanager
def autocasting(device: torch.device, kind: Autocast | None) -> Iterator[None]:
    """Run what is inside under autocast in this precision; in its own with None.

    By torch's plain switches, because the session holds torch.autocast itself disabled (so that no autocast inside a
    model undoes the precision asked for), and without its cache, which would keep the casts of weights that have moved.
    """
    if kind is None:
        yield
        return
    name = device.type
    before = (torch.is_autocast_enabled(name), torch.get_autocast_dtype(name), torch.is_autocast_cache_enabled())
    try:
        torch.set_autocast_enabled(name, True)
        torch.set_autocast_dtype(name, getattr(torch, kind))
        torch.set_autocast_cache_enabled(False)
        yield
    finally:
        torch.set_autocast_enabled(name, before[0])
        torch.set_autocast_dtype(name, before[1])
        torch.set_autocast_cache_enabled(before[2])
        torch.clear_autocast_cache()


def _facts(objective: Objective, directions: Sequence[Direction], points: Points) -> dict[str, Any]:
    """Return what a point's numbers depend on beside its steps, as plain data."""
    splits = [o for o in (objective, points.held_out) if o is not None]
    held = {id(p) for p in objective.parameters}
    others = [p.detach() for p in objective.model.parameters() if id(p) not in held]
    others += [b for b in objective.model.buffers() if b is not None]
    criteria = {name: text_of(c) for name, c in points.criteria.items()}
    return {
        **describe(objective.task),
        "data": " and ".join(f"{o.split} #{o.fingerprint} {o.largest}" for o in splits),
        "weights": _digest([*objective.center, *others]),
        "directions": _digest([t for d in directions for t in d.tensors(objective.names)]),
        "coordinates": len(points.along),
        "device": objective.device.type,
        "precision": str(objective.dtype).removeprefix("torch."),
        "autocast": points.autocast,
        "quantities": ", ".join(points.names),
        **({"criteria": criteria} if criteria else {}),
    }


def _digest(tensors: Iterable[torch.Tensor]) -> str:
    found = hashlib.sha256()
    for t in tensors:
        found.update(np.ascontiguousarray(t.detach().cpu().reshape(-1).view(torch.uint8).numpy()).data)
    return f"#{found.hexdigest()[:32]}"
