"""Train the middle point of a quadratic Bezier curve between two states, so that the loss stays low along it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import MeasurementError
from ..objective import Objective
from ..session import batchnorm_layers

#: Gradients of a batch for each curve (chosen by us; Garipov et al. 2018 train as long as for the ends themselves).
STEPS = 1000
#: Adam's rate as a share of the root mean square of b - a (chosen by us: the middle can move several times that far).
RATE = 0.03

Tensors = Sequence[torch.Tensor]


@dataclass(frozen=True)
class Trained:
    """The middle point, in the objective's order of parameters, and the loss of each step's batch."""

    middle: list[torch.Tensor]
    losses: np.ndarray
    rate: float


def train_middle(
    objective: Objective,
    first: Tensors,
    last: Tensors,
    *,
    steps: int,
    rate: float,
    seed: int,
    update: Callable[[], object] = lambda: None,
) -> Trained:
    """Minimize E_t L(theta(t)), t ~ U(0, 1), over m in theta(t) = (1-t)^2 a + 2t(1-t) m + t^2 b.

    Garipov et al. 2018 (arXiv:1802.10026, section 3), with one t for each batch as there. m starts half
    way. Adam with a cosine schedule to zero in place of their SGD: a rate relative to ||b - a|| then suits any model
    (chosen by us). t and the order of the batches follow from the seed. BatchNorm layers use each batch's own
    statistics meanwhile, as they do in training; everything else is the task's own loss in its own mode. Weight decay
    is none.

    Costs a gradient of one batch a step: 3 / len(objective) passes. Raises MeasurementError for steps or a rate out of
    range, and where the loss stops being finite.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise MeasurementError(f"steps={steps!r} must be a whole number, at least 1")
    if not (math.isfinite(rate) and rate > 0):
        raise MeasurementError(f"rate={rate} must be a finite number above 0")
    n = sum(a.numel() for a in first)
    square = sum(float((b.double() - a.double()).square().sum()) for a, b in zip(first, last, strict=True))
    size = math.sqrt(square / n)
    middle = [((a + b) / 2).requires_grad_() for a, b in zip(first, last, strict=True)]
    optimizer = torch.optim.Adam(middle, lr=rate * size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    layers = batchnorm_layers(objective.model)
    flags = [layer.training for layer in layers]
    losses, order = np.full(steps, np.nan), []
    try:
        for layer in layers:
            layer.train()
        for step in range(steps):
            if not order:
                order = torch.randperm(len(objective), generator=generator, device="cpu").tolist()
            t = float(torch.rand((), generator=generator, dtype=torch.float64, device="cpu"))
            with torch.no_grad():
                for p, a, m, b in zip(objective.parameters, first, middle, last, strict=True):
                    p.copy_((1 - t) ** 2 * a + 2 * t * (1 - t) * m + t**2 * b)
            mean, _ = objective.batch_loss(order.pop())
            losses[step] = float(mean.detach())
            if not math.isfinite(losses[step]):
                raise MeasurementError(
                    f"the curve's training met a loss of {losses[step]} at step {step + 1}: give a lower rate"
                )
            gradients = torch.autograd.grad(mean, objective.parameters, materialize_grads=True, allow_unused=True)
            for m, g in zip(middle, gradients, strict=True):
                m.grad = 2 * t * (1 - t) * g
            optimizer.step()
            schedule.step()
            update()
    finally:
        for layer, training in zip(layers, flags, strict=True):
            layer.train(training)
    objective.passes += 3 * steps / len(objective)
    return Trained([m.detach() for m in middle], losses, rate)
