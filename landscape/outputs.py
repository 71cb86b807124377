"""What a task's model gives for a batch: outputs with their target, and logits with their labels."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import TaskError
from .ignoring import find_ignored, ignored_by
from .labels import LABEL_NAMES, default_prediction, default_target, logits_of
from .tasks import Task
from .tokens import are_tokens, labels_repeat, pairing

if TYPE_CHECKING:
    from .objective import Objective

#: (logits, labels) or None, and the labels in their own shape.
Prediction = tuple[tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor | None]


def forward_of(task: Task, model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """Return (outputs, target) of a batch: by the task's `forward`, else as for a pair (x, y) or a dict."""
    if task.forward is not None:
        return task.forward(model, batch)
    if isinstance(batch, Mapping):
        try:
            return model(**batch), batch
        except TypeError as error:
            _explain_names(model, batch, error)
            raise
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return model(batch[0]), batch[1]
    held = f"{len(batch)} parts" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
    raise TaskError(
        f"a batch of {held} is neither (x, y) nor a dict: say how to use it with "
        "forward=lambda model, batch: (outputs, target)"
    )


def prediction_of(task: Task, model: nn.Module, batch: Any, outputs: Any, target: Any) -> Prediction:
    """Return ((logits, labels) with one row a prediction, the labels in their own shape); None where not known."""
    ignore = ignored_by(task)
    if task.predict is not None:
        pair = task.predict(model, batch)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise TaskError(f"predict returned a {type(pair).__name__}; expected (logits, labels)")
        logits, labels = pair
        if isinstance(labels, torch.Tensor) and labels.is_floating_point() and bool((labels == labels.round()).all()):
            labels = labels.long()  # predict says that these are class labels
        return default_prediction(logits, labels, None, ignore, several=True), labels
    if task.batch_loss is not None:
        return None, None
    labels, logits = default_target(target), logits_of(outputs)
    if task.ignored is None and task.loss is not None:
        task.ignored = find_ignored(task, outputs, target, logits, labels)
        ignore = ignored_by(task)
    if task.loss is not None and logits is not None and are_tokens(logits, labels):
        if task.pairing is None:
            task.pairing = pairing(task.loss, batch, outputs, target, logits, labels, ignore)
        if task.pairing == "unknown":
            return None, labels
        if task.pairing == "next":
            outputs, labels = logits[:, :-1], labels[:, 1:]
    return default_prediction(outputs, labels, task.loss, ignore), labels


def _explain_names(model: nn.Module, batch: Mapping[Any, Any], error: TypeError) -> None:
    """Raise TaskError with the line to write where the model's forward doesn't take an entry of a dict batch."""
    taken = inspect.signature(model.forward).parameters
    strange = [str(n) for n in batch if n not in taken]
    if not strange or any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    what = f"{type(model).__name__}.forward takes no {', '.join(strange)} of the batch"
    if labels_repeat(batch):
        raise TaskError(
            f"{what}, whose labels are its input_ids: for a language model say forward=landscape.next_token, with "
            "torch.nn.functional.cross_entropy as its loss"
        ) from error
    inputs = ", ".join(f"{n}=batch[{n!r}]" for n in batch if n in taken)
    target = next((n for n in LABEL_NAMES if n in batch), None) or strange[0]
    raise TaskError(
        f"{what}: say how to use it with forward=lambda model, batch: (model({inputs}), batch[{target!r}])"
    ) from error


def lacking_labels(task: Task, split: str) -> str:
    """Say why a task gives no logits and class labels on a split, and what to write."""
    what = f"the task {task.name or type(task.model).__name__}"
    if task.pairing == "unknown":
        return (
            f"{what} labels its {split} data with the ids that it reads, and its loss doesn't show whether a position "
            "predicts its own or the next one: give Task(predict=lambda model, batch: (logits, labels)), or "
            "forward=landscape.next_token with torch's cross entropy"
        )
    return f"{what} has no class labels on its {split} data: give Task(predict=lambda model, batch: (logits, labels))"


def labels_there(objective: Objective) -> bool:
    """Find out from the first batch whether the task gives logits and class labels."""
    if objective.task.predict is None and objective.task.batch_loss is not None:
        return False
    with objective.measuring():
        return predicted(objective, 0)[0] is not None


def predicted(objective: Objective, i: int) -> Prediction:
    """Return what `prediction_of` says of batch i at the current weights; the task's own `predict` runs the model."""
    task, batch = objective.task, objective.begin(i)
    own = task.predict is not None or task.batch_loss is not None
    outputs, target = (None, None) if own else objective.forward(batch)
    return objective.call(partial(prediction_of, task, objective.model), batch, outputs, target)
