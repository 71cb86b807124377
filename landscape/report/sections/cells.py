"""How settings, numbers and their uncertainty stand in a table."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Cell, Column
from ..measures import setting
from ..runs import Run
from ..value import Measure, Value


def setting_columns(names: Sequence[str], runs: Sequence[Run]) -> list[Column]:
    """Return the columns of settings: those that are the same in all are put away first, loss and schedule last."""

    def rank(name: str) -> int:
        if len({setting(run, name) for run in runs}) == 1:
            return 3
        return 0 if name in ("loss", "schedule") else 1

    return [Column(n, "Settings", key=n, rank=rank(n)) for n in names]


def measure_columns(columns: Sequence[Measure]) -> list[Column]:
    """Return the columns of measures, by the names that a filter knows them by."""
    return [Column(m.label, m.group, numeric=True, note=m.note, key=m.key, rank=m.rank) for m in columns]


def sortable(run: Run, name: str, text: str) -> float | str:
    """Return what a setting sorts by: its number where it is one, else its text."""
    value = run.settings.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else text


def value_cell(value: Value) -> Cell:
    """Return the cell of a number: itself, its uncertainty below, or why it is missing."""
    if value.missing:
        short = value.missing.split(":")[0]
        return Cell(short, hint=value.missing, quiet=True)
    text, spread = value.text()
    hint = f"measured while it trained, after {value.when}" if value.when else ""
    sub = ", ".join(p for p in (spread, value.when) if p)
    return Cell(text, sub, sort=value.number if value.known else None, hint=hint)
