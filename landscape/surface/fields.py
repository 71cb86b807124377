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


@dataclass(frozen=True, kw_only=True)
class Basin(Result, kind="basin", section="basin"):
    """The basin around the weights along random lines: widths, volume and roughness, with their spread over lines.

    A step of 1 moves each filter by about its own norm. `radius` is the first step at which the loss has risen by
    `rise`, on each side of each line (NaN: not up to the limit); `width` the mean of both radii together. Volumes are
    natural logarithms, in units in which every filter has the root mean square 1 and `dimensions` weights move;
    `log_volume_bound` is a lower bound of the true one. What exactly is estimated: `landscape.surface.basin.basin`.
    """

    ray: np.ndarray = array("ray", coordinate=True, doc="number of the line")
    rise: np.ndarray = array("rise", units="loss", coordinate=True, doc="rise of the loss")
    step: np.ndarray = array("step", units="step along d", coordinate=True, doc="step along the line")
    loss: np.ndarray = array("ray", "step", units="loss", doc="mean loss over the samples")
    radius: np.ndarray = array(
        "ray", "side", "rise", units="step along d", doc="first step of that rise; - side, + side"
    )
    width: np.ndarray = array("rise", units="step along d", stderr="width_stderr", doc="mean over the lines")
    width_stderr: np.ndarray = array("rise", units="step along d", doc="standard error over the lines")
    width_spread: np.ndarray = array("rise", units="step along d", doc="standard deviation over the lines")
    log_volume: np.ndarray = array(
        "rise", units="nats", stderr="log_volume_stderr", doc="log volume; a lower estimate where few lines rule it"
    )
    log_volume_stderr: np.ndarray = array("rise", units="nats", doc="jackknife over the lines")
    log_volume_bound: np.ndarray = array(
        "rise", units="nats", stderr="log_volume_bound_stderr", doc="lower bound of the log volume (Jensen)"
    )
    log_volume_bound_stderr: np.ndarray = array("rise", units="nats", doc="standard error over the lines")
    effective_rays: np.ndarray = array("rise", doc="lines that count in the volume")
    roughness: float = array(
        stderr="roughness_stderr", doc="total variation over that of the least valley, minus 1; mean over the lines"
    )
    roughness_stderr: float = array(doc="standard error over the lines", default=math.nan)
    roughness_spread: float = array(doc="standard deviation over the lines", default=math.nan)
    line_roughness: np.ndarray = array("ray", doc="roughness of each line")
    normalized_variation: np.ndarray = array("ray", doc="total variation over range of each line")
    extremes: np.ndarray = array("ray", doc="local extremes inside each line")
    dimensions: int = array(doc="number of weights that move", default=0)
    samples: int = array(doc="number of samples", default=0)
    split: str = "train"
    seed: int | None = None
    batchnorm: str = "eval"

    def summary(self) -> dict[str, Any]:
        return {
            "widths": [
                {"rise": float(r), "value": float(w), "stderr": float(e), "spread": float(s)}
                for r, w, e, s in zip(self.rise, self.width, self.width_stderr, self.width_spread, strict=True)
            ],
            "log_volume_bound_per_weight": [float(v) / max(1, self.dimensions) for v in self.log_volume_bound],
            "roughness": {"value": self.roughness, "stderr": self.roughness_stderr, "spread": self.roughness_spread},
            "lines": len(self.ray),
        }
