"""Effects of settings with their intervals: a panel for each number, a row for each effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...comparison.ablation import Effect
from ..chart import Chart, Panel, Series, css, plotly_text, ref, scaled_axis
from ..effects import Response, name_of, rests_on
from ..palette import INK, MUTED, RUN_COLORS
from ..scales import Scale, finite
from .registry import new_axes, round_ticks, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Main effects that a panel shows (chosen by us: more rows can't be read beside each other; the table has them all).
MOST_ROWS = 14


def draw_effects(response: Response, *, ax: Axes | None = None, interactions: bool = True) -> Axes:
    """Draw the effects on one number: dots with 95% intervals, filled for main effects, hollow for interactions."""
    shown = (response.found.effects if interactions else response.found.main)[:MOST_ROWS]
    ax = ax or new_axes((6.0, 0.9 + 0.32 * len(shown)))
    for row, effect in enumerate(shown):
        value, low, high = response.numbers(effect)
        face = RUN_COLORS[0] if len(effect.factors) == 1 else "white"
        if np.isfinite(low):
            ax.plot([low, high], [row, row], color=RUN_COLORS[0], linewidth=1.4, zorder=2)
        ax.plot(value, row, "o", color=RUN_COLORS[0], markerfacecolor=face, markersize=5, zorder=3)
    ax.axvline(1.0 if response.ratio else 0.0, color=MUTED, linewidth=0.9, zorder=1)
    ax.set_yticks(range(len(shown)), [name_of(e).replace(" instead of ", "\ninstead of ") for e in shown])
    ax.set_ylim(len(shown) - 0.4, -0.6)
    if response.ratio:
        ax.set_xscale("log")
        round_ticks(ax.xaxis)
    ax.set_xlabel(_unit(response))
    ax.tick_params(axis="y", colors=INK)
    tidy(ax)
    return ax


def effect_panels(responses: Sequence[Response]) -> Chart | None:
    """Return the main effects on each number, one panel each."""
    series: list[Series] = []
    panels: list[Panel] = []
    for response in responses:
        main = response.found.main[:MOST_ROWS]
        if not main:
            continue
        numbers = np.array([response.numbers(e) for e in main])
        zero = 1.0 if response.ratio else 0.0
        ends = finite([numbers, np.array([zero])])
        scale = Scale("log" if response.ratio else "linear", float(ends.min()), float(ends.max()))
        names = [name_of(e) for e in main]
        i, rows = len(series), np.arange(len(main), dtype=float)
        columns = {"effect": names, "value": numbers[:, 0], "low": numbers[:, 1], "high": numbers[:, 2]}
        series.append(Series({**columns, "df": np.array([e.df for e in main])}, ("effect",), response.title))
        gap = np.full(len(main), np.nan)
        bars = np.stack([numbers[:, 1], numbers[:, 2], gap], axis=1).ravel()
        series.append(Series({"bar": bars, "row": np.repeat(rows, 3)}, ("bar",), csv=False))
        where = float(scale.forward(np.array([zero]))[0])
        traces = [
            {
                "type": "scatter", "mode": "lines", "x": ref(i + 1, "bar", scale), "y": ref(i + 1, "row"),
                "line": {"color": css("run-0"), "width": 3}, "opacity": 0.5, "hoverinfo": "skip",
            },
            {
                "type": "scatter", "mode": "markers", "x": ref(i, "value", scale), "y": rows.tolist(),
                "marker": {"size": 9, "color": css("run-0")},
                "text": [_hover(response, e) for e in main], "hovertemplate": "%{text}<extra></extra>",
            },
        ]  # fmt: skip
        ticks, texts = scale.ticks(3)
        layout = {
            "xaxis": {
                **scaled_axis(_unit(response), scale, pad=0.06), "tickvals": ticks, "ticktext": texts, "tickangle": 0,
            },
            "yaxis": {
                "tickmode": "array", "tickvals": rows.tolist(), "ticktext": [_short(response, e) for e in main],
                "range": [len(main) - 0.4, -0.6], "zeroline": False, "automargin": True,
            },
            "shapes": [
                {
                    "type": "line", "x0": where, "x1": where, "y0": 0, "y1": 1, "yref": "paper",
                    "line": {"color": css("muted"), "width": 1}, "layer": "below",
                }
            ],
        }  # fmt: skip
        label = f"Main effects on {response.title}: {len(main)} with intervals."
        panels.append(Panel(response.title, label, {"all": traces}, None, (rests_on(response),), layout))
    if not panels:
        return None
    rows_most = max(len(r.found.main[:MOST_ROWS]) for r in responses)
    return Chart(
        id="effects",
        title="Main effects",
        caption="What changes when one setting changes, averaged over the others, with 95% intervals over seeds. A "
        "factor (×) where the number spans powers of ten. No bar: too few seeds to say.",
        series=series,
        panels=panels,
        layouts={"all": {}},
        height=90 + 30 * rows_most,
        legend=False,
        wide=len(panels) == 1,
    )


def _short(response: Response, effect: Effect) -> str:
    (first, other), sign = effect.levels[0], "÷" if response.ratio else "−"
    return plotly_text(f"{other} {sign} {first}")


def _hover(response: Response, effect: Effect) -> str:
    return plotly_text(f"{name_of(effect)}: {' '.join(response.text(effect))}")


def _unit(response: Response) -> str:
    return f"factor on {response.title}" if response.ratio else f"change of {response.title}"
