"""Paths between checkpoints, from their files to numbers and an archive: are they connected?"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from landscape.alignment.permuting import Method
from landscape.archive.schema import Subject
from landscape.archive.writer import ArchiveWriter
from landscape.errors import ArchiveError, MeasurementError, TaskError
from landscape.parameters import trainable, unwrap
from landscape.provenance import provenance
from landscape.results import Result, kind_of
from landscape.surface.connectivity import connectivity
from landscape.surface.curve import RATE, STEPS
from landscape.surface.path import POINTS, Curve, Statistics, interpolate

from .selection import samples_to_draw
from .subjects import Prepared, Tasks, check_paths, task_changes
from .targets import archive_paths

SUFFIX, SUFFIX_OF_PAIRS = ".path.h5", ".pairs.h5"


@dataclass(frozen=True)
class PathOutcome:
    """The path through some checkpoints, or the barriers between each two of them, and where the result is."""

    checkpoints: tuple[str, ...]
    task: str
    device: str
    dtype: str
    parameters: int
    result: Result
    archive: str
    seconds: float
    warnings: tuple[str, ...]

    def as_dict(self, report: str | None = None) -> dict[str, Any]:
        """Return the object of `landscape path --json`; NaN and inf are still in it."""
        found: Any = self.result
        return {
            "checkpoints": list(self.checkpoints),
            "task": self.task,
            "device": self.device,
            "dtype": self.dtype,
            "samples": dict(zip(found.splits, found.samples.tolist(), strict=True)),
            "parameters": self.parameters,
            kind_of(found): found.summary(),
            "archive": self.archive,
            "report": report,
            "seconds": self.seconds,
            "notes": list(found.notes),
            "warnings": list(self.warnings),
        }


def connect_checkpoints(
    checkpoints: Sequence[str | os.PathLike[str]],
    *,
    pairs: bool = False,
    points: int = POINTS,
    curve: Curve = "linear",
    align: Method | None = None,
    batchnorm: Statistics = "recompute",
    splits: Sequence[str] | None = None,
    steps: int = STEPS,
    rate: float = RATE,
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    append: bool = False,
    force: bool = False,
    device: str = "auto",
    dtype: str | None = None,
    seed: int | None = None,
    max_samples: int | None = None,
    weights: str | None = None,
    trust_pickle: bool = False,
    root: str | os.PathLike[str] = ".",
    say: Callable[[str], None] | None = None,
    progress: bool = False,
) -> PathOutcome:
    """Measure the path through checkpoints in order, or the barrier between each two, and write it to an archive.

    All are measured with one task: `task`, or the one that the first checkpoint names. Everything that can be refused
    is refused before anything is measured. Of pairs what was measured before an error or Ctrl-C is kept.

    Args:
        checkpoints: two files or folders, or more.
        pairs: the barriers between each two, as in `connectivity`, rather than one path as in `interpolate`.
        points, curve, align, batchnorm, steps, rate: as in `interpolate`.
        splits: the data to take the loss over; None is "train" and "test", as far as the task has them.
        out: the archive; None writes `<first>-to-<last>.path.h5` (of pairs `.pairs.h5`) into the current folder.
        append, force: add to an archive that exists, or replace it.
        task, settings, device, dtype, seed, max_samples, weights, trust_pickle, root: as in `probe_checkpoints`; the
            draw is that of its standard preset, unless `max_samples` or the task says otherwise.
        say: is told what is called and what is done, a line each.
        progress: bars on stderr.

    Raises LandscapeError of the kind that fits.
    """
    say = say or (lambda text: None)
    paths = [os.fspath(p) for p in checkpoints]
    if len(paths) < 2:
        raise MeasurementError(f"a path needs at least two checkpoints, got {len(paths)}: landscape path a.pt b.pt")
    check_paths(paths)
    begun = time.perf_counter()
    tasks = Tasks(
        task=task,
        settings=dict(settings or {}),
        weights=weights,
        trust_pickle=trust_pickle,
        root=root,
        changes=task_changes(device, dtype, seed),
        samples=lambda t: samples_to_draw(t, "standard", max_samples),
        say=say,
    )
    ready = [tasks.prepare(path) for path in paths]
    first = ready[0]
    over = _splits(first, splits)
    apart = _other_tasks(ready)
    names = _names(paths)
    model = unwrap(first.task.model)
    how: dict[str, Any] = {"points": points, "curve": curve, "align": align, "batchnorm": batchnorm}
    how |= {"splits": over, "steps": steps, "rate": rate, "seed": first.task.seed, "progress": progress}
    subject = _subject(ready, names, pairs, curve, align)
    named = f"{names[0]}-to-{names[-1]}{SUFFIX_OF_PAIRS if pairs else SUFFIX}"
    with ArchiveWriter(
        named if out is None else out,
        attributes=provenance(seed=first.task.seed, device=first.device),
        mode="append" if append else "new",
        force=force,
    ) as writer:
        states = [r.checkpoint for r in ready]
        if pairs:
            say(f"the paths between each two of {len(states)} checkpoints: {len(states) * (len(states) - 1) // 2}")
            keep = partial(writer.add, subject=subject)
            result: Result = connectivity(first.task, *states, names=names, interrupted=keep, **how)
        else:
            say(f"the path {' to '.join(names)}")
            result = interpolate(first.task, *states, **how)
        writer.add(result, subject=subject)
    said = [*apart, *(f"{r.checkpoint.path}: {text}" for r in ready for text in r.warnings), *result.warnings]
    return PathOutcome(
        checkpoints=tuple(paths),
        task=first.reference,
        device=first.device,
        dtype=first.dtype,
        parameters=sum(p.numel() for p in trainable(model).values()),
        result=result,
        archive=str(writer.path),
        seconds=time.perf_counter() - begun,
        warnings=tuple(dict.fromkeys(said)),
    )


def _splits(first: Prepared, wanted: Sequence[str] | None) -> tuple[str, ...]:
    there = first.task.splits
    if wanted is None:
        return tuple(there)
    for split in wanted:
        if split not in there:
            raise TaskError(f"the task {first.reference} has no {split!r} data; it has {', '.join(there)}")
    return tuple(dict.fromkeys(wanted))


def _other_tasks(ready: Sequence[Prepared]) -> list[str]:
    """Return a warning for each checkpoint that names another task, settings or loss than the first one's."""
    first = ready[0]
    return [
        f"{r.checkpoint.path} names another task, settings or loss ({_called(r)}): measured with those of "
        f"{first.checkpoint.path} ({_called(first)})"
        for r in ready[1:]
        if r.called != first.called
    ]


