"""Segments: the rows of a run while it goes on, in files that are only ever appended to, and read whatever happened.

A segment is a header, twice, and blocks. The header is one JSON object (quantities with their column names, and facts
about the run) behind a magic number, its length and checksum; a block holds rows of one quantity,

    magic, quantity, rows, bytes of the payload, checksum; int64 steps (rows,); float64 values (rows, columns)

in the machine's little-endian order, or events (what happened when, in words) as JSON behind a magic number of their
own. A reader takes every block that fits its checksum and ignores the torn one that a kill may leave at the end, so
that nothing is ever repaired before it is read, and a second process can follow a file as it grows. A block in the
middle that doesn't fit loses its rows alone: reading goes on at the next one that does, and an event says what is lost.
(Earlier versions wrote the header once, without a checksum, and blocks whose checksum is that of the payload alone.)

Not HDF5, though the archive is: a full disk inside the HDF5 library ends the process (h5py 3.16), a killed writer
leaves a file that needs repair, readers must open after writers, and network mounts refuse its locks. A failed write of
a plain file is an exception, after which the file is cut back to its last whole block. At the end of the run the
segments are compacted into the archive.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import zlib
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

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
MAGIC, BLOCK, EVENTS = b"LSROWS2\n", b"LSB2", b"LSE2"
_OLD_MAGIC, _OLD_BLOCK, _OLD_EVENTS = b"LSROWS1\n", b"LSBK", b"LSEV"
HEAD, ROWS = struct.Struct("<8sII"), struct.Struct("<4sHIII")
_OLD_HEAD = struct.Struct("<8sI")
#: Of a block's head, the bytes that its checksum covers before the payload.
_COVERED = ROWS.size - 4
_BEGINS = re.compile(b"|".join((BLOCK, EVENTS, _OLD_BLOCK, _OLD_EVENTS)))
#: A second header lies within so many bytes (chosen by us: names of 100,000 parameters are shorter).
_HEADERS = 1 << 26


def live_folder(archive: str | os.PathLike[str]) -> Path:
    """Return the folder in which an archive's segments lie while its run goes on."""
    return Path(f"{os.fspath(archive)}{FOLDER}")


