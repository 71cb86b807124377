"""Measurements that have no section of their own: drawn from what they say about themselves."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table
from ..figures.generic import charts, scalars
from ..runs import Run
from . import section
from .missing import missing

#: Kinds that the other sections show.
SHOWN = frozenset(
    {"performance", "plane", "line", "eigenvalues", "trace", "sharpness", "scaled_curvature", "calibration"}
    | {"recalibration", "sample_scores"}
    | {"density", "diagonal", "sampling", "frobenius", "layers"}
    | {"stability", "batch_sharpness", "coherence", "reference"}
    | {"path", "connectivity", "trajectory", "eigenvalue_map", "basin", "range_test"}
)


@section(order=90)
def build(runs: Sequence[Run]) -> Section | None:
    """Return, for each other kind, a table of its scalars and a chart for each of its arrays."""
    kinds = dict.fromkeys(kind for r in runs for kind in r.results if kind not in SHOWN)
    blocks: list[Block] = []
    for kind in kinds:
        table = _table(kind, runs)
        if table:
            blocks.append(table)
        blocks += [Picture(chart) for chart in charts(kind, runs)]
        notes = missing(runs, kind, kind)
        if notes:
            blocks.append(Notes(notes))
    return Section("other", "Other measurements", blocks, "Other") if blocks else None


def _table(kind: str, runs: Sequence[Run]) -> Table | None:
    found = [(r, {name: rest for name, *rest in scalars(result)}) for r in runs if (result := r.get(kind)) is not None]
    names = dict.fromkeys(name for _, values in found for name in values)
    if not names:
        return None
    units = {name: values[name][2] for _, values in found for name in values}
    columns = [Column("Run", wide=True), *(Column(f"{n} ({units[n]})" if units[n] else n, numeric=True) for n in names)]
    rows = [
        Row(
            [
                Cell(run.name, sort=run.name),
                *(Cell(values[n][0], values[n][1]) if n in values else Cell("–", quiet=True) for n in names),
            ],
            run.index,
        )
        for run, values in found
    ]
    return Table(kind, columns, [("", rows)])
