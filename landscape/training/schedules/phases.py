"""Schedules that are values, not factors: terms that fade in, stages, layers that thaw, examples that come in."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import TrainingError
from ..registries import schedules
from ..schedule import Progress, Schedule, checked_position, moment, position
from .decay import cosine

_START = ("where it begins, in steps or as a share of the run", "0: at once")
_SHAPES = ("linear", "cosine", "root")


def _between(progress: Progress, start: float, stop: float) -> float:
    """Return how much of the way from start to stop is done, in [0, 1]."""
    begin, end = position(start, progress.total), position(stop, progress.total)
    return min(1.0, max(0.0, (progress.step - begin) / (end - begin))) if end > begin else float(progress.step >= end)


class _Phase(Schedule):
    relative = False
    start: float
    stop: float

    def _place(self, start: float, stop: float) -> None:
        self.start, self.stop = checked_position(start, "start"), checked_position(stop, "stop")
        if (start <= 1) == (stop <= 1) and start > stop:
            raise TrainingError(f"start={start:g} lies behind stop={stop:g}")

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        return tuple(math.ceil(position(p, total) - 1e-9) for p in (self.start, self.stop))

    def check(self, total: int, steps_per_epoch: int = 1) -> tuple[str, ...]:
        begin, end = self.switches(total, steps_per_epoch)
        if begin > end:
            raise TrainingError(f"{self} starts at step {begin} of a run of {total}, behind its stop at {end}")
        return super().check(total, steps_per_epoch)


@schedules.register(
    "ramp",
    source="Laine and Aila 2017, Temporal Ensembling, arXiv:1610.02242 (a term that ramps up)",
    about={
        "first": "value before the start",
        "last": "value from the stop on",
        "start": _START,
        "stop": ("where it ends, in steps or as a share of the run", "1: the end of the run"),
        "shape": ("linear, cosine, or root: the square root of the way", "the simplest: linear"),
    },
)
class Ramp(_Phase):
    """From one value to another between two points of the run."""

    def __init__(self, first: float, last: float, start: float = 0.0, stop: float = 1.0, shape: str = "linear") -> None:
        if shape not in _SHAPES:
            raise TrainingError(f"shape={shape!r} is not one of {', '.join(_SHAPES)}")
        self.first, self.last, self.shape = first, last, shape
        self._place(start, stop)

    def value(self, progress: Progress) -> float:
        share = _between(progress, self.start, self.stop)
        if self.shape == "cosine":
            return cosine(share, self.first, self.last)
        return self.first + (self.last - self.first) * (math.sqrt(share) if self.shape == "root" else share)


@schedules.register(
    "stages",
    source="staged training",
    about={
        "values": "one more than there are milestones",
        "milestones": "where the next value comes into force, in steps or as shares of the run",
    },
)
class Stages(Schedule):
    """One value after another, each from its milestone on."""

    relative = False
    jumps = True

    def __init__(self, values: Sequence[float], milestones: Sequence[float]) -> None:
        if len(values) != len(milestones) + 1 or list(milestones) != sorted(milestones):
            raise TrainingError(
                f"stages needs rising milestones and one value more than these; got {len(values)} values and "
                f"milestones {list(milestones)}"
            )
        self.values_ = tuple(float(v) for v in values)
        self.milestones = tuple(checked_position(m, "milestones") for m in milestones)

    def value(self, progress: Progress) -> float:
        passed = sum(moment(m, progress.total) <= progress.step + 1e-9 for m in self.milestones)
        return self.values_[passed]

    def settings(self) -> dict[str, object]:
        return {"values": self.values_, "milestones": self.milestones}

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        return tuple(math.ceil(moment(m, total) - 1e-9) for m in self.milestones)


@schedules.register(
    "unfreezing",
    source="Howard and Ruder 2018, Universal Language Model Fine-tuning for Text Classification, arXiv:1801.06146",
    about={
        "groups": "number of groups of layers",
        "first": ("groups that train from the start, counted from the head", "the paper's: 1"),
        "start": _START,
        "stop": ("where the last group thaws, in steps or as a share of the run", "chosen by us: half the run"),
    },
)
class Unfreezing(_Phase):
    """Number of groups of layers that train, from the head down, one at a time (see `phasing.unfreeze`)."""

    def __init__(self, groups: int, first: int = 1, start: float = 0.0, stop: float = 0.5) -> None:
        if not 0 <= first <= groups:
            raise TrainingError(f"first={first} must lie between 0 and the {groups} groups")
        self.groups, self.first = groups, first
        self._place(start, stop)

    def value(self, progress: Progress) -> float:
        share = _between(progress, self.start, self.stop)
        return float(self.first + math.floor((self.groups - self.first) * share + 1e-9))


@schedules.register(
    "curriculum",
    source="Bengio et al. 2009, Curriculum Learning, doi:10.1145/1553374.1553380; Hacohen and Weinshall 2019, On The "
    "Power of Curriculum Learning, arXiv:1904.03626 (pacing)",
    about={
        "first": ("share of the examples, the easiest, at the start", "chosen by us"),
        "start": _START,
        "stop": ("where all examples are in, in steps or as a share of the run", "chosen by us: half the run"),
        "shape": ("linear, cosine or root (Platanios et al. 2019, arXiv:1903.09848)", "the simplest: linear"),
    },
)
class Curriculum(Ramp):
    """Share of the examples that train, from easy to hard (see `phasing.easiest`)."""

    def __init__(self, first: float = 0.2, start: float = 0.0, stop: float = 0.5, shape: str = "linear") -> None:
        if not 0 < first <= 1:
            raise TrainingError(f"first={first} must lie in (0, 1]: a share of the examples")
        super().__init__(first, 1.0, start, stop, shape)
