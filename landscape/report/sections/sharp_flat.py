"""Sharp against flat: does any measure rank these runs like their generalization gap?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...comparison.ranks import FEWEST, kendall
from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table, Text
from ..figures.scatter import scatter, title
from ..measures import Measure, measures
from ..numbers import number
from ..runs import Run
from . import by_task, section

CAUTION = (
    "Read this with care. Most sharpness measures can be changed without changing the function (Dinh et al. 2017, "
    "“Sharp minima can generalize for deep nets”), and across modern settings sharpness often does not rank models "
    "like their generalization, sometimes the reverse (Andriushchenko et al. 2023, “A modern look at the relationship "
    "between sharpness and generalization”). A correlation among runs that share a task is a description of these "
    "runs, no law."
)


@section(order=80)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the scatter plot, the rank correlations within each task, and the caution."""
    across = [m for m in measures(runs) if m.sharpness and any(m.read(r).known for r in runs)]
    up = [m for m in measures(runs) if m.key in ("gap_loss", "gap_accuracy") and any(m.read(r).known for r in runs)]
    if len(runs) < 2 or not across or not up:
        return None
    chart = scatter(runs, across, up)
    blocks: list[Block] = [Picture(chart)] if chart else []
    groups = by_task(runs)
    few = []
    for task, members in groups.items():
        rows = _rows(members, across, up)
        where = f" of task {task or 'not named'}" if len(groups) > 1 else ""
        if rows:
            blocks.append(Table(f"Rank correlation with the gap, over the runs{where}.", _COLUMNS, [("", rows)]))
        else:
            n = len(members)
            few.append(
                f"With {n} run{'s' if n > 1 else ''}{where} nothing can be concluded about whether sharper runs "
                f"generalize worse or better: no rank correlation is given below {FEWEST} runs."
            )
    if few:
        blocks.append(Notes([("info", text) for text in few]))
    blocks.append(Text(CAUTION))
    return Section("sharp-flat", "Sharp against flat", blocks)


_COLUMNS = (
    Column("Measure", wide=True),
    Column("Gap"),
    Column(
        "Kendall’s τ", numeric=True, note="tau-b; +1: the runs are ranked alike, −1: in reverse; with its 95% interval"
    ),
    Column(
        "p",
        numeric=True,
        note="share of random orders whose |τ| is at least as large (one test of several: not corrected)",
    ),
    Column("runs", numeric=True),
    Column("What it says", wide=True),
)


def _rows(runs: Sequence[Run], across: Sequence[Measure], up: Sequence[Measure]) -> list[Row]:
    rows = []
    for x in across:
        for y in up:
            r = kendall(np.array([x.read(run).number for run in runs]), np.array([y.read(run).number for run in runs]))
            if r.tau == r.tau:
                says = (
                    "the interval holds 0: no ranking shown"
                    if r.low <= 0 <= r.high
                    else f"in these runs, a larger value goes with a {'larger' if r.tau > 0 else 'smaller'} gap"
                )
                bounds = f"[{number(r.low, 2)}, {number(r.high, 2)}]"
                tau = Cell(number(r.tau, 2), bounds, sort=r.tau)
                cells = [
                    Cell(x.label),
                    Cell(title(y)),
                    tau,
                    Cell("< 0.001" if r.p_value < 0.001 else number(r.p_value, 2), sort=r.p_value),
                    Cell(str(r.runs)),
                    Cell(says),
                ]
                rows.append(Row(cells))
    return rows
