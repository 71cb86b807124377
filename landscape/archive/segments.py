"""Segments: the rows of a run while it goes on, in files that are only ever appended to, and read whatever happened.

A segment is a header and blocks. The header is one JSON object (quantities with their column names, and facts about the
run) behind a magic number and its length; a block holds rows of one quantity,

    magic, quantity, rows, bytes and checksum of the payload; int64 steps (rows,); float64 values (rows, columns)

in the machine's little-endian order, or events (what happened when, in words) as JSON behind a magic number of their
own. A reader takes every whole block and ignores the torn one that a kill may leave at the end, so that nothing is ever
repaired before it is read, and a second process can follow a file as it grows.

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
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArchiveError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; two writers are then not told apart
    fcntl = None

#: Beside the archive: run.h5.live/0001.rows, 0002.rows, ...
FOLDER, SUFFIX = ".live", ".rows"
#: Of the folder: locked by the process that writes there.
LOCK = "lock"
MAGIC, BLOCK, EVENTS = b"LSROWS1\n", b"LSBK", b"LSEV"
HEAD, ROWS = struct.Struct("<8sI"), struct.Struct("<4sHIII")


def live_folder(archive: str | os.PathLike[str]) -> Path:
    """Return the folder in which an archive's segments lie while its run goes on."""
    return Path(f"{os.fspath(archive)}{FOLDER}")


def hold(folder: Path) -> int | None:
    """Take the folder for one writer, and return the lock's descriptor; closing it lets go.

    None where the file system has no locks: then two writers are not told apart. Raises ArchiveError where another
    process holds it.
    """
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is None:
        os.close(fd)
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EWOULDBLOCK:
            raise ArchiveError(
                f"{folder.with_suffix('')} is being written by another recorder; wait for it, or choose another file"
            ) from None
        return None
    return fd


def held(folder: Path) -> bool:
    """Whether a writer holds the folder now."""
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno == errno.EWOULDBLOCK
    finally:
        os.close(fd)
    return False


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
    events: tuple[Mapping[str, Any], ...]
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
    opened = Opened(path, data)
    steps: dict[str, list[np.ndarray]] = {name: [] for name in opened.columns}
    values: dict[str, list[np.ndarray]] = {name: [] for name in opened.columns}
    events: list[Mapping[str, Any]] = []
    for quantity, *content in opened.blocks():
        if quantity is None:
            events += content[0]
        else:
            steps[quantity].append(content[0])
            values[quantity].append(content[1])
    return Segment(
        path,
        opened.facts,
        opened.columns,
        {n: _joined(s, (0,), "<i8") for n, s in steps.items()},
        {n: _joined(v, (0, len(opened.columns[n])), "<f8") for n, v in values.items()},
        tuple(events),
        len(data) - opened.end,
    )


class Opened:
    """A segment whose blocks are views of `data`, its bytes in memory or mapped: `columns`, `facts`, `blocks()`.

    `end` is where the last whole block ends, once `blocks()` has been gone through.
    """

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self._data = path, data
        self.columns, self.facts, self._first = _header(memoryview(data.data), path)
        self.end = self._first

    def rewind(self) -> None:
        """Begin with the first block again."""
        self.end = self._first

    @classmethod
    def mapped(cls, path: Path) -> Opened:
        """Open a segment that nobody writes any more, leaving its numbers in the file."""
        try:
            return cls(path, np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8))
        except OSError as error:
            raise ArchiveError(in_words(error, path)) from error

    def blocks(self) -> Iterator[tuple[Any, ...]]:
        """Yield (quantity, steps (r,), values (r, k)) or (None, events) for each whole block, in their order."""
        names, memory = list(self.columns), memoryview(self._data.data)
        for quantity, rows, start, stop in _blocks(memory, self.end, [len(c) for c in self.columns.values()]):
            self.end = stop
            if quantity is None:
                yield None, json.loads(bytes(memory[start:stop]))
                continue
            middle = start + 8 * rows
            values = self._data[middle:stop].view("<f8").reshape(rows, len(self.columns[names[quantity]]))
            yield names[quantity], self._data[start:middle].view("<i8"), values


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


def _header(memory: memoryview, path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, Any], int]:
    if len(memory) < HEAD.size or bytes(memory[:8]) != MAGIC:
        raise ArchiveError(f"{path} is no segment of a run: it doesn't begin as one")
    length = HEAD.unpack_from(memory)[1]
    try:
        header = json.loads(bytes(memory[HEAD.size : HEAD.size + length]))
    except ValueError:
        raise ArchiveError(f"{path} is a segment whose header was never finished: it holds no rows") from None
    return {q: tuple(names) for q, names in header["columns"].items()}, header["facts"], HEAD.size + length


def _blocks(memory: memoryview, place: int, widths: Sequence[int]) -> Iterator[tuple[int | None, int, int, int]]:
    """Yield (quantity, rows, where the payload starts, where it ends) of every whole block; no quantity for events."""
    while place + ROWS.size <= len(memory):
        magic, quantity, rows, size, checksum = ROWS.unpack_from(memory, place)
        start, stop = place + ROWS.size, place + ROWS.size + size
        of_rows = magic == BLOCK and quantity < len(widths) and size == 8 * rows * (1 + widths[quantity])
        if not (of_rows or magic == EVENTS) or stop > len(memory):
            return
        if stop == len(memory) and zlib.crc32(memory[start:stop]) != checksum:
            return
        yield None if magic == EVENTS else quantity, rows, start, stop
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
