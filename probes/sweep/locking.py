"""One process at a time in a cell's folder: also after a kill, whose orphans may live for a moment."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from landscape.errors import TrainingError

from .outcome import LOCK

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; two processes are then not told apart
    fcntl = None

#: Seconds to wait for somebody else to leave (chosen by us: an orphaned worker notices within two).
PATIENCE = 10.0


@contextlib.contextmanager
def locked(folder: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the folder inside. Raises TrainingError where another process doesn't leave it in time.

    The system gives a lock back however its holder ends. A file system without locks is used without.
    """
    if fcntl is None:
        yield
        return
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        until = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK:
                    break
                if time.monotonic() >= until:
                    raise TrainingError(
                        f"{folder} is being worked on by another process; wait for it, or end it"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(fd)
