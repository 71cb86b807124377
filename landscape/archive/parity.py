"""What mends an archive: a checksum of each page of 4 KB and parity over pages far apart, behind the HDF5 file's end.

    <HDF5 file> <head> <checksums> <parity pages> <checksums> <head>

Page i belongs to stripe i modulo the number of stripes, whose parity is the exclusive or of its pages: as long as no
stripe lost more than one, each page that does not fit its checksum is computed from the others of its stripe, and
proven by that very checksum. A flipped byte, a dead sector and a run of lost pages as long as there are stripes
are mended bit for bit. Head and checksums lie there twice, and a page is good that fits either.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

PAGE = 4096
#: A page is a matrix of 8 x 64 words.
_ROWS, _COLUMNS = 8, 64
#: Stripes: at least so many, so that damage to neighbours is mended; one for so many pages, which is 1% of the file;
#: at most so many, which is 4 MB of memory while a file is sealed (chosen by us).
_LEAST, _PAGES, _MOST = 4, 128, 1024
_MAGIC = b"landscape-mend\n\x01"
#: Magic, bytes of the HDF5 file, stripes, CRC of what is before.
_HEAD = struct.Struct("<16sQII")
#: Read at once (chosen by us).
_PIECE = 1 << 22

Read = Callable[[int, int], bytes]


def recovery(size: int, read: Read) -> Iterator[bytes]:
    """Yield what mends an HDF5 file of `size` bytes, to be written behind it; `read(start, bytes)` gives the file.

    Costs a pass over the file, and 1% of its size (16 KB at least).
    """
    stripes = _stripes(size)
    parity = np.zeros((stripes, PAGE // 8), "<u8")
    found = []
    for first, pages in _pieces(size, read):
        found.append(checksums(pages))
        for start in range(0, len(pages), stripes):
            part = pages[start : start + stripes]
            into = (first + start + np.arange(len(part))) % stripes
            parity[into] ^= part
    table = np.concatenate([*found, checksums(parity)]).astype("<u4").tobytes()
    head = _head(size, stripes)
    yield from (head, table, parity.tobytes(), table, head)


def checksums(pages: np.ndarray) -> np.ndarray:
    """Return the CRC of each page (n, 512): of the sums of its words by rows and by columns, as in `seal`."""
    words = pages.reshape(-1, _ROWS, _COLUMNS)
    sums = np.concatenate([words.sum(axis=2), words.sum(axis=1)], axis=1)
    return np.array([zlib.crc32(one.data) for one in sums], np.uint32)


@dataclass(frozen=True)
class Mended:
    """Where a file's HDF5 part ends, pages that were mended, {number: bytes}, and numbers of those that stay lost."""

    size: int
    pages: dict[int, bytes]
    lost: tuple[int, ...]

    def apply(self, file: BinaryIO) -> None:
        """Write the mended pages into a copy of the file."""
        for number, page in self.pages.items():
            file.seek(number * PAGE)
            file.write(page[: self.size - number * PAGE])


def mend(file: BinaryIO) -> Mended | None:
    """Return what can be mended of a file and what can't; None where neither head is left, or there never was one.

    Costs a pass over the file.
    """
    tables = _tables(file)
    if tables is None:
        return None
    size, stripes, places, own = tables
    length = _length(file)

    def read(start: int, count: int) -> bytes:
        file.seek(start)
        return file.read(count).ljust(count, b"\0")

    pages = -(-size // PAGE)
    bad: list[int] = []
    for first, piece in _pieces(size, read):
        found = checksums(piece)
        fits = np.zeros(len(found), bool)
        for table in places:
            fits |= table[first : first + len(found)] == found
        # What lies behind the end of a file that was cut is lost, and no page of zeros.
        whole = (first + 1 + np.arange(len(found))) * PAGE <= length
        whole |= length >= size
        bad += (first + np.flatnonzero(~(fits & whole))).tolist()
    by_stripe: dict[int, list[int]] = {}
    for number in bad:
        by_stripe.setdefault(number % stripes, []).append(number)
    mended, lost = {}, []
    for stripe, numbers in by_stripe.items():
        page = _from_others(size, stripe, numbers[0], stripes, own, read) if len(numbers) == 1 else None
        if page is not None and any(checksums(page)[0] == table[numbers[0]] for table in places):
            mended[numbers[0]] = page.tobytes()
        else:
            lost += numbers
    assert all(n < pages for n in lost)
    return Mended(size, mended, tuple(sorted(lost)))


def _from_others(size: int, stripe: int, number: int, stripes: int, own: int, read: Read) -> np.ndarray:
    page = np.frombuffer(read(own + stripe * PAGE, PAGE), "<u8").copy()
    for other in range(stripe, -(-size // PAGE), stripes):
        if other != number:
            page ^= np.frombuffer(read(other * PAGE, min(PAGE, size - other * PAGE)).ljust(PAGE, b"\0"), "<u8")
    return page.reshape(1, -1)


def _tables(file: BinaryIO) -> tuple[int, int, list[np.ndarray], int] | None:
    """Return the file's size, stripes, the tables that are left, and where the parity pages begin; None without any."""
    length = _length(file)
    if not length:
        return None
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        place = held.rfind(_MAGIC)
        while place >= 0:
            found = _at(held[place : place + _HEAD.size])
            if found is not None:
                size, stripes = found
                entries = -(-size // PAGE) + stripes
                first = size + _HEAD.size
                # Either head names the places of both tables.
                starts = (first, first + 4 * entries + stripes * PAGE)
                tables = [np.frombuffer(held[s : s + 4 * entries], "<u4") for s in starts if s + 4 * entries <= length]
                if tables and place in (size, starts[1] + 4 * entries):
                    return size, stripes, tables, first + 4 * entries
            place = held.rfind(_MAGIC, 0, place)
    return None


def _at(head: bytes) -> tuple[int, int] | None:
    if len(head) < _HEAD.size:
        return None
    _, size, stripes, crc = _HEAD.unpack(head)
    return (size, stripes) if zlib.crc32(head[:-4]) == crc and stripes == _stripes(size) else None


def _head(size: int, stripes: int) -> bytes:
    content = struct.pack("<16sQI", _MAGIC, size, stripes)
    return content + struct.pack("<I", zlib.crc32(content))


def _stripes(size: int) -> int:
    pages = max(1, -(-size // PAGE))
    return min(pages, _MOST, max(_LEAST, -(-pages // _PAGES)))


def _pieces(size: int, read: Read) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number of the first page, pages (n, 512) of words), the last one filled up with zeros."""
    for start in range(0, size, _PIECE):
        data = read(start, min(_PIECE, size - start))
        data += bytes(-len(data) % PAGE)
        yield start // PAGE, np.frombuffer(data, "<u8").reshape(-1, PAGE // 8)


def _length(file: BinaryIO) -> int:
    return file.seek(0, 2)
