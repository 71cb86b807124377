"""What a cell's strings become: a task with the cell's loss, an optimizer, schedules and batches, all checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from landscape.errors import LandscapeError, TrainingError
from landscape.outputs import forward_of
from landscape.reduction import split_value
from landscape.session import batchnorm_layers
from landscape.tasks import Task
from landscape.training.averaging import Averaging
from landscape.training.driver import Driver, drive
from landscape.training.recipe import Recipe
from landscape.training.registries import losses, optimizers
from landscape.training.task_loss import with_loss

from .batches import Batches
from .grid import FULL, Cell

#: Scalars that the loop itself applies: the largest gradient norm, and how many of the model's children train.
CLIP, UNFREEZE = "clip", "unfreeze"


@dataclass(frozen=True)
class Parts:
    """All that a cell trains with. `groups` are the model's children that have parameters, for progressive unfreezing.

    `average` is the running average of the weights (None: the last ones are kept), `closure` says that the optimizer's
    step takes one, `total` are the optimizer steps of the run, `notes` what is worth knowing about it.
    """

    cell: Cell
    task: Task
    optimizer: torch.optim.Optimizer
    driver: Driver
    batches: Batches
    device: torch.device
    total: int
    groups: tuple[nn.Module, ...]
    notes: tuple[str, ...]
    closure: bool = False
    average: Averaging | None = None

    @property
    def model(self) -> nn.Module:
        """The network that is trained: the task's own."""
        return self.task.model

    @property
    def lr(self) -> float:
        """The learning rate before any schedule."""
        return float(self.optimizer.defaults.get("lr", float("nan")))


def make_parts(cell: Cell, task: Task, device: torch.device | None = None) -> Parts:
    """Return what a cell trains with; the task's model is moved to the device (None: stays where it is).

    Raises LandscapeError (TrainingError, TaskError) for a name, parameter, batch size or schedule that can't be.
    """
    parameters = list(task.model.parameters())
    if not any(p.requires_grad for p in parameters):
        raise TrainingError("the task's model has no parameter that trains")
    device = device if device is not None else parameters[0].device
    floating = next((p.dtype for p in parameters if p.is_floating_point()), torch.float32)
    dtype = task.dtype or floating
    task.model.to(device=device, dtype=dtype)
    if cell.loss:
        task = with_loss(task, cell.loss)
    elif task.loss is None and task.batch_loss is None:
        raise TrainingError("the task has no loss: give Task(loss=...), or name one with --loss")
    if isinstance(task.loss, nn.Module):
        task.loss.to(device)
    recipe = make_recipe(cell)
    full = recipe.full_batch
    if full and cell.batch_size not in (None, FULL):
        raise TrainingError(
            f"{cell.optimizer} steps along the gradient of all data, not of batches of {cell.batch_size}: say "
            "--batch-size full"
        )
    batches = Batches(
        task.train,
        FULL if full else cell.batch_size,
        seed=cell.seed,
        default=task.batch_size,
        device=device,
        dtype=dtype,
        drop_single=bool(batchnorm_layers(task.model)),
    )
    held = [p for p in task.model.parameters() if p.requires_grad]
    optimizer = recipe(task.model if recipe.base is not None else held)
    total = cell.epochs * batches.per_epoch
    groups = tuple(m for m in task.model.children() if any(True for _ in m.parameters()))
    driver = make_driver(cell, optimizer, task.loss, total, batches.per_epoch, len(groups))
    average = Averaging(cell.average, task.model, total, batches.per_epoch) if cell.average else None
    notes = [*batches.notes, *driver.notes]
    if isinstance(task.loss, nn.Module) and any(p.requires_grad for p in task.loss.parameters()):
        notes.append("the loss has parameters of its own, which are not trained")
    return Parts(cell, task, optimizer, driver, batches, device, total, groups, tuple(notes), recipe.closure, average)


