"""The measurements of one checkpoint: made in order, each result to the archive at once, a failure said and kept."""

from __future__ import annotations

import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from landscape.archive.parcel import Parcel
from landscape.archive.reader import Entry
from landscape.archive.schema import Subject, dump_json, load_json, plain
from landscape.data import first_line
from landscape.differences import differences
from landscape.errors import MeasurementError, NoLabelsError, ObjectiveError, OutOfMemory
from landscape.journal import Journal, keeping
from landscape.memory import REMEDY, ran_out
from landscape.parameters import trainable
from landscape.results import Check, Measurement, Result, StoredResult, kind_of
from landscape.sharing import agreed_here, everything_shared

from .derivatives import twice_differentiable
from .outcome import ProbeOutcome
from .selection import Chosen
from .subjects import Prepared

#: A result that is there already.
Earlier: TypeAlias = Entry | Parcel
#: Why a measurement was not begun.
OUT_OF_TIME = "the time limit came first; --resume goes on"


class Keeper(Protocol):
    """Where results and rows go, and what an earlier run left: an ArchiveWriter, or what tells the one who has it."""

    @property
    def path(self) -> Path: ...
    @property
    def earlier(self) -> Sequence[Earlier]: ...
    @property
    def unfinished(self) -> Mapping[str, np.ndarray]: ...
    @property
    def known(self) -> Mapping[str, Mapping[str, Any]]: ...

    def add_all(self, results: Sequence[Result], *, subject: Subject, asked: str = "", replaces: Any = ()) -> Any:
        """Store what one measurement gave."""

    def keep(self, key: str, rows: np.ndarray, facts: Mapping[str, Any]) -> None:
        """Keep rows of a measurement that is under way."""


