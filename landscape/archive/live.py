"""Write the rows of a run while it goes on: from a background thread, so that training waits for no disk."""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ArchiveError
from .segments import BLOCK, EVENTS, HEAD, MAGIC, ROWS, SUFFIX, in_words

#: Seconds between two writes (DESIGN: what a kill may cost), and rows that are handed over at once at most.
FLUSH_SECONDS, MOST_ROWS = 2.0, 1 << 14
#: Bytes that wait in memory while nothing can be written; beyond, the oldest rows are given up and counted (by us).
MOST_WAITING = 1 << 28


class LiveWriter:
    """Appends rows to one segment from a background thread; training never waits for a disk, and never fails for one.

    Args:
        folder: where the segments lie; made if need be. A new segment gets the next number.
        columns: {quantity: names of its columns}; no other rows can be added later (open a new segment for them).
        facts: what a reader shall know of the run, as JSON; `resumed_at` marks later rows of earlier segments as
            overtaken.
        flush_seconds: how often what waits is written (default 2 s, which is what a kill may cost).

    What could not be written is kept in memory and tried again, up to 256 MB; then the oldest rows are given up, and
    counted in `lost`. `problem` is the last failure in words, None once everything is written.

    Raises ArchiveError where the folder or the first file can't be made.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        columns: Mapping[str, Sequence[str]],
        facts: Mapping[str, Any] | None = None,
        *,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self.folder = Path(folder)
        self.columns = {quantity: tuple(names) for quantity, names in columns.items()}
        self.lost = 0
        self.problem: str | None = None
        self._numbers = {quantity: i for i, quantity in enumerate(self.columns)}
        self._facts = dict(facts or {})
        self._written = 0
        self._torn = False
        self._waiting: deque[tuple[str, int, Any]] = deque()
        self._events: deque[Mapping[str, Any]] = deque()
        self._unwritten: list[tuple[bytes | bytearray, int]] = []
        self._lock = threading.Lock()
        self._file, self.path = _new_segment(self.folder, self.columns, self._facts)
        self._end = self._file.tell()
        self._wake = threading.Event()
        self._closing = False
        self._seconds = flush_seconds
        self._thread = threading.Thread(target=self._work, name="landscape-live", daemon=True)
        self._thread.start()

    def append(self, quantity: str, step: int, values: Any) -> None:
        """Add one row: anything that NumPy turns into as many float64 numbers as the quantity has columns."""
        self._waiting.append((quantity, step, values))  # a deque's append is atomic: no lock in the training's way

    def event(self, event: Mapping[str, Any]) -> None:
        """Add what happened, as JSON; it counts as one row."""
        self._events.append(event)

    def declare(self, columns: Mapping[str, Sequence[str]], facts: Mapping[str, Any] | None = None) -> None:
        """Take further quantities, or further columns of one, from now on: in a new segment, which lists all of them.

        What waits is written to the old segment first. Where the new one can't be made, rows wait for it as they wait
        for a full disk to be cleared.
        """
        with self._lock:
            self._write(self._take())
            given = {quantity: tuple(names) for quantity, names in columns.items()}
            changed = {n for q, n in self._numbers.items() if q in given and given[q] != self.columns[q]}
            self.columns |= given
            self._numbers = {quantity: i for i, quantity in enumerate(self.columns)}
            self._facts |= dict(facts or {})
            stuck = [b for b in self._unwritten if _is_rows_of(b[0], changed)]
            # Encoded with the old columns, and the old file took them not: a rare pair of misfortunes, but counted.
            self.lost += sum(rows for _, rows in stuck)
            self._unwritten = [b for b in self._unwritten if b not in stuck]
            self._torn = True  # the next write begins a new segment
            self._write([])

    def flush(self) -> None:
        """Write everything that waits, now, from this thread."""
        with self._lock:
            self._write(self._take())

    def close(self) -> None:
        """Write what waits and close the file; what still can't be written is counted as lost."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        self._thread.join()
        self.flush()
        self.lost += sum(rows for _, rows in self._unwritten)
        self._unwritten = []
        self._file.close()

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait(self._seconds)
            with self._lock:
                self._write(self._take())

    def _take(self) -> list[tuple[bytes | bytearray, int]]:
        """Return what waits as encoded blocks with their numbers of rows."""
        # One by one: a list that was swapped for a new one could still get a row from the training's thread.
        rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
        blocks: list[tuple[bytes | bytearray, int]] = []
        found: dict[str, tuple[list[int], list[Any]]] = {}
        for quantity, step, values in rows:
            steps, several = found.setdefault(quantity, ([], []))
            steps.append(step)
            several.append(values)
        for quantity, (steps, several) in found.items():
            for start in range(0, len(steps), MOST_ROWS):
                blocks += self._block(quantity, steps[start : start + MOST_ROWS], several[start : start + MOST_ROWS])
        events = [self._events.popleft() for _ in range(len(self._events))]
        if events:
            payload = json.dumps(events).encode()
            blocks.append((ROWS.pack(EVENTS, 0, len(events), len(payload), zlib.crc32(payload)) + payload, len(events)))
        return blocks

    def _block(self, quantity: str, steps: list[int], rows: list[Any]) -> list[tuple[bytes | bytearray, int]]:
        """Return rows of one quantity as a block; none, and counted as lost, where they are not numbers of its width.

        Nothing may end the thread that writes: such rows are a caller's mistake.
        """
        width, count = len(self.columns[quantity]), len(rows)
        head = ROWS.size
        block = bytearray(head + 8 * count * (1 + width))
        payload = memoryview(block)[head:]
        try:
            np.frombuffer(payload, "<i8", count)[:] = steps
            values = np.frombuffer(payload, "<f8", count * width, 8 * count).reshape(count, width)
            values[:] = _matrix(rows, width)
        except (TypeError, ValueError) as error:
            self.lost += count
            self.problem = f"{count} rows of {quantity} are not {width} numbers each: {error}"
            return []
        ROWS.pack_into(block, 0, BLOCK, self._numbers[quantity], count, len(payload), zlib.crc32(payload))
        return [(block, count)]

    def _write(self, blocks: list[tuple[bytes | bytearray, int]]) -> None:
        """Append blocks; after a failure cut the file back to its last whole block and keep them for the next time."""
        self._unwritten += blocks
        try:
            if self._torn or (self._unwritten and os.fstat(self._file.fileno()).st_nlink == 0):
                self._begin_anew()
            while self._unwritten:
                data, rows = self._unwritten[0]
                _write_all(self._file, data)
                self._end += len(data)
                self._written += rows
                self._unwritten.pop(0)
            self.problem = None
        except (OSError, ArchiveError) as error:
            self.problem = str(error) if isinstance(error, ArchiveError) else in_words(error, self.path)
            try:
                os.ftruncate(self._file.fileno(), self._end)
                self._file.seek(self._end)
            except OSError:
                self._torn = True  # a reader stops at the torn block: what comes next goes to a new segment
            self._give_up()

    def _begin_anew(self) -> None:
        """Go on in a new segment: this one was deleted, with all that had been written, or could not be mended."""
        if os.fstat(self._file.fileno()).st_nlink == 0:
            self.lost, self._written = self.lost + self._written, 0
        else:
            # Said once, by the session's first segment: later ones of the same session overtake nothing.
            self._facts.pop("resumed_at", None)
        file, self.path = _new_segment(self.folder, self.columns, self._facts)
        self._file.close()
        self._file, self._end, self._torn = file, file.tell(), False

    def _give_up(self) -> None:
        size = sum(len(data) for data, _ in self._unwritten)
        while self._unwritten and size > MOST_WAITING:
            data, rows = self._unwritten.pop(0)
            size -= len(data)
            self.lost += rows


