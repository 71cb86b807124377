"""The predictions of a task's model on the data that it is judged on, in one forward pass."""

from __future__ import annotations

import torch
from torch import nn

from ..judged import judged_split
from ..objective import Objective, as_objective
from ..reduction import torch_loss_settings
from ..tasks import Task
from .inputs import Kind
from .together import Judged


def held_out_predictions(task: Task | Objective, split: str = "test") -> Judged:
    """Return the predictions on one split's draw; the train split where the task has no test data, with a warning.

    Logits, or the probabilities that the model gives where its loss takes them (torch.nn.BCELoss). Costs one forward
    pass (of the draw). Raises MeasurementError where
    the task has no class labels there, or its outputs are no class scores.
    """
    warnings: list[str] = []
    split, instead = judged_split(task, split)
    if instead:
        warnings.append("the task has no test data")
    if split == "train":
        warnings.append(
            "calibration on train data says little about new data: a model is surer of what it was trained on"
        )
    with as_objective(task, split) as objective:
        before = objective.passes
        found = objective.all_predictions()
        passes = objective.passes - before
        samples, notes, fingerprint = objective.samples, objective.notes, objective.fingerprint
    logits, labels, groups = found.logits, found.labels, found.groups
    several = len(labels) > samples
    if several and groups is None:
        warnings.append(
            f"{len(labels)} predictions come from {samples} samples (pixels, tokens), and which from which isn't "
            "known: standard errors and intervals take them as independent, and are too narrow"
        )
    kind: Kind = "logits"
    own = task.task if isinstance(task, Objective) else task
    loss = torch_loss_settings(own.loss) if own.predict is None else None
    if logits.ndim == 1 and loss is not None and issubclass(loss[0], nn.BCELoss):
        kind, logits = "probabilities", torch.sigmoid(logits)  # back to what the model returned
    # Predictions of one sample depend on each other; one each are independent, and need no groups.
    groups = groups if several else None
    if found.several > 1:  # the labels of one sample are a group by themselves
        logits, labels, groups = logits.view(-1, found.several), labels.view(-1, found.several), None
    return Judged(
        kind=kind,
        scores=logits,
        labels=labels,
        form="multilabel" if found.several > 1 else None,
        groups=groups,
        split=split,
        fingerprint=fingerprint,
        passes=passes,
        warnings=tuple(warnings),
        notes=tuple(notes),
    )
