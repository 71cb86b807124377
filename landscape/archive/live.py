"""The rows of a run while it goes on: segments, files that are only ever appended to, and read whatever happened.

A segment is a header and blocks. The header is one JSON object (quantities with their column names, and facts about the
run) behind a magic number and its length; a block holds rows of one quantity,

    magic, quantity, rows, checksum of the payload; int64 steps (rows,); float64 values (rows, columns)

in the machine's little-endian order. A reader takes every whole block and ignores the torn one that a kill may leave at
the end, so that nothing is ever repaired before it is read, and a second process can follow a file as it grows.

Not HDF5, though the archive is: a full disk inside the HDF5 library ends the process (h5py 3.16), a killed writer
leaves a file that needs repair, readers must open after writers, and network mounts refuse its locks. A failed write of
a plain file is an exception, after which the file is cut back to its last whole block. At the end of the run the
segments are compacted into the archive.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ArchiveError

#: Beside the archive: run.h5.live/0001.rows, 0002.rows, ...
FOLDER, SUFFIX = ".live", ".rows"
_MAGIC, _BLOCK = b"LSROWS1\n", b"LSBK"
_HEAD, _ROWS = struct.Struct("<8sI"), struct.Struct("<4sHIII")
#: Seconds between two writes (DESIGN: what a kill may cost), and rows that are handed over at once at most.
FLUSH_SECONDS, MOST_ROWS = 2.0, 1 << 14
#: Bytes that wait in memory while nothing can be written; beyond, the oldest rows are given up and counted (by us).
MOST_WAITING = 1 << 28


def live_folder(archive: str | os.PathLike[str]) -> Path:
    """Return the folder in which an archive's segments lie while its run goes on."""
    return Path(f"{os.fspath(archive)}{FOLDER}")


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
        self._unwritten: list[tuple[bytes, int]] = []
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

    def _take(self) -> list[tuple[bytes, int]]:
        """Return what waits as encoded blocks with their numbers of rows."""
        # One by one: a list that was swapped for a new one could still get a row from the training's thread.
        rows = [self._waiting.popleft() for _ in range(len(self._waiting))]
        blocks: list[tuple[bytes, int]] = []
        by_quantity: dict[str, list[tuple[int, Any]]] = {}
        for quantity, step, values in rows:
            by_quantity.setdefault(quantity, []).append((step, values))
        for quantity, found in by_quantity.items():
            width = len(self.columns[quantity])
            for start in range(0, len(found), MOST_ROWS):
                part = found[start : start + MOST_ROWS]
                try:
                    steps = np.array([step for step, _ in part], dtype="<i8")
                    values = np.array([v for _, v in part], dtype="<f8").reshape(len(part), width)
                except (TypeError, ValueError) as error:
                    # Nothing may end this thread: rows that are no numbers of this width are a caller's mistake.
                    self.lost += len(part)
                    self.problem = f"{len(part)} rows of {quantity} are not {width} numbers each: {error}"
                    continue
                payload = steps.tobytes() + values.tobytes()
                head = _ROWS.pack(_BLOCK, self._numbers[quantity], len(part), len(payload), zlib.crc32(payload))
                blocks.append((head + payload, len(part)))
        return blocks

    def _write(self, blocks: list[tuple[bytes, int]]) -> None:
        """Append blocks; after a failure cut the file back to its last whole block and keep them for the next time."""
        self._unwritten += blocks
        try:
            if self._unwritten and (self._torn or os.fstat(self._file.fileno()).st_nlink == 0):
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
        file, self.path = _new_segment(self.folder, self.columns, self._facts)
        self._file.close()
        self._file, self._end, self._torn = file, file.tell(), False

    def _give_up(self) -> None:
        size = sum(len(data) for data, _ in self._unwritten)
        while self._unwritten and size > MOST_WAITING:
            data, rows = self._unwritten.pop(0)
            size -= len(data)
            self.lost += rows


@dataclass(frozen=True)
class Rows:
    """One quantity's rows in the order of writing: `steps` (n,), `values` (n, columns), NaN where a row lacks a column.

    `superseded` (n,) marks rows that a later segment has overtaken: a run resumed from a step before theirs.
    """

    names: tuple[str, ...]
    steps: np.ndarray
    values: np.ndarray
    superseded: np.ndarray

    def current(self) -> Rows:
        """Return the rows that stand."""
        if not self.superseded.any():
            return self
        keep = ~self.superseded
        return Rows(self.names, self.steps[keep], self.values[keep], self.superseded[keep])


@dataclass(frozen=True)
class Segment:
    """One segment as it was read: its facts, its columns, whole blocks of rows, and bytes of a torn one at the end."""

    path: Path
    facts: Mapping[str, Any]
    columns: Mapping[str, tuple[str, ...]]
    steps: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    torn: int