def make_recipe(cell: Cell) -> Recipe:
    """Return the recipe of the cell's optimizer, with the cell's learning rate.

    Raises TrainingError for an unknown name or parameter, and for a learning rate that is given twice.
    """
    call = optimizers.parse(cell.optimizer)
    return optimizers.make(call if cell.lr is None else optimizers.with_rate(call, cell.lr))


def make_driver(
    cell: Cell, optimizer: torch.optim.Optimizer, loss: Any, total: int, per_epoch: int, groups: int
) -> Driver:
    """Return the driver of a cell's scalars. Raises TrainingError for a schedule that is longer than the run."""
    if "lr" in cell.drive:
        raise TrainingError(f"the learning rate follows the schedule ({cell.schedule}), and is driven again")
    values = {UNFREEZE: float(groups)}
    if cell.clip is not None or CLIP in cell.drive:
        values[CLIP] = cell.clip if cell.clip is not None else 1.0
    schedules = {"lr": cell.schedule, **cell.drive}
    return drive(optimizer, schedules, total, steps_per_epoch=per_epoch, loss=loss, values=values)


def raw_loss(task: Task, batch: Any, model: nn.Module | None = None) -> Any:
    """Return what the task's loss gives for a batch in training: a mean, (mean, weight) or {term: mean}.

    `model` stands in for the task's own.
    """
    model = task.model if model is None else model
    if task.batch_loss is not None:
        return task.batch_loss(model, batch)
    outputs, target = forward_of(task, model, batch)
    assert task.loss is not None
    return task.loss(outputs, target)


def loss_of(task: Task, batch: Any) -> torch.Tensor:
    """Return the mean loss of a batch in training."""
    return split_value(raw_loss(task, batch))[0]


def _tried(cell: Cell, task: Task, batch: Any) -> Any:
    """Return what `raw_loss` does, with the model's own failures told as such where it is called by itself."""
    if task.batch_loss is not None:
        return raw_loss(task, batch)
    try:
        outputs, target = forward_of(task, task.model, batch)
    except (LandscapeError, torch.OutOfMemoryError):
        raise
    except _FAILURES as error:
        raise _ModelFailed(f"the model fails on the first batch: {_in_a_line(error)}") from error
    if cell.loss:
        losses.check(cell.loss, outputs, target)
    assert task.loss is not None
    return task.loss(outputs, target)


class _ModelFailed(TrainingError):
    """What went wrong has nothing to do with the loss."""


#: What a model or a loss raises that is given what it can't take; anything else is a fault of its own, and shown whole.
_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, AttributeError)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say what was being tried where it fails."""
    try:
        yield
    except (_ModelFailed, torch.OutOfMemoryError):
        raise
    except LandscapeError as error:
        raise TrainingError(f"{what}: {error}") from error
    except _FAILURES as error:
        raise TrainingError(f"{what}: {_in_a_line(error)}") from error


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def try_loss(parts: Parts) -> None:
    """Try the loss on one batch, before anything is trained: does it take these outputs, is it finite, has it a slope.

    Costs a gradient on one batch; buffers are put back, weights and generators not touched.
    Raises TrainingError that says what doesn't fit: the model's own failure is told as the model's, not as the loss's.
    """
    cell, task, model = parts.cell, parts.task, parts.task.model
    what = cell.loss or f"the task's loss {getattr(task.loss, '__name__', type(task.loss).__name__)}"
    batch = next(parts.batches.epoch(0))
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[]), _told(f"{what} doesn't fit the task"):
            mean = split_value(_tried(cell, task, batch))[0]
            if not mean.requires_grad:
                raise TrainingError("its value doesn't depend on any weight that trains")
            if not bool(mean.isfinite()):
                raise TrainingError(f"it is {mean.item()} on the first batch, before any step")
        with _told(f"{what} has no gradient through the model"):
            slopes = torch.autograd.grad(mean, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
            if all(s is None for s in slopes):
                raise TrainingError("no weight that trains has a gradient")
    finally:
        model.train(training)
        with torch.no_grad():
            for n, b in model.named_buffers():
                if n in buffers:
                    b.copy_(buffers[n])
