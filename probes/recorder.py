"""The recorder: attaches to a training loop by hooks, and writes what its probes measure into the run's archive."""

from __future__ import annotations

import math
import os
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from landscape.archive.compaction import compact
from landscape.archive.history import History
from landscape.archive.segments import live_folder
from landscape.calibration.inputs import Form
from landscape.errors import ArchiveError, MeasurementError
from landscape.labels import IGNORE_INDEX
from landscape.parameters import unwrap
from landscape.tasks import Task

from .attachment import Attachment
from .between import Between
from .calibration import CalibrationProbe
from .clipping import Clipping
from .ending import close_at_exit
from .following import Optimizers, difference, follow, named_optimizers
from .gradients import GradientNorms
from .logged import Logged
from .observed import Observed
from .opening import open_together, settings_of
from .probe import Followed, Now, Probe, Quantity, Run
from .rates import LearningRate
from .saving import Saving, named_by
from .sink import Sink
from .terms import LossTerms
from .timing import Timed
from .updates import Updates
from .when import When

#: Models that a recorder is attached to.
_RECORDED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def default_probes() -> tuple[Probe, ...]:
    """Return the probes of a recorder that was not told which: what costs a few passes over the weights a step."""
    return (GradientNorms(), Updates(), LearningRate(), CalibrationProbe())


