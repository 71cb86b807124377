"""What a task's own code raised, in one line that says on which batch, and what may be behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .batch import tensors_of
from .data import first_line
from .labels import default_target, known_ignore_index, logits_of
from .sparse import shape_of
from .tasks import Task


def what_failed(error: Exception, args: tuple[Any, ...], task: Task, split: str, dtype: torch.dtype) -> str:
    """Return what a function of the task's raised when it was called with these arguments, in one line."""
    shown = [t for a in args if not isinstance(a, nn.Module | int) for t in tensors_of(a)][:4]
    shapes = ", ".join(map(shape_of, shown))
    return (
        f"the task failed on a {split} batch: {type(error).__name__}: {first_line(error)}"
        + (f" (tensors: {shapes})" if shapes else "")
        + _about_precision(error, task, dtype)
        + _about_labels(error, args, known_ignore_index(task.loss))
    )


def _about_precision(error: Exception, task: Task, dtype: torch.dtype) -> str:
    text = str(error)
    if task.dtype is None or ("dtype" not in text and not ("Float" in text and "Double" in text)):
        return ""
    asked = str(dtype).removeprefix("torch.")
    return f"; {asked} was asked for: tensors made in the forward or the loss, and .float(), must follow that of x"


def _about_labels(error: Exception, args: tuple[Any, ...], ignore_index: int) -> str:
    """Say which labels there are, and which there may be, where torch's loss met one outside its classes."""
    if not isinstance(error, IndexError) or "out of bounds" not in str(error) or len(args) != 2:
        return ""
    logits, labels = logits_of(args[0]), default_target(args[1])
    if logits is None or logits.ndim < 2 or not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        return ""
    kept = labels[labels != ignore_index]
    if not len(kept):
        return ""
    return (
        f"; labels of {logits.shape[1]} classes run from 0 to {logits.shape[1] - 1}, these from {int(kept.min())} to "
        f"{int(kept.max())} (but for {ignore_index}, which the loss ignores): mend them, or give the model more classes"
    )
