"""The runs grouped over their seeds: the mean of each setting, and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...comparison.seeds import SEEDS, over_seeds, seed_groups
from ..blocks import Cell, Column, Row, Table
from ..measures import Measure, Value, setting
from ..runs import Run
from . import by_task
from .cells import measure_columns, setting_columns, sortable, value_cell


def over_seeds_table(runs: Sequence[Run], names: Sequence[str], columns: Sequence[Measure]) -> Table | None:
    """Return the table with a row for each setting, None where no two runs differ in their seed alone."""
    told = [n for n in names if n not in SEEDS]
    groups: list[tuple[str, list[Row]]] = []
    repeated = False
    for task, members in by_task(runs).items():
        found = seed_groups([r.settings for r in members], [r.step for r in members])
        repeated |= any(len(places) > 1 for places in found)
        rows = [_row([members[p] for p in places], told, columns) for places in found]
        groups.append((f"Task {task}" if task else "Task not named", rows))
    if not repeated:
        return None
    heads = [Column("Setting", wide=True, key="run"), Column("seeds", numeric=True, key="seeds")]
    heads += [*setting_columns(told), *measure_columns(columns)]
    caption = (
        "Mean over seeds; small print: its 95% interval (Student’s t over the runs, so it covers what another "
        "seed would change; two or three seeds make it wide)."
    )
    return Table(caption, heads, groups, sortable=True, id="seeds-table", filter=True)


def _row(members: Sequence[Run], names: Sequence[str], columns: Sequence[Measure]) -> Row:
    first = members[0]
    told = [setting(first, n) for n in names]
    title = _shared([r.name for r in members])
    cells = [
        Cell(title, hint="; ".join(r.name for r in members), sort=title),
        Cell(str(len(members)), sort=float(len(members))),
        *(Cell(t, sort=sortable(first, n, t)) for n, t in zip(names, told, strict=True)),
    ]
    return Row([*cells, *(_mean([m.read(r) for r in members]) for m in columns)])


def _mean(values: Sequence[Value]) -> Cell:
    found = over_seeds([v.number for v in values])
    if found.seeds == 0:
        return value_cell(values[0] if values[0].missing else Value(missing="not finite"))
    cell = value_cell(Value(found.mean, low=found.low, high=found.high, how="interval"))
    if math.isnan(found.low):
        return Cell(cell.text, "one seed", sort=cell.sort, hint="one seed: no interval")
    fewer = f", {found.seeds} of {len(values)} seeds" if found.seeds < len(values) else ""
    return Cell(cell.text, cell.sub + fewer, sort=cell.sort)


def _shared(names: Sequence[str]) -> str:
    """Return what the names of the runs have in common: their beginning, up to a word's end."""
    if len(names) == 1:
        return names[0]
    words = [n.split(" ") for n in names]
    common = []
    for together in zip(*words, strict=False):
        if len(set(together)) > 1:
            break
        common.append(together[0])
    if common and common[-1].strip(",") in SEEDS:
        common.pop()
    return " ".join(common).rstrip(" ,") or f"{names[0]} and {len(names) - 1} more"