class Recorder:
    """Record a training while it goes on; a context manager around any loop.

        with Recorder("runs/a/run.h5", model, optimizer) as rec:
            for x, y in loader:
                loss = criterion(model(x), y)
                rec.log(loss=loss)
                optimizer.zero_grad(); loss.backward(); optimizer.step()

    The optimizer's own hooks do the rest: nothing else changes, the weights stay bit for bit those of a run without
    recorder, and nothing in the step waits for the device or the disk. Rows go to `<path>.live/` at once, readable
    while the run goes on, and into the archive at the end; an exception leaves the archive with the status "failed",
    Ctrl-C "interrupted", kill -9 with every row that was flushed. A row of step t holds what went into the t-th
    optimizer step.

    Args:
        path: the archive, such as runs/a/run.h5; its folder is made.
        model: the model that trains, compiled, data-parallel or sharded as it is.
        optimizer: its optimizer, or several, as a list or {name: optimizer}; steps are those of the first, and the
            quantities of each carry its name (`update.generator`). Those of a list are called by their class ("muon",
            "adamw") where each is of another, else by their place ("0", "1").
        task: a Task of this model for probes that need data of their own (curvature, surfaces).
        probes: see `landscape.probes`; by default gradient norms, updates, learning rates at every step, and the
            calibration of what `observe` is shown. A list of your own stands instead of these: add to them by
            `[*default_probes(), CurvatureProbe()]`.
        checkpoints: when to write `step-<number>.pt` beside the archive, for instance every(epochs=1).
        task_reference, task_settings: "file.py:name" and its settings, which checkpoints then name, so that
            `landscape probe step-*.pt` needs nothing else. Known where `task` was made by a function marked @task, in
            a file of its own below the current directory, with a model whose parameters have the same names and shapes.
        task_loss: a loss of the registry that stands in for the task's own, in their strings; see `save_checkpoint`.
        facts: settings of the run for tables and reports (loss="focal", schedule="cosine", batch_size=128, ...).
        resume: go on with the archive that is there (and begin one where there is none). `load_state_dict` says at
            which step; rows of later steps are kept as superseded. Without it the run goes on from its last recorded
            step.
        force: replace an archive that is there.
        seed: of sketches and of the probes' random vectors.
        flush_seconds: what a kill may cost, 2 s by default.

    In a distributed training every process makes a Recorder with the same arguments; the first one writes.

    Raises ArchiveError where the archive exists, is being written by another recorder or can't be written;
    MeasurementError for an optimizer of other parameters, and for a second recorder on one model. Later only
    calls raise that are given what they can't take (a loss that is no number): a probe that fails is switched off, and
    rows that can't be written are counted; both are warned about once.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizer: Optimizers,
        *,
        task: Task | None = None,
        probes: Sequence[Probe] | None = None,
        checkpoints: When | None = None,
        task_reference: str | None = None,
        task_settings: Mapping[str, Any] | None = None,
        task_loss: str = "",
        facts: Mapping[str, Any] | None = None,
        resume: bool = False,
        force: bool = False,
        seed: int = 0,
        flush_seconds: float = 2.0,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        inner = unwrap(model)
        if inner in _RECORDED:
            raise MeasurementError("this model has a recorder already; close it before making another one")
        self._optimizers = named_optimizers(optimizer)
        followed = follow(model, self._optimizers)
        chosen = tuple(default_probes() if probes is None else probes)
        _check_probes(chosen)
        if task_reference is None and (known := named_by(task, inner)):
            task_reference, task_settings = known
        settings = settings_of(followed, facts or {}, task_reference)
        self._opened, self._rank, self._world = open_together(self.path, followed, settings, resume=resume, force=force)
        folder = live_folder(self.path) if self._rank == 0 else None
        self._sink = Sink(folder, {"session": self._opened.session}, flush_seconds)
        if task is not None and unwrap(task.model) is not inner:
            task = task.replace(model=inner)
        self._run = Run(model, inner, followed, task, seed, self._sink)
        self._logged = Logged(self._run)
        self._saving = Saving(
            self.path.parent,
            self._run,
            checkpoints,
            reference=task_reference,
            settings=task_settings or {},
            task_loss=task_loss,
            facts=settings,
            run_id=self._opened.run_id,
        )
        self._first = followed[0].name
        self.recording = 0.0
        self.all_steps = 0
        self.closed = self.began = self._told_unevaluated = False
        #: Whether a probe evaluates what `observe` is shown; the same in every process, whichever measures.
        self.evaluates = any(p.evaluates for p in chosen)
        self._probes: list[Timed] = []
        self._attached: dict[str, Attachment] = {}
        _RECORDED.add(inner)
        try:
            self._start(chosen)
            self._attached = {f.name: Attachment(self, self._run, f, self._probes) for f in followed}
            self._clipping = Clipping(self._run, self._probes, self._attached)
            if self._opened.taken:
                self._go_on_from(self._opened.taken[self._first], self._opened.epoch, self._opened.taken)
            self._opened.earlier = History()  # a long run's record is large, and nobody needs it any more
            self._prepare()
        except BaseException:
            self._detach()
            self._opened.undo()
            raise
        close_at_exit(self, self._sink, self._opened)

    # --------------------------------------------------------------------------------------- what a loop calls

    def log(self, **values: Any) -> None:
        """Record named values: numbers, or tensors of one element, which are not waited for.

        A call with `loss=` belongs to an optimizer step, the coming one where it is made before the step, the last one
        where it is made behind it; several calls for one step (micro-batches) are averaged. `loss` may be what a
        weighted sum of losses returns, {term: value}; other names beside it are terms. A call without `loss=` is
        recorded at once, as `logged`. Call it before `backward` where `LossTerms` shall see the terms' gradients. A
        loop that doesn't log at every step says which one it means: `log_at(step, {...})`.

        Raises TypeError and ValueError for values that are no numbers.
        """
        started = time.perf_counter()
        if not self.closed:
            if not self.began:
                self.begin()
            terms = self._logged.add(values)
            if terms:
                for timed in self._terms:
                    if timed.due(self._run.step + 1):
                        timed.call(lambda p: p.terms(self._run, self._run.step + 1, terms))
        self.recording += time.perf_counter() - started

    def log_at(self, step: int, values: Mapping[str, Any], *, bookkeeping: bool = False) -> None:
        """Record named values of a step that was taken already, for loops that learn them later or elsewhere.

        `loss` is the loss of that step, unless it has one; every other name goes to `logged`. `bookkeeping` says that
        they are about the run and not the model (seconds, samples a second): they are kept as `bookkeeping`, and stand
        in no table.
        """
        started = time.perf_counter()
        if not self.closed:
            self.begin()
            if bookkeeping:
                self._logged.keep_books(step, values)
            else:
                self._logged.add_at(step, values)
        self.recording += time.perf_counter() - started

    def observe(
        self,
        logits: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        split: str = "val",
        ignore_index: int | None = IGNORE_INDEX,
        kind: Form | None = None,
        everywhere: bool = False,
        **more: Any,
    ) -> None:
        """Count predictions that the loop made anyway; `end_epoch` (or `end_evaluation`) turns them into a calibration.

        In a distributed training those of the first process are counted, or `everywhere` those of each; see
        `end_evaluation`. Takes what `CalibrationAccumulator.update` takes: logits or probabilities, labels, groups;
        those of a language model as (n, length, classes) and (n, length), so that the tokens of a sequence are known to
        depend on each other. `ignore_index` is torch's -100, `kind` as in `calibration_error` ("multilabel" for labels
        that are each there or not, whole numbers). Both hold from the first batch on. Costs no forward pass.
        Raises MeasurementError for predictions that can't be counted.
        """
        started = time.perf_counter()
        if not self.closed and (self._rank == 0 or everywhere):
            self._warn_unevaluated()
            if split not in self._run.observed:
                self._run.observed[split] = Observed(ignore_index, kind)
            self._run.observed[split].update(logits, labels, **more)
        self.recording += time.perf_counter() - started

    def _warn_unevaluated(self) -> None:
        if not self.evaluates and not self._told_unevaluated:
            self._told_unevaluated = True
            warnings.warn(
                "nothing evaluates what observe() is shown: put CalibrationProbe() among the recorder's probes",
                RuntimeWarning,
                stacklevel=3,
            )

    def scheduled(self, values: Mapping[str, float]) -> None:
        """Record the values in force at the coming step, as `landscape.training.driver.drive` returns them."""
        if not self.closed:
            self.begin()
            self._logged.record("scheduled", self._run.step + 1, values, "values in force, driven by schedules")

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, *, optimizer: str | None = None, **options: Any
    ) -> Tensor:
        """Clip as torch.nn.utils.clip_grad_norm_ does, record the norms before, and return the total norm.

        Of several optimizers `optimizer` names the one whose gradients are clipped. Under GradScaler call
        scaler.unscale_(optimizer) first, as always. Raises TypeError where parameters come first.
        """
        if not isinstance(max_norm, int | float | Tensor):
            raise TypeError(
                f"clip_grad_norm_ of a recorder takes the largest norm alone, got a {type(max_norm).__name__}: it "
                "knows the optimizer's parameters; write rec.clip_grad_norm_(1.0)"
            )
        return self._clip(
            optimizer,
            lambda parameters: nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, **options),
            float(max_norm),
            by_norm=norm_type == 2.0,
        )

    def clip_grad_value_(self, clip_value: float, *, optimizer: str | None = None, **options: Any) -> None:
        """Clip as torch.nn.utils.clip_grad_value_ does, and record the norms before."""
        self._clip(
            optimizer,
            lambda parameters: nn.utils.clip_grad_value_(parameters, clip_value, **options),
            float(clip_value),
            by_norm=False,
        )

    def clipped(self, total_norm: Tensor, max_norm: float, *, optimizer: str | None = None) -> None:
        """Tell what torch.nn.utils.clip_grad_norm_ returned, where the loop clips by itself, right behind it.

        The norms before are those after it over its coefficient (exact, save where a gradient became 0).
        """
        f = self._clipped(optimizer)
        if not self.closed:
            self._clipping.done(f, total_norm, float(max_norm))

    def clipping(self, limit: float, *, by_norm: bool = True, optimizer: str | None = None) -> None:
        """Tell that the gradients are about to be clipped to this norm (or this value), where others do the clipping.

        They have to be unscaled by then. Records the norms before; those after are measured when the step is taken.
        """
        f = self._clipped(optimizer)
        started = time.perf_counter()
        if not self.closed:
            self._clipping.coming(f, float(limit), by_norm=by_norm)
        self.recording += time.perf_counter() - started

    def skipped_step(self, *, optimizer: str | None = None) -> None:
        """Tell that the coming step is skipped (GradScaler found an overflow), in a loop that doesn't call zero_grad of
        the optimizer, where the recorder would see it by itself.
        """
        name = self._named(optimizer).name
        if not self.closed:
            self._attached[name].skipped()

    def end_epoch(self) -> None:
        """Say that an epoch has ended: what was observed is evaluated, and probes that count epochs measure."""
        if self.closed:
            return
        started, before = time.perf_counter(), self.recording
        self.begin()
        self._run.epoch += 1
        self._sink.declare([Quantity("epoch", ("epoch",), "", "epochs ended at this step", "epoch")])
        self._sink.record("epoch", self._run.step, (float(self._run.epoch),))
        self._pause(ends_epoch=True)
        self.recording = before + time.perf_counter() - started

    def end_evaluation(self, *, everywhere: bool = False) -> None:
        """Evaluate what was observed, where an evaluation does not end an epoch.

        `everywhere` brings together what each process of a distributed training observed (with the same word); every
        process then has to call it.
        """
        if not self.closed:
            if everywhere and self._world > 1:
                self._between.gather()
            self._between.evaluate()

    def save(self, path: str | os.PathLike[str] | None = None, **facts: Any) -> Path:
        """Write a checkpoint of the model and every optimizer, by default `step-<number>.pt` beside the archive.

        It names its task where the recorder knows one, holds the recorder's own state and its archive's run_id under
        facts["recorder"], and appears whole or not at all. Raises CheckpointError where it can't be written.
        """
        return self._saving.save(path, self.state_dict(), facts)

    def flush(self) -> None:
        """Write every row now, from this thread: before a program does something that may end it."""
        self._sink.flush()

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self._run.step

    @property
    def followed(self) -> tuple[Followed, ...]:
        """The optimizers, and what each of them moves."""
        return self._run.followed

    @property
    def steps(self) -> dict[str, int]:
        """Steps taken so far by each optimizer, by its name; one alone is called ""."""
        return {name: attached.taken for name, attached in self._attached.items()}

    @property
    def epoch(self) -> int:
        """Epochs ended so far."""
        return self._run.epoch

    @property
    def seconds(self) -> float:
        """Seconds spent recording so far, expensive probes included."""
        return self.recording

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values: put it into your checkpoint.

        Every row so far is written first: a run that goes on from the checkpoint after a kill would miss them for good.
        """
        if not self.closed:
            self.flush()
        return {
            "step": self._run.step,
            "epoch": self._run.epoch,
            "taken": {name: a.taken for name, a in self._attached.items()},
            "probes": {t.probe.name: {**t.state_dict(), "own": t.probe.state_dict()} for t in self._probes},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; call it before the first step of the resumed run.

        Raises MeasurementError once steps were taken or anything was logged.
        """
        if self.began:
            raise MeasurementError("load_state_dict comes before the first step or log of a resumed run, not after it")
        self._go_on_from(int(state["step"]), int(state["epoch"]), state.get("taken"))
        for timed in self._probes:
            saved = state.get("probes", {}).get(timed.probe.name)
            if saved is not None:
                timed.load_state_dict(saved)
                timed.probe.load_state_dict(saved.get("own", {}))
        self._prepare()

    # --------------------------------------------------------------------------------------- beginning and end

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif issubclass(kind, KeyboardInterrupt | SystemExit):
            self.close("interrupted")
        else:
            if error is not None:
                self._sink.event(self._run.step, "failed", f"{kind.__name__}: {' '.join(str(error).split())[:500]}")
            self.close("failed")

    def close(self, status: str = "complete") -> None:
        """Detach, and finish the archive with this status; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._detach()
        if self._rank:
            return
        self._sink.open()
        for told in filter(None, (t.over_budget(self._sink.elapsed) for t in self._probes)):
            self._sink.event(self._run.step, "over_budget", told)
        if self._sink.lost:
            self._sink.event(self._run.step, "lost_rows", f"{self._sink.lost} rows could not be written")
        problem = self._sink.close()
        elapsed = self._sink.elapsed
        try:
            compact(
                self.path,
                status,
                lost_rows=self._sink.lost,
                sessions=self._opened.session + 1,
                steps=self._run.step,
                epochs=self._run.epoch,
                seconds=round(elapsed, 3),
                seconds_recording=round(self.recording, 3),
            )
        except ArchiveError as error:
            problem = str(error)
        finally:
            self._opened.release()  # not before: a reader shall not take a run for a killed one while it is compacted
        if problem is not None:
            warnings.warn(problem, RuntimeWarning, stacklevel=2)

    def withdraw(self) -> None:
        """Detach from a loop that never began, and leave the disk as it was before this recorder; see `ending`."""
        if not self.closed:
            self.closed = True
            self._detach()
            self._opened.undo()

    def _go_on_from(self, step: int, epoch: int, taken: Mapping[str, int] | None = None) -> None:
        self._run.step, self._run.epoch = step, epoch
        for name, attached in self._attached.items():
            attached.taken = int((taken or {}).get(name, step))

    def _start(self, probes: Sequence[Probe]) -> None:
        own = (
            Quantity("time", ("elapsed", "recording"), "s", "seconds since the run began, and those spent recording"),
        )
        self._sink.declare(own)
        decided = self._opened.decisions()
        for probe in probes:
            if self._rank and not probe.everywhere(self._run):
                continue
            timed = Timed(probe, self._run, decided.get(probe.name, {}), self._world)
            self._sink.declare(timed.start())
            self._probes.append(timed)
        results = live_folder(self.path) if self._rank == 0 else None
        self._between = Between(self._run, self._sink, self._probes, results, self._opened.session, self._world)
        self._to_prepare = [t for t in self._probes if t.wants_ready]
        self._terms = [t for t in self._probes if isinstance(t.probe, LossTerms)]
        #: Whether something may happen between any two steps.
        self._pauses = bool(
            self._between.budgeted or self._between.slow or self._saving.when is not None or self._to_prepare
        )

    def _prepare(self) -> None:
        """Let probes prepare for the step that comes."""
        for timed in self._to_prepare:
            if timed.due(self._run.step + 1):
                timed.call(lambda p: p.ready(self._run, self._run.step + 1))

    def begin(self) -> None:
        """Before the first step: note where the training starts, and measure there."""
        if self.began:
            return
        self.began = True
        if self._opened.session:
            by = {f.suffix: self._attached[f.name].taken for f in self._run.followed if f.suffix}
            self._sink.facts(resumed_at=self._run.step, resumed_by=by)
            self._run.event("resumed", f"goes on from step {self._run.step}")
        tensors = sum(len(f.parameters) for f in self._run.followed)
        self._run.event("start", f"{type(self._run.model).__name__}, {tensors} parameter tensors")
        if self._run.step == 0:
            self._between.measure(Now(0, 0))

    # --------------------------------------------------------------------------------------- what attachments tell

    def stepped(self, followed: Followed, number: int, closure: bool, started: float) -> None:
        """Record what was logged for a step that was taken, and let probes between steps have their turn."""
        before, sink = self.recording, self._sink
        self.all_steps += 1
        if followed.name == self._first:
            self._run.step = number
            self._logged.commit(number, closure=closure)
            if self._pauses:
                self._after_step(number)
            now = time.perf_counter()
            sink.record("time", number, (now - sink.began, before + now - started))
        sink.commit()
        self.recording = before + time.perf_counter() - started

    def zeroed(self, name: str) -> None:
        """An optimizer's gradients were zeroed, behind a step or before the first."""
        if name == self._first:
            self._logged.zeroed(thrown=False)

    def thrown_away(self, followed: Followed, number: int) -> None:
        """Gradients were zeroed without a step: GradScaler skipped it."""
        if self._sink.columns(f"skipped{followed.suffix}"):
            self._sink.record(f"skipped{followed.suffix}", number, (1.0, math.nan))
        self._run.event("skipped_step", "gradients were thrown away without a step", number)
        if followed.name == self._first:
            self._logged.zeroed(thrown=True)
        for timed in self._probes:
            timed.discard()

    def changed(self, name: str) -> None:
        """Follow parameters that came or went: layers that were unfrozen into a group of their own, or replaced."""
        old = self._followed(name)
        try:
            self._run.followed = follow(self._run.wrapped, self._optimizers)
        except MeasurementError as error:
            self._run.event("parameters_changed", f"recorded as before: {error}")
            return
        new = self._followed(name)
        for f in self._run.followed:
            self._attached[f.name].followed = f
        self._run.event("parameters_changed", f"parameters of the optimizer: {difference(old, new)}")
        for timed in self._probes:
            self._sink.declare(timed.start())

    # --------------------------------------------------------------------------------------- between steps

    def _after_step(self, number: int) -> None:
        if self._between.budgeted:
            self._between.stepped(number)
        if self._between.slow or self._saving.when is not None:
            self._pause(ends_epoch=False)
        if self._to_prepare:
            self._prepare()

    def _pause(self, *, ends_epoch: bool) -> None:
        now = Now(self._run.step, self._run.epoch, ends_epoch)
        if ends_epoch:
            self._between.evaluate()
        self._between.measure(now)
        if self._rank == 0 and self._saving.due(now):
            self._saving.along_the_way(self.state_dict())

    def _clipped(self, optimizer: str | None) -> Followed:
        """Return what this optimizer moves now: the step's own hook, which would notice a change, comes too late."""
        name = self._named(optimizer).name
        if not self.closed:
            self._attached[name].look_anew()
        return self._followed(name)

    def _clip(self, optimizer: str | None, clip: Any, limit: float, *, by_norm: bool) -> Any:
        f = self._clipped(optimizer)
        started = time.perf_counter()
        before = None if self.closed else self._clipping.before(f)
        self.recording += time.perf_counter() - started
        total = clip([p for p in f.parameters if p.grad is not None])
        started = time.perf_counter()
        if not self.closed:
            self._clipping.after(f, before, total if by_norm else None, limit)
        self.recording += time.perf_counter() - started
        return total

    # --------------------------------------------------------------------------------------- small things

    def _followed(self, name: str) -> Followed:
        return next(f for f in self._run.followed if f.name == name)

    def _named(self, optimizer: str | None) -> Followed:
        if optimizer is None:
            if len(self._optimizers) > 1:
                raise MeasurementError(
                    f"there are several optimizers; say which: optimizer={next(iter(self._optimizers))!r}"
                )
            return self._run.followed[0]
        if optimizer not in self._optimizers:
            raise MeasurementError(f"no optimizer {optimizer!r}; there are {', '.join(self._optimizers)}")
        return self._followed(optimizer)

    def _detach(self) -> None:
        for attached in self._attached.values():
            attached.remove()
        for timed in self._probes:
            timed.call(lambda p: p.close())
        _RECORDED.discard(self._run.model)


def _check_probes(probes: Sequence[Probe]) -> None:
    for probe in probes:
        if not isinstance(probe, Probe):
            what = (
                f"the class {probe.__name__}; make one: {probe.__name__}()" if isinstance(probe, type) else repr(probe)
            )
            raise TypeError(f"probes are instances of landscape.probes.Probe, got {what}")
    names = [p.name for p in probes]
    twice = {n for n in names if names.count(n) > 1}
    if twice:
        raise MeasurementError(f"two probes are called {sorted(twice)[0]!r}: give one of them another name")
