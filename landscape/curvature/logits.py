"""A task whose logits are normalized: the scale of the logits, which training blows up, is taken out of its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import MeasurementError, TaskError
from ..tasks import Task

#: Least norm that logits are divided by, as in the authors' code.
LEAST = 1e-10


def with_normalized_logits(task: Task) -> Task:
    """Return the task with each row of logits z replaced by (z - mean z) / ||z - mean z||_2 before the loss.

    Source: Andriushchenko et al. 2023, arXiv:2302.07011 (as their code has it, with the mean taken out). Classes lie
    on the last dimension for (n, classes) and (n, length, classes) logits, alone or as a dict's "logits". Raises
    MeasurementError for a batch_loss task, and for outputs without logits.
    """
    if task.batch_loss is not None:
        raise MeasurementError("logits can't be normalized: a batch_loss task doesn't give them; use Task(loss=...)")

    def forward(model: Any, batch: Any) -> tuple[Any, Any]:
        if task.forward is not None:
            outputs, target = task.forward(model, batch)
        elif isinstance(batch, Mapping):
            outputs, target = model(**batch), batch
        elif isinstance(batch, tuple | list) and len(batch) == 2:
            outputs, target = model(batch[0]), batch[1]
        else:
            raise TaskError(
                f"a batch of type {type(batch).__name__} is neither (x, y) nor a dict: give Task(forward=...)"
            )
        return _normalized(outputs), target

    return task.replace(forward=forward)


def _normalized(outputs: Any) -> Any:
    if isinstance(outputs, Mapping) and isinstance(outputs.get("logits"), torch.Tensor):
        return {**outputs, "logits": _normalized(outputs["logits"])}
    if not isinstance(outputs, torch.Tensor) or outputs.ndim not in (2, 3) or outputs.shape[-1] < 2:
        shape = f" of shape {tuple(outputs.shape)}" if isinstance(outputs, torch.Tensor) else ""
        raise MeasurementError(
            f"logits can't be normalized: the model gives a {type(outputs).__name__}{shape}; expected (n, classes), "
            '(n, length, classes) or a dict with "logits"'
        )
    centered = outputs - outputs.mean(dim=-1, keepdim=True)
    return centered / centered.norm(dim=-1, keepdim=True).clamp_min(LEAST)
