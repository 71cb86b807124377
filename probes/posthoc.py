"""Measure checkpoints after training: the one way from a file to an archive, for `landscape probe` and the demo."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.archive.writer import ArchiveWriter
from landscape.errors import LandscapeError
from landscape.memory import ran_out
from landscape.provenance import provenance
from landscape.report.numbers import span
from landscape.surface.measure import checkpoint_paths

from .execution import Execution
from .outcome import ProbeOutcome
from .prediction import Prediction, measure_pass, measure_speed, predict, total
from .selection import Chosen, choose, samples_to_draw
from .subjects import Prepared, Tasks, check_paths, task_changes
from .targets import archive_paths

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
        how: what to measure, and on what; see `plan_run`.

    Raises LandscapeError of the kind that fits.
    """
    plan = plan_run(checkpoints, **how)
    return plan.measure(out=out, append=append, force=force, resume=resume, time_limit=time_limit, progress=progress)


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
    tasks = Tasks(
        task=task,
        settings=dict(settings or {}),
        weights=weights,
        trust_pickle=trust_pickle,
        root=root,
        changes=task_changes(device, dtype, seed),
        samples=lambda t: samples_to_draw(t, preset, max_samples),
        say=say,
    )
    prepared = tuple(tasks.prepare(path) for path in paths)
    plane = dict((options or {}).get("plane", {}))
    if plane.get("directions") == "trajectory" and list(plane.get("checkpoints", ())) == list(paths):
        prepared, paths = _in_time(prepared, say)
        options = {**(options or {}), "plane": {**plane, "checkpoints": list(paths)}}
    # A task file may register measurements of its own, so the names are looked up after the tasks are loaded.
    return Plan(paths, tasks, prepared, tuple(choose(only, preset, options, also)), preset, say)


@dataclass(frozen=True)
class Plan:
    """Checkpoints that fit their tasks, and the measurements to make on each."""

    paths: tuple[str, ...]
    tasks: Tasks
    prepared: tuple[Prepared, ...]
    chosen: tuple[Chosen, ...]
    preset: str
    say: Callable[[str], None]

    def loaded(self) -> Iterator[Prepared]:
        """Yield each checkpoint's task with its weights in the model, one after the other."""
        for path, ready in zip(self.paths, self.prepared, strict=True):
            # Checkpoints of one task share its model, which holds the weights of the last one: load them again.
            yield ready if len(self.paths) == 1 else self.tasks.prepare(path)

    def predict(self) -> list[tuple[Prepared, int, list[Prediction]]]:
        """Return for each checkpoint the samples of its draw, and what each measurement is expected to take.

        Costs about 30 passes over one batch of each.
        """
        found = []
        for ready in self.loaded():
            samples = ready.task.draw(ready.split).samples
            found.append((ready, samples, predict(self.chosen, measure_speed(ready.task), samples)))
        return found

    def measure(
        self,
        *,
        out: str | os.PathLike[str] | None = None,
        append: bool = False,
        force: bool = False,
        resume: bool = False,
        time_limit: float | None = None,
        progress: bool = False,
    ) -> list[ProbeOutcome]:
        """Make the measurements; see `probe_checkpoints`."""
        deadline = None if time_limit is None else time.monotonic() + time_limit
        writers: list[ArchiveWriter] = []
        outcomes = []
        unfinished: dict[ArchiveWriter, list[str]] = {}
        try:
            with contextlib.ExitStack() as stack:
                writers += self._open(stack, out, append, force, resume)
                self._announce()
                reused = 0
                for i, ready in enumerate(self.loaded()):
                    several = len(self.paths) > 1
                    name = f"[{i + 1}/{len(self.paths)}] {ready.checkpoint.path}" if several else ""
                    chosen = [c for c in self.chosen if not _around_another(c, ready)]
                    left = unfinished.setdefault(writers[i], [])
                    if chosen:
                        run = Execution(ready, chosen, self.preset, self.say, writers[i], progress, deadline)
                        outcomes.append(run.measure(name))
                        left.extend(run.unfinished)
                        reused += run.log.reused
                    else:
                        path = name or ready.checkpoint.path
                        self.say(f"{path} is a point of the trajectory, whose plane lies elsewhere")
                    if writers[i] not in writers[i + 1 :]:
                        # Without any result "interrupted" leaves no file behind.
                        writers[i].close(
                            "interrupted" if left or not (writers[i].results or writers[i].earlier) else "complete"
                        )
                kept = sum(len(rows) for w in dict.fromkeys(writers) for rows in w.unfinished.values())
                if kept and not reused:
                    self.say(f"of the {kept:,} points of the earlier run none was used")
        except BaseException:
            kept = [str(w.path) for w in dict.fromkeys(writers) if w.results and w.path.exists()]
            if kept:
                self.say(f"what was measured until now is kept in {', '.join(kept)}")
            raise
        return outcomes

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

    def _announce(self) -> None:
        """Say how long the run will take, if that is long: from one pass over one batch, then from careful timing."""
        ready = self.prepared[0]
        try:
            samples = ready.task.draw(ready.split).samples
            rough = total(predict(self.chosen, measure_pass(ready.task), samples))
            if rough.high * len(self.paths) < WORTH_SAYING / 2:
                return
            found = predict(self.chosen, measure_speed(ready.task), samples)
        except (LandscapeError, RuntimeError, MemoryError) as error:
            if not (isinstance(error, LandscapeError) or ran_out(error)):
                raise
            return  # the measurements themselves will say what is wrong
        takes = total(found).times(len(self.paths), len(self.paths))
        if takes.high >= WORTH_SAYING:
            longest = max(found, key=lambda p: p.seconds.high if p.seconds.known else 0.0)
            self.say(
                f"this will take {span(takes.low, takes.high)}, most of it for {longest.name}; --time-limit stops "
                "earlier, and --resume goes on after an interruption"
            )


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
