"""A report that follows its runs: written again whenever an archive, or the record beside it, has changed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import LandscapeError

#: What a recorder's folder beside the archive ends in (`landscape.archive.segments` writes it).
_LIVE = ".live"


def rewrites(
    paths: Sequence[str | os.PathLike[str]],
    write: Callable[[], object],
    *,
    every: float = 30.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[LandscapeError | None]:
    """Write whenever something changed, looking every so many seconds, until no run is going on any more.

    Yields after each writing: None, or why it failed (an archive that is being renamed is read at the next look). The
    end is written too. The page itself asks for nothing: it is opened again by hand.
    """
    files = [Path(p) for p in paths]
    seen = _state(files)
    while _going_on(files):
        sleep(every)
        now = _state(files)
        if now == seen:
            continue
        try:
            write()
            seen = now
            yield None
        except LandscapeError as error:
            yield error
    if _state(files) != seen:
        write()
        yield None


def _state(files: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a file does: its size and the time of its last writing."""
    found = []
    for file in files:
        for part in (file, *sorted(Path(f"{file}{_LIVE}").rglob("*"))):
            try:
                stat = part.stat()
            except OSError:
                continue
            found.append((str(part), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _going_on(files: Sequence[Path]) -> bool:
    """Return whether any of the runs is still being written."""
    from ..archive.reader import open_archive

    for file in files:
        try:
            archive = open_archive(file)
        except LandscapeError:
            continue
        if archive.alive or (archive.status == "running" and not Path(f"{file}{_LIVE}").exists()):
            return True
    return False
