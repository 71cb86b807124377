"""How sure the model is, and how often it is right when it is: confidence histograms of right and wrong predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MeasurementError
from ..chart import Chart, Panel, Series, css, ref, run_css
from ..numbers import interval, uncertain
from ..palette import MUTED, RUN_COLORS
from ..runs import Run
from .calibration import bin_arrays, bin_boxes, of_labels
from .registry import new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_confidences(result: Any, *, ax: Axes | None = None, color: str = RUN_COLORS[0]) -> Axes:
    """Draw the histogram of a Calibration's confidences: right predictions below, wrong ones hatched on top.

    Vertical lines stand at the mean confidence (solid) and at the accuracy (dashed): they meet where the model is
    calibrated on the whole. Of labels that are predicted by themselves: those that are there below, those that aren't
    on top, mean probability and frequency. Raises MeasurementError where every bin is empty.
    """
    if not np.nansum(np.asarray(result.counts, dtype=float)):
        raise MeasurementError("every bin of this calibration is empty: there is nothing to draw")
    right, wrong = _shares(result)
    ax = ax or new_axes((4.4, 3.2))
    *_, middle, width = bin_arrays(result)
    said, happened, yes, no = _WORDS[of_labels(result)]
    ax.bar(middle, right, width * 0.94, color=color, alpha=0.75, linewidth=0, label=yes)
    ax.bar(
        middle, wrong, width * 0.94, right, fill=False, edgecolor=MUTED, hatch="////", linewidth=0.8, label=no
    )  # fmt: skip
    sure, often = mean_confidence(result), frequency(result)[0]
    ax.axvline(sure, color="black", linewidth=1.2, label=f"mean {said} {sure:.3f}")
    ax.axvline(often, color="black", linewidth=1.2, linestyle="--", label=f"{happened} {often:.3f}")
    ax.set_xlim(0, 1)
    ax.set_xlabel("probability of the label" if of_labels(result) else "confidence (probability of the top label)")
    ax.set_ylabel(f"share of {int(result.samples):,} samples")
    ax.legend(frameon=False, fontsize="small", loc="best")
    tidy(ax)
    return ax


def mean_confidence(result: Any) -> float:
    """Return the mean confidence over all samples that lie in a bin."""
    n, *_ = bin_arrays(result)
    filled = n > 0
    return float(np.sum(n[filled] * np.asarray(result.confidences, dtype=float)[filled]) / n.sum())


def frequency(result: Any) -> tuple[float, float]:
    """Return how often what the confidence is of happens, and its standard error (NaN where it isn't known)."""
    if not of_labels(result):
        return float(result.accuracy), float(result.accuracy_stderr)
    right, _ = _shares(result)
    return float(right.sum()), float("nan")


#: What is said, what happens, and its two outcomes: of predicted labels, and of each label by itself.
_WORDS = {
    False: ("confidence", "accuracy", "right", "wrong"),
    True: ("probability", "frequency", "has the label", "hasn't"),
}


def _shares(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the shares of all samples that lie in each bin and are right, and wrong."""
    n, *_ = bin_arrays(result)
    accuracy = np.asarray(result.accuracies, dtype=float)
    accuracy = np.where((n > 0) & np.isfinite(accuracy), accuracy, 0.0)
    return n * accuracy / n.sum(), n * (1 - accuracy) / n.sum()


# ------------------------------------------------------------------------------------------------ on the page


def confidences(runs: Sequence[Run]) -> Chart | None:
    """Return a histogram for each run, on one scale."""
    found: list[tuple[Run, Any]] = [(r, c) for r in runs if (c := r.get("calibration")) is not None]
    found = [(r, c) for r, c in found if np.nansum(np.asarray(c.counts, dtype=float)) > 0]
    found = [(r, c) for r, c in found if np.isfinite(mean_confidence(c) + float(c.accuracy))]
    if not found:
        return None
    series: list[Series] = []
    panels = []
    top = 0.05
    for run, result in found:
        i = len(series)
        n, low, high, *_ = bin_arrays(result)
        right, wrong = _shares(result)
        top = max(top, float((right + wrong).max()))
        series += [
            Series(
                {
                    "bin": np.arange(1, len(n) + 1), "lower_edge": low, "upper_edge": high,
                    "samples": np.asarray(result.counts), "right_share": right, "wrong_share": wrong,
                },
                ("bin",), run.name, run.index,
            ),
            bin_boxes(result),
        ]  # fmt: skip
        sure = mean_confidence(result)
        layout: dict[str, Any] = {"shapes": [_upright(sure, "solid"), _upright(frequency(result)[0], "dash")]}
        if of_labels(result):
            layout["xaxis"] = {"title": {"text": "probability"}}
        lines = _facts(result, sure)
        label = f"Confidences of {run.name}: {lines[0]}; {lines[1]}."
        panels.append(Panel(run.name, label, {"all": _traces(i, run, result)}, run.index, lines, layout))
    labels = [r.name for r, c in found if of_labels(c)]
    note = (
        f"Of {', '.join(labels)} every label counts by itself: filled where it is there, hatched where it isn't; the "
        "dashed line is how often it is there."
    )
    return Chart(
        id="confidences",
        title="Confidences",
        caption="How many of the held-out predictions have which confidence: right ones filled, wrong ones hatched on "
        "top of them. The solid line stands at the mean confidence, the dashed one at the accuracy; a calibrated model "
        "has both in one place. Bins of the reliability diagram; one scale for all runs.",
        series=series,
        panels=panels,
        layouts={
            "all": {
                "xaxis": {"title": {"text": "confidence"}, "range": [0, 1], "dtick": 0.2},
                "yaxis": {"title": {"text": "share of samples"}, "range": [0, top * 1.06]},
                "barmode": "stack",
                "hovermode": "closest",
            }
        },
        height=240,
        notes=(note,) if labels else (),
        kind="confidences",
    )


def _upright(x: float, dash: str) -> dict:
    return {
        "type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper",
        "line": {"color": css("ink"), "width": 1.4, "dash": dash},
    }  # fmt: skip


def _traces(i: int, run: Run, result: Any) -> list[dict]:
    *_, yes, no = _WORDS[of_labels(result)]

    def bar(column: str, word: str, marker: dict) -> dict:
        return {
            "type": "bar",
            "x": ref(i + 1, "middle"),
            "width": ref(i + 1, "width"),
            "y": ref(i, column),
            "marker": marker,
            "text": ref(i, "samples", text=True),
            "textposition": "none",
            "hovertemplate": f"{word}: %{{y:.4f}} of all<br>%{{text}} samples in the bin<extra></extra>",
        }

    hatched = {
        "color": css("paper"),
        "line": {"width": 1, "color": css("muted")},
        "pattern": {"shape": "/", "fgcolor": css("muted"), "bgcolor": css("paper"), "size": 5, "solidity": 0.35},
    }
    return [
        bar("right_share", yes, {"color": run_css(run.index, 0.75), "line": {"width": 0}}),
        bar("wrong_share", no, hatched),
    ]


def _facts(result: Any, sure: float) -> tuple[str, str]:
    often, stderr = frequency(result)
    value, error = uncertain(often, stderr)
    said, happened, *_ = _WORDS[of_labels(result)]
    gap = sure - often
    bounds = getattr(result, "confidence_gap_interval", None)  # older archives have none
    low, high = (math.nan, math.nan) if bounds is None else (float(b) for b in bounds)
    if gap < 0:
        low, high = -high, -low
    told = " ".join(filter(None, interval(abs(gap), low, high)))
    verdict = f"{'over' if gap > 0 else 'under'}confident"
    if of_labels(result):
        verdict = f"too {'high' if gap > 0 else 'low'}"
    return (
        f"mean {said} {sure:.3f}, {happened} {value}" + (f" ± {error}" if error else ""),
        f"{verdict} on the whole by {told}",
    )
