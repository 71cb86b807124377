"""Schedules that only fall: constant, in steps, exponential, polynomial and along a cosine; and its warm restarts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import TrainingError
from ..registries import schedules
from ..schedule import Progress, Schedule, checked_position, moment, position

_END = ("factor at the end", "0: the formula's own end", "[0, inf)")
_RESNET = "He et al. 2016, Deep Residual Learning for Image Recognition, arXiv:1512.03385"


@schedules.register(
    "constant",
    source="the plain learning rate",
    about={"factor": ("what the base value is multiplied by", "1: the base value", "[0, inf)")},
    torch="torch.optim.lr_scheduler.LambdaLR",
)
class Constant(Schedule):
    """The same factor throughout."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def value(self, progress: Progress) -> float:
        return float(self.factor)


@schedules.register(
    "step",
    source=_RESNET + " (a tenth at a time)",
    about={
        "every": ("epochs between two steps, or a share of the run", "He et al. for ImageNet's 90 epochs: 30"),
        "factor": ("at each step", "He et al.: 0.1", "[0, inf)"),
    },
    torch="torch.optim.lr_scheduler.StepLR",
)
class Step(Schedule):
    """Multiplied by a factor every so many epochs, factor^floor(epoch / every)."""

    jumps = True

    def __init__(self, every: float = 30, factor: float = 0.1) -> None:
        if not checked_position(every, "every") > 0:
            raise TrainingError("step needs every > 0: the epochs between two steps, or a share of the run")
        self.every, self.factor = every, factor

    def value(self, progress: Progress) -> float:
        return self.factor ** math.floor(progress.epoch / moment(self.every, progress.epochs) + 1e-12)

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        length = moment(self.every, total / steps_per_epoch)
        count = max(1, math.ceil(total / steps_per_epoch / length - 1e-9) - 1)
        return tuple(math.ceil((i + 1) * length - 1e-9) * steps_per_epoch for i in range(count))


