"""The result of counting how well each class is found: overlap, precision and recall. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .results import Result, array

#: The means over the classes, in the order of `ClassScores.pull`.
MEANS = ("mean_iou", "mean_f1", "balanced_accuracy")


def _share(doc: str) -> Any:
    name = doc.split(":")[0]
    return array("class", units="share", interval=f"{name}_interval", doc=doc.partition(": ")[2])


def _bounds(name: str, *dims: str) -> Any:
    return array(*dims, "bound", units="share", doc=f"95% interval of {name}, over the samples")


@dataclass(frozen=True, kw_only=True)
class ClassScores(Result, kind="class_scores", section="performance"):
    """How well each class is found by the predicted labels (of several labels a sample: by logits above 0).

    With TP right predictions of a class, P predictions of it and L labels of it, over all predictions of the split's
    draw: `iou` TP / (P + L - TP) (intersection over union, Jaccard's index), `f1` 2 TP / (P + L) (Dice's), `precision`
    TP / P, `recall` TP / L; NaN where the denominator is 0. Means are over the classes that have the number. Intervals
    are over samples: pixels, tokens and labels of one depend on each other.
    """

    mean_iou: float = array(units="share", interval="mean_iou_interval", doc="mean of the classes' iou")
    mean_f1: float = array(units="share", interval="mean_f1_interval", doc="mean of the classes' f1 (macro F1)")
    balanced_accuracy: float = array(
        units="share", interval="balanced_accuracy_interval", doc="mean of the classes' recall"
    )
    mean_iou_interval: np.ndarray = _bounds("mean_iou")
    mean_f1_interval: np.ndarray = _bounds("mean_f1")
    balanced_accuracy_interval: np.ndarray = _bounds("balanced_accuracy")
    iou: np.ndarray = _share("iou: intersection over union of predicted and true")
    f1: np.ndarray = _share("f1: harmonic mean of precision and recall")
    precision: np.ndarray = _share("precision: share of the predictions of a class that is right")
    recall: np.ndarray = _share("recall: share of a class's labels that is found")
    iou_interval: np.ndarray = _bounds("iou", "class")
    f1_interval: np.ndarray = _bounds("f1", "class")
    precision_interval: np.ndarray = _bounds("precision", "class")
    recall_interval: np.ndarray = _bounds("recall", "class")
    labels: np.ndarray = array("class", doc="labels of each class")
    predicted: np.ndarray = array("class", doc="predictions of each class")
    groups: int = array(doc="groups of predictions that the intervals take for independent")
    pull: np.ndarray | None = array(
        "mean",
        "group",
        units="share",
        doc="(groups - 1) times how far each mean (IoU, F1, recall) falls without each group: comparisons in pairs",
        drawn=False,
        default=None,
    )
    held: np.ndarray | None = array(
        "mean", doc="groups in which the rarest class of each mean is", drawn=False, default=None
    )
    split: str = ""
    fingerprint: str = field(default="", metadata={"doc": "of the split's draw"})

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in MEANS:
            found[name] = getattr(self, name)
            found[f"{name}_ci"] = getattr(self, f"{name}_interval").tolist()
        return found | {name: getattr(self, name).tolist() for name in ("iou", "f1", "precision", "recall")}
