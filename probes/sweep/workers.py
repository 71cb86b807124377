"""Cells in several processes: each goes on from its last saved state where a worker died at it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..workers.pool import Heard, Work, run_in_workers
from ..workers.stopping import Stop
from .grid import Cell
from .outcome import CellResult, read_result, write_result


def train_in_workers(
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
    run_in_workers(_Cells(setup, out, began, told, ended, say), cells, workers, stop=stop, say=say)


class _Cells(Work[Cell]):
    def __init__(
        self,
        setup: dict[str, Any],
        out: Path,
        began: Callable[[Cell], None],
        told: Callable[[Cell, dict[str, Any]], None],
        ended: Callable[[CellResult], None],
        say: Callable[[str], None],
    ) -> None:
        super().__init__("landscape.probes.sweep.worker", setup)
        self._out, self._began, self._told, self._ended, self._say = out, began, told, ended, say

    def begin(self, job: Cell) -> dict[str, Any]:
        self._began(job)
        return {"cell": job.to_dict(), "folder": str(self._out / job.name)}

    def heard(self, job: Cell, message: dict[str, Any]) -> Heard:
        if "progress" in message:
            self._told(job, message["progress"])
        if "result" not in message:
            return "more"
        self._ended(CellResult.from_dict(message["result"], str(self._out / job.name)))
        return "done"

    def died(self, job: Cell, reason: str, again: bool, stopping: bool) -> None:
        folder = self._out / job.name
        result = read_result(job, folder)
        if again or stopping:  # it stays resumable
            result = replace(result, status="interrupted", reason=f"{reason}; it goes on from its last saved state")
        else:
            result = replace(result, status="failed", reason=reason)
            folder.mkdir(parents=True, exist_ok=True)
            write_result(result)
        self._say(f"{job.label}: {result.reason}")
        if not again:
            self._ended(result)
