"""A picture that checks itself: what every line and plane says about its own trustworthiness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..curvature.operators import Hessian
from ..curvature.slopes import dot, own_slope
from ..data import first_line
from ..errors import LandscapeError
from ..objective import Objective
from ..parameters import flatten
from ..passes import Evaluation
from ..results import Check
from ..session import batchnorm_layers
from .adaptive import Filled
from .directions import Direction
from .points import Points

#: Above this |cosine| the two axes of a plane are said to be oblique (chosen by us: 84 degrees).
OBLIQUE = 0.1
#: Error of autocast, as a share of the picture's range, above which it is a warning (chosen by us: it shows).
AUTOCAST = 0.02


def center(checkpoint: float, at_zero: float) -> Check:
    """The loss at step zero is the checkpoint's, bit for bit."""
    if at_zero == checkpoint:
        message = f"the centre's loss {at_zero!r} is the checkpoint's, bit for bit"
        return Check("center", "pass", message, value=0.0, limit=0.0)
    return Check(
        "center",
        "fail",
        f"the centre's loss {at_zero!r} is not the checkpoint's {checkpoint!r}: the loss is not reproducible here, so "
        "don't trust this picture below that difference",
        value=abs(at_zero - checkpoint),
        limit=0.0,
    )


def finite(loss: np.ndarray) -> Check:
    """The share of points whose loss is not finite; they are kept, and drawn as holes."""
    wrong = int(loss.size - np.isfinite(loss).sum())
    message = f"{wrong} of {loss.size} points are not finite" if wrong else f"all {loss.size} points are finite"
    return Check("finite", "warn" if wrong else "pass", message, value=wrong / max(loss.size, 1), limit=0.0)


def directions(chosen: Sequence[Direction], weight_norm: float, cosine: float = math.nan) -> Check:
    """The norms of the directions beside that of the weights, and the angle between them."""
    norms = " and ".join(f"{d.norm:.4g}" for d in chosen)
    message = f"||d|| is {norms}, ||theta|| is {weight_norm:.4g}"
    if len(chosen) == 1:
        return Check("directions", "pass", message, value=chosen[0].norm)
    angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    message += f"; the directions are at {angle:.1f} degrees (cosine {cosine:.3g})"
    if abs(cosine) <= OBLIQUE:
        return Check("directions", "pass", message, value=cosine, limit=OBLIQUE)
    message += ", yet are drawn at right angles: distances and angles in the picture are distorted"
    return Check("directions", "warn", message, value=cosine, limit=OBLIQUE)


def batchnorm(objective: Objective) -> Check:
    """What BatchNorm's running statistics are at each point."""
    layers = len(batchnorm_layers(objective.model))
    said = {
        "none": "the model keeps no running statistics",
        "eval": f"the checkpoint's running statistics at every point (BatchNorm layers: {layers})",
        "batch": f"each batch's own statistics at every point (BatchNorm layers: {layers})",
        "recompute": f"running statistics estimated anew over the draw at each point (BatchNorm layers: {layers})",
    }
    return Check("batchnorm", "pass", said[policy(objective)])


def policy(objective: Objective) -> str:
    """Return the task's BatchNorm policy, "none" where the model keeps no running statistics."""
    return objective.task.batchnorm if batchnorm_layers(objective.model) else "none"


def samples(checkpoint: Evaluation, loss: np.ndarray) -> Check:
    """How well the samples drawn determine the loss, beside the range that the picture shows."""
    known = loss[np.isfinite(loss)]
    span = float(known.max() - known.min()) if len(known) else math.nan
    message = f"{checkpoint.samples:,} samples"
    if math.isnan(checkpoint.stderr):
        return Check("samples", "pass", f"{message}; the loss can't be taken apart into samples: no standard error")
    message += f"; the loss's standard error over them is {checkpoint.stderr:.3g}, the picture's range {span:.3g}"
    level = "warn" if checkpoint.stderr > span else "pass"
    if level == "warn":
        message += ": other samples of this size may show another picture"
    return Check("samples", level, message, value=checkpoint.stderr, limit=span)


@dataclass(frozen=True)
class Derivatives:
    """The exact derivatives of the loss at the checkpoint along each direction; NaN, with a reason, where not known."""

    slopes: tuple[float, ...]
    curvatures: np.ndarray
    products: int
    reason: str = ""


def derivatives(objective: Objective, chosen: Sequence[Direction], *, curved: bool) -> Derivatives:
    """Return gradient . d_i and, with `curved`, d_i^T H d_j from one Hessian product for each direction.

    Costs a gradient (3 passes), and 3 passes and 6 for each product. With recomputed BatchNorm statistics both are
    those of another function, so they are not given.
    """
    k = len(chosen)
    unknown = np.full((k, k), np.nan)
    if policy(objective) == "recompute":
        return Derivatives((math.nan,) * k, unknown, 0, "BatchNorm statistics are recomputed at each point")
    try:
        gradient = objective.gradient()
    except RuntimeError as error:  # not differentiable, or too large for the memory: the picture needs no gradient
        return Derivatives((math.nan,) * k, unknown, 0, first_line(error))
    along = [d.tensors(objective.names) for d in chosen]
    slopes = tuple(dot(gradient, t) for t in along)
    if not curved:
        return Derivatives(slopes, unknown, 0)
    try:
        products = Hessian(objective, strategy="rebuild") @ torch.stack([flatten(t) for t in along], dim=1)
    except (LandscapeError, RuntimeError) as error:  # no second derivative, or no memory for it
        return Derivatives(slopes, unknown, 0, first_line(error))
    found = [[float(flatten(t).double() @ p.double()) for p in products.T] for t in along]
    return Derivatives(slopes, (np.array(found) + np.array(found).T) / 2, k)


