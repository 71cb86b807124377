"""Where an archive is damaged, by whatever checksums it has: `damage`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .parity import PAGE, Mended, mend
from .seal import BLOCK, fits, own_end

#: A file that says of itself that it is so many times as long as it is says nothing (chosen by us).
_LONGER = 100


@dataclass(frozen=True)
class Damage:
    """The HDF5 part of a file is `size` bytes long, of which those in `ranges` are not what was written, or not there.

    `mended` are pages that parity gives back, which are not among them. `proven`: the bytes outside of the ranges fit
    checksums; False where the file has none, or no longer.
    """

    size: int
    ranges: tuple[tuple[int, int], ...]
    mended: Mended | None
    proven: bool


def damage(path: Path) -> Damage:
    """Return where the file is damaged. Costs a pass over it; raises OSError where it can't be read."""
    with open(path, "rb") as file:
        mended = mend(file)
        file.seek(0)
        head = file.read(48)
    if mended is not None:
        return Damage(mended.size, _ranges(mended.lost, PAGE, mended.size), mended, True)
    found = fits(path)
    if found is not None:
        size, good = found
        return Damage(size, _ranges(np.flatnonzero(~good).tolist(), BLOCK, size), None, True)
    length, own = path.stat().st_size, own_end(head)
    if own is not None and length < own <= _LONGER * length:
        return Damage(own, ((length, own),), None, False)
    return Damage(length, (), None, False)


def _ranges(numbers: tuple[int, ...] | list[int], unit: int, size: int) -> tuple[tuple[int, int], ...]:
    """Return pages or blocks as ranges of bytes, neighbours as one."""
    joined: list[tuple[int, int]] = []
    for number in numbers:
        start, stop = number * unit, min((number + 1) * unit, size)
        if joined and joined[-1][1] == start:
            joined[-1] = joined[-1][0], stop
        else:
            joined.append((start, stop))
    return tuple(joined)
