"""Curvature: both ends of the spectrum, and the trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table
from ..figures.dots import Compared, dots
from ..figures.eigenvalues import spectrum
from ..measures import measures
from ..numbers import count
from ..runs import Run
from . import section
from .missing import missing
from .table import value_cell


@section(order=50)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the eigenvalues, the trace across runs, and what was spent on them."""
    if not any(r.results.get("eigenvalues") or r.results.get("trace") for r in runs):
        return None
    blocks: list[Block] = []
    chart = spectrum(runs)
    if chart:
        blocks.append(Picture(chart))
    known = {m.key: m for m in measures(runs)}
    compared = Compared("trace", "trace (loss / parameter²)", [known["trace"].read(r) for r in runs])
    traces = dots(
        "trace",
        "Trace",
        "The sum of all eigenvalues, estimated from random vectors; bars are 95% intervals.",
        runs,
        [compared],
    )
    if traces:
        blocks.append(Picture(traces))
    blocks.append(_table(runs))
    notes = missing(runs, "eigenvalues", "eigenvalues") + missing(runs, "trace", "trace")
    if notes:
        blocks.append(Notes(notes))
    return Section("curvature", "Curvature", blocks)


def _table(runs: Sequence[Run]) -> Table:
    known = {m.key: m for m in measures(runs)}
    columns = [
        Column("Run", wide=True),
        Column("operator"),
        Column("split"),
        *(Column(known[k].label, numeric=True, note=known[k].note) for k in ("lambda_max", "lambda_min", "trace")),
        Column("converged", numeric=True, note="eigenpairs whose residual is within the tolerance, of those asked for"),
        Column("parameters", numeric=True, note="dimension of the operator"),
        Column("products", numeric=True, note="operator-vector products spent on eigenvalues and trace"),
    ]
    rows = []
    for run in runs:
        pairs: Any = run.get("eigenvalues")
        trace: Any = run.get("trace")
        if pairs is None and trace is None:
            continue
        done, asked, parameters = 0, 0, 0
        if pairs is not None:
            flags = np.concatenate([np.ravel(pairs.converged), np.ravel(pairs.smallest_converged)]).astype(bool)
            done, asked, parameters = int(flags.sum()), len(flags), int(pairs.parameters)
        products = sum(int(r.products) for r in (pairs, trace) if r is not None)
        cells = [
            Cell(run.name, sort=run.name),
            Cell(str(pairs.operator) if pairs is not None else "–"),
            Cell(str((pairs if pairs is not None else trace).split) or "–"),
            *(value_cell(known[k].read(run)) for k in ("lambda_max", "lambda_min", "trace")),
            Cell(f"{done} of {asked}" if asked else "–", sort=done / asked if asked else None),
            Cell(count(parameters) if parameters else "–", sort=parameters),
            Cell(count(products), sort=products),
        ]
        rows.append(Row(cells, run.index))
    return Table("Curvature of each run.", columns, [("", rows)], sortable=len(rows) > 1)
