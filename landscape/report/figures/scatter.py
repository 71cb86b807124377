"""Sharpness against the generalization gap: a dot for each run, with the uncertainty of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...counted import counted
from ..chart import Chart, Control, Panel, Series, css, plotly_text, ref, run_css, run_symbol, scaled_axis
from ..runs import Run
from ..scales import Scale, finite
from ..value import Measure, Value


def scatter(runs: Sequence[Run], across: Sequence[Measure], up: Sequence[Measure]) -> Chart | None:
    """Return a scatter plot with a choice of what goes across (sharpness) and what goes up (a gap)."""
    across = [m for m in across if sum(m.read(r).known for r in runs) > 1]
    up = [m for m in up if sum(m.read(r).known for r in runs) > 1]
    if not across or not up:
        return None
    chosen = [*across, *up]
    values = {m.key: [m.read(r) for r in runs] for m in chosen}
    series: list[Series] = []
    at: dict[int, int] = {}
    for run, place in zip(runs, range(len(runs)), strict=True):
        columns: dict[str, object] = {"run_number": np.array([run.index + 1])}
        for m in chosen:
            v = values[m.key][place]
            columns |= {
                m.key: np.array([v.number]),
                f"{m.key}_low": np.array([v.low]),
                f"{m.key}_high": np.array([v.high]),
            }
        at[place] = len(series)
        series.append(Series(columns, ("run_number",), run.name, run.index))
    views, layouts = {}, {}
    for x in across:
        for y in up:
            key = f"{x.key}.{y.key}"
            views[key] = [
                _trace(at[i], run, x.key, y.key, values[x.key][i], values[y.key][i])
                for i, run in enumerate(runs)
                if values[x.key][i].known and values[y.key][i].known
            ]
            layouts[key] = {
                "xaxis": scaled_axis(plotly_text(title(x)), _range(values[x.key]), pad=0.08),
                "yaxis": scaled_axis(plotly_text(title(y)), _range(values[y.key]), pad=0.1),
                "hovermode": "closest",
            }
    return Chart(
        id="sharp-flat",
        title="Sharpness against the gap",
        caption="Each mark is a run (gray: not chosen in the table of runs); bars are 95% intervals (for eigenvalues: "
        "residuals). A pattern among a few runs that differ in more than one setting is no evidence that one causes "
        "the other.",
        series=series,
        panels=(Panel("", f"Sharpness against generalization gap for {counted(len(runs), 'run')}.", views),),
        layouts=layouts,
        controls=(
            Control("across", "Across", tuple((m.key, m.label) for m in across), across[0].key),
            Control("up", "Up", tuple((m.key, title(m)) for m in up), up[0].key),
        ),
        height=400,
        wide=True,
        kind="scatter",
    )


def title(measure: Measure) -> str:
    """Return the name of a measure on an axis."""
    if measure.key == "gap_loss":
        return "loss gap (test − train)"
    if measure.key == "gap_accuracy":
        return "accuracy gap (train − test)"
    if measure.key in ("lambda_max", "trace"):
        return f"{measure.label} (loss / parameter²)"
    return f"{measure.label} (rise of the loss)" if measure.key.startswith("sharpness.") else measure.label


def _range(values: Sequence[Value]) -> Scale:
    ends = finite([np.array([v.number, v.low, v.high]) for v in values if v.known])
    return Scale("linear", float(ends.min()), float(ends.max()))


def _trace(i: int, run: Run, x: str, y: str, across: Value, up: Value) -> dict:
    color = run_css(run.index)

    def bars(key: str) -> dict:
        return {
            "type": "data",
            "symmetric": False,
            "array": {"minus": [ref(i, f"{key}_high"), ref(i, key)]},
            "arrayminus": {"minus": [ref(i, key), ref(i, f"{key}_low")]},
            "color": color,
            "thickness": 1.2,
            "width": 3,
        }

    return {
        "type": "scatter",
        "mode": "markers",
        "run": run.index,
        "always": True,
        "x": ref(i, x),
        "y": ref(i, y),
        "error_x": bars(x),
        "error_y": bars(y),
        "hovertemplate": f"{' '.join(across.text())}<br>{' '.join(up.text())}",
        "named": run.index,
        "marker": {
            "size": 12,
            "symbol": run_symbol(run.index),
            "color": color,
            "line": {"width": 1, "color": css("paper")},
        },
    }
