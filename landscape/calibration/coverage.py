"""The result of judging predicted quantiles: how often targets lie below each, and the pinball loss. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import f as fisher

from ..grouped import shares
from ..results import Result, array


@dataclass(frozen=True, kw_only=True)
class QuantileCoverage(Result, kind="quantile_coverage", section="calibration"):
    """Calibration of a regression that predicts quantiles: does a target lie below that of level q as often as q says?

    `frequency` has one entry a level, `pinball` the pinball loss max(q e, (q - 1) e) of the error e = target -
    prediction. Levels q and 1 - q that are both there make a central interval, which should hold a share 1 - 2 q of the
    targets. Intervals and errors are over the samples: the horizons or outputs of one depend on each other.
    """

    coverage_error: float = array(
        units="share", doc="mean distance of frequency and level over the levels, as it is (biased upward)"
    )
    calibration_p_value: float = array(
        doc="p-value of right quantiles showing frequencies this far from all their levels (Hotelling's test over the "
        "samples); NaN for too few samples"
    )
    mean_pinball: float = array(units="target", stderr="mean_pinball_stderr", doc="mean pinball loss over the levels")
    mean_pinball_stderr: float = array(units="target", doc="standard error over the samples")
    crossing: float = array(units="share", doc="share of the predictions whose quantiles are out of order")
    level: np.ndarray = array("level", units="share", coordinate=True, doc="levels of the predicted quantiles")
    frequency: np.ndarray = array(
        "level", units="share", interval="frequency_interval", doc="share of targets at or below each quantile"
    )
    frequency_interval: np.ndarray = array("level", "bound", units="share", doc="95% interval over the samples")
    pinball: np.ndarray = array("level", units="target", stderr="pinball_stderr", doc="pinball loss of each level")
    pinball_stderr: np.ndarray = array("level", units="target", doc="standard error over the samples")
    nominal: np.ndarray = array(
        "central", units="share", coordinate=True, doc="share that each central interval should hold"
    )
    coverage: np.ndarray = array(
        "central", units="share", interval="coverage_interval", doc="share of targets within each central interval"
    )
    coverage_interval: np.ndarray = array("central", "bound", units="share", doc="95% interval over the samples")
    width: np.ndarray = array("central", units="target", doc="mean width of each central interval (sharpness)")
    predictions: int = array(doc="targets with their quantiles")
    samples: int = array(doc="groups of dependent predictions")
    split: str = ""
    fingerprint: str = field(default="", metadata={"doc": "of the split's draw"})

    def summary(self) -> dict[str, Any]:
        return {
            "coverage_error": self.coverage_error,
            "calibration_p_value": self.calibration_p_value,
            "mean_pinball": self.mean_pinball,
            "mean_pinball_stderr": self.mean_pinball_stderr,
            "crossing": self.crossing,
            "levels": self.level.tolist(),
            "frequency": self.frequency.tolist(),
            "frequency_ci": self.frequency_interval.tolist(),
            "nominal": self.nominal.tolist(),
            "coverage": self.coverage.tolist(),
            "coverage_ci": self.coverage_interval.tolist(),
            "width": self.width.tolist(),
        }


def judge_quantiles(
    level: np.ndarray, quantiles: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """Return the numbers of a QuantileCoverage: rising levels (q,), quantiles (n, q), targets (n,), groups (n,) from 0.

    Koenker and Bassett 1978, doi:10.2307/1913643 (the pinball loss); intervals as in `grouped.shares`; Hotelling 1931,
    doi:10.1214/aoms/1177732979, of the samples' own mean deviations. Float64; cost O(n q).
    """
    size = np.bincount(groups)
    error = targets[:, None] - quantiles
    below = error <= 0
    pinball = np.maximum(level * error, (level - 1) * error)

    def summed(x: np.ndarray) -> np.ndarray:
        """Return the sums over each group, (groups, k)."""
        return np.stack([np.bincount(groups, column) for column in x.T.astype(np.float64)], axis=1)

    many = len(level)
    ends = [(i, j) for i in range(many) for j in range(i + 1, many) if abs(level[i] + level[j] - 1) < 1e-6]
    inside = [(targets >= quantiles[:, i]) & (targets <= quantiles[:, j]) for i, j in ends]
    counts = summed(below)
    frequency, bounds = shares(counts, np.repeat(size[:, None], many, axis=1))
    covered = (
        shares(summed(np.stack(inside, axis=1)), np.repeat(size[:, None], len(ends), axis=1))
        if ends
        else (np.empty(0), np.empty((0, 2)))
    )
    loss, mean = pinball.mean(axis=0), pinball.mean(axis=1)
    return {
        "coverage_error": float(np.abs(frequency - level).mean()),
        "calibration_p_value": _hotelling(counts - size[:, None] * level),
        "mean_pinball": float(loss.mean()),
        "mean_pinball_stderr": float(_error(summed(mean[:, None]), size, loss.mean())[0]),
        "crossing": float((np.diff(quantiles, axis=1) < 0).any(axis=1).mean()),
        "level": level,
        "frequency": frequency,
        "frequency_interval": bounds,
        "pinball": loss,
        "pinball_stderr": _error(summed(pinball), size, loss),
        "nominal": np.array([level[j] - level[i] for i, j in ends]),
        "coverage": covered[0],
        "coverage_interval": covered[1],
        "width": np.array([(quantiles[:, j] - quantiles[:, i]).mean() for i, j in ends]),
        "predictions": len(targets),
        "samples": len(size),
    }


def _error(sums: np.ndarray, size: np.ndarray, mean: Any) -> np.ndarray:
    """Return the standard error of means over all rows from the sums of each group (a ratio, linearized)."""
    n = len(size)
    if n < 2:
        return np.full(sums.shape[1], np.nan)
    off = sums - size[:, None] * mean
    return np.sqrt(n / (n - 1) * np.square(off).sum(axis=0)) / size.sum()


def _hotelling(off: np.ndarray) -> float:
    """Return the p-value of all columns of `off` (groups, k) having mean 0; NaN where that can't be told."""
    n, k = off.shape
    if n <= k + 1:
        return np.nan
    mean, covariance = off.mean(axis=0), np.atleast_2d(np.cov(off.T))
    if np.linalg.matrix_rank(covariance) < k:
        return np.nan
    t2 = n * float(mean @ np.linalg.solve(covariance, mean))
    return float(fisher.sf(t2 * (n - k) / (k * (n - 1)), k, n - k))
