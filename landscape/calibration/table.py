"""The result of a calibration measurement: scores with intervals and the reliability table. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array


@dataclass(frozen=True, kw_only=True)
class Calibration(Result, kind="calibration"):
    """Calibration of a classifier on held-out predictions: every number is of all of them, unless its name says more.

    `ece` is the expected calibration error at these bins (share, 0 to 1), `mce` the largest gap of a bin. The
    reliability table has one row a bin: `counts`, mean `confidence`, `accuracy` with its Clopper-Pearson
    interval, and the consistency band: the accuracies that a perfectly calibrated model would show with these
    counts and confidences. Empty bins are NaN. A number that does not apply or was not asked for is NaN, an array None.
    """

    ece: float = array(
        units="share",
        interval="ece_interval",
        doc="expected calibration error at these bins, of all samples as they are",
    )
    ece_interval: np.ndarray = array("bound", units="share", doc="95% interval of the ECE at these bins")
    mce: float = array(units="share", doc="largest gap between confidence and accuracy over the bins")
    debiased_l2: float = array(
        units="share^2", interval="debiased_l2_interval", doc="debiased squared L2 calibration error, floored at 0"
    )
    brier: float = array(
        units="", stderr="brier_stderr", interval="brier_interval", doc="mean squared error of the probabilities"
    )
    brier_stderr: float = array(units="", doc="standard error over the samples", default=math.nan)
    nll: float = array(units="nats", stderr="nll_stderr", interval="nll_interval", doc="mean negative log likelihood")
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
        units="share",
        doc="ECE of the part that judges the temperature, before it; compare with the next, not with ece",
        default=math.nan,
    )
    ece_after_temperature: float = array(
        units="share",
        doc="ECE of the same part after temperature scaling, which was fitted on the other part",
        default=math.nan,
    )
    brier_interval: np.ndarray | None = array("bound", doc="95% interval of the Brier score", default=None)
    nll_interval: np.ndarray | None = array("bound", units="nats", doc="95% interval of the NLL", default=None)
    ece_debiased: float = array(units="share", doc="ECE without its upward bias, floored at 0", default=math.nan)
    overconfidence: float = array(
        units="share", doc="part of the ECE from bins with confidence above accuracy", default=math.nan
    )
    underconfidence: float = array(
        units="share", doc="part of the ECE from bins with accuracy above confidence", default=math.nan
    )
    ece_l2: float = array(
        units="share", doc="root mean square gap over the bins, as it is (biased upward)", default=math.nan
    )
    debiased_l2_interval: np.ndarray | None = array(
        "bound", units="share^2", doc="95% interval of the squared L2 calibration error at these bins", default=None
    )
    smooth_ece: float = array(units="share", doc="smooth ECE: without bins, at its own bandwidth", default=math.nan)
    smooth_ece_bandwidth: float = array(
        units="confidence", doc="kernel bandwidth at which the smooth ECE equals the bandwidth", default=math.nan
    )
    ks: float = array(
        units="share", doc="Kolmogorov-Smirnov calibration error: largest cumulated gap", default=math.nan
    )
    classwise_ece: float = array(units="share", doc="mean over the classes of each class's ECE", default=math.nan)
    brier_reliability: float = array(doc="Brier score's part from the gaps of the bins", default=math.nan)
    brier_resolution: float = array(doc="what telling the bins apart takes off the Brier score", default=math.nan)
    brier_uncertainty: float = array(doc="Brier score of always giving the observed frequencies", default=math.nan)
    brier_within: float = array(
        doc="Brier score's part from within the bins: brier - (reliability - resolution + uncertainty)",
        default=math.nan,
    )
    aurc: float = array(
        units="share", doc="area under the risk-coverage curve: mean error rate of the surest", default=math.nan
    )
    excess_aurc: float = array(
        units="share", doc="AURC above that of a perfect order with this accuracy", default=math.nan
    )
    mean_confidence: float = array(units="share", doc="mean confidence", default=math.nan)
    confidence_gap: float = array(
        units="share",
        interval="confidence_gap_interval",
        doc="mean confidence less accuracy (of labels by themselves: less their frequency)",
        default=math.nan,
    )
    confidence_gap_interval: np.ndarray | None = array(
        "bound", units="share", doc="95% interval of the mean confidence less the accuracy", default=None
    )
    confidence_std: float = array(
        units="share", doc="spread of the confidences (sharpness of the forecasts)", default=math.nan
    )
    edges: np.ndarray = array("edge", units="confidence", coordinate=True, doc="bin edges")
    counts: np.ndarray = array("bin", doc="samples in each bin")
    confidences: np.ndarray = array("bin", units="share", doc="mean confidence in each bin")
    accuracies: np.ndarray = array(
        "bin", units="share", interval="accuracy_interval", doc="share of right labels in each bin"
    )
    accuracy_interval: np.ndarray = array(
        "bin",
        "bound",
        units="share",
        doc="95% interval of each bin's accuracy, of groups as of their effective size",
    )
    consistency_band: np.ndarray = array(
        "bin", "bound", units="share", doc="95% band of a perfectly calibrated model with these sizes"
    )
    smooth_confidence: np.ndarray | None = array(
        "smooth", units="confidence", coordinate=True, doc="where the smoothed curve is given", default=None
    )
    smooth_accuracy: np.ndarray | None = array(
        "smooth", units="share", doc="share of right labels, smoothed; NaN where there are no samples", default=None
    )
    smooth_density: np.ndarray | None = array("smooth", doc="density of the confidences, smoothed", default=None)
    coverage: np.ndarray | None = array(
        "coverage",
        units="share",
        coordinate=True,
        doc="share of the samples that are kept, the surest first",
        default=None,
    )
    risk: np.ndarray | None = array("coverage", units="share", doc="error rate of the kept samples", default=None)
    class_ece: np.ndarray | None = array(
        "class", units="share", doc="ECE of each class's probability against its frequency", default=None
    )
    class_counts: np.ndarray | None = array("class", doc="labels of each class", default=None)
    class_probabilities: np.ndarray | None = array(
        "class", units="share", doc="mean probability given to each class", default=None
    )
    class_predicted: np.ndarray | None = array("class", doc="samples predicted as each class", default=None)
    class_confidences: np.ndarray | None = array(
        "class", units="share", doc="mean confidence where the class is predicted; NaN if never", default=None
    )
    class_accuracies: np.ndarray | None = array(
        "class", units="share", doc="share that is right where the class is predicted; NaN if never", default=None
    )
    samples: int = array(doc="number of predictions", default=0)
    classes: int = array(doc="number of classes", default=0)
    groups: int = array(doc="groups of dependent samples (images, texts); 0: samples are independent", default=0)
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
            "ece_debiased": self.ece_debiased,
            "overconfidence": self.overconfidence,
            "underconfidence": self.underconfidence,
            "debiased_l2": self.debiased_l2,
            "debiased_l2_ci": None if self.debiased_l2_interval is None else self.debiased_l2_interval.tolist(),
            "smooth_ece": self.smooth_ece,
            "ks": self.ks,
            "classwise_ece": self.classwise_ece,
            "aurc": self.aurc,
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
class QuantileCalibration(Result, kind="quantile_calibration"):
    """Calibration of a regression that predicts normal distributions, from the targets' places in them.

    `frequency` says how often the target lies below each predicted quantile `level`; the consistency band is what
    right distributions would show with as many samples. `quantile_error` is the mean distance of the two,
    `calibration_p_value` that of the Kolmogorov-Smirnov test that the places are uniform (independent samples).
    """

    quantile_error: float = array(units="share", doc="mean distance of frequency and level, as it is (biased upward)")
    debiased_l2: float = array(units="share^2", doc="mean squared distance without its sampling bias, floored at 0")
    ks: float = array(units="share", doc="largest distance of frequency and level over 999 levels")
    calibration_p_value: float = array(doc="p-value of right distributions showing at least this ks")
    crps: float = array(
        units="target", stderr="crps_stderr", interval="crps_interval", doc="mean continuous ranked probability score"
    )
    crps_stderr: float = array(units="target", doc="standard error over the samples", default=math.nan)
    crps_interval: np.ndarray | None = array("bound", units="target", doc="95% interval of the CRPS", default=None)
    nll: float = array(
        units="nats", stderr="nll_stderr", interval="nll_interval", doc="mean negative log density of the targets"
    )
    nll_stderr: float = array(units="nats", doc="standard error over the samples", default=math.nan)
    nll_interval: np.ndarray | None = array("bound", units="nats", doc="95% interval of the NLL", default=None)
    rmse: float = array(units="target", doc="root mean squared error of the means")
    mean_std: float = array(units="target", doc="mean predicted standard deviation (sharpness)")
    rms_std: float = array(units="target", doc="root mean predicted variance: equals rmse for right distributions")
    std_ratio: float = array(doc="root mean of ((target - mean) / std)^2: above 1 the deviations are too small")
    level: np.ndarray = array("level", units="share", coordinate=True, doc="predicted quantiles")
    frequency: np.ndarray = array(
        "level", units="share", interval="frequency_interval", doc="share of targets below each quantile"
    )
    frequency_interval: np.ndarray = array(
        "level", "bound", units="share", doc="Clopper-Pearson 95% interval of each frequency"
    )
    consistency_band: np.ndarray = array(
        "level", "bound", units="share", doc="95% band of right distributions with as many samples"
    )
    counts: np.ndarray = array("cell", doc="targets between neighboring quantiles")
    samples: int = array(doc="number of predictions", default=0)

    def summary(self) -> dict[str, Any]:
        names = "quantile_error debiased_l2 ks calibration_p_value crps nll rmse mean_std std_ratio samples"
        return {name: getattr(self, name) for name in names.split()}


@dataclass(frozen=True, kw_only=True)
class Temperature(Result, kind="temperature", section="calibration"):
    """A temperature fitted to logits and labels: softmax(logits / value) has the least NLL of all temperatures.

    `status` is "complete" at an interior minimum, "partial" where there is none within `bounds`; `value` is NaN then
    and the other numbers are those at the bound, except where every temperature fits alike. `outcome` says which:
    "converged", "at the lower bound" (the labels can be told apart perfectly: ever sharper is ever better; or the
    logits are more than 1,000 times too small), "at the upper bound" (the logits say nothing about the labels) or
    "flat" (every temperature fits alike; 1).
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