def _matrix(rows: list[Any], width: int) -> np.ndarray:
    """Return rows as (n, width); arrays of one size are joined a third faster than NumPy would turn them into one."""
    if isinstance(rows[0], np.ndarray) and all(isinstance(r, np.ndarray) for r in rows):
        return np.concatenate(rows, axis=None).reshape(len(rows), width)
    return np.array(rows, dtype="<f8").reshape(len(rows), width)


def _new_segment(folder: Path, columns: Mapping[str, Sequence[str]], facts: Mapping[str, Any]) -> tuple[BinaryIO, Path]:
    header = json.dumps({"columns": columns, "facts": facts}).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.stem) for p in folder.glob(f"*{SUFFIX}") if p.stem.isdigit()), default=0)
        path = folder / f"{number:04d}{SUFFIX}"
        # Unbuffered: a write either reached the system, where a kill can't undo it, or raised.
        file = open(path, "xb", buffering=0)  # noqa: SIM115
        try:
            _write_all(file, HEAD.pack(MAGIC, len(header)) + header)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArchiveError(in_words(error, folder)) from error
    return file, path


def _write_all(file: BinaryIO, data: bytes | bytearray) -> None:
    """Write everything or raise: an unbuffered write may stop halfway without a word."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _is_rows_of(block: bytes | bytearray, quantities: set[int]) -> bool:
    magic, quantity, *_ = ROWS.unpack_from(block)
    return magic == BLOCK and quantity in quantities
