"""The training loop of one cell: steps, divergence, validation, and a state from which it goes on bit for bit."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from landscape.batch import as_tensor, to_device
from landscape.errors import TrainingError
from landscape.labels import hits
from landscape.outputs import forward_of, prediction_of
from landscape.reduction import known_weight, split_value
from landscape.tasks import Task
from landscape.training.phasing import unfreeze
from landscape.training.sam import SAM

from ..workers.stopping import Interrupted, Stop
from .parts import CLIP, UNFREEZE, Parts, raw_loss

#: Steps between two looks at the losses (chosen by us: on a GPU each look waits for the device).
LOOK = 25
#: A training has diverged when the mean loss of so many steps exceeds its first one by this factor (chosen by us:
#: catapults (Lewkowycz et al. 2020, arXiv:2003.02218), from which trainings come back, stay below).
DIVERGED = 1e3
#: Calibrations that are recorded in a training (chosen by us: each takes some 50 ms and 50 kB, more than a small net's
#: epoch; test loss and accuracy are recorded at every evaluation).
CALIBRATIONS = 10
#: Seconds between two saved states, and the most of the time that saving may take (chosen by us).
SAVE_SECONDS, SAVE_SHARE = 20.0, 0.01


class Diverged(Exception):
    """The loss left every bound; the message says at which step, and what it was."""


class Log(Protocol):
    """What a training tells of itself: a Recorder, or nothing."""

    #: Whether a probe evaluates what `observe` is shown.
    evaluates: bool

    def log(self, **values: Any) -> None: ...
    def scheduled(self, values: Mapping[str, float]) -> None: ...
    def clip_grad_norm_(self, max_norm: float) -> Any: ...
    def observe(self, logits: Any = None, labels: Any = None, *, split: str = "val") -> None: ...
    def end_epoch(self) -> None: ...
    def state_dict(self) -> Any: ...


class Training:
    """A cell's training as it stands: `step` optimizer steps taken, `epoch` epochs ended, `position` batches into it.

    Args:
        parts: what it trains with.
        recorder: told of each step and epoch.
        evaluate: every how many epochs the test data are looked at; 0 never.
    """

    def __init__(self, parts: Parts, *, recorder: Log | None = None, evaluate: int = 1) -> None:
        self.parts = parts
        self.recorder = recorder
        self.step = self.epoch = self.position = 0
        #: What the last step's schedules were.
        self.in_force: dict[str, float] = {}
        #: The last epoch's mean training loss, and what the test data gave.
        self.metrics: dict[str, float] = {}
        self.last_loss = math.nan
        self._every = evaluate if parts.task.test is not None else 0
        self._window: list[torch.Tensor] = []
        self._sum, self._count = 0.0, 0
        self._first = math.nan
        self._groups = len(parts.groups)
        self._parameters = [p for p in parts.model.parameters() if p.requires_grad]

    # ------------------------------------------------------------------------------------------- running

    def run(
        self,
        stop: Stop | None = None,
        save: Callable[[], None] | None = None,
        tell: Callable[[Training], None] | None = None,
        save_every: float = SAVE_SECONDS,
    ) -> None:
        """Train to the end of the last epoch.

        Args:
            stop: is asked at each step whether to leave; the state is then saved first.
            save: saves the state; called every `save_every` seconds, or less often where it takes more than 1% of
                the time.
            tell: is told of the progress at every look at the losses.

        Raises Interrupted when it was asked to stop, Diverged when the loss left every bound.
        """
        parts, stop = self.parts, stop or Stop()
        tell = tell or (lambda training: None)
        saved, cost = time.monotonic(), 0.0

        def keep(force: bool = False) -> None:
            nonlocal saved, cost
            now = time.monotonic()
            if save is None or not (force or now - saved >= max(save_every, cost / SAVE_SHARE)):
                return
            save()
            saved = time.monotonic()
            cost = saved - now

        parts.model.train()
        while self.epoch < parts.cell.epochs:
            for batch in parts.batches.epoch(self.epoch, self.position):
                self.take(batch)
                if stop.asked:
                    self._look()
                    keep(force=True)
                    raise Interrupted(stop.why)
                if self.step % LOOK == 0:
                    self._look()
                    tell(self)
                    keep()
            self._look()
            self._end_epoch()
            tell(self)
            keep()

    def take(self, batch: Any) -> None:
        """Take one optimizer step along a batch."""
        parts = self.parts
        if self.position >= parts.batches.per_epoch:
            raise TrainingError(
                f"epoch {self.epoch + 1} has more batches than the {parts.batches.per_epoch} that were counted, "
                "so that the schedules would be shorter than the run; the data must have the same length in every epoch"
            )
        self.in_force = now = parts.driver.step()
        if self.recorder is not None:
            self.recorder.scheduled(now)
        if UNFREEZE in now and int(now[UNFREEZE]) != self._groups:
            self._thaw(int(now[UNFREEZE]))
        if parts.closure:
            value = self._step_by_closure(batch, now)
        else:
            value = self._gradient(batch, now)
            parts.optimizer.step()
        self._window.append(as_tensor(value).detach())
        self.step += 1
        self.position += 1
        if parts.average is not None:
            parts.average.stepped(self.step)

    def _step_by_closure(self, batch: Any, now: Mapping[str, float]) -> torch.Tensor:
        """Take a step of an optimizer that asks for gradients by itself, several times; return the first loss."""
        calls = itertools.count()
        climbs = isinstance(self.parts.optimizer, SAM)  # by its first gradient, whose size means nothing to it

        def closure() -> torch.Tensor:
            first = next(calls) == 0
            return self._gradient(batch, now, log=first, clip=not (climbs and first))

        return self.parts.optimizer.step(closure)  # pyright: ignore

    def _gradient(self, batch: Any, now: Mapping[str, float], *, log: bool = True, clip: bool = True) -> torch.Tensor:
        """Leave the gradient of a batch's loss in the parameters, clipped; return the loss."""
        raw = raw_loss(self.parts.task, batch)
        loss = split_value(raw)[0]
        if self.recorder is not None and log:
            self.recorder.log(loss=raw)
        for p in self._parameters:
            p.grad = None
        loss.backward()
        limit = now.get(CLIP, self.parts.cell.clip)
        if limit is not None and clip:
            cut = self.recorder.clip_grad_norm_ if self.recorder is not None else self._clip
            cut(limit)
        return loss.detach()

    def _clip(self, limit: float) -> None:
        torch.nn.utils.clip_grad_norm_(self._parameters, limit)

    def _thaw(self, count: int) -> None:
        unfreeze(self.parts.groups, count)
        self._groups = count

    def _look(self) -> None:
        """Read the losses since the last look; raise Diverged where they left every bound."""
        if not self._window:
            return
        values = torch.stack(self._window).double().tolist()
        self._window.clear()
        taken = len(values)
        for i, value in enumerate(values):
            self._sum, self._count = self._sum + value, self._count + 1
            if not math.isfinite(value):
                at = max(1, self.step - taken + 1 + i)
                raise Diverged(f"the loss was {value} at step {at} (epoch {self._epoch_of(at)})")
        mean = math.fsum(values) / taken
        self.last_loss = values[-1]
        if math.isnan(self._first):
            self._first = abs(values[0])
        if abs(mean) > DIVERGED * (1 + self._first):
            raise Diverged(
                f"the loss was {mean:.3g} on average before step {self.step} (epoch {self._epoch_of(self.step)}), "
                f"over {DIVERGED:g} times what it began with ({self._first:.3g})"
            )

    def _epoch_of(self, step: int) -> int:
        return (step - 1) // self.parts.batches.per_epoch + 1

    def _end_epoch(self) -> None:
        if self.position < self.parts.batches.per_epoch:
            raise TrainingError(
                f"epoch {self.epoch + 1} had {self.position} batches, not the {self.parts.batches.per_epoch} that the "
                "first count gave: the schedules would be longer than the run; the data must have the same length in "
                "every epoch"
            )
        mean = self._sum / self._count if self._count else math.nan
        self.metrics["train_loss"] = mean
        self.parts.driver.observe(mean)
        last = self.epoch + 1 == self.parts.cell.epochs
        if self._every and (last or (self.epoch + 1) % self._every == 0):
            shown = last or (self.epoch + 1) % max(1, round(self.parts.cell.epochs / CALIBRATIONS)) == 0
            found = evaluate(self.parts, self.recorder if shown else None)
            self.metrics |= found
            if self.recorder is not None:
                self.recorder.log(**found)
        if self.recorder is not None:
            self.recorder.end_epoch()
        self.epoch, self.position = self.epoch + 1, 0
        self._sum, self._count = 0.0, 0

    # ------------------------------------------------------------------------------------------- resuming

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the training depends on, in tensors and plain values."""
        parts = self.parts
        return {
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "driver": parts.driver.state_dict(),
            "average": parts.average.state_dict() if parts.average is not None else None,
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "sum": self._sum,
            "count": self._count,
            "first": self._first,
            "groups": self._groups,
            "metrics": dict(self.metrics),
            "in_force": dict(self.in_force),
            "generators": _generators(),
            "recorder": self.recorder.state_dict() if self.recorder is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned; the generators, too. The recorder is handed its own by whoever made it.

        Raises TrainingError where the state is of another run.
        """
        parts = self.parts
        parts.driver.load_state_dict(state["driver"])
        try:
            parts.model.load_state_dict(state["model"])
            parts.optimizer.load_state_dict(state["optimizer"])
            if parts.average is not None:
                parts.average.load_state_dict(state["average"])
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"the saved state doesn't fit the model: {str(error).splitlines()[0]}") from error
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self._sum, self._count, self._first = state["sum"], state["count"], state["first"]
        if parts.driver.taken:
            # Sets again what the last step had in force: an evaluation may come before the next one.
            parts.driver.taken -= 1
            parts.driver.step()
        self.metrics, self.in_force = dict(state["metrics"]), dict(state["in_force"])
        if state["groups"] != self._groups:
            self._thaw(state["groups"])
        _set_generators(state["generators"])