def _called(ready: Prepared) -> str:
    settings = ", ".join(f"{k}={v!r}" for k, v in ready.called["setting"].items())
    loss = ready.called["loss of the registry"]
    return f"{ready.reference}({settings})" + (f" with the loss {loss}" if loss != "none" else "")


def _names(paths: Sequence[str]) -> list[str]:
    """Return a name for each checkpoint, with as many of its folders as tell them apart; numbered where none do."""
    try:
        return [p.name for p in archive_paths(paths, suffix="")]
    except ArchiveError:  # last.pt and last.safetensors of one folder
        return [f"{Path(p).stem} {i}" for i, p in enumerate(paths, 1)]


def _subject(ready: Sequence[Prepared], names: Sequence[str], pairs: bool, curve: str, align: str | None) -> Subject:
    first = ready[0]
    called = f"{len(names)} checkpoints" if pairs and len(names) > 2 else f"{names[0]} to {names[-1]}"
    called += ", curve" * (curve != "linear") + (f", aligned by {align}" if align else "")
    facts = {
        "between": [r.checkpoint.path for r in ready],
        "between_fingerprints": [r.checkpoint.fingerprint for r in ready],
        "device": first.device,
        "dtype": first.dtype,
        "max_samples": first.task.max_samples,
        "draw_seed": first.task.seed,
    }
    return Subject(task=first.reference, name=called, facts={**first.facts, **facts})
