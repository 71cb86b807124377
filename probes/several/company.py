"""One checkpoint measured by several processes: a worker leads, others go with it, each with its share of the draw.

All of them make the same measurements at the same time (`landscape.sharing`), on a GPU each where there are several.
What the leader finds is told and archived; what the others find is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from landscape.errors import ProcessError
from landscape.sharing import everything_shared
from landscape.side_by_side import share_memory, sharers

from ..workers.errors import raised

#: How long an exchange may be waited for (chosen by us): one that is gone is noticed at once, and one that is at
#: something else says so, so that nobody waits for nothing.
PATIENCE = timedelta(hours=24)
#: Seconds that those who went along have to end (chosen by us); they hold nothing that would be lost.
GRACE = 5.0


@contextlib.contextmanager
def led(module: str, setup: Mapping[str, Any], job: Mapping[str, Any], of: int, gpus: Sequence[str]) -> Iterator[None]:
    """Have `of` - 1 further processes go with this one through what is inside.

    `module` is what they run, `setup` and `job` what this one was told, `gpus` what they take one each of. Raises what
    one of them failed at on its own.
    """
    each_its_own = len(gpus) >= of
    device = sharers("device") * (1 if each_its_own else of)
    memory = {"host": sharers("host") * of, "device": device}
    share_memory(**memory)
    backend = "cpu:gloo,cuda:nccl" if each_its_own and torch.distributed.is_nccl_available() else "gloo"
    with tempfile.TemporaryDirectory(prefix="landscape-") as folder:
        about = {"of": of, "store": str(Path(folder) / "store"), "backend": backend}
        first = {**setup, "path": [os.path.abspath(p) for p in sys.path], "sharing": memory}
        others: list[_Other] = []
        try:
            for place in range(1, of):
                others.append(_Other(module, gpus[place % len(gpus)] if gpus else None))
                others[-1].tell(first)
                others[-1].tell({**job, "along": {**about, "place": place}})
            for other in others:
                other.wait()
            with along({**about, "place": 0}):
                yield
        except ProcessError:
            for other in others:
                if (error := other.failure()) is not None:
                    raise error from None
            raise
        finally:
            for other in others:
                other.end()


@contextlib.contextmanager
def along(about: Mapping[str, Any]) -> Iterator[None]:
    """Share the draw of every objective inside with the processes that go along."""
    torch.distributed.init_process_group(
        about["backend"],
        init_method=f"file://{about['store']}",
        rank=about["place"],
        world_size=about["of"],
        timeout=PATIENCE,
    )
    try:
        with everything_shared(True):
            yield
    finally:
        torch.distributed.destroy_process_group()


class _Other:
    """A process that goes along, and what it says."""

    def __init__(self, module: str, gpu: str | None) -> None:
        environment = dict(os.environ) if gpu is None else {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        #: Whether it is ready, or what it failed at; None at its end.
        self._said: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Write it a line. It reads at once: nobody waits for long."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def wait(self) -> None:
        """Wait until it is ready; raise what it failed at."""
        said = self._said.get()
        if said is None:
            raise ProcessError(f"a process that was to go along ended ({self._process.wait()}) before it began")
        if "error" in said:
            raise raised(said["error"])

    def failure(self) -> Exception | None:
        """Return what it failed at by itself, rather than because of another one; waits a moment for it to say so."""
        with contextlib.suppress(queue.Empty):
            said = self._said.get(timeout=GRACE)
            if said is None:
                return ProcessError(f"a process that went along died ({self._process.wait()})")
            if "error" in said:
                error = raised(said["error"])
                return None if isinstance(error, ProcessError) else error
        return None

    def end(self) -> None:
        """Let it end, or end it."""
        self.tell({"end": True})
        try:
            self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if message.keys() & {"ready", "error"}:
                    self._said.put(message)
        self._said.put(None)
