"""What a long measurement has found so far, and until when it may go on: the way from a surface to `--resume`.

A measurement asks `journal()` for rows that an interrupted run left, and adds those that it evaluates itself. Where
nobody keeps one, that costs nothing and nothing is kept. No torch, no h5py here: whoever keeps a journal says how.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from time import monotonic
from typing import Any

import numpy as np

from .differences import differences

#: Rows are handed on in blocks that took this many seconds to gather (chosen by us, as the archive's own flush).
BLOCK_SECONDS = 2.0


#: Two losses of the same weights and data are one up to this relative difference: rounding, in another number of
#: threads (chosen by us).
SAME_LOSS = 1e-5
_LOSS = "loss at the origin"


class Journal:
    """Rows of numbers by key: those of an earlier run, and the new ones, handed to `write(key, rows, facts)` in blocks.

    A key stands for the facts on which a row depends beside its own numbers (loss, weights, data, directions,
    precision), so that rows of another model or loss are never taken for this one's.

    Args:
        kept, known: the rows of an earlier run by key, and the facts that were written with them.
        write: takes new rows; None keeps none.
        facts: plain data that the measurements don't know of themselves, such as the task's name and settings.
        deadline: a time of `time.monotonic`; None: no limit.
        say: is told why rows of the earlier run are not used, a line each time.
    """

    def __init__(
        self,
        kept: Mapping[str, np.ndarray] | None = None,
        write: Callable[[str, np.ndarray, Mapping[str, Any]], None] | None = None,
        *,
        known: Mapping[str, Mapping[str, Any]] | None = None,
        facts: Mapping[str, Any] | None = None,
        deadline: float | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.kept = dict(kept or {})
        self.known = dict(known or {})
        self.facts = dict(facts or {})
        self.deadline = deadline
        self.say = say or (lambda text: None)
        self.reused = 0
        self._write = write
        self._here: dict[str, Mapping[str, Any]] = {}
        self._waiting: dict[str, list[tuple[float, ...]]] = {}
        self._since = monotonic()

    @property
    def wanted(self) -> bool:
        """Whether rows are kept or were: else nobody needs a key."""
        return self._write is not None or bool(self.kept)

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit has passed."""
        return self.deadline is not None and monotonic() >= self.deadline

    def rows(self, facts: Mapping[str, Any], loss: float, width: int) -> tuple[str, np.ndarray]:
        """Return the key for rows of these facts, and what an earlier run left under it, (n, width); often nothing.

        `facts` are plain data, "coordinates" (how many of a row's numbers say where it is) among them; `loss` is that
        at the origin. Rows whose origin had another loss are none of these, whatever the facts say: nobody finds out
        everything about a function.
        """
        facts = {**self.facts, **facts}
        key = _key(facts)
        before = self.known.get(key, {}).get(_LOSS, loss)
        if abs(before - loss) > SAME_LOSS * max(abs(before), abs(loss)):
            key = _key({**facts, _LOSS: loss})
        self._here[key] = facts = {**facts, _LOSS: loss}
        found = self.kept.get(key)
        if found is not None and found.shape[1:] == (width,):
            return key, found
        self._explain(facts)
        return key, np.empty((0, width))

    def add(self, key: str, row: tuple[float, ...]) -> None:
        """Keep one row under a key that `rows` gave; it is written with the next block."""
        if self._write is None:
            return
        self._waiting.setdefault(key, []).append(row)
        if monotonic() - self._since >= BLOCK_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Hand on every row that waits."""
        waiting, self._waiting = self._waiting, {}
        self._since = monotonic()
        if self._write is not None:
            for key, rows in waiting.items():
                self._write(key, np.array(rows, dtype=np.float64), self._here[key])

    def _explain(self, facts: Mapping[str, Any]) -> None:
        """Say what is other about those kept rows that are most like what was asked for, if any are of its kind."""
        others = {}
        for key in self.kept.keys() - self._here.keys():
            known = self.known.get(key, {})
            if known.get("coordinates") == facts.get("coordinates"):
                others[key] = differences(known, facts)
        if not others:
            return
        key = min(others, key=lambda k: len(others[k]))
        # Another loss, another value of it: worth a word only where nothing else tells.
        told = [text for text in others[key] if _LOSS not in text] or others[key]
        self.say(
            f"evaluated anew, not taken from the {len(self.kept[key]):,} points of the earlier run: another is "
            f"{', '.join(told)}"
        )


def _key(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


_JOURNAL: ContextVar[Journal | None] = ContextVar("landscape_journal", default=None)


def journal() -> Journal:
    """Return the journal that is kept here; an empty one that keeps nothing where there is none."""
    return _JOURNAL.get() or Journal()


@contextlib.contextmanager
def keeping(kept: Journal) -> Iterator[Journal]:
    """Let the measurements made inside keep this journal; what waits is written on every way out."""
    token = _JOURNAL.set(kept)
    try:
        yield kept
    finally:
        _JOURNAL.reset(token)
        kept.flush()


@contextlib.contextmanager
def until(seconds: float | None) -> Iterator[Journal]:
    """Let the measurements made inside take this many seconds at most, beside any limit that there is already."""
    outer = journal()
    deadlines = [d for d in (outer.deadline, None if seconds is None else monotonic() + seconds) if d is not None]
    before, outer.deadline = outer.deadline, min(deadlines, default=None)
    token = _JOURNAL.set(outer)
    try:
        yield outer
    finally:
        _JOURNAL.reset(token)
        outer.deadline = before
