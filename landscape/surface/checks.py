"""A picture that checks itself: what every line and plane says about its own trustworthiness."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from ..data import first_line
from ..objective import Evaluation, Objective
from ..results import Check
from ..session import batchnorm_layers
from .directions import Direction

#: Above this |cosine| the two axes of a plane are said to be oblique (chosen by us: 84 degrees).
OBLIQUE = 0.1
#: Step to check a slope with, as a share of ||theta||: shorter ones catch too few of a ReLU network's kinks for their
#: scatter to be seen, longer ones miss more wrong slopes (chosen by us: no false alarm on 960 slices of small networks,
#: ReLU and tanh, trained and not, in both precisions).
STEP = 2e-3
#: Relative error of a mean loss in units of its precision's epsilon (chosen by us, from the same slices).
ROUNDING = 8.0


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
    return Check("finite", "warn" if wrong else "pass", message, value=wrong / loss.size, limit=0.0)


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


def slope(objective: Objective, chosen: Sequence[Direction], checkpoint: Evaluation) -> Check | None:
    """The slope of the loss along each direction, by central differences, against gradient . d.

    The slopes of four neighbouring steps of h = 0.002 ||theta|| / ||d|| tell how much the slope changes there, by
    curvature and by kinks: gradient . d may differ from the central one by twice their range and the loss's rounding.
    Costs a gradient, and 4 passes for each direction. None with recomputed BatchNorm statistics, which make the slope
    another one than the gradient's.
    """
    if policy(objective) == "recompute":
        return None
    objective.reset()
    try:
        gradient = objective.gradient()
    except RuntimeError as error:  # not differentiable, or too large for the memory: the picture needs no gradient
        return Check("slope", "warn", f"the picture's slope was not compared with the gradient: {first_line(error)}")
    eps = torch.finfo(objective.dtype).eps
    weights = norm(objective.center) or 1.0
    spread = 0.0 if math.isnan(checkpoint.stderr) else checkpoint.stderr * math.sqrt(checkpoint.samples)
    rounding = ROUNDING * eps * (abs(checkpoint.loss) + spread)  # losses of both signs cancel, their errors don't
    said = []
    found = []
    for d in chosen:
        along = d.tensors(objective.names)
        exact = sum(float((g.double() * t.double()).sum()) for g, t in zip(gradient, along, strict=True))
        h = STEP * weights / d.norm
        values = [checkpoint.loss if k == 0 else _loss_at(objective, along, k * h) for k in (-2, -1, 0, 1, 2)]
        with np.errstate(invalid="ignore", over="ignore"):  # a loss that is not finite makes a slope that isn't
            slopes = np.diff(values) / h
            seen = float(slopes[1] + slopes[2]) / 2
            found.append((abs(seen - exact), 2 * float(np.ptp(slopes)) + rounding / h))
        said.append(f"{seen:.6g} against gradient . d = {exact:.6g}")
    message = f"the picture's slope at the checkpoint is {' and '.join(said)}"
    wrong = [(gap, limit) for gap, limit in found if not gap <= limit]  # a gap of NaN is wrong too
    if wrong:
        message += ": the loss has a kink there, or its gradient is not its own"
    gap, limit = (wrong or found)[0]
    return Check("slope", "warn" if wrong else "pass", message, value=gap, limit=limit)


def norm(tensors: Sequence[torch.Tensor]) -> float:
    """Return the Euclidean norm over all tensors, summed in float64."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def _loss_at(objective: Objective, along: Sequence[torch.Tensor], step: float) -> float:
    objective.move((along,), (step,))
    return objective.evaluate().loss
