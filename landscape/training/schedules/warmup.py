"""Schedules that rise before they fall: a warmup, then a constant, a line or a cosine, or warmup-stable-decay."""

from __future__ import annotations

import math

from ...errors import TrainingError
from ..registries import schedules
from ..schedule import Progress, Schedule, checked_position, position
from .decay import cosine

_GOYAL = "Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv:1706.02677 (the warmup)"
_WARMUP = ("length of the rise, in steps or as a share of the run", "the lecture's 5 to 10%: 0.05")
_START = ("factor at the first step", "0: as transformers' schedules with warmup", "[0, inf)")
_END = ("factor at the end", "0: the formula's own end", "[0, inf)")


class _Warmup(Schedule):
    """A line from start to 1 over the warmup, then `after(share of the rest)`."""

    def __init__(self, warmup: float = 0.05, start: float = 0.0) -> None:
        self.warmup, self.start = checked_position(warmup, "warmup"), start

    def after(self, share: float) -> float:
        raise NotImplementedError

    def value(self, progress: Progress) -> float:
        rise = self._rise(progress.total)
        if progress.step < rise:
            return self.start + (1 - self.start) * progress.step / rise
        return self.after((progress.step - rise) / max(1, progress.total - rise))

    def _rise(self, total: int) -> int:
        return round(position(self.warmup, total))

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        return (self._rise(total),)


@schedules.register("warmup_constant", source=_GOYAL, about={"warmup": _WARMUP, "start": _START})
class WarmupConstant(_Warmup):
    """A linear rise to the base value, which then stays."""

    def after(self, share: float) -> float:
        return 1.0


@schedules.register("warmup_linear", source=_GOYAL, about={"warmup": _WARMUP, "end": _END, "start": _START})
class WarmupLinear(_Warmup):
    """A linear rise, then a line down to the end."""

    def __init__(self, warmup: float = 0.05, end: float = 0.0, start: float = 0.0) -> None:
        super().__init__(warmup, start)
        self.end = end

    def after(self, share: float) -> float:
        return 1 + (self.end - 1) * share


@schedules.register(
    "warmup_cosine",
    source=_GOYAL + "; Loshchilov and Hutter 2017, arXiv:1608.03983 (the cosine)",
    about={"warmup": _WARMUP, "end": _END, "start": _START},
)
class WarmupCosine(_Warmup):
    """A linear rise, then half a cosine down to the end."""

    def __init__(self, warmup: float = 0.05, end: float = 0.0, start: float = 0.0) -> None:
        super().__init__(warmup, start)
        self.end = end

    def after(self, share: float) -> float:
        return cosine(share, 1.0, self.end)


_SHAPES = ("linear", "cosine", "sqrt")


@schedules.register(
    "warmup_stable_decay",
    source="Hu et al. 2024, MiniCPM, arXiv:2404.06395; Hagele et al. 2024, Scaling Laws and Compute-Optimal Training "
    "Beyond Fixed Training Durations, arXiv:2405.18392 (1 - sqrt)",
    about={
        "warmup": _WARMUP,
        "decay": ("length of the fall at the end, in steps or as a share of the run", "Hagele et al.: 0.2"),
        "shape": (f"of the fall: {', '.join(_SHAPES)} (1 - sqrt(t))", "the simplest: linear"),
        "end": _END,
        "start": _START,
    },
)
class WarmupStableDecay(_Warmup):
    """A linear rise, a plateau at the base value, a fall at the end."""

    def __init__(
        self, warmup: float = 0.05, decay: float = 0.2, shape: str = "linear", end: float = 0.0, start: float = 0.0
    ) -> None:
        super().__init__(warmup, start)
        if shape not in _SHAPES:
            raise TrainingError(f"shape={shape!r} is not one of {', '.join(_SHAPES)}")
        self.decay, self.shape, self.end = checked_position(decay, "decay"), shape, end

    def value(self, progress: Progress) -> float:
        fall = round(position(self.decay, progress.total))
        begin = progress.total - fall
        if progress.step < max(begin, self._rise(progress.total)):
            return super().value(progress)
        return self._falling((progress.step - begin) / max(1, fall))

    def _falling(self, share: float) -> float:
        if self.shape == "cosine":
            return cosine(share, 1.0, self.end)
        return 1 + (self.end - 1) * (math.sqrt(share) if self.shape == "sqrt" else share)

    def after(self, share: float) -> float:
        return 1.0

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        return (self._rise(total), total - round(position(self.decay, total)))

    def check(self, total: int, steps_per_epoch: int = 1) -> tuple[str, ...]:
        rise, begin = self.switches(total, steps_per_epoch)
        if rise > begin:
            raise TrainingError(
                f"{self} is longer than the run: {rise} steps of warmup and {total - begin} of decay, and the run has "
                f"{total}; shorten one of them"
            )
        return super().check(total, steps_per_epoch)
