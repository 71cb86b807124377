"""Is the second derivative that autograd gives the right one? One product beside differences of gradients.

A product H v that misses a part (a tensor detached in the model or the loss, `.data`, NumPy, a custom backward that is
not differentiated itself) comes without an error. What tells it from a kink (a ReLU that switches, another maximum):

- What is missing stands in the forward difference [g(w + h v) - g(w)] / h and in the backward one alike, whatever h.
- A gradient that jumps at the weights stands in one of the two, or divided by h in both; one that jumps near by is gone
  from shorter steps; both are gone from other weights, where what is missing stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from landscape.curvature.operators import Hessian
from landscape.errors import LandscapeError, OutOfMemory
from landscape.memory import REMEDY, ran_out
from landscape.objective import Objective
from landscape.parameters import flatten, unflatten
from landscape.quantized import fake_quantizers
from landscape.results import Check
from landscape.tasks import Task

from .prediction import at_most, one_batch

NAME = "twice differentiable"
#: Seconds that a pass over the compared samples may take: of a batch that takes longer, fewer are compared (chosen by
#: us: there are up to 150 passes, and fewer samples have fewer kinks, and miss the same part of a derivative).
PASS = 0.1
#: Relative difference between product and central difference up to which they agree, in float64 and where only float32
#: runs (chosen by us).
AGREES = {torch.float64: 1e-3, torch.float32: 5e-2}
#: Below this one in float64 nothing further is looked at: a smooth loss reaches 1e-8 (chosen by us).
EXACT = 1e-4
#: Steps along a unit vector: the first that is tried, and the ends of the ladder of tens on which others follow. Among
#: the activations of a batch of images one that switches within 1e-6 is ordinary; at 1e-11 rounding is 1e-4 of the
#: gradient (chosen by us).
FIRST, LONGEST, SHORTEST = {torch.float64: 1e-6, torch.float32: 1e-2}, 1e-2, 1e-11
#: Something is missing where forward and backward difference are less apart than this share of the gap between their
#: mean and the product, and the gap changes by less than this share with the step: a gradient that jumps on one side
#: makes them twice the gap apart (chosen by us).
APART = 0.5
#: Steps at which code that computes in float32 inside a float64 model shows no gap any more: the gap is its rounding.
COARSE = (1e-4, 1e-3)
#: How far from the weights, as a share of their norm, a missing part is looked for once more (chosen by us: beyond what
#: sits exactly at the weights, such as a ReLU of zeros, and otherwise in no special place).
ASIDE = 1e-3
#: Steps at which the loss's own slope is taken in float64, as shares of the weights' norm, and how far it may be from
#: the gradient (chosen by us: a smooth loss reaches 1e-6, and kinks so close by move it by less).
SLOPES, SLOPE_AGREES = (1e-6, 1e-7), 1e-2


@dataclass(frozen=True)
class Beside:
    """A product beside the differences over one step: `gap` is to the central one, `apart` between the one-sided ones.

    `size` is the larger norm of product and central difference, `noise` what rounding alone may make of the gap, and
    `change` how far the central difference is from that of the step before.
    """

    gap: float
    apart: float
    size: float
    noise: float
    change: float

    @property
    def error(self) -> float:
        """The gap relative to the size."""
        return self.gap / self.size if self.size > 0 else 0.0

    def like(self, other: Beside) -> bool:
        """Say whether the next step shows the same gap, each on both sides, and more than rounding makes of it."""
        least = min(self.gap, other.gap)
        return other.change < APART * least and all(b.apart < APART * b.gap and b.gap > b.noise for b in (self, other))


def twice_differentiable(task: Task) -> Check:
    """Compare one Hessian product with differences of gradients, on one batch and in float64.

    Fails where a part of the second derivative is missing, down to 1e-4 of it. Code that runs in float32 alone is
    compared in float32, where a difference is too coarse to tell that from kinks. Costs about 15 passes over one batch,
    and up to 150 where kinks lie close by; of a batch that takes long, over some of its samples (see `PASS`). Raises
    nothing of its own: what autograd refuses is the check's message.
    Where there is no memory for the batch, half of its samples do, and so on; that says nothing about the derivative.
    """
    if count := fake_quantizers(task.model):
        return Check(NAME, "fail", _rounded(count))
    small, fewer = one_batch(task), ""
    while True:
        try:
            check = _compared(small)
        except Exception as error:
            if not ran_out(error):
                raise
        else:
            return replace(check, message=check.message + fewer)
        samples = small.draw(small.splits[0]).samples // 2
        if not samples:
            text = f"not compared with differences of gradients: out of memory on one sample; {REMEDY}"
            return Check(NAME, "warn", text)
        small, fewer = small.replace(max_samples=samples), f" (on {samples} samples: out of memory on more)"


def _compared(small: Task) -> Check:
    """Compare in float64, or as the task is where that doesn't run, and on fewer samples where a pass takes long."""
    try:
        # In its own precision first: in float64 even the one pass that says how long it takes may take long.
        chosen = _in_float64(at_most(small, PASS))
        check = compare_with_differences(chosen)
    except LandscapeError as error:
        if isinstance(error, OutOfMemory):
            raise
        return Check(NAME, "fail", " ".join(str(error).split()))
    left, whole = (task.draw(task.splits[0]).samples for task in (chosen, small))
    text = f" (on {left} samples: one pass over more takes long)" if left < whole else ""
    return replace(check, message=check.message + text)


