"""Is the second derivative that autograd gives the right one? One product beside a difference of two gradients."""

from __future__ import annotations

import torch

from landscape.curvature.operators import Hessian
from landscape.errors import LandscapeError
from landscape.objective import Objective
from landscape.parameters import flatten, unflatten
from landscape.results import Check
from landscape.tasks import Task

from .prediction import one_batch

#: Steps of the central difference along a unit vector, and the relative error allowed. A single ReLU that switches in
#: between spoils a difference (its jump is divided by the step), and among the activations of a few images one
#: within 1e-6 is ordinary: where the first step disagrees, shorter ones are tried, across which it no longer
#: switches. What is missing from a product is missing at every step. In float64, rounding stays below 1e-6
#: of the gradient at 1e-9 (chosen by us).
DIFFERENCES = {torch.float64: ((1e-6, 1e-7, 1e-8, 1e-9), 1e-3), torch.float32: ((1e-2,), 5e-2)}
#: Beyond this relative error something is missing, not merely inexact (chosen by us; float64 only).
WRONG = 0.3
NAME = "twice differentiable"


def twice_differentiable(task: Task) -> Check:
    """Compare one Hessian product with a central difference of two gradients, on one batch and in float64.

    A custom backward that forgets part of its own derivative (a detached tensor, `.data`, NumPy inside) gives a
    product without an error, and a wrong one: it fails here. Code that runs in float32 alone is compared in float32,
    where a difference is too coarse to fail it. Costs about 10 passes over one batch. Raises nothing of its own: what
    autograd refuses is the check's message.
    """
    small = one_batch(task)
    try:
        double = small.replace(dtype=torch.float64)
        with Objective(double, double.splits[0]) as objective:
            objective.evaluate()
    except (LandscapeError, torch.OutOfMemoryError):
        double = small
    try:
        return compare_with_differences(double)
    except (LandscapeError, torch.OutOfMemoryError) as error:
        return Check(NAME, "fail", " ".join(str(error).split()))


def compare_with_differences(task: Task, seed: int = 0) -> Check:
    """Return how far H v is from (g(w + h v) - g(w - h v)) / 2h for a random unit vector v, relative to the larger.

    Costs a product, and two gradients for each step that is tried: one, unless kinks lie close by.
    """
    with Objective(task, task.splits[0]) as objective:
        steps, limit = DIFFERENCES[objective.dtype]
        n = sum(p.numel() for p in objective.parameters)
        v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
        v = (v / v.norm()).to(objective.device, objective.dtype)
        product = (Hessian(objective) @ v).double()
        found: list[tuple[float, float, float]] = []
        for step in steps:
            error, size, noise = _beside_difference(objective, product, v, step)
            if found and noise > limit * found[0][1]:
                break  # a step too short to tell what the first one showed
            found.append((error, size, noise))
            if error <= limit or size <= noise:
                break
        _, size, noise = found[-1]
        error, size, noise = found[-1] if size <= noise else min(found)
        exact = objective.dtype == torch.float64
    if float(product.norm()) == 0 and size <= noise:
        text = "the second derivative is exactly 0: the loss is piecewise linear in the weights"
        return Check(NAME, "warn", text, error, limit)
    if size <= noise:
        text = "the second derivative is too small to be told from rounding on this batch"
        return Check(NAME, "warn", text, error, limit)
    text = f"a Hessian product and a difference of two gradients agree to {error:.1e}"
    if error <= limit:
        return Check(NAME, "pass", text, error, limit)
    if error <= WRONG or not exact:
        return Check(NAME, "warn", f"{text} only (limit {limit:g}): kinks, such as ReLU's, lie close by", error, limit)
    text = f"a Hessian product and a difference of two gradients differ by {error:.0%}"
    return Check(
        NAME, "fail", f"{text}: part of a backward is not differentiated (custom function, detach?)", error, limit
    )


def _beside_difference(
    objective: Objective, product: torch.Tensor, v: torch.Tensor, step: float
) -> tuple[float, float, float]:
    """Return the relative error of one difference, the larger of both norms, and what rounding alone may make of it."""
    sides = []
    with objective.holding_statistics():  # the product takes them for constants
        for sign in (1.0, -1.0):
            objective.move([unflatten(v, objective.center)], [sign * step])
            sides.append(flatten(objective.gradient()).double())
        objective.reset()
    difference = (sides[0] - sides[1]) / (2 * step)
    size = max(float(product.norm()), float(difference.norm()))
    # Rounding of the two gradients, with a factor of 10 to spare for the sums inside them.
    noise = 10 * torch.finfo(objective.dtype).eps * float(sides[0].norm()) / step
    return (float((product - difference).norm()) / size if size > 0 else 0.0), size, noise
