"""Whether a PyTorch file's entries fit the checksums that its zip holds: torch.load doesn't look at them."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
import zlib
from pathlib import Path

from ..errors import CheckpointError

#: Read at once (chosen by us).
_PIECE = 1 << 20
#: Files that are remembered as sound, as they were then (chosen by us).
_FILES = 4096
_sound: dict[tuple[str, int, int, int], None] = {}


def check_entries(path: Path) -> None:
    """Raise CheckpointError where an entry doesn't fit its CRC-32; nothing for a file that is no zip.

    Costs a pass over the file, at about 3 GB/s from memory, once for each state of it. A file in which no entry fits
    was written without checksums (`torch.serialization.set_crc32_options(False)`), and proves nothing.
    """
    found = os.stat(path)
    state = (os.path.abspath(path), found.st_ino, found.st_mtime_ns, found.st_size)
    if state in _sound:
        return
    _check(path, str(path))
    while len(_sound) >= _FILES:
        _sound.pop(next(iter(_sound)))
    _sound[state] = None


def check_bytes(data: bytes, name: str) -> None:
    """Do the same for a torch file in memory, such as an entry of a distributed checkpoint."""
    _check(io.BytesIO(data), name)


def _check(source: Path | io.BytesIO, name: str) -> None:
    fits, bad = 0, []
    # Of a damaged directory, zipfile raises nearly anything: whoever reads the file says what is wrong.
    with contextlib.suppress(Exception), zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            try:
                with archive.open(info) as entry:
                    while entry.read(_PIECE):
                        pass
                fits += info.file_size > 0
            except (zipfile.BadZipFile, zlib.error, EOFError):
                bad.append(info.filename)
    if bad and fits:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise CheckpointError(
            f"{name} is damaged: {bad[0]}{more} in it does not fit its checksum, so that weights may be wrong; copy it "
            "again, or take another checkpoint"
        )
