"""What happens between two steps: expensive probes measure, and what was observed is evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from landscape.archive.joining import LIVE_RESULTS
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.errors import ArchiveError

from .observed import Observed
from .probe import Found, Now, Probe, Quantity, Run
from .sink import Sink
from .timing import Timed


class Between:
    """Asks the probes that cost time at the moments between steps, and records what they found and took.

    Args:
        run, sink, probes: the recorder's.
        results: the folder for Results until the run's end puts them into the archive; None where another process
            writes.
        session: how often the run was resumed, which tells files of the same step apart.
        world: processes of a distributed training.
        budget: the share of the run's time that all recording may take, for expensive probes to keep to; None: no such
            limit.
        spent: tells the seconds that recording took so far.
    """

    def __init__(
        self,
        run: Run,
        sink: Sink,
        probes: Sequence[Timed],
        results: Path | None,
        session: int,
        world: int,
        budget: float | None,
        spent: Callable[[], float],
    ) -> None:
        self._budget, self._spent = budget, spent
        self._run, self._sink = run, sink
        self._results, self._session, self._world = results, session, world
        self._evaluate = [t for t in probes if t.evaluates]
        #: Those with a lattice of their own.
        self.slow = [t for t in probes if t.probe.expensive and not t.evaluates]
        #: Cheap ones with a budget, whose seconds are recorded too.
        self.budgeted = [t for t in probes if not t.probe.expensive and t.probe.when.budget is not None]
        self._columns = tuple(t.probe.name for t in (*self.slow, *self.budgeted))
        if self._columns:
            doc = "seconds that a probe took at a point of its lattice; 0: left out for its budget"
            sink.declare([Quantity("probe_seconds", self._columns, "s", doc)])

    def stepped(self, number: int) -> None:
        """Record what the cheap probes with a budget took at a step."""
        self._record_seconds(number, {t.probe.name: t.took(number) for t in self.budgeted})

    def measure(self, now: Now) -> None:
        """Let the probes whose moment this is measure, as far as their budgets allow."""
        spent: dict[str, float] = {}
        for timed in self.slow:
            if timed.on_lattice(now):
                # What the probes before it took at this moment is not among the recording's seconds yet.
                room = self._room() - sum(s for s in spent.values() if not math.isnan(s))
                spent[timed.probe.name] = self._take(timed, now, partial(timed.measure, room=room))
        if spent:
            self._record_seconds(now.step, spent)

    def _room(self) -> float:
        """Return the seconds that the whole recording's budget leaves now."""
        return math.inf if self._budget is None else self._budget * self._sink.elapsed - self._spent()

    def evaluate(self) -> None:
        """Evaluate what was observed since the last time."""
        for timed in self._evaluate:
            self._take(timed, Now(self._run.step, self._run.epoch, True), timed.forced)
        self._run.observed.clear()

    def gather(self) -> None:
        """Bring together what all processes observed. The logits kept for a temperature stay those of the first."""
        told: list[Any] = [None] * self._world
        settings = {s: o.accumulator.settings for s, o in self._run.observed.items()}
        own = {s: (how.ignore_index, how.kind) for s, how in settings.items()}
        torch.distributed.all_gather_object(told, own)
        for split, how in {s: i for seen in reversed(told) for s, i in seen.items()}.items():
            seen = self._run.observed.setdefault(split, Observed(*how))
            seen.accumulator.all_reduce()

    def _record_seconds(self, step: int, spent: Mapping[str, float]) -> None:
        """Record what probes took at points of their lattices, and which were left out: a resumed run decides alike."""
        if not all(math.isnan(s) for s in spent.values()):
            self._sink.record("probe_seconds", step, [spent.get(n, math.nan) for n in self._columns])

    def _take(self, timed: Timed, now: Now, measure: Any) -> float:
        """Let a probe measure, record what it found, and return the seconds that it took: 0 where it was left out."""
        found, seconds = measure(now, self._sink.elapsed)
        if found is not None:
            timed.call(lambda p: self._record_found(p, now, found))
        return seconds

    def _record_found(self, probe: Probe, now: Now, found: Found) -> None:
        for quantity, row in found.rows.items():
            self._sink.record(quantity, now.step, row)
        if found.results and self._results is not None:
            self._keep(self._results / LIVE_RESULTS / probe.name, now, found.results)

    def _keep(self, folder: Path, now: Now, results: Sequence[Any]) -> None:
        """Keep Results in a file of their own beside the rows."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            subject = Subject(step=now.step, epoch=now.epoch, name=f"step {now.step}")
            # Numbered: a probe may measure twice behind the same step.
            stem = f"{now.step:08d}-{self._session}"
            number = sum(1 for _ in folder.glob(f"{stem}-*.h5"))
            save_archive(folder / f"{stem}-{number}.h5", results, subject=subject, force=True)
        except (OSError, ArchiveError) as error:
            told = f"what the probe {folder.name} measured could not be written: {error}"
            self._sink.event(now.step, "lost_rows", told)