def averaged(parts: Parts, epoch: int) -> Parts:
    """Return the parts of a training that has ended with its averaged weights in the model's place.

    BatchNorm's running statistics are estimated anew over the training batches of one more epoch.
    """
    assert parts.average is not None
    average, task = parts.average, parts.task
    if average.estimate_statistics(parts.batches.epoch(epoch), lambda model, batch: raw_loss(task, batch, model)):
        note = "BatchNorm's running statistics were estimated anew at the averaged weights"
        parts = replace(parts, notes=(*parts.notes, note))
    return replace(parts, task=task.replace(model=average.model))


def evaluate(parts: Parts, recorder: Log | None = None) -> dict[str, float]:
    """Return test_loss and test_accuracy (where there are labels) in evaluation mode; show a recorder the logits.

    One forward pass over the test data; the loss is weighted by its own denominators, else by samples.
    """
    task, model = parts.task, parts.model
    draw = task.draw("test", max_samples=None)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    total = weights = 0.0
    right, seen = 0.0, 0
    training = model.training
    model.eval()
    inside = False
    try:
        for host, size in zip(draw.batches, draw.sizes, strict=True):
            batch = to_device(host, parts.device, dtype)
            try:
                value, outputs, target = _forward(task, model, batch, graph=inside)
            except RuntimeError as error:
                if inside or "does not require grad" not in str(error):
                    raise
                inside = True  # the task differentiates in its forward pass: a PINN, a force field
                value, outputs, target = _forward(task, model, batch, graph=inside)
            with torch.no_grad():
                mean, weight, _ = split_value(value)
                if weight is None:
                    weight = known_weight(task.loss, outputs, target) if task.batch_loss is None else None
                own = float(weight) if weight is not None else float(size or 1)
                total, weights = total + own * float(mean.detach()), weights + own
                pair, _ = prediction_of(task, model, batch, outputs, target)
                if pair is not None and len(pair[1]):
                    count, among = hits(*pair)
                    right, seen = right + float(count), seen + among
                    if recorder is not None and recorder.evaluates:
                        recorder.observe(*pair, split="test")
    finally:
        model.train(training)
    found = {"test_loss": total / weights if weights else math.nan}
    if seen:
        found["test_accuracy"] = right / seen
    return found


def _forward(task: Task, model: nn.Module, batch: Any, *, graph: bool) -> tuple[Any, Any, Any]:
    """Return (what the loss returned, outputs, target) of a batch; the last two are None for a batch_loss task."""
    with torch.set_grad_enabled(graph):
        if task.batch_loss is not None:
            return task.batch_loss(model, batch), None, None
        outputs, target = forward_of(task, model, batch)
        assert task.loss is not None
        return task.loss(outputs, target), outputs, target


def _generators() -> dict[str, Any]:
    """Return the states of every generator that a model, a loss or data may use, in tensors and plain values."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    version, internal, following = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if cuda else [],
        "numpy": [
            str(name),
            torch.tensor(np.asarray(keys, dtype=np.int64), device="cpu"),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "random": [version, list(internal), following],
    }


def _set_generators(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, internal, following = states["random"]
    random.setstate((version, tuple(internal), following))
