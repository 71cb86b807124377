"""What a long measurement has found so far, and until when it may go on: the way from a surface to `--resume`.

A measurement asks `journal()` for rows that an interrupted run left, and adds those that it evaluates itself. Where
nobody keeps one, that costs nothing and nothing is kept. No torch, no h5py here: whoever keeps a journal says how.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from time import monotonic

import numpy as np

#: Rows are handed on in blocks that took this many seconds to gather (chosen by us, as the archive's own flush).
BLOCK_SECONDS = 2.0


class Journal:
    """Rows of numbers by key: those of an earlier run, and the new ones, handed to `write(key, rows)` in blocks.

    A key names everything that a row depends on beside its own numbers (weights, data, directions, precision), so that
    rows of another model are never taken for this one's. `deadline` is a time of `time.monotonic`; None: no limit.
    """

    def __init__(
        self,
        kept: Mapping[str, np.ndarray] | None = None,
        write: Callable[[str, np.ndarray], None] | None = None,
        *,
        deadline: float | None = None,
    ) -> None:
        self.kept = dict(kept or {})
        self.deadline = deadline
        self.reused = 0
        self._write = write
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

    def rows(self, key: str, width: int) -> np.ndarray:
        """Return the rows that an earlier run left under this key, (n, width); none where their width differs."""
        found = self.kept.get(key)
        return found if found is not None and found.shape[1:] == (width,) else np.empty((0, width))

    def add(self, key: str, row: tuple[float, ...]) -> None:
        """Keep one row; it is written with the next block."""
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
                self._write(key, np.array(rows, dtype=np.float64))


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
