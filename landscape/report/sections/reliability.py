"""Calibration: can the model's confidence be trusted?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table
from ..figures.calibration import reliability
from ..measures import Value, measured
from ..numbers import count, number
from ..runs import Run
from . import section
from .missing import missing
from .table import value_cell


@section(order=40)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the reliability diagrams and the scores behind them."""
    if not any(r.results.get("calibration") for r in runs):
        return None
    chart = reliability(runs)
    blocks: list[Block] = [Picture(chart)] if chart else []
    found = [(r, c) for r in runs if (c := r.get("calibration")) is not None]
    if found:
        blocks.append(_scores(found))
    notes = missing(runs, "calibration", "calibration")
    if notes:
        blocks.append(Notes(notes))
    return Section("calibration", "Calibration", blocks)


def _scores(found: Sequence[tuple[Run, Any]]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("ECE", numeric=True, note="expected calibration error at these bins (share), 95% interval"),
        Column("p", numeric=True, note="how often a calibrated model would show at least this ECE at these bins"),
        Column(
            "ECE → after T",
            numeric=True,
            note="before and after temperature scaling, on samples that the fit has not seen",
        ),
        Column("T", numeric=True, note="fitted temperature: above 1 the model is overconfident"),
        Column("MCE", numeric=True, note="largest gap of a bin (share)"),
        Column("debiased L2", numeric=True, note="squared calibration error without its upward bias, floored at 0"),
        Column("Brier", numeric=True, note="mean squared error of the probabilities"),
        Column("NLL", numeric=True, note="mean negative log likelihood (nats)"),
        Column("accuracy", numeric=True, note="share of right top labels"),
        Column("samples", numeric=True),
        Column("bins", numeric=True),
        Column("convention", note="how bins and edges are defined"),
    ]
    rows = []
    for run, c in found:
        low, high = (float(b) for b in c.ece_interval)
        values = [
            Value(float(c.ece), low=low, high=high, how="interval"),
            Value(missing="not computed"),
            _or(c.ece_after_temperature, "not fitted"),
            measured(c.temperature, c.temperature_stderr)
            if c.temperature == c.temperature
            else Value(missing="not fitted"),
            measured(c.mce),
            measured(c.debiased_l2),
            measured(c.brier, c.brier_stderr),
            measured(c.nll, c.nll_stderr),
            measured(c.accuracy, c.accuracy_stderr),
        ]
        cells = [value_cell(v) for v in values]
        if c.calibration_p_value == c.calibration_p_value:
            cells[1] = Cell(number(c.calibration_p_value, 2), sort=float(c.calibration_p_value))
        if c.ece_before_temperature == c.ece_before_temperature and c.ece_after_temperature == c.ece_after_temperature:
            text = f"{number(c.ece_before_temperature, 2)} → {number(c.ece_after_temperature, 2)}"
            cells[2] = Cell(text, sort=float(c.ece_after_temperature))
        samples, bins = int(c.samples), len(c.counts)
        tail = [Cell(count(samples), sort=samples), Cell(str(bins), sort=bins), Cell(str(c.convention))]
        rows.append(Row([Cell(run.name, sort=run.name), *cells, *tail], run.index))
    return Table("Scores of the held-out predictions.", columns, [("", rows)], sortable=len(rows) > 1)


def _or(value: float, reason: str) -> Value:
    return measured(value) if value == value else Value(missing=reason)
