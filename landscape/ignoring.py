"""Which label a loss leaves out: as its settings say, or as its gradient shows where it says nothing."""

from __future__ import annotations

from typing import Any

import torch

from .batch import map_tensors
from .labels import known_ignore_index
from .placement import placed
from .reduction import split_value, torch_loss_settings
from .tasks import Task


def ignored_by(task: Task) -> int:
    """Return the label that doesn't count for a task: what was found out, else what its loss says, else torch's."""
    return task.ignored if task.ignored is not None else known_ignore_index(task.loss)


def find_ignored(task: Task, outputs: Any, target: Any, logits: Any, labels: Any) -> int | None:
    """Return the one label outside the classes that a loss of the user's own leaves out, None where there is none.

    A loss that computes its mask inside (`labels != 255`) has a gradient of exactly 0 in the logits of those positions.
    Costs a look at the labels, and where one lies outside, the loss of one batch and its gradient in the logits.
    """
    loss: Any = task.loss
    if torch_loss_settings(loss) is not None or isinstance(getattr(loss, "ignore_index", None), int):
        return None
    if not isinstance(logits, torch.Tensor) or not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return None
    last = _classes_last(logits, labels)
    if last is None:
        return None
    outside = labels[((labels < 0) | (labels >= last.shape[-1])) & (labels != known_ignore_index(loss))].unique()
    if len(outside) != 1:
        return None
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loose = map_tensors(outputs, lambda t: leaf if t is logits else t)
        mean = split_value(placed(loss, logits.device, logits.dtype)(loose, target))[0]
        if not mean.requires_grad:
            return None
        (gradient,) = torch.autograd.grad(mean, leaf, materialize_grads=True, allow_unused=True)
    at = _classes_last(gradient, labels)
    return None if at is None or bool(at[labels == outside].any()) else int(outside)


def _classes_last(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
    """Return logits as (*labels.shape, classes); None where they are not those of these labels."""
    if logits.ndim != labels.ndim + 1:
        return None
    moved = logits.movedim(1, -1)
    return moved if moved.shape[:-1] == labels.shape else logits if logits.shape[:-1] == labels.shape else None
