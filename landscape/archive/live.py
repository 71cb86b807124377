"""Write the rows of a run while it goes on: from a background thread, so that training waits for no disk."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ArchiveError
from .segments import BLOCK, EVENTS, ROWS, SUFFIX, in_words, sealed_head, segment_paths, written_header

#: Seconds between two writes (DESIGN: what a kill may cost), and rows of a block at most.
FLUSH_SECONDS, MOST_ROWS = 2.0, 1 << 14
#: Bytes of a block at most. Checksum and write let go of the interpreter's lock, and each may wait 5 ms to get it back
#: from a training that is all Python: fewer, larger blocks; this one still stays in a processor's cache.
BLOCK_BYTES = 1 << 22
#: Bytes that wait in memory while nothing can be written; beyond, the oldest rows are given up and counted (by us).
MOST_WAITING = 1 << 28
#: Of one quantity, bytes not yet encoded beyond which a training that outruns the writer waits for it, and seconds that
#: it waits at most, once, for a disk that hangs.
MOST_AHEAD, PATIENCE = 1 << 26, 1.0
#: What a row costs in memory: so much for each number (a float object and its place in a tuple, the dearest way), and a
#: pair and a header beside them, about.
_NUMBER, _OVERHEAD = 32, 256


class LiveWriter:
    """Appends rows to one segment from a background thread; training never waits for a disk, and never fails for one.

    Args:
        folder: where the segments lie; made if need be. A new segment gets the next number.
        columns: {quantity: names of its columns}; no other rows can be added later (open a new segment for them).
        facts: what a reader shall know of the run, as JSON; `resumed_at` marks later rows of earlier segments as
            overtaken.
        flush_seconds: how often what waits is written (default 2 s, which is what a kill may cost).

    What could not be written is kept in memory and tried again, up to 256 MB; then the oldest rows are given up, and
    counted in `lost`. `problem` is the last failure in words, None once everything is written. Rows that come faster
    than they can be written (from about 200,000 rows of 200 numbers a second) wait for the thread, so that memory stays
    bounded; a disk that hangs stops the training for a second at most, then rows are given up, too.

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
        self.problem: str | None = None
        self._lost = 0  # counted by the thread that writes
        self._refused = 0  # and by the one that appends
        self._numbers = {quantity: i for i, quantity in enumerate(self.columns)}
        self._facts = dict(facts or {})
        self._written = 0
        self._torn = False
        self._waiting = {quantity: _Queue(len(names)) for quantity, names in self.columns.items()}
        self._events: deque[Mapping[str, Any]] = deque()
        self._unwritten: deque[tuple[memoryview, int]] = deque()
        self._lock = threading.Lock()
        self._file, self.path = _new_segment(self.folder, self.columns, self._facts)
        self._end = self._file.tell()
        self._wake, self._stop, self._room = threading.Event(), threading.Event(), threading.Event()
        self._hangs = False
        self._seconds = flush_seconds
        self._thread = threading.Thread(target=self._work, name="landscape-live", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Rows and events that could not be written, and were given up."""
        return self._lost + self._refused

    def append(self, quantity: str, step: int, values: Any) -> None:
        """Add one row: anything that NumPy turns into as many float64 numbers as the quantity has columns."""
        queue = self._waiting.get(quantity)
        if queue is None:
            self._refused += 1
            self.problem = f"rows of {quantity}, which was not declared"
            return
        queue.rows.append((step, values))  # a deque's append is atomic: no lock in the training's way
        if len(queue.rows) >= queue.block:
            if not self._wake.is_set():
                self._wake.set()
            if len(queue.rows) >= queue.most:
                self._wait_for_room(queue)

    def event(self, event: Mapping[str, Any]) -> None:
        """Add what happened, as JSON; it counts as one row."""
        self._events.append(event)

    def declare(self, columns: Mapping[str, Sequence[str]], facts: Mapping[str, Any] | None = None) -> None:
        """Take further quantities, or further columns of one, from now on: in a new segment, which lists all of them.

        What waits is written to the old segment first. Where the new one can't be made, rows wait for it as they wait
        for a full disk to be cleared.
        """
        with self._lock:
            self._drain()
            given = {quantity: tuple(names) for quantity, names in columns.items()}
            changed = {n for q, n in self._numbers.items() if q in given and given[q] != self.columns[q]}
            self.columns |= given
            self._numbers = {quantity: i for i, quantity in enumerate(self.columns)}
            self._waiting |= {q: _Queue(len(names)) for q, names in given.items()}
            self._facts |= dict(facts or {})
            # Encoded with the old columns, and the old file took them not: a rare pair of misfortunes, but counted.
            self._lost += sum(rows for data, rows in self._unwritten if _is_rows_of(data, changed))
            self._unwritten = deque(b for b in self._unwritten if not _is_rows_of(b[0], changed))
            self._torn = True  # the next write begins a new segment
            self._write()

    def flush(self) -> None:
        """Write everything that waits, now, from this thread."""
        with self._lock:
            self._drain()

    def close(self) -> None:
        """Write what waits and close the file; what still can't be written is counted as lost."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self.flush()
        self._lost += sum(rows for _, rows in self._unwritten)
        self._unwritten.clear()
        self._file.close()

    def _work(self) -> None:
        while not self._stop.is_set():
            # A failed write is tried again by time alone: rows that pile up shall not make it spin.
            (self._wake if self.problem is None else self._stop).wait(self._seconds)
            self._wake.clear()
            with self._lock:
                self._drain()

    def _wait_for_room(self, queue: _Queue) -> None:
        """Let the thread catch up with a training that outruns it; give up the oldest row where nothing moves."""
        while self.problem is None and not self._hangs and len(queue.rows) >= queue.most:
            before = self._written
            self._room.clear()
            self._wake.set()
            self._hangs = not self._room.wait(PATIENCE) and self._written == before
        if self._hangs or self.problem is not None:
            try:
                queue.rows.popleft()
            except IndexError:
                return  # the thread has just taken them all
            self._refused += 1

    def _drain(self) -> None:
        """Write what waits, a block at a time, so that memory holds no second copy of it."""
        for block in self._blocks():
            self._unwritten.append(block)
            self._write()
        if self._unwritten:
            self._write()
        self._hangs = False
        self._room.set()

    def _blocks(self) -> Iterator[tuple[memoryview, int]]:
        """Yield what waits as encoded blocks with their numbers of rows."""
        for quantity, queue in list(self._waiting.items()):
            for _ in range(0, len(queue.rows), queue.block):
                # One by one: a deque that was swapped for a new one could still get a row from the training's thread.
                pop = queue.rows.popleft
                try:
                    rows = [pop() for _ in range(min(queue.block, len(queue.rows)))]
                except IndexError:  # the training's thread gave up some in between
                    continue
                if len(queue.rows) <= queue.most // 2:
                    self._room.set()  # not sooner: two threads that take turns block by block are slow ones
                if rows:
                    yield from self._block(quantity, *zip(*rows, strict=True))
        events = [self._events.popleft() for _ in range(len(self._events))]
        if events:
            payload = json.dumps(events, default=str).encode()
            yield memoryview(sealed_head(EVENTS, 0, len(events), payload) + payload), len(events)

    def _block(self, quantity: str, steps: Sequence[int], rows: Sequence[Any]) -> Iterator[tuple[memoryview, int]]:
        """Yield rows of one quantity as a block; those that are not numbers of its width are counted as lost, alone.

        Nothing may end the thread that writes: such rows are a caller's mistake.
        """
        width = len(self.columns[quantity])
        try:
            block, payload = _encoded(steps, rows, width)
        except Exception as error:  # whatever an array of somebody's raises when it is read
            good = [i for i, row in enumerate(rows) if _fits(row, width)]
            self._lost += len(rows) - len(good)
            self.problem = f"{len(rows) - len(good)} rows of {quantity} are not {width} numbers each: {error}"
            if not good:
                return
            steps, rows = [steps[i] for i in good], [rows[i] for i in good]
            block, payload = _encoded(steps, rows, width)
        block[: ROWS.size] = sealed_head(BLOCK, self._numbers[quantity], len(steps), payload)
        yield block, len(steps)

    def _write(self) -> None:
        """Append blocks; after a failure cut the file back to its last whole block and keep them for the next time."""
        try:
            if self._torn or os.fstat(self._file.fileno()).st_nlink == 0:
                self._begin_anew()
            while self._unwritten:
                data, rows = self._unwritten[0]
                _write_all(self._file, data)
                self._end += len(data)
                self._written += rows
                self._unwritten.popleft()
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
            self._lost, self._written = self._lost + self._written, 0
        else:
            # Said once, by the session's first segment: later ones of the same session overtake nothing.
            self._facts.pop("resumed_at", None)
        file, self.path = _new_segment(self.folder, self.columns, self._facts)
        self._file.close()
        self._file, self._end, self._torn = file, file.tell(), False

    def _give_up(self) -> None:
        size = sum(len(data) for data, _ in self._unwritten)
        while self._unwritten and size > MOST_WAITING:
            data, rows = self._unwritten.popleft()
            size -= len(data)
            self._lost += rows


class _Queue:
    """Rows of one quantity that wait: how many are a `block`, and `most` of them that may wait at all."""

    __slots__ = ("block", "most", "rows")

    def __init__(self, width: int) -> None:
        self.rows: deque[tuple[int, Any]] = deque()
        self.block = max(1, min(MOST_ROWS, BLOCK_BYTES // (8 * (1 + width))))
        self.most = max(2 * self.block, MOST_AHEAD // (_NUMBER * width + _OVERHEAD))


def _encoded(steps: Sequence[int], rows: Sequence[Any], width: int) -> tuple[memoryview, memoryview]:
    """Return a block whose head is still to be written, and its payload; raises where rows are not `width` numbers."""
    count, head = len(steps), ROWS.size
    # The numbers begin where they are aligned; NumPy copies to other places through a buffer of its own.
    whole = np.empty(-head % 8 + head + 8 * count * (1 + width), np.uint8)[-head % 8 :]
    whole[head : head + 8 * count].view("<i8")[:] = steps
    values = whole[head + 8 * count :].view("<f8")
    kinds = set(map(type, rows))
    if kinds == {np.ndarray}:
        if any(row.size != width for row in rows):
            raise ValueError(f"got {next(row.size for row in rows if row.size != width)}")
        np.concatenate(rows, axis=None, out=values)  # a third faster than turning them into one array
    elif kinds == {tuple}:
        if any(len(row) != width for row in rows):
            raise ValueError(f"got {next(len(row) for row in rows if len(row) != width)}")
        values[:] = np.fromiter(chain.from_iterable(rows), "<f8", count * width)  # up to five times as fast
    else:
        values[:] = np.array(rows, dtype="<f8").reshape(count, width).ravel()
    data = memoryview(whole.data)
    return data, data[head:]


def _fits(row: Any, width: int) -> bool:
    try:
        return np.asarray(row, dtype="<f8").size == width
    except Exception:
        return False


def _new_segment(folder: Path, columns: Mapping[str, Sequence[str]], facts: Mapping[str, Any]) -> tuple[BinaryIO, Path]:
    # The id tells a segment that an archive holds already from a later one under the same name.
    header = written_header({"columns": columns, "facts": facts, "id": uuid.uuid4().hex})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.stem) for p in segment_paths(folder)), default=0)
        path = folder / f"{number:04d}{SUFFIX}"
        # Unbuffered: a write either reached the system, where a kill can't undo it, or raised.
        file = open(path, "xb", buffering=0)  # noqa: SIM115
        try:
            _write_all(file, header)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArchiveError(in_words(error, folder)) from error
    return file, path


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write everything or raise: an unbuffered write may stop halfway without a word."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _is_rows_of(block: memoryview, quantities: set[int]) -> bool:
    magic, quantity, *_ = ROWS.unpack_from(block)
    return magic == BLOCK and quantity in quantities
