"""What a report is made of: one `Run` for each checkpoint that the archives hold, with its results by kind."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import ArchiveError
from ..results import Result, kind_of
from .finals import last_results
from .recorded import Recorded, reduce

#: More runs than this are many: what says the same of each of them is said once (chosen by us: a screen of rows).
MANY = 12
#: Begins the names of a model's own configuration among the settings.
MODEL = "model: "
#: Facts that say how it was measured rather than how it was trained; they go with `Run.about`.
MEASURING = frozenset({"device", "dtype", "max_samples", "draw_seed", "preset", "loss_at_end", "recorded_in"})
#: Facts that say which checkpoint was measured rather than how it was trained; shown under provenance.
NOT_SETTINGS = frozenset(
    {"name", "checkpoint", "fingerprint", "task", "task_file", "task_hash", "step", "epoch", "path", "seconds"}
    | {"between", "between_fingerprints"}
)


@dataclass(frozen=True)
class Run:
    """One checkpoint of one archive: what it is, and what was measured on it.

    `settings` are the run's own (loss, schedule, optimizer, ...), flat; `about` is what the archive says of the
    measuring (versions, command line, device, dtype, preset, seed, created); `problems` are results that could not
    be read. `history` is the record of the training that the archive holds (None or empty: there is none); runs of
    one archive share it. `probed_at` names the kinds whose result a probe measured while the run trained, and after how
    many steps. `task_from` names the checkpoint whose task this is, where the archive names none. `salvaged` says
    what a damaged archive lost, where this one was salvaged from it. `index` is the place in the report, from which
    color and marker follow.
    """

    name: str
    results: Mapping[str, tuple[Result, ...]]
    task: str = ""
    checkpoint: str = ""
    fingerprint: str = ""
    step: int | None = None
    epoch: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    archive: str = ""
    digest: str = ""
    status: str = "complete"
    problems: tuple[str, ...] = ()
    salvaged: tuple[str, ...] = ()
    index: int = 0
    history: Any = field(default=None, repr=False, compare=False)
    probed_at: Mapping[str, int] = field(default_factory=dict)
    task_from: str = ""

    @cached_property
    def recorded(self) -> Recorded:
        """The record of the training, reduced to what a page shows."""
        return reduce(self.history)

    @property
    def only_recorded(self) -> bool:
        """True where everything that is known was recorded or measured while it trained, nothing afterwards."""
        return bool(self.history) and all(kind in self.probed_at for kind in self.results)

    def get(self, kind: str) -> Result | None:
        """Return the latest usable result of this kind, None where there is none."""
        usable = [r for r in self.results.get(kind, ()) if r.status != "failed"]
        return usable[-1] if usable else None

    def every(self) -> Iterable[tuple[str, Result]]:
        """Yield (kind, result) for everything that was measured, failed results included."""
        for kind, results in self.results.items():
            for result in results:
                yield kind, result

    def missing(self, kind: str) -> str:
        """Return why there is no usable result of this kind, in a few words."""
        for result in reversed(self.results.get(kind, ())):
            if result.status == "failed":
                reasons = [c.message for c in result.checks if c.level == "fail"] or list(result.warnings)
                return f"failed: {reasons[0]}" if reasons else "failed"
        lost = tuple(f"lost: {place}" for place in (f"results/{kind}/", f"results/{kind}:", "results:"))
        if any(line.startswith(lost) for line in self.salvaged):
            return "not measured, or lost when the archive was damaged"
        state = {
            "failed": "the run failed",
            "interrupted": "the run was interrupted",
            "running": "not finished",
            "killed": "the run was killed",
        }
        if self.status in state:
            return f"not measured: {state[self.status]}"
        return "not measured"


def make_run(name: str, results: Iterable[Result], **facts: Any) -> Run:
    """Return a Run of these results, grouped by kind in the order given."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(kind_of(result), []).append(result)
    return Run(name=name, results={k: tuple(v) for k, v in grouped.items()}, **facts)


def with_probed(run: Run) -> Run:
    """Return the run with what its probes measured while it trained, of the kinds that were not measured afterwards.

    Of a checkpoint, only what was measured after exactly as many steps; of a training without one, the last of each.
    """
    if not run.history or (run.results and run.step is None):
        return run
    found, problems = last_results(run.history, run.step if run.results else None)
    found = {kind: given for kind, given in found.items() if kind not in run.results}
    broken = [
        _lacking(f"{kind} of step {step}", lacks(result)) for kind, (result, step) in found.items() if lacks(result)
    ]
    found = {kind: (result, step) for kind, (result, step) in found.items() if not lacks(result)}
    return replace(
        run,
        results={**run.results, **{kind: (result,) for kind, (result, _) in found.items()}},
        probed_at={kind: step for kind, (_, step) in found.items()},
        problems=(*run.problems, *problems, *broken),
    )


