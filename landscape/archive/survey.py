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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

#: Seconds that reading one piece may take, and deaths of the reading process after which it is given up (chosen by us).
LIMIT, _DEATHS = 5.0, 10

#: What reads. -P: what lies in the current folder doesn't hide what is installed.
COMMAND = (sys.executable, "-P", "-m", f"{__package__}.piecewise")
#: A task of `piecewise`: ("group", path), ("attributes", path), ("dataset", path), ("rows", path, start, stop).
Key = tuple[Any, ...]


def readable(path: Path) -> bool:
    """Whether HDF5 can read every piece of a file, in a process of its own."""
    with Reader(path) as reader:
        return not walk(reader).unread


class Reader:
    """Asks the process that reads, and starts another one when it has crashed or hung."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths = 0
        self.why = ""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()

    def ask(self, task: Sequence[Any]) -> tuple[dict[str, Any], bytes] | None:
        """Return the answer and the bytes behind it; None where reading failed, crashed or took too long."""
        if self._deaths >= _DEATHS:
            return None
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(LIMIT, process.kill)
        timer.daemon = True
        timer.start()
        try:
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
        finally:
            timer.cancel()
        if "error" in found:
            self.why = found["error"]
            return None
        return found, content

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [*COMMAND, str(self._path), str(self._path.stat().st_size), str(math.ceil(2 * LIMIT))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError):
                process.communicate()


@dataclass
class Walked:
    """Answers by task (without the bytes), the digests of answers with them, and what could not be read."""

    answers: dict[Key, dict[str, Any]]
    digests: dict[Key, bytes]
    unread: set[Key]
    why: str = ""


def walk(reader: Reader) -> Walked:
    """Ask for everything there is, beginning with the root."""
    walked = Walked({}, {}, set())
    waiting: list[Key] = [("group", "/")]
    while waiting:
        key = waiting.pop()
        answered = reader.ask(key)
        if answered is None:
            walked.unread.add(key)
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
    """Walk through a copy, and keep what comes out the same whatever stands in the damaged ranges of bytes."""
    with open(copy, "r+b") as file:
        original = [(start, _at(file, start, stop)) for start, stop in ranges]
    with Reader(copy) as reader:
        walked = walk(reader)
    rng = np.random.default_rng(0)
    for other in ("inverted", "random") if ranges else ():
        with open(copy, "r+b") as file:
            for start, data in original:
                file.seek(start)
                file.write(bytes(b ^ 255 for b in data) if other == "inverted" else rng.bytes(len(data)))
        with Reader(copy) as reader:
            for key, before in list(walked.digests.items()):
                answered = reader.ask(key)
                if answered is None or digest(*answered) != before:
                    walked.unread.add(key)
                    del walked.digests[key], walked.answers[key]
                    walked.why = walked.why or "what it begins with is damaged"
    with open(copy, "r+b") as file:
        for start, data in original:
            file.seek(start)
            file.write(data)
    return walked


def _at(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start).ljust(stop - start, b"\0")


def digest(found: Mapping[str, Any], content: bytes) -> bytes:
    """Return a digest of an answer and its bytes."""
    return hashlib.blake2b(json.dumps(found, sort_keys=True).encode() + b"\n" + content, digest_size=16).digest()
