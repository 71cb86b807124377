"""From a checkpoint's path to a Task with its weights in it: which task, called with what, on which device."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent
from typing import Any

import torch

from landscape.archive.schema import Subject, plain
from landscape.checkpoint import Checkpoint, load_checkpoint, read_checkpoint
from landscape.errors import CheckpointError, TaskError
from landscape.identity import describe, hold
from landscape.objective import Objective
from landscape.scaffold import default_task_file, describe_checkpoint, next_commands
from landscape.task_files import LoadedTask, TaskReference, file_sha256, load_named_task, load_task, split_reference
from landscape.tasks import Task


@dataclass(frozen=True)
class Prepared:
    """A task with a checkpoint's weights in its model, ready to be measured. `run` are the settings of its training.

    `called` says which task it is, and how it was called: plain data on which every number depends.
    """

    checkpoint: Checkpoint
    task: Task
    reference: str
    run: Mapping[str, Any]
    facts: Mapping[str, Any]
    device: str
    dtype: str
    warnings: tuple[str, ...]
    called: Mapping[str, Any]

    def __post_init__(self) -> None:
        hold(self.task)  # before its loss has been called

    @property
    def split(self) -> str:
        """The split that curvature and surface are measured on."""
        return self.task.splits[0]

    def depends(self) -> dict[str, Any]:
        """Return all that numbers depend on beside the weights and what is asked for, as plain data; draws the data."""
        draws = {split: f"#{self.task.draw(split).fingerprint}" for split in self.task.splits}
        return {"draw": draws, **describe(self.task), **self.called}

    def subject(self, **circumstances: Any) -> Subject:
        """Return what results are filed under in the archive."""
        measured = {"device": self.device, "dtype": self.dtype, "max_samples": self.task.max_samples}
        return Subject(
            checkpoint=self.checkpoint.path,
            fingerprint=self.checkpoint.fingerprint,
            task=self.reference,
            step=self.checkpoint.step,
            epoch=self.checkpoint.epoch,
            name=str(self.checkpoint.facts.get("name") or Path(self.checkpoint.path).stem),
            facts={**self.run, **self.facts, **measured, "draw_seed": self.task.seed, **circumstances},
        )


@dataclass
class Tasks:
    """Loads checkpoints into their tasks; checkpoints with the same task and settings share one, and its data.

    Args:
        task: "file.py:name" of the user's; None takes the one that each checkpoint names, if it may be called.
        settings: of the task's function, before those that a checkpoint keeps.
        root: the folder below which a checkpoint may name task files.
        changes: what to replace on every task (device, dtype, seed); `samples` gives the size of its draw.
        say: is told what is called.
    """

    task: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    trust_pickle: bool = False
    root: str | os.PathLike[str] = "."
    changes: Mapping[str, Any] = field(default_factory=dict)
    samples: Callable[[Task], int | None] = lambda task: task.max_samples
    say: Callable[[str], None] = lambda text: None
    _loaded: dict[str, LoadedTask] = field(default_factory=dict)

    def prepare(self, path: str | os.PathLike[str]) -> Prepared:
        """Return the checkpoint's task with its weights loaded, and its data drawn.

        Raises CheckpointError where the file cannot be read or does not fit, TaskError where it has no task, or
        one that may not be called, or that fails, or that has no data.
        """
        loaded, checkpoint, warnings = self._load(path)
        # A task of its own for each checkpoint, so that nothing verified of the last weights is taken for these.
        task = loaded.task.replace(**self.changes, max_samples=self.samples(loaded.task))
        if checkpoint.optimizers:
            task.optimizer = checkpoint.optimizers
        objective = Objective(task, task.splits[0])
        is_file = loaded.path.is_file() and loaded.path.suffix == ".py"
        file = {"task_file": str(loaded.path), "task_hash": file_sha256(loaded.path)} if is_file else {}
        return Prepared(
            checkpoint=checkpoint,
            task=task,
            reference=loaded.reference,
            # A recorder's state lets a training go on; it is no setting of the run.
            run={k: v for k, v in {**checkpoint.facts, **loaded.settings}.items() if v is not None and k != "recorder"},
            facts={**file, **_recorded_in(checkpoint)},
            device=str(objective.device),
            dtype=str(objective.dtype).removeprefix("torch."),
            warnings=warnings,
            called={
                "task": loaded.reference,
                "task's file": f"#{file.get('task_hash', '')}",
                "setting": plain(loaded.settings),
                "loss of the registry": loaded.loss or "none",
            },
        )

    def bare(self, path: str | os.PathLike[str] | None = None) -> tuple[Task, Checkpoint | None, tuple[str, ...]]:
        """Return the user's task, with a checkpoint's weights where one is given, and remarks; nothing is drawn."""
        if path is None:
            assert self.task is not None
            return self._own(self.task).task.replace(**self.changes), None, ()
        loaded, checkpoint, warnings = self._load(path)
        return loaded.task.replace(**self.changes), checkpoint, warnings

    def _load(self, path: str | os.PathLike[str]) -> tuple[LoadedTask, Checkpoint, tuple[str, ...]]:
        if self.task is not None:
            loaded = self._own(self.task)
        else:
            found = read_checkpoint(path, weights=self.weights, trust_pickle=self.trust_pickle)
            if found.task is None:
                raise no_task(found)
            loaded = self._named(found.task, found.path)
        checkpoint = load_checkpoint(path, loaded.task, weights=self.weights, trust_pickle=self.trust_pickle)
        return loaded, checkpoint, (*checkpoint.notes, *loaded.warnings, *self._left_out(checkpoint))

    def _own(self, reference: str) -> LoadedTask:
        """Return the task that the user names, loaded once for all checkpoints."""
        if reference not in self._loaded:
            self.say(f"task: {call_text(reference, self.settings)}")
            task = _with_data(load_task(reference, **self.settings), reference)
            path = Path(split_reference(reference)[0]).expanduser()
            self._loaded[reference] = LoadedTask(task, reference, path, dict(self.settings), ())
        return self._loaded[reference]

    def _named(self, named: TaskReference, path: str) -> LoadedTask:
        """Return the task that a checkpoint names, loaded once for all that name it with the same settings."""
        text = call_text(named.reference, {**named.settings, **self.settings})
        text += f" with the loss {named.loss}" if named.loss else ""
        if text not in self._loaded:
            self.say(f"task: {text}, named by {path}")
            self._loaded[text] = load_named_task(named, root=self.root, settings=self.settings)
            _with_data(self._loaded[text].task, named.reference)
        return self._loaded[text]

    def _left_out(self, checkpoint: Checkpoint) -> tuple[str, ...]:
        """Return a warning where the user's own --task leaves out settings that the checkpoint keeps for its task."""
        kept = checkpoint.task.settings if self.task is not None and checkpoint.task is not None else {}
        left = [f"{k}={v}" for k, v in kept.items() if k not in self.settings]
        said = []
        if left:
            said.append(
                f"the checkpoint's own task was called with {', '.join(left)}; --task was not: pass them with --set"
            )
        if self.task is not None and checkpoint.task is not None and checkpoint.task.loss:
            said.append(
                f"the checkpoint was trained with the loss {checkpoint.task.loss}; --task measures its own loss: leave "
                "--task out to measure with that one"
            )
        return tuple(said)