def _in_float64(task: Task) -> Task:
    """Return the task in float64, on fewer samples where a pass takes long there; as it is where that doesn't run."""
    try:
        return at_most(task.replace(dtype=torch.float64), PASS)
    except LandscapeError as error:
        if isinstance(error, OutOfMemory):
            raise
        return task


def compare_with_differences(task: Task, seed: int = 0) -> Check:
    """Return how far H v is from differences of gradients for a random unit vector v, and what that means.

    Costs a product and 3 gradients where they agree at the first step. Else shorter steps follow, and all of it once
    more beside the weights (see `ASIDE`), with 2 gradients for each step.
    """
    with Objective(task, task.splits[0]) as objective:
        limit, v = AGREES[objective.dtype], _unit(objective, seed)
        here = _Differences(objective, v)
        first, best = here.steps[0], here.best
        if first.size <= first.noise:
            text = "too small to be told from rounding on this batch"
            if float(here.product.norm()) == 0:
                text = "exactly 0: the loss is piecewise linear in the weights"
            return Check(NAME, "warn", f"the second derivative is {text}", first.error, limit)
        beside = missing = None
        if objective.dtype == torch.float64 and best.error > EXACT:
            aside = _Differences(objective, v, aside=_unit(objective, seed + 1))
            beside, missing = aside.best, aside.missing()
        if missing is not None:
            return Check(NAME, "fail", _refusal(missing.error, _own_slope(objective)), missing.error, limit)
    text = f"a Hessian product and a difference of two gradients agree to {best.error:.1e}"
    if best.error <= limit:
        return Check(NAME, "pass", text, best.error, limit)
    text += f" only (limit {limit:g}): kinks, such as ReLU's, lie close by"
    if beside is not None and beside.error <= limit:
        text = (
            f"a Hessian product and a difference of two gradients differ by {100 * best.error:.3g}% of their size at "
            f"the weights, where the gradient has a kink, such as ReLU's; beside them they agree to {beside.error:.1e}"
        )
    return Check(NAME, "warn", text, best.error, limit)


def _rounded(count: int) -> str:
    return (
        f"{count} layers round what they pass on and let its gradient straight through (fake quantization): that is no "
        "slope of the loss, and its derivative no curvature. Switch it off in the task "
        "(model.apply(torch.ao.quantization.disable_fake_quant)) to measure the weights that are trained, or measure "
        "what needs no derivative: --only performance,calibration,plane"
    )


def _own_slope(objective: Objective) -> tuple[float, float] | None:
    """Return the gradient's norm and the loss's own slope along it, where the two are not the same; else None.

    Kinks are no reason: at a random place none lies within both steps, or moves the slope by much.
    """
    objective.move([], [])
    gradient = objective.gradient()
    norm = float(flatten(gradient).double().norm())
    if norm == 0:
        return None
    size = float(flatten(objective.center).double().norm()) or 1.0
    slopes = []
    for step in SLOPES:
        ends = []
        for sign in (1.0, -1.0):
            objective.move([gradient], [sign * step * size / norm])
            ends.append(objective.evaluate().loss)
        slopes.append((ends[0] - ends[1]) / (2 * step * size))
    objective.move([], [])
    return (norm, slopes[-1]) if all(abs(s - norm) > SLOPE_AGREES * norm for s in slopes) else None


