"""Results about the ground around the weights: eigenvalues over a plane, and the basin along random rays. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array


@dataclass(frozen=True, kw_only=True)
class EigenvalueMap(Result, kind="eigenvalue_map", section="eigenvalue_map"):
    """Largest and smallest Hessian eigenvalue at each point of a plane, [alpha, beta] (Li et al. 2018, section 6).

    Where |lambda_min / lambda_max| is near 0 the loss is as good as convex; what a slice hides, this shows. Each
    eigenvalue has its residual ||Hv - lambda v||; `converged` means that both are within the tolerance. Points whose
    loss or curvature is not finite are NaN.
    """

    alpha: np.ndarray = array("alpha", units="step along d1", coordinate=True, doc="step along d1")
    beta: np.ndarray = array("beta", units="step along d2", coordinate=True, doc="step along d2")
    largest: np.ndarray = array("alpha", "beta", units="loss / parameter^2", doc="largest eigenvalue of the Hessian")
    smallest: np.ndarray = array("alpha", "beta", units="loss / parameter^2", doc="smallest eigenvalue of the Hessian")
    largest_residual: np.ndarray = array("alpha", "beta", units="loss / parameter^2", doc="residual of the largest")
    smallest_residual: np.ndarray = array("alpha", "beta", units="loss / parameter^2", doc="residual of the smallest")
    converged: np.ndarray = array("alpha", "beta", doc="both residuals within tol * |lambda_1|")
    products: np.ndarray = array("alpha", "beta", units="products", doc="Hessian-vector products spent at the point")
    loss: np.ndarray | None = array("alpha", "beta", units="loss", doc="mean loss over the samples", default=None)
    cosine: float = array(doc="cosine of the angle between d1 and d2", default=math.nan)
    direction_norms: np.ndarray = array("direction", units="||theta||_2 units", doc="Euclidean norms of d1 and d2")
    samples: int = array(doc="number of samples", default=0)
    parameters: int = array(doc="number of parameters that the Hessian is taken in", default=0)
    split: str = "train"
    directions: tuple[str, str] = ("", "")
    seeds: tuple[int | None, int | None] = (None, None)
    batchnorm: str = "eval"

    @property
    def ratio(self) -> np.ndarray:
        """|lambda_min / lambda_max| at each point; NaN where it is not known."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.abs(self.smallest / self.largest)

    def summary(self) -> dict[str, Any]:
        known = self.ratio[np.isfinite(self.ratio)]
        return {
            "points": int(self.largest.size),
            "converged": int(np.sum(self.converged)),
            "largest_ratio": float(known.max()) if len(known) else math.nan,
            "median_ratio": float(np.median(known)) if len(known) else math.nan,
            "products": int(np.sum(self.products)),
        }
