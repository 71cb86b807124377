"""Training dynamics: what was recorded while the runs trained, over one axis of steps or epochs."""

from __future__ import annotations

from collections.abc import Sequence

from ...counted import counted
from ..blocks import Block, Cell, Column, Folded, Notes, Picture, Row, Section, Table, Text
from ..chart import Chart
from ..figures.event_strip import KINDS, UNMARKED, event_strip, label
from ..figures.layer_map import layer_map
from ..figures.moments import lines_over_steps, reliability_over_steps, surfaces_over_steps
from ..figures.steps import in_buckets
from ..figures.training import CHARTS, everything_else, schedules
from ..numbers import count, seconds
from ..runs import Run, trainings
from . import section

_ZOOM = (
    "Drag across a figure to zoom: all figures over steps follow, and a double click goes back. With the keyboard, "
    "arrows move, + and − zoom, 0 goes back."
)
#: Rows of the table of events (chosen by us; the CSV of the figure has more).
_MOST_EVENTS = 200


@section(order=45)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the charts of all trainings that have a record, and what is to be known about the records."""
    found = [r for r in trainings(runs) if r.recorded]
    if not found:
        return None
    blocks: list[Block] = [Notes(notes)] if (notes := _notes(runs, found)) else []
    drawn: list[Chart | None] = []
    for make in CHARTS:
        drawn.append(make(found))
    drawn.insert(1, schedules(found))
    drawn.insert(3, layer_map(found, _layered(found)))
    drawn += [lines_over_steps(runs), surfaces_over_steps(runs), reliability_over_steps(runs)]
    drawn += [event_strip(found), everything_else(found)]
    blocks.append(Text(" ".join(t for t in (in_buckets(found), _ZOOM) if t)))
    blocks += [Picture(c) for c in drawn if c is not None]
    if any(r.recorded.events for r in found):
        blocks.append(Folded("Events as a table", (_events(found),)))
    blocks.append(Folded("What each run recorded", (_extent(found),)))
    return Section("dynamics", "Training dynamics", blocks, "Training")


#: Quantities that have a column for each layer, and what they are called.
LAYERED = {
    "gradient_norm": "Gradient norm",
    "gradient_norm_before": "Before clipping",
    "update_norm": "Update norm",
    "weight_norm": "Weight norm",
    "embedding_rank": "Rank",
}


def _layered(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return (quantity, label) of every map; what follows a dot names one of several optimizers."""
    names = dict.fromkeys(q for r in runs for q in r.recorded.maps)
    order = [*LAYERED]
    known = sorted(names, key=lambda q: order.index(b) if (b := q.partition(".")[0]) in LAYERED else len(order))
    return [
        (q, " ".join([LAYERED.get(b := q.partition(".")[0], b.replace("_", " ")), *q.split(".")[1:]])) for q in known
    ]


def _notes(runs: Sequence[Run], found: Sequence[Run]) -> list[tuple[str, str]]:
    notes = []
    for run in found:
        if run.status == "running":
            notes.append(("info", f"{run.name} is still training: this is its record up to step {_last(run)}."))
        elif run.status == "killed":
            notes.append(("warn", f"{run.name} was killed: its record ends at step {_last(run)}."))
        for problem in run.recorded.problems:
            notes.append(("fail", f"{run.name}: {problem}"))
    averaged = [r.name for r in found if r.settings.get("average")]
    if averaged:
        told = ", ".join(averaged[:6]) + (f" and {len(averaged) - 6} more" if len(averaged) > 6 else "")
        text = "Recorded at the weights that were stepped, not at their average, which was measured at the end"
        notes.append(("info", f"{text}: {told}."))
    without = [r.name for r in trainings(runs) if not r.recorded]
    if without:
        told = ", ".join(without[:6]) + (f" and {len(without) - 6} more" if len(without) > 6 else "")
        notes.append(("info", f"No record of the training: {told}."))
    return notes


def _last(run: Run) -> str:
    return count(run.recorded.last_step)


def _events(runs: Sequence[Run]) -> Table:
    columns = [Column("Run", wide=True), Column("step", numeric=True), Column("event"), Column("what", wide=True)]
    order = {k: i for i, k in enumerate(KINDS)}
    found = [(r, e) for r in runs for kind, events in r.recorded.events.items() if kind not in UNMARKED for e in events]
    found.sort(key=lambda item: (order.get(item[1].kind, 99), item[1].step))
    rows = [
        Row(
            [
                Cell(r.name, sort=r.name),
                Cell(count(e.step), sort=float(e.step)),
                Cell(label(e.kind), sort=e.kind),
                Cell(e.message or "–", seconds(e.seconds) if e.seconds == e.seconds else ""),
            ],
            r.index,
        )
        for r, e in found[:_MOST_EVENTS]
    ]
    total = sum(n for r in runs for kind, n in r.recorded.counted.items() if kind not in UNMARKED)
    caption = counted(total, "event") + (f"; the first {len(rows)} of them." if total > len(rows) else ".")
    return Table(caption, columns, [("", rows)], sortable=len(rows) > 1)


def _extent(runs: Sequence[Run]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("last step", numeric=True),
        Column("epochs", numeric=True),
        Column("quantities", wide=True),
        Column("events", wide=True),
        Column("status"),
    ]
    rows = []
    for run in runs:
        kept = run.recorded
        epochs = kept.epochs[1]
        quantities = "; ".join(
            f"{q} ({count(c.rows)})" for q, c in {**kept.maps, **kept.curves}.items() if q != "epoch"
        )
        events = "; ".join(f"{label(k)} {count(n)}" for k, n in kept.counted.items())
        cells = [
            Cell(run.name, sort=run.name),
            Cell(count(kept.last_step), sort=float(kept.last_step)),
            Cell(f"{epochs[-1]:g}" if len(epochs) else "–"),
            Cell(quantities or "–"),
            Cell(events or "–"),
            Cell(run.status or "–"),
        ]
        rows.append(Row(cells, run.index))
    return Table("Quantities with their rows, and events.", columns, [("", rows)], sortable=len(rows) > 1)
