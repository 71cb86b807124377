"""The loss's own slope along a direction beside its gradient's, which is another where autograd is told otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..objective import Objective
from ..passes import Evaluation

#: Step to check a slope with, as a share of ||theta||: shorter ones catch too few of a ReLU network's kinks for their
#: scatter to be seen, longer ones miss more wrong slopes (chosen by us: no false alarm on 960 slices of small networks,
#: ReLU and tanh, trained and not, in both precisions).
STEP = 2e-3
#: Relative error of a mean loss in units of its precision's epsilon (chosen by us, from the same slices).
ROUNDING = 8.0
#: How many times the range that the four slopes keep without their linear trend a gradient may be off (chosen by us: on
#: 3,120 slices of small networks, ReLU and smooth, trained and not, in both precisions, no false alarm, where twice the
#: whole range alone made 34, all at losses near 0 in float32; along the gradient the median limit fell from 0.15 to
#: 0.04 of the slope. 16 made one false alarm, beside a kink).
LEFT = 32.0
#: What projects the slopes at -3/2, -1/2, 1/2 and 3/2 steps on those of a quadratic function.
_AT = np.array([-1.5, -0.5, 0.5, 1.5])
_TREND = np.outer(_AT, _AT) / (_AT @ _AT) + 0.25


@dataclass(frozen=True)
class Slope:
    """The slope that the loss shows, that of the gradient, and how far apart curvature and rounding may have them."""

    seen: float
    expected: float
    limit: float

    @property
    def gap(self) -> float:
        """How far apart they are."""
        return abs(self.seen - self.expected)

    @property
    def wrong(self) -> bool:
        """Whether that is too far; a slope that is not finite is wrong, too."""
        return not self.gap <= self.limit


def own_slope(objective: Objective, along: Sequence[torch.Tensor], expected: float, checkpoint: Evaluation) -> Slope:
    """Compare the loss's slope along a direction, by central differences, with gradient . d = `expected`.

    The slopes of four neighbouring steps of h = 0.002 ||theta|| / ||d|| tell how much the slope changes there, by
    curvature and by kinks: gradient . d may differ from the central one by twice their range, or by 32 times the range
    that is left without their linear trend where that is less (curvature alone moves no central difference), and by
    the loss's rounding. That of a likelihood is one of logits and their exponentials, which are of size 1, however
    small the loss: a mean of -log p in float32 stands still where p is 1 to its last digit.
    Costs 4 passes; leaves the weights at the last step.
    """
    eps = torch.finfo(objective.dtype).eps
    spread = 0.0 if math.isnan(checkpoint.stderr) else checkpoint.stderr * math.sqrt(checkpoint.samples)
    size = abs(checkpoint.loss) + spread  # losses of both signs cancel, their errors don't
    rounding = ROUNDING * eps * (max(size, 1.0) if objective.has_labels else size)
    h = STEP * (norm(objective.center) or 1.0) / norm(along)
    values = [checkpoint.loss if k == 0 else _loss_at(objective, along, k * h) for k in (-2, -1, 0, 1, 2)]
    with np.errstate(invalid="ignore", over="ignore"):  # a loss that is not finite makes a slope that isn't
        slopes = np.diff(values) / h
        reach = min(2 * float(np.ptp(slopes)), LEFT * float(np.ptp(slopes - _TREND @ slopes)))
        return Slope(float(slopes[1] + slopes[2]) / 2, expected, reach + rounding / h)


def norm(tensors: Sequence[torch.Tensor]) -> float:
    """Return the Euclidean norm over all tensors, summed in float64."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def dot(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Return the inner product over all tensors, summed in float64."""
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _loss_at(objective: Objective, along: Sequence[torch.Tensor], step: float) -> float:
    objective.move((along,), (step,))
    return objective.evaluate().loss
