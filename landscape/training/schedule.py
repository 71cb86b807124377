"""What a schedule is: a pure function of where a run stands to the value of one named scalar. No torch here."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from ..errors import TrainingError


@dataclass(frozen=True)
class Progress:
    """Where a run stands: `step` of `total` optimizer steps, counted from 0, `steps_per_epoch` of them an epoch.

    By default a step is an epoch, so that schedules in epochs count steps. Step `total` is the end: one past the last.

    Raises TrainingError for a step outside the run.
    """

    step: int
    total: int
    steps_per_epoch: int = 1

    def __post_init__(self) -> None:
        if self.total < 1 or self.steps_per_epoch < 1:
            raise TrainingError(
                f"a run has at least 1 step, and 1 an epoch; got {self.total} and {self.steps_per_epoch}"
            )
        if not 0 <= self.step <= self.total:
            raise TrainingError(
                f"step {self.step} lies outside the run of {self.total} steps: the schedules are made for the whole "
                "run; give its true number of steps"
            )

    @property
    def share(self) -> float:
        """The share of the run that is done, in [0, 1]."""
        return self.step / self.total

    @property
    def epoch(self) -> int:
        """The epoch, counted from 0."""
        return self.step // self.steps_per_epoch

    @property
    def epochs(self) -> float:
        """The epochs of the whole run."""
        return self.total / self.steps_per_epoch


class Schedule:
    """Base of schedules: `value(progress)` is the value; `relative` says whether it multiplies a base value.

    Positions within a run are shares of it up to 1, and above 1 counts of steps (or of epochs, where a schedule says
    so): `warmup=0.05` is a twentieth of the run, `warmup=500` are 500 steps. Where a jump lies at the end of the run it
    would be none, so that 1 is a count, too: `step(every=1)` steps at every epoch.
    """

    #: Multiplies the base value of what it drives; False: is the value itself.
    relative = True
    #: Needs to be told a metric (`observe`), so that its value is no function of the progress alone.
    stateful = False
    #: Changes at once at its switches, so that one at the end of the run never comes into force.
    jumps = False

    def value(self, progress: Progress) -> float:
        """Return the value, or the factor on the base value, at this point of the run."""
        raise NotImplementedError

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        """Return the steps at which the formula changes, within the run or beyond it."""
        return ()

    def check(self, total: int, steps_per_epoch: int = 1) -> tuple[str, ...]:
        """Return what is worth knowing about this schedule in a run of this length.

        Raises TrainingError where a part of the schedule lies beyond the end of the run.
        """
        Progress(0, total, steps_per_epoch)
        late = [s for s in self.switches(total, steps_per_epoch) if s > total or (self.jumps and s == total)]
        if late:
            raise TrainingError(
                f"{self} is longer than the run: it changes at step {late[0]}, and the run ends at step {total} "
                f"({total / steps_per_epoch:g} epochs); give shares of the run, or train longer"
            )
        return ()

    def __call__(self, step: int | Progress, total: int | None = None, steps_per_epoch: int = 1) -> float:
        """Return the value at a Progress, or at a step of a run of `total` steps."""
        if isinstance(step, Progress):
            return self.value(step)
        if total is None:
            raise TrainingError("a schedule needs to know how many steps the run has: schedule(step, total)")
        return self.value(Progress(step, total, steps_per_epoch))

    def values(self, total: int, steps_per_epoch: int = 1) -> list[float]:
        """Return the value at every step of a run."""
        return [self.value(Progress(s, total, steps_per_epoch)) for s in range(total)]

    def settings(self) -> dict[str, Any]:
        """Return the parameters that it was made with."""
        return {n: getattr(self, n) for n in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


def position(value: float, length: float) -> float:
    """Return a position within a run in steps (or epochs): a share of `length` up to 1, above 1 the count itself."""
    return value * length if value <= 1 else float(value)


def moment(value: float, length: float) -> float:
    """Return where a jump lies in steps (or epochs): a share of `length` below 1, from 1 on the count itself."""
    return value * length if value < 1 else float(value)


def checked_position(value: float, what: str) -> float:
    """Return the position. Raises TrainingError for what is no share of a run, and no count."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise TrainingError(f"{what}={value!r} is no position in a run; expected a share in [0, 1] or a count above 1")
    return value
