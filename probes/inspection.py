"""Try a task on one batch: does it load, is its loss fit to be measured, what will work, how long will it take."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from landscape.batch import tensors_of
from landscape.errors import LandscapeError
from landscape.objective import Objective
from landscape.outputs import lacking_labels
from landscape.placement import held_complex
from landscape.results import Check, Measurement
from landscape.sparse import shape_of
from landscape.tasks import Task

from .derivatives import twice_differentiable
from .prediction import Prediction, Span, Speed, measure_speed, one_batch, predict, total
from .selection import PRESET_SAMPLES, choose, samples_to_draw
from .subjects import Tasks, task_changes


@dataclass(frozen=True)
class Inspection:
    """What one batch showed. `works` says for each measurement why it will not work ("" where it will).

    `speed` is None where the loss cannot be measured; `presets` maps each preset to its samples and predictions.
    """

    task: str
    checkpoint: str
    device: str
    dtype: str
    findings: tuple[Check, ...]
    works: Mapping[str, str] = field(default_factory=dict)
    speed: Speed | None = None
    presets: Mapping[str, tuple[int, tuple[Prediction, ...]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether `landscape probe` can measure this task."""
        return all(c.level != "fail" for c in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return the object of `landscape check --json`: times as [least, most]; NaN is still in it."""
        speed = self.speed
        return {
            "task": self.task,
            "checkpoint": self.checkpoint or None,
            "device": self.device,
            "dtype": self.dtype,
            "ok": self.ok,
            "findings": [{"name": c.name, "level": c.level, "message": c.message} for c in self.findings],
            "measurements": {name: {"works": not reason, "reason": reason} for name, reason in self.works.items()},
            "batch": None
            if speed is None
            else {
                "samples": speed.samples,
                "forward_seconds": _ends(speed.forward),
                "gradient_seconds": _ends(speed.gradient),
                "product_seconds": _ends(speed.product),
            },
            "presets": {
                name: {
                    "samples": samples,
                    "seconds": _ends(total(found)),
                    "memory": max((p.memory for p in found), default=0.0),
                    "measurements": {p.name: {"seconds": _ends(p.seconds), "memory": p.memory} for p in found},
                }
                for name, (samples, found) in self.presets.items()
            },
        }


def _ends(time: Span) -> list[float]:
    return [time.low, time.high]


def inspect_task(
    task: str,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str | None = None,
    seed: int | None = None,
    weights: str | None = None,
    trust_pickle: bool = False,
    root: str | os.PathLike[str] = ".",
    say: Callable[[str], None] | None = None,
) -> Inspection:
    """Return what one batch of a task shows: "file.py:name", with a checkpoint's weights where one is given.

    `settings` are those that the task is called with, `device`, `dtype` and `seed` replace its own, `weights` and
    `trust_pickle` as in `read_checkpoint`; `root` is where files lie that a checkpoint may name, and `say` is told what
    is called, a line each. Costs about 50 passes over one batch; a preset whose samples cannot be known without drawing
    them is left out. Raises TaskError and CheckpointError where there is no task or the weights don't fit; what is
    wrong with the data or the loss is a finding.
    """
    tasks = Tasks(
        task=task,
        settings=dict(settings or {}),
        weights=weights,
        trust_pickle=trust_pickle,
        root=root,
        changes=task_changes(device, dtype, seed),
        say=say or (lambda text: None),
    )
    loaded, found, notes = tasks.bare(checkpoint)
    findings = [Check("task", "pass", repr(loaded))]
    if found is not None:
        findings.append(Check("checkpoint", "pass", f"{found}: its weights fit"))
        findings += [Check("checkpoint", "warn", note) for note in notes]
    path, place = os.fspath(checkpoint) if checkpoint is not None else "", ("", "")
    try:
        small = one_batch(loaded)
        findings += _data(small)
        with Objective(small, small.splits[0]) as objective:
            place = (str(objective.device), str(objective.dtype).removeprefix("torch."))
            findings += _loss(objective)
            labels = _labels(small, objective)
    except LandscapeError as error:
        findings.append(Check("loss", "fail", str(error)))
        return Inspection(task, path, *place, tuple(findings))
    curved = twice_differentiable(loaded)
    findings += [labels, curved]
    lacking = {
        "labels": "" if labels.level == "pass" else labels.message,
        "second derivative": "" if curved.level != "fail" else curved.message,
        "outputs": "" if loaded.batch_loss is None else "a batch_loss task gives no outputs",
    }
    chosen = choose()
    works = {c.measurement.name: _obstacle(c.measurement, lacking) or _no_data(loaded, c.options) for c in chosen}
    speed = measure_speed(small)
    presets = {}
    available = small.draw(small.splits[0]).available
    for preset in PRESET_SAMPLES:
        # Not drawn: taking all of a large data set would be no trial of one batch.
        sizes = [n for n in (samples_to_draw(loaded, preset, None), available) if n is not None]
        usable = [c for c in choose((), preset) if not works[c.measurement.name]]
        if sizes:
            presets[preset] = (min(sizes), tuple(predict(usable, speed, min(sizes))))
    return Inspection(task, path, *place, tuple(findings), works, speed, presets)


def _no_data(task: Task, options: Mapping[str, Any]) -> str:
    """Say that a measurement is of a split without data; calibration takes what there is, and says so."""
    there = options.get("split") != "train" or "train" in task.splits
    return "" if there else "the task has no train data; give Task(..., train=...), or measure with split=test"


#: Tensors of a batch whose shapes are shown (chosen by us: a detector's batch has dozens).
_SHOWN = 6


def _obstacle(m: Measurement, lacking: Mapping[str, str]) -> str:
    return next((lacking[need] for need in m.needs if lacking[need]), "")


def _data(task: Task) -> list[Check]:
    """Return what the first batch of each split looks like. TaskError where there is none."""
    found = []
    for split in task.splits:
        draw = task.draw(split)
        size = "an unknown number of" if draw.available is None else f"{draw.available:,}"
        tensors = tensors_of(draw.batches[0])
        shapes = ", ".join(map(shape_of, tensors[:_SHOWN]))
        if len(tensors) > _SHOWN:
            shapes += f" and {len(tensors) - _SHOWN} tensors more"
        found.append(Check(f"{split} data", "pass", f"{size} samples; a batch holds {shapes}"))
    if "test" not in task.splits:
        found.append(Check("test data", "warn", "none: calibration and the gap will be missing or measured on train"))
    return found


def _loss(objective: Objective) -> list[Check]:
    """Return what entering the objective verified; it raised where two passes differ or a weight is not known."""
    loss = objective.evaluate().loss
    held = held_complex(objective.model)
    notes = "; ".join(n for n in objective.notes if n != held)
    return [
        *([Check("complex", "warn", held)] if held else []),
        Check("deterministic", "pass", f"two passes agree; the loss is {loss:.6g}"),
        Check("weights", "pass", f"each batch counts by its mean's own denominator{f' ({notes})' if notes else ''}"),
    ]


def _labels(task: Task, objective: Objective) -> Check:
    split = "test" if "test" in task.splits else task.splits[0]
    if split == objective.split:
        there = objective.has_labels
    else:
        with Objective(task, split) as other:
            there = other.has_labels
    if there:
        whose = ", the next token's, as the loss has it" if task.pairing == "next" else ""
        return Check("labels", "pass", f"the {split} data have class labels{whose}: accuracy and calibration will work")
    return Check("labels", "warn", f"no accuracy, no calibration: {lacking_labels(task, split)}")
