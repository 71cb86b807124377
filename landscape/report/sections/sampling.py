"""How far the numbers move with the samples that they were measured on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..blocks import Block, Cell, Column, Notes, Row, Section, Table, Text
from ..numbers import count, interval, number, uncertain
from ..runs import Run
from . import section
from .missing import missing


@section(order=56)
def build(runs: Sequence[Run]) -> Section | None:
    """Return a table of every number that was followed over parts of its draw."""
    if not any(r.results.get("sampling") for r in runs):
        return None
    blocks: list[Block] = [
        Text(
            "A number measured on a draw of samples moves when others are drawn, and some are biased: the largest "
            "eigenvalue lies too high on few samples. Both follow from disjoint parts of the draw."
        ),
        _table(runs),
    ]
    notes = missing(runs, "sampling", "sampling error")
    if notes:
        blocks.append(Notes(notes))
    return Section("sampling", "Sampling error", blocks, "Sampling")


def _table(runs: Sequence[Run]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("number"),
        Column("measured", numeric=True, note="on the draw, ± the standard error of drawing other samples"),
        Column("bias", numeric=True, note="how far a draw of this size lies above the target on average"),
        Column("estimate", numeric=True, note="less the bias where it is resolved, with the 95% interval, all errors"),
        Column("called", note="an upper estimate where the bias can't be resolved"),
        Column("samples", numeric=True),
        Column("of", numeric=True, note="samples that the target is taken over"),
    ]
    rows = []
    for run in runs:
        found: Any = run.get("sampling")
        if found is None:
            continue
        bounds = np.asarray(found.interval, dtype=float)
        for i, name in enumerate(found.names):
            value, error = uncertain(float(found.values[i]), float(found.stderr[i]))
            estimate = float(found.estimates[i])
            whole = float(found.population)
            cells = [
                Cell(run.name, sort=run.name),
                Cell(name),
                Cell(value, f"± {error}" if error else "", sort=float(found.values[i])),
                Cell(number(float(found.bias[i]), 2), sort=float(found.bias[i])),
                Cell(*interval(estimate, float(bounds[i, 0]), float(bounds[i, 1])), sort=estimate),
                Cell(found.calls[i]),
                Cell(count(int(found.samples)), sort=int(found.samples)),
                Cell(count(int(whole)) if math.isfinite(whole) else "the source", sort=whole),
            ]
            rows.append(Row(cells, run.index))
    return Table("Numbers and how far they move with the data.", columns, [("", rows)], sortable=len(rows) > 1)
