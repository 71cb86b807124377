"""Numbers compared across runs: a dot for each run with its 95% interval, one panel for each number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...counted import counted
from ..chart import Chart, Panel, Series, css, ref, rows, run_css, run_symbol, scaled_axis
from ..runs import Run
from ..scales import Scale, finite
from ..value import Value


@dataclass(frozen=True)
class Compared:
    """A number to compare: its name, its units, and its value for each run (in the order of the runs)."""

    title: str
    units: str
    values: Sequence[Value]
    note: str = ""


def dots(id: str, title: str, caption: str, runs: Sequence[Run], compared: Sequence[Compared]) -> Chart | None:
    """Return a dot plot with one panel for each number that any run has."""
    compared = [c for c in compared if any(v.known for v in c.values)]
    if not compared:
        return None
    series: list[Series] = []
    panels: list[Panel] = []
    for number_ in compared:
        traces: list[dict] = []
        known = [(r, v) for r, v in zip(runs, number_.values, strict=True) if v.known]
        ends = finite([np.array([v.number, v.low, v.high, 0.0]) for _, v in known])
        scale = Scale("linear", float(ends.min()), float(ends.max()))
        for run, value in known:
            low = value.low if np.isfinite(value.low) else value.number
            high = value.high if np.isfinite(value.high) else value.number
            i = len(series)
            series.append(
                Series(
                    {
                        "measure": [number_.title],
                        "value": np.array([value.number]),
                        "low": np.array([value.low]),
                        "high": np.array([value.high]),
                    },
                    ("measure",),
                    run.name,
                    run.index,
                )
            )
            series.append(Series({"bar": np.array([low, high])}, ("bar",), csv=False))
            traces += _traces(i, run, value)
        axis = scaled_axis(number_.units, scale, pad=0.06)
        layout = {"xaxis": axis, "yaxis": {"rows": True}}
        if scale.low < 0:
            layout["shapes"] = [
                {
                    "type": "line",
                    "x0": 0,
                    "x1": 0,
                    "y0": 0,
                    "y1": 1,
                    "yref": "paper",
                    "line": {"color": css("muted"), "width": 1},
                    "layer": "below",
                }
            ]
        label = f"{number_.title} of {counted(len(known), 'run')} with intervals."
        lines = (number_.note,) if number_.note else ()
        panels.append(Panel(number_.title if len(compared) > 1 else "", label, {"all": traces}, None, lines, layout))
    return Chart(
        id=id,
        title=title,
        caption=caption,
        series=series,
        panels=panels,
        layouts={"all": {}},
        height=None,
        legend=False,
        wide=len(panels) == 1,
    )


def _traces(i: int, run: Run, value: Value) -> list[dict]:
    color = run_css(run.index)
    text, spread = value.text()
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "run": run.index,
            "x": ref(i + 1, "bar"),
            "y": rows(run.index, 2),
            "line": {"color": color, "width": 3},
            "opacity": 0.45,
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "run": run.index,
            "x": ref(i, "value"),
            "y": rows(run.index, 1),
            "hovertemplate": f"{text} {spread}",
            "named": run.index,
            "marker": {
                "size": 11,
                "symbol": run_symbol(run.index),
                "color": color,
                "line": {"width": 1, "color": css("paper")},
            },
        },
    ]
