"""The Hessian from differences of gradients, for models that have no second derivative, with its error measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

from ..errors import MeasurementError
from ..objective import Objective
from ..parameters import flatten, unflatten
from ..results import Check
from ..tasks import Task
from .operands import check_vector
from .operators import Operator

#: Steps tried for the first product, as multiples of eps^(1/3) ||w||: each four times the one before (chosen by us).
FACTORS = (4.0**-4, 4.0**-3, 4.0**-2, 0.25, 1.0, 4.0)
#: Relative error of a product above which the check warns: ten times the default tolerance of `eigenpairs`.
ALLOWED = 1e-2


class FiniteDifferences(Operator):
    """The Hessian of the mean loss by central differences: H v = (g(w + h u) - g(w - h u)) ||v|| / 2h, u = v / ||v||.

    Needs one derivative only: for custom backwards that are differentiable once, fused kernels without a double
    backward, recurrent layers on cuDNN. Truncation errs by h^2 / 6 times the third derivative along u, rounding by
    eps ||g|| / h, so that the best step is near eps^(1/3) times the size of the weights (Nocedal and Wright 2006,
    Numerical Optimization, section 8.1, for the exponent). Where exactly is measured: the first product is made with
    steps four times apart, the pair that agrees best gives the step (the smaller of the two), and their difference the
    `error`, relative to the product. It holds for vectors like the first one: a vector whose product is much smaller
    carries the same rounding, and `eigenpairs` shows that as asymmetry. A kink within the step (ReLU) counts as
    curvature, as it does on that scale: on a small ReLU net in float32 that was half of a random vector's product and
    3% of lambda_1, and `error` said so.

    Args:
        task, parameters, split: as for `Hessian`.
        step: length h of the move in weight space; None measures it (12 gradients, once).
        order: 2, or 4 for Richardson's extrapolation from h and 2h: twice the cost, and the error is then that of one
            product beside another, h and 2h against 2h and 4h.

    Costs 2 gradients a product (4 with order=4), no memory beside the gradient's. `step` and `error` are NaN before
    the first product; `check()` says what they were. Raises MeasurementError for a step that is not positive, an order
    that is neither 2 nor 4, a gradient that is not finite.
    """

    title = "Hessian by finite differences"

    def __init__(
        self,
        task: Task | Objective,
        parameters: str | Sequence[str] | None = None,
        *,
        split: str = "train",
        step: float | None = None,
        order: int = 2,
    ) -> None:
        if step is not None and not (step > 0 and math.isfinite(step)):
            raise MeasurementError(f"step={step} must be a positive length, or None to measure it")
        if order not in (2, 4):
            raise MeasurementError(f"order={order} must be 2 or 4")
        super().__init__(task, parameters, split=split)
        self.order = order
        self.step = math.nan if step is None else float(step)
        self.error = math.nan

    @property
    def how(self) -> str:
        """How products are made."""
        return f"{2 if self.order == 2 else 4} gradients a product, {self.step:.2g} of weight space apart"

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers should know: of the task, and the step and the error of the differences."""
        said = () if math.isnan(self.error) else (self.check().message,)
        return (*super().notes, *said)

    def check(self) -> Check:
        """Return how exact the products are, as the first one showed."""
        text = f"Hessian products are differences of gradients, step {self.step:.2g}, relative error {self.error:.1e}"
        return Check("finite differences", "pass" if self.error <= ALLOWED else "warn", text, self.error, ALLOWED)

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        """Return H v, on the device and in the dtype of the operator; `v` is (n,) or (n, k)."""
        check_vector(v, self.shape[0])
        columns = v.detach().to(self.device, self.dtype).reshape(self.shape[0], -1)
        products = torch.zeros_like(columns)
        with self, self.objective.holding_statistics():
            try:
                for k in range(columns.shape[1]):
                    size = float(torch.linalg.vector_norm(columns[:, k].double()))
                    if size > 0:
                        unit = columns[:, k] / size
                        if math.isnan(self.error):
                            self._calibrate(unit)
                        products[:, k] = size * self._product(unit, self.step)
            finally:
                self.objective.reset()
        self.products += columns.shape[1]
        return products.reshape(v.shape)

    def _product(self, unit: torch.Tensor, step: float) -> torch.Tensor:
        """Return H u from moves of this length."""
        near = self._difference(unit, step)
        return near if self.order == 2 else (4 * near - self._difference(unit, 2 * step)) / 3

    def _difference(self, unit: torch.Tensor, step: float) -> torch.Tensor:
        objective = self.objective
        live = dict(zip(objective.names, objective.parameters, strict=True))
        parts = dict(zip(self.names, unflatten(unit, [live[name] for name in self.names]), strict=True))
        direction = [parts[n] if n in parts else torch.zeros_like(p) for n, p in live.items()]
        sides = []
        for sign in (1.0, -1.0):
            objective.move([direction], [sign * step])
            found = dict(zip(objective.names, objective.gradient(), strict=True))
            sides.append(flatten([found[name] for name in self.names]))
        product = (sides[0] - sides[1]) / (2 * step)
        if not bool(torch.isfinite(product).all()):
            raise MeasurementError(
                f"the gradient is not finite {step:.2g} from the weights: the loss overflows there; give a smaller step"
            )
        return product

    def _calibrate(self, unit: torch.Tensor) -> None:
        """Choose the step, and estimate the error, from products that should be the same."""
        if math.isnan(self.step):
            own = dict(zip(self.objective.names, self.objective.center, strict=True))
            size = float(torch.linalg.vector_norm(flatten([own[name] for name in self.names]).double()))
            scale = torch.finfo(self.dtype).eps ** (1 / 3) * (size or 1.0)
            steps = [factor * scale for factor in FACTORS]
        else:
            steps = [self.step, 2 * self.step]
        found = [self._product(unit, step) for step in steps]
        errors = []
        for one, other in pairwise(found):
            larger = max(float(one.double().norm()), float(other.double().norm()))
            errors.append(float((one - other).double().norm()) / larger if larger > 0 else 0.0)
        best = min(range(len(errors)), key=errors.__getitem__)
        self.step, self.error = steps[best], errors[best]
