"""Risk and coverage: how often the model is wrong when it answers only where it is surest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...calibration.samples import SampleScores
from ...calibration.selective import risk_coverage as selective_risk
from ...calibration.totals import Atoms
from ...comparison.shares import share_interval
from ...counted import counted
from ...errors import MeasurementError
from ..chart import Chart, Panel, Series, ref, run_css
from ..numbers import number
from ..palette import PLOTLY_DASHES, RUN_COLORS
from ..runs import Run
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_risk_coverage(
    result: Any, *, ax: Axes | None = None, color: str = RUN_COLORS[0], label: str | None = None
) -> Axes:
    """Draw the error rate of the surest share of the predictions against that share, with Clopper-Pearson bands.

    The bands of the first few predictions leave the chart at its top, which fits the curves; there is none where
    predictions depend on each other, as pixels of an image do. Takes a Calibration with
    `risk`; raises MeasurementError for one without. Draw several into one `ax`.
    """
    x, y, low, high = curve(result)
    if not len(x):
        raise MeasurementError("this calibration has no risk-coverage curve: measure it again with this version")
    ax = ax or new_axes((4.4, 3.4))
    text = label or f"AURC {number(float(result.aurc), 3)}"
    ax.plot(x, y, color=color, linewidth=1.4, label=text)
    if np.isfinite(high).all():
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
    ax.set_xlim(0, 1)
    others = ax.get_ylim()[1] if len(ax.lines) > 1 else 0.0
    ax.set_ylim(0, max(others, _top(x, y, high)))
    ax.set_xlabel("coverage (share of the predictions kept, the surest first)")
    ax.set_ylabel("risk (error rate of those kept)")
    ax.legend(frameon=False, fontsize="small", loc="best")
    tidy(ax)
    return ax


@figure("sample_scores")
def draw_sample_scores(
    result: SampleScores, *, ax: Axes | None = None, color: str = RUN_COLORS[0], label: str | None = None
) -> Axes:
    """Draw the risk-coverage curve of single predictions, as `draw_risk_coverage` does for those of a Calibration.

    Without a band where predictions depend on each other. Raises MeasurementError where no confidence is finite.
    """
    sure, right = np.asarray(result.confidence, dtype=float), np.asarray(result.correct)
    if not len(sure) or not np.isfinite(sure).all():
        raise MeasurementError("these scores hold no confidences: there is nothing to draw")
    value, at = np.unique(sure, return_inverse=True)
    counts, correct = np.bincount(at), np.bincount(at, right).astype(np.int64)
    found = selective_risk(Atoms(value, counts, correct, value * (counts - correct), exact=True))
    told = Kept(
        found.coverage, found.risk, len(sure), found.aurc, 0 if result.group is None else len(np.unique(result.group))
    )
    return draw_risk_coverage(told, ax=ax, color=color, label=label)


@dataclass(frozen=True)
class Kept:
    """A risk-coverage curve, as a Calibration holds it."""

    coverage: np.ndarray
    risk: np.ndarray
    samples: int
    aurc: float
    groups: int


def curve(result: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return coverage, risk, and the risk's pointwise 95% bounds, NaN where predictions depend on each other; empty
    where there is no curve.

    The bounds are Clopper-Pearson's for the mistakes among the predictions kept, as if those had been chosen without
    a look at the labels.
    """
    if getattr(result, "risk", None) is None or getattr(result, "coverage", None) is None:
        return np.empty(0), np.empty(0), np.empty(0), np.empty(0)
    x, y = np.asarray(result.coverage, dtype=float), np.asarray(result.risk, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    kept = np.maximum(np.round(x * float(result.samples)), 1)
    if getattr(result, "groups", 0):  # these intervals hold for independent predictions, and would be too narrow
        return x, y, np.full(len(x), np.nan), np.full(len(x), np.nan)
    return x, y, *share_interval(np.round(y * kept), kept)


def _top(x: np.ndarray, y: np.ndarray, high: np.ndarray) -> float:
    """Return the end of the risk's axis: the bands of the first few predictions reach to 1, and would press a curve
    flat against the bottom; those at full coverage are always seen.
    """
    return min(1.0, max(1.35 * float(y[x >= min(0.05, x[-1])].max()), 1.05 * float(np.fmax(high[-1], y[-1]))))


# ------------------------------------------------------------------------------------------------ on the page


def risk_coverage(runs: Sequence[Run]) -> Chart | None:
    """Return the curves of all runs in one picture."""
    series: list[Series] = []
    traces: list[dict] = []
    top = 0.01
    for run in runs:
        result: Any = run.get("calibration")
        if result is None:
            continue
        x, y, low, high = curve(result)
        if not len(x):
            continue
        i = len(series)
        series.append(
            Series({"coverage": x, "risk": y, "risk_low": low, "risk_high": high}, ("coverage",), run.name, run.index)
        )
        traces += _traces(i, run, band=bool(np.isfinite(high).all()))
        top = max(top, _top(x, y, high))
    if not series:
        return None
    return Chart(
        id="risk-coverage",
        title="Risk and coverage",
        caption="If the model answers only for the share of the predictions that it is surest of (coverage), how often "
        "is it wrong (risk)? The right end is the plain error rate; the lower a curve runs on its way there, the "
        "better the confidence tells right from wrong, calibrated or not. Shaded: pointwise 95% "
        "intervals, whose first few may leave the chart; none where predictions depend on each other. "
        "AURC, in the table, is the mean height of the curve.",
        series=series,
        panels=[Panel("", f"Risk-coverage curves of {counted(len(series), 'run')}.", {"all": traces})],
        layouts={
            "all": {
                "xaxis": {
                    "title": {"text": "coverage (share of predictions kept, the surest first)"},
                    "range": [0, 1.01],
                },
                "yaxis": {"title": {"text": "risk (error rate of those kept)"}, "range": [0, top]},
                "hovermode": "closest",
            }
        },
        height=320,
        wide=True,
        kind="risk",
    )


def _traces(i: int, run: Run, *, band: bool) -> list[dict]:
    color = run_css(run.index)
    shared: dict[str, Any] = {"type": "scatter", "mode": "lines", "run": run.index, "x": ref(i, "coverage")}
    edge = {"line": {"width": 0}, "hoverinfo": "skip"}
    edges = [
        {**shared, **edge, "y": ref(i, "risk_high")},
        {**shared, **edge, "y": ref(i, "risk_low"), "fill": "tonexty", "fillcolor": run_css(run.index, 0.13)},
    ]
    return [
        *(edges if band else []),
        {
            **shared,
            "y": ref(i, "risk"),
            "named": run.index,
            "line": {
                "color": color,
                "width": 1.8,
                "dash": PLOTLY_DASHES[run.index % len(PLOTLY_DASHES)],
            },
            "hovertemplate": "coverage %{x:.2f}<br>risk %{y:.4f}",
        },
    ]
