"""Which task a training that was only recorded belongs to: that of the checkpoints that say they were written by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .runs import Run


def with_tasks(runs: Sequence[Run]) -> list[Run]:
    """Give each training without a task that of its own checkpoints among these runs, and say so in `task_from`.

    A checkpoint that a recorder wrote holds the id of the recorder's archive, and so does what was measured on it;
    nothing else tells whose it is, names of files and folders least. Without such a checkpoint, or where they were
    measured under several tasks, the training stays without one.
    """
    named: dict[str, dict[str, Run]] = {}
    for run in runs:
        recorded_in = run.about.get("recorded_in")
        if run.task and recorded_in:
            named.setdefault(str(recorded_in), {}).setdefault(run.task, run)
    return [_adopting(run, named) if not run.task else run for run in runs]


def task_notes(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return a note for each training whose task was taken from its checkpoints."""
    return [
        ("info", f"{run.name} names no task: it stands with {run.task_from}, a checkpoint that its recorder wrote.")
        for run in runs
        if run.task_from
    ]


def _adopting(run: Run, named: dict[str, dict[str, Run]]) -> Run:
    own: Any = run.about.get("run_id")
    tasks = named.get(str(own), {}) if own and run.history else {}
    if len(tasks) != 1:
        return run
    (checkpoint,) = tasks.values()
    return replace(run, task=checkpoint.task, task_from=checkpoint.name)
