"""The diagonal of an operator by parameter tensor: the sum of each, which is that block's trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...curvature.estimates import DiagonalEstimate
from ...errors import MeasurementError
from ..chart import Chart, Panel, Series, css, plotly_text, ref, run_css
from ..measures import Z95
from ..palette import MUTED, PLOTLY_MARKERS, RUN_COLORS
from ..runs import Run
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X_LABEL = "sum of the diagonal (loss / parameter²)"


@figure("diagonal")
def draw_diagonal(
    result: DiagonalEstimate, *, ax: Axes | None = None, color: str = RUN_COLORS[0], label: str | None = None
) -> Axes:
    """Draw the diagonal's sum over each parameter tensor, with 95% intervals, in the model's order from the top.

    Raises MeasurementError where no sum is finite.
    """
    sums = np.asarray(result.sums, dtype=float)
    if not np.isfinite(sums).any():
        raise MeasurementError("no sum of this diagonal is finite: there is nothing to draw")
    rows = np.arange(len(sums))
    ax = ax or new_axes((5.4, max(2.0, 0.8 + 0.24 * len(rows))))
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.errorbar(
        sums,
        rows,
        xerr=Z95 * np.asarray(result.sums_stderr, dtype=float),
        fmt="o",
        color=color,
        markersize=5,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
    )
    ax.set_yticks(rows, [name or "all" for name in result.names])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(X_LABEL)
    ax.set_ylabel("parameter tensor")
    if label:
        ax.legend(frameon=False, fontsize="small")
    tidy(ax)
    return ax


def diagonals(runs: Sequence[Run]) -> Chart | None:
    """Return the sums of these runs' diagonals by parameter tensor, in one picture."""
    found: list[tuple[Run, Any]] = [(r, d) for r in runs if (d := r.get("diagonal")) is not None]
    found = [(r, d) for r, d in found if np.isfinite(np.asarray(d.sums, dtype=float)).any()]
    if not found:
        return None
    series: list[Series] = []
    traces: list[dict] = []
    order = dict.fromkeys(plotly_text(name or "all") for _, d in found for name in d.names)
    for run, result in found:
        i, names = len(series), [plotly_text(name or "all") for name in result.names]
        sums, half = np.asarray(result.sums, dtype=float), Z95 * np.asarray(result.sums_stderr, dtype=float)
        gap = np.full(len(sums), np.nan)
        series.append(Series({"layer": names, "sum": sums, "half": half}, ("layer",), run.name, run.index))
        bars = {
            "bar": np.stack([sums - half, sums + half, gap], axis=1).ravel(),
            "row": [n for n in names for _ in "123"],
        }
        series.append(Series(bars, ("row",), csv=False))
        traces += _traces(i, run)
    layout = {
        "xaxis": {"title": {"text": X_LABEL}, "zeroline": True, "zerolinecolor": css("muted")},
        "yaxis": {"type": "category", "categoryarray": list(order), "autorange": "reversed", "automargin": True},
        "hovermode": "closest",
    }
    return Chart(
        id="diagonal",
        title="Diagonal by parameter tensor",
        caption="The diagonal's entries, summed over each parameter tensor: the trace of that block. Bars are 95% "
        "intervals over the random vectors.",
        series=series,
        panels=(Panel("", f"Sums of the diagonal for {len(found)} runs.", {"all": traces}),),
        layouts={"all": layout},
        height=110 + 26 * len(order),
        wide=True,
    )


def _traces(i: int, run: Run) -> list[dict]:
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
            "x": ref(i, "sum"),
            "y": ref(i, "layer"),
            "text": ref(i, "sum", text=True),
            "customdata": ref(i, "half", text=True),
            "hovertemplate": "%{y}: %{text} ± %{customdata}",
            "named": run.index,
            "marker": {"size": 9, "symbol": PLOTLY_MARKERS[run.index % len(PLOTLY_MARKERS)], "color": color},
        },
    ]
