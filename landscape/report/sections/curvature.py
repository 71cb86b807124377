"""Curvature: both ends of the spectrum, the trace and the Frobenius norm, and the layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table
from ..figures.dots import Compared, dots
from ..figures.eigenvalues import spectrum
from ..figures.layers import layer_rows
from ..measures import measures
from ..numbers import count
from ..runs import Run
from ..value import Value
from . import section
from .cells import value_cell
from .missing import missing

#: Kinds of results that this section shows, and what they are called.
KINDS = {
    "eigenvalues": "eigenvalues",
    "trace": "trace",
    "frobenius": "Frobenius norm",
    "layers": "curvature layer by layer",
}


@section(order=50)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the eigenvalues, the trace across runs, and what was spent on them."""
    if not any(r.results.get(kind) for r in runs for kind in KINDS):
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
    layers = layer_rows(runs)
    if layers:
        blocks.append(Picture(layers))
    blocks.append(_table(runs))
    # What does not run by default is missed only beside runs that have it.
    asked = [k for k in KINDS if k in ("eigenvalues", "trace") or any(r.results.get(k) for r in runs)]
    notes = [note for kind in asked for note in missing(runs, kind, KINDS[kind])]
    if notes:
        blocks.append(Notes(notes))
    return Section("curvature", "Curvature", blocks)


def _table(runs: Sequence[Run]) -> Table:
    known = {m.key: m for m in measures(runs)}
    normed = any(r.get("frobenius") is not None for r in runs)
    columns = [
        Column("Run", wide=True),
        Column("operator"),
        Column("split"),
        *(Column(known[k].label, numeric=True, note=known[k].note) for k in ("lambda_max", "lambda_min", "trace")),
        *(
            [Column("Frobenius norm", numeric=True, note="root of the sum of the squared eigenvalues")]
            if normed
            else []
        ),
        Column("converged", numeric=True, note="eigenpairs within the tolerance, of those asked for"),
        Column("parameters", numeric=True, note="dimension of the operator"),
        Column("products", numeric=True, note="operator-vector products spent on eigenvalues, trace and norm"),
    ]
    rows = []
    for run in runs:
        pairs: Any = run.get("eigenvalues")
        trace: Any = run.get("trace")
        norm: Any = run.get("frobenius")
        if pairs is None and trace is None and norm is None:
            continue
        done, asked, parameters = 0, 0, 0
        if pairs is not None:
            flags = np.concatenate([np.ravel(pairs.converged), np.ravel(pairs.smallest_converged)]).astype(bool)
            done, asked, parameters = int(flags.sum()), len(flags), int(pairs.parameters)
        made = [r for r in (pairs, trace, norm) if r is not None]
        products = sum(int(r.products) for r in made)
        cells = [
            Cell(run.name, sort=run.name),
            Cell(str(pairs.operator) if pairs is not None else "–"),
            Cell(str(made[0].split) or "–"),
            *(value_cell(known[k].read(run)) for k in ("lambda_max", "lambda_min", "trace")),
            *([value_cell(_norm(run))] if normed else []),
            Cell(f"{done} of {asked}" if asked else "–", sort=done / asked if asked else None),
            Cell(count(parameters) if parameters else "–", sort=parameters),
            Cell(count(products), sort=products),
        ]
        rows.append(Row(cells, run.index))
    return Table("Curvature of each run.", columns, [("", rows)], sortable=len(rows) > 1)


def _norm(run: Run) -> Value:
    norm: Any = run.get("frobenius")
    return Value(missing=run.missing("frobenius")) if norm is None else Value(float(norm.value), float(norm.stderr))
