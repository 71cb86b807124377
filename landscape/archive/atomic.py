"""`<archive>.partial`: what was measured so far, on disk as a whole file at every moment, one writer at a time.

HDF5 itself never writes to a disk that might be full: a failed write inside the library leaves its cache
unflushed, and the process dies of it at exit (seen with HDF5 2.0). It writes to memory, and the image goes to
disk here, beside its target and then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ..durable import sync_folder
from ..errors import ArchiveError

try:
    import fcntl
except ImportError:  # Windows has no advisory locks of this kind; two writers are then not told apart
    fcntl = None

#: Of os.open: without it Windows writes \r\n for each \n, and elsewhere there is no such thing.
BINARY = getattr(os, "O_BINARY", 0)


class Partial:
    """The locked file beside `target`. OSError where it cannot be made; ArchiveError where another writes it."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.partial")
        self.aside = target.with_name(f"{target.name}.partial.new")
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | BINARY, 0o666)
        # The file may have been renamed away between opening and locking: then a writer was at work as well.
        if not _lock(fd) or not self.path.exists() or os.fstat(fd).st_ino != self.path.stat().st_ino:
            os.close(fd)
            raise ArchiveError(f"{target} is being written by another process; wait for it, or choose another file")
        self._fd: int | None = _kept(fd)
        self._renamed: int | None = None

    @property
    def published(self) -> bool:
        """Whether `publish` has renamed, also when it was interrupted right after."""
        return self._renamed is not None and self.target.exists() and self.target.stat().st_ino == self._renamed

    def write(self, image: bytes) -> None:
        """Replace the content by `image`, or raise OSError and leave it as it was."""
        with self.replacing() as fd:
            _write_all(fd, image)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[int]:
        """Yield the descriptor of a new, locked file that takes the partial's place when the block succeeds."""
        fd: int | None = os.open(self.aside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | BINARY, 0o666)
        try:
            _lock(fd)
            yield fd
            os.fsync(fd)
            fd = _kept(fd)
            os.replace(self.aside, self.path)
        except BaseException:
            if fd is not None:
                os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(self.aside)
            raise
        self.release()
        self._fd = fd

    def publish(self, source: Path) -> None:
        """Rename `source` to the target, with the permissions of the file that it replaces, and sync the folder."""
        if self.target.exists():
            os.chmod(source, self.target.stat().st_mode & 0o777)
        self._renamed = source.stat().st_ino
        os.replace(source, self.target)
        sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove the partial file, and what a killed run may have left of the next one."""
        for path in (self.path, self.aside):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.release()

    def release(self) -> None:
        """Give up the lock."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def reserve(path: Path, size: int) -> None:
    """Append `size` zero bytes and sync, so that a full disk shows here as an OSError and not inside HDF5."""
    with open(path, "ab") as file:
        if not _allocate(file.fileno(), size):
            for start in range(0, size, 1 << 20):
                file.write(bytes(min(1 << 20, size - start)))
        file.flush()
        os.fsync(file.fileno())


def _allocate(fd: int, size: int) -> bool:
    """Let the file system set room aside without writing it; False where it can't, or gives less than a promise."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(fd, os.fstat(fd).st_size, max(size, 1))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return False
        raise
    return True


def _lock(fd: int) -> bool:
    """Return False where another writer holds the file. A file system without locks is used without."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno != errno.EWOULDBLOCK
    return True


def _kept(fd: int) -> int | None:
    """Keep a file open for its lock's sake; close it where there are no locks, since Windows renames no open file."""
    if fcntl is not None:
        return fd
    os.close(fd)
    return None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
