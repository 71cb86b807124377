"""The result of a recalibration: the map itself, and what it does to predictions that its fit has not seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MeasurementError
from ..results import Result, array, beside
from .maps import PARAMETERS, library_of, mapped
from .table import Calibration

#: The two stages that every before-and-after array holds, in this order.
STAGES = ("before", "after")


@dataclass(frozen=True, kw_only=True)
class Diagram:
    """One stage's reliability table and ECE: what a reliability diagram is drawn from (see `Calibration`)."""

    edges: np.ndarray
    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    accuracy_interval: np.ndarray
    consistency_band: np.ndarray
    ece: float
    ece_interval: np.ndarray
    samples: int


@dataclass(frozen=True, kw_only=True)
class Recalibration(Result, kind="recalibration", section="calibration"):
    """A map from a model's scores to calibrated ones, fitted on some predictions and judged on others.

    `apply` uses the map; `landscape.Calibrated(model, recalibration)` puts it behind a model. Arrays over "stage" hold
    (before, after): the judged predictions as they are and recalibrated, in our own convention. Each `..._change` is
    after minus before on the same predictions, with a paired 95% interval.

    With `folds` of 0 the map that is kept is the one judged, fitted on `fitted` predictions that are not among the
    `judged`. With folds (cross-fitting) each prediction was judged by a map fitted on the other folds, and the map
    that is kept is fitted on all of them. `before` and `after` are the two Calibrations in memory, None when read
    from an archive.
    """

    method: str = "temperature"
    #: What the map takes, and gives back: "logits" or "probabilities".
    input: str = "logits"
    binary: bool = False
    split: str = ""
    #: Of the data behind the predictions; the same fingerprint means the same samples in the same order.
    fingerprint: str = ""

    temperature: float = array(
        stderr="temperature_stderr", doc="fitted temperature: logits are divided by it", default=math.nan
    )
    temperature_stderr: float = array(doc="standard error over the predictions of the fit", default=math.nan)
    weights: np.ndarray | None = array("class", doc="vector scaling: factor of each class's logit", default=None)
    biases: np.ndarray | None = array(
        "class", units="logits", doc="vector scaling: what is added to each class's logit", default=None
    )
    knots: np.ndarray | None = array(
        "knot",
        units="probability",
        doc="isotonic, histogram: where the levels stand, ascending for each class",
        default=None,
    )
    levels: np.ndarray | None = array(
        "knot", units="probability", doc="isotonic, histogram: probability given at (up to) each knot", default=None
    )
    owners: np.ndarray | None = array("knot", doc="isotonic, histogram: the class of each knot", default=None)

    ece: np.ndarray = array("stage", units="share", interval="ece_interval", doc="expected calibration error")
    ece_interval: np.ndarray = array("stage", "bound", units="share", doc="95% interval of the ECE at these bins")
    brier: np.ndarray = array("stage", stderr="brier_stderr", doc="mean squared error of the probabilities")
    brier_stderr: np.ndarray = array("stage", doc="standard error over the samples")
    nll: np.ndarray = array("stage", units="nats", stderr="nll_stderr", doc="mean negative log likelihood")
    nll_stderr: np.ndarray = array("stage", units="nats", doc="standard error over the samples")
    accuracy: np.ndarray = array("stage", units="share", stderr="accuracy_stderr", doc="share of right top labels")
    accuracy_stderr: np.ndarray = array("stage", units="share", doc="standard error over the samples")
    ece_change: float = array(units="share", interval="ece_change_interval", doc="ECE after minus before")
    ece_change_interval: np.ndarray = array("bound", units="share", doc="paired 95% interval at these bins")
    brier_change: float = array(interval="brier_change_interval", doc="Brier score after minus before")
    brier_change_interval: np.ndarray = array("bound", doc="paired 95% interval")
    nll_change: float = array(units="nats", interval="nll_change_interval", doc="NLL after minus before")
    nll_change_interval: np.ndarray = array("bound", units="nats", doc="paired 95% interval")
    accuracy_change: float = array(
        units="share", interval="accuracy_change_interval", doc="accuracy after minus before"
    )
    accuracy_change_interval: np.ndarray = array("bound", units="share", doc="paired 95% interval")
    changed: float = array(units="share", doc="share of the judged whose top label the map changes", default=0.0)

    edges: np.ndarray = array("edge", units="confidence", coordinate=True, doc="bin edges")
    counts: np.ndarray = array("stage", "bin", doc="predictions in each bin")
    confidences: np.ndarray = array("stage", "bin", units="share", doc="mean confidence in each bin")
    accuracies: np.ndarray = array(
        "stage", "bin", units="share", interval="accuracy_interval", doc="share of right labels in each bin"
    )
    accuracy_interval: np.ndarray = array(
        "stage", "bin", "bound", units="share", doc="Clopper-Pearson 95% interval of each bin's accuracy"
    )
    consistency_band: np.ndarray = array(
        "stage", "bin", "bound", units="share", doc="95% band of a perfectly calibrated model with these sizes"
    )
    fitted: int = array(doc="predictions in the fit of the map that is kept", default=0)
    judged: int = array(doc="predictions that before and after are judged on", default=0)
    folds: int = array(doc="folds of the cross-fitting; 0: one split", default=0)
    classes: int = array(doc="number of classes", default=0)

    before: Calibration | None = beside("the judged predictions as they are")
    after: Calibration | None = beside("the judged predictions, recalibrated")

    @property
    def keeps_accuracy(self) -> bool:
        """Whether the method can't change which class comes first (ties aside)."""
        return self.method == "temperature"

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """The map's parameters by name, float64 (and int64 for the classes of the knots)."""
        found = {name: np.asarray(getattr(self, name)) for name in PARAMETERS[self.method]}
        return {k: v.astype(np.int64 if k == "owners" else np.float64) for k, v in found.items()}

    def apply(self, scores: Any, *, class_dim: int = 1) -> Any:
        """Return calibrated scores of the kind that the map takes: logits for logits, probabilities for probabilities.

        `scores` is a NumPy array (computed in float64) or a torch tensor (in its own precision, float32 at least,
        on its device, differentiable): (n, C) or (n, C, ...) with the classes along `class_dim`; for a binary task
        the scores of class 1, of any shape. The softmax (sigmoid) of calibrated logits are the probabilities.
        Raises MeasurementError where the number of classes differs from the fit's.
        """
        return self._mapped(scores, self.input, class_dim)

    def probabilities(self, scores: Any, *, class_dim: int = 1) -> Any:
        """Return calibrated probabilities of scores of the kind that the map takes; see `apply`."""
        return self._mapped(scores, "probabilities", class_dim)

    def _mapped(self, scores: Any, wanted: str, class_dim: int) -> Any:
        return apply_map(
            scores,
            self.method,
            self.parameters,
            binary=self.binary,
            classes=self.classes,
            given=self.input,
            wanted=wanted,
            class_dim=class_dim,
        )

    def diagram(self, stage: str) -> Diagram:
        """Return the reliability table of "before" or "after"."""
        i = STAGES.index(stage)
        rows = ("counts", "confidences", "accuracies", "accuracy_interval", "consistency_band", "ece_interval")
        return Diagram(
            edges=np.asarray(self.edges),
            ece=float(self.ece[i]),
            samples=int(self.judged),
            **{name: np.asarray(getattr(self, name))[i] for name in rows},
        )

    def summary(self) -> dict[str, Any]:
        def pair(values: np.ndarray) -> dict[str, float]:
            return dict(zip(STAGES, np.asarray(values, dtype=float).tolist(), strict=True))

        found: dict[str, Any] = {"method": self.method}
        if self.method == "temperature":
            found |= {"temperature": self.temperature, "temperature_stderr": self.temperature_stderr}
        for name in ("ece", "brier", "nll", "accuracy"):
            change = np.asarray(getattr(self, f"{name}_change_interval"), dtype=float).tolist()
            found[name] = {**pair(getattr(self, name)), "change": getattr(self, f"{name}_change"), "change_ci": change}
        found |= {"changed": self.changed, "fitted": self.fitted, "judged": self.judged, "folds": self.folds}
        return {"recalibration": found}


