"""Calibration of each class, the worst first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...comparison.shares import share_interval
from ..blocks import Block, Cell, Column, Folded, Row, Table
from ..numbers import count
from ..runs import MANY, Run
from ..value import Value, measured
from .cells import value_cell

#: Classes that are shown at once, and at most (chosen by us); the archive holds them all.
WORST, MOST = 5, 200

_COLUMNS = (
    Column("Class", wide=True),
    Column("class ECE", numeric=True, note="ECE of the class's own probability against how often it is the label"),
    Column("labels", numeric=True, note="samples whose label it is"),
    Column("mean probability", numeric=True, note="mean probability that the class is given, over all samples"),
    Column("frequency", numeric=True, note="share of the samples whose label it is"),
    Column("predicted", numeric=True, note="samples that are predicted as this class"),
    Column("confidence", numeric=True, note="mean confidence where it is predicted"),
    Column("right", numeric=True, note="share that is right where it is predicted, Clopper–Pearson 95%"),
    Column(
        "gap", numeric=True, note="confidence minus share that is right, where it is predicted; above 0: overconfident"
    ),
)


def per_class(runs: Sequence[Run]) -> list[Block]:
    """Return each run's worst classes by their ECE, and the others behind a line that opens them."""
    found: list[tuple[Run, Any]] = [(r, c) for r in runs if (c := r.get("calibration")) is not None]
    found = [(r, c) for r, c in found if c.class_ece is not None and len(c.class_ece) > 1]
    if not found:
        return []
    if len(found) > MANY:
        return [_worst_of_many(found)]
    classes = max(len(c.class_ece) for _, c in found)
    shown = {r.index: _rows(r, c) for r, c in found}
    few = min(WORST, classes)
    caption = "Classes one by one, each against the rest, the worst first."
    if classes > few:
        caption = f"The {few} worst classes of {classes}, each against the rest."
    blocks: list[Block] = [Table(caption, _COLUMNS, [(r.name, shown[r.index][:few]) for r, _ in found], sortable=False)]
    if classes > few:
        most = f"the {MOST} worst classes" if classes > MOST else f"all {classes} classes"
        rest = Table(
            f"Calibration of {most}.", _COLUMNS, [(r.name, shown[r.index][:MOST]) for r, _ in found], sortable=False
        )
        blocks.append(Folded(f"{most[0].upper()}{most[1:]}", [rest]))
    return blocks


def _worst_of_many(found: Sequence[tuple[Run, Any]]) -> Block:
    """Return the worst class of each of many runs: their archives hold the others."""
    rows = []
    for run, c in found:
        first, *cells = _rows(run, c)[0].cells
        rows.append(Row([Cell(run.name, sort=run.name), Cell(first.text, sort=first.text), *cells], run.index))
    columns = [Column("Run", wide=True), Column("class"), *_COLUMNS[1:]]
    return Folded(
        "The worst class of each run", (Table("Each against the rest.", columns, [("", rows)], sortable=True),)
    )


def _rows(run: Run, c: Any) -> list[Row]:
    """Return a row for each class, the largest class ECE first.

    Of several labels to each sample none is the predicted one, and each is there or not in its share of the samples.
    Where predictions are grouped, shares have no intervals: those of independent ones would be too narrow.
    """
    several = c.class_predicted is None
    total = max(int(c.samples) // (len(c.class_ece) if several else 1), 1)
    grouped = 0 < c.groups < total
    error = np.asarray(c.class_ece, dtype=float)
    rows = []
    for k in np.argsort(-np.where(np.isfinite(error), error, -1.0), kind="stable"):
        labels = int(c.class_counts[k])
        frequency = labels / total
        spread = math.nan if grouped else float(np.sqrt(frequency * (1 - frequency) / total))
        cells = [
            Cell(f"class {k}", sort=int(k)),
            value_cell(measured(error[k])),
            Cell(count(labels), sort=labels),
            value_cell(measured(c.class_probabilities[k])),
            value_cell(measured(frequency, spread)),
            *([value_cell(Value(missing="several labels"))] * 4 if several else _predicted(c, int(k), grouped)),
        ]
        rows.append(Row(cells, run.index))
    return rows


def _predicted(c: Any, k: int, grouped: bool) -> list[Cell]:
    """Return how often a class is predicted, how surely and how rightly."""
    predicted = int(c.class_predicted[k])
    right, gap = _right(float(c.class_confidences[k]), float(c.class_accuracies[k]), predicted, grouped)
    sure = measured(c.class_confidences[k]) if predicted else Value(missing="never")
    return [Cell(count(predicted), sort=predicted), value_cell(sure), value_cell(right), value_cell(gap)]


def _right(confidence: float, accuracy: float, n: int, grouped: bool) -> tuple[Value, Value]:
    """Return the share that is right where a class is predicted, and the confidence above it, with 95% intervals."""
    if not n:
        return Value(missing="never"), Value(missing="never")
    if grouped:
        return measured(accuracy), measured(confidence - accuracy)
    low, high = (float(x) for x in share_interval(np.round(accuracy * n), n))
    right = Value(accuracy, low=low, high=high, how="interval")
    return right, Value(confidence - accuracy, low=confidence - high, high=confidence - low, how="interval")
