"""Results of slicing the loss along one or two directions. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array


@dataclass(frozen=True, kw_only=True)
class Line(Result, kind="line", section="line"):
    """The loss (and accuracy, where there are labels) at theta + alpha * d for each alpha.

    Losses that are not finite are kept as they are. `center_loss` is evaluated at alpha = 0 even when 0 is not on the
    grid, and `checkpoint_loss` comes from a separate pass before any weight was touched. `seed` is None for a direction
    that was not drawn; `batchnorm` is the policy for running statistics ("none" for a model without any). `terms` are
    the terms of the loss and the further criteria, named by `term_names`. `slope` and `curvature` are exact, from
    derivatives at the checkpoint, and `bend` says how far the line leaves their parabola beside the centre.
    """

    alpha: np.ndarray = array("alpha", units="step along d", coordinate=True, doc="step along d")
    loss: np.ndarray = array("alpha", units="loss", doc="mean loss over the samples")
    accuracy: np.ndarray | None = array("alpha", units="share", doc="share of right labels", default=None)
    held_out_loss: np.ndarray | None = array("alpha", units="loss", doc="mean loss on the other split", default=None)
    held_out_accuracy: np.ndarray | None = array(
        "alpha", units="share", doc="share of right labels on the other split", default=None
    )
    terms: np.ndarray | None = array("term", "alpha", units="loss", doc="terms and further criteria", default=None)
    center_loss: float = array(units="loss", doc="loss at alpha = 0")
    checkpoint_loss: float = array(units="loss", stderr="loss_stderr", doc="loss of the checkpoint")
    loss_stderr: float = array(units="loss", doc="standard error over the samples", default=math.nan)
    direction_norm: float = array(units="||theta||_2 units", doc="Euclidean norm of d")
    slope: float = array(units="loss / step", doc="gradient . d at the checkpoint", default=math.nan)
    curvature: float = array(units="loss / step^2", doc="d^T H d at the checkpoint", default=math.nan)
    bend: float = array(units="share of the rise", doc="departure from the quadratic model nearby", default=math.nan)
    samples: int = array(doc="number of samples", default=0)
    split: str = "train"
    direction: str = ""
    term_names: tuple[str, ...] = ()
    seed: int | None = None
    batchnorm: str = "eval"

    def summary(self) -> dict[str, Any]:
        return {"center_loss": self.center_loss, "points": len(self.loss)}


@dataclass(frozen=True, kw_only=True)
class Plane(Result, kind="plane", section="surface"):
    """The loss (and accuracy) at theta + alpha * d1 + beta * d2; index order is [alpha, beta] everywhere.

    `evaluated` marks the points where the loss was computed; the others are interpolated, on the logarithm of the loss
    (`scale` "log", or "asinh" of loss / `scale_width` where a loss is 0 or below). `error` is the stated maximum of
    their errors and `error_p95` the bound on their 95th percentile (95% confidence), as shares of the range of that
    scale; `deviation` is the typical error at each point. Losses that are not finite are kept as they are.

    `center_loss` is evaluated at (0, 0) even when it is not on the grid, and `checkpoint_loss` comes from a separate
    pass before any weight was touched. `slopes` and `curvatures` are exact, from derivatives at the checkpoint, and
    `bend` says how far the plane leaves their paraboloid beside the centre. `terms` are the terms of the loss and the
    further criteria, named by `term_names`. A seed is None for a direction that was not drawn; `batchnorm` is the
    policy for running statistics ("none" for a model without any).
    """

    alpha: np.ndarray = array("alpha", units="step along d1", coordinate=True, doc="step along d1")
    beta: np.ndarray = array("beta", units="step along d2", coordinate=True, doc="step along d2")
    loss: np.ndarray = array("alpha", "beta", units="loss", doc="mean loss over the samples")
    accuracy: np.ndarray | None = array("alpha", "beta", units="share", doc="share of right labels", default=None)
    held_out_loss: np.ndarray | None = array(
        "alpha", "beta", units="loss", doc="mean loss on the other split", default=None
    )
    held_out_accuracy: np.ndarray | None = array(
        "alpha", "beta", units="share", doc="share of right labels on the other split", default=None
    )
    terms: np.ndarray | None = array(
        "term", "alpha", "beta", units="loss", doc="terms and further criteria", default=None
    )
    evaluated: np.ndarray = array("alpha", "beta", doc="True where the loss was computed")
    center_loss: float = array(units="loss", doc="loss at alpha = beta = 0")
    checkpoint_loss: float = array(units="loss", stderr="loss_stderr", doc="loss of the checkpoint")
    loss_stderr: float = array(units="loss", doc="standard error over the samples", default=math.nan)
    deviation: np.ndarray | None = array(
        "alpha", "beta", units="share of the range", doc="typical interpolation error", default=None
    )
    error: float = array(
        units="share of the range", doc="stated maximum interpolation error; 0 on a full grid", default=0.0
    )
    error_p95: float = array(
        units="share of the range", doc="bound on the 95th percentile of the interpolation error", default=0.0
    )
    cosine: float = array(doc="cosine of the angle between d1 and d2")
    direction_norms: np.ndarray = array("direction", doc="Euclidean norms of d1 and d2")
    slopes: np.ndarray | None = array(
        "direction", units="loss / step", doc="gradient . d at the checkpoint", default=None
    )
    curvatures: np.ndarray | None = array(
        "direction", "direction", units="loss / step^2", doc="d^T H d at the checkpoint", default=None
    )
    bend: float = array(units="share of the rise", doc="departure from the quadratic model nearby", default=math.nan)
    samples: int = array(doc="number of samples", default=0)
    split: str = "train"
    directions: tuple[str, str] = ("", "")
    scale: str = "log"
    scale_width: float = 1.0
    term_names: tuple[str, ...] = ()
    seeds: tuple[int | None, int | None] = (None, None)
    batchnorm: str = "eval"

    def summary(self) -> dict[str, Any]:
        return {
            "center_loss": self.center_loss,
            "checkpoint_loss": self.checkpoint_loss,
            "evaluated": int(np.sum(self.evaluated)),
            "points": int(self.loss.size),
            "error": self.error,
            "error_p95": self.error_p95,
            "status": self.status,
            "cosine": self.cosine,
            "finite": int(np.isfinite(self.loss).sum()),
        }