def read_segment(path: str | os.PathLike[str]) -> Segment:
    """Read every whole block of a segment, also while it is being written; raises ArchiveError if it is none.

    The payload's checksum is verified for the last block, which a kill or a lost mount may have left torn: those before
    it were complete when the next one was begun.
    """
    path = Path(path)
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ArchiveError(in_words(error, path)) from error
    memory = memoryview(data.data)
    columns, facts, place = _header(memory, path)
    names = list(columns)
    steps: dict[str, list[np.ndarray]] = {name: [] for name in names}
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for quantity, rows, start in _blocks(memory, place, [len(columns[n]) for n in names]):
        name, width = names[quantity], len(columns[names[quantity]])
        middle = start + 8 * rows
        steps[name].append(data[start:middle].view("<i8"))
        values[name].append(data[middle : middle + 8 * rows * width].view("<f8").reshape(rows, width))
        place = middle + 8 * rows * width
    return Segment(
        path,
        facts,
        columns,
        {n: _joined(s, (0,), "<i8") for n, s in steps.items()},
        {n: _joined(v, (0, len(columns[n])), "<f8") for n, v in values.items()},
        len(data) - place,
    )


def read_live(folder: str | os.PathLike[str]) -> tuple[dict[str, Rows], list[Segment]]:
    """Join the segments of a run: ({quantity: its rows}, the segments in order). Columns are the union of all."""
    paths = sorted(Path(folder).glob(f"*{SUFFIX}"))
    if not paths:
        raise ArchiveError(f"{folder} holds no rows of a run ({SUFFIX} files)")
    segments = [read_segment(path) for path in paths]
    joined = {}
    for quantity in dict.fromkeys(q for s in segments for q in s.columns):
        names = tuple(dict.fromkeys(n for s in segments for n in s.columns.get(quantity, ())))
        joined[quantity] = _quantity(quantity, names, segments)
    return joined, segments


def _quantity(quantity: str, names: tuple[str, ...], segments: Sequence[Segment]) -> Rows:
    holding = [s for s in segments if quantity in s.columns]
    steps = np.concatenate([s.steps[quantity] for s in holding])
    if all(s.columns[quantity] == names for s in holding):
        values = (
            holding[0].values[quantity] if len(holding) == 1 else np.concatenate([s.values[quantity] for s in holding])
        )
    else:
        values = np.full((len(steps), len(names)), np.nan)
        row = 0
        for s in holding:
            found = s.values[quantity]
            values[row : row + len(found), [names.index(n) for n in s.columns[quantity]]] = found
            row += len(found)
    superseded = np.zeros(len(steps), dtype=bool)
    row = 0
    for i, s in enumerate(segments):
        if quantity not in s.columns:
            continue
        overtaken = [later.facts["resumed_at"] for later in segments[i + 1 :] if "resumed_at" in later.facts]
        part = slice(row, row + len(s.steps[quantity]))
        if overtaken:
            superseded[part] = steps[part] > min(overtaken)
        row = part.stop
    return Rows(names, steps, values, superseded)


def _new_segment(folder: Path, columns: Mapping[str, Sequence[str]], facts: Mapping[str, Any]) -> tuple[BinaryIO, Path]:
    header = json.dumps({"columns": columns, "facts": facts}).encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.stem) for p in folder.glob(f"*{SUFFIX}") if p.stem.isdigit()), default=0)
        path = folder / f"{number:04d}{SUFFIX}"
        # Unbuffered: a write either reached the system, where a kill can't undo it, or raised.
        file = open(path, "xb", buffering=0)  # noqa: SIM115
        try:
            _write_all(file, _HEAD.pack(_MAGIC, len(header)) + header)
        except OSError:
            file.close()
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ArchiveError(in_words(error, folder)) from error
    return file, path


def _write_all(file: BinaryIO, data: bytes) -> None:
    """Write everything or raise: an unbuffered write may stop halfway without a word."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _header(memory: memoryview, path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, Any], int]:
    if len(memory) < _HEAD.size or bytes(memory[:8]) != _MAGIC:
        raise ArchiveError(f"{path} is no segment of a run: it doesn't begin as one")
    length = _HEAD.unpack_from(memory)[1]
    try:
        header = json.loads(bytes(memory[_HEAD.size : _HEAD.size + length]))
    except ValueError:
        raise ArchiveError(f"{path} is a segment whose header was never finished: it holds no rows") from None
    return {q: tuple(names) for q, names in header["columns"].items()}, header["facts"], _HEAD.size + length


def _blocks(memory: memoryview, place: int, widths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (quantity, rows, where the payload starts) of every whole block."""
    while place + _ROWS.size <= len(memory):
        magic, quantity, rows, size, checksum = _ROWS.unpack_from(memory, place)
        start, stop = place + _ROWS.size, place + _ROWS.size + size
        sound = magic == _BLOCK and quantity < len(widths) and size == 8 * rows * (1 + widths[quantity])
        if not sound or stop > len(memory):
            return
        if stop == len(memory) and zlib.crc32(memory[start:stop]) != checksum:
            return
        yield quantity, rows, start
        place = stop


def _joined(parts: list[np.ndarray], empty: tuple[int, ...], kind: str) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(empty, dtype=kind)


def in_words(error: OSError, path: Path) -> str:
    """Return one line on what the system refused, and what to do."""
    hint = {
        errno.ENOSPC: "the disk is full: make room",
        errno.EDQUOT: "the quota is used up: make room",
        errno.EFBIG: "the file may not grow further: raise the limit",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "no permission: choose another folder",
        errno.ENOENT: "it is gone",
    }.get(error.errno or 0, error.strerror or type(error).__name__)
    return f"can't write {path}: {hint}"
