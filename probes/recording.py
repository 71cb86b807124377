"""What goes on in a recorded training: what each optimizer's hooks tell, and what that sets off until the end."""

from __future__ import annotations

import math
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.archive.history import History
from landscape.archive.segments import live_folder
from landscape.errors import MeasurementError

from .attachment import Attachment
from .between import Between
from .clipping import Clipping
from .ending import finish
from .following import difference, follow
from .logged import Logged
from .opening import Opened
from .probe import Followed, Now, Probe, Quantity, Run
from .saving import Saving
from .sink import Sink
from .terms import LossTerms
from .timing import Timed

#: Models that are being recorded.
_RECORDED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def is_recorded(model: nn.Module) -> bool:
    """Whether a recorder is attached to this model."""
    return model in _RECORDED


class Recording:
    """A recorder's inside, which the attachments belong to (see `attachment.Owner`): it lives as long as their hooks.

    Args:
        path: the archive.
        run, sink, saving: where probes look, where rows go, how checkpoints are written.
        opened: the archive as it was made or found.
        optimizers: by name.
        rank, world: this process of a distributed training, and how many there are.
        budget: the share of the run's time that all recording may take; None for no such limit.
    """

    def __init__(
        self,
        path: Path,
        run: Run,
        sink: Sink,
        saving: Saving,
        opened: Opened,
        optimizers: Mapping[str, torch.optim.Optimizer],
        rank: int,
        world: int,
        budget: float | None,
    ) -> None:
        self._budget = budget
        self._path, self._run, self._sink, self._saving, self._opened = path, run, sink, saving, opened
        self._optimizers, self._rank, self._world = optimizers, rank, world
        self._first = run.followed[0].name
        self.logged = Logged(run)
        #: Of a resumed run, seconds that earlier sessions spent recording; budgets are each session's own.
        sink.earlier, self._earlier = opened.spent()
        #: Seconds spent recording so far.
        self.seconds = 0.0
        self.all_steps = 0
        self.closed = self.began = self.measured = False
        self._probes: list[Timed] = []
        self._attached: dict[str, Attachment] = {}
        _RECORDED.add(run.model)

    # --------------------------------------------------------------------------------------- beginning

    def start(self, probes: Sequence[Probe]) -> None:
        """Begin: probes declare what they record, hooks are attached, and a resumed run goes on from where it was."""
        own = (
            Quantity("time", ("elapsed", "recording"), "s", "seconds of training since the run began, and recording"),
        )
        self._sink.declare(own)
        decided = self._opened.decided
        for probe in probes:
            if self._rank and not probe.everywhere(self._run):
                continue
            timed = Timed(probe, self._run, decided.get(probe.name, {}), self._world)
            self._sink.declare(timed.start())
            self._probes.append(timed)
        results = live_folder(self._path) if self._rank == 0 else None
        session, spent = self._opened.session, lambda: self.seconds
        self.between = Between(self._run, self._sink, self._probes, results, session, self._world, self._budget, spent)
        self._to_prepare = [t for t in self._probes if t.wants_ready]
        self._terms = [t for t in self._probes if isinstance(t.probe, LossTerms)]
        #: Whether something may happen between any two steps.
        self._pauses = bool(
            self.between.budgeted or self.between.slow or self._saving.when is not None or self._to_prepare
        )
        self._attached = {f.name: Attachment(self, self._run, f, self._probes) for f in self._run.followed}
        self.clipping = Clipping(self._run, self._probes, self._attached)
        if self._opened.taken:
            self._go_on_from(self._opened.taken[self._first], self._opened.epoch, self._opened.taken)
        self._opened.earlier = History()  # a long run's record is large, and nobody needs it any more
        self._prepare()

    def begin(self, *, everywhere: bool = False) -> None:
        """Before the first step: note where the training starts, and measure there.

        Processes that train together do that where `everywhere` says that all of them come by, in a step or at the end
        of an epoch: a loop may log in one of them alone, which would then wait for the others.
        """
        if not self.began:
            self._note_begin()
        if not self.measured and (everywhere or self._world == 1):
            self.measured = True
            if self._run.step == 0:
                self.between.measure(Now(0, 0))

    def _note_begin(self) -> None:
        self.began = True
        if self._opened.session:
            by = {f.suffix: self._attached[f.name].taken for f in self._run.followed if f.suffix}
            self._sink.facts(resumed_at=self._run.step, resumed_by=by)
            self._run.event("resumed", f"goes on from step {self._run.step}")
        tensors = sum(len(f.parameters) for f in self._run.followed)
        self._run.event("start", f"{type(self._run.model).__name__}, {tensors} parameter tensors")

    def _go_on_from(self, step: int, epoch: int, taken: Mapping[str, int] | None = None) -> None:
        self._run.step, self._run.epoch = step, epoch
        for name, attached in self._attached.items():
            attached.taken = int((taken or {}).get(name, step))

    def _prepare(self) -> None:
        """Let probes prepare for the step that comes."""
        for timed in self._to_prepare:
            if timed.due(self._run.step + 1):
                timed.call(lambda p: p.ready(self._run, self._run.step + 1))

    # --------------------------------------------------------------------------------------- what attachments tell

    def stepped(self, followed: Followed, number: int, closure: bool, started: float) -> None:
        """Record what was logged for a step that was taken, and let probes between steps have their turn."""
        before, sink = self.seconds, self._sink
        self.all_steps += 1
        if followed.name == self._first:
            self._run.step = number
            self.logged.commit(number, closure=closure)
            if self._pauses:
                self._after_step(number)
            now = time.perf_counter()
            elapsed = sink.earlier + now - sink.began
            sink.record("time", number, (elapsed, self._earlier + before + now - started))
        sink.commit()
        self.seconds = before + time.perf_counter() - started

    def cut_short(self, followed: Followed, number: int) -> None:
        """Count a step whose hooks were interrupted, and record the loss that was logged for it."""
        self.all_steps += 1
        if followed.name == self._first:
            self._run.step = number
            self.logged.commit(number, closure=False)

    def zeroed(self, name: str) -> None:
        """An optimizer's gradients were zeroed, behind a step or before the first."""
        if name == self._first:
            self.logged.zeroed(thrown=False)

    def thrown_away(self, followed: Followed, number: int) -> None:
        """Gradients were zeroed without a step: GradScaler skipped it."""
        if self._sink.columns(f"skipped{followed.suffix}"):
            self._sink.record(f"skipped{followed.suffix}", number, (1.0, math.nan))
        self._run.event("skipped_step", "gradients were thrown away without a step", number)
        if followed.name == self._first:
            self.logged.zeroed(thrown=True)
        for timed in self._probes:
            timed.discard()

    def changed(self, name: str) -> None:
        """Follow parameters that came or went: layers that were unfrozen into a group of their own, or replaced."""
        old = self.followed(name)
        try:
            self._run.followed = follow(self._run.wrapped, self._optimizers)
        except MeasurementError as error:
            self._run.event("parameters_changed", f"recorded as before: {error}")
            return
        new = self.followed(name)
        for f in self._run.followed:
            self._attached[f.name].followed = f
        self._run.event("parameters_changed", f"parameters of the optimizer: {difference(old, new)}")
        for timed in self._probes:
            self._sink.declare(timed.start())

    # --------------------------------------------------------------------------------------- what the loop tells

    def terms(self, terms: Mapping[str, Tensor]) -> None:
        """The terms of the coming step's loss, whose graph is still to be gone through."""
        for timed in self._terms:
            if timed.due(self._run.step + 1):
                timed.call(lambda p: p.terms(self._run, self._run.step + 1, terms))

    def skipped(self, optimizer: str | None) -> None:
        """The coming step of this optimizer is skipped."""
        name = self.named(optimizer).name
        if not self.closed:
            self._attached[name].skipped()

    def about_to_clip(self, optimizer: str | None) -> Followed:
        """Return what this optimizer moves now: the step's own hook, which would notice a change, comes too late."""
        name = self.named(optimizer).name
        if not self.closed:
            self._attached[name].look_anew()
        return self.followed(name)

    def clip(self, optimizer: str | None, clip: Callable[[Any], Any], limit: float, *, by_norm: bool) -> Any:
        """Let `clip` clip the gradients of this optimizer, take note of it, and return what it returns."""
        f = self.about_to_clip(optimizer)
        started = time.perf_counter()
        before = None if self.closed else self.clipping.before(f)
        self.seconds += time.perf_counter() - started
        total = clip([p for p in f.parameters if p.grad is not None])
        started = time.perf_counter()
        if not self.closed:
            self.clipping.after(f, before, total if by_norm else None, limit)
        self.seconds += time.perf_counter() - started
        return total

    def end_epoch(self) -> None:
        """An epoch has ended behind the last step."""
        started, before = time.perf_counter(), self.seconds
        self.begin(everywhere=True)
        self._run.epoch += 1
        self._sink.declare([Quantity("epoch", ("epoch",), "", "epochs ended at this step", "epoch")])
        self._sink.record("epoch", self._run.step, (float(self._run.epoch),))
        self._pause(ends_epoch=True)
        self.seconds = before + time.perf_counter() - started

    def end_evaluation(self, *, everywhere: bool) -> None:
        """Evaluate what was observed, by all processes of a distributed training or by the first."""
        started, before = time.perf_counter(), self.seconds
        if everywhere and self._world > 1:
            self.between.gather()
        self.between.evaluate()
        self.seconds = before + time.perf_counter() - started

    # --------------------------------------------------------------------------------------- between steps

    def _after_step(self, number: int) -> None:
        if self.between.budgeted:
            self.between.stepped(number)
        if self.between.slow or self._saving.when is not None:
            self._pause(ends_epoch=False)
        if self._to_prepare:
            self._prepare()

    def _pause(self, *, ends_epoch: bool) -> None:
        now = Now(self._run.step, self._run.epoch, ends_epoch)
        if ends_epoch:
            self.between.evaluate()
        self.between.measure(now)
        if self._rank == 0 and self._saving.due(now):
            self._saving.along_the_way(self.state_dict())

    # --------------------------------------------------------------------------------------- whose, and how far

    @property
    def steps(self) -> dict[str, int]:
        """Steps taken so far by each optimizer, by its name."""
        return {name: attached.taken for name, attached in self._attached.items()}

    def followed(self, name: str) -> Followed:
        """Return what the optimizer of this name moves."""
        return next(f for f in self._run.followed if f.name == name)

    def named(self, optimizer: str | None) -> Followed:
        """Return the same of the only optimizer, or of one that was named; MeasurementError where that says nothing."""
        if optimizer is None:
            if len(self._optimizers) > 1:
                raise MeasurementError(
                    f"there are several optimizers; say which: optimizer={next(iter(self._optimizers))!r}"
                )
            return self._run.followed[0]
        if optimizer not in self._optimizers:
            raise MeasurementError(f"no optimizer {optimizer!r}; there are {', '.join(self._optimizers)}")
        return self.followed(optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values; every row so far is written first."""
        if not self.closed:
            self._sink.flush()
        return {
            "step": self._run.step,
            "epoch": self._run.epoch,
            "taken": self.steps,
            "probes": {t.probe.name: {**t.state_dict(), "own": t.probe.state_dict()} for t in self._probes},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken. Raises MeasurementError once a step was taken or anything logged."""
        if self.began:
            raise MeasurementError("load_state_dict comes before the first step or log of a resumed run, not after it")
        self._go_on_from(int(state["step"]), int(state["epoch"]), state.get("taken"))
        for timed in self._probes:
            saved = state.get("probes", {}).get(timed.probe.name)
            if saved is not None:
                timed.load_state_dict(saved)
                timed.probe.load_state_dict(saved.get("own", {}))
        self._prepare()

    # --------------------------------------------------------------------------------------- end

    def close(self, status: str = "complete") -> None:
        """Detach, and finish the archive with this status; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self.detach()
        if self._rank:
            return
        if self._opened.session == 0:
            for timed in self._probes:
                if text := timed.nothing_recorded(self._run.step, self._run.epoch):
                    self._run.event("not_measured", text)
        told = [*(t.over_budget(self._sink.elapsed) for t in self._probes), self._over_budget()]
        seconds = self._earlier + self.seconds
        problem = finish(self._path, self._run, self._sink, self._opened, status, filter(None, told), seconds)
        if problem is not None:
            warnings.warn(problem, RuntimeWarning, stacklevel=3)

    def _over_budget(self) -> str:
        """Return in words that recording took more than its budget; "" where it did not."""
        elapsed = self._sink.elapsed
        if self._budget is None or self.seconds <= self._budget * elapsed:
            return ""
        return (
            f"recording took {self.seconds:.3g} s, {self.seconds / elapsed:.1%} of the run's {elapsed:.3g} s, more "
            f"than its budget of {self._budget:.1%}: what looks at every step is never left out, nor is the first "
            "point of a probe that costs time; let probes look less often, as GradientNorms(every(steps=10)) does"
        )

    def withdraw(self) -> None:
        """Detach from a loop that never began, and leave the disk as it was before this recorder; see `ending`."""
        if not self.closed:
            self.closed = True
            self.detach()
            self._opened.undo()

    def detach(self) -> None:
        """Leave the optimizers and the model as they were."""
        for attached in self._attached.values():
            attached.remove()
        for timed in self._probes:
            timed.call(lambda p: p.close())
        _RECORDED.discard(self._run.model)
