"""Results of random estimates: Frobenius norm, diagonal, spectral density, and how far numbers move with the data.

No torch here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array, beside
from .spectrum import Estimate


@dataclass(frozen=True, kw_only=True)
class NormEstimate(Estimate, kind="frobenius", section="curvature"):
    """The Frobenius norm of a symmetric operator: the square root of the mean of ||A v||^2 over random vectors."""

    stderr: float = array(units="loss / parameter^2", doc="standard error, by the delta method")
    samples: np.ndarray = array("draw", units="loss^2 / parameter^4", doc="||A v||^2 of each draw")

    def summary(self) -> dict[str, Any]:
        return {
            "frobenius": {"value": self.value, "stderr": self.stderr, "draws": len(self.samples)},
            "products": int(self.products),
        }


@dataclass(frozen=True, kw_only=True)
class DiagonalEstimate(Result, kind="diagonal"):
    """The diagonal of a symmetric operator, summed over each of its parameter tensors.

    `sums` (layer,) belong to `names`, the parameter tensors in the operator's order; their standard errors are over
    the draws' own sums, so that the correlation of the entries is in them. `quantiles` (layer, 5) are those of the
    estimated entries (least, quarter, middle, three quarters, largest): their spread holds the noise of the
    estimate, which `noise` (layer,) gives as the root mean square of the entries' standard errors. `diagonal` (n,)
    and `stderr` (n,) are tensors beside the result: they are not archived.
    """

    sums: np.ndarray = array("layer", units="loss / parameter^2", stderr="sums_stderr", doc="sum of the entries")
    sums_stderr: np.ndarray = array("layer", units="loss / parameter^2", doc="standard error over the draws")
    sizes: np.ndarray = array("layer", doc="entries of each parameter tensor")
    quantiles: np.ndarray = array(
        "layer", "quantile", units="loss / parameter^2", doc="of the estimated entries: 0, 1/4, 1/2, 3/4, 1"
    )
    noise: np.ndarray = array("layer", units="loss / parameter^2", doc="root mean square standard error of an entry")
    relative_error: float = array(doc="norm of the entries' standard errors over the norm of the diagonal")
    trace: float = array(units="loss / parameter^2", stderr="trace_stderr", doc="sum of the diagonal")
    trace_stderr: float = array(units="loss / parameter^2", doc="standard error over the draws")
    products: int = array(units="products", doc="operator products spent", default=0)
    names: tuple[str, ...] = ()
    method: str = "hutchinson"
    split: str = ""
    diagonal: Any = beside("torch.Tensor (n,), float64")
    stderr: Any = beside("torch.Tensor (n,), float64")

    def summary(self) -> dict[str, Any]:
        layers = {
            name: {"sum": float(s), "stderr": float(e), "mean": float(s / k)}
            for name, s, e, k in zip(self.names, self.sums, self.sums_stderr, self.sizes, strict=True)
        }
        return {"layers": layers, "relative_error": self.relative_error, "products": int(self.products)}


@dataclass(frozen=True, kw_only=True)
class SpectralDensity(Result, kind="density"):
    """The eigenvalue density of a symmetric operator by stochastic Lanczos quadrature.

    `nodes` and `weights` (draw, node) are the quadrature of each random start (a rule that ended early, on an
    invariant subspace, is filled up with NaN nodes of weight 0). `density` (grid,) is the mean over the draws of the
    rules smoothed with the kernel, normalized to the share of eigenvalues per unit; `stderr` is its standard error
    over the draws, and `band` (grid, 2) the interval that follows from it on the logarithm (so that it stays
    positive), with Student's t for `confidence`. The band is about the random starts: it says nothing about the
    width of the kernel, nor (that is the check "steps") about the number of steps.
    """

    grid: np.ndarray = array("grid", units="loss / parameter^2", doc="eigenvalue", coordinate=True)
    density: np.ndarray = array(
        "grid", units="parameter^2 / loss", stderr="stderr", doc="share of eigenvalues per unit, smoothed"
    )
    stderr: np.ndarray = array("grid", units="parameter^2 / loss", doc="standard error over the draws")
    band: np.ndarray = array("grid", "bound", units="parameter^2 / loss", doc="interval over the draws")
    nodes: np.ndarray = array("draw", "node", units="loss / parameter^2", doc="nodes of each draw's quadrature")
    weights: np.ndarray = array("draw", "node", doc="weights of each draw's quadrature; they sum to 1")
    sigma: float = array(units="loss / parameter^2", doc="standard deviation of the Gaussian kernel")
    trace: float = array(units="loss / parameter^2", stderr="trace_stderr", doc="sum of the eigenvalues")
    trace_stderr: float = array(units="loss / parameter^2", doc="standard error over the draws")
    frobenius: float = array(units="loss / parameter^2", stderr="frobenius_stderr", doc="Frobenius norm")
    frobenius_stderr: float = array(units="loss / parameter^2", doc="standard error, by the delta method")
    negative: float = array(stderr="negative_stderr", doc="share of sum |lambda| that is below zero")
    negative_stderr: float = array(doc="standard error over the draws, by the delta method")
    largest: float = array(units="loss / parameter^2", doc="largest node")
    smallest: float = array(units="loss / parameter^2", doc="smallest node")
    products: int = array(units="products", doc="operator products spent", default=0)
    parameters: int = array(doc="dimension n of the operator", default=0)
    kernel: str = "gaussian"
    confidence: float = 0.95
    operator: str = "Hessian"
    split: str = ""

    def moment(self, order: int) -> tuple[float, float]:
        """Return (sum of lambda^order over all eigenvalues, its standard error over the draws).

        Each draw's rule gives v^T A^order v for its own start v exactly while order <= 2 steps - 1.
        """
        nodes, weights = np.asarray(self.nodes, dtype=float), np.asarray(self.weights, dtype=float)
        draws = self.parameters * np.where(weights > 0, weights * np.nan_to_num(nodes) ** order, 0.0).sum(axis=1)
        count = len(draws)
        return float(draws.mean()), float(draws.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan

    def summary(self) -> dict[str, Any]:
        return {
            "trace": {"value": self.trace, "stderr": self.trace_stderr},
            "frobenius": {"value": self.frobenius, "stderr": self.frobenius_stderr},
            "negative": {"value": self.negative, "stderr": self.negative_stderr},
            "largest": self.largest,
            "smallest": self.smallest,
            "sigma": self.sigma,
            "kernel": self.kernel,
            "draws": len(self.nodes),
            "products": int(self.products),
        }


@dataclass(frozen=True, kw_only=True)
class SamplingError(Result, kind="sampling"):
    """How far numbers move with the data that they were measured on.

    Everything is (number,), in the order of `names`: `values` as measured on the draw of `samples`; `bias`, how far
    such a draw lies above the target on average, with half the range of its estimates; `stderr`, the standard
    error of drawing other samples; `own`, what the measurement itself may be off by. The target is the value on
    `population` samples (inf: on ever more samples from the same source). `interval` (number, 2) holds it with
    `confidence`, all errors added; `estimates` are the values less their bias where that is `resolved`, else the
    values as they are: then `calls` says "upper estimate" (or "lower estimate") instead of "estimate".
    `sizes`, `means` and `spreads` are what it rests on: the mean and the standard deviation of each number over
    disjoint parts of the draw. `measured` is the measurement's own result on the whole draw.
    """

    values: np.ndarray = array("number", doc="as measured on the draw")
    estimates: np.ndarray = array("number", interval="interval", doc="values less their bias, where it is resolved")
    interval: np.ndarray = array("number", "bound", doc="where the target's value lies")
    bias: np.ndarray = array("number", doc="how far a draw of this size lies above the target on average")
    bias_error: np.ndarray = array("number", doc="half the range of the bias")
    stderr: np.ndarray = array("number", doc="standard error of drawing other samples")
    own: np.ndarray = array("number", doc="half-width of the measurement's own error")
    error: np.ndarray = array("number", doc="half-width of all errors together, as a share of the scale")
    resolved: np.ndarray = array("number", doc="whether the bias is resolved")
    sizes: np.ndarray = array("level", units="samples", doc="samples in each part", coordinate=False)
    parts: np.ndarray = array("level", doc="disjoint parts measured")
    means: np.ndarray = array("level", "number", doc="mean over the parts")
    spreads: np.ndarray = array("level", "number", doc="standard deviation over the parts")
    samples: int = array(units="samples", doc="samples in the draw", default=0)
    population: float = array(units="samples", doc="samples that the target is taken over; inf: the source itself")
    work: float = array(doc="samples measured, all parts together, over those of the whole data", default=math.nan)
    names: tuple[str, ...] = ()
    confidence: float = 0.95
    split: str = ""
    measured: Any = beside("what the measurement returned on the whole draw")

    @property
    def calls(self) -> tuple[str, ...]:
        """What each number may be called: "estimate", or "upper estimate" where its bias can't be resolved."""
        side = np.where(np.asarray(self.bias) >= 0, "upper estimate", "lower estimate")
        return tuple("estimate" if r else str(s) for r, s in zip(np.ravel(self.resolved), side, strict=True))

    def summary(self) -> dict[str, Any]:
        numbers = {
            name: {
                "value": float(self.values[i]),
                "estimate": float(self.estimates[i]),
                "interval": [float(x) for x in self.interval[i]],
                "bias": float(self.bias[i]),
                "stderr": float(self.stderr[i]),
                "error": float(self.error[i]),
                "call": self.calls[i],
            }
            for i, name in enumerate(self.names)
        }
        return {**numbers, "samples": int(self.samples), "population": float(self.population)}
