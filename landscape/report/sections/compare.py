"""What keeps numbers of several runs from being compared: other tasks, losses, data draws, spans or bins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..numbers import count
from ..runs import Run
from . import by_task

#: What every run should have been measured with, and why it matters.
MEASURED_ALIKE = {
    "dtype": ": eigenvalues in single precision are good to about 4 digits",
    "preset": ": samples, points and budgets differ",
    "device": "",
}


def comparable(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return (level, statement) for each thing that limits a comparison of these runs; empty where nothing does."""
    notes = []
    groups = by_task(runs)
    if len(groups) > 1:
        notes.append(
            (
                "warn",
                f"These runs belong to {len(groups)} tasks ({', '.join(t or 'not named' for t in groups)}). Losses, "
                "curvature and surfaces of different tasks have different scales: compare within a task.",
            )
        )
    for task, members in groups.items():
        where = f" (task {task})" if len(groups) > 1 else ""
        notes += [("warn", text + where) for text in _within(members)]
    return notes


def _within(runs: Sequence[Run]) -> list[str]:
    notes = []
    losses = {str(r.settings["loss"]) for r in runs if r.settings.get("loss")}
    if len(losses) > 1:
        notes.append(
            f"The runs were trained with different losses ({', '.join(sorted(losses))}). Where each was measured "
            "with its own, losses, heights and curvature have different units; accuracy and calibration "
            "can be compared."
        )
    for fact, why in MEASURED_ALIKE.items():
        values = {str(r.about[fact]) for r in runs if r.about.get(fact)}
        if len(values) > 1:
            notes.append(f"The runs were measured with different {fact} ({', '.join(sorted(values))}){why}.")
    draws: dict[str, set[str]] = {}
    samples: dict[str, set[int]] = {}
    for run in runs:
        found: Any = run.get("performance")
        if found is not None:
            for split, mark, n in zip(found.splits, found.fingerprints, np.ravel(found.samples), strict=False):
                draws.setdefault(split, set()).add(str(mark))
                samples.setdefault(split, set()).add(int(n))
    for split, marks in draws.items():
        if len(samples[split]) > 1:
            notes.append(
                f"The {split} numbers come from different numbers of samples "
                f"({', '.join(count(n) for n in sorted(samples[split]))}); the largest eigenvalue of a smaller sample "
                "is biased upward."
            )
        elif len(marks) > 1:
            notes.append(f"The {split} numbers come from different draws of the data; differences include that.")
    return notes
