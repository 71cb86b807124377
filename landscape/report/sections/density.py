"""Spectral densities, overlaid, and what follows from the same random vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table
from ..figures.density import densities
from ..numbers import count, number
from ..runs import Run
from ..value import measured
from . import section
from .cells import value_cell
from .missing import missing


@section(order=52)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the densities of all runs that have one."""
    if not any(r.results.get("density") for r in runs):
        return None
    chart = densities(runs)
    blocks: list[Block] = [Picture(chart)] if chart else []
    blocks.append(_table(runs))
    notes = missing(runs, "density", "spectral density")
    if notes:
        blocks.append(Notes(notes))
    return Section("density", "Spectral density", blocks, "Density")


def _table(runs: Sequence[Run]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("trace", numeric=True, note="sum of the eigenvalues, ± standard error over the vectors, rough if few"),
        Column("Frobenius norm", numeric=True, note="root of the sum of their squares, ± standard error"),
        Column("negative share", numeric=True, note="of the sum of |eigenvalue|, how much lies below zero"),
        Column("largest node", numeric=True, note="of the quadrature: the largest eigenvalue, once it has converged"),
        Column("smallest node", numeric=True),
        Column("kernel"),
        Column(
            "width", numeric=True, note="standard deviation of the Gaussian that smooths, in units of the eigenvalue"
        ),
        Column("vectors × steps", numeric=True),
        Column("products", numeric=True),
    ]
    rows = []
    for run in runs:
        d: Any = run.get("density")
        if d is None:
            continue
        cells = [
            Cell(run.name, sort=run.name),
            *(
                value_cell(measured(getattr(d, name), getattr(d, f"{name}_stderr")))
                for name in ("trace", "frobenius", "negative")
            ),
            Cell(number(float(d.largest)), sort=float(d.largest)),
            Cell(number(float(d.smallest)), sort=float(d.smallest)),
            Cell(str(d.kernel)),
            Cell(number(float(d.sigma), 2), sort=float(d.sigma)),
            Cell(f"{len(d.nodes)} × {d.settings.get('steps', '–')}", sort=len(d.nodes)),
            Cell(count(int(d.products)), sort=int(d.products)),
        ]
        rows.append(Row(cells, run.index))
    return Table("Numbers from the quadrature.", columns, [("", rows)], sortable=len(rows) > 1)
