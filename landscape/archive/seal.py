"""Checksums behind an archive's last byte, looked at before the HDF5 library sees the file: damage is said, not read.

    <HDF5 file> <what mends it: `parity`> <a CRC of each block, 4 bytes> <1 byte for each block> <footer>

Of a damaged file HDF5 gives wrong numbers without a word, or never ends. It ignores what lies behind its own end, and
cuts it off when it changes a file: an archive that another program changed has no seal, and is read as one of an
earlier version. Blocks that hold nothing but large chunked data, whose byte is 1, are checked when those are read, the
others at once.

A block's CRC is that of the sums of its words by rows and by columns: it finds whatever a CRC finds but rectangles of
changes that cancel, at 3 GB a second where zlib's CRC takes 0.7 (HDF5's own Fletcher32 doubles the time of reading).
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import DamagedError
from .parity import recovery
from .schema import salvaged_path

_MAGIC = b"landscape-seal\n1"
#: Of the HDF5 file, of the table, and the table's CRC.
_FOOTER = struct.Struct("<QQI16s")
#: A block is a matrix of 64 x 128 words of 8 bytes: 64 KB, of which 40 checksums take 160 bytes a megabyte (ours).
_ROWS, _COLUMNS = 64, 128
BLOCK = 8 * _ROWS * _COLUMNS
#: Read at once, and from where on several threads share the work (chosen by us).
_PIECE, _SHARED = 64 * BLOCK, 1024 * BLOCK
#: Chunked data from this size on are checked when they are read: below, a file is checked as a whole (chosen by us).
LARGE = 128 * BLOCK
#: Files whose seals are remembered.
_FILES = 256


def sealed(image: bytes) -> bytes:
    """Return an HDF5 file, given as its bytes, with its seal."""
    image = b"".join((image, *recovery(len(image), lambda start, size: image[start : start + size])))
    found = _checksums(np.frombuffer(image, np.uint8))
    return b"".join((image, _seal(len(image), found, np.zeros(len(found), np.uint8))))


def seal(path: Path) -> None:
    """Append what mends it and the seal to an HDF5 file that has none; it is read twice."""
    with h5py.File(path, "r", locking=False) as file:
        large = sorted(_large(file))
    with open(path, "r+b") as whole:

        def read(start: int, count: int) -> bytes:
            whole.seek(start)
            return whole.read(count)

        for part in recovery(path.stat().st_size, read):
            whole.seek(0, os.SEEK_END)
            whole.write(part)
    size = path.stat().st_size
    deferred = np.zeros(-(-size // BLOCK), np.uint8)
    for start, stop in _joined(large):
        deferred[-(-start // BLOCK) : stop // BLOCK] = 1
    found = _of_file(path, size, np.arange(len(deferred)))
    with open(path, "ab") as file:
        file.write(_seal(size, found, deferred))
        file.flush()
        os.fsync(file.fileno())


def check(path: Path, *, everything: bool = False) -> bool:
    """Compare a file with its seal, and return whether it has one; `everything` reads large data, too, as for a copy.

    Costs a pass over the file but for its large data, once for each state of the file. Raises DamagedError where it is
    damaged, OSError where it can't be read.
    """
    known = _known(path)
    if known is not None:
        known.check(np.ones(len(known.table), bool) if everything else known.deferred == 0)
    return known is not None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Yield the HDF5 file at `path`, read-only and without a lock, after comparing it with its seal."""
    check(path)
    with h5py.File(path, "r", locking=False) as file:
        yield file