def segment_paths(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the segments of a folder in the order in which they were begun."""
    found = [p for p in Path(folder).glob(f"*{SUFFIX}") if p.stem.isdigit()]
    return sorted(found, key=lambda p: int(p.stem))


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


def held(folder: Path) -> bool | None:
    """Whether a writer holds the folder now; None where the file system has no locks to tell by."""
    if fcntl is None:
        return None
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno == errno.EWOULDBLOCK else None
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
    """One segment as it was read: its facts, its columns, whole blocks of rows, and bytes of a torn one at the end.

    What damaged blocks held is missing; an event of kind "lost_rows" says so for each.
    """

    path: Path
    facts: Mapping[str, Any]
    columns: Mapping[str, tuple[str, ...]]
    steps: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    events: tuple[Mapping[str, Any], ...]
    torn: int
    id: str = ""


class Unfinished(ArchiveError):
    """A segment whose header a kill left half written: there are no rows in it."""


def read_segment(path: str | os.PathLike[str]) -> Segment:
    """Read every whole block of a segment, also while it is being written; raises ArchiveError if it is none."""
    path = Path(path)
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ArchiveError(in_words(error, path, "read")) from error
    opened = Opened(path, data)
    steps: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for quantity, names in opened.columns.items():
        found = list(opened.rows(quantity))
        steps[quantity] = _joined([s for s, _ in found], (0,), "<i8")
        values[quantity] = _joined([v for _, v in found], (0, len(names)), "<f8")
    return Segment(path, opened.facts, opened.columns, steps, values, opened.events, opened.torn, opened.id)


class Opened:
    """A segment whose rows are views of `data`, its bytes in memory or mapped: `columns`, `facts`, `rows(quantity)`.

    Its blocks are found once, and cost 16 bytes of memory each. Raises ArchiveError for what is no segment,
    `Unfinished` for one that holds nothing yet.
    """

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self._data = path, data
        self.columns, self.facts, self.id, self.first = read_header(memoryview(data.data), path)

    @classmethod
    def mapped(cls, path: Path) -> Opened:
        """Open a segment that nobody writes any more, leaving its numbers in the file."""
        try:
            return cls(path, np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8))
        except OSError as error:
            raise ArchiveError(in_words(error, path, "read")) from error

    @cached_property
    def _blocks(self) -> tuple[dict[str | None, array[int]], int, dict[int, Mapping[str, Any]]]:
        """Where each quantity's blocks begin and their numbers of rows, in turn; where the last ends; what is lost."""
        names, place, before = list(self.columns), self.first, None
        found: dict[str | None, array[int]] = {name: array("Q") for name in (None, *names)}
        lost: dict[int, Mapping[str, Any]] = {}
        memory = memoryview(self._data.data)
        for block in whole_blocks(memory, place, [len(c) for c in self.columns.values()]):
            place = block.stop
            if block.damaged:
                lost[block.start] = lost_event(block, names, last_step(memory, before), self.path)
            elif block.quantity is None:
                found[None].extend((block.start, block.stop - block.start))
            else:
                found[names[block.quantity]].extend((block.start, block.rows))
                before = block
        return found, place, lost

    @property
    def damaged(self) -> bool:
        """Whether blocks in the middle don't fit their checksums, or a last one that a kill would have left shorter."""
        widths = [len(c) for c in self.columns.values()]
        last, fits = _block(memoryview(self._data.data), self._blocks[1], widths)
        return bool(self._blocks[2]) or (last is not None and not fits)

    @property
    def torn(self) -> int:
        """Bytes behind the last whole block."""
        return len(self._data) - self._blocks[1]

    @cached_property
    def events(self) -> tuple[Mapping[str, Any], ...]:
        """What happened, in order; what was lost of the segment, too."""
        blocks, _, lost = self._blocks
        places = blocks[None]
        found = {start: [event] for start, event in lost.items()}
        for start, size in zip(places[::2], places[1::2], strict=True):
            found[start] = read_events(self._data[start : start + size].tobytes(), self.path)
        return tuple(event for start in sorted(found) for event in found[start])

    def count(self, quantity: str) -> int:
        """Return how many rows of a quantity there are."""
        return sum(self._blocks[0].get(quantity, array("Q"))[1::2])

    def rows(self, quantity: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield a quantity's rows block by block: steps (r,), values (r, columns)."""
        places = self._blocks[0].get(quantity, array("Q"))
        for start, rows in zip(places[::2], places[1::2], strict=True):
            yield rows_of(self._data, start, rows, len(self.columns[quantity]))


def read_live(
    folder: str | os.PathLike[str], without: Collection[str] = (), *, rows: bool = True
) -> tuple[dict[str, Rows], list[Segment]]:
    """Join the segments of a run: ({quantity: its rows}, the segments in order). Columns are the union of all.

    Segments whose id is among `without` are passed over. A segment that was never finished counts as torn. With
    `rows=False` facts and events alone are read, in little memory, of segments that nobody writes any more.
    """
    paths = segment_paths(folder)
    if not paths:
        raise ArchiveError(f"{folder} holds no rows of a run ({SUFFIX} files)")
    segments = []
    for path in paths:
        try:
            segment = read_segment(path) if rows else _without_rows(Opened.mapped(path))
        except Unfinished:
            segment = Segment(path, {}, {}, {}, {}, (), path.stat().st_size)
        if not segment.id or segment.id not in without:
            segments.append(segment)
    joined = {}
    for quantity in dict.fromkeys(q for s in segments for q in s.columns) if rows else ():
        names = tuple(dict.fromkeys(n for s in segments for n in s.columns.get(quantity, ())))
        joined[quantity] = _quantity(quantity, names, segments)
    return joined, segments


def _without_rows(opened: Opened) -> Segment:
    return Segment(opened.path, opened.facts, opened.columns, {}, {}, opened.events, opened.torn, opened.id)


def kept_until(resumed_at: int) -> int:
    """Return the last step whose rows stand where a run goes on from this one; none from 0, which is measured again."""
    return resumed_at if resumed_at > 0 else -1


def overtaken_at(later: Sequence[Mapping[str, Any]], quantity: str = "") -> int | None:
    """Return the step behind which later segments, of these facts, went over a quantity's rows again; None: nowhere.

    `resumed_at` counts the first optimizer's steps; quantities of another one end with its name and have their own.
    """
    found = []
    for facts in later:
        if "resumed_at" in facts:
            own = (at for suffix, at in facts.get("resumed_by", {}).items() if suffix and quantity.endswith(suffix))
            found.append(kept_until(int(next(own, facts["resumed_at"]))))
    return min(found, default=None)


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
        at = overtaken_at([later.facts for later in segments[i + 1 :]], quantity)
        part = slice(row, row + len(s.steps[quantity]))
        if at is not None:
            superseded[part] = steps[part] > at
        row = part.stop
    return Rows(names, steps, values, superseded)


def read_header(memory: memoryview | bytes, path: Path) -> tuple[dict[str, tuple[str, ...]], dict[str, Any], str, int]:
    """Return a segment's columns, facts, id and where its first block begins, from its first bytes.

    Raises `Unfinished` where the header is longer than that, ArchiveError where it is none.
    """
    begin = bytes(memory[: HEAD.size])
    unfinished = Unfinished(f"{path} is a segment whose header was never finished: it holds no rows")
    if (MAGIC.startswith(begin[: len(MAGIC)]) and len(begin) < HEAD.size) or not any(begin):
        raise unfinished
    if begin.startswith(_OLD_MAGIC):
        start, end = _OLD_HEAD.size, _OLD_HEAD.size + _OLD_HEAD.unpack(begin[: _OLD_HEAD.size])[1]
        if len(memory) < end:
            raise unfinished
    else:
        start, end = _header(memory)
        if not end and not begin.startswith(MAGIC):
            raise ArchiveError(
                f"{path} is no segment of a run: it doesn't begin as one; move it out of the folder to read the others"
            )
        # A header that was never finished holds no rows, whichever of its copies is.
        whole = _behind(start, end) if end else 2 * (HEAD.size + HEAD.unpack(begin)[1])
        if len(memory) < whole:
            raise unfinished
    try:
        if not end:
            raise ValueError("neither of its copies fits its checksum")
        header = json.loads(bytes(memory[start:end]))
        columns = {str(q): tuple(str(n) for n in names) for q, names in header["columns"].items()}
        return columns, dict(header["facts"]), str(header.get("id", "")), _behind(start, end)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArchiveError(
            f"{path} is a segment with a damaged header ({error}); restore it from a copy, or move it out of the "
            "folder to read the others"
        ) from error


def written_header(header: Mapping[str, Any]) -> bytes:
    """Return a segment's header as it is written: twice, so that damage to one loses nothing."""
    content = json.dumps(header, default=str).encode()
    return 2 * (HEAD.pack(MAGIC, len(content), zlib.crc32(content)) + content)


def _header(memory: memoryview | bytes) -> tuple[int, int]:
    """Return where a header that fits its checksum begins and ends; (0, 0) where neither does."""
    for found in re.finditer(re.escape(MAGIC), memory[:_HEADERS]):
        if found.start() + HEAD.size <= len(memory):
            _, size, checksum = HEAD.unpack_from(memory, found.start())
            start, end = found.start() + HEAD.size, found.start() + HEAD.size + size
            if end <= len(memory) and zlib.crc32(memory[start:end]) == checksum:
                return start, end
    return 0, 0


def _behind(start: int, end: int) -> int:
    """Return where the blocks begin: behind the second header, if there is one behind this one."""
    # From the first header's own place and size: the second may be damaged. (Of an earlier version there is one.)
    return 2 * end if start == HEAD.size else end


class Block(NamedTuple):
    """A block's payload from `start` to `stop`; no quantity: events. Or a damaged place, and what its head says."""

    quantity: int | None
    rows: int
    start: int
    stop: int
    damaged: bool = False


def sealed_head(magic: bytes, quantity: int, rows: int, payload: memoryview | bytes) -> bytes:
    """Return a block's head, whose checksum covers itself and the payload."""
    head = ROWS.pack(magic, quantity, rows, len(payload), 0)[:_COVERED]
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head)))


