"""The table of runs: settings, loss, accuracy, curvature, sharpness and calibration, each with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

from ..belonging import task_notes
from ..blocks import Block, Cell, Column, Notes, Row, Section, Table, Text
from ..measures import measures, setting, settings
from ..runs import Run
from ..value import Measure
from . import by_task, section
from .cells import measure_columns, setting_columns, sortable, value_cell
from .compare import comparable
from .seeds import over_seeds_table


@section(order=10)
def build(runs: Sequence[Run]) -> Section:
    """Return the table of runs, with what is the same in all of them above it."""
    names, same = settings(runs)
    every = measures(runs)
    columns = [m for m in every if any(m.read(r).known for r in runs)]
    absent = [m for m in every if m not in columns]
    heads = [Column("Run", wide=True, key="run"), *setting_columns(names, runs), *measure_columns(columns)]
    groups = [
        (f"Task {task}" if task else "Task not named", [_row(r, names, columns) for r in members])
        for task, members in by_task(runs).items()
    ]
    several = len(runs) > 1
    seeds = over_seeds_table(runs, names, columns)
    blocks: list[Block] = [seeds] if seeds else []
    blocks.append(
        Table(_caption(runs), heads, groups, sortable=True, picker=True, id="runs-table", filter=True)
        if several
        else _of_one(runs[0], names, columns)
    )
    if same:
        told = "; ".join(f"{k} {v}" for k, v in same.items())
        blocks.append(Text(f"{'The same in every run' if several else 'Settings'}: {told}."))
    if absent:
        told = ", ".join(m.title for m in absent)
        blocks.append(Text(f"Not measured{' in any run' if several else ''}: {told}."))
    notes = [*_only_recorded(runs), *task_notes(runs), *comparable(runs)]
    if notes:
        blocks.append(Notes(notes))
    return Section("runs", "Runs", blocks)


def _only_recorded(runs: Sequence[Run]) -> list[tuple[str, str]]:
    found = [r.name for r in runs if r.only_recorded]
    if not found:
        return []
    names = ", ".join(found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
    told = (
        f"Only recorded, not measured afterwards: {names}. The numbers are the last ones of the record; “step” says "
        "after how many steps a probe measured them, on the samples that the probe was given."
    )
    return [("info", told)]


def _caption(runs: Sequence[Run]) -> str:
    what = "One run." if len(runs) == 1 else f"{len(runs)} runs; click a heading to sort."
    return (
        f"{what} Small print under a number: ± its standard error, ± the residual of an eigenvalue, or a 95% interval."
    )


def _of_one(run: Run, names: Sequence[str], columns: Sequence[Measure]) -> Table:
    """Return the table of a single run: a row for each number, so that none stands beyond the edge of the page."""
    groups: dict[str, list[Row]] = {}
    for measure in columns:
        cell = value_cell(measure.read(run))
        groups.setdefault(measure.group, []).append(Row([Cell(measure.label), cell, Cell(measure.note)]))
    told = [Row([Cell(n), Cell(setting(run, n)), Cell("")]) for n in names]
    heads = [Column(run.name, wide=True), Column("value", numeric=True), Column("what it is", wide=True)]
    return Table(_caption([run]), heads, [("Settings", told)] * bool(told) + list(groups.items()), id="runs-table")


def _row(run: Run, names: Sequence[str], columns: Sequence[Measure]) -> Row:
    sub = "" if run.status in ("complete", "") else run.status
    first = Cell(run.name, sub, sort=run.name, hint=run.checkpoint)
    told = [setting(run, n) for n in names]
    cells = [first, *(Cell(t, sort=sortable(run, n, t)) for n, t in zip(names, told, strict=True))]
    return Row([*cells, *(value_cell(m.read(run)) for m in columns)], run.index)
