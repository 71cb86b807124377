"""Numbers that belong to names (layers, parameter tensors), a row for each name, over runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...counted import counted
from ..chart import Chart, Control, Panel, Series, css, plotly_text, ref, run_css, run_symbol
from ..numbers import given
from ..runs import Run
from ..scales import Scale, finite

Rows = tuple[Run, Sequence[str], np.ndarray, np.ndarray]


def rows_chart(
    id: str, title: str, caption: str, x_label: str, found: Sequence[Rows], *, column: str, log: bool = False
) -> Chart:
    """Return a chart of (run, names, values, half-widths) with the first name at the top.

    `column` is what the values are called in the CSV; `log` offers both axes.
    """
    series: list[Series] = []
    traces: list[dict] = []
    order = dict.fromkeys(plotly_text(name or "all") for _, names, _, _ in found for name in names)
    for run, own, values, half in found:
        i, names = len(series), [plotly_text(name or "all") for name in own]
        gap = np.full(len(values), np.nan)
        series.append(Series({"layer": names, column: values, "half": half}, ("layer",), run.name, run.index))
        bars = {
            "bar": np.stack([values - half, values + half, gap], axis=1).ravel(),
            "row": [n for n in names for _ in "123"],
        }
        series.append(Series(bars, ("row",), csv=False))
        traces += _traces(i, run, column)
    x_axis = {"title": {"text": x_label}, "zeroline": True, "zerolinecolor": css("muted")}
    layout = {
        "xaxis": x_axis,
        "yaxis": {"type": "category", "categoryarray": list(order), "autorange": "reversed", "automargin": True},
        "hovermode": "closest",
    }
    layouts = {"all": layout}
    if log:
        known = finite([values for *_, values, _ in found])
        known = known[known > 0]
        # At round numbers, which a power of ten may not be among.
        ticks = Scale("log", float(known.min()), float(known.max())).round_values() if len(known) else []
        marks = {"tickmode": "array", "tickvals": ticks, "ticktext": [given(v) for v in ticks]}
        layouts = {
            "log": {**layout, "xaxis": {**x_axis, "type": "log", **marks}},
            "linear": layout,
        }
    return Chart(
        id=id,
        title=title,
        caption=caption,
        series=series,
        panels=(Panel("", f"{title} for {counted(len(found), 'run')}.", dict.fromkeys(layouts, traces)),),
        layouts=layouts,
        height=110 + 26 * len(order),
        wide=True,
        controls=(Control("scale", "Scale", (("log", "Log"), ("linear", "Linear")), "log"),) if log else (),
    )


def _traces(i: int, run: Run, column: str) -> list[dict]:
    color = run_css(run.index)
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "run": run.index,
            "x": ref(i + 1, "bar"),
            "y": ref(i + 1, "row"),
            "line": {"color": color, "width": 3},
            "opacity": 0.45,
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "run": run.index,
            "x": ref(i, column),
            "y": ref(i, "layer"),
            "text": ref(i, column, text=True),
            "customdata": ref(i, "half", text=True),
            "hovertemplate": "%{y}: %{text} ± %{customdata}",
            "named": run.index,
            "marker": {"size": 9, "symbol": run_symbol(run.index), "color": color},
        },
    ]
