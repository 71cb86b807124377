"""Checkpoints as jobs: given to workers one each, what they find kept in the archives at once.

A worker (`measuring.py`) is given a checkpoint and what its archive holds of it, and tells each result, and each
block of a surface's points, as it finds them. They are put into the archive at once, so that one that dies, a kill of
everything and a Ctrl-C cost what they cost one process.
"""

from __future__ import annotations

import builtins
import os
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.archive.parcel import Parcel, unpack_parcel
from landscape.archive.schema import RESULTS, Subject, dump_json, load_json
from landscape.archive.writer import ArchiveWriter
from landscape.errors import MeasurementError
from landscape.results import Result, kind_of

from ..execution import OUT_OF_TIME
from ..outcome import NotAllMeasured, ProbeOutcome
from ..subjects import Prepared
from ..workers.bars import Bars
from ..workers.errors import raised
from ..workers.lines import in_text, out_of_text, rows_in_text, rows_out_of_text
from ..workers.pool import Heard, Work, gpus_for, run_in_workers, shared_out
from ..workers.stopping import Stop, listening

#: Signals that stop one process, too: SIGUSR1, which only a training grants, is none.
STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
WORKER = "landscape.probes.several.worker"


@dataclass
class Added:
    """A result that a worker found, in the archive already: an `Entry` of the archive under way."""

    result: Result
    subject: Subject
    asked: str
    group: str

    @property
    def status(self) -> str:
        """Return complete, partial or failed: how the measurement ended."""
        return self.result.status


@dataclass
class Job:
    """One checkpoint to measure: its place among all, what of it is wanted, and the archive that it goes to."""

    number: int
    of: int
    ready: Prepared
    wanted: Sequence[str]
    writer: ArchiveWriter
    #: Its results in the archive, of an earlier run and then those that workers told of: by number, as they know them.
    held: list[Any] = field(default_factory=list)
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    known: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    depends: str = ""

    def __post_init__(self) -> None:
        path = self.ready.checkpoint.path
        self.held = [e for e in self.writer.earlier if e.asked and e.subject.checkpoint == path]
        self.rows = {key: [rows] for key, rows in self.writer.unfinished.items()}
        self.known = dict(self.writer.known)
        self.depends = dump_json(self.ready.depends())

    @property
    def path(self) -> str:
        """The checkpoint's path."""
        return self.ready.checkpoint.path

    @property
    def name(self) -> str:
        """What lines about it begin with."""
        return f"[{self.number + 1}/{self.of}] {self.path}" if self.of > 1 else self.path


def measure_in_workers(
    jobs: Sequence[Job],
    how: Mapping[str, Any],
    workers: int,
    each: int = 1,
    *,
    through: Callable[[int, Sequence[str]], None],
    deadline: float | None,
    progress: bool,
    say: Callable[[str], None],
) -> tuple[list[ProbeOutcome], int]:
    """Return what was found of each checkpoint, in their order, and how many points of an earlier run served.

    Of `workers` each leads a company of `each` processes, itself counted, that share one checkpoint's draw. `how` are
    the arguments that the run was planned with, as plain data; `through` is told the number of each job that is done,
    and what the time limit left of it. A checkpoint that can't be measured, or whose process dies twice, doesn't keep
    the others from being measured.

    Raises NotAllMeasured at the end where some could not be; ArchiveError where an archive can't be written; what the
    signal raises that stopped it, after the workers handed on what they had.
    """
    stop = Stop()
    bars = Bars(len(jobs), 0, what="probe", unit="checkpoint", step="measurement", enabled=progress)
    with listening(stop, STOPS), bars:
        # One checkpoint of each task: a task's file may register measurements, which all checkpoints then have.
        tasks = {job.ready.reference: job.path for job in jobs}
        setup = {"how": how, "tasks": list(tasks.values()), "each": each}
        work = _Checkpoints(setup, through, deadline, bars, bars.saying(say))
        # The one with the most to do first: a trajectory's plane is measured at its last checkpoint alone.
        longest_first = sorted(jobs, key=lambda job: -len(job.wanted))
        gpus = shared_out(gpus_for(how["device"]), workers, each)
        run_in_workers(work, longest_first, workers, stop=stop, say=bars.saying(say), gpus=gpus)
    if stop.signal:
        signal.raise_signal(stop.signal)  # as if it came now: whoever runs us says what follows
        raise KeyboardInterrupt
    outcomes = [work.outcomes[number] for number in sorted(work.outcomes)]
    if work.failures:
        failures = [work.failures[number] for number in sorted(work.failures)]
        raise NotAllMeasured(outcomes, failures) from failures[0][2]
    return outcomes, work.reused