def slope(
    objective: Objective, chosen: Sequence[Direction], checkpoint: Evaluation, exact: Derivatives
) -> Check | None:
    """The slope of the loss along each direction, by central differences, against gradient . d.

    See `own_slope` for how far apart they may be. Costs 4 passes for each direction. None with recomputed BatchNorm
    statistics, which make the slope another one than the gradient's.
    """
    if policy(objective) == "recompute":
        return None
    if math.isnan(exact.slopes[0]) and exact.reason:
        return Check("slope", "warn", f"the picture's slope was not compared with the gradient: {exact.reason}")
    found = [
        own_slope(objective, d.tensors(objective.names), expected, checkpoint)
        for d, expected in zip(chosen, exact.slopes, strict=True)
    ]
    said = [f"{f.seen:.6g} against gradient . d = {f.expected:.6g}" for f in found]
    message = f"the picture's slope at the checkpoint is {' and '.join(said)}"
    wrong = [f for f in found if f.wrong]
    if wrong:
        message += ": the loss has a kink there, or its gradient is not its own"
    shown = (wrong or found)[0]
    return Check("slope", "warn" if wrong else "pass", message, value=shown.gap, limit=shown.limit)


def bend(
    exact: Derivatives, center: float, at: Sequence[tuple[float, ...]], loss: np.ndarray
) -> tuple[Check | None, float]:
    """How far the picture leaves the quadratic model L + g.x + x^T H x / 2 of exact derivatives at the checkpoint.

    The value is the largest departure at the nearest points that were evaluated (2 for a line, 8 for a plane), as a
    share of the larger of the two rises; 0 for a quadratic loss. Nothing is wrong with a large one: then the
    eigenvalues at the checkpoint say little about the shape drawn, and a smaller span would show them.
    """
    if np.isnan(exact.curvatures).any():
        reason = exact.reason or "no second derivative"
        return Check("bend", "pass", f"the picture was not compared with its quadratic model: {reason}"), math.nan
    steps = np.array(at, dtype=float).reshape(len(at), len(exact.slopes))
    known = np.isfinite(loss) & steps.any(axis=1)
    said = "the exact curvature along the directions is " + " and ".join(f"{c:.4g}" for c in np.diag(exact.curvatures))
    if not known.any():
        return Check("bend", "pass", f"{said}; no other point is finite"), math.nan
    steps, rise = steps[known], loss[known] - center
    model = steps @ np.array(exact.slopes) + 0.5 * np.einsum("ni,ij,nj->n", steps, exact.curvatures, steps)
    size = np.maximum(np.abs(rise), np.abs(model))
    departure = np.abs(rise - model) / np.where(size > 0, size, 1.0)
    away = np.linalg.norm(steps, axis=1)
    near = np.argsort(away, kind="stable")[: 2 if steps.shape[1] == 1 else 8]
    value, farthest = float(departure[near].max()), float(departure[np.argmax(away)])
    message = (
        f"{said}; the quadratic model misses the rise by up to {value:.1%} at the nearest points (up to "
        f"{away[near].max():.3g} away) and by {farthest:.1%} at the farthest"
    )
    return Check("bend", "pass", message, value=value), value


def autocast(points: Points, at: Sequence[tuple[float, ...]], loss: np.ndarray, kind: str) -> Check:
    """The error of autocast at five points, spread over the losses found, as a share of their range. Costs 5 passes."""
    known = np.flatnonzero(np.isfinite(loss))
    if not len(known):
        return Check("autocast", "warn", f"no loss is finite under {kind} autocast: measure without")
    order = known[np.argsort(loss[known], kind="stable")]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, 5).round().astype(int))]
    errors = [abs(float(loss[i]) - points.at(at[i], autocast=False)[0]) for i in chosen]
    span = float(np.ptp(loss[known])) or 1.0
    worst, typical = (
        max(errors),
        max(e / max(abs(float(loss[i])), np.finfo(float).tiny) for i, e in zip(chosen, errors, strict=True)),
    )
    level = "warn" if worst > AUTOCAST * span else "pass"
    message = (
        f"{kind} autocast is off by up to {worst:.2g} at {len(chosen)} points ({typical:.1%} of the loss there, "
        f"{worst / span:.1%} of the picture's range)"
    )
    return Check("autocast", level, message, value=worst / span, limit=AUTOCAST)


def interpolation(filled: Filled, tol: float | None) -> Check:
    """How much of the picture was evaluated, and how far off the rest may be."""
    total, evaluated = filled.loss.size, int(filled.evaluated.sum())
    if evaluated == total:
        reason = "" if tol is None else f" ({filled.reason})"
        return Check("interpolation", "pass", f"all {total} points were evaluated{reason}", value=0.0)
    words = {"log": "log loss", "asinh": f"asinh(loss / {filled.heights.width:.3g}), a loss being 0 or below"}
    message = f"{evaluated} of {total} points were evaluated"
    if math.isnan(filled.error):
        return Check("interpolation", "warn", f"{message}, too few to interpolate the others: {filled.reason}")
    message += (
        f"; the others are off by at most an estimated {filled.error:.2%} of the range of {words[filled.heights.scale]}"
    )
    if not math.isnan(filled.error_p95):
        message += f", and 95% of them by at most {filled.error_p95:.2%} (from 59 points held out, 95% confidence)"
    limit = math.nan if tol is None else tol
    if filled.finished:
        return Check("interpolation", "pass", message, value=filled.error, limit=limit)
    return Check("interpolation", "warn", f"{message}; {filled.reason}", value=filled.error, limit=limit)