def whole_blocks(memory: memoryview, place: int, widths: Sequence[int]) -> Iterator[Block]:
    """Yield every block that fits its checksum, and each damaged place that such a block stands behind."""
    while place + ROWS.size <= len(memory):
        found, fits = _block(memory, place, widths)
        if found is None or not fits:
            behind = next(
                (
                    place + at.start()
                    for at in _BEGINS.finditer(memory[place:])
                    if at.start() and _block(memory, place + at.start(), widths)[1]
                ),
                None,
            )
            if behind is None:
                return  # torn by a kill, or being written
            told = found if found is not None and found.stop == behind else Block(None, 0, place, behind)
            found = told._replace(start=place, damaged=True)
        yield found
        place = found.stop


def _block(memory: memoryview, place: int, widths: Sequence[int]) -> tuple[Block | None, bool]:
    """Return the block whose head is there, None if there is none, and whether it fits its checksum."""
    if place + ROWS.size > len(memory):
        return None, False
    magic, quantity, rows, size, checksum = ROWS.unpack_from(memory, place)
    start, stop = place + ROWS.size, place + ROWS.size + size
    of_rows = magic in (BLOCK, _OLD_BLOCK) and quantity < len(widths) and size == 8 * rows * (1 + widths[quantity])
    if not (of_rows or magic in (EVENTS, _OLD_EVENTS)) or stop > len(memory):
        return None, False
    begin = zlib.crc32(memory[place : place + _COVERED]) if magic in (BLOCK, EVENTS) else 0
    return Block(quantity if of_rows else None, rows, start, stop), zlib.crc32(memory[start:stop], begin) == checksum


