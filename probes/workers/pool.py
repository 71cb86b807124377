"""Jobs in several processes: one GPU each where there are several, a dead one replaced, all of them told to stop.

Each worker is a process of its own (`python -m`), spoken to in lines of JSON: nothing is pickled, and a caller's script
needs no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from .stopping import Stop

#: A worker that dies at a job is replaced, and the job given to the next so often (chosen by us: what kills twice at
#: one job, memory as a rule, will do so again).
ATTEMPTS = 2
#: Seconds that a worker has to save itself when asked to stop (chosen by us; clusters give 30 to 120).
GRACE = 60.0

Job = TypeVar("Job")
#: What a message says of its job: there is more to come, it is done, or it is done and its process, too, which gets no
#: other.
Heard = Literal["more", "done", "spent"]


class Work(Generic[Job]):
    """What workers shall do, as whoever gives it out sees it; all is called in the thread of `run_in_workers`.

    `module` is what a worker runs, `setup` the first line that it reads.
    """

    def __init__(self, module: str, setup: Mapping[str, Any]) -> None:
        self.module, self.setup = module, setup

    def begin(self, job: Job) -> dict[str, Any] | None:
        """Return the line that gives a worker its job; None leaves the job out."""
        raise NotImplementedError

    def heard(self, job: Job, message: dict[str, Any]) -> Heard:
        """Take what a worker says of its job."""
        raise NotImplementedError

    def died(self, job: Job, reason: str, again: bool, stopping: bool) -> None:
        """Take that a worker died at its job, and how: it is given to another one where `again`."""
        raise NotImplementedError


@dataclass
class _Given(Generic[Job]):
    job: Job
    deaths: int = 0


@dataclass
class _Worker(Generic[Job]):
    number: int
    process: subprocess.Popen[str]
    given: _Given[Job] | None = None
    #: What it is still to be told: a long line waits until the worker reads it, and nobody shall wait with it.
    lines: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue)


def run_in_workers(
    work: Work[Job],
    jobs: Sequence[Job],
    workers: int,
    *,
    stop: Stop,
    say: Callable[[str], None],
    gpus: Sequence[str] | None = None,
) -> None:
    """Have `workers` processes, and no more than there are jobs, do all of them, until `stop` is asked.

    `say` is told what they have to say, a line each. `gpus` are the names of the GPUs that they take in turn; by
    default all that are here.
    """
    waiting = deque(_Given(job) for job in jobs)
    messages: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
    gpus = visible_gpus() if gpus is None else gpus
    alive: dict[int, _Worker[Job]] = {}
    numbers, workers = 0, min(workers, len(jobs))
    about = {
        "path": [os.path.abspath(p) for p in sys.path],
        "sharing": {"host": workers, "device": math.ceil(workers / max(1, len(gpus)))},
    }

    def start() -> None:
        nonlocal numbers
        numbers += 1
        process = subprocess.Popen(
            # -P: what lies in the current folder, such as a checkout's own landscape/, doesn't hide what is installed.
            [sys.executable, "-P", "-m", work.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(numbers - 1, gpus),
            # Ctrl-C reaches us alone, and we tell them; Windows has groups for that.
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        worker: _Worker[Job] = _Worker(numbers, process)
        alive[numbers] = worker
        threading.Thread(target=_listen, args=(worker, messages), daemon=True).start()
        threading.Thread(target=_write, args=(worker,), daemon=True).start()
        _tell(worker, {**work.setup, **about})
        give(worker)

    def give(worker: _Worker[Job]) -> None:
        worker.given = None
        while waiting and not stop.asked:
            given = waiting.popleft()
            line = work.begin(given.job)
            if line is not None:
                worker.given = given
                _tell(worker, line)
                return
        _tell(worker, {"end": True})

    for _ in range(workers):
        start()
    asked = 0.0
    try:
        while alive:
            if stop.asked and not asked:
                asked = time.monotonic()
                for worker in alive.values():
                    _ask(worker)
            if asked and time.monotonic() - asked > GRACE:
                for worker in alive.values():
                    worker.process.kill()
            try:
                number, message = messages.get(timeout=0.1)
            except queue.Empty:
                continue
            worker = alive.get(number)
            if worker is None:
                continue
            if message is None:
                del alive[number]
                reason, given = _how(_ended(worker)), worker.given
                if given is not None:
                    given.deaths += 1
                    again = given.deaths < ATTEMPTS and not stop.asked
                    if again:
                        waiting.appendleft(given)
                    elif given.deaths >= ATTEMPTS:
                        reason += f", {given.deaths} times"
                    work.died(given.job, reason, again, stop.asked)
                if waiting and not stop.asked and len(alive) < workers:
                    start()
            elif "say" in message:
                say(message["say"])
            elif worker.given is not None:
                heard = work.heard(worker.given.job, message)
                if heard == "done":
                    give(worker)
                elif heard == "spent":
                    worker.given = None
                    _tell(worker, {"end": True})
    finally:
        for worker in alive.values():
            _ask(worker)
        for worker in alive.values():
            try:
                worker.process.wait(timeout=GRACE)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                worker.process.kill()
            _ended(worker)


def visible_gpus() -> list[str]:
    """Return the names by which single GPUs are made visible to a process; empty where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [n.strip() for n in named.split(",")][:count] if named and count else [str(i) for i in range(count)]