def apply_map(
    scores: Any,
    method: str,
    parameters: Mapping[str, Any],
    *,
    binary: bool,
    classes: int,
    given: str,
    wanted: str,
    class_dim: int,
) -> Any:
    """Return scores of any layout through a map; `parameters` are NumPy arrays, or tensors on the scores' device."""
    xp = library_of(scores)
    if xp is np:
        scores = np.asarray(scores, dtype=np.float64)
        own = dict(parameters)
    else:
        if not scores.is_floating_point():
            raise MeasurementError(f"{given} must be floating point numbers, got {scores.dtype}")
        scores = scores.to(xp.promote_types(scores.dtype, xp.float32))
        own = {
            k: xp.as_tensor(v, device=scores.device, dtype=xp.int64 if k == "owners" else scores.dtype)
            for k, v in parameters.items()
        }
    how: dict[str, Any] = {"binary": binary, "given": given, "wanted": wanted}
    if binary:
        return mapped(scores, method, own, **how)
    if not -scores.ndim <= class_dim < scores.ndim:
        raise MeasurementError(f"class_dim={class_dim} is not a dimension of {given} of shape {tuple(scores.shape)}")
    if scores.shape[class_dim] != classes:
        raise MeasurementError(
            f"{given} of shape {tuple(scores.shape)} have {scores.shape[class_dim]} classes along dim {class_dim}, the "
            f"recalibration was fitted on {classes}; say where the classes lie with class_dim="
        )
    return xp.moveaxis(mapped(xp.moveaxis(scores, class_dim, -1), method, own, **how), -1, class_dim)
