"""The measurements of one checkpoint: made in order, each result to the archive at once, a failure said and kept."""

from __future__ import annotations

import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from landscape.archive.writer import ArchiveWriter
from landscape.errors import MeasurementError, ObjectiveError
from landscape.parameters import trainable
from landscape.results import Check, Measurement, Result, StoredResult, kind_of

from .derivatives import twice_differentiable
from .outcome import ProbeOutcome
from .selection import Chosen
from .subjects import Prepared


class Execution:
    """The measurements of one checkpoint, in order, each result to the archive at once."""

    def __init__(
        self,
        ready: Prepared,
        chosen: Sequence[Chosen],
        preset: str,
        say: Callable[[str], None],
        writer: ArchiveWriter,
        progress: bool,
    ) -> None:
        self.ready = ready
        self.chosen = chosen
        self.say = say
        self.writer = writer
        self.progress = progress
        self.subject = ready.subject(preset=preset)
        self.results: dict[str, Result] = {}
        self.missing: dict[str, str] = {}
        self.unwritten: list[Result] = []
        self.curved: Check | None = None

    def measure(self, prefix: str) -> ProbeOutcome:
        start = time.perf_counter()
        for number, c in enumerate(self.chosen, 1):
            label = f"{prefix}{self.subject.label}: {c.measurement.name}"
            self.say(f"{label} ({number} of {len(self.chosen)})")
            self._one(c)
        if not self.results:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.missing.items())
            raise MeasurementError(f"nothing could be measured of {self.ready.checkpoint.path} ({reasons})")
        return self._outcome(time.perf_counter() - start)

    def _one(self, c: Chosen) -> None:
        m = c.measurement
        try:
            result = self._result(c)
        except (MeasurementError, ObjectiveError, torch.OutOfMemoryError) as error:
            if not _only_this_one(error, c):
                raise
            self.missing[m.name] = reason = _reason(error)
            # Kept back until something is measured, so that a run without any result leaves no file.
            self.unwritten.append(not_measured(m, c.options, reason))
        else:
            for name, found in [(m.name, result), *((kind_of(r), r) for r in result.along or ())]:
                self.results[name] = found
                self.writer.add(found, subject=self.subject)
        while self.results and self.unwritten:
            self.writer.add(self.unwritten.pop(0), subject=self.subject)

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
    if isinstance(error, MeasurementError):
        return not c.given
    return isinstance(error, torch.OutOfMemoryError) or "second derivative" in c.measurement.needs


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory on the device; smaller batches need less"
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
