"""Second opinions: the numbers of other programs beside ours, each difference beside its tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..blocks import Block, Cell, Column, Notes, Row, Section, Table
from ..numbers import number
from ..runs import Run
from . import section
from .missing import missing


@section(order=57)
def build(runs: Sequence[Run]) -> Section | None:
    """Return a row for each comparison of each run."""
    if not any(r.results.get("reference") for r in runs):
        return None
    columns = [
        Column("Run", wide=True),
        Column("Quantity"),
        Column("Program"),
        Column("ours", numeric=True),
        Column("theirs", numeric=True),
        Column("difference", numeric=True, note="relative to the larger of the two"),
        Column("tolerance", numeric=True, note="from residuals, standard errors and the program's stopping rule"),
        Column("agrees"),
    ]
    rows = []
    for run in runs:
        result: Any = run.get("reference")
        if result is None:
            continue
        numbers = [np.ravel(getattr(result, n)).astype(float) for n in ("ours", "theirs", "difference", "tolerance")]
        for at, (name, tool) in enumerate(zip(result.names, result.tools, strict=True)):
            values = [float(column[at]) for column in numbers]
            agrees = values[2] <= values[3]
            cells = [Cell(run.name, sort=run.name), Cell(name), Cell(tool)]
            cells += [Cell(number(v, digits), sort=v) for v, digits in zip(values, (6, 6, 2, 2), strict=True)]
            rows.append(Row([*cells, Cell("", level="pass" if agrees else "warn")], run.index))
    blocks: list[Block] = []
    if rows:
        blocks.append(Table("What ARPACK and PyHessian find on the same model and data.", columns, [("", rows)]))
    notes = missing(runs, "reference", "second opinion")
    if notes:
        blocks.append(Notes(notes))
    return Section("second-opinions", "Second opinions", blocks)
