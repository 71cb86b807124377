"""Sharpness: how much the loss rises around the weights, and which of these numbers a rescaling changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..blocks import Block, Cell, Column, Notes, Picture, Row, Section, Table, Text
from ..figures.dots import Compared, dots
from ..measures import SHARPNESS, measures, sharpness_names
from ..numbers import given
from ..runs import Run
from ..value import Measure
from . import section
from .cells import value_cell
from .missing import missing

#: With more runs than this their values stand in the table of runs only (chosen by us: columns stay on a screen).
SHOWN_ACROSS = 6


@section(order=70)
def build(runs: Sequence[Run]) -> Section | None:
    """Return a dot plot and a row for each measure."""
    if not any(r.results.get(kind) for r in runs for kind in SHARPNESS):
        return None
    columns = [m for m in measures(runs) if m.key.startswith(tuple(SHARPNESS.values()))]
    known = {m.label: _facts(runs, m.label) for m in columns}
    blocks: list[Block] = []
    if columns:
        compared = [
            Compared(m.label, _unit(runs, m.label), [m.read(r) for r in runs], _radius(known[m.label][0]))
            for m in columns
        ]
        caption = (
            "The rise of the loss in a neighborhood of the weights; bars are 95% intervals over batches or draws. Each "
        )
        caption += "measure has its own norm and radius: compare runs within a panel, not panels with each other."
        chart = dots("sharpness", "Sharpness", caption, runs, compared)
        if chart:
            blocks.append(Picture(chart))
        blocks.append(_table(runs, columns, known))
        if any(changes for _, changes in known.values()):
            blocks.append(
                Text(
                    "A measure marked “yes” changes when the layers of a ReLU network are rescaled without changing "
                    "the function (Dinh et al. 2017): a difference between two runs can be one of scale alone."
                )
            )
    kinds = [kind for kind in SHARPNESS if any(r.results.get(kind) for r in runs)]
    notes = [note for kind in kinds for note in missing(runs, kind, kind.replace("_", " "))]
    if notes:
        blocks.append(Notes(notes))
    return Section("sharpness", "Sharpness", blocks)


def _facts(runs: Sequence[Run], name: str) -> tuple[set[float], bool]:
    """Return the radii that this measure was taken at, and whether a rescaling changes it."""
    radii, changes = set(), False
    for result, at in _holding(runs, name):
        if hasattr(result, "rho"):
            radii.add(float(np.ravel(result.rho)[at]))
        changes |= bool(np.ravel(result.rescaling)[at])
    return radii, changes


def _unit(runs: Sequence[Run], name: str) -> str:
    """Return what the axis of this measure says: Keskar's is a share of the loss, a curvature has its own units."""
    for result, at in _holding(runs, name):
        unit = result.units[at] if len(result.units) > at else "loss"
        if not hasattr(result, "rho"):
            return unit.replace("^2", "²")
        return "rise, % of 1 + loss" if unit == "%" else "rise of the loss"
    return "rise of the loss"


def _holding(runs: Sequence[Run], name: str) -> Iterator[tuple[Any, int]]:
    """Yield the results that hold a measure, with its place in them."""
    for run in runs:
        for kind in SHARPNESS:
            result: Any = run.get(kind)
            if result is not None and name in result.names:
                yield result, list(result.names).index(name)


def _radius(radii: set[float]) -> str:
    return "ρ " + ", ".join(given(r) for r in sorted(radii)) if radii else ""


def _table(runs: Sequence[Run], columns: Sequence[Measure], known: dict[str, tuple[set[float], bool]]) -> Table:
    having = [r for r in runs if sharpness_names([r])]
    few = having if len(having) <= SHOWN_ACROSS else []
    heads = [
        Column("Measure", wide=True),
        Column("ρ", numeric=True, note="radius of the neighborhood, in the measure's own norm"),
        Column("rescaling changes it", note="whether a rescaling of ReLU layers changes the number"),
        *(Column(r.name, numeric=True) for r in few),
    ]
    rows = []
    for m in columns:
        radii, changes = known[m.label]
        mark = Cell("yes: compare with care" if changes else "no")
        first = [Cell(m.label), Cell(_radius(radii).removeprefix("ρ ")), mark]
        rows.append(Row([*first, *(value_cell(m.read(r)) for r in few)]))
    caption = "Sharpness of each run, ± standard error."
    return Table(caption if few else "The measures; their values stand in the table of runs.", heads, [("", rows)])