def gpus_for(device: str) -> list[str]:
    """Return the GPUs that processes may have one each of, where the user left the device open."""
    return visible_gpus() if device in ("auto", "cuda") else []


def shared_out(gpus: Sequence[str], workers: int, each: int) -> list[str]:
    """Return what GPUs so many workers take in turn, of which each needs `each`: their names, separated by commas."""
    taken = [[gpus[(w * each + i) % len(gpus)] for i in range(each)] for w in range(workers)] if gpus else []
    return [",".join(dict.fromkeys(names)) for names in taken]


def _environment(number: int, gpus: Sequence[str]) -> dict[str, str]:
    """Return a worker's environment: one thread on a CPU, unless the user says otherwise, and one GPU of several."""
    environment = dict(os.environ)
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    else:
        environment.setdefault("OMP_NUM_THREADS", "1")
    return environment


@contextlib.contextmanager
def as_in_a_worker() -> Iterator[None]:
    """Have torch use as many threads inside as it does in a worker on a CPU: for who times what workers will do."""
    import torch

    before = torch.get_num_threads()
    wanted = os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]  # a list is one number for each level
    torch.set_num_threads(int(wanted) if wanted.isdecimal() and int(wanted) else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _how(code: int) -> str:
    """Return how a process died, from its exit status."""
    try:
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
    except ValueError:
        how = f"signal {-code}"
    memory = " (the system kills so when memory runs out)" if how == "SIGKILL" else ""
    return f"its process died ({how}){memory}"


def _listen(worker: _Worker[Any], messages: queue.SimpleQueue[tuple[int, dict[str, Any] | None]]) -> None:
    assert worker.process.stdout is not None
    with worker.process.stdout as pipe:
        for line in pipe:
            try:
                messages.put((worker.number, json.loads(line)))
            except ValueError:
                continue  # something else that was printed: not ours
    messages.put((worker.number, None))


def _tell(worker: _Worker[Any], message: Mapping[str, Any]) -> None:
    worker.lines.put(json.dumps(message) + "\n")


def _write(worker: _Worker[Any]) -> None:
    """Write what a worker is told, until its end."""
    assert worker.process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ValueError), worker.process.stdin as pipe:
        while (line := worker.lines.get()) is not None:
            pipe.write(line)
            pipe.flush()
    # Where the pipe broke it died: its end is told by `_listen`.


def _ended(worker: _Worker[Any]) -> int:
    """Wait for the end of a process, and return its exit status; its threads close the pipes that led to it."""
    code = worker.process.wait()
    worker.lines.put(None)
    return code


def _ask(worker: _Worker[Any]) -> None:
    """Ask a worker to save itself and leave."""
    if worker.process.poll() is None:
        # What Windows calls SIGTERM ends a process there and then.
        worker.process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
