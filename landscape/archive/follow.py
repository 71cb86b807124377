"""Follow the segments of a run as they grow: every poll reads the new bytes alone, a few megabytes at a time."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArchiveError
from .segments import (
    Unfinished,
    in_words,
    last_step,
    lost_event,
    read_events,
    read_header,
    rows_of,
    segment_paths,
    whole_blocks,
)

#: Bytes that are read at once (chosen by us: twice a writer's largest block, which is read whole).
_PIECE = 1 << 23


@dataclass(frozen=True)
class Begun:
    """A segment has begun: its facts, and the step that a resumed run goes on from, None for one that goes on."""

    facts: Mapping[str, Any]
    resumed_at: int | None


@dataclass(frozen=True)
class Fresh:
    """New rows of one quantity: `names` of the columns (k,), `steps` (r,), `values` (r, k)."""

    quantity: str
    names: tuple[str, ...]
    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Happened:
    """New events, as a segment holds them."""

    events: tuple[Mapping[str, Any], ...]


class Follower:
    """Reads what is new in a live folder, poll by poll, while another process writes it.

    Args:
        folder: the live folder; it may not be there yet, and may go away.
        without: ids of segments that the archive holds already.

    `torn` counts the bytes behind the last whole block of each segment, which its writer may still finish. Memory is
    that of one piece, 8 MB. Raises ArchiveError where a file is no segment.
    """

    def __init__(self, folder: str | os.PathLike[str], without: Collection[str] = ()) -> None:
        self.folder = Path(folder)
        self._without = frozenset(without)
        self._tails: dict[Path, _Tail] = {}

    @property
    def torn(self) -> int:
        """Bytes that were there at the last poll and are no whole block."""
        return sum(tail.left for tail in self._tails.values())

    def poll(self) -> Iterator[Begun | Fresh | Happened]:
        """Yield what was written since the last poll, in the order of writing."""
        for path in segment_paths(self.folder):
            tail = self._tails.setdefault(path, _Tail(path))
            try:
                yield from tail.read(self._without)
            except FileNotFoundError:
                continue  # the run has ended, and its segments went into the archive
            except Unfinished:
                continue  # its writer is at it
            except OSError as error:
                raise ArchiveError(in_words(error, path, "read")) from error


class _Tail:
    """One segment, and how far it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = self.left = self._step = 0
        self._names: list[str] = []
        self._columns: dict[str, tuple[str, ...]] = {}
        self._skipped = False

    def read(self, without: Collection[str]) -> Iterator[Begun | Fresh | Happened]:
        if self._skipped or self.path.stat().st_size == self.place:
            return
        with open(self.path, "rb", buffering=0) as file:
            if not self.place:
                yield from self._begin(file.read(_PIECE), without)
                if self._skipped:
                    return
            file.seek(self.place)
            size = _PIECE
            while True:
                data = np.frombuffer(file.read(size), np.uint8)
                before = self.place
                yield from self._blocks(data)
                self.left = len(data) - (self.place - before)
                if len(data) < size:
                    return
                # A block that is larger than what was read at once is read again, with more room.
                size = _PIECE if self.place > before else 2 * size
                file.seek(self.place)

    def _begin(self, data: bytes, without: Collection[str]) -> Iterator[Begun]:
        self.left = len(data)
        self._columns, facts, name, self.place = read_header(data, self.path)
        self._names = list(self._columns)
        self._skipped = bool(name) and name in without
        if self._skipped:
            self.left = 0
        else:
            yield Begun(facts, facts.get("resumed_at"))

    def _blocks(self, data: np.ndarray) -> Iterator[Fresh | Happened]:
        begin = self.place
        widths = [len(c) for c in self._columns.values()]
        memory = memoryview(data.data)
        for block in whole_blocks(memory, 0, widths):
            quantity, rows, start, stop, damaged = block
            self.place = begin + stop
            if damaged:
                yield Happened((lost_event(block, self._names, self._step, self.path),))
            elif quantity is None:
                yield Happened(tuple(read_events(data[start:stop].tobytes(), self.path)))
            else:
                name = self._names[quantity]
                self._step = last_step(memory, block)
                yield Fresh(name, self._columns[name], *rows_of(data, start, rows, widths[quantity]))
