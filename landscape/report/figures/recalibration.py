"""Reliability before and after a recalibration, on predictions that its fit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...calibration.recalibrated import STAGES, Recalibration
from ...errors import MeasurementError
from ..chart import Chart, Panel, Series, css, ref, run_css
from ..numbers import count, interval, number, uncertain
from ..palette import BAND, MUTED, RUN_COLORS
from ..runs import Run
from .calibration import accuracy_bars, bin_arrays, bin_boxes, diagonal, reliability_series
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: How each stage is drawn: apart by shape and filling as well as by color.
MARKERS = {"before": ("s", "square-open"), "after": ("o", "circle")}
SIGNS = {"before": "□", "after": "●"}


@figure("recalibration")
def draw_recalibration(
    result: Recalibration, *, ax: Axes | None = None, color: str = RUN_COLORS[0], counts: bool = True
) -> Axes:
    """Draw both reliability diagrams into one: open squares before, dots after, with Clopper-Pearson bars.

    The gray band holds what a calibrated model with the counts after would show (95%); the strip below holds the
    counts. Raises MeasurementError where every bin is empty.
    """
    if not np.nansum(np.asarray(result.counts, dtype=float)):
        raise MeasurementError("every bin of this recalibration is empty: there is nothing to draw")
    own = ax is None
    ax = ax or new_axes((4.6, 5.2))
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    below = ax.inset_axes((0, -0.3, 1, 0.24), sharex=ax) if counts else ax
    for stage in STAGES:
        table = result.diagram(stage)
        n, *_, middle, width = bin_arrays(table)
        filled = n > 0
        after = stage == "after"
        ink = color if after else MUTED
        if after:
            band = np.asarray(table.consistency_band, dtype=float)[filled]
            ax.bar(
                middle[filled], band[:, 1] - band[:, 0], width[filled], band[:, 0], color=BAND, alpha=0.3, linewidth=0,
            )  # fmt: skip
        x, y = table.confidences[filled], table.accuracies[filled]
        bars = np.abs(np.asarray(table.accuracy_interval, dtype=float)[filled].T - y)
        ax.errorbar(
            x, y, yerr=bars, fmt=MARKERS[stage][0], color=ink, markersize=4.5, elinewidth=1.0, capsize=2,
            markerfacecolor=ink if after else "none", label=stage, clip_on=False,
        )  # fmt: skip
        if counts:
            face = {"color": ink, "alpha": 0.65, "linewidth": 0} if after else {"fill": False, "edgecolor": ink}
            below.bar(middle, n, width * 0.92, **face)
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel("accuracy (share of right labels)")
    # A title, not a legend inside: sparse bins have bars from 0 to 1.
    lines = [f"{SIGNS[s]} {s}: ECE {_told(result.diagram(s))}" for s in STAGES]
    ax.set_title("\n".join([_name(result), *lines, "gray: calibrated (95%)"]), loc="left", fontsize="small")
    tidy(ax)
    if counts:
        below.set_ylabel("samples")
        below.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelbottom=False)
    below.set_xlabel("confidence (probability of the top label)")
    if own:
        # The strip hangs below its axes: the layout finds room for its label on the second time.
        ax.figure.canvas.draw()
    return ax


def _told(table: Any) -> str:
    return " ".join(interval(table.ece, *(float(b) for b in table.ece_interval)))


def _name(result: Any) -> str:
    """Return what was fitted, with its temperature."""
    if result.method == "temperature":
        value, error = uncertain(float(result.temperature), float(result.temperature_stderr))
        return f"temperature scaling, T {value}" + (f" ± {error}" if error else "")
    return "vector scaling" if result.method == "vector" else f"{result.method} maps"


# ------------------------------------------------------------------------------------------------ on the page


def before_and_after(runs: Sequence[Run]) -> Chart | None:
    """Return a panel for each run that was recalibrated, with both stages in one diagram."""
    found: list[tuple[Run, Any]] = [(r, c) for r in runs if (c := r.get("recalibration")) is not None]
    if not found:
        return None
    series: list[Series] = []
    panels = []
    top = 0.05
    for run, result in found:
        traces: list[dict] = [diagonal()]
        for stage in STAGES:
            table = result.diagram(stage)
            i = len(series)
            one = reliability_series(run, table)
            series += [Series({"stage": [stage] * len(table.counts), **one.columns}, one.dims, run.name, run.index)]
            series += [bin_boxes(table)]
            traces += _traces(i, run, stage)
            top = max(top, float(np.nanmax(one.columns["share_of_samples"])))
        panels.append(Panel(run.name, _label(run, result), {"all": traces}, run.index, _facts(result)))
    methods = sorted({str(c.method) for _, c in found})
    return Chart(
        id="recalibration",
        title="Before and after recalibration",
        caption=f"Open squares: as the model is; filled dots: after {' / '.join(methods)} recalibration, both on the "
        "same predictions, which the fit has not seen, with Clopper–Pearson 95% bars. Gray band: where 95% of the dots "
        "of a perfectly calibrated model with the counts after would fall. The ECE’s change has a paired 95% interval: "
        "where it holds 0, these data can’t tell whether the recalibration helped. The strip below holds the share of "
        "samples in each bin, before (outlined) and after (filled).",
        series=series,
        panels=panels,
        layouts={"all": _layout(top)},
        controls=(),
        height=340,
        kind="reliability",
    )


def _traces(i: int, run: Run, stage: str) -> list[dict]:
    after = stage == "after"
    ink = run_css(run.index) if after else css("muted")
    traces: list[dict] = []
    if after:
        traces.append(
            {
                "type": "bar",
                "x": ref(i + 1, "middle"),
                "width": ref(i + 1, "width"),
                "base": ref(i, "calibrated_low"),
                "y": {"minus": [ref(i, "calibrated_high"), ref(i, "calibrated_low")]},
                "marker": {"color": css("band", 0.32), "line": {"width": 0}},
                "hoverinfo": "skip",
            }
        )
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "x": ref(i, "confidence"),
            "y": ref(i, "accuracy"),
            "marker": {"color": ink, "size": 7, "symbol": MARKERS[stage][1], "line": {"width": 1.6, "color": ink}},
            "error_y": accuracy_bars(i, ink),
            "text": ref(i, "samples", text=True),
            "hovertemplate": f"{stage}<br>confidence %{{x:.3f}}<br>accuracy %{{y:.3f}}<br>%{{text}} samples"
            "<extra></extra>",
            "cliponaxis": False,
        }
    )
    outline = {"color": run_css(run.index, 0.7), "line": {"width": 0}}
    if not after:
        outline = {"color": css("muted", 0.0), "line": {"width": 1.2, "color": css("muted")}}
    traces.append(
        {
            "type": "bar",
            "x": ref(i + 1, "middle"),
            "width": ref(i + 1, "width"),
            "y": ref(i, "share_of_samples"),
            "yaxis": "y2",
            "marker": outline,
            "text": ref(i, "samples", text=True),
            "textposition": "none",
            "hovertemplate": f"{stage}: %{{text}} samples<extra></extra>",
        }
    )
    return traces


def _layout(top: float) -> dict:
    return {
        "xaxis": {"title": {"text": "confidence"}, "range": [0, 1], "dtick": 0.2, "anchor": "y2"},
        "yaxis": {"title": {"text": "accuracy"}, "range": [-0.02, 1.03], "dtick": 0.2, "domain": [0.24, 1]},
        "yaxis2": {
            "title": {"text": "share"},
            "range": [0, top * 1.06],
            "domain": [0, 0.17],
            "nticks": 3,
            "anchor": "x",
        },
        "barmode": "overlay",
        "hovermode": "closest",
    }


def _facts(result: Any) -> tuple[str, ...]:
    before, after = (number(float(x), 3) for x in result.ece)
    change = " ".join(interval(float(result.ece_change), *(float(b) for b in np.ravel(result.ece_change_interval))))
    if int(result.folds):
        how = f"{int(result.folds)}-fold cross-fitting on {count(result.judged)} predictions"
    else:
        how = f"fitted on {count(result.fitted)}, judged on {count(result.judged)} others"
    return _name(result), f"ECE {before} → {after}, change {change}", how


def _label(run: Run, result: Any) -> str:
    return f"Reliability of {run.name} before and after {_name(result)}: {_facts(result)[1]}."
