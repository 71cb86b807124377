"""How much the loss rises around the weights: worst case over a ball or a box, average over Gaussian noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from ..errors import MeasurementError
from ..objective import Objective
from ..parameters import flatten, unflatten

Tensors = Sequence[torch.Tensor]
Tick = Callable[[int], object]


def worst_in_ball(
    objective: Objective, rho: float, scale: Tensors | None, steps: int, seed: int, tick: Tick, *, whole: bool = False
) -> tuple[float, float]:
    """Return (mean, standard error) over batches of the largest rise found for ||e / scale||_2 <= rho.

    `whole` takes the rise of the mean loss over all batches instead, which has no standard error (NaN). The largest
    rise is sought by the generalized power method (see `sharpness`), so it is a lower bound.
    """
    batches = [range(len(objective))] if whole else [(i,) for i in range(len(objective))]
    rises, weights = [], []
    for number, batch in enumerate(batches):
        objective.reset()
        gradient, first, weight = _slope(objective, batch)
        _needs_slope(objective, gradient)
        best = 0.0
        for _ in range(steps):
            if weight == 0 or _without_slope(objective, gradient):
                break
            step = _on_ball(gradient, rho, scale, seed + number)
            objective.move([step], [1.0])
            gradient, value, _ = _slope(objective, batch)
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


def worst_in_box(objective: Objective, eps: float, iterations: int, seed: int, tick: Tick) -> float:
    """Return the largest rise of the mean loss found for |e_i| <= eps (|w_i| + 1), in percent of 1 + the loss.

    NaN for a loss of -1 or less, of which that is no share. L-BFGS-B from the weights, in coordinates in which the box
    is [-1, 1]^n and the loss is divided by its largest slope: near a minimum the first step would else be as small as
    the gradient. From a stationary point, which has no direction of ascent, it begins at a random one, a hundredth of
    the box away. The largest rise seen is kept.
    """
    from scipy.optimize import minimize

    objective.reset()
    sides = flatten([eps * (c.abs() + 1) for c in objective.center])
    everything = range(len(objective))
    best = 0.0

    def slope(z: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        step = torch.as_tensor(z, device=sides.device, dtype=sides.dtype) * sides
        objective.move([unflatten(step, objective.center)], [1.0])
        gradient, value, _ = _slope(objective, everything)
        objective.passes += 3
        tick(1)
        if first == -math.inf:
            _needs_slope(objective, gradient)
        if not math.isfinite(value):
            best = math.inf
            raise _Stuck
        best = max(best, value - first)
        if _without_slope(objective, gradient):
            raise _Stuck
        return value, (flatten(gradient) * sides).double().cpu().numpy()

    first = -math.inf
    n = sides.numel()
    try:
        start = np.zeros(n)
        first, steepest = slope(start)
        best = 0.0
        if not steepest.any():
            start = 0.01 * np.sign(torch.randn(n, generator=torch.Generator().manual_seed(seed), device="cpu").numpy())
            _, steepest = slope(start)
        unit = float(np.abs(steepest).max()) or 1.0

        def fall(z: np.ndarray) -> tuple[float, np.ndarray]:
            value, rising = slope(z)
            return (first - value) / unit, -rising / unit

        # No tolerance of scipy's: its defaults stop at rises of 1e-9 of the loss.
        options = {"maxiter": iterations, "gtol": 0.0, "ftol": 0.0}
        minimize(fall, start, jac=True, method="L-BFGS-B", bounds=[(-1.0, 1.0)] * n, options=options)
    except _Stuck:
        pass
    finally:
        objective.reset()
    return 100 * best / (1 + first) if first > -1 else math.nan


class _Stuck(Exception):
    """Leaves scipy's loop: beyond a loss or a slope that is not finite there is nothing to search."""


def average_rise(
    objective: Objective, rho: float, scale: Tensors | None, draws: int, seed: int, tick: Tick
) -> tuple[float, float]:
    """Return (mean, standard error) of the rise over Gaussian perturbations."""
    objective.reset()
    center = objective.evaluate().loss
    rises = []
    for k in range(draws):
        noise = normal(objective.center, seed * 100_003 + k)
        if scale is not None:
            noise = [e * s for e, s in zip(noise, scale, strict=True)]
        objective.move([noise], [rho])
        rises.append(objective.evaluate().loss - center)
        tick(1)
    objective.reset()
    r = np.array(rises)
    return float(r.mean()), float(r.std(ddof=1) / math.sqrt(draws)) if draws > 1 else math.nan


def _slope(objective: Objective, batches: Iterable[int]) -> tuple[Tensors, float, float]:
    """Return (gradient, loss, weight) of the mean over these batches at the current weights."""
    sums = [torch.zeros_like(p) for p in objective.parameters]
    loss = total = 0.0
    for i in batches:
        mean, weight = objective.batch_loss(i)
        if weight == 0:
            continue
        gradient = torch.autograd.grad(mean, objective.parameters, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(sums, gradient, alpha=weight)
        loss += weight * float(mean.detach())
        total += weight
    if total == 0:
        return (), math.nan, 0.0
    torch._foreach_div_(sums, total)
    return sums, loss / total, total


def _without_slope(objective: Objective, gradient: Tensors) -> list[str]:
    """Return the names of the parameters in which a gradient is not finite."""
    return [n for n, g in zip(objective.names, gradient, strict=False) if not bool(torch.isfinite(g).all())]


def _needs_slope(objective: Objective, gradient: Tensors) -> None:
    """Refuse a gradient that gives no direction to search in, at the checkpoint, where the loss itself is finite."""
    if names := _without_slope(objective, gradient):
        some = f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        raise MeasurementError(
            f"the gradient at the checkpoint is not finite in {some}: there is no direction to seek the worst case in "
            "(a square root or a norm at 0?); kinds average and average_adaptive need none"
        )


def _on_ball(gradient: Tensors, rho: float, scale: Tensors | None, seed: int) -> list[torch.Tensor]:
    """Return the point of the ball (of the ellipsoid, with a scale) that maximizes the linear part of the loss."""
    slope = [g * s for g, s in zip(gradient, scale, strict=True)] if scale is not None else list(gradient)
    norm = math.sqrt(sum(float(s.double().square().sum()) for s in slope))
    if norm == 0:  # a stationary point has no direction of ascent: begin with a random one
        slope = normal(slope, seed)
        norm = math.sqrt(sum(float(s.double().square().sum()) for s in slope))
    if scale is not None:
        slope = [g * s for g, s in zip(slope, scale, strict=True)]
    return [s * (rho / norm) for s in slope]


def normal(like: Tensors, seed: int) -> list[torch.Tensor]:
    """Draw N(0, 1) on the CPU, so that every device sees the same numbers."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype, device="cpu").to(t.device) for t in like]