class Execution:
    """The measurements of one checkpoint, in order, each result to the archive at once.

    `began` is told which of the measurements begins, counted from 1.
    """

    def __init__(
        self,
        ready: Prepared,
        chosen: Sequence[Chosen],
        preset: str,
        say: Callable[[str], None],
        writer: Keeper,
        progress: bool,
        deadline: float | None = None,
        began: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.ready = ready
        self.chosen = [c.of(ready.task) for c in chosen]
        self.say = say
        self.writer = writer
        self.progress = progress
        self.began = began
        self.subject = ready.subject(preset=preset)
        self.results: dict[str, Result] = {}
        self.missing: dict[str, str] = {}
        self.unwritten: list[Result] = []
        self.curved: Check | None = None
        #: Rows of interrupted measurements, those of an earlier run and the new ones.
        self.log = Journal(
            writer.unfinished,
            writer.keep,
            known=writer.known,
            facts=ready.called,
            deadline=deadline,
            say=lambda why: self.say(f"{self.label}: {why}"),
        )
        self.label = ""

    @property
    def unfinished(self) -> list[str]:
        """What the time limit left out, or cut short."""
        left = [name for name, reason in self.missing.items() if reason == OUT_OF_TIME]
        return left + [name for name, result in self.results.items() if result.status == "partial"]

    def measure(self, name: str = "") -> ProbeOutcome:
        """Measure what was chosen; `name` is what progress calls the checkpoint, its label by default."""
        start = time.perf_counter()
        for number, c in enumerate(self.chosen, 1):
            self.began(number)
            self.label = label = f"{name or self.subject.label}: {c.measurement.name}"
            found = self._earlier(c)
            if found and all(e.status == "complete" for e in found):
                self.say(f"{label} ({number} of {len(self.chosen)}) is in the archive already")
                self.results |= self._named(c, [e.result for e in found])
                continue
            self.say(f"{label} ({number} of {len(self.chosen)})")
            why = () if found else self._why_anew(c)
            if why:
                self.say(f"{label}: measured anew, not taken from the archive: another is {', '.join(why)}")
            self._one(c, found)
        if not self.results:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
            raise MeasurementError(f"nothing could be measured of {self.ready.checkpoint.path} ({reasons})")
        return self._outcome(time.perf_counter() - start)

    def _asked(self, c: Chosen) -> dict[str, Any]:
        """Return all that the result depends on beside the subject: a resumed run looks for it."""
        return {"measurement": c.measurement.name, "option": plain(c.options), **self.ready.depends()}

    def _earlier(self, c: Chosen) -> list[Earlier]:
        """Return what an earlier run of this archive found when it was asked the same of the same checkpoint."""
        asked = dump_json(self._asked(c))
        return [e for e in self.writer.earlier if e.asked == asked and e.subject.key == self.subject.key]

    def _why_anew(self, c: Chosen) -> list[str]:
        """Return what differs from the result that the archive holds of this measurement and file, if it holds one."""
        now = {**self._asked(c), **self._circumstances(self.subject)}
        found = []
        for e in reversed(self.writer.earlier):  # of two as near, the later one
            asked = load_json(e.asked) if e.asked and e.subject.checkpoint == self.subject.checkpoint else {}
            if asked.get("measurement") == c.measurement.name:
                found.append(differences({**asked, **self._circumstances(e.subject)}, now))
        return min(found, key=len, default=[])

    def _circumstances(self, subject: Subject) -> dict[str, Any]:
        told = {"task_file", "task_hash", *self.ready.called.get("setting", {})}
        return {
            "weights": f"#{subject.fingerprint}",
            "step": subject.step,
            "epoch": subject.epoch,
            "circumstance": {k: v for k, v in subject.facts.items() if k not in told},
        }

    @staticmethod
    def _named(c: Chosen, results: Sequence[Result]) -> dict[str, Result]:
        """Return a measurement's result under its name, and those along with it under their kinds."""
        return {c.measurement.name: results[0], **{kind_of(r): r for r in results[1:]}}

    def _one(self, c: Chosen, earlier: Sequence[Earlier]) -> None:
        m = c.measurement
        if self.log.deadline is not None and agreed_here(self.log.out_of_time):
            self.missing[m.name] = OUT_OF_TIME
            return
        try:
            with keeping(self.log):
                result = self._result(c)
        except Exception as error:
            if not (isinstance(error, MeasurementError | ObjectiveError) or ran_out(error)) or not _only_this_one(
                error, c
            ):
                raise
            self.missing[m.name] = reason = _reason(error)
            # Kept back until something is measured, so that a run without any result leaves no file.
            # A model that is no classifier lacks nothing: the preset's calibration is told of, and is no failure.
            if c.named or not isinstance(error, NoLabelsError):
                self.unwritten.append(not_measured(m, c.options, reason))
        else:
            found = self._named(c, [result, *(result.along or ())])
            asked = dump_json(self._asked(c))
            self.writer.add_all(list(found.values()), subject=self.subject, asked=asked, replaces=earlier[: len(found)])
            self.results |= found
        while self.results and self.unwritten:
            self.writer.add_all([self.unwritten.pop(0)], subject=self.subject)

    def _result(self, c: Chosen) -> Result:
        """Run one measurement; where it stands on second derivatives, those are compared with differences first."""
        m, task = c.measurement, self.ready.task
        checks = (self._derivatives(),) if "second derivative" in m.needs else ()
        result = m.run(task, seed=task.seed, progress=self.progress, **c.options)
        if not isinstance(result, Result):
            raise MeasurementError(f"measurement {m.name!r} returned a {type(result).__name__}, expected a Result")
        return replace(result, checks=(*result.checks, *checks)) if checks else result

    def _derivatives(self) -> Check:
        """Return the check of the second derivative, made once; ObjectiveError where it fails."""
        if self.curved is None:
            with everything_shared(None):  # how many samples it compares is a question of time
                self.curved = twice_differentiable(self.ready.task)
        if self.curved.level == "fail":
            raise ObjectiveError(self.curved.message)
        return self.curved

    def _outcome(self, seconds: float) -> ProbeOutcome:
        ready = self.ready
        return ProbeOutcome(
            checkpoint=ready.checkpoint.path,
            task=ready.reference,
            device=ready.device,
            dtype=ready.dtype,
            samples=ready.task.draw(ready.split).samples,
            parameters=sum(p.numel() for p in trainable(ready.task.model).values()),
            results=self.results,
            missing=self.missing,
            archive=str(self.writer.path),
            seconds=seconds,
            notes=tuple(dict.fromkeys(note for result in self.results.values() for note in result.notes)),
            warnings=tuple(dict.fromkeys(self._warnings())),
        )

    def _warnings(self) -> Iterator[str]:
        yield from self.ready.warnings
        for name, reason in self.missing.items():
            yield f"not measured: {name}: {reason}"
        for name, result in self.results.items():
            yield from result.warnings
            for check in result.checks:
                if check.level != "pass" and check.message not in result.warnings:
                    yield f"{name}: {check.message}"


def _only_this_one(error: Exception, c: Chosen) -> bool:
    """Whether the other measurements can go on: not where an option of the user's is wrong, or the loss itself is."""
    if ran_out(error):
        return True
    if isinstance(error, MeasurementError):
        return not c.given
    return "second derivative" in c.measurement.needs


def _reason(error: Exception) -> str:
    if ran_out(error) and not isinstance(error, OutOfMemory):
        return f"out of memory ({first_line(error)[:120]}); {REMEDY}"
    return " ".join(str(error).split())


def not_measured(m: Measurement, options: Mapping[str, Any], reason: str) -> Result:
    """Return what the archive records for a measurement that a task cannot give: its kind, failed, and why."""
    return StoredResult(
        stored_kind=_kind_of(m),
        status="failed",
        settings={k: v if isinstance(v, bool | int | float | str | None) else str(v) for k, v in options.items()},
        checks=(Check("measured", "fail", reason),),
    )


def _kind_of(m: Measurement) -> str:
    """Return the archive's kind of what a measurement returns, from its annotation; else its own name."""
    try:
        returned = typing.get_type_hints(m.run).get("return")
    except NameError:  # an annotation that only type checkers can resolve
        returned = None
    return getattr(returned, "kind", "") or m.name
