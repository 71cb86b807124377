"""The predictions of a task's model on the data that it is judged on, in one forward pass."""

from __future__ import annotations

import torch

from ..objective import Objective, as_objective
from ..tasks import Task
from .inputs import Kind
from .together import Judged


def held_out_predictions(task: Task | Objective, split: str = "test") -> Judged:
    """Return the predictions on one split's draw; the train split where the task has no test data, with a warning.

    Logits, but probabilities for a binary task whose loss takes them and some of which are exactly 0 or 1: these have
    no finite logit, and are calibrated as any. Costs one forward pass (of the draw). Raises MeasurementError where
    the task has no class labels there, or its outputs are no class scores.
    """
    warnings: list[str] = []
    if isinstance(task, Objective):
        split = task.split
    elif split == "test" and task.splits == ("train",):
        split = "train"
        warnings.append("the task has no test data")
    if split == "train":
        warnings.append(
            "calibration on train data says little about new data: a model is surer of what it was trained on"
        )
    with as_objective(task, split) as objective:
        before = objective.passes
        logits, labels = objective.predictions()
        passes = objective.passes - before
        samples, notes, fingerprint = objective.samples, objective.notes, objective.fingerprint
    if len(labels) > samples:
        warnings.append(
            f"{len(labels)} predictions come from {samples} samples (pixels, tokens): standard errors and intervals "
            "take them as independent, and are too narrow"
        )
    kind: Kind = "logits"
    if logits.ndim == 1 and bool(torch.isinf(logits).any()) and not bool(torch.isnan(logits).any()):
        kind, logits = "probabilities", torch.sigmoid(logits)
    return Judged(
        kind=kind,
        scores=logits,
        labels=labels,
        split=split,
        fingerprint=fingerprint,
        passes=passes,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )
