"""The result of a learning-rate range test. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array

#: Divergence over critical rate of gradient descent on a quadratic of one direction, where the rate grows slowly: half
#: of 12.5952, the zero of Re Li2. log |w| changes by log |1 - lambda lr| at each step, and the integral of that over
#: log lr has to come back to 0: a slower growth stretches the fall and the rise alike, and brings them no nearer.
QUADRATIC = 12.595170369845016 / 2


@dataclass(frozen=True, kw_only=True)
class RangeTest(Result, kind="range_test", section="lr_find"):
    """Loss against a learning rate that grows at every step, and where on that way stability ends.

    `critical` is the rate at which the growing rate meets the one whose stability threshold (2 / lr for plain gradient
    descent) equals the largest eigenvalue at the weights of that very step: full-batch steps along the sharpest
    direction grow from there. The loss turns (`best`) soon after, and blows up (`divergence`) later: see `QUADRATIC`.
    `held` and the eigenvalues are of the same samples at every step, without the noise of batches.
    """

    rate: np.ndarray = array("step", coordinate=False, doc="learning rate of each step")
    loss: np.ndarray = array("step", units="loss", doc="loss of each step's batch, before it")
    held: np.ndarray = array("step", units="loss", doc="loss on the same samples before each step")
    stable: np.ndarray = array(
        "step", doc="rate whose threshold is lambda_max before the step; NaN: not measured there"
    )
    lambda_max: np.ndarray = array(
        "step", units="loss / parameter^2", stderr="residual", doc="largest eigenvalue before the step"
    )
    residual: np.ndarray = array("step", units="loss / parameter^2", doc="its residual")
    steepest: float = array(doc="rate at which the loss falls fastest per decade: one to train with")
    best: float = array(doc="rate at the lowest loss: above it steps no longer help")
    divergence: float = array(doc="rate at which the loss had risen by its first value; NaN: it never did")
    critical: float = array(doc="rate that meets the threshold of its own step's weights; NaN: it never did")
    critical_start: float = array(doc="rate whose threshold is lambda_max at the first weights")
    products: int = array(units="products", doc="operator products spent", default=0)
    samples: int = array(doc="samples of held and lambda_max", default=0)
    optimizer: str = ""
    formula: str = ""
    operator: str = "hessian"
    batch: str = ""

    @property
    def turn(self) -> float:
        """The rate at the lowest loss over the critical one; 1: they agree."""
        return self.best / self.critical if self.critical else math.nan

    @property
    def ratio(self) -> float:
        """The divergence point over the critical rate; `QUADRATIC` on a quadratic."""
        return self.divergence / self.critical if self.critical else math.nan

    @property
    def lambda_start(self) -> float:
        """The largest eigenvalue at the first weights."""
        return float(self.lambda_max[0])

    def summary(self) -> dict[str, Any]:
        return {
            "steepest": self.steepest,
            "best": self.best,
            "divergence": self.divergence,
            "critical": self.critical,
            "best_over_critical": self.turn,
            "divergence_over_critical": self.ratio,
            "critical_start": self.critical_start,
            "lambda_start": self.lambda_start,
            "threshold": self.formula,
            "operator": self.operator,
            "samples": int(self.samples),
            "products": int(self.products),
        }