def gather(paths: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Return one Run for each checkpoint in these archives, in the order given; names are made unique.

    Raises ArchiveError where there is no path, or where a file is no archive. A single result that cannot be
    read is left out and kept among the run's `problems`.
    """
    from ..archive.reader import open_archive  # h5py loads here, so that drawing a Result needs none
    from .belonging import with_tasks  # it needs Run

    if not paths:
        raise ArchiveError("a report needs at least one archive, got none; give the path of a run.h5")
    runs: list[Run] = []
    for path in paths:
        archive = open_archive(path)
        with archive.held():
            runs += _runs_of(archive)
    return with_tasks(unique([with_probed(run) for run in runs]))


def _runs_of(archive: Any) -> list[Run]:
    from ..archive.describe import salvaged

    history, broken = _history(archive)
    # A recorder that was killed leaves "running" behind; whether one is at work is seen from its lock.
    killed = archive.status == "running" and bool(history) and not archive.alive
    shared = {"archive": str(archive.path), "status": "killed" if killed else archive.status, "history": history}
    shared["digest"] = _digest(archive.path)
    shared["salvaged"] = tuple(salvaged(archive))
    runs = []
    for subject in archive.subjects:
        results, problems, about, own = [], [*broken], dict(archive.attributes), {}
        commands: dict[str, None] = {}
        for entry in archive.select(subject=subject):
            about = {k: v for k, v in entry.provenance.items() if k != "run"}
            if about.get("command_line"):
                commands[str(about["command_line"])] = None
            # /run holds the settings of the first writing alone: a subject appended later has its own, or none.
            first = entry.provenance is archive.attributes
            own = {**own, **(archive.run if first else entry.provenance.get("run") or {})}
            try:
                result = entry.result
            except ArchiveError as error:
                problems.append(str(error))
                continue
            lacking = lacks(result)
            if lacking:
                problems.append(_lacking(entry.group, lacking))
            else:
                results.append(result)
        flat_run = flat(own)
        facts = {**flat_run, **flat(subject.facts)}
        settings = {k: v for k, v in facts.items() if k not in NOT_SETTINGS | MEASURING}
        if not isinstance(settings.get("loss", ""), str):
            del settings["loss"]  # torch.save({..., "loss": 1.07}): a value that was reached, not the loss's name
        about |= {k: v for k, v in facts.items() if k in MEASURING and v is not None}
        about |= {"commands": tuple(commands)}
        runs.append(
            make_run(
                subject.label if subject.named else _called(archive.path),
                results,
                task=str(subject.task or flat_run.get("task") or ""),
                checkpoint=str(subject.checkpoint or ""),
                fingerprint=str(subject.fingerprint or ""),
                step=_whole(subject.step),
                epoch=_whole(subject.epoch),
                settings=settings,
                about=about,
                problems=tuple(problems),
                **shared,
            )
        )
    if runs:
        return runs
    own = flat(archive.run)
    return [
        make_run(
            str(own.get("name") or _called(archive.path)),
            (),
            task=str(own.get("task") or ""),
            settings={k: v for k, v in own.items() if k not in NOT_SETTINGS},
            about=dict(archive.attributes),
            problems=tuple(broken),
            **shared,
        )
    ]


def _called(path: Path) -> str:
    """Return what a person calls an archive: its file's name, or its folder's where every file is a run.h5."""
    return path.parent.resolve().name or path.stem if path.stem == "run" else path.stem


def _digest(path: Path) -> str:
    """Return the SHA-256 of an archive as it was read; empty where it has gone meanwhile."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _history(archive: Any) -> tuple[Any, list[str]]:
    """Return the archive's record of a training, and why it can't be read where it can't."""
    try:
        return archive.history, []
    except ArchiveError as error:
        return None, [str(error)]


def trainings(runs: Sequence[Run]) -> list[Run]:
    """Return one run for each training: of the checkpoints that an archive with a record holds, the last."""
    last: dict[Any, Run] = {}
    for run in runs:
        last[(run.archive if run.history and run.archive else run.index)] = run
    return list(last.values())


def lacks(result: Result) -> list[str]:
    """Return the numbers that this kind of result must have and this one has not."""
    if result.status == "failed":
        return []
    return [
        f.name
        for f in dataclasses.fields(result)
        if "variable" in f.metadata and f.default is dataclasses.MISSING and getattr(result, f.name) is None
    ]


def _lacking(what: str, names: Sequence[str]) -> str:
    return f"{what} lacks {', '.join(names)}: written by another version; measure it again"


def _whole(value: Any) -> int | None:
    """Return a step or an epoch as a whole number; None (or a negative number, or NaN) means unknown."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)) or value < 0:
        return None
    return int(value)


def flat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings as one level; a name that is taken keeps its parent's in front.

    Those of a Transformers model's whole configuration begin with MODEL.
    """
    found: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping) and "transformers_version" in value:
            found |= {f"{MODEL}{k}": v for k, v in flat(value).items()}
        elif isinstance(value, Mapping):
            for k, v in flat(value).items():
                found[k if k not in found and k not in facts else f"{key}.{k}"] = v
        else:
            found[str(key)] = value
    return found


def unique(runs: Sequence[Run]) -> list[Run]:
    """Return the runs numbered, with names that differ: by step, preset, folder, archive, its folder."""
    names = [r.name for r in runs]
    for tell in (_step_of, _preset_of, _source_of, _archive_of, _folder_of):
        told = [tell(r) for r in runs]
        for name in {n for n in names if names.count(n) > 1}:
            places = [i for i, n in enumerate(names) if n == name]
            if len({told[i] for i in places}) > 1:
                for i in places:
                    names[i] += told[i]
    names = [f"{n} #{names[: i + 1].count(n)}" if names.count(n) > 1 else n for i, n in enumerate(names)]
    return [replace(r, name=n, index=i) for i, (n, r) in enumerate(zip(names, runs, strict=True))]


def _step_of(run: Run) -> str:
    return f" @ {run.step}" if run.step is not None else ""


def _preset_of(run: Run) -> str:
    return f" ({run.about['preset']})" if run.about.get("preset") else ""


def _archive_of(run: Run) -> str:
    path = Path(run.archive)
    return f" ({_called(path) if path.stem == 'run' else path.name})" if run.archive else ""


def _folder_of(run: Run) -> str:
    return f" ({Path(run.archive).resolve().parent.name})" if run.archive else ""


def _source_of(run: Run) -> str:
    folder = Path(run.checkpoint).parent.name
    return f" ({folder})" if folder else ""
