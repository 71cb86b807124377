"""Sharpness: how much the loss rises in a neighbourhood of the weights, in the worst case or on average."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..errors import MeasurementError
from ..objective import Objective
from ..results import Check, Cost, Option, measurement
from ..tasks import Task
from .spectrum import SharpnessEstimate

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class _Kind:
    """One measure: its default radius and where that comes from, and whether a rescaling of layers changes it."""

    rho: float
    source: str
    adaptive: bool
    worst: bool


KINDS = {
    "sam": _Kind(0.05, "Foret et al. 2021, arXiv:2010.01412 (their rho for CIFAR)", adaptive=False, worst=True),
    "adaptive": _Kind(0.5, "Kwon et al. 2021, arXiv:2102.11600 (their rho for CIFAR-10)", adaptive=True, worst=True),
    "average": _Kind(0.01, "chosen by us: keeps the rise near the quadratic regime", adaptive=False, worst=False),
    "average_adaptive": _Kind(0.1, "chosen by us: a tenth of each weight's size", adaptive=True, worst=False),
}


def sharpness(
    task: Task,
    kind: str = "sam",
    *,
    rho: float | None = None,
    samples: int = 1024,
    batch: int = 128,
    steps: int = 20,
    draws: int = 20,
    split: str = "train",
    seed: int = 0,
    progress: bool = False,
) -> SharpnessEstimate:
    """Return how much the mean loss rises within `rho` of the weights, in the loss's unit.

    Kinds (Andriushchenko et al. 2023, arXiv:2302.07011, whose defaults for `samples`, `batch` and `steps` these are):
      "sam": the mean over batches of max over ||e||_2 <= rho of L_b(w + e) - L_b(w) (m-sharpness, Foret et al. 2021);
      "adaptive": the same over || e / |w| ||_2 <= rho, which a rescaling of ReLU layers leaves as it is;
      "average": the mean over e_i ~ N(0, rho^2) of L(w + e) - L(w); "average_adaptive": e_i ~ N(0, (rho |w_i|)^2).

    The worst case is sought by the generalized power method e <- rho g / ||g||, g the gradient at w + e (Journee et
    al. 2010, JMLR 11:517), whose first step is SAM's own; the largest rise seen is kept, so the value is a lower bound
    of the maximum. Its batches are the draw's samples, shuffled, `batch` at a time, whatever the task's own batches are
    (a task with rebatch=False keeps its own, with a warning). Its standard error is over batches, that of the averages
    over `draws`.
    Cost: `steps` gradients (worst case) or `draws` forward passes over `samples` samples.
    Raises MeasurementError for an unknown kind or a radius that is not positive.
    """
    return measure_sharpness(
        task,
        kinds=(kind,),
        rho=rho,
        samples=samples,
        batch=batch,
        steps=steps,
        draws=draws,
        split=split,
        seed=seed,
        progress=progress,
    )


@measurement(
    "sharpness",
    order=40,
    preset={"quick": {"samples": 256, "steps": 10, "draws": 10}, "standard": {}, "thorough": {"samples": 4096}},
    options={
        "kinds": Option(tuple(KINDS), f"which of {', '.join(KINDS)}"),
        "samples": Option(1024, "samples drawn", "Andriushchenko et al. 2023"),
        "batch": Option(128, "m of m-sharpness", "Andriushchenko et al. 2023"),
        "steps": Option(20, "steps of ascent", "Andriushchenko et al. 2023"),
        "draws": Option(20, "random draws of the averages"),
    },
    # A gradient is 3 forward passes; two worst-case kinds and two averages, over 1,024 samples of the draw at most.
    estimate=lambda steps=20, draws=20, **_: 2 * 3.0 * steps + 2 * draws,
)
def measure_sharpness(
    task: Task,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    rho: float | None = None,
    samples: int = 1024,
    batch: int = 128,
    steps: int = 20,
    draws: int = 20,
    split: str = "train",
    seed: int = 0,
    progress: bool = False,
) -> SharpnessEstimate:
    """Worst-case and average rise of the loss near the weights, plain and adaptive (see `sharpness`)."""
    start = time.perf_counter()
    for kind in kinds:
        if kind not in KINDS:
            raise MeasurementError(f"sharpness kind {kind!r} is not one of {', '.join(KINDS)}")
    if rho is not None and not (rho > 0 and math.isfinite(rho)):
        raise MeasurementError(f"rho={rho} must be a positive number: it is a radius around the weights")
    for name, value in (("samples", samples), ("batch", batch), ("steps", steps), ("draws", draws)):
        if value < 1:
            raise MeasurementError(f"{name}={value} must be at least 1")
    if samples < (task.max_samples or math.inf):
        task = task.replace(max_samples=samples)
    found: list[tuple[float, float, float, int]] = []
    with Objective(task, split, regroup=batch) as objective:
        total = sum((steps + 1) * len(objective) if KINDS[k].worst else draws for k in kinds)
        with tqdm(total=total, desc="sharpness", disable=not progress, leave=False) as bar:
            for kind in kinds:
                chosen = KINDS[kind]
                radius = rho or chosen.rho
                scale = [c.abs() for c in objective.center] if chosen.adaptive else None
                if chosen.worst:
                    value = _worst(objective, radius, scale, steps, seed, bar.update)
                else:
                    value = _average(objective, radius, scale, draws, seed, bar.update)
                found.append((*value, radius, kinds.index(kind)))
        values = np.array([f[0] for f in found])
        largest = objective.largest
        return SharpnessEstimate(
            values=values,
            stderr=np.array([f[1] for f in found]),
            rho=np.array([f[2] for f in found]),
            rescaling=np.array([not KINDS[k].adaptive for k in kinds]),
            names=tuple(kinds),
            split=split,
            settings={"samples": objective.samples, "batch": largest, "steps": steps, "draws": draws, "seed": seed},
            checks=_checks(kinds, values),
            warnings=_other_batches(objective, batch) if any(KINDS[k].worst for k in kinds) else (),
            notes=objective.notes,
            cost=Cost(passes=objective.passes, seconds=time.perf_counter() - start),
        )


def _other_batches(objective: Objective, batch: int) -> tuple[str, ...]:
    """Say where the batches could not be made of the size that was asked for: the worst case depends on it."""
    expected = min(batch, objective.samples)
    if objective.largest == expected:
        return ()
    return (
        f"the worst case is over batches of at most {objective.largest} samples, not {expected}: this task's batches "
        "can't be regrouped; compare it only with values over batches of that size",
    )


def _checks(kinds: Sequence[str], values: np.ndarray) -> tuple[Check, ...]:
    bad = [k for k, v in zip(kinds, values, strict=True) if not math.isfinite(v)]
    if bad:
        return (
            Check("finite", "warn", f"the loss is not finite within the radius of {', '.join(bad)}: take a smaller"),
        )
    return (Check("finite", "pass", "the loss is finite at every point that was visited"),)


def _worst(
    objective: Objective, rho: float, scale: Tensors | None, steps: int, seed: int, tick: Callable[[int], object]
) -> tuple[float, float]:
    """Return (mean, standard error) over batches of the largest rise found within the ball."""
    rises, weights = [], []
    for i in range(len(objective)):
        objective.reset()
        gradient, first, weight = _slope(objective, i)
        best = 0.0
        for _ in range(steps if weight > 0 else 0):
            step = _on_ball(gradient, rho, scale, seed + i)
            objective.move([step], [1.0])
            gradient, value, _ = _slope(objective, i)
            tick(1)
            if not math.isfinite(value):
                best = math.inf
                break
            best = max(best, value - first)
        tick(1)
        if weight > 0:
            rises.append(best)
            weights.append(weight)
    objective.reset()
    objective.passes += 3 * (steps + 1)
    w, r = np.array(weights), np.array(rises)
    mean = float((w * r).sum() / w.sum())
    n = len(r)
    stderr = math.sqrt(n / (n - 1) * float(((w * (r - mean)) ** 2).sum())) / w.sum() if n > 1 else math.nan
    return mean, float(stderr)


def _slope(objective: Objective, i: int) -> tuple[Tensors, float, float]:
    """Return (gradient, loss, weight) of batch i at the current weights."""
    mean, weight = objective.batch_loss(i)
    if weight == 0:
        return (), math.nan, 0.0
    gradient = torch.autograd.grad(mean, objective.parameters, allow_unused=True, materialize_grads=True)
    return gradient, float(mean.detach()), weight


def _on_ball(gradient: Tensors, rho: float, scale: Tensors | None, seed: int) -> list[torch.Tensor]:
    """Return the point of the ball (of the ellipsoid, with a scale) that maximizes the linear part of the loss."""
    slope = [g * s for g, s in zip(gradient, scale, strict=True)] if scale is not None else list(gradient)
    norm = math.sqrt(sum(float(s.double().square().sum()) for s in slope))
    if norm == 0:  # a stationary point has no direction of ascent: begin with a random one
        slope = _normal(slope, seed)
        norm = math.sqrt(sum(float(s.double().square().sum()) for s in slope))
    if scale is not None:
        slope = [g * s for g, s in zip(slope, scale, strict=True)]
    return [s * (rho / norm) for s in slope]


def _average(
    objective: Objective, rho: float, scale: Tensors | None, draws: int, seed: int, tick: Callable[[int], object]
) -> tuple[float, float]:
    """Return (mean, standard error) of the rise over Gaussian perturbations."""
    objective.reset()
    center = objective.evaluate().loss
    rises = []
    for k in range(draws):
        noise = _normal(objective.center, seed * 100_003 + k)
        if scale is not None:
            noise = [e * s for e, s in zip(noise, scale, strict=True)]
        objective.move([noise], [rho])
        rises.append(objective.evaluate().loss - center)
        tick(1)
    objective.reset()
    r = np.array(rises)
    return float(r.mean()), float(r.std(ddof=1) / math.sqrt(draws)) if draws > 1 else math.nan


def _normal(like: Tensors, seed: int) -> list[torch.Tensor]:
    """Draw N(0, 1) on the CPU, so that every device sees the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in like]
