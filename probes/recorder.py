"""The recorder: attaches to a training loop by hooks, and writes what its probes measure into the run's archive."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from landscape.archive.segments import live_folder
from landscape.calibration.inputs import Form
from landscape.errors import MeasurementError
from landscape.labels import IGNORE_INDEX
from landscape.parameters import unwrap
from landscape.tasks import Task

from .chosen import check_probes, default_probes
from .ending import close_at_exit
from .following import Optimizers, follow, named_optimizers, sharpness_aware, wrappers
from .observed import Observed
from .opening import open_together, settings_of
from .probe import Followed, Probe, Run
from .recording import Recording, is_recorded
from .saving import Saving, named_by
from .sink import Sink
from .when import When, share_of_time


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
            "adamw") where each is of another, else by their place ("0", "1"). Of a wrapper that torch calls no hooks of
            (a Lookahead's, schedule-free) the steps are those of the optimizer inside, which an event says.
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
        budget: the largest share of the run's time for all recording together (0.05: 5%), where a probe's own budget,
            as in log_spaced(budget=0.05), is about that probe alone. Probes that cost time are left out where what
            recording took so far, cheap probes included, and what they took last would exceed it, their first points
            excepted; what looks at every step is never left out. An event ("over_budget") says where it was not kept.

    In a distributed training every process makes a Recorder with the same arguments, and calls `end_epoch`; the first
    one writes, and it is enough that it logs.

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
        budget: float | None = None,
    ) -> None:
        self.path = Path(os.path.realpath(path))
        inner = unwrap(model)
        if is_recorded(inner):
            raise MeasurementError("this model has a recorder already; close it before making another one")
        optimizers = named_optimizers(optimizer)
        followed = follow(model, optimizers)
        chosen = tuple(default_probes() if probes is None else probes)
        check_probes(chosen)
        share_of_time(budget)
        if task_reference is None and (known := named_by(task, inner)):
            task_reference, task_settings = known
        settings = settings_of(followed, facts or {}, task_reference)
        self._opened, self._rank, self._world = open_together(self.path, followed, settings, resume=resume, force=force)
        folder = live_folder(self.path) if self._rank == 0 else None
        self._sink = Sink(folder, {"session": self._opened.session}, flush_seconds)
        if task is not None and unwrap(task.model) is not inner:
            task = task.replace(model=inner)
        self._run = Run(model, inner, followed, task, seed, self._sink)
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
        #: Whether a probe evaluates what `observe` is shown; the same in every process, whichever measures.
        self.evaluates = any(p.evaluates for p in chosen)
        self._told_unevaluated = False
        self._recording = Recording(
            self.path, self._run, self._sink, self._saving, self._opened, optimizers, self._rank, self._world, budget
        )
        try:
            self._recording.start(chosen)
        except BaseException:
            self._recording.detach()
            self._opened.undo()
            raise
        for told in wrappers(optimizer):
            self._run.event("wrapped_optimizer", told)
        for told in sharpness_aware(followed):
            self._run.event("sharpness_aware", told)
        close_at_exit(self._recording, self._sink, self._opened)

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
        started, recording = time.perf_counter(), self._recording
        if not recording.closed:
            recording.begin()
            terms = recording.logged.add(values)
            if terms:
                recording.terms(terms)
        recording.seconds += time.perf_counter() - started

    def log_at(self, step: int, values: Mapping[str, Any], *, bookkeeping: bool = False) -> None:
        """Record named values of a step that was taken already, for loops that learn them later or elsewhere.

        `loss` is the loss of that step, unless it has one; every other name goes to `logged`. `bookkeeping` says that
        they are about the run and not the model (seconds, samples a second): they are kept as `bookkeeping`, and stand
        in no table.
        """
        started, recording = time.perf_counter(), self._recording
        if not recording.closed:
            recording.begin()
            if bookkeeping:
                recording.logged.keep_books(step, values)
            else:
                recording.logged.add_at(step, values)
        recording.seconds += time.perf_counter() - started

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
        self._recording.seconds += time.perf_counter() - started

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
            self._recording.begin()
            self._recording.logged.record(
                "scheduled", self._run.step + 1, values, "values in force, driven by schedules"
            )

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
        return self._recording.clip(
            optimizer,
            lambda parameters: nn.utils.clip_grad_norm_(parameters, max_norm, norm_type, **options),
            float(max_norm),
            by_norm=norm_type == 2.0,
        )

    def clip_grad_value_(self, clip_value: float, *, optimizer: str | None = None, **options: Any) -> None:
        """Clip as torch.nn.utils.clip_grad_value_ does, and record the norms before."""
        self._recording.clip(
            optimizer,
            lambda parameters: nn.utils.clip_grad_value_(parameters, clip_value, **options),
            float(clip_value),
            by_norm=False,
        )

    def clipped(self, total_norm: Tensor, max_norm: float, *, optimizer: str | None = None) -> None:
        """Tell what torch.nn.utils.clip_grad_norm_ returned, where the loop clips by itself, right behind it.

        The norms before are those after it over its coefficient (exact, save where a gradient became 0).
        """
        f = self._recording.about_to_clip(optimizer)
        if not self.closed:
            self._recording.clipping.done(f, total_norm, float(max_norm))

    def clipping(self, limit: float, *, by_norm: bool = True, optimizer: str | None = None) -> None:
        """Tell that the gradients are about to be clipped to this norm (or this value), where others do the clipping.

        They have to be unscaled by then. Records the norms before; those after are measured when the step is taken.
        """
        f = self._recording.about_to_clip(optimizer)
        started = time.perf_counter()
        if not self.closed:
            self._recording.clipping.coming(f, float(limit), by_norm=by_norm)
        self._recording.seconds += time.perf_counter() - started

    def skipped_step(self, *, optimizer: str | None = None) -> None:
        """Tell that the coming step is skipped (GradScaler found an overflow), in a loop that doesn't call zero_grad of
        the optimizer, where the recorder would see it by itself.
        """
        self._recording.skipped(optimizer)

    def end_epoch(self) -> None:
        """Say that an epoch has ended: what was observed is evaluated, and probes that count epochs measure."""
        if not self.closed:
            self._recording.end_epoch()

    def end_evaluation(self, *, everywhere: bool = False) -> None:
        """Evaluate what was observed, where an evaluation does not end an epoch.

        `everywhere` brings together what each process of a distributed training observed (with the same word); every
        process then has to call it.
        """
        if not self.closed:
            self._recording.end_evaluation(everywhere=everywhere)

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
        return self._recording.steps

    @property
    def epoch(self) -> int:
        """Epochs ended so far."""
        return self._run.epoch

    @property
    def seconds(self) -> float:
        """Seconds spent recording so far, expensive probes included."""
        return self._recording.seconds

    @property
    def closed(self) -> bool:
        """Whether the recorder is closed: it then records nothing more."""
        return self._recording.closed

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values: put it into your checkpoint.

        Every row so far is written first: a run that goes on from the checkpoint after a kill would miss them for good.
        """
        return self._recording.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; call it before the first step of the resumed run.

        Raises MeasurementError once steps were taken or anything was logged.
        """
        self._recording.load_state_dict(state)

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
        self._recording.close(status)
