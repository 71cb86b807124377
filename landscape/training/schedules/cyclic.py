"""Schedules that go up and down: triangular cycles and one cycle."""

from __future__ import annotations

import math

from ...errors import TrainingError
from ..registries import schedules
from ..schedule import Progress, Schedule, checked_position, position
from .decay import cosine

_SMITH = "Smith 2017, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186"
_PERIOD = ("length of a cycle, up and down, in steps or as a share of the run", "chosen by us: five cycles in a run")
_LOW = ("factor between the cycles; 1 is the peak", "chosen by us; the paper takes it from a range test", "[0, inf)")


class _Cyclic(Schedule):
    """low + (1 - low) max(0, 1 - x) height, x the distance from the middle of the cycle in half cycles."""

    def __init__(self, period: float = 0.2, low: float = 0.1) -> None:
        if not checked_position(period, "period") > 0:
            raise TrainingError(f"period={period!r} must be above 0")
        self.period, self.low = period, low

    def height(self, cycle: int, step: int) -> float:
        """Return the height of the peak of a cycle, counted from 0, at a step."""
        return 1.0

    def value(self, progress: Progress) -> float:
        along = progress.step / position(self.period, progress.total)
        cycle = math.floor(along + 1e-9)
        x = abs(2 * (along - cycle) - 1)
        return self.low + (1 - self.low) * max(0.0, 1 - x) * self.height(cycle, progress.step)

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        half = position(self.period, total) / 2
        count = max(2, math.ceil(total / half - 1e-9) - 1)
        return tuple(math.ceil((i + 1) * half - 1e-9) for i in range(count))

    def check(self, total: int, steps_per_epoch: int = 1) -> tuple[str, ...]:
        super().check(total, steps_per_epoch)
        cycles = total / position(self.period, total)
        if abs(cycles - round(cycles)) * position(self.period, total) < 1:
            return ()
        return (f"the run is shorter than the schedule: its {total} steps are {cycles:.4g} cycles of {self}",)


@schedules.register(
    "triangular", source=_SMITH, about={"period": _PERIOD, "low": _LOW}, torch="torch.optim.lr_scheduler.CyclicLR"
)
class Triangular(_Cyclic):
    """Lines up and down between low and the base value."""


@schedules.register(
    "triangular2", source=_SMITH, about={"period": _PERIOD, "low": _LOW}, torch="torch.optim.lr_scheduler.CyclicLR"
)
class Triangular2(_Cyclic):
    """Triangular, each cycle half as high as the last."""

    def height(self, cycle: int, step: int) -> float:
        return 0.5**cycle


@schedules.register(
    "exp_range",
    source=_SMITH,
    about={
        "period": _PERIOD,
        "low": _LOW,
        "decay": ("of the height, at each step", "Smith's code: 0.99994 (from memory)"),
    },
    torch="torch.optim.lr_scheduler.CyclicLR",
)
class ExpRange(_Cyclic):
    """Triangular, its height falling by a factor at each step."""

    def __init__(self, period: float = 0.2, low: float = 0.1, decay: float = 0.99994) -> None:
        super().__init__(period, low)
        if not 0 < decay <= 1:
            raise TrainingError(f"decay={decay} must lie in (0, 1]")
        self.decay = decay

    def height(self, cycle: int, step: int) -> float:
        return self.decay**step


@schedules.register(
    "one_cycle",
    source="Smith and Topin 2018, Super-Convergence, arXiv:1708.07120; the cosines are PyTorch's (and fastai's)",
    about={
        "rise": ("length of the rise, in steps or as a share of the run", "PyTorch's default: 0.3"),
        "start": ("factor at the start; 1 is the peak", "PyTorch's default: 1/25", "(0, inf)"),
        "end": ("factor at the last step", "PyTorch's default: start / 10,000", "[0, inf)"),
    },
    torch="torch.optim.lr_scheduler.OneCycleLR",
)
class OneCycle(Schedule):
    """Up to the base value along a cosine, then down to far below the start; its last value is that of the last step.

    With start and end above 1 it falls and rises, as momentum does in the paper.
    """

    def __init__(self, rise: float = 0.3, start: float = 1 / 25, end: float = 4e-6) -> None:
        self.rise, self.start, self.end = checked_position(rise, "rise"), start, end

    def value(self, progress: Progress) -> float:
        # The peak at rise * total - 1, the end at total - 1: as PyTorch counts.
        peak, last = position(self.rise, progress.total) - 1, progress.total - 1
        if progress.step <= peak:
            return cosine(progress.step / peak if peak else 1.0, self.start, 1.0)
        return cosine(min(1.0, (progress.step - peak) / max(1e-12, last - peak)), 1.0, self.end)

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        return (math.ceil(position(self.rise, total) - 1e-9),)
