"""What happened while the runs trained, and when: a row for each kind of event."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...counted import counted
from ..chart import Chart, Control, Panel, Series, ref, run_css, run_symbol
from ..runs import Run
from .steps import LINK, extent

#: Kinds in the order of the rows, what went wrong first, and what they are called; others come behind.
KINDS = {
    "failed": "the training failed",
    "not_finite": "not finite",
    "skipped_step": "skipped step",
    "spike": "spike",
    "lost_rows": "lost rows",
    "probe_failed": "probe failed",
    "over_budget": "over budget",
    "parameters_changed": "parameters changed",
    "resumed": "resumed",
    "switch": "schedule switch",
    "checkpoint": "checkpoint",
    "epoch": "end of epoch",
    "start": "start",
}
#: Kinds that are no marks: the axis has the epochs, and every run begins.
UNMARKED = frozenset({"epoch", "start"})


def label(kind: str) -> str:
    """Return what a kind of event is called."""
    return KINDS.get(kind, kind.replace("_", " "))


def event_strip(runs: Sequence[Run]) -> Chart | None:
    """Return the events of these runs over their steps; the ends of epochs are left to the axis."""
    kinds = dict.fromkeys(k for k in (*KINDS, *(k for r in runs for k in r.recorded.events)) if k not in UNMARKED)
    kinds = [k for k in kinds if any(r.recorded.events.get(k) for r in runs)]
    if not kinds:
        return None
    series, traces, epochs = [], [], False
    for run in runs:
        events = [e for k in kinds for e in run.recorded.events.get(k, ())]
        if not events:
            continue
        steps = np.array([e.step for e in events], dtype=float)
        epoch = run.recorded.epoch(steps)
        epochs |= bool(np.isfinite(epoch).any())
        columns = {
            "step": steps.astype(np.int64),
            "epoch": epoch if np.isfinite(epoch).any() else steps,
            "event": [label(e.kind) for e in events],
            "message": [e.message for e in events],
        }
        i = len(series)
        series.append(Series(columns, ("step",), run.name, run.index))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "run": run.index,
                "x": ref(i, "@axis"),
                "y": {**ref(i, "event"), "plain": True},
                "text": {**ref(i, "message"), "plain": True},
                "customdata": ref(i, "step"),
                "hovertemplate": "%{y} at step %{customdata}<br>%{text}",
                "named": run.index,
                "marker": {
                    "symbol": run_symbol(run.index),
                    "size": 8,
                    "opacity": 0.8,
                    "color": run_css(run.index),
                },
            }
        )
    axes = (("step", "Step"), ("epoch", "Epoch")) if epochs else (("step", "Step"),)
    layout = {
        "yaxis": {
            "type": "category",
            "categoryorder": "array",
            "categoryarray": [label(k) for k in kinds],
            "range": [len(kinds) - 0.5, -0.5],
            "automargin": True,
        },
        "hovermode": "closest",
        "margin": {"l": 80, "r": 14, "t": 8, "b": 40},
    }
    return Chart(
        id="events",
        title="Events",
        caption="Each mark is something that happened at a step; point at it for the words of the record.",
        series=series,
        panels=(Panel("", f"Events of {counted(len(series), 'run')} over the steps of training.", {"all": traces}),),
        layouts={"all": layout},
        controls=(Control("axis", "Across", axes, "step", keyed=False),),
        height=70 + 30 * len(kinds),
        wide=True,
        link=LINK,
        extent=extent(runs),
    )
