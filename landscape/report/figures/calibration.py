"""Reliability: how often the model is right, against how sure it says it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...calibration.table import Calibration
from ...errors import MeasurementError
from ..chart import Chart, Control, Panel, Series, css, ref, run_css, run_dash, run_symbol
from ..numbers import count, interval, number
from ..palette import BAND, MUTED, RUN_COLORS
from ..runs import Run
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: What the two axes of a reliability diagram are: of the predicted labels, and of each label's own probability.
_TOP = ("confidence (probability of the top label)", "accuracy (share of right labels)")
_EACH = ("probability of the label", "frequency (share that has the label)")


def of_labels(result: Any) -> bool:
    """Say whether confidences are the probabilities of labels, and accuracies how often those are there.

    So it is with several labels a sample, or a binary task that is looked at by its class 1: not of what is predicted.
    """
    return result.settings.get("confidence") == "positive" and result.settings.get("kind") != "top-label"


@figure("calibration")
def draw_calibration(
    result: Calibration,
    *,
    ax: Axes | None = None,
    color: str = RUN_COLORS[0],
    label: str | None = None,
    band: bool = True,
    counts: bool = True,
    joined: bool = False,
) -> Axes:
    """Draw a reliability diagram: each bin's accuracy against its confidence, with Clopper-Pearson bars.

    The gray band holds what a calibrated model with these counts would show (95%); the strip below holds the
    counts. Draw several into one `ax` with `band=False, counts=False, joined=True` to compare them. Where a sample may
    have several labels, each counts by itself: how often it is there, against its probability. Raises MeasurementError
    where every bin is empty.
    """
    n, *_, middle, width = bin_arrays(result)
    filled = n > 0
    if not filled.any():
        raise MeasurementError("every bin of this calibration is empty: there is nothing to draw")
    ax = ax or new_axes((4.4, 4.6))
    ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    if band:
        limits = np.asarray(result.consistency_band, dtype=float)[filled]
        ax.bar(
            middle[filled],
            limits[:, 1] - limits[:, 0],
            width[filled],
            limits[:, 0],
            color=BAND,
            alpha=0.3,
            linewidth=0,
            label="calibrated (95%)",
        )
    x, y = np.asarray(result.confidences, dtype=float)[filled], np.asarray(result.accuracies, dtype=float)[filled]
    bars = np.abs(np.asarray(result.accuracy_interval, dtype=float)[filled].T - y)
    text = label or f"ECE {' '.join(interval(float(result.ece), *(float(b) for b in result.ece_interval)))}"
    ax.errorbar(
        x,
        y,
        yerr=bars,
        fmt="o-" if joined else "o",
        color=color,
        markersize=4.5,
        linewidth=1.2,
        elinewidth=1.0,
        capsize=2,
        label=text,
        clip_on=False,
    )
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.02, 1.02)
    x_label, y_label = _EACH if of_labels(result) else _TOP
    ax.set_ylabel(y_label)
    ax.legend(frameon=False, fontsize="small", loc="best")
    tidy(ax)
    below = ax
    if counts:
        below = ax.inset_axes((0, -0.3, 1, 0.24), sharex=ax)
        below.bar(middle, n, width * 0.92, color=color, alpha=0.65, linewidth=0)
        below.set_ylabel("samples")
        below.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelbottom=False)
    below.set_xlabel(x_label)
    return ax


def bin_arrays(result: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return counts, lower and upper edges, middles and widths of the bins."""
    edges = np.asarray(result.edges, dtype=float)
    lo, hi = edges[:-1], edges[1:]
    return np.asarray(result.counts, dtype=float), lo, hi, (lo + hi) / 2, hi - lo


# ------------------------------------------------------------------------------------------------ on the page