class _Checkpoints(Work[Job]):
    """What workers do with checkpoints, and where it goes that they tell."""

    def __init__(
        self,
        setup: Mapping[str, Any],
        through: Callable[[int, Sequence[str]], None],
        deadline: float | None,
        bars: Bars,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(WORKER, setup)
        self._through, self._deadline, self._bars, self._say = through, deadline, bars, say
        self.outcomes: dict[int, ProbeOutcome] = {}
        #: By number: the checkpoint, what went wrong in a line, the error.
        self.failures: dict[int, tuple[str, str, Exception]] = {}
        self.reused = 0

    def begin(self, job: Job) -> dict[str, Any] | None:
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0 and not job.held:
            error = MeasurementError(f"nothing could be measured of {job.path} ({OUT_OF_TIME})")
            self.failures[job.number] = (job.path, OUT_OF_TIME, error)
            return None
        self._bars.begin(job.number, os.path.basename(job.path.rstrip(os.sep)))
        return {
            "path": job.path,
            "name": job.name if job.of > 1 else "",
            "archive": str(job.writer.path),
            "until": None if left is None else time.time() + left,
            "wanted": list(job.wanted),
            "depends": job.depends,
            "earlier": [in_text(Parcel(e.result, e.subject, e.asked).pack()) for e in job.held],
            "rows": {key: rows_in_text(np.concatenate(parts)) for key, parts in job.rows.items()},
            "known": dump_json(job.known),
        }

    def heard(self, job: Job, message: dict[str, Any]) -> Heard:
        if "begins" in message:
            self._bars.move(job.number, message["begins"] - 1, len(job.wanted))
        elif "warning" in message:
            kind = getattr(builtins, message["kind"], UserWarning)
            warnings.warn(message["warning"], kind, stacklevel=2)
        elif "add" in message:
            self._add(job, [unpack_parcel(out_of_text(text)) for text in message["add"]], message["replaces"])
        elif "keep" in message:
            key, rows, facts = message["keep"], rows_out_of_text(message["rows"]), load_json(message["facts"])
            job.writer.keep(key, rows, facts)
            job.rows.setdefault(key, []).append(rows)
            job.known.setdefault(key, facts)
        elif "done" in message:
            results = {name: job.held[number].result for name, number in message["results"].items()}
            about: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in message["done"].items()}
            self.outcomes[job.number] = ProbeOutcome(results=results, **about)
            self.reused += message["reused"]
            self._through(job.number, message["unfinished"])
            self._bars.end(job.number, "complete")
            return "done"
        elif "error" in message:
            self._fail(job, raised(message["error"]), message["error"]["line"])
            return "spent" if message["spent"] else "done"
        elif "stopped" in message:
            return "done"
        return "more"

    def died(self, job: Job, reason: str, again: bool, stopping: bool) -> None:
        if again:
            self._say(f"{job.name}: {reason}; measured once more, but for what its archive holds already")
        elif not stopping:
            self._fail(job, MeasurementError(f"{job.path}: {reason}"), reason)

    def _add(self, job: Job, found: Sequence[Parcel], replaces: Sequence[int]) -> None:
        if any(_same_failure(found[0], held) for held in job.held):
            names = [""]  # of what can't be measured every attempt tells anew
        else:
            names = job.writer.add_all(
                [f.result for f in found],
                subject=found[0].subject,
                asked=found[0].asked,
                replaces=[job.held[number] for number in replaces],
                rank=job.number,
            )
        for f, name in zip(found, names, strict=True):
            job.held.append(Added(f.result, f.subject, f.asked, f"{RESULTS}/{kind_of(f.result)}/{name}"))

    def _fail(self, job: Job, error: Exception, line: str) -> None:
        self.failures[job.number] = (job.path, line, error)
        self._bars.end(job.number, "failed")
        self._say(f"{job.name}: failed: {line}")


def _same_failure(found: Parcel, held: Any) -> bool:
    """Whether both say that the same can't be measured, for the same reason."""
    if found.asked or held.asked:
        return False
    told, before = (dump_json({**r.attributes(), "kind": kind_of(r)}) for r in (found.result, held.result))
    return told == before
