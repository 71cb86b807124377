"""The result of a learning-rate range test. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array


@dataclass(frozen=True, kw_only=True)
class RangeTest(Result, kind="range_test", section="lr_find"):
    """Loss against a learning rate that grows at every step, and where stability ends by the largest eigenvalue.

    `critical_start` and `critical_best` are the rates whose stability threshold (2 / lr for plain gradient descent)
    equals the largest eigenvalue of the training loss at the first weights, and at those of the lowest loss: full-batch
    steps along the sharpest direction grow above them. NaN where it isn't defined (Adam before its first step).
    """

    rate: np.ndarray = array("step", coordinate=False, doc="learning rate of each step")
    loss: np.ndarray = array("step", units="loss", doc="training loss at each step, before it")
    smoothed: np.ndarray = array("step", units="loss", doc="the same, averaged over past steps")
    steepest: float = array(doc="rate at which the smoothed loss falls fastest per decade: one to train with")
    best: float = array(doc="rate at the lowest smoothed loss: above it steps no longer help")
    divergence: float = array(doc="rate at which the smoothed loss had grown to 4 times its lowest; NaN: it never did")
    lambda_start: float = array(units="loss / parameter^2", stderr="residual_start", doc="largest eigenvalue, at first")
    residual_start: float = array(units="loss / parameter^2", doc="its residual")
    lambda_best: float = array(
        units="loss / parameter^2", stderr="residual_best", doc="largest eigenvalue, at the lowest loss"
    )
    residual_best: float = array(units="loss / parameter^2", doc="its residual")
    critical_start: float = array(doc="rate whose threshold is lambda_start")
    critical_best: float = array(doc="rate whose threshold is lambda_best")
    products: int = array(units="products", doc="operator products spent", default=0)
    optimizer: str = ""
    formula: str = ""
    operator: str = "hessian"
    batch: str = ""

    @property
    def ratio(self) -> float:
        """The divergence point over the threshold's rate at the lowest loss; 1: they agree."""
        return self.divergence / self.critical_best if self.critical_best else math.nan

    def summary(self) -> dict[str, Any]:
        return {
            "steepest": self.steepest,
            "best": self.best,
            "divergence": self.divergence,
            "lambda_start": self.lambda_start,
            "lambda_best": self.lambda_best,
            "critical_start": self.critical_start,
            "critical_best": self.critical_best,
            "ratio": self.ratio,
            "threshold": self.formula,
            "operator": self.operator,
            "products": int(self.products),
        }
