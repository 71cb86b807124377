"""Results of stability measurements: an optimizer's threshold, and how far a checkpoint is from it. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array


@dataclass(frozen=True, kw_only=True)
class StabilityThreshold(Result, kind="stability_threshold"):
    """The largest eigenvalue at which an optimizer's steps on a quadratic do not grow.

    `operator` says whose eigenvalue: "hessian", or "preconditioned", the symmetric R^1/2 (H + W) R^1/2 of
    `landscape.curvature.preconditioned.Preconditioned`. `defined` is False where there is no such number
    (`threshold` is then NaN), and `notes` say why.
    """

    threshold: float = array(units="loss / parameter^2", doc="largest stable eigenvalue; NaN: not defined")
    lr: float = array(doc="learning rate (the largest of the groups')", default=math.nan)
    operator: str = "hessian"
    formula: str = ""
    optimizer: str = ""
    defined: bool = True

    def summary(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "operator": self.operator,
            "formula": self.formula,
            "lr": self.lr,
            "optimizer": self.optimizer,
            "defined": self.defined,
        }


@dataclass(frozen=True, kw_only=True)
class Stability(Result, kind="stability"):
    """How far the sharpest direction is from the threshold of the optimizer that trained the model.

    `ratio` = eigenvalue / threshold: 1 is the edge of stability, above it full-batch steps along the sharpest
    direction grow. Operator, formula and optimizer as in `StabilityThreshold`.
    """

    eigenvalue: float = array(units="loss / parameter^2", stderr="residual", doc="largest eigenvalue of the operator")
    residual: float = array(units="loss / parameter^2", doc="||A v - lambda v|| of that eigenpair")
    threshold: float = array(units="loss / parameter^2", doc="largest stable eigenvalue")
    ratio: float = array(doc="eigenvalue / threshold; 1 is the edge of stability")
    lr: float = array(doc="learning rate (the largest of the groups')")
    products: int = array(units="products", doc="operator products spent", default=0)
    operator: str = "hessian"
    formula: str = ""
    optimizer: str = ""
    split: str = ""

    def summary(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "eigenvalue": self.eigenvalue,
            "residual": self.residual,
            "threshold": self.threshold,
            "operator": self.operator,
            "formula": self.formula,
            "lr": self.lr,
            "optimizer": self.optimizer,
            "products": int(self.products),
        }


@dataclass(frozen=True, kw_only=True)
class BatchSharpness(Result, kind="batch_sharpness", section="stability"):
    """E[g_B^T H_B g_B] / E||g_B||^2 over batches B: the curvature that a step of SGD meets on its own batch."""

    value: float = array(units="loss / parameter^2", stderr="stderr", doc="ratio of the two means over batches")
    stderr: float = array(units="loss / parameter^2", doc="standard error over batches, linearized")
    threshold: float = array(units="loss / parameter^2", doc="2 / lr; NaN where no learning rate is known")
    batches: int = array(doc="batches that the means are over")
    batch: int = array(units="samples", doc="size of the batches")
    lr: float = array(doc="learning rate; NaN where none is known", default=math.nan)
    products: int = array(units="products", doc="operator products spent", default=0)
    split: str = ""

    def summary(self) -> dict[str, Any]:
        return {
            "batch_sharpness": {
                "value": self.value,
                "stderr": None if math.isnan(self.stderr) else self.stderr,
                "threshold": None if math.isnan(self.threshold) else self.threshold,
                "batch": int(self.batch),
            },
            "products": int(self.products),
        }


@dataclass(frozen=True, kw_only=True)
class Coherence(Result, kind="coherence", section="stability"):
    """How alike the samples' own curvatures are, and the eigenvalue from which on SGD diverges in mean square.

    sigma = lambda_1(S) / max_i lambda_1(H_i) with S_ij = ||H_i^1/2 H_j^1/2||_F = sqrt(tr H_i H_j); H_i is sample i's
    Gauss-Newton matrix, and H their mean. It grows with the number of samples: for `population` of them it is taken
    as sigma * population / samples.
    """

    sigma: float = array(stderr="stderr", doc="coherence of the samples; 1 to their number for rank-one H_i")
    stderr: float = array(doc="standard error over samples (jackknife over groups of them)")
    eigenvalue: float = array(units="loss / parameter^2", doc="lambda_1(H), exact over these samples")
    threshold: float = array(
        units="loss / parameter^2",
        doc="min(2, sigma_n / sqrt(n/B - 1)) / lr with n the population; NaN where no learning rate is known",
    )
    largest: np.ndarray = array("sample", units="loss / parameter^2", doc="lambda_1(H_i) of each sample")
    samples: int = array(units="samples", doc="samples that sigma is over")
    population: int = array(units="samples", doc="n, the samples that the steps draw from")
    batch: int = array(units="samples", doc="B, the batch size of the steps")
    lr: float = array(doc="learning rate; NaN where none is known", default=math.nan)
    split: str = ""

    def summary(self) -> dict[str, Any]:
        known = not math.isnan(self.threshold)
        return {
            "coherence": {
                "sigma": self.sigma,
                "stderr": None if math.isnan(self.stderr) else self.stderr,
                "eigenvalue": self.eigenvalue,
                "threshold": self.threshold if known else None,
                "samples": int(self.samples),
                "population": int(self.population),
                "batch": int(self.batch),
            }
        }