def last_step(memory: memoryview, block: Block | None) -> int:
    """Return the step of a block's last row; 0 of none."""
    return struct.unpack_from("<q", memory, block.start + 8 * (block.rows - 1))[0] if block and block.rows else 0


def lost_event(block: Block, names: Sequence[str], step: int, path: Path) -> Mapping[str, Any]:
    """Return the event that says what a damaged place held; `step` is the last one before it."""
    if block.quantity is not None:
        what = f"{block.rows:,} rows of {names[block.quantity]} are lost"
    elif block.rows:
        what = f"{block.rows:,} events are lost"
    else:
        what = f"rows in {block.stop - block.start:,} bytes are lost"
    return {"step": step, "kind": "lost_rows", "message": f"{what}: their block in {path.name} is damaged"}


def rows_of(data: np.ndarray, start: int, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps (rows,) and values (rows, width) of a payload that starts there, as views of `data`."""
    middle = start + 8 * rows
    stop = middle + 8 * rows * width
    return data[start:middle].view("<i8"), data[middle:stop].view("<f8").reshape(rows, width)


def read_events(payload: bytes, path: Path) -> list[Mapping[str, Any]]:
    """Return the events of a payload; raises ArchiveError where they are damaged."""
    try:
        return [{**e, "step": int(e["step"]), "kind": str(e["kind"])} for e in json.loads(payload)]
    except (ValueError, TypeError, KeyError) as error:
        raise ArchiveError(f"{path} has damaged events ({error}); restore it from a copy, or move it away") from error


def _joined(parts: list[np.ndarray], empty: tuple[int, ...], kind: str) -> np.ndarray:
    # A copy of a single one, too: its numbers lie where the file had them, which need not be aligned.
    return np.concatenate(parts) if len(parts) > 1 else parts[0].copy() if parts else np.empty(empty, dtype=kind)


def in_words(error: OSError, path: Path, what: str = "write") -> str:
    """Return one line on what the system refused, and what to do."""
    hint = {
        errno.ENOSPC: "the disk is full: make room",
        errno.EDQUOT: "the quota is used up: make room",
        errno.EFBIG: "the file may not grow further: raise the limit",
        errno.EROFS: "the file system is read-only: choose another folder",
        errno.EACCES: "no permission: choose another folder",
        errno.ENOENT: "it is gone",
    }.get(error.errno or 0, error.strerror or type(error).__name__)
    return f"can't {what} {path}: {hint}"