def reliability(runs: Sequence[Run]) -> Chart | None:
    """Return the reliability diagrams of these runs: side by side on common axes, and all in one."""
    found: list[tuple[Run, Any]] = [(r, c) for r in runs if (c := r.get("calibration")) is not None]
    found = [(r, c) for r, c in found if np.nansum(np.asarray(c.counts, dtype=float)) > 0]
    if not found:
        return None
    series, panels = [], []
    together: list[dict] = [diagonal()]
    for run, table in found:
        i = len(series)
        series += [reliability_series(run, table), bin_boxes(table)]
        views = {"each": [diagonal(), *each_traces(i, run)], "all": []}
        named = {"xaxis": "probability", "yaxis": "frequency"} if of_labels(table) else {}
        own = {axis: {"title": {"text": text}} for axis, text in named.items()} or None
        panels.append(Panel(run.name, _label(run, table), views, run.index, _facts(run, table), own))
        together += reliability_line(i, run, named=True)
    everything = f"Reliability of {len(found)} runs in one diagram."
    panels.append(Panel("All runs", everything, {"each": [], "all": together}))
    top = max(float(np.nanmax(np.asarray(c.counts, dtype=float) / np.nansum(c.counts))) for _, c in found)
    shares = sorted({int(c.samples) for _, c in found})
    bins = sorted({len(np.ravel(c.counts)) for _, c in found})
    notes = []
    if len(bins) > 1:
        notes.append(
            f"The runs were binned differently ({', '.join(map(str, bins))} bins): their ECE is not comparable."
        )
    labels = [r.name for r, c in found if of_labels(c)]
    if labels:
        notes.append(
            f"Of {', '.join(labels)} every label counts by itself: dots are how often it is there, against its "
            "probability."
        )
    dependent = [r.name for r, c in found if c.groups]
    if dependent:
        notes.append(
            f"Predictions of {', '.join(dependent)} depend on each other within a sample: bars and bands are those of "
            "their effective size."
        )
    return Chart(
        id="reliability",
        title="Reliability",
        caption="Dots: the accuracy of each bin at its mean confidence, with Clopper–Pearson 95% bars. Gray band: "
        "where 95% of the dots of a perfectly calibrated model with these counts would fall. Below the dashed line the "
        "model is overconfident. The strip below holds the share of samples in each bin. "
        f"{' / '.join(count(s) for s in shares)} held-out predictions, {' / '.join(map(str, bins))} bins.",
        series=series,
        panels=panels,
        layouts={"each": reliability_layout(top), "all": together_layout()},
        controls=(Control("show", "Show", (("each", "Side by side"), ("all", "In one")), "each"),)
        if len(found) > 1
        else (Control("show", "Show", (("each", "Side by side"),), "each"),),
        height=340,
        notes=tuple(notes),
        kind="reliability",
    )


def reliability_series(run: Run, table: Any, name: str = "") -> Series:
    n, lo, hi, *_ = bin_arrays(table)
    with_rows = n > 0
    interval_, band = np.asarray(table.accuracy_interval, float), np.asarray(table.consistency_band, float)
    accuracy = np.where(with_rows, np.asarray(table.accuracies, float), np.nan)
    return Series(
        {
            "bin": np.arange(1, len(n) + 1),
            "lower_edge": lo,
            "upper_edge": hi,
            "samples": np.asarray(table.counts),
            "share_of_samples": n / n.sum(),
            "confidence": np.asarray(table.confidences, float),
            "accuracy": accuracy,
            "accuracy_low": interval_[:, 0],
            "accuracy_high": interval_[:, 1],
            "calibrated_low": band[:, 0],
            "calibrated_high": band[:, 1],
        },
        ("bin",),
        name or run.name,
        run.index,
    )


def bin_boxes(table: Any) -> Series:
    *_, middle, width = bin_arrays(table)
    return Series({"middle": middle, "width": width}, ("middle",), csv=False)


def diagonal() -> dict:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"color": css("muted"), "width": 1, "dash": "dash"},
        "hoverinfo": "skip",
    }


