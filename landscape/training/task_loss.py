"""A loss from the registry in the place of a task's own: how a sweep trains it, and how a checkpoint names it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from ..labels import IGNORE_INDEX, known_ignore_index
from ..tasks import Task
from .expressions import Call, Product
from .inputs import LOGITS, MASKS, ROWS
from .loss import bind
from .registries import losses
from .weighted import WeightedLoss, _distinct


def with_loss(task: Task, text: str) -> Task:
    """Return the task with the loss that a string describes, as `landscape.losses.build` reads it.

    A part that looks at weights is bound to the task's model; `rebatch` is False where the loss couples the samples of
    a batch. What the task's own loss leaves out (its `ignore_index`, where that isn't torch's default) is left out of
    the other one, too, and its mean is over what stays. Raises TrainingError for a string that describes none, for a
    task that computes its own loss, and for an overlap of whole masks where labels are left out.
    """
    if task.batch_loss is not None:
        raise TrainingError(
            f"the task {task.name or type(task.model).__name__} computes its own loss (batch_loss), so that {text!r} "
            "can't take its place: leave the loss out, or give the task forward= and loss= instead"
        )
    loss = bind(losses.build(text), task.model)
    ignored = known_ignore_index(task.loss)
    if ignored != IGNORE_INDEX:
        _leave_out(ignored, loss, text)
    return task.replace(loss=loss, rebatch=task.rebatch and getattr(loss, "rebatch", True))


def _leave_out(ignored: int, loss: Any, text: str) -> None:
    """Have every summand that looks at class labels see only those that are not `ignored`."""
    parts = list(loss.parts.values()) if isinstance(loss, WeightedLoss) else [loss]
    for (_, call), part in zip(losses.parse(text), parts, strict=True):
        takes = losses.entry(call.name).takes
        if takes is MASKS:
            raise TrainingError(
                f"the task's own loss leaves the label {ignored} out (ignore_index), and {call.name} would count it: "
                "it takes whole masks. Choose a loss of logits and labels, or give the task data without such labels"
            )
        if isinstance(part, nn.CrossEntropyLoss):
            part.ignore_index = ignored
        elif takes is LOGITS or takes is ROWS:
            part.register_forward_pre_hook(functools.partial(_kept, ignored))
            part.register_forward_hook(_with_weight)
    loss.ignore_index = ignored  # pyright: ignore[reportArgumentType]: for accuracy and calibration


def _kept(ignored: int, module: nn.Module, given: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the rows (m, classes) and labels (m,) that count, of outputs (n, classes, ...) and labels (n, ...)."""
    outputs, target = given
    if not isinstance(target, torch.Tensor) or target.shape != outputs.shape[:1] + outputs.shape[2:]:
        return None  # the loss itself says what it takes
    keep = target != ignored
    return outputs.movedim(1, -1)[keep], target[keep]


def _with_weight(module: nn.Module, given: tuple[Any, ...], value: Any) -> Any:
    return value if isinstance(value, tuple) else (value, len(given[1]))


def text_in_force(text: str, in_force: Mapping[str, float]) -> str:
    """Return the loss as it stands at a moment of a training: driven weights and settings as the numbers in force.

    `in_force` is what `landscape.training.driver.Driver.step` returned: `weight.TERM`, `loss.SETTING`,
    `loss.TERM.SETTING`. A loss that nothing drives comes back as it was.
    """
    parsed = losses.parse(text)
    names = _distinct([call.name for _, call in parsed])
    single = len(parsed) == 1 and parsed[0][0].coefficient == 1 and len(parsed[0][0].calls) == 1
    found = []
    for name, (product, call) in zip(names, parsed, strict=True):
        prefix = "loss." if single else f"loss.{name}."
        driven = {
            k.removeprefix(prefix): v
            for k, v in in_force.items()
            if k.startswith(prefix) and "." not in k.removeprefix(prefix)
        }
        if driven:
            given = dict(zip(losses.entry(call.name).options, call.given, strict=False))
            call = Call(call.name, (), {**given, **call.named, **driven})
        found.append(Product(in_force.get(f"weight.{name}", product.coefficient), (call,)))
    return " + ".join(map(str, found))
