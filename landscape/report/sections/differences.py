"""How far the runs' calibration differs: a table of pairs, each difference with its interval."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...comparison.paired import Difference
from ...comparison.scores import COMPARED, compare_samples, compare_summaries, same_samples
from ..blocks import Block, Cell, Column, Folded, Notes, Row, Table
from ..numbers import count
from ..runs import MANY, Run
from ..value import Value
from .cells import value_cell

#: Up to so many runs every pair is compared, beyond each with the first one (chosen by us: six rows can be read).
EVERY_PAIR_UP_TO = 4
_LABELS = {"ece": "ECE", "brier": "Brier", "nll": "NLL", "accuracy": "accuracy"}


def differences(runs: Sequence[Run]) -> list[Block]:
    """Return the table of differences between runs of one task that were calibrated, and what it rests on."""
    known = [r for r in runs if r.get("calibration") is not None]
    if len(known) < 2:
        return []
    every = len(known) <= EVERY_PAIR_UP_TO
    pairs = list(itertools.combinations(known, 2)) if every else [(known[0], r) for r in known[1:]]
    rows = [_row(*pair) for pair in pairs]
    columns = [
        Column("Second minus first", wide=True),
        *(
            Column(label, numeric=True, note=f"{label} of the second minus that of the first")
            for label in _LABELS.values()
        ),
        Column("samples", numeric=True, note="predictions that the difference rests on"),
        Column("compared", note="on the same samples, or as of independent ones"),
    ]
    told = "every pair" if every else f"each with {known[0].name}"
    caption = f"Differences between runs, {told}, with 95% intervals. Below 0: the second is lower."
    table = Table(caption, columns, [("", rows)], sortable=len(rows) > 1)
    many = len(rows) > MANY
    return [
        Folded(f"Differences of {len(rows)} runs from {known[0].name}", (table,)) if many else table,
        Notes([("info", _reading(len(rows)))]),
    ]


def _reading(rows: int) -> str:
    text = (
        "Runs that were measured on the same samples (the fingerprints of their data agree) are compared in pairs: "
        "what both have in common cancels. The intervals cover the samples, not another training seed."
    )
    if rows > 1:
        text += f" Of {rows} rows with an interval of 95% each, about 1 in 20 misses by chance; they are not corrected."
    return text


def _row(first: Run, second: Run) -> Row:
    a, b = (r.get("sample_scores") for r in (first, second))
    found: dict[str, Difference]
    if a is not None and b is not None and _finite(a) and _finite(b):
        found = compare_samples(a, b)
        how = "paired" if same_samples(a, b) else "independent: other samples"
    else:
        found = compare_summaries(first.get("calibration"), second.get("calibration"))
        how = "independent: single scores were not kept"
    cells = [_cell(found[name]) for name in COMPARED]
    n = found["ece"].samples
    return Row(
        [Cell(f"{second.name} − {first.name}"), *cells, Cell(count(n), sort=n), Cell(how)],
    )


def _finite(scores: Any) -> bool:
    return bool(np.isfinite(np.asarray(scores.confidence, dtype=float)).all())


def _cell(found: Difference) -> Cell:
    value: Any = Value(found.value, low=found.low, high=found.high, how="interval")
    if found.value != found.value:
        value = Value(missing="not finite")
    return value_cell(value)
