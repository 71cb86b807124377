"""A learning-rate range test: the loss against a rate that grows at every step, and where stability ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MeasurementError
from ...training.rates import RangeTest
from ..chart import Chart, Panel, Series, css, ref, run_css
from ..numbers import given, number
from ..palette import INK, RUN_COLORS
from ..runs import Run
from ..scales import Scale, finite
from .registry import figure, new_axes, round_ticks, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is marked: the result's field, in words, how its line is drawn (here, on the page).
MARKS = (
    ("steepest", "falls fastest", ":", "dot"),
    ("critical", "stability ends", "--", "dash"),
    ("best", "turns", "-.", "dashdot"),
    ("divergence", "blows up", "-", "solid"),
)
#: The picture ends at so many times the first loss: twice it is where the loss is said to blow up.
ABOVE = 2.5


@figure("range_test")
def draw_range_test(result: RangeTest, *, ax: Axes | None = None, color: str = RUN_COLORS[0]) -> Axes:
    """Draw the loss on the same samples before each step against the step's rate, that of each batch faintly below it.

    Lines stand where the loss falls fastest, where the rate meets the stability threshold of its own step's weights,
    where the loss turns and where it blows up. Raises MeasurementError where no loss is finite.
    """
    rate, held, each = (np.asarray(x, dtype=float) for x in (result.rate, result.held, result.loss))
    known = finite([held])
    if not len(known):
        raise MeasurementError("no loss of this range test is finite: there is nothing to draw")
    ax = ax or new_axes((5.4, 3.6))
    ax.plot(rate, each, color=color, linewidth=0.7, alpha=0.35)
    ax.plot(rate, held, color=color, linewidth=1.6)
    for name, words, dashes, _ in MARKS:
        at = float(getattr(result, name))
        if math.isfinite(at):
            ax.axvline(at, color=INK, linewidth=0.9, linestyle=dashes, label=f"{words}: {number(at, 3)}")
    ax.set_xscale("log")
    round_ticks(ax.xaxis)
    ax.set_ylim(*_heights(held))
    ax.set_xlabel("learning rate, growing at every step")
    ax.set_ylabel("training loss")
    ax.legend(frameon=False, fontsize="small", loc="lower left")
    tidy(ax)
    return ax


def _heights(held: np.ndarray) -> tuple[float, float]:
    """Return the ends of the picture: the basin, not how far the loss was thrown out of it."""
    known = finite([held])
    low, first = float(known.min()), float(known[0])
    high = min(float(known.max()), ABOVE * first if first > 0 else math.inf)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


# ------------------------------------------------------------------------------------------------ on the page


def range_tests(runs: Sequence[Run]) -> Chart | None:
    """Return the range tests of these runs side by side, each with its own heights: their losses may differ."""
    found: list[tuple[Run, Any]] = [(r, x) for r in runs if (x := r.get("range_test")) is not None]
    found = [(r, x) for r, x in found if len(finite([x.held]))]
    if not found:
        return None
    rates = finite([x.rate for _, x in found])
    scale = Scale("log", float(rates.min()), float(rates.max()))
    series, panels = [], []
    for i, (run, x) in enumerate(found):
        columns = {"rate": x.rate, "held": x.held, "loss": x.loss, "stable": x.stable, "lambda_max": x.lambda_max}
        series.append(Series(columns, ("step",), run.name, run.index))
        marks = [(words, float(getattr(x, name)), dash) for name, words, _, dash in MARKS]
        marks = [mark for mark in marks if math.isfinite(mark[1])]
        upright = {"type": "line", "y0": 0, "y1": 1, "yref": "paper"}
        shapes = [
            {**upright, "x0": at, "x1": at, "line": {"color": css("ink"), "width": 1.2, "dash": dash}}
            for _, at, dash in marks
        ]
        layout = {"shapes": shapes, "yaxis": {"range": list(_heights(np.asarray(x.held, dtype=float)))}}
        told = ", ".join(f"{words} at {number(at, 3)}" for words, at, _ in marks)
        label = f"Training loss of {run.name} against the learning rate: {told}."
        panels.append(Panel(run.name, label, {"all": _traces(i, run)}, run.index, (told,) if told else (), layout))
    ticks = scale.round_values()
    return Chart(
        id="range-test",
        title="Loss against a growing learning rate",
        caption="The loss on the same training samples before each step (faint: of the step's batch), while the rate "
        "grows at every step. Dotted: where it falls fastest; dashed: where the rate meets the one whose stability "
        "threshold is λ max at the weights of that step; dash-dotted: where the loss turns; solid: where it has risen "
        "by its first value.",
        series=series,
        panels=panels,
        layouts={
            "all": {
                "xaxis": {
                    "title": {"text": "learning rate"}, "type": "log", "tickmode": "array", "tickvals": ticks,
                    "ticktext": [given(v) for v in ticks],
                },
                "yaxis": {"title": {"text": "training loss"}},
                "hovermode": "closest",
            }
        },
        height=300,
        legend=False,
    )  # fmt: skip


def _traces(i: int, run: Run) -> list[dict]:
    shared: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": ref(i, "rate")}
    return [
        {
            **shared, "y": ref(i, "loss"), "line": {"color": run_css(run.index, 0.35), "width": 1}, "hoverinfo": "skip",
        },
        {
            **shared, "y": ref(i, "held"), "line": {"color": run_css(run.index), "width": 2},
            "hovertemplate": "rate %{x:.3g}<br>loss %{y:.4g}<extra></extra>",
        },
    ]  # fmt: skip
