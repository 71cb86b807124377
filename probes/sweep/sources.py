"""Where a cell's task comes from: a function that is called anew for each cell, with the cell's seed in force."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from landscape.errors import TaskError
from landscape.seeding import seeded
from landscape.task_files import file_sha256, function_of, load_task, resolve_reference, split_reference
from landscape.tasks import Task


class Source:
    """A task's function, named as "file.py:name" or given itself.

    `spec` is how it is named ("" for a function without a name to load it by), `reference` how a checkpoint may name it
    ("" where it may not: a file outside the current folder, a function of one's own), `sha256` of its file. `note` says
    why there is no reference.
    """

    def __init__(self, task: str | Callable[..., Task]) -> None:
        self._function: Callable[..., Task] | None = None
        self.spec = self.reference = self.sha256 = self.note = ""
        if callable(task):
            self._function = task
            self.takes = _parameters(task)
            self.note = (
                "the task is a function without a file: the checkpoints can't name it, so probe them from Python"
            )
            return
        function, path = function_of(task)
        self.takes = _parameters(function)
        _, name = split_reference(task)
        self.spec = task if name else f"{task}:{function.__name__}"
        self.path = path
        self.sha256 = file_sha256(path)
        self.reference = _reference(self.spec, path, name or function.__name__)
        if not self.reference:
            self.note = (
                f"checkpoints can't name a task outside the current folder: probe them with --task {self.spec}, or run "
                f"the sweep from a folder above {path}"
            )

    def make(self, settings: Mapping[str, Any], seed: int) -> Task:
        """Return the task of a cell: built with every generator at its seed, which are put back afterwards.

        A function that takes `seed` is given it, unless the settings have their own.

        Raises TaskError as `load_task`.
        """
        given = dict(settings)
        if "seed" in self.takes and "seed" not in given:
            given["seed"] = seed
        with seeded(seed):
            if self._function is not None:
                made = self._function(**given)
                if not isinstance(made, Task):
                    raise TaskError(f"the task's function returned a {type(made).__name__}, expected a Task")
                return made
            return load_task(self.spec, **given)

    def settings(self, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Return the settings with which a checkpoint names the task: the cell's seed among them."""
        return {**({"seed": seed} if "seed" in self.takes else {}), **settings}


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(n for n, p in inspect.signature(function).parameters.items() if p.kind in kinds)


def _reference(spec: str, path: Path, name: str) -> str:
    """Return the task as a checkpoint may name it from the current folder, "" where it may not."""
    candidates = [spec.replace(os.sep, "/")]  # read on other systems, too
    if path.suffix == ".py" and path.resolve().is_relative_to(Path.cwd()):
        candidates.append(f"{path.resolve().relative_to(Path.cwd()).as_posix()}:{name}")
    for candidate in candidates:
        try:
            resolve_reference(candidate)
        except TaskError:
            continue
        return candidate
    return ""
