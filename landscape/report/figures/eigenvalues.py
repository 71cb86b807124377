"""Eigenvalues at one or both ends of the spectrum, each with its residual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...counted import counted
from ...curvature.spectrum import Eigenpairs
from ...errors import MeasurementError
from ..chart import Chart, Control, Panel, Series, css, ref, rows, run_css, run_symbol, scaled_axis
from ..palette import INK, MUTED, RUN_COLORS
from ..runs import Run
from ..scales import finite, scales
from .registry import figure, new_axes, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS = "loss / parameter²"


@figure("eigenvalues")
def draw_eigenvalues(
    result: Eigenpairs, *, ax: Axes | None = None, color: str = RUN_COLORS[0], label: str | None = None
) -> Axes:
    """Draw eigenvalues against their rank, with residuals as error bars: filled the largest, hollow the smallest.

    A pair that did not converge is a cross. Ranks count from each end. Raises MeasurementError where there is no
    finite eigenvalue.
    """
    if not len(finite([result.values, result.smallest])):
        raise MeasurementError("there is no finite eigenvalue to draw")
    ax = ax or new_axes((5.0, 3.4))
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ends = (
        (result.values, result.residuals, result.converged, color, label or "largest"),
        (result.smallest, result.smallest_residuals, result.smallest_converged, "white", "smallest"),
    )
    for values, residuals, converged, face, name in ends:
        values, residuals = np.ravel(values), np.ravel(residuals)
        if not len(values):
            continue
        rank = np.arange(1, len(values) + 1)
        ax.errorbar(rank, values, yerr=residuals, fmt="none", ecolor=color, elinewidth=1.2, capsize=2.5)
        done = np.ravel(converged).astype(bool)
        ax.plot(rank[done], values[done], "o", color=color, markerfacecolor=face, markersize=5.5, label=name)
        if not done.all():
            ax.plot(rank[~done], values[~done], "x", color=INK, markersize=7, label=f"{name}, not converged")
    whole_numbers(ax.xaxis)
    ax.set_xlabel("rank, from each end (1 is the outermost)")
    ax.set_ylabel(f"{result.operator} eigenvalue\n({UNITS})")
    ax.legend(frameon=False, fontsize="small")
    tidy(ax)
    return ax


def spectrum(runs: Sequence[Run]) -> Chart | None:
    """Return the eigenvalues of these runs, a row for each run, or over their rank."""
    found: list[tuple[Run, Any]] = [(r, e) for r in runs if (e := r.get("eigenvalues")) is not None]
    found = [(r, e) for r, e in found if len(finite([e.values, e.smallest]))]
    if not found:
        return None
    everything = finite([v for _, e in found for v in (e.values, e.smallest)])
    choices, default = scales(everything, np.abs(everything))
    series: list[Series] = []
    views: dict[str, list[dict]] = {f"{by}.{name}": [] for by in ("runs", "rank") for name in choices}
    for run, pairs in found:
        for end, values, residuals, converged in (
            ("largest", pairs.values, pairs.residuals, pairs.converged),
            ("smallest", pairs.smallest, pairs.smallest_residuals, pairs.smallest_converged),
        ):
            values, residuals = np.ravel(values).astype(float), np.ravel(residuals).astype(float)
            if len(values):
                i = len(series)
                series += _series(run, end, values, residuals, np.ravel(converged))
                for name, scale in choices.items():
                    views[f"runs.{name}"] += _traces(i, run, end, len(values), scale, by="runs")
                    views[f"rank.{name}"] += _traces(i, run, end, len(values), scale, by="rank")
    layouts = {}
    for name, scale in choices.items():
        axis = scaled_axis(f"eigenvalue ({UNITS})", scale, pad=0.05)
        zero = {"type": "line", "line": {"color": css("muted"), "width": 1}, "layer": "below"}
        layouts[f"runs.{name}"] = {
            "xaxis": axis,
            "yaxis": {"rows": True},
            "shapes": [{**zero, "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "paper"}] if scale.low <= 0 else [],
        }
        layouts[f"rank.{name}"] = {
            "xaxis": {"title": {"text": "rank, from each end"}, "dtick": 1},
            "yaxis": axis,
            "shapes": [{**zero, "y0": 0, "y1": 0, "x0": 0, "x1": 1, "xref": "paper"}] if scale.low <= 0 else [],
        }
    words = {"linear": "Linear", "log": "Log" if "log" in choices and choices["log"].kind == "log" else "Asinh"}
    return Chart(
        id="eigenvalues",
        title="Eigenvalues",
        caption="Filled: the largest eigenvalues; hollow: the smallest; a cross: not converged. Bars are residuals "
        "‖Av − λv‖: an eigenvalue of this operator lies within the bar. They say nothing about how far the "
        "eigenvalue moves when other samples are drawn.",
        series=series,
        panels=(Panel("", f"Eigenvalues of {counted(len(found), 'run')} with their residuals.", views),),
        layouts=layouts,
        controls=(
            Control("by", "Against", (("runs", "Run"), ("rank", "Rank")), "runs"),
            Control("scale", "Scale", tuple((k, words[k]) for k in choices), default),
        ),
        height=None,
        wide=True,
    )


def _series(run: Run, end: str, values: np.ndarray, residuals: np.ndarray, converged: np.ndarray) -> list[Series]:
    rank = np.arange(1, len(values) + 1)
    gap = np.full(len(values), np.nan)
    bars = np.stack([values - residuals, values + residuals, gap], axis=1).ravel()
    return [
        Series(
            {
                "rank": rank,
                "end": [end] * len(values),
                "eigenvalue": values,
                "residual": residuals,
                "converged": converged.astype(bool),
            },
            ("rank",),
            run.name,
            run.index,
        ),
        Series({"bar": bars, "rank": np.repeat(rank, 3)}, ("rank",), csv=False),
    ]


def _traces(i: int, run: Run, end: str, k: int, scale: Any, by: str) -> list[dict]:
    value, other = ("x", "y") if by == "runs" else ("y", "x")
    color = run_css(run.index)
    symbol = run_symbol(run.index, open=end == "smallest")
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "run": run.index,
            value: ref(i + 1, "bar", scale),
            other: rows(run.index, 3 * k) if by == "runs" else ref(i + 1, "rank"),
            "line": {"color": color, "width": 3},
            "opacity": 0.5,
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "run": run.index,
            value: ref(i, "eigenvalue", scale),
            other: rows(run.index, k) if by == "runs" else ref(i, "rank"),
            "text": ref(i, "eigenvalue", text=True),
            "customdata": ref(i, "residual", text=True),
            "hovertemplate": f"{end}: %{{text}}<br>residual %{{customdata}}",
            "named": run.index,
            "marker": {
                "size": 9,
                "symbol": {
                    "choose": [i, "converged"],
                    "yes": symbol,
                    "no": "x-thin-open",
                },
                "color": color,
                "line": {"width": 1.6, "color": color},
                "opacity": 0.85,
            },
        },
    ]
