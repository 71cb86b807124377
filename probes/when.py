"""When a probe measures: every so many steps or epochs, at given steps, log-spaced, and within a share of the time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from landscape.errors import MeasurementError

#: Steps a decade of `log_spaced` (chosen by us: 1, 2, 3, 5, 8, 13, 20, ... roughly, as far apart as the eye needs).
PER_DECADE = 5


@dataclass(frozen=True)
class Moment:
    """A point in a training: `step` optimizer steps taken, `epoch` epochs ended (`ends_epoch`: one just did), `elapsed`
    seconds of the run, of which this probe `spent` its own; `cost` is what it last took (0: it never ran).
    """

    step: int
    epoch: int = 0
    ends_epoch: bool = False
    elapsed: float = 0.0
    spent: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True)
class When:
    """A fixed lattice of steps or epochs, and the share of the run's time that may be spent there.

    The lattice is the same in every run, so that runs stay comparable. With a `budget`, a point of it is left out where
    what the probe has spent, and what it last took, would exceed that share of the time so far. The first point is
    taken whatever it costs: a training's beginning can't be measured later, and without it the cost would never be
    known. It counts like the others, so that the next point waits until the share is kept again; a run shorter than
    the first point's seconds / budget (20 s for 1 s within 5%) spends more than its share, which an event says in its
    archive ("over_budget"). The recorder archives which points were taken, and takes the same ones again when a run is
    resumed.
    """

    steps: int | None = None
    epochs: int | None = None
    points: tuple[int, ...] | None = None
    per_decade: int | None = None
    budget: float | None = None

    def on_lattice(self, moment: Moment) -> bool:
        """Whether this moment is one of the lattice, whatever it costs."""
        if self.epochs is not None:
            return moment.ends_epoch and moment.epoch % self.epochs == 0
        if moment.ends_epoch:
            return False  # the last step of the epoch was asked about already
        if self.steps is not None:
            return moment.step % self.steps == 0
        if self.points is not None:
            return moment.step in self.points
        return _is_log_spaced(moment.step, self.per_decade or PER_DECADE)

    def first_from(self, step: int) -> float:
        """Return the first step of the lattice from this one on; inf where there is none, as of a lattice of epochs."""
        if self.epochs is not None:
            return math.inf
        if self.steps is not None:
            return -(-step // self.steps) * self.steps
        if self.points is not None:
            return next((p for p in self.points if p >= step), math.inf)
        if step < 1:
            return 0
        per_decade = self.per_decade or PER_DECADE
        i = max(math.floor(per_decade * math.log10(step)) - 1, 0)
        return next(found for j in itertools.count(i) if (found := round(10 ** (j / per_decade))) >= step)

    def affordable(self, moment: Moment) -> bool:
        """Whether measuring now keeps within the budget."""
        if self.budget is None or moment.cost == 0:
            return True
        return moment.spent + moment.cost <= self.budget * moment.elapsed

    def due(self, moment: Moment) -> bool:
        """Whether the probe measures at this moment."""
        return self.on_lattice(moment) and self.affordable(moment)

    def describe(self) -> dict[str, Any]:
        """Return the settings that are not None, for the archive."""
        named = {k: getattr(self, k) for k in ("steps", "epochs", "points", "per_decade", "budget")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in named.items() if v is not None}


def every(*, steps: int | None = None, epochs: int | None = None, budget: float | None = None) -> When:
    """Measure every so many optimizer steps (at step 0 too), or at the end of every so many epochs.

    `budget` is the largest share of the run's time to spend (0.05: 5%), the first point excepted; see `When`. Raises
    MeasurementError unless exactly one of steps and epochs is given, as a whole number of at least 1.
    """
    if (steps is None) == (epochs is None):
        raise MeasurementError("give every(steps=...) or every(epochs=...), one of the two")
    _whole(steps if steps is not None else epochs, "steps" if steps is not None else "epochs")
    return When(steps=steps, epochs=epochs, budget=share_of_time(budget))


def at(points: Iterable[int], *, budget: float | None = None) -> When:
    """Measure after each of these numbers of optimizer steps (`points`, in any order); 0 is before the first.

    `budget` as for `every`. Raises MeasurementError for none, or one that is no whole number of at least 0.
    """
    found = tuple(sorted(set(points)))
    bad = [p for p in found if isinstance(p, bool) or not isinstance(p, int) or p < 0]
    if bad or not found:
        raise MeasurementError(f"at({list(found)}) needs whole numbers of steps, 0 or more, at least one")
    return When(points=found, budget=share_of_time(budget))


def log_spaced(per_decade: int = PER_DECADE, *, budget: float | None = None) -> When:
    """Measure at step 0, at step 1, and `per_decade` times in every tenfold of the steps, evenly in the logarithm.

    `budget` as for `every`. Raises MeasurementError for a `per_decade` that is no whole number of at least 1.
    """
    _whole(per_decade, "per_decade")
    return When(per_decade=per_decade, budget=share_of_time(budget))


def _is_log_spaced(step: int, per_decade: int) -> bool:
    """Whether `step` is 0 or round(10^(i / per_decade)) for some whole i."""
    if step < 1:
        return step == 0
    i = round(per_decade * math.log10(step))
    return any(round(10 ** (j / per_decade)) == step for j in (i - 1, i, i + 1) if j >= 0)


def _whole(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MeasurementError(f"{name}={value!r} must be a whole number of at least 1")


def share_of_time(budget: float | None) -> float | None:
    """Return a budget as it is; MeasurementError for what is no share."""
    if budget is not None and not (isinstance(budget, int | float) and 0 < budget <= 1):
        raise MeasurementError(f"budget={budget!r} must be a share of the run's time, above 0 and up to 1")
    return budget
