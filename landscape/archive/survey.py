"""Read what can be read of a damaged HDF5 file, in a process that may crash or hang; prove what depends on no damage.

The copy is read three times, with the damaged bytes as they are, inverted, and random: what comes out the same each
time depends on none of them, and is what the file held.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArchiveError

#: Seconds that reading one piece may take, and bytes of the file for which one more is given, as a slow disk or network
#: needs; seconds in which Python has to start; deaths of the reading process after which it is given up (chosen by us).
LIMIT, _SLOWEST, _START, _DEATHS = 5.0, 20_000_000, 60.0, 10

#: What reads. -P: what lies in the current folder doesn't hide what is installed.
COMMAND = (sys.executable, "-P", "-m", f"{__package__}.piecewise")
#: A task of `piecewise`: ("group", path), ("attributes", path), ("dataset", path), ("rows", path, start, stop).
Key = tuple[Any, ...]
#: Changed at once (chosen by us).
_PIECE = 1 << 22


def readable(path: Path) -> bool:
    """Whether HDF5 can read every piece of a file, in a process of its own; what other programs added is their own."""
    with Reader(path) as reader:
        walked = walk(reader)
        return walked.unread <= walked.foreign


class Reader:
    """Asks the process that reads, and starts another one when it has crashed or hung."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._limit = LIMIT + self._size / _SLOWEST
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        #: Of what was not answered last: the reason, and whether it is a kind that no archive has.
        self.why, self.foreign = "", False

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def ask(self, task: Sequence[Any]) -> tuple[dict[str, Any], bytes] | None:
        """Return the answer and the bytes behind it; None where reading failed, crashed or took too long."""
        self.foreign = False
        if self._deaths >= _DEATHS:
            return None
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with _killed_after(self._limit, process):
                process.stdin.write(json.dumps(task).encode() + b"\n")
                process.stdin.flush()
                found = json.loads(process.stdout.readline())
                content = process.stdout.read(found.get("bytes", 0))
            if len(content) < found.get("bytes", 0):
                raise EOFError
        except (OSError, ValueError, EOFError):
            self._deaths += 1
            self.why = "HDF5 crashed or hung at it"
            self._end()
            return None
        if "error" in found:
            self.why, self.foreign = found["error"], found["foreign"]
            return None
        return found, content

    def _start(self) -> subprocess.Popen[bytes]:
        process = self._process = subprocess.Popen(
            [*COMMAND, str(self._path), str(self._size), str(math.ceil(2 * self._limit))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdout is not None
        with _killed_after(_START, process):
            ready = process.stdout.readline()
        if not ready:  # not the file's fault: that nothing can be read of it would be wrong
            raise ArchiveError(
                f"Python could not start another process to read {self._path} in ({' '.join(COMMAND)}); try again, on "
                "another machine if need be"
            )
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()


@contextlib.contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[None]:
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@dataclass
class Walked:
    """Answers by task (without the bytes), the digests of answers with them, and what could not be read.

    `foreign` is what could be, and is of a kind that no archive has: it is among `unread`, too.
    """

    answers: dict[Key, dict[str, Any]]
    digests: dict[Key, bytes]
    unread: set[Key]
    foreign: set[Key]
    why: str = ""


def walk(reader: Reader) -> Walked:
    """Ask for everything there is, beginning with the root."""
    walked = Walked({}, {}, set(), set())
    waiting: list[Key] = [("group", "/")]
    while waiting:
        key = waiting.pop()
        answered = reader.ask(key)
        if answered is None:
            walked.unread.add(key)
            if reader.foreign:
                walked.foreign.add(key)
            walked.why = walked.why or reader.why
            continue
        found, content = answered
        walked.answers[key], walked.digests[key] = found, digest(found, content)
        if key[0] == "group":
            waiting.append(("attributes", key[1]))
            for name, kind in reversed(found["members"]):
                below = f"{key[1].rstrip('/')}/{name}"
                waiting.append((kind or "group", below))
        elif key[0] == "dataset" and found["stored"]:
            waiting += reversed(list(pieces(key[1], found)))
    return walked


def pieces(path: str, about: Mapping[str, Any]) -> Iterator[Key]:
    """Yield the tasks that read a dataset: chunk by chunk where it has any."""
    if not about["chunk"]:
        yield "rows", path, 0, -1
        return
    for start in range(0, about["shape"][0], about["chunk"]):
        yield "rows", path, start, min(start + about["chunk"], about["shape"][0])


def walk_variants(copy: Path, ranges: Sequence[tuple[int, int]]) -> Walked:
    """Walk through a copy, and keep what comes out the same whatever stands in the damaged ranges of bytes.

    Random bytes stand there afterwards, on which nothing that was kept depends.
    """
    with Reader(copy) as reader:
        walked = walk(reader)
    rng = np.random.default_rng(0)
    for change in (np.invert, lambda data: rng.integers(256, size=len(data), dtype=np.uint8)) if ranges else ():
        _change(copy, ranges, change)
        with Reader(copy) as reader:
            for key, before in list(walked.digests.items()):
                answered = reader.ask(key)
                if answered is None or digest(*answered) != before:
                    walked.unread.add(key)
                    del walked.digests[key], walked.answers[key]
                    walked.why = walked.why or "what it begins with is damaged"
    return walked


def _change(copy: Path, ranges: Sequence[tuple[int, int]], change: Callable[[np.ndarray], np.ndarray]) -> None:
    with open(copy, "r+b") as file:
        for first, end in ranges:
            for start in range(first, end, _PIECE):
                file.seek(start)
                data = np.frombuffer(file.read(min(_PIECE, end - start)), np.uint8)
                file.seek(start)
                file.write(change(data).tobytes())


def digest(found: Mapping[str, Any], content: bytes) -> bytes:
    """Return a digest of an answer and its bytes."""
    return hashlib.blake2b(json.dumps(found, sort_keys=True).encode() + b"\n" + content, digest_size=16).digest()
