"""Checkpoints that a recorder writes along the way."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from landscape.checkpoints.naming import reference_of, reference_to
from landscape.checkpoints.writing import save_checkpoint
from landscape.errors import LandscapeError
from landscape.parameters import unwrap
from landscape.tasks import Task

from .probe import Now, Run
from .when import Moment, When


def named_by(task: Task | None, model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """Return ("file.py:name", settings) of the function that made a task, where checkpoints of this model may name it.

    Its own model is this one, or has parameters of the same names and shapes: what one saves the other loads.
    """
    if task is None:
        return None
    own = unwrap(task.model)
    shapes = [{n: p.shape for n, p in m.named_parameters()} for m in (own, model)]
    return reference_of(task) if own is model or shapes[0] == shapes[1] else None


class Saving:
    """Writes `step-<number>.pt` beside the archive, naming the task where it is known.

    Args:
        folder: where they go.
        run: whose model, and optimizers.
        when: along the way; None for never.
        reference, settings, task_loss: of the task, see `save_checkpoint`.
        facts: settings of the run, the optimizer's among them: what the archive says of it, too.
        run_id: of the archive, by which what is measured on a checkpoint is known to belong to the recorded run.
    """

    def __init__(
        self,
        folder: Path,
        run: Run,
        when: When | None,
        *,
        reference: str | None,
        settings: Mapping[str, Any],
        task_loss: str,
        facts: Mapping[str, Any],
        run_id: str = "",
    ) -> None:
        self.when = when
        self._folder, self._run, self._run_id = folder, run, run_id
        self._task: dict[str, Any] = {}
        if reference:
            self._task = {"task": reference, "settings": dict(settings), "task_loss": task_loss}
            # Looked up once: a training may change its directory, and somebody may work on the file meanwhile. What
            # is wrong with it is said where a checkpoint is written.
            with contextlib.suppress(LandscapeError, OSError, TypeError):
                self._task["task"] = reference_to(reference)
        self._facts = {k: v for k, v in facts.items() if k not in ("step", "epoch", "task", "settings")}
        self._said = False

    def save(self, path: str | os.PathLike[str] | None, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """Write one, with the recorder's own state; it appears whole or not at all.

        Raises CheckpointError where it can't be written.
        """
        target = Path(path) if path is not None else self._folder / f"step-{self._run.step:08d}.pt"
        followed = {f.name: f.optimizer for f in self._run.followed}
        save_checkpoint(
            target,
            self._run.model,
            **self._task,
            optimizer=followed,
            step=self._run.step,
            epoch=self._run.epoch,
            further={**self._facts, **facts, "recorder": {**state, "run_id": self._run_id}},
        )
        return target

    def due(self, now: Now) -> bool:
        """Whether one is to be written at this moment between steps."""
        return self.when is not None and now.step > 0 and self.when.due(Moment(now.step, now.epoch, now.ends_epoch))

    def along_the_way(self, state: Mapping[str, Any]) -> None:
        """Write one, or warn, once, that none could be written: the training goes on."""
        try:
            path = self.save(None, state, {})
        except (LandscapeError, OSError, TypeError) as error:
            self._run.event("checkpoint", f"could not be written: {error}")
            if not self._said:
                self._said = True
                warnings.warn(f"no checkpoint at step {self._run.step}: {error}", RuntimeWarning, stacklevel=2)
        else:
            self._run.event("checkpoint", path.name)
