"""Calibrate saved predictions or checkpoints: the one way from files to numbers, an archive and a calibrated model."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.archive.schema import Subject
from landscape.archive.writer import ArchiveWriter
from landscape.calibration.calibrated import save_recalibration
from landscape.calibration.held_out import held_out_predictions
from landscape.calibration.inputs import Form, tensor_of
from landscape.calibration.maps import Method
from landscape.calibration.predictions import looks_saved, read_saved
from landscape.calibration.recalibrated import Recalibration
from landscape.calibration.table import Calibration
from landscape.calibration.together import Judged, calibrate
from landscape.checkpoints.writing import save_checkpoint
from landscape.errors import CheckpointError, MeasurementError
from landscape.provenance import provenance
from landscape.results import Result, kind_of

from .selection import samples_to_draw
from .subjects import Prepared, Tasks, check_paths, task_changes
from .targets import archive_paths

SUFFIX = ".calibration.h5"
# Arguments in a message that are options of the command line, and those of them that name an array in a file.
_ARGUMENT = re.compile(
    r'\b(?P<name>logits|probabilities|groups|ignore_index|class_dim|kind|bins|folds|strict)=(?P<value>"[\w-]+"|-?\w*)'
)
_NAMED = ("logits", "probabilities", "groups")


@dataclass(frozen=True)
class CalibrationOutcome:
    """What one file gave: `results` by kind ("calibration", "recalibration", "sample_scores"), and where they are."""

    source: str
    task: str
    results: Mapping[str, Result]
    archive: str
    output: str | None
    seconds: float
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def calibration(self) -> Calibration:
        """The calibration of all predictions."""
        found = self.results["calibration"]
        assert isinstance(found, Calibration)
        return found

    @property
    def recalibration(self) -> Recalibration | None:
        """The recalibration; None where there was no fit (the warnings say why)."""
        found = self.results.get("recalibration")
        return found if isinstance(found, Recalibration) else None

    def as_dict(self, report: str | None = None) -> dict[str, Any]:
        """Return the object of `landscape calibrate --json`; NaN and inf are still in it."""
        found: dict[str, Any] = {"calibration": self.calibration.summary(), "recalibration": None}
        if self.recalibration is not None:
            found |= self.recalibration.summary()
        return {
            "source": self.source,
            "task": self.task or None,
            "split": self.calibration.split or None,
            "samples": int(self.calibration.samples),
            "classes": int(self.calibration.classes),
            **found,
            "archive": self.archive,
            "output": self.output,
            "report": report,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True)
class Source:
    """A file's predictions, and what they are filed under; `ready` where they are a checkpoint's."""

    path: str
    judged: Judged
    subject: Subject
    ready: Prepared | None = None
    warnings: tuple[str, ...] = ()


def calibrate_files(
    sources: Sequence[str | os.PathLike[str]],
    *,
    logits: str | None = None,
    probabilities: str | None = None,
    labels: str | None = None,
    groups: str | None = None,
    method: Method | None = None,
    convention: Any = None,
    bins: int = 15,
    share: float = 0.5,
    folds: int | None = None,
    ignore_index: int | None = None,
    class_dim: int = 1,
    kind: Form | None = None,
    strict: bool | None = None,
    split: str = "test",
    out: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
    append: bool = False,
    force: bool = False,
    task: str | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str | None = None,
    seed: int | None = None,
    max_samples: int | None = None,
    weights: str | None = None,
    trust_pickle: bool = False,
    root: str | os.PathLike[str] = ".",
    say: Callable[[str], None] | None = None,
) -> list[CalibrationOutcome]:
    """Calibrate each file of predictions or checkpoint, write the results to an archive, and return what was found.

    Everything that can be refused is refused before anything is measured.

    Args:
        sources: files of saved predictions (see `read_saved`), or checkpoints with their task.
        logits, probabilities, labels, groups: names in the files of predictions; with one of them a .pt is taken for
            such.
        method: of the recalibration; None tries temperature scaling, and says in the warnings where it has no fit.
        convention, bins, share, folds, ignore_index, class_dim, kind, strict, seed: as in `calibration_error` and
            `recalibrate`, the layout (ignore_index, class_dim, kind) of saved predictions only. `seed` None is the
            task's own, or 0.
        split, task, settings, device, dtype, max_samples, weights, trust_pickle, root: of checkpoints, as in
            `probe_checkpoints`; all samples of the split are taken unless `max_samples` or the task says fewer.
        out: the calibrated model: weights and map, or the map alone for saved predictions. One source only.
        archive: one archive for all; None writes `<source>.calibration.h5` for each into the current folder.
        append, force: add to an archive that exists, or replace it; `force` also replaces `out`.
        say: is told what is called and what is done, a line each.

    Raises LandscapeError of the kind that fits.
    """
    say = say or (lambda text: None)
    paths = [os.fspath(p) for p in sources]
    check_paths(paths, "predictions or checkpoint")
    if out is not None:
        _check_output(Path(out), paths, force)
    targets = archive_paths(paths, archive, suffix=SUFFIX, unnamed="predictions", option="--archive FILE")
    tasks = Tasks(
        task=task,
        settings=dict(settings or {}),
        weights=weights,
        trust_pickle=trust_pickle,
        root=root,
        changes=task_changes(device, dtype, seed),
        samples=lambda t: samples_to_draw(t, "thorough", max_samples),
        say=say,
    )
    named = {"logits": logits, "probabilities": probabilities, "labels": labels, "groups": groups}
    outcomes = []
    with contextlib.ExitStack() as stack:
        # All are opened first, so that what can't be written is refused before anything is measured.
        writers = {
            target: stack.enter_context(
                ArchiveWriter(
                    target,
                    attributes=provenance(seed=seed or 0),
                    mode="append" if append else "new",
                    force=force,
                )
            )
            for target in dict.fromkeys(targets)
        }
        for path, target in zip(paths, targets, strict=True):
            start = time.perf_counter()
            known = any(v is not None for v in named.values()) or looks_saved(path)
            source = _saved(path, named, ignore_index, kind) if known else _of_checkpoint(path, tasks, split)
            say(f"{source.subject.label}: calibration of {_described(source.judged)}")
            found = _calibrated(
                source,
                bins=bins,
                method=method or "temperature",
                convention=convention,
                share=share,
                folds=folds,
                # A task's predictions come without what it ignores, one row each.
                ignore_index=ignore_index if source.ready is None else None,
                class_dim=class_dim if source.ready is None else 1,
                strict=strict,
                seed=_seed(source, seed),
                must_recalibrate=method is not None or out is not None,
            )
            results = {kind_of(r): r for r in (found, *(found.along or ()))}
            for result in results.values():
                writers[target].add(result, subject=source.subject)
            if out is not None:
                _save(out, source, results["recalibration"], say)
            outcomes.append(_outcome(source, results, writers[target], out, time.perf_counter() - start))
    return outcomes


def _calibrated(source: Source, **how: Any) -> Calibration:
    """Calibrate; what is wrong with a file of predictions is said in terms of the command line."""
    try:
        return calibrate(source.judged, **how)
    except MeasurementError as error:
        if source.ready is not None:
            raise
        raise MeasurementError(in_options(str(error))) from error


def in_options(text: str) -> str:
    """Return a message about arguments as one about options: `ignore_index=-1` as `--ignore-index -1`."""

    def option(found: re.Match[str]) -> str:
        name, value = found["name"].replace("_", "-"), found["value"].strip('"')
        if value == "False":
            return f"--no-{name}"
        return f"--{name} {value or 'NAME' * (name in _NAMED)}".rstrip()

    return _ARGUMENT.sub(option, text)


def _described(judged: Judged) -> str:
    scores = tuple(judged.scores.shape)
    return f"{judged.kind} {' x '.join(str(n) for n in scores)}"


def _outcome(
    source: Source, results: Mapping[str, Result], writer: ArchiveWriter, out: Any, seconds: float
) -> CalibrationOutcome:
    said = dict.fromkeys(w for r in results.values() for w in r.warnings)
    return CalibrationOutcome(
        source=source.path,
        task=source.ready.reference if source.ready else "",
        results=results,
        archive=str(writer.path),
        output=None if out is None else str(out),
        seconds=seconds,
        notes=tuple(dict.fromkeys(n for r in results.values() for n in r.notes)),
        warnings=tuple(dict.fromkeys([*source.warnings, *(map(in_options, said) if source.ready is None else said)])),
    )


def _check_output(out: Path, paths: Sequence[str], force: bool) -> None:
    if len(paths) > 1:
        raise MeasurementError(
            f"{out} can hold one calibrated model, got {len(paths)} sources; calibrate them one by one"
        )
    if out.suffix.lower() not in (".pt", ".pth", ".ckpt"):
        raise CheckpointError(f"{out} is to hold the calibrated model: name it .pt; the archive goes to --archive")
    if out.is_dir():
        raise CheckpointError(f"{out} is a folder, expected a file such as {out / 'calibrated.pt'}")
    if out.exists() and os.path.samefile(out, paths[0]):
        raise CheckpointError(f"{out} is the source itself; write the calibrated model to another file")
    if out.exists() and not force:
        raise CheckpointError(f"{out} exists; pass --force to replace it, or choose another name")
    if not out.parent.is_dir():
        raise CheckpointError(f"the folder {out.parent} does not exist; create it, or write somewhere else")


def _seed(source: Source, seed: int | None) -> int:
    if seed is not None:
        return seed
    return source.ready.task.seed if source.ready is not None else 0


def _saved(path: str, named: Mapping[str, str | None], ignore_index: int | None, kind: Form | None) -> Source:
    found = read_saved(path, **named, kind=kind)
    truth = np.ascontiguousarray(tensor_of(found.labels)[0].cpu().numpy())
    # The labels in their order stand for the samples: whoever saved two models' predictions on one set has them equal.
    mark = hashlib.sha256(f"{truth.shape} {ignore_index}".encode() + truth.astype(np.int64).tobytes()).hexdigest()
    judged = Judged(
        found.kind, found.scores, found.labels, found.groups, kind, fingerprint=f"labels {mark}", notes=found.notes
    )
    facts = {"predictions": Path(path).name, "input": found.kind}
    return Source(path, judged, Subject(checkpoint=path, name=_stem(path), facts=facts))


def _stem(path: str) -> str:
    name = Path(path).name
    return Path(name.removesuffix(".gz")).stem


def _of_checkpoint(path: str, tasks: Tasks, split: str) -> Source:
    ready = tasks.prepare(path)
    judged = held_out_predictions(ready.task, split)
    return Source(path, judged, ready.subject(), ready, ready.warnings)


def _save(out: str | os.PathLike[str], source: Source, found: Result, say: Callable[[str], None]) -> None:
    """Write the calibrated model; for saved predictions the map alone."""
    assert isinstance(found, Recalibration)
    if source.ready is None:
        save_recalibration(out, found)
        return
    checkpoint = source.ready.checkpoint
    own = checkpoint.task
    how: dict[str, Any] = {"step": checkpoint.step, "epoch": checkpoint.epoch, "recalibration": found}
    facts = {k: v for k, v in checkpoint.facts.items() if k not in ("path", "model", "task", "settings", "optimizer")}
    reference, settings = (own.reference, dict(own.settings)) if own else (source.ready.reference, {})
    try:
        save_checkpoint(out, checkpoint.weights, task=reference, settings=settings, **how, **facts)
    except CheckpointError as error:
        if "cannot name this task" not in str(error):
            raise
        save_checkpoint(out, checkpoint.weights, **how, **facts)
        say(f"{out} does not name its task ({error})")
