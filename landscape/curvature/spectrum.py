"""Results of curvature measurements: eigenpairs, and estimates with a standard error. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array, beside


@dataclass(frozen=True, kw_only=True)
class Eigenpairs(Result, kind="eigenvalues", section="curvature"):
    """Eigenvalues at one or both ends of a symmetric operator, each with its residual.

    `values` (k,) are ordered algebraically, largest first (`which="magnitude"`: by |value|; "smallest": smallest
    first); `smallest` holds the other end of `which="both"`, smallest first, else it is empty. `converged` means
    residual <= tol * |lambda_1|, with lambda_1 the eigenvalue of largest magnitude seen; with `stop` "value" it means
    that the eigenvalue itself is within that of its value (proven where an audit was clear, else estimated), and the
    residual may be larger. What the search for missed and repeated eigenvalues found stands in the checks
    "multiplicity" and "multiplicity_smallest"; where it is clear, `bounds` hold how far each eigenvalue can be from
    its value, with the confidence of that check. `vectors` (n, k) and `smallest_vectors` (n, j) are device tensors
    beside the result: they are not archived.
    """

    values: np.ndarray = array("rank", units="loss / parameter^2", doc="eigenvalues, in the order of `which`")
    residuals: np.ndarray = array("rank", units="loss / parameter^2", doc="||A v - lambda v|| of each pair")
    converged: np.ndarray = array("rank", doc="residual <= tol * |lambda_1|; stop='value': the value's own error")
    smallest: np.ndarray = array("rank_smallest", units="loss / parameter^2", doc="the smallest, ascending")
    smallest_residuals: np.ndarray = array("rank_smallest", units="loss / parameter^2", doc="their residuals")
    smallest_converged: np.ndarray = array("rank_smallest", doc="their convergence")
    bounds: np.ndarray | None = array(
        "rank",
        units="loss / parameter^2",
        doc="the eigenvalue is at most this far from its value; NaN: not proven",
        default=None,
    )
    smallest_bounds: np.ndarray | None = array(
        "rank_smallest", units="loss / parameter^2", doc="their bounds", default=None
    )
    complement: float = array(
        units="loss / parameter^2",
        doc="largest Ritz value seen in the orthogonal complement of the pairs returned; NaN if not looked",
        default=math.nan,
    )
    complement_smallest: float = array(
        units="loss / parameter^2", doc="the smallest such Ritz value; NaN if not looked", default=math.nan
    )
    products: int = array(units="products", doc="operator products spent, verification included", default=0)
    parameters: int = array(doc="dimension n of the operator", default=0)
    operator: str = "Hessian"
    which: str = "largest"
    stop: str = "residual"
    split: str = ""
    vectors: Any = beside("torch.Tensor (n, k)")
    smallest_vectors: Any = beside("torch.Tensor (n, j)")

    def summary(self) -> dict[str, Any]:
        return {
            "eigenvalues": self.values.tolist(),
            "residuals": self.residuals.tolist(),
            "converged": [bool(c) for c in self.converged],
            "smallest": self.smallest.tolist(),
            "smallest_residuals": self.smallest_residuals.tolist(),
            "products": int(self.products),
        }


@dataclass(frozen=True, kw_only=True)
class LayerCurvature(Result, kind="layers"):
    """The largest eigenvalue of each layer's own diagonal block of an operator, in the model's order.

    `largest` (layer,) belong to `names`; a block's largest eigenvalue is at most the whole operator's, whose own is
    `whole`. `residuals` and `converged` as in `Eigenpairs`, relative to each block's own |lambda_1|.
    """

    largest: np.ndarray = array("layer", units="loss / parameter^2", doc="largest eigenvalue of the layer's block")
    residuals: np.ndarray = array("layer", units="loss / parameter^2", doc="||A v - lambda v|| of each")
    converged: np.ndarray = array("layer", doc="residual <= tol * |lambda_1|")
    sizes: np.ndarray = array("layer", doc="parameters of each layer")
    whole: float = array(units="loss / parameter^2", doc="largest eigenvalue over all layers together")
    products: int = array(units="products", doc="operator products spent, verification included", default=0)
    operator: str = "Hessian"
    split: str = ""
    names: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        layers = {
            name: {"largest": float(v), "residual": float(r)}
            for name, v, r in zip(self.names, self.largest, self.residuals, strict=True)
        }
        return {"layers": layers, "whole": self.whole, "products": int(self.products)}


@dataclass(frozen=True, kw_only=True)
class Estimate(Result, kind="estimate"):
    """A number with its standard error, from independent random draws."""

    value: float = array(units="loss / parameter^2", stderr="stderr", doc="mean over the draws")
    stderr: float = array(units="loss / parameter^2", doc="standard error of the mean over the draws")
    samples: np.ndarray = array("draw", units="loss / parameter^2", doc="the estimate of each draw")
    products: int = array(units="products", doc="operator products spent", default=0)
    method: str = ""
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class TraceEstimate(Estimate, kind="trace", section="curvature"):
    """The trace of a symmetric operator, estimated from products with random vectors."""

    def summary(self) -> dict[str, Any]:
        return {
            "trace": {"value": self.value, "stderr": self.stderr, "draws": len(self.samples)},
            "products": int(self.products),
        }


@dataclass(frozen=True, kw_only=True)
class SharpnessEstimate(Result, kind="sharpness"):
    """How much the loss rises in a neighbourhood of the weights.

    `values` (kind,) belong to `names` in the same order, and `units` say in what: "loss" (nats for cross entropy), or
    "%" of 1 + loss. `stderr` is over batches (worst-case kinds) or over draws (average kinds), NaN where there is one
    maximum only. `rescaling` says for each whether a rescaling of ReLU layers, which leaves the function as it is,
    changes the number.
    """

    values: np.ndarray = array("measure", units="loss", stderr="stderr", doc="rise of the loss")
    stderr: np.ndarray = array("measure", units="loss", doc="standard error over batches or draws")
    rho: np.ndarray = array("measure", doc="radius of the neighbourhood, in each measure's own norm")
    rescaling: np.ndarray = array("measure", doc="True: changed by a rescaling of ReLU layers")
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    split: str = ""

    def summary(self) -> dict[str, Any]:
        return {
            name: {
                "value": float(self.values[i]),
                "stderr": None if math.isnan(self.stderr[i]) else float(self.stderr[i]),
                "rho": float(self.rho[i]),
                "rescaling_changes_it": bool(self.rescaling[i]),
            }
            for i, name in enumerate(self.names)
        }


@dataclass(frozen=True, kw_only=True)
class ScaledCurvature(Result, kind="scaled_curvature", section="sharpness"):
    """Largest eigenvalue, trace and Frobenius norm of the Hessian H, and of S H S with the filters' norms in S.

    `values` (measure,) belong to `names`: "lambda_max", "trace", "frobenius", and the same with "_filter" for S H S.
    `stderr` is over draws; for the eigenvalues it is the residual. `units` say "loss / parameter^2" for H and "loss"
    for S H S, whose perturbations are shares of each filter's norm. `rescaling` as in `SharpnessEstimate`.
    """

    values: np.ndarray = array("measure", stderr="stderr", doc="measures of curvature, in their own units")
    stderr: np.ndarray = array("measure", doc="standard error over draws; the residual of an eigenvalue")
    rescaling: np.ndarray = array("measure", doc="True: changed by a rescaling of ReLU layers")
    products: int = array(units="products", doc="operator products spent", default=0)
    names: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    split: str = ""

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: {
                "value": float(self.values[i]),
                "stderr": float(self.stderr[i]),
                "rescaling_changes_it": bool(self.rescaling[i]),
            }
            for i, name in enumerate(self.names)
        }
        return {**found, "products": int(self.products)}
