"""What probes measured at several moments of a training: the Results of one kind, evenly chosen, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ArchiveError
from ..results import Result
from .numbers import count
from .runs import Run, lacks, trainings

#: Moments that are drawn of a training at most, and of all trainings together (chosen by us: each is read).
MOST, MOST_OF_ALL = 8, 240


@dataclass(frozen=True)
class Moments:
    """The Results (step, result) that are drawn of a training, of `measured` there are, and how many can't be read."""

    run: Run
    found: tuple[tuple[int, Result], ...]
    measured: int
    unread: int = 0

    @property
    def thinned(self) -> bool:
        return self.measured > len(self.found) + self.unread


def moments(runs: Sequence[Run], kind: str, most: int = MOST) -> list[Moments]:
    """Return the moments of every training that measured this kind more than once; of several splits, the first.

    Evenly over those that were measured, the first and the last among them.
    """
    given = [(run, _listed(run, kind)) for run in trainings(runs)]
    given = [(run, listed) for run, listed in given if len(listed) > 1]
    each = max(2, min(most, MOST_OF_ALL // max(len(given), 1)))
    found = []
    for run, listed in given:
        results, unread = [], 0
        for one in (listed[i] for i in evenly(len(listed), each)):
            try:
                if lacks(one.result):
                    unread += 1
                elif one.result.status != "failed":
                    results.append((one.step, one.result))
            except ArchiveError:
                unread += 1
        if results:
            found.append(Moments(run, tuple(results), len(listed), unread))
    return found


def evenly(n: int, most: int) -> list[int]:
    """Return at most so many of the places 0 ... n - 1, evenly, with both ends."""
    if n <= most:
        return list(range(n))
    return sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})


def notes(found: Sequence[Moments], what: str) -> tuple[str, ...]:
    """Return what is to be said about moments that aren't drawn."""
    told = []
    thinned = [m for m in found if m.thinned]
    if thinned:
        longest = max(thinned, key=lambda m: m.measured)
        told.append(f"{len(longest.found)} of {count(longest.measured)} {what} are drawn, evenly over those measured.")
    unread = sum(m.unread for m in found)
    if unread:
        told.append(f"{count(unread)} {what} can’t be read from the record.")
    return tuple(told)


def _listed(run: Run, kind: str) -> list[Any]:
    """Return what probes measured of this kind, one for each step, in the order of steps."""
    first: dict[int, Any] = {}
    for probed in run.history.probed.values() if run.history else ():
        for one in probed:
            if one.kind == kind and not one.superseded:
                first.setdefault(one.step, one)
    return [first[step] for step in sorted(first)]
