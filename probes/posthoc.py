"""Measure checkpoints after training: the one way from a file to an archive, for `landscape probe` and the demo."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.archive.writer import ArchiveWriter
from landscape.errors import LandscapeError, MeasurementError
from landscape.memory import ran_out
from landscape.provenance import provenance
from landscape.report.numbers import span
from landscape.surface.measure import checkpoint_paths

from .execution import Execution
from .outcome import ProbeOutcome
from .prediction import Prediction, measure_pass, measure_speed, predict, total
from .selection import Chosen, choose, samples_to_draw
from .several.jobs import Job, measure_in_workers
from .subjects import Prepared, Tasks, check_paths, task_changes
from .targets import archive_paths
from .workers.lines import portable
from .workers.pool import as_in_a_worker

#: Seconds from which on a run says beforehand how long it will take (chosen by us).
WORTH_SAYING = 30.0


def probe_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] | None = None,
    append: bool = False,
    force: bool = False,
    resume: bool = False,
    time_limit: float | None = None,
    progress: bool = False,
    workers: int = 1,
    **how: Any,
) -> list[ProbeOutcome]:
    """Measure each checkpoint, write each result to the archive at once, and return what was found.

    Everything that can be refused is refused before anything is measured: files, tasks, names, devices, data,
    output. A measurement that a task cannot give (calibration without labels) is left out, said and recorded;
    whatever else goes wrong stops the run, and the archive keeps what was measured until then, as after Ctrl-C.

    Args:
        checkpoints: files or folders.
        out: one archive for all; None writes `<checkpoint>.landscape.h5` for each into the current folder.
        append, force: add to an archive that exists, or replace it.
        resume: go on where an earlier run was interrupted or killed: what is in the archive (or in what a killed run
            left beside it) for the same checkpoint, task, settings, loss, data and options is not measured again, and a
            surface that was under way takes over its points, bit for bit; of what is measured anew it is said why.
        time_limit: seconds after which no measurement is begun, and a surface stops with the best picture so far; the
            archive's status is then "interrupted".
        progress: show bars on stderr.
        workers: processes that measure a checkpoint each at a time; where there are fewer checkpoints, several share
            one's draw: products, slices, planes and paths go faster, the rest each does by itself. 1 measures in
            this one. On GPUs one each, in turn; on a CPU with one thread each (or as OMP_NUM_THREADS says), which gives
            the numbers of one process with as many threads: bit for bit, and what stands on Hessian products to
            rounding, as another run of one process would (trials of their speed decide how they are made). Each takes
            some seconds to begin, and loads the task by itself. A checkpoint that fails, or whose process dies twice,
            doesn't stop the others.
        how: what to measure, and on what; see `plan_run`.

    Raises LandscapeError of the kind that fits; of several workers NotAllMeasured, with the outcomes of the others.
    """
    return plan_run(checkpoints, **how).measure(
        out=out,
        append=append,
        force=force,
        resume=resume,
        time_limit=time_limit,
        progress=progress,
        workers=workers,
    )


def plan_run(
    checkpoints: Sequence[str | os.PathLike[str]],
    *,
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
    only: Sequence[str] | None = None,
    preset: str = "standard",
    also: Sequence[str] = (),
    options: Mapping[str, Mapping[str, Any]] | None = None,
    device: str = "auto",
    dtype: str | None = None,
    seed: int | None = None,
    max_samples: int | None = None,
    weights: str | None = None,
    trust_pickle: bool = False,
    root: str | os.PathLike[str] = ".",
    say: Callable[[str], None] | None = None,
) -> Plan:
    """Return what would be measured, with every checkpoint loaded into its task once, and measure nothing.

    Args:
        task, settings: "file.py:name" and its keyword arguments; None takes the task that a checkpoint names.
        only: names or sections of measurements; None runs the default ones.
        also: measurements to make beside those, such as "reference".
        preset: quick (1,024 samples), standard (4,096) or thorough (all); a task's own smaller max_samples stays.
        options: {measurement: {option: value}}, over those of the preset.
        device: "auto" is CUDA where there is one, else where the model is. dtype: "float32" or "float64".
        seed: of the draw and of every random vector; None takes the task's own (0 unless it says otherwise).
        max_samples: size of each split's draw, before the preset's and the task's own.
        weights, trust_pickle: as in `read_checkpoint`.
        root: the folder below which a checkpoint may name task files.
        say: is told what is called and what is measured, a line each.

    Raises CheckpointError, TaskError, and UnknownName for a preset, measurement or option that there is not.
    """
    say = say or (lambda text: None)
    paths = tuple(os.fspath(p) for p in checkpoints)
    check_paths(paths)
    choose((), preset)
    how = {
        "task": task,
        "settings": dict(settings or {}),
        "only": only,
        "preset": preset,
        "also": also,
        "options": options or {},
        "device": device,
        "dtype": dtype,
        "seed": seed,
        "max_samples": max_samples,
        "weights": weights,
        "trust_pickle": trust_pickle,
        "root": root,
    }
    tasks = tasks_of(how, say)
    prepared = tuple(tasks.prepare(path) for path in paths)
    plane = dict((options or {}).get("plane", {}))
    if plane.get("directions") == "trajectory" and list(plane.get("checkpoints", ())) == list(paths):
        prepared, paths = _in_time(prepared, say)
        how["options"] = {**how["options"], "plane": {**plane, "checkpoints": list(paths)}}
    # A task file may register measurements of its own, so the names are looked up after the tasks are loaded.
    return Plan(paths, tasks, prepared, tuple(choose(only, preset, how["options"], also)), preset, say, how)


def tasks_of(how: Mapping[str, Any], say: Callable[[str], None]) -> Tasks:
    """Return what loads checkpoints into their tasks, from the arguments of `plan_run`."""
    return Tasks(
        task=how["task"],
        settings=how["settings"],
        weights=how["weights"],
        trust_pickle=how["trust_pickle"],
        root=how["root"],
        changes=task_changes(how["device"], how["dtype"], how["seed"]),
        samples=lambda t: samples_to_draw(t, how["preset"], how["max_samples"]),
        say=say,
    )


@dataclass(frozen=True)
class Plan:
    """Checkpoints that fit their tasks, and the measurements to make on each; `how` are the arguments of `plan_run`."""

    paths: tuple[str, ...]
    tasks: Tasks
    prepared: tuple[Prepared, ...]
    chosen: tuple[Chosen, ...]
    preset: str
    say: Callable[[str], None]
    how: Mapping[str, Any]

    def loaded(self) -> Iterator[Prepared]:
        """Yield each checkpoint's task with its weights in the model, one after the other."""
        for path, ready in zip(self.paths, self.prepared, strict=True):
            # Checkpoints of one task share its model, which holds the weights of the last one: load them again.
            yield ready if len(self.paths) == 1 else self.tasks.prepare(path)

    def predict(self, workers: int = 1) -> list[tuple[Prepared, int, list[Prediction]]]:
        """Return for each checkpoint the samples of its draw, and what each measurement is expected to take there.

        Costs about 30 passes over one batch of each, with as many threads as one of `workers` has.
        """
        found = []
        with self._threads(workers):
            for ready in self.loaded():
                samples = ready.task.draw(ready.split).samples
                found.append((ready, samples, predict(self.wanted(ready), measure_speed(ready.task), samples)))
        return found

    def wanted(self, ready: Prepared) -> list[Chosen]:
        """Return the measurements to make on a checkpoint: a trajectory's plane on its last one alone."""
        return [c for c in self.chosen if not _around_another(c, ready)]

    def measure(
        self,
        *,
        out: str | os.PathLike[str] | None = None,
        append: bool = False,
        force: bool = False,
        resume: bool = False,
        time_limit: float | None = None,
        progress: bool = False,
        workers: int = 1,
    ) -> list[ProbeOutcome]:
        """Make the measurements; see `probe_checkpoints`."""
        if workers < 1:
            raise MeasurementError(f"workers={workers} must be at least 1")
        workers, each = divided(workers, len(self.paths))
        how = {k: portable(v, k) for k, v in self.how.items()} if workers * each > 1 else {}
        deadline = None if time_limit is None else time.monotonic() + time_limit
        writers: list[ArchiveWriter] = []
        try:
            with contextlib.ExitStack() as stack:
                writers += self._open(stack, out, append, force, resume)
                self._announce(workers * each)
                ends = _Ends(writers)
                if workers * each > 1:
                    outcomes, reused = measure_in_workers(
                        self._jobs(writers, ends),
                        how,
                        workers,
                        each,
                        through=ends.through,
                        deadline=deadline,
                        progress=progress,
                        say=self.say,
                    )
                else:
                    outcomes, reused = self._measure_here(writers, ends, deadline, progress)
                kept = sum(len(rows) for w in dict.fromkeys(writers) for rows in w.unfinished.values())
                if kept and not reused:
                    self.say(f"of the {kept:,} points of the earlier run none was used")
        except BaseException:
            kept = [str(w.path) for w in dict.fromkeys(writers) if w.results and w.path.exists()]
            if kept:
                self.say(f"what was measured until now is kept in {', '.join(kept)}")
            raise
        return outcomes

    def _measure_here(
        self, writers: Sequence[ArchiveWriter], ends: _Ends, deadline: float | None, progress: bool
    ) -> tuple[list[ProbeOutcome], int]:
        outcomes, reused = [], 0
        for i, ready in enumerate(self.loaded()):
            several = len(self.paths) > 1
            name = f"[{i + 1}/{len(self.paths)}] {ready.checkpoint.path}" if several else ""
            wanted = self.wanted(ready)
            unfinished: list[str] = []
            if wanted:
                run = Execution(ready, wanted, self.preset, self.say, writers[i], progress, deadline)
                outcomes.append(run.measure(name))
                unfinished = run.unfinished
                reused += run.log.reused
            else:
                self._say_elsewhere(name or ready.checkpoint.path)
            ends.through(i, unfinished)
        return outcomes, reused

    def _jobs(self, writers: Sequence[ArchiveWriter], ends: _Ends) -> list[Job]:
        """Return the checkpoints for workers; one that has nothing to be measured is through already."""
        jobs = []
        for i, ready in enumerate(self.prepared):
            wanted = [c.measurement.name for c in self.wanted(ready)]
            job = Job(i, len(self.paths), ready, wanted, writers[i])
            if wanted:
                jobs.append(job)
            else:
                self._say_elsewhere(job.name)
                ends.through(i)
        return jobs

    def _say_elsewhere(self, name: str) -> None:
        self.say(f"{name} is a point of the trajectory, whose plane lies elsewhere")

    def _threads(self, workers: int) -> contextlib.AbstractContextManager[None]:
        """Return what gives torch as many threads as one of several workers has, where they measure on a CPU."""
        on_cpu = all(ready.device == "cpu" for ready in self.prepared)
        return as_in_a_worker() if workers > 1 and on_cpu else contextlib.nullcontext()

    def _open(
        self, stack: contextlib.ExitStack, out: str | os.PathLike[str] | None, append: bool, force: bool, resume: bool
    ) -> list[ArchiveWriter]:
        """Return the writer for each checkpoint, one for all where `out` is given; targets are checked here."""
        targets = archive_paths(self.paths, out)
        writers: dict[Path, ArchiveWriter] = {}
        for target, ready in zip(targets, self.prepared, strict=True):
            if target not in writers:
                # The root says what all results share; with several runs in one file each subject says its own.
                run = {"task": ready.reference, **ready.run} if targets.count(target) == 1 else {}
                described = provenance(seed=ready.task.seed, device=ready.device)
                writers[target] = stack.enter_context(
                    ArchiveWriter(
                        target,
                        run=run,
                        attributes=described,
                        mode="append" if append else "new",
                        force=force,
                        resume=resume,
                    )
                )
        return [writers[target] for target in targets]

    def _announce(self, workers: int) -> None:
        """Say how long the run will take, if that is long: from one pass over one batch, then from careful timing."""
        ready = self.prepared[0]
        # Several processes of one checkpoint are at best as many times as fast, and at worst not any faster.
        least, most = len(self.paths) / workers, len(self.paths) / divided(workers, len(self.paths))[0]
        try:
            with self._threads(workers):
                samples = ready.task.draw(ready.split).samples
                rough = total(predict(self.chosen, measure_pass(ready.task), samples))
                if rough.high * most < WORTH_SAYING / 2:
                    return
                found = predict(self.chosen, measure_speed(ready.task), samples)
        except (LandscapeError, RuntimeError, MemoryError) as error:
            if not (isinstance(error, LandscapeError) or ran_out(error)):
                raise
            return  # the measurements themselves will say what is wrong
        takes = total(found).times(least, most)
        if takes.high >= WORTH_SAYING:
            longest = max(found, key=lambda p: p.seconds.high if p.seconds.known else 0.0)
            self.say(
                f"this will take {span(takes.low, takes.high)}, most of it for {longest.name}; --time-limit stops "
                "earlier, and --resume goes on after an interruption"
            )


