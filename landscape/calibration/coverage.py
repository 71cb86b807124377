"""The result of judging predicted quantiles: how often targets lie below each, and the pinball loss. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

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
        "level",
        units="share",
        interval="frequency_interval",
        identity=True,
        doc="share of targets at or below each quantile",
    )
    frequency_interval: np.ndarray = array("level", "bound", units="share", doc="95% interval over the samples")
    pinball: np.ndarray = array("level", units="target", stderr="pinball_stderr", doc="pinball loss of each level")
    pinball_stderr: np.ndarray = array("level", units="target", doc="standard error over the samples")
    nominal: np.ndarray = array(
        "central", units="share", coordinate=True, doc="share that each central interval should hold"
    )
    coverage: np.ndarray = array(
        "central",
        units="share",
        interval="coverage_interval",
        identity=True,
        doc="share of targets within each central interval",
    )
    coverage_interval: np.ndarray = array("central", "bound", units="share", doc="95% interval over the samples")
    width: np.ndarray = array("central", units="target", doc="mean width of each central interval (sharpness)")
    block_pinball: np.ndarray | None = array(
        "block",
        units="target",
        doc="mean pinball loss of each block of samples: comparisons in pairs",
        drawn=False,
        default=None,
    )
    block_weight: np.ndarray | None = array("block", doc="targets in each block of samples", drawn=False, default=None)
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
