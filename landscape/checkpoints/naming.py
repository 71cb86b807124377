"""How a checkpoint names its task: what may be written, and what is made of what was read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, TaskError
from ..task_files import TaskReference, file_sha256, resolve_reference
from ..tasks import Task

#: Of the entry "landscape" in a checkpoint; raised when an older reader would misread a newer file.
FORMAT = 1


def reference_of(task: Task) -> tuple[str, dict[str, Any]] | None:
    """Return ("file.py:name", settings) of the function that made a task; None where no checkpoint may name it."""
    try:
        return named(task)
    except (CheckpointError, TypeError, OSError):  # the last where the current directory is gone
        return None


def named(task: Task) -> tuple[str, dict[str, Any]]:
    """Return the same, or raise CheckpointError, or TypeError for settings that aren't plain, with the way out."""
    if task.made_by is None:
        raise CheckpointError(
            "expected a task that a function marked @task made, got one that was made otherwise (or changed since): "
            "give task='file.py:name'"
        )
    made = task.made_by
    if made.problem:
        raise TypeError(made.problem)
    if made.module in ("__main__", "__mp_main__"):  # the second is the script's name in processes that it starts
        raise CheckpointError(
            f"{made.name}() stands in the script that runs, which would run again where a checkpoint is measured: put "
            "it into a file of its own, or give task='file.py:name'"
        )
    if made.module.startswith("landscape."):
        reference = f"{made.module}:{made.name}"
    else:
        file = Path(made.file).resolve()
        below = file.is_relative_to(Path.cwd().resolve())
        reference = f"{file.relative_to(Path.cwd().resolve()).as_posix() if below else file}:{made.name}"
    try:
        resolve_reference(reference)
    except TaskError as error:
        said = str(error).replace("the checkpoint names", "the task is", 1)
        raise CheckpointError(f"a checkpoint cannot name this task: {said}") from error
    return reference, made.settings


def reference_to(task: str) -> TaskReference:
    """Return the task "file.py:name" as a checkpoint names it, with the SHA-256 of its file as it is now.

    Raises CheckpointError where no checkpoint may name it.
    """
    if not isinstance(task, str):
        raise TypeError(f"task is named as 'file.py:name', got {type(task).__name__}")
    try:
        file, _ = resolve_reference(task)
    except TaskError as error:
        said = str(error).replace("the checkpoint names", "task=", 1)
        raise CheckpointError(f"a checkpoint cannot name this task: {said}") from error
    return TaskReference(task, sha256=file_sha256(file))


def reference_in(own: Mapping[str, Any], notes: list[str]) -> TaskReference | None:
    """Return the task that the file names; what is not text, or not plain, is somebody's trick or mistake."""
    if isinstance(own.get("format"), int) and own["format"] > FORMAT:
        notes.append(f"written by a newer landscape ({own.get('version')}); what it added is not read")
    reference, settings, sha256 = own.get("task"), own.get("settings"), own.get("task_sha256")
    if reference is None:
        return None
    if not isinstance(reference, str) or not isinstance(settings, dict | None):
        notes.append("the task that the file names is no text with settings: ignored")
        return None
    loss = own.get("task_loss")
    known = (sha256 if isinstance(sha256, str) else None, loss if isinstance(loss, str) else "")
    return TaskReference(reference, dict(settings or {}), *known)