def divided(workers: int, checkpoints: int) -> tuple[int, int]:
    """Return how many checkpoints are measured at a time by so many processes, and by how many each."""
    at_a_time = min(workers, checkpoints)
    return at_a_time, workers // at_a_time


class _Ends:
    """Finishes each archive when the last of its checkpoints is through."""

    def __init__(self, writers: Sequence[ArchiveWriter]) -> None:
        self._writers = writers
        self._open = Counter(writers)
        self._left: dict[ArchiveWriter, list[str]] = {}

    def through(self, number: int, unfinished: Sequence[str] = ()) -> None:
        """Take that the checkpoint of this number is measured, but for what the time limit left."""
        writer = self._writers[number]
        left = self._left.setdefault(writer, [])
        left.extend(unfinished)
        self._open[writer] -= 1
        if not self._open[writer]:
            # Without any result "interrupted" leaves no file behind.
            writer.close("interrupted" if left or not (writer.results or writer.earlier) else "complete")


def _in_time(
    prepared: tuple[Prepared, ...], say: Callable[[str], None]
) -> tuple[tuple[Prepared, ...], tuple[str, ...]]:
    """Return checkpoints, and their paths, by their steps where all know theirs: a shell puts step-10 before step-9."""
    steps = [p.checkpoint.step for p in prepared]
    known = [s for s in steps if s is not None]
    if len(known) == len(steps) and known != sorted(known):
        order = sorted(range(len(known)), key=known.__getitem__)  # stable
        prepared = tuple(prepared[i] for i in order)
        say(f"the trajectory goes by the checkpoints' steps: {', '.join(map(str, sorted(known)))}")
    return prepared, tuple(p.checkpoint.path for p in prepared)


def _around_another(c: Chosen, ready: Prepared) -> bool:
    """Say whether this is the plane of a trajectory that ends in another checkpoint: the last one is its center."""
    if c.options.get("directions") != "trajectory":
        return False
    last = checkpoint_paths(c.options.get("checkpoints"))[-1]
    return Path(last).resolve() != Path(ready.checkpoint.path).resolve()
