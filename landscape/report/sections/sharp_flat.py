"""Sharp against flat: does any measure rank these runs like their generalization gap?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...comparison.ranks import FEWEST, RankCorrelation, kendall, kendall_within
from ..blocks import Block, Cell, Column, Folded, Notes, Picture, Row, Section, Table, Text
from ..effects import SEEDS, last_of_each, varied
from ..figures.scatter import scatter, title
from ..measures import measures
from ..numbers import number
from ..runs import Run
from ..value import Measure
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
            within = _within(members, across, up)
            if within:
                blocks.append(Folded(f"Within each setting{where}", (Text(_WITHIN_READING), within)))
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


_WITHIN_READING = (
    "A measure that only tells one loss or one optimizer from another ranks the runs of a sweep without ranking those "
    "that share it. Here τ counts pairs of runs that have one setting in common, or that differ in one setting alone "
    "(Jiang et al. 2020, “Fantastic generalization measures and where to find them”)."
)
#: Draws behind the intervals and permutations within settings (chosen by us: 100 runs in a few seconds).
_DRAWS = 400


def _rows(runs: Sequence[Run], across: Sequence[Measure], up: Sequence[Measure]) -> list[Row]:
    rows = []
    for x in across:
        for y in up:
            numbers = [np.array([m.read(run).number for run in runs]) for m in (x, y)]
            r = kendall(numbers[0], numbers[1], draws=_draws(len(runs), 2000))
            if r.tau == r.tau:
                rows.append(Row([Cell(x.label), Cell(title(y)), *_told(r)]))
    return rows


def _within(runs: Sequence[Run], across: Sequence[Measure], up: Sequence[Measure]) -> Table | None:
    """Return the rank correlations among runs that share a setting, and among those that differ in one alone."""
    runs = last_of_each(runs)
    groupings = _groupings(runs)
    rows = []
    for x in across:
        for y in up:
            numbers = [np.array([m.read(run).number for run in runs]) for m in (x, y)]
            for name, groups in groupings.items():
                r = kendall_within(numbers[0], numbers[1], groups, draws=_draws(len(runs), _DRAWS))
                if r.tau == r.tau:
                    told = _told(r)
                    told[2] = Cell(f"{r.runs} in {r.groups}", sort=r.runs)
                    rows.append(Row([Cell(x.label), Cell(title(y)), Cell(name), *told]))
    columns = [
        *_COLUMNS[:2],
        Column("Among runs with", wide=True),
        *_COLUMNS[2:4],
        Column("runs in groups"),
        _COLUMNS[5],
    ]
    return (
        Table("Rank correlation with the gap, within settings.", columns, [("", rows)], sortable=True) if rows else None
    )


def _draws(runs: int, most: int) -> int:
    """Return how many resamples a correlation over so many runs gets: its work grows with their pairs.

    At least 100 (chosen by us): with hundreds of runs the intervals come from the normal law rather than the draws.
    """
    return max(100, min(most, 40_000_000 // max(runs, 1) ** 2))


def _groupings(runs: Sequence[Run]) -> dict[str, list[tuple[str, ...]]]:
    """Return how the runs fall into groups: by one setting, and by all settings but one."""
    factors, seeds, _ = varied(runs)
    everything = {**factors, **({SEEDS[0]: seeds} if seeds is not None else {})}
    found: dict[str, list[tuple[str, ...]]] = {}
    for name, values in factors.items():
        found[f"the same {name}"] = [(v,) for v in values]
    for name in everything if len(everything) > 1 else ():
        others = [v for n, v in everything.items() if n != name]
        found[f"only {name} different"] = list(zip(*others, strict=True))
    return found


def _told(r: RankCorrelation) -> list[Cell]:
    """Return the cells of tau with its interval, p, the number of runs, and what it says."""
    says = (
        "the interval holds 0: no ranking shown"
        if r.low <= 0 <= r.high
        else f"in these runs, a larger value goes with a {'larger' if r.tau > 0 else 'smaller'} gap"
    )
    return [
        Cell(number(r.tau, 2), f"[{number(r.low, 2)}, {number(r.high, 2)}]", sort=r.tau),
        Cell("< 0.001" if r.p_value < 0.001 else number(r.p_value, 2), sort=r.p_value),
        Cell(str(r.runs)),
        Cell(says),
    ]
