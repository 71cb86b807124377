"""The runs grouped over their seeds: the mean of each setting, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from ...comparison.seeds import SEEDS, SeedMean, over_seeds, seed_groups
from ..blocks import Cell, Column, Row, Table
from ..measures import setting
from ..runs import Run
from ..value import Measure, Value
from . import by_task
from .cells import measure_columns, setting_columns, sortable, value_cell


def over_seeds_table(runs: Sequence[Run], names: Sequence[str], columns: Sequence[Measure]) -> Table | None:
    """Return the table with a row for each setting, None where no two runs differ in their seed alone."""
    told = [n for n in names if n not in SEEDS]
    groups: list[tuple[str, list[Row]]] = []
    repeated = False
    for task, members in by_task(runs).items():
        found = of_settings(members)
        repeated |= any(len(group) > 1 for group in found)
        groups.append((f"Task {task}" if task else "Task not named", [_row(g, told, columns) for g in found]))
    if not repeated:
        return None
    heads = [Column("Setting", wide=True, key="run"), Column("seeds", numeric=True, key="seeds")]
    heads += [*setting_columns(told, runs), *measure_columns(columns)]
    caption = (
        "Mean over seeds; small print: its 95% interval (Student’s t over the runs, so it covers what another "
        "seed would change; two or three seeds make it wide), cut where the number can’t lie."
    )
    return Table(caption, heads, groups, sortable=True, id="seeds-table", filter=True)


def _row(members: Sequence[Run], names: Sequence[str], columns: Sequence[Measure]) -> Row:
    first = members[0]
    told = [setting(first, n) for n in names]
    title = shared_name(members)
    cells = [
        Cell(title, hint="; ".join(r.name for r in members), sort=title),
        Cell(str(len(members)), sort=float(len(members))),
        *(Cell(t, sort=sortable(first, n, t)) for n, t in zip(names, told, strict=True)),
    ]
    return Row([*cells, *(_mean(m, members) for m in columns)])


def of_settings(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs of one task that differ in their seed alone, a list for each setting."""
    return [[runs[p] for p in places] for places in seed_groups([r.settings for r in runs], [r.step for r in runs])]


def mean_value(measure: Measure, runs: Sequence[Run]) -> tuple[Value, SeedMean]:
    """Return the mean of a number over runs of one setting, as it is shown, and as it was computed.

    The interval is cut at the number's limits, and left out where all seeds gave the same number (a few hundred samples
    have few accuracies): that they agree doesn't say that the next one would.
    """
    values = [measure.read(r) for r in runs]
    found = over_seeds([v.number for v in values])
    if found.seeds == 0:
        return values[0] if values[0].missing else Value(missing="not finite"), found
    if found.seeds > 1 and found.spread == 0:
        return Value(found.mean), found
    least, most = measure.limits
    return Value(found.mean, low=max(found.low, least), high=min(found.high, most), how="interval"), found


def _mean(measure: Measure, runs: Sequence[Run]) -> Cell:
    value, found = mean_value(measure, runs)
    cell = value_cell(value)
    if found.seeds == 1:
        return Cell(cell.text, "one seed", sort=cell.sort, hint="one seed: no interval")
    if found.seeds > 1 and found.spread == 0:
        cell = Cell(cell.text, "the same in all", sort=cell.sort, hint="all seeds gave this number: no interval")
    fewer = f", {found.seeds} of {len(runs)} seeds" if 0 < found.seeds < len(runs) else ""
    return Cell(cell.text, cell.sub + fewer, sort=cell.sort, hint=cell.hint)


def shared_name(runs: Sequence[Run]) -> str:
    """Return what the names of the runs have in common: their beginning, up to a word's end."""
    names = [r.name for r in runs]
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
