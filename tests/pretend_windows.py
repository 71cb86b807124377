"""Windows where there is none: what its files, signals and names refuse, for what runs inside `windows`.

- A file that is open, or mapped into memory, can't be renamed, replaced or removed (Python opens files so).
- A descriptor of `os.open` without O_BINARY writes \\r\\n for each \\n.
- A folder can't be opened. Names can't hold <>:"|?* nor end in a dot or a space.
- There is no fcntl, no resource, no /proc, no SIGKILL, SIGHUP or SIGUSR1; SIGTERM kills, and Ctrl-Break asks.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

O_BINARY = 1 << 29
_MISSING = ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "alarm", "pthread_kill", "siginterrupt")
_POSIX_ONLY = ("posix_fallocate", "fork", "statvfs", "sched_getaffinity", "killpg", "mkfifo")
_KILL = 9


@contextlib.contextmanager
def windows() -> Iterator[None]:
    """Have this process meet what Windows refuses; processes that it starts are those of this machine."""
    import torch  # noqa: F401  # what looks for fcntl itself is imported before that has gone

    with pytest.MonkeyPatch.context() as patch:
        for module in ("landscape.archive.atomic", "landscape.archive.segments", "landscape.probes.sweep.locking"):
            __import__(module)
            patch.setattr(sys.modules[module], "fcntl", None)
        for module in ("fcntl", "resource"):
            patch.setitem(sys.modules, module, None)
        for name in _MISSING:
            patch.delattr(signal, name, raising=False)
        for name in _POSIX_ONLY:
            patch.delattr(os, name, raising=False)
        _files(patch)
        _processes(patch)
        yield


def _files(patch: pytest.MonkeyPatch) -> None:
    text: set[int] = set()
    really_open, really_write, really_close = os.open, os.write, os.close

    def opened(path: Any, flags: int, *args: Any, **more: Any) -> int:
        _fits(path)
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        fd = really_open(path, flags & ~O_BINARY, *args, **more)
        if not flags & O_BINARY:
            text.add(fd)
        return fd

    def write(fd: int, data: Any) -> int:
        if fd not in text:
            return really_write(fd, data)
        really_write(fd, bytes(data).replace(b"\n", b"\r\n"))
        return len(data)

    def close(fd: int) -> None:
        text.discard(fd)
        really_close(fd)

    patch.setattr(os, "O_BINARY", O_BINARY, raising=False)
    patch.setattr("landscape.archive.atomic.BINARY", O_BINARY, raising=False)
    patch.setattr(os, "open", opened)
    patch.setattr(os, "write", write)
    patch.setattr(os, "close", close)
    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        patch.setattr(os, name, _unless_open(getattr(os, name)))
    patch.setattr(os, "mkdir", _named(os.mkdir))
    patch.setattr(shutil, "_use_fd_functions", False)  # rmtree by names, as it is there
    really_open_file = builtins.open

    def open_file(file: Any, *args: Any, **more: Any) -> Any:
        if isinstance(file, str | os.PathLike):
            _fits(file)
            if os.fspath(file).startswith("/proc/"):
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", file)
        return really_open_file(file, *args, **more)

    patch.setattr(builtins, "open", open_file)


def _unless_open(really: Callable[..., None]) -> Callable[..., None]:
    def refusing(*paths: Any, **more: Any) -> None:
        for path in paths:
            if _held(path):
                raise PermissionError(errno.EACCES, "The process cannot access the file", os.fspath(path))
        _fits(paths[-1])
        really(*paths, **more)

    return refusing


def _named(really: Callable[..., None]) -> Callable[..., None]:
    def refusing(path: Any, *args: Any, **more: Any) -> None:
        _fits(path)
        really(path, *args, **more)

    return refusing


def _fits(path: Any) -> None:
    if not isinstance(path, str | os.PathLike):
        return
    for part in Path(path).parts[1:]:
        if set(part) & set('<>:"|?*') or part[-1] in ". ":
            raise OSError(errno.EINVAL, "The filename, directory name, or volume label syntax is incorrect", str(path))


def _held(path: Any) -> bool:
    """Whether this process has the file open, or mapped."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(found.st_mode):
        return False
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/self/fd/{fd}"), found):
                return True
    mapped = os.fsencode(os.path.realpath(path))
    return any(line.endswith(b" " + mapped) for line in Path("/proc/self/maps").read_bytes().splitlines())


def _processes(patch: pytest.MonkeyPatch) -> None:
    really = subprocess.Popen.send_signal
    break_event = 1 << 16

    def send_signal(self: Any, number: int) -> None:
        really(self, {signal.SIGTERM: _KILL, break_event: signal.SIGTERM}[number])

    patch.setattr(signal, "CTRL_BREAK_EVENT", break_event, raising=False)
    patch.setattr(subprocess.Popen, "send_signal", send_signal)
    patch.setattr(subprocess.Popen, "terminate", lambda self: really(self, _KILL))
    patch.setattr(subprocess.Popen, "kill", lambda self: really(self, _KILL))
