"""PyTorch's own scheduler of a schedule, for loops that step one."""

from __future__ import annotations

import math

from torch.optim import Optimizer, lr_scheduler

from .schedule import Schedule, moment, position
from .schedules import cyclic, decay, plateau


def to_torch(
    schedule: Schedule, optimizer: Optimizer, total: int, steps_per_epoch: int = 1
) -> lr_scheduler.LRScheduler:
    """Return the torch scheduler that gives the optimizer's learning rates this schedule, stepped once a step.

    PyTorch's class of that name where it can say the same (StepLR, CosineAnnealingLR, OneCycleLR ...), a LambdaLR
    otherwise. A schedule of values, not factors, is taken for a factor. ReduceLROnPlateau starts anew.

    Raises TrainingError where the schedule is longer than the run.
    """
    schedule.check(total, steps_per_epoch)
    own = _own(schedule, optimizer, total, steps_per_epoch)
    return own or lr_scheduler.LambdaLR(optimizer, lambda step: schedule(min(step, total), total, steps_per_epoch))


def _own(s: Schedule, optimizer: Optimizer, total: int, per_epoch: int) -> lr_scheduler.LRScheduler | None:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    one = all(r == rates[0] for r in rates)  # what takes a rate, not a factor, takes one for all groups
    if isinstance(s, decay.Step):
        length = moment(s.every, total / per_epoch) * per_epoch
        return lr_scheduler.StepLR(optimizer, round(length), s.factor) if length % per_epoch == 0 else None
    if isinstance(s, decay.MultiStep):
        return lr_scheduler.MultiStepLR(optimizer, list(s.switches(total, per_epoch)), s.factor)
    if isinstance(s, decay.Exponential) and per_epoch == 1:
        return lr_scheduler.ExponentialLR(optimizer, s.decay ** (1 / s.decay_steps))
    if isinstance(s, decay.Polynomial) and s.end == 0:
        return lr_scheduler.PolynomialLR(optimizer, total, s.power)
    if isinstance(s, decay.Linear) and 0 < s.start <= 1 and 0 <= s.end <= 1:
        return lr_scheduler.LinearLR(optimizer, s.start, s.end, total)
    if isinstance(s, decay.Cosine) and (one or s.end == 0):
        return lr_scheduler.CosineAnnealingLR(optimizer, total, s.end * rates[0])
    if isinstance(s, decay.Sgdr) and (one or s.end == 0):
        period = position(s.period, total)
        if period == int(period) and s.multiply == int(s.multiply) and not s.check(total):
            return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, int(period), int(s.multiply), s.end * rates[0])
    if isinstance(s, cyclic.Triangular | cyclic.Triangular2 | cyclic.ExpRange):
        half = position(s.period, total) / 2
        mode = {cyclic.Triangular2: "triangular2", cyclic.ExpRange: "exp_range"}.get(type(s), "triangular")
        return lr_scheduler.CyclicLR(
            optimizer,
            [s.low * r for r in rates],
            rates,
            half,  # pyright: ignore[reportArgumentType]: a float is what its formula takes
            mode=mode,  # pyright: ignore[reportArgumentType]
            gamma=s.decay if isinstance(s, cyclic.ExpRange) else 1.0,
            cycle_momentum=False,
        )
    if isinstance(s, cyclic.OneCycle) and s.start > 0 and s.end > 0:
        rise = position(s.rise, total) / total
        return lr_scheduler.OneCycleLR(
            optimizer,
            rates,
            total,
            pct_start=rise,
            div_factor=1 / s.start,
            final_div_factor=s.start / s.end,
            cycle_momentum=False,
        )
    if isinstance(s, plateau.Plateau):
        return lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode=s.mode,  # pyright: ignore[reportArgumentType]
            factor=s.factor,
            patience=s.patience,
            threshold=s.threshold,
            cooldown=s.cooldown,
            min_lr=[s.lowest * r for r in rates] if math.isfinite(s.lowest) else 0,
            eps=0,
        )
    return None
