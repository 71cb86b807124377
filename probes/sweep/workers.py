"""Cells in several processes: one GPU each where there are several, a dead one replaced, all of them told to stop.

Each worker is a process of its own (`python -m landscape.probes.sweep.worker`), spoken to in lines of JSON: nothing is
pickled, and a caller's script needs no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .grid import Cell
from .outcome import CellResult, read_result, write_result
from .stopping import Stop

#: A worker that dies at a cell is replaced, and the cell goes on from its saved state so often (chosen by us: what
#: kills twice at one cell, memory as a rule, will do so again).
ATTEMPTS = 2
#: Seconds that a worker has to save itself when asked to stop (chosen by us; clusters give 30 to 120).
GRACE = 60.0


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[str]
    cell: Cell | None = None


def run_in_workers(
    cells: Sequence[Cell],
    out: Path,
    setup: dict[str, Any],
    workers: int,
    *,
    stop: Stop,
    began: Callable[[Cell], None],
    told: Callable[[Cell, dict[str, Any]], None],
    ended: Callable[[CellResult], None],
    say: Callable[[str], None],
) -> None:
    """Train cells in `workers` processes until all are done or `stop` is asked.

    `setup` is what a worker reads first (the task, how). `began`, `told` and `ended` are called in this thread.
    """
    waiting = deque(cells)
    deaths: dict[int, int] = {}
    messages: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
    gpus = visible_gpus()
    alive: dict[int, _Worker] = {}
    numbers = 0

    def start() -> None:
        nonlocal numbers
        numbers += 1
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[(numbers - 1) % len(gpus)]
            if not set(environment) & {"LANDSCAPE_THREADS"}:
                environment.pop("OMP_NUM_THREADS")
        process = subprocess.Popen(
            # -P: what lies in the current folder, such as a checkout's own landscape/, doesn't hide what is installed.
            [sys.executable, "-P", "-m", "landscape.probes.sweep.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone, and we tell them
        )
        worker = _Worker(numbers, process)
        alive[numbers] = worker
        threading.Thread(target=_listen, args=(worker, messages), daemon=True).start()
        _tell(worker, setup)
        give(worker)

    def give(worker: _Worker) -> None:
        if not waiting or stop.asked:
            worker.cell = None
            _tell(worker, {"end": True})
            return
        worker.cell = waiting.popleft()
        began(worker.cell)
        _tell(worker, {"cell": worker.cell.to_dict(), "folder": str(out / worker.cell.name)})

    for _ in range(min(workers, len(cells))):
        start()
    asked = 0.0
    try:
        while alive:
            if stop.asked and not asked:
                asked = time.monotonic()
                for worker in alive.values():
                    _signal(worker, signal.SIGTERM)
            if asked and time.monotonic() - asked > GRACE:
                for worker in alive.values():
                    _signal(worker, signal.SIGKILL)
            try:
                number, message = messages.get(timeout=0.1)
            except queue.Empty:
                continue
            worker = alive.get(number)
            if worker is None:
                continue
            if message is None:
                del alive[number]
                code = _ended(worker)
                if worker.cell is not None:
                    dead = worker.cell
                    deaths[dead.index] = deaths.get(dead.index, 0) + 1
                    again = deaths[dead.index] < ATTEMPTS and not stop.asked
                    result = _of_the_dead(dead, out / dead.name, code, again, stop.asked)
                    say(f"{dead.label}: {result.reason}")
                    if again:
                        waiting.appendleft(dead)
                    else:
                        ended(result)
                if waiting and not stop.asked and len(alive) < workers:
                    start()
            elif "progress" in message and worker.cell is not None:
                told(worker.cell, message["progress"])
            elif "say" in message:
                say(message["say"])
            elif "result" in message and worker.cell is not None:
                result = CellResult.from_dict(message["result"], str(out / worker.cell.name))
                ended(result)
                give(worker)
    finally:
        for worker in alive.values():
            _signal(worker, signal.SIGTERM)
        for worker in alive.values():
            try:
                worker.process.wait(timeout=GRACE)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                _signal(worker, signal.SIGKILL)
            _ended(worker)


def visible_gpus() -> list[str]:
    """Return the names by which single GPUs are made visible to a process; empty where there is none."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [n.strip() for n in named.split(",")][:count] if named and count else [str(i) for i in range(count)]


def _of_the_dead(cell: Cell, folder: Path, code: int, again: bool, stopping: bool) -> CellResult:
    """Return the result of a cell whose worker died: it stays resumable where it is tried again."""
    try:
        how = signal.Signals(-code).name if code < 0 else f"exit {code}"
    except ValueError:
        how = f"signal {-code}"
    memory = " (the system kills so when memory runs out)" if code == -signal.SIGKILL else ""
    reason = f"its process died ({how}){memory}"
    found = read_result(cell, folder)
    if again or stopping:
        return replace(found, status="interrupted", reason=f"{reason}; it goes on from its last saved state")
    result = replace(found, status="failed", reason=f"{reason}, {ATTEMPTS} times")
    folder.mkdir(parents=True, exist_ok=True)
    write_result(result)
    return result


def _listen(worker: _Worker, messages: queue.SimpleQueue[tuple[int, dict[str, Any] | None]]) -> None:
    assert worker.process.stdout is not None
    for line in worker.process.stdout:
        try:
            messages.put((worker.number, json.loads(line)))
        except ValueError:
            continue  # something else that was printed: not ours
    messages.put((worker.number, None))


def _tell(worker: _Worker, message: dict[str, Any]) -> None:
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(json.dumps(message) + "\n")
        worker.process.stdin.flush()
    except (BrokenPipeError, ValueError):
        pass  # it died: its end is told by `_listen`


def _ended(worker: _Worker) -> int:
    """Wait for the end of a process, close what led to it, and return its exit status."""
    code = worker.process.wait()
    for pipe in (worker.process.stdin, worker.process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
    return code


def _signal(worker: _Worker, number: int) -> None:
    if worker.process.poll() is None:
        worker.process.send_signal(number)
