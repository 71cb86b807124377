"""Stability: how far each run is from the thresholds of its own optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table, Text
from ..figures.dots import Compared, dots
from ..measures import stability_ratio
from ..numbers import given, number
from ..runs import Run
from ..value import Value, measured
from . import section
from .cells import value_cell
from .missing import missing

KINDS = {"stability": "margin", "batch_sharpness": "batch sharpness", "coherence": "coherence"}


@section(order=55)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the ratios to the thresholds as a dot plot, and what they are made of as a table."""
    if not any(r.results.get(kind) for r in runs for kind in KINDS):
        return None
    blocks: list[Block] = []
    compared = [
        Compared("largest eigenvalue", "share of the threshold", [stability_ratio(r) for r in runs]),
        Compared("batch sharpness", "share of 2 / learning rate", [_batch_ratio(r) for r in runs]),
    ]
    caption = "Shares of the threshold above which steps along the sharpest direction grow: 1 is the edge of stability."
    chart = dots("stability", "Margin to the stability threshold", caption, runs, compared)
    if chart:
        blocks.append(Picture(chart))
    blocks.append(_table(runs))
    blocks.append(
        Text(
            "The threshold is that of the optimizer's full-batch steps on a quadratic with its denominators held. "
            "Batch sharpness and coherence concern plain SGD alone."
        )
    )
    notes = [note for kind, what in KINDS.items() if _any(runs, kind) for note in missing(runs, kind, what)]
    if notes:
        blocks.append(Notes(notes))
    return Section("stability", "Stability", blocks)


def _any(runs: Sequence[Run], kind: str) -> bool:
    return any(r.results.get(kind) for r in runs)


def _batch_ratio(run: Run) -> Value:
    result: Any = run.get("batch_sharpness")
    if result is None:
        return Value(missing=run.missing("batch_sharpness"))
    threshold = float(result.threshold)
    if math.isnan(threshold):
        return Value(missing="no threshold: not plain SGD")
    return measured(float(result.value) / threshold, float(result.stderr) / threshold)


def _table(runs: Sequence[Run]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("optimizer"),
        Column("lr", numeric=True),
        Column("operator", note="whose largest eigenvalue: the Hessian, or the one preconditioned by the optimizer"),
        Column("λ max", numeric=True, note="its largest eigenvalue, ± its residual"),
        Column("threshold", numeric=True, note="the largest stable eigenvalue"),
        Column("λ / threshold", numeric=True, note="1 is the edge of stability"),
        Column("batch sharpness", numeric=True, note="E[g·H g] / E|g|² over batches, ± standard error"),
        Column("its threshold", numeric=True, note="2 / learning rate of plain SGD"),
        Column("coherence", numeric=True, note="how alike the samples' curvatures are, ± standard error"),
        Column("SGD diverges above", numeric=True, note="λ max beyond which plain SGD diverges in mean square"),
    ]
    rows = []
    for run in runs:
        margin: Any = run.get("stability")
        batch: Any = run.get("batch_sharpness")
        coherence: Any = run.get("coherence")
        if margin is None and batch is None and coherence is None:
            continue
        cells = [Cell(run.name, sort=run.name)]
        if margin is None:
            cells += [Cell("–", quiet=True)] * 6
        else:
            cells += [
                Cell(str(margin.optimizer)),
                Cell(given(float(margin.lr)), sort=float(margin.lr)),
                Cell(str(margin.operator)),
                value_cell(measured(margin.eigenvalue, margin.residual, "residual")),
                _plain(float(margin.threshold), margin.formula),
                _plain(float(margin.ratio)),
            ]
        for result, value in ((batch, "value"), (coherence, "sigma")):
            if result is None:
                cells += [Cell("–", quiet=True)] * 2
            else:
                cells += [value_cell(measured(getattr(result, value), result.stderr)), _plain(float(result.threshold))]
        rows.append(Row(cells, run.index))
    return Table("Thresholds of stability, and where each run stands.", columns, [("", rows)], sortable=len(rows) > 1)


def _plain(value: float, hint: str = "") -> Cell:
    return Cell("–", quiet=True) if math.isnan(value) else Cell(number(value), hint=hint, sort=value)
