"""The result of a calibration measurement: scores with intervals and the reliability table. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array


@dataclass(frozen=True, kw_only=True)
class Calibration(Result, kind="calibration"):
    """Top-label calibration of a classifier on held-out predictions.

    `ece` is the expected calibration error at these bins (share, 0 to 1), `mce` the largest gap of a bin. The
    reliability table has one row a bin: `counts`, mean `confidence`, `accuracy` with its Clopper-Pearson
    interval, and the consistency band: the accuracies that a perfectly calibrated model would show with these
    counts and confidences. Empty bins are NaN.
    """

    ece: float = array(units="share", interval="ece_interval", doc="expected calibration error at these bins")
    ece_interval: np.ndarray = array("bound", units="share", doc="95% interval of the ECE at these bins")
    mce: float = array(units="share", doc="largest gap between confidence and accuracy over the bins")
    debiased_l2: float = array(units="share^2", doc="debiased squared L2 calibration error, floored at 0")
    brier: float = array(units="", stderr="brier_stderr", doc="mean squared error of the probabilities")
    brier_stderr: float = array(units="", doc="standard error over the samples", default=math.nan)
    nll: float = array(units="nats", stderr="nll_stderr", doc="mean negative log likelihood")
    nll_stderr: float = array(units="nats", doc="standard error over the samples", default=math.nan)
    accuracy: float = array(units="share", stderr="accuracy_stderr", doc="share of right top labels")
    accuracy_stderr: float = array(units="share", doc="standard error over the samples", default=math.nan)
    calibration_p_value: float = array(
        doc="p-value of a calibrated model showing at least this ECE at these bins", default=math.nan
    )
    temperature: float = array(
        stderr="temperature_stderr", doc="fitted temperature (1: as it is); NaN if not fitted", default=math.nan
    )
    temperature_stderr: float = array(doc="standard error over the samples of the fit", default=math.nan)
    ece_before_temperature: float = array(
        units="share", doc="ECE on the samples that the fit has not seen, as they are", default=math.nan
    )
    ece_after_temperature: float = array(
        units="share", doc="ECE after temperature scaling, on samples that the fit has not seen", default=math.nan
    )
    edges: np.ndarray = array("edge", units="confidence", coordinate=True, doc="bin edges")
    counts: np.ndarray = array("bin", doc="samples in each bin")
    confidences: np.ndarray = array("bin", units="share", doc="mean confidence in each bin")
    accuracies: np.ndarray = array(
        "bin", units="share", interval="accuracy_interval", doc="share of right labels in each bin"
    )
    accuracy_interval: np.ndarray = array(
        "bin", "bound", units="share", doc="Clopper-Pearson 95% interval of each bin's accuracy"
    )
    consistency_band: np.ndarray = array(
        "bin", "bound", units="share", doc="95% band of a perfectly calibrated model with these sizes"
    )
    samples: int = array(doc="number of predictions", default=0)
    classes: int = array(doc="number of classes", default=0)
    convention: str = "landscape"
    split: str = ""

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.counts)

    def summary(self) -> dict[str, Any]:
        return {
            "ece": self.ece,
            "ece_ci": [float(x) for x in self.ece_interval],
            "bins": self.bins,
            "mce": self.mce,
            "debiased_l2": self.debiased_l2,
            "brier": self.brier,
            "nll": self.nll,
            "accuracy": self.accuracy,
            "calibration_p_value": self.calibration_p_value,
            "temperature": self.temperature,
            "ece_before_temperature": self.ece_before_temperature,
            "ece_after_temperature": self.ece_after_temperature,
            "samples": self.samples,
            "convention": self.convention,
        }


@dataclass(frozen=True, kw_only=True)
class Temperature(Result, kind="temperature", section="calibration"):
    """A temperature fitted to logits and labels: softmax(logits / value) has the least NLL of all temperatures.

    `status` is "complete" at an interior minimum, "partial" where there is none within `bounds`: `outcome` says
    which: "converged", "at the lower bound" (the labels can be told apart perfectly: ever sharper is ever better),
    "at the upper bound" (the logits say nothing about the labels) or "flat" (every temperature fits alike; 1).
    """

    value: float = array(stderr="stderr", doc="fitted temperature")
    stderr: float = array(doc="standard error over the samples; NaN at a bound", default=math.nan)
    nll_before: float = array(units="nats", doc="mean NLL of these samples at temperature 1")
    nll_after: float = array(units="nats", doc="mean NLL of these samples at the fitted temperature")
    slope: float = array(units="nats", doc="d NLL / d log T at the fitted temperature, 0 at a minimum")
    iterations: int = array(doc="evaluations of the NLL's slope", default=0)
    samples: int = array(doc="number of predictions in the fit", default=0)
    bounds: tuple[float, float] = (1e-3, 1e3)
    outcome: str = "converged"

    @property
    def converged(self) -> bool:
        """Whether `value` is a minimum within the bounds."""
        return self.outcome == "converged"
