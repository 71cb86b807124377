"""Calibration: can the model's confidence be trusted?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table
from ..figures.calibration import reliability
from ..figures.confidence import confidences
from ..figures.recalibration import before_and_after
from ..figures.risk_coverage import risk_coverage
from ..numbers import count, number
from ..runs import Run
from ..value import Value, measured
from . import by_task, section
from .cells import value_cell
from .differences import differences
from .missing import missing
from .per_class import per_class


@section(order=40)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the diagrams as they are and recalibrated, how the runs differ, and the scores behind them."""
    if not any(r.results.get("calibration") for r in runs):
        return None
    blocks: list[Block] = [Picture(c) for c in (reliability(runs), before_and_after(runs)) if c]
    blocks += _unmended(runs)
    found: list[tuple[Run, Any]] = [(r, c) for r in runs if (c := r.get("calibration")) is not None]
    if found:
        blocks.append(_scores(found))
        if len({(len(c.counts), str(c.convention)) for _, c in found}) > 1:
            blocks.append(
                Notes([("warn", "The runs were binned differently: their ECE is comparable in the differences only.")])
            )
    for members in by_task(runs).values():
        blocks += differences(members)
    blocks += [Picture(c) for c in (confidences(runs), risk_coverage(runs)) if c]
    blocks += per_class(runs)
    notes = missing(runs, "calibration", "calibration")
    if notes:
        blocks.append(Notes(notes))
    return Section("calibration", "Calibration", blocks)


def _unmended(runs: Sequence[Run]) -> list[Block]:
    """Return, by the reason, which runs have no recalibration where it was tried."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        result = run.get("calibration")
        if result is not None and run.get("recalibration") is None:
            for text in result.warnings:
                if text.startswith("no ") and ("temperature" in text or "recalibration" in text):
                    reasons.setdefault(text, []).append(run.name)
    items = [("info", f"Not recalibrated: {', '.join(names)}: {text}.") for text, names in reasons.items()]
    return [Notes(items)] if items else []


#: Scores without an uncertainty of their own: field, label, note.
_PLAIN = (
    ("smooth_ece", "smooth ECE", "calibration error without bins, at its own bandwidth (share)"),
    ("mce", "MCE", "largest gap of a bin (share)"),
)


def _scores(found: Sequence[tuple[Run, Any]]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("ECE", numeric=True, note="expected calibration error at these bins (share), 95% interval"),
        Column("p", numeric=True, note="how often a calibrated model would show at least this ECE at these bins"),
        Column("T", numeric=True, note="fitted temperature: above 1 the model is overconfident"),
        *(Column(label, numeric=True, note=note) for _, label, note in _PLAIN),
        Column("debiased L2", numeric=True, note="squared calibration error without its upward bias, floored at 0"),
        Column("Brier", numeric=True, note="mean squared error of the probabilities"),
        Column("NLL", numeric=True, note="mean negative log likelihood (nats)"),
        Column("accuracy", numeric=True, note="share of right top labels"),
        Column("AURC", numeric=True, note="area under the risk-coverage curve: mean error rate of the surest (share)"),
        Column("samples", numeric=True),
        Column("bins", numeric=True),
        Column("convention", note="how bins and edges are defined"),
    ]
    rows = []
    for run, c in found:
        low, high = (float(b) for b in c.ece_interval)
        p = float(c.calibration_p_value)
        cells = [
            value_cell(Value(float(c.ece), low=low, high=high, how="interval")),
            Cell(number(p, 2), sort=p) if p == p else value_cell(Value(missing="not computed")),
            value_cell(_temperature(c)),
            *(value_cell(_or(getattr(c, name))) for name, _, _ in _PLAIN),
            value_cell(_squared(c)),
            value_cell(measured(c.brier, c.brier_stderr)),
            value_cell(measured(c.nll, c.nll_stderr)),
            value_cell(measured(c.accuracy, c.accuracy_stderr)),
            value_cell(_or(c.aurc)),
        ]
        samples, bins = int(c.samples), len(c.counts)
        tail = [Cell(count(samples), sort=samples), Cell(str(bins), sort=bins), Cell(str(c.convention))]
        rows.append(Row([Cell(run.name, sort=run.name), *cells, *tail], run.index))
    return Table("Scores of all held-out predictions, as they are.", columns, [("", rows)], sortable=len(rows) > 1)


def _temperature(c: Any) -> Value:
    if c.temperature == c.temperature:
        return measured(c.temperature, c.temperature_stderr)
    none = any(w.startswith("no temperature: no minimum") for w in c.warnings)
    return Value(missing="no minimum" if none else "not fitted")


def _squared(c: Any) -> Value:
    bounds = getattr(c, "debiased_l2_interval", None)
    if bounds is None:
        return measured(c.debiased_l2)
    low, high = (float(b) for b in bounds)
    return Value(float(c.debiased_l2), low=low, high=high, how="interval")


def _or(value: float) -> Value:
    return measured(value) if value == value else Value(missing="not computed")