@schedules.register(
    "multi_step",
    source=_RESNET + " (milestones)",
    about={
        "milestones": (
            "epochs, or shares of the run, at which it steps",
            "He et al. for CIFAR-10: a half, three quarters",
        ),
        "factor": ("at each milestone", "He et al.: 0.1", "[0, inf)"),
    },
    torch="torch.optim.lr_scheduler.MultiStepLR",
)
class MultiStep(Schedule):
    """Multiplied by a factor at each milestone."""

    jumps = True

    def __init__(self, milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> None:
        if list(milestones) != sorted(milestones) or not milestones:
            raise TrainingError(f"milestones={list(milestones)} must rise, and there must be one")
        self.milestones = tuple(checked_position(m, "milestones") for m in milestones)
        self.factor = factor

    def value(self, progress: Progress) -> float:
        passed = sum(moment(m, progress.epochs) <= progress.epoch + 1e-9 for m in self.milestones)
        return self.factor**passed

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        epochs = total / steps_per_epoch
        return tuple(math.ceil(moment(m, epochs) - 1e-9) * steps_per_epoch for m in self.milestones)


@schedules.register(
    "exponential",
    source="decay^(epoch / decay_steps), as in the lecture and in tf.keras's ExponentialDecay; torch's ExponentialLR "
    "has no decay_steps",
    about={
        "decay": ("factor over decay_steps epochs", "chosen by us"),
        "decay_steps": ("epochs over which the factor applies once", "1: PyTorch's"),
    },
    torch="torch.optim.lr_scheduler.ExponentialLR",
)
class Exponential(Schedule):
    """Falls by a factor every decay_steps epochs, a little at each."""

    def __init__(self, decay: float = 0.95, decay_steps: float = 1.0) -> None:
        if not decay > 0 or not decay_steps > 0:
            raise TrainingError(f"exponential needs decay > 0 and decay_steps > 0; got {decay} and {decay_steps}")
        self.decay, self.decay_steps = decay, decay_steps

    def value(self, progress: Progress) -> float:
        return self.decay ** (progress.epoch / self.decay_steps)


@schedules.register(
    "polynomial",
    source="Chen et al. 2017, DeepLab, arXiv:1606.00915 (the poly policy of Caffe)",
    about={"power": ("1 is a line", "DeepLab's: 0.9"), "end": _END},
    torch="torch.optim.lr_scheduler.PolynomialLR",
)
class Polynomial(Schedule):
    """Falls as (1 - t)^power to the end of the run."""

    def __init__(self, power: float = 0.9, end: float = 0.0) -> None:
        if not power > 0:
            raise TrainingError(f"power={power} must be above 0")
        self.power, self.end = power, end

    def value(self, progress: Progress) -> float:
        return self.end + (1 - self.end) * (1 - progress.share) ** self.power


@schedules.register(
    "linear",
    source="a line; Goyal et al. 2017, arXiv:1706.02677, and Defazio et al. 2023, arXiv:2310.07831, study it",
    about={"end": _END, "start": ("factor at the start", "1: the base value", "[0, inf)")},
    torch="torch.optim.lr_scheduler.LinearLR",
)
class Linear(Schedule):
    """A straight line from start to end of the run."""

    def __init__(self, end: float = 0.0, start: float = 1.0) -> None:
        self.end, self.start = end, start

    def value(self, progress: Progress) -> float:
        return self.start + (self.end - self.start) * progress.share


def cosine(share: float, first: float, last: float) -> float:
    """Return the half cosine from first (share 0) to last (share 1): flat at both ends."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


@schedules.register(
    "cosine",
    source="Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv:1608.03983",
    about={"end": _END},
    torch="torch.optim.lr_scheduler.CosineAnnealingLR",
)
class Cosine(Schedule):
    """Half a cosine over the run, flat at its start and end."""

    def __init__(self, end: float = 0.0) -> None:
        self.end = end

    def value(self, progress: Progress) -> float:
        return cosine(progress.share, 1.0, self.end)


@schedules.register(
    "sgdr",
    source="Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts, arXiv:1608.03983",
    about={
        "period": (
            "length of the first cycle, in steps or as a share of the run",
            "chosen by us: three cycles in a run",
        ),
        "multiply": ("how much longer each cycle is than the last", "the paper's: 2"),
        "end": _END,
    },
    torch="torch.optim.lr_scheduler.CosineAnnealingWarmRestarts",
)
class Sgdr(Schedule):
    """Cosine cycles with warm restarts, each longer than the last."""

    def __init__(self, period: float = 1 / 7, multiply: float = 2, end: float = 0.0) -> None:
        if not checked_position(period, "period") > 0 or not multiply >= 1:
            raise TrainingError(f"sgdr needs period > 0 and multiply >= 1; got {period} and {multiply}")
        self.period, self.multiply, self.end = period, multiply, end

    def value(self, progress: Progress) -> float:
        begin, length = self._cycle(progress.step, progress.total)
        return cosine((progress.step - begin) / length, 1.0, self.end)

    def _cycle(self, step: int, total: int) -> tuple[float, float]:
        """Return where the cycle that holds a step begins, and its length."""
        begin, length = 0.0, position(self.period, total)
        while begin + length <= step + 1e-6 and begin + length < total - 1e-6:
            begin, length = begin + length, length * self.multiply
        return begin, length

    def switches(self, total: int, steps_per_epoch: int = 1) -> tuple[int, ...]:
        found, begin, length = [], 0.0, position(self.period, total)
        while begin + length < total - 1e-6:
            begin, length = begin + length, length * self.multiply
            found.append(math.ceil(begin - 1e-6))
        return tuple(found) or (math.ceil(length - 1e-6),)

    def check(self, total: int, steps_per_epoch: int = 1) -> tuple[str, ...]:
        super().check(total, steps_per_epoch)
        begin, length = self._cycle(total, total)
        if abs(begin + length - total) < 1:
            return ()
        return (
            f"the run is shorter than the schedule: it ends at step {total} inside a cycle of {self} that began at "
            f"step {begin:g} and would end at {begin + length:g}",
        )