def _refusal(error: float, slopes: tuple[float, float] | None) -> str:
    found = (
        "a part of the loss's second derivative is missing: a Hessian product and differences of gradients differ by "
        f"{100 * error:.3g}% of their size, on both sides alike and at every step, as no kink does. "
    )
    if slopes is None:
        return (
            f"{found}Look for a tensor that is detached in the model or the loss (detach, .data, no_grad, NumPy), or a "
            "torch.autograd.Function whose backward is not differentiated itself. Freeze what stands under no_grad on "
            "purpose (requires_grad_(False)), or take differences of gradients, which need no second derivative: "
            "--only eigenvalues_by_differences, or FiniteDifferences(task)"
        )
    return (
        f"{found}The gradient is not the loss's slope either ({slopes[0]:.4g} against {slopes[1]:.4g} along it). Look "
        "for a tensor that is detached in the model or the loss (detach, .data, no_grad, NumPy), or a gradient that is "
        "changed on its way: reversed, or passed straight through a rounding, as in training for quantization. There, "
        "switch the fake quantization off in the task (model.apply(torch.ao.quantization.disable_fake_quant)) to "
        "measure the weights that are trained. Freeze what stands under no_grad on purpose (requires_grad_(False)). "
        "What needs no derivative can be measured as it is (--only performance,calibration,plane); differences of "
        "gradients (--only eigenvalues_by_differences) show how those change that training follows, which is no "
        "curvature of the loss"
    )


class _Differences:
    """The product H v at the weights, or `aside` of them along a unit vector, and the differences beside it.

    `steps` are those at the first step and at shorter ones, until one agrees or rounding comes near the gap; `coarse`
    follow where none agrees.
    """

    def __init__(self, objective: Objective, v: torch.Tensor, aside: torch.Tensor | None = None) -> None:
        self._objective = objective
        self._v = unflatten(v, objective.center)
        size = float(flatten(objective.center).double().norm()) or 1.0
        self._base = ([], []) if aside is None else ([unflatten(aside, objective.center)], [ASIDE * size])
        objective.move(*self._base)
        self.product = (Hessian(objective) @ v).double()
        with objective.holding_statistics():  # the product takes them for constants
            self._gradient = flatten(objective.gradient()).double()
            self._last: torch.Tensor | None = None
            self.steps = self._ladder()
            tried = objective.dtype == torch.float64 and self.steps[-1].error > EXACT
            self.coarse = [self._at(step) for step in COARSE] if tried else []
        del self._gradient, self._last  # each as large as the model

    @property
    def best(self) -> Beside:
        """The step at which product and difference are closest."""
        return min((*self.steps, *self.coarse), key=lambda b: b.error)

    def missing(self) -> Beside | None:
        """Return the shortest step that shows a missing part: a gap like that of the step before it, and none is less.

        Else None: rounding, or kinks, whose part of a difference is gone from some step.
        """
        for one, other in reversed(list(pairwise(self.steps))):
            least = APART * min(one.gap, other.gap)
            if one.like(other) and all(b.gap >= least for b in (*self.steps, *self.coarse)):
                return other
        return None

    def _ladder(self) -> list[Beside]:
        step = FIRST[self._objective.dtype]
        # Where the product is small beside the gradient, rounding asks for a longer step.
        while step < LONGEST and 0 < EXACT * float(self.product.norm()) < self._noise(step):
            step *= 10
        found = [self._at(step)]
        if self._objective.dtype != torch.float64:
            return found
        while step > 1.5 * SHORTEST and found[-1].error > EXACT and 100 * found[-1].noise < found[-1].gap:
            step /= 10
            found.append(self._at(step))
        return found

    def _at(self, step: float) -> Beside:
        objective, (directions, lengths) = self._objective, self._base
        sides = []
        for sign in (1.0, -1.0):
            objective.move([*directions, self._v], [*lengths, sign * step])
            sides.append(flatten(objective.gradient()).double())
        objective.move(directions, lengths)
        apart = float((sides[0] + sides[1] - 2 * self._gradient).norm()) / step
        central, before = (sides[0] - sides[1]) / (2 * step), self._last
        self._last = central
        return Beside(
            gap=float((central - self.product).norm()),
            apart=apart,
            size=max(float(self.product.norm()), float(central.norm())),
            noise=self._noise(step),
            change=math.inf if before is None else float((before - central).norm()),
        )

    def _noise(self, step: float) -> float:
        # Rounding of the two gradients, with a factor of 10 to spare for the sums inside them.
        return 10 * torch.finfo(self._objective.dtype).eps * float(self._gradient.norm()) / step


def _unit(objective: Objective, seed: int) -> torch.Tensor:
    n = sum(p.numel() for p in objective.parameters)
    v = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
    return (v / v.norm()).to(objective.device, objective.dtype)
