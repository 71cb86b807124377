"""A slice of the loss along one direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...counted import counted
from ...surface.slices import Line
from ..chart import Chart, Control, Panel, Series, ref, run_css, run_dash, scaled_axis
from ..palette import INK, RUN_COLORS
from ..runs import Run
from ..scales import finite, scales
from .registry import figure, new_axes, set_height, tidy
from .self_check import label_of, quantity_of, write_self_check

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure("line")
def draw_line(
    result: Line,
    *,
    ax: Axes | None = None,
    scale: Literal["auto", "linear", "log"] = "auto",
    quantity: str = "loss",
    color: str = RUN_COLORS[0],
    label: str | None = None,
) -> Axes:
    """Draw a Line: the loss (or accuracy) against the step, with the checkpoint marked; gaps where not finite.

    Draw several into one `ax` to compare them, each with its `color` and `label`. `quantity` may also be
    held_out_loss, held_out_accuracy or one of `term_names`. A few small lines say how far the picture can be trusted,
    where no `ax` was given. Raises MeasurementError where the line has no such quantity.
    """
    values = quantity_of(result, quantity)
    alone = ax is None
    ax = ax or new_axes((5.0, 3.4))
    choices, default = scales(finite([values]), finite([np.array([result.center_loss])]))
    chosen = choices.get(default if scale == "auto" else scale, choices["linear"])
    ax.plot(result.alpha, np.where(np.isfinite(values), values, np.nan), color=color, linewidth=1.6, label=label)
    if quantity == "loss" and np.isfinite(result.center_loss):
        ax.plot(0, result.center_loss, "o", color=color, markeredgecolor=INK, markersize=5, label="_checkpoint")
    set_height(ax, chosen)
    ax.set_xlabel("α (step along d)")
    ax.set_ylabel(label_of(quantity))
    tidy(ax)
    if alone:
        write_self_check(ax, result)
    return ax


def lines(runs: Sequence[Run]) -> Chart | None:
    """Return the lines of these runs over one axis."""
    found: list[tuple[Run, Any]] = [(r, x) for r in runs if (x := r.get("line")) is not None]
    if not found:
        return None
    centers = finite([np.array([x.center_loss]) for _, x in found])
    choices, default = scales(finite([x.loss for _, x in found] + [centers]), centers)
    series = [Series({"alpha": x.alpha, "loss": x.loss}, ("alpha",), run.name, run.index) for run, x in found]
    views: dict[str, list[dict]] = {}
    layouts = {}
    for name, scale in choices.items():
        views[name] = [_trace(i, run, scale) for i, (run, _) in enumerate(found)]
        layouts[name] = {
            "xaxis": {"title": {"text": "α (step along d)"}},
            "yaxis": scaled_axis("loss", scale),
            "hovermode": "x unified" if len(found) <= 6 else "closest",
        }
    options = tuple((k, "Linear" if k == "linear" else "Log") for k in choices)
    holes = sum(int((~np.isfinite(np.asarray(x.loss, dtype=float))).sum()) for _, x in found)
    return Chart(
        id="lines",
        title="Loss along one direction",
        caption="The loss at θ + α d; the checkpoint lies at α = 0. Each run has its own direction, drawn in the "
        "same way and scaled to its own weights.",
        series=series,
        panels=(Panel("", f"Loss along one direction for {counted(len(found), 'run')}.", views),),
        layouts=layouts,
        controls=(Control("scale", "Height", options, default),),
        height=380,
        wide=True,
        notes=(f"{counted(holes, 'point is', 'points are')} not finite (gaps).",) if holes else (),
    )


def _trace(i: int, run: Run, scale: Any) -> dict:
    return {
        "type": "scatter",
        "mode": "lines",
        "run": run.index,
        "x": ref(i, "alpha"),
        "y": ref(i, "loss", scale),
        "text": ref(i, "loss", text=True),
        "hovertemplate": "%{text}",
        "named": run.index,
        "connectgaps": False,
        "line": {
            "color": run_css(run.index),
            "width": 2,
            "dash": run_dash(run.index),
        },
    }
