"""A loss from the registry in the place of a task's own: how a sweep trains it, and how a checkpoint names it."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import TrainingError
from ..tasks import Task
from .expressions import Call, Product
from .loss import bind
from .registries import losses
from .weighted import _distinct


def with_loss(task: Task, text: str) -> Task:
    """Return the task with the loss that a string describes, as `landscape.losses.build` reads it.

    A part that looks at weights is bound to the task's model; `rebatch` is False where the loss couples the samples of
    a batch. Raises TrainingError for a string that describes none, and for a task that computes its own loss.
    """
    if task.batch_loss is not None:
        raise TrainingError(
            f"the task {task.name or type(task.model).__name__} computes its own loss (batch_loss), so that {text!r} "
            "can't take its place: leave the loss out, or give the task forward= and loss= instead"
        )
    loss = bind(losses.build(text), task.model)
    return task.replace(loss=loss, rebatch=task.rebatch and getattr(loss, "rebatch", True))


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