def _recorded_in(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the run_id of the archive whose recorder wrote this checkpoint, under "recorded_in"; nothing of others."""
    state = checkpoint.facts.get("recorder")
    run_id = state.get("run_id") if isinstance(state, Mapping) else None
    return {"recorded_in": run_id} if isinstance(run_id, str) and run_id else {}


def _with_data(task: Task, reference: str) -> Task:
    if not task.splits:
        raise TaskError(f"the task {reference} has no data; return Task(model, loss, train=..., test=...)")
    return task


def call_text(reference: str, settings: Mapping[str, Any]) -> str:
    """Return a task's call as it would be typed in Python: file.py:name(loss='focal')."""
    return f"{reference}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"


def no_task(checkpoint: Checkpoint) -> TaskError:
    """Return the error for a file that names no task: what it holds, and the lines to type."""
    error = TaskError(f"{checkpoint.path} does not say which task it belongs to; name one with --task file.py:name")
    commands = next_commands(checkpoint, default_task_file(checkpoint))
    error.add_note(indent(describe_checkpoint(checkpoint), "  "))
    error.add_note("\n".join(["type:", *(f"  {line}" for line in commands)]))
    return error


def task_changes(device: str, dtype: str | None, seed: int | None) -> dict[str, Any]:
    """Return what to replace on a task, without what is left to it. Raises TaskError for a device that is not here."""
    wanted = {
        "device": resolve_device(device),
        "dtype": getattr(torch, dtype) if dtype is not None else None,
        "seed": seed,
    }
    return {k: v for k, v in wanted.items() if v is not None}


def resolve_device(device: str) -> torch.device | None:
    """Return the device to measure on; "auto" is CUDA where there is one, else None: where the task's model is.

    Raises TaskError for a device that torch does not find here.
    """
    if device == "auto":
        return torch.device("cuda") if torch.cuda.is_available() else None
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise TaskError(f"device {device!r} is none that torch knows; use auto, cpu or cuda") from error
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise TaskError(f"device {device!r} was asked for, but torch finds no CUDA device here; use --device cpu")
        if wanted.index is not None and wanted.index >= torch.cuda.device_count():
            raise TaskError(f"device {device!r} is not there: torch finds {torch.cuda.device_count()} CUDA devices")
    elif wanted.type != "cpu":
        module = getattr(torch, wanted.type, None)
        if module is None or not module.is_available():
            raise TaskError(f"device {device!r} was asked for, but torch finds none here; use --device cpu")
    return wanted


def check_paths(paths: Sequence[str], what: str = "checkpoint") -> None:
    """Raise CheckpointError for the first path that is not there, before any of the others is read."""
    for path in paths:
        if not os.path.lexists(path):
            raise CheckpointError(f"no {what} at {path}; check the path")