def check_data(dataset: h5py.Dataset, rows: slice) -> None:
    """Compare the bytes of rows that are about to be read with the file's seal. Raises DamagedError as `check`."""
    path = Path(dataset.file.filename)
    if dataset.chunks is None or dataset.id.get_storage_size() < LARGE or not path.is_file():
        return
    known = _known(path)
    if known is None:
        return
    wanted = np.zeros(len(known.table), bool)
    size = dataset.chunks[0]
    start, stop, _ = rows.indices(len(dataset))
    for row in range(start - start % size, stop, size):
        found = dataset.id.get_chunk_info_by_coord((row, *(0 for _ in dataset.shape[1:])))
        if found.byte_offset is not None:
            wanted[found.byte_offset // BLOCK : (found.byte_offset + found.size - 1) // BLOCK + 1] = True
    known.check(wanted)


def fits(path: Path) -> tuple[int, np.ndarray] | None:
    """Return how many bytes a seal covers and which of its blocks fit it, though both may be damaged; None without."""
    end = path.stat().st_size
    with open(path, "rb") as file:
        own = own_end(file.read(48))
        file.seek(max(0, end - _FOOTER.size))
        footer = file.read()
        sizes = [_FOOTER.unpack(footer)[0]] if len(footer) == _FOOTER.size else []
        for size in (*sizes, *([own] if own is not None else [])):
            blocks = -(-size // BLOCK)
            if size and size + 5 * blocks + _FOOTER.size == end:
                file.seek(size)
                table = np.frombuffer(file.read(4 * blocks), "<u4")
                return size, _of_file(path, size, np.arange(blocks)) == table
    return None


@dataclass
class _Known:
    """A file's seal; `fits` says of each block whether it was found as the table has it."""

    path: Path
    identity: tuple[int, int, int]
    size: int
    table: np.ndarray
    deferred: np.ndarray
    fits: np.ndarray

    def check(self, wanted: np.ndarray) -> None:
        left = np.flatnonzero(wanted & ~self.fits)
        if not len(left):
            return
        found = _of_file(self.path, self.size, left)
        self.fits[left] = found == self.table[left]
        bad = int((~self.fits[left]).sum())
        if bad:
            raise damaged(self.path, f"{bad} of {len(self.table)} blocks of 64 KB do not fit their checksums")


def damaged(path: Path, why: str) -> DamagedError:
    """Return the error that says so, and what helps."""
    return DamagedError(f"{path} is damaged: {why}, so its numbers cannot be trusted; {cure(path)}")


def cure(path: Path) -> str:
    """Return what helps a damaged archive, in words."""
    return (
        f"landscape repair {path} writes all of it that can be proven intact to {salvaged_path(path).name}, says what "
        f"is lost, and leaves this file as it is"
    )


_seals: dict[str, tuple[tuple[int, int, int], _Known | None]] = {}


def _known(path: Path) -> _Known | None:
    """Return the seal of a file as it is now; None where it has none. DamagedError where a seal is damaged."""
    name = os.path.abspath(path)
    found = os.stat(path)
    identity = (found.st_ino, found.st_mtime_ns, found.st_size)
    before = _seals.get(name)
    if before is None or before[0] != identity:
        while len(_seals) >= _FILES:
            _seals.pop(next(iter(_seals)))
        before = _seals[name] = identity, _read(path, identity)
    return before[1]


def _read(path: Path, identity: tuple[int, int, int]) -> _Known | None:
    with open(path, "rb") as file:
        head = file.read(48)
        end = os.fstat(file.fileno()).st_size
        file.seek(max(0, end - _FOOTER.size))
        footer = file.read()
        if len(footer) == _FOOTER.size and footer.endswith(_MAGIC):
            size, length, crc, _ = _FOOTER.unpack(footer)
            if size + length + _FOOTER.size == end and length % 5 == 0 and length // 5 == -(-size // BLOCK):
                file.seek(size)
                table = file.read(length)
                if zlib.crc32(table, size) == crc:
                    blocks = length // 5
                    deferred = np.frombuffer(table, np.uint8, blocks, 4 * blocks)
                    crcs = np.frombuffer(table, "<u4", blocks)
                    return _Known(path, identity, size, crcs, deferred, np.zeros(blocks, bool))
            raise damaged(path, "the checksums at its end are")
    own = own_end(head)
    if own is not None and end > own:
        raise damaged(path, "the checksums at its end are")
    if own is not None and end < own:
        raise damaged(path, f"it is cut short, {end:,} of {own:,} bytes are there")
    return None


def own_end(head: bytes) -> int | None:
    """Return where an HDF5 file ends by its own first bytes; None where they say nothing of the kind."""
    # Versions 0 and 1 have their "end of file address" behind two more addresses than versions 2 and 3.
    if len(head) < 48 or not head.startswith(b"\x89HDF\r\n\x1a\n"):
        return None
    return struct.unpack_from("<Q", head, {0: 40, 1: 44, 2: 28, 3: 28}.get(head[8], 28))[0] if head[8] < 4 else None


def _seal(size: int, table: np.ndarray, deferred: np.ndarray) -> bytes:
    content = table.astype("<u4").tobytes() + deferred.tobytes()
    return content + _FOOTER.pack(size, len(content), zlib.crc32(content, size), _MAGIC)


def _checksums(data: np.ndarray) -> np.ndarray:
    """Return the CRC of each block of these bytes, the last one filled up with zeros."""
    if len(data) % BLOCK:
        data = np.concatenate([data, np.zeros(-len(data) % BLOCK, np.uint8)])
    words = data.view("<u8").reshape(-1, _ROWS, _COLUMNS)
    sums = np.concatenate([words.sum(axis=2), words.sum(axis=1)], axis=1)
    return np.array([zlib.crc32(one.data) for one in sums], np.uint32)


def _of_file(path: Path, size: int, blocks: np.ndarray) -> np.ndarray:
    """Return the CRCs of some blocks of a file, in order, in a few megabytes of memory."""

    def of(run: tuple[int, int]) -> np.ndarray:
        start, stop = run[0] * BLOCK, min(run[1] * BLOCK, size)
        return _checksums(np.fromfile(path, np.uint8, stop - start, offset=start))

    runs = list(_runs(blocks))
    if len(blocks) * BLOCK < _SHARED:
        found: list[Any] = list(map(of, runs))
    else:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            found = list(threads.map(of, runs))
    return np.concatenate(found) if found else np.empty(0, np.uint32)


def _runs(blocks: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (first, beyond the last) of neighbours, a piece at most."""
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) != 1) + 1) if len(blocks) else ():
        for start in range(int(run[0]), int(run[-1]) + 1, _PIECE // BLOCK):
            yield start, min(start + _PIECE // BLOCK, int(run[-1]) + 1)


def _large(file: h5py.File) -> Iterator[tuple[int, int]]:
    """Yield where the chunks of large data begin and end in the file."""
    found: list[h5py.Dataset] = []
    file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) and item.chunks else None)
    for dataset in found:
        if dataset.id.get_storage_size() >= LARGE:
            chunks: list[tuple[int, int]] = []
            dataset.id.chunk_iter(lambda c, into=chunks: into.append((c.byte_offset, c.byte_offset + c.size)))
            yield from chunks


def _joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield ranges, in order, with neighbours as one."""
    last: tuple[int, int] | None = None
    for start, stop in ranges:
        if last is not None and start == last[1]:
            last = last[0], stop
            continue
        if last is not None:
            yield last
        last = start, stop
    if last is not None:
        yield last