def each_traces(i: int, run: Run) -> list[dict]:
    return [
        {
            "type": "bar",
            "x": ref(i + 1, "middle"),
            "width": ref(i + 1, "width"),
            "base": ref(i, "calibrated_low"),
            "y": {"minus": [ref(i, "calibrated_high"), ref(i, "calibrated_low")]},
            "marker": {"color": css("band", 0.32), "line": {"width": 0}},
            "hoverinfo": "skip",
        },
        {**reliability_line(i, run, named=False)[0], "mode": "markers"},
        {
            "type": "bar",
            "x": ref(i + 1, "middle"),
            "width": ref(i + 1, "width"),
            "y": ref(i, "share_of_samples"),
            "yaxis": "y2",
            "marker": {"color": run_css(run.index, 0.7), "line": {"width": 0}},
            "text": ref(i, "samples", text=True),
            "textposition": "none",
            "hovertemplate": "%{text} samples<extra></extra>",
        },
    ]


def reliability_line(i: int, run: Run, *, named: bool) -> list[dict]:
    color = run_css(run.index)
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "run": run.index,
        "x": ref(i, "confidence"),
        "y": ref(i, "accuracy"),
        "line": {
            "color": color,
            "width": 1.4,
            "dash": run_dash(run.index),
        },
        "marker": {"color": color, "size": 6, "symbol": run_symbol(run.index)},
        "error_y": accuracy_bars(i, color),
        "text": ref(i, "samples", text=True),
        "hovertemplate": "confidence %{x:.3f}<br>accuracy %{y:.3f}<br>%{text} samples"
        + ("" if named else "<extra></extra>"),
        "connectgaps": True,
        "cliponaxis": False,
    }
    if named:
        trace["named"] = run.index
    return [trace]


def accuracy_bars(i: int, color: dict) -> dict:
    """Return the error bars of the accuracies of bins, from the interval in result `i`'s data."""
    return {
        "type": "data",
        "symmetric": False,
        "array": {"minus": [ref(i, "accuracy_high"), ref(i, "accuracy")]},
        "arrayminus": {"minus": [ref(i, "accuracy"), ref(i, "accuracy_low")]},
        "color": color,
        "thickness": 1.1,
        "width": 2,
    }


def reliability_layout(top: float) -> dict:
    return {
        "xaxis": {"title": {"text": "confidence"}, "range": [0, 1], "dtick": 0.2, "anchor": "y2"},
        "yaxis": {"title": {"text": "accuracy"}, "range": [-0.02, 1.03], "dtick": 0.2, "domain": [0.24, 1]},
        "yaxis2": {
            "title": {"text": "share"},
            "range": [0, max(top, 0.05) * 1.06],
            "domain": [0, 0.17],
            "nticks": 3,
            "anchor": "x",
        },
        "barmode": "overlay",
        "hovermode": "closest",
    }


def together_layout() -> dict:
    return {
        "xaxis": {"title": {"text": "confidence"}, "range": [0, 1], "dtick": 0.2},
        "yaxis": {"title": {"text": "accuracy"}, "range": [-0.02, 1.03], "dtick": 0.2},
        "hovermode": "closest",
    }


def _label(run: Run, table: Any) -> str:
    low, high = (float(b) for b in np.ravel(table.ece_interval)[:2])
    value, bounds = interval(float(table.ece), low, high)
    return f"Reliability diagram of {run.name}: expected calibration error {value} {bounds}."


def _facts(run: Run, table: Any) -> tuple[str, ...]:
    low, high = (float(b) for b in np.ravel(table.ece_interval)[:2])
    lines = ["ECE " + " ".join(interval(float(table.ece), low, high)) + f" of {count(table.samples)}"]
    before, after = float(table.ece_before_temperature), float(table.ece_after_temperature)
    if run.get("recalibration") is None and np.isfinite(before) and np.isfinite(after):
        lines.append(
            f"T {number(float(table.temperature), 3)}: ECE {number(before, 2)} → {number(after, 2)} "
            "on the part that the fit has not seen"
        )
    return tuple(lines)
