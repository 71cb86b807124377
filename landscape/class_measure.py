"""Overlap, precision and recall of each class on a task's held-out data, as `landscape probe` runs it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from .class_scores import MEANS, ClassScores
from .grouped import mean_of_shares, shares
from .judged import SPLIT, judged_split
from .objective import Objective, as_objective
from .passes import Predicted
from .results import Cost, measurement
from .tasks import Task

#: Groups that counts are kept of, and numbers that these may be (chosen by us: 2% of the error's own error, 24 MB).
_GROUPS, _NUMBERS = 2000, 1 << 20


@measurement(
    "class_scores",
    section="performance",
    options={"split": SPLIT},
    default=False,
    order=15,
    estimate=lambda *_, **__: 1.0,
    needs=("labels",),
)
def measure_classes(
    task: Task | Objective, *, seed: int = 0, progress: bool = False, split: str = "test"
) -> ClassScores:
    """Mean IoU, macro F1 and balanced accuracy; IoU, F1, precision and recall of each class.

    With 95% intervals over the samples (images, texts), whose pixels, tokens or labels depend on each other. Samples
    beyond 2,000 are put together in as many groups. Costs one forward pass (of the draw).
    Raises MeasurementError where the task has no class labels there.
    """
    del seed, progress  # one forward pass and counting
    start = time.perf_counter()
    warnings: list[str] = []
    split, instead = judged_split(task, split)
    if instead:
        warnings.append("the task has no test data: these are the classes as they are found on train data")
    with as_objective(task, split) as objective:
        before = objective.passes
        found = objective.all_predictions()
        passes, samples = objective.passes - before, objective.samples
        notes, fingerprint = objective.notes, objective.fingerprint
    if found.groups is None and len(found.labels) > samples:
        warnings.append(
            f"{len(found.labels)} predictions come from {samples} samples (pixels, tokens), and which from which isn't "
            "known: intervals take them as independent, and are too narrow"
        )
    return ClassScores(
        **score_classes(*(x.numpy() for x in count_classes(found))),
        split=split,
        fingerprint=fingerprint,
        settings={"split": split},
        warnings=tuple(warnings),
        notes=tuple(notes),
        cost=Cost(passes=passes, seconds=time.perf_counter() - start),
    )


def count_classes(found: Predicted) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return right predictions, predictions and labels of each class by group of samples, (groups, classes) int64."""
    logits, labels = found.logits, found.labels
    rows = torch.arange(len(labels), device="cpu")
    group = rows if found.groups is None else found.groups
    if found.several > 1:  # a class for each label, and what is not there is none of them
        classes, predicted, there = found.several, rows % found.several, labels == 1
        chosen, labels = logits > 0, predicted
    else:
        classes = 2 if logits.ndim == 1 else logits.shape[1]
        predicted = (logits > 0).long() if logits.ndim == 1 else logits.argmax(dim=1)
        chosen = there = torch.ones(len(labels), dtype=torch.bool, device="cpu")
    groups = min(int(group.max()) + 1, max(2, min(_GROUPS, _NUMBERS // classes)))
    # Every so many samples rather than runs of them: data are often sorted by class.
    place = (group % groups) * classes

    def counted(which: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.bincount((place + label)[which], minlength=groups * classes).view(groups, classes)

    return counted(chosen & there & (predicted == labels), labels), counted(chosen, predicted), counted(there, labels)


def score_classes(hits: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return the numbers of a ClassScores from counts of right predictions, predictions and labels, (groups, classes).

    Intervals are those of `grouped.shares`. Cost: O(groups x classes).
    """
    tp, p, y = (x.astype(np.float64) for x in (hits, predicted, labels))
    found: dict[str, Any] = {"labels": labels.sum(axis=0), "predicted": predicted.sum(axis=0), "groups": len(hits)}
    parts = {"iou": (tp, p + y - tp), "f1": (2 * tp, p + y), "precision": (tp, p), "recall": (tp, y)}
    means = dict(zip(("iou", "f1", "recall"), MEANS, strict=True))
    of_means = {}
    for name, (above, below) in parts.items():
        found[name], found[f"{name}_interval"] = shares(above, below)
        if name in means:
            mean = of_means[means[name]] = mean_of_shares(above, below)
            found[means[name]], found[f"{means[name]}_interval"] = mean.mean, mean.interval
    found["pull"] = np.stack([of_means[name].pull for name in MEANS]).astype(np.float32)
    found["held"] = np.array([of_means[name].held for name in MEANS])
    return found
