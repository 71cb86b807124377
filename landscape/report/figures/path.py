"""The loss along a path between checkpoints, and its barrier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import MeasurementError
from ...surface.routes import Path
from ..chart import Chart, Control, Panel, Series, css, ref, run_css, scaled_axis
from ..numbers import number, uncertain
from ..palette import INK, MUTED, RUN_COLORS
from ..runs import Run
from ..scales import Scale, finite, scales
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure("path")
def draw_path(
    result: Path,
    *,
    ax: Axes | None = None,
    scale: Literal["auto", "linear", "log"] = "linear",
    quantity: Literal["loss", "accuracy"] = "loss",
) -> Axes:
    """Draw a Path: the loss (or accuracy) of each split with its standard error, the states as dots, the barrier.

    The dashed line joins the losses of neighboring states: a barrier is the height above it, marked where it is largest
    on each segment of the first split. Raises MeasurementError where the path has no such quantity.
    """
    values = result.loss if quantity == "loss" else result.accuracy
    errors = result.loss_stderr if quantity == "loss" else result.accuracy_stderr
    if values is None or errors is None:
        raise MeasurementError(f"this path has no {quantity}; it was measured without labels")
    ax = ax or new_axes((5.4, 3.6))
    at = np.asarray(result.position)
    states = np.flatnonzero(at == np.round(at))
    for i, split in enumerate(result.splits):
        y, e, color = np.asarray(values[i], dtype=float), np.asarray(errors[i], dtype=float), RUN_COLORS[i]
        y = np.where(np.isfinite(y), y, np.nan)
        ax.plot(at, y, color=color, linewidth=1.6, linestyle="-" if i == 0 else "--", label=split)
        ax.fill_between(at, y - e, y + e, color=color, alpha=0.18, linewidth=0)
        ax.plot(at[states], y[states], "o", color=color, markeredgecolor=INK, markersize=5)
    if quantity == "loss":
        _draw_barriers(ax, result, states)
    choices, default = scales(finite([np.asarray(values)]))
    chosen = choices.get(default if scale == "auto" else scale, choices["linear"])
    if chosen.kind == "asinh":
        ax.set_yscale("asinh", linear_width=chosen.width)
    elif chosen.kind == "log":
        ax.set_yscale("log")
    if len(result.splits) > 1:
        ax.legend(frameon=False)
    ax.set_xticks(at[states])
    ax.set_xlabel("position on the path (segments)")
    ax.set_ylabel("loss" if quantity == "loss" else "accuracy (share of right labels)")
    tidy(ax)
    return ax


def _draw_barriers(ax: Axes, result: Path, states: np.ndarray) -> None:
    """Mark on each segment how far the first split's loss rises above the line between its ends."""
    at, loss = np.asarray(result.position), np.asarray(result.loss[0], dtype=float)
    ax.plot(at[states], loss[states], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    for k, height in enumerate(result.barrier[0]):
        where = float(result.barrier_at[0, k])
        if not (np.isfinite(height) and height > 0):
            continue
        top = loss[np.argmin(np.abs(at - where))]
        ax.annotate(
            "", xy=(where, top), xytext=(where, top - height),
            arrowprops={"arrowstyle": "<->", "color": INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        value, error = uncertain(float(height), float(result.barrier_stderr[0, k]))
        text = f"barrier {value}" + (f" ± {error}" if error else "")
        ax.annotate(
            text, xy=(where, top - height / 2), xytext=(-4, 0), textcoords="offset points", rotation=90, ha="right",
            va="center", color=INK, fontsize=8.5, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
        )  # fmt: skip


# ------------------------------------------------------------------------------------------------ on the page

DASHES = ("solid", "dash")


def paths(runs: Sequence[Run]) -> Chart | None:
    """Return the path of each run that has one: the loss on each split, the states, and the line between them."""
    found: list[tuple[Run, Any]] = [(r, p) for r in runs if (p := r.get("path")) is not None]
    found = [(r, p) for r, p in found if len(finite([p.loss]))]
    if not found:
        return None
    choices, _ = scales(finite([p.loss for _, p in found]))
    layouts = {
        name: {
            "xaxis": {"title": {"text": "position on the path (segments)"}},
            "yaxis": scaled_axis("loss", scale),
            "hovermode": "closest",
        }
        for name, scale in choices.items()
    }
    series: list[Series] = []
    panels = []
    for run, path in found:
        first = len(series)
        for i, split in enumerate(path.splits):
            series.append(
                Series(
                    {
                        "position": path.position,
                        "loss": path.loss[i],
                        "loss_stderr": path.loss_stderr[i],
                        "excess": path.excess[i],
                        "excess_stderr": path.excess_stderr[i],
                    },
                    ("position",),
                    f"{run.name}, {split}",
                    run.index,
                )
            )
        views = {name: _traces(first, run, path, scale) for name, scale in choices.items()}
        panels.append(Panel(run.name, f"Loss along the path of {run.name}.", views, run.index, _facts(path)))
    return Chart(
        id="paths",
        title="Paths between checkpoints",
        caption="The loss along the path between the states (dots). A barrier is the height above the dashed line that "
        "joins them; its standard error is that of the same samples at all three points."
        + (" Dashes: the second split." if any(len(p.splits) > 1 for _, p in found) else ""),
        series=series,
        panels=panels,
        layouts=layouts,
        controls=(
            # A barrier is a difference of losses: on a logarithmic height it is none.
            Control("scale", "Height", tuple((k, "Linear" if k == "linear" else "Log") for k in choices), "linear"),
        ),
        height=320,
        legend=False,
    )


def _traces(first: int, run: Run, path: Any, scale: Scale) -> list[dict]:
    at = np.asarray(path.position)
    states = np.flatnonzero(at == np.round(at))
    traces = []
    for i, split in enumerate(path.splits):
        color = run_css(run.index)
        ends = scale.forward(np.asarray(path.loss[i], dtype=float)[states])
        places = {
            "type": "scatter",
            "x": [float(x) for x in at[states]],
            "y": [float(y) if np.isfinite(y) else None for y in ends],
        }
        if i == 0 and scale.kind == "linear":
            traces.append(
                places
                | {"mode": "lines", "line": {"color": css("muted"), "width": 1, "dash": "dash"}, "hoverinfo": "skip"}
            )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": ref(first + i, "position"),
                "y": ref(first + i, "loss", scale),
                "text": ref(first + i, "loss", text=True),
                "hovertemplate": f"{split}, position %{{x:.3g}}<br>loss %{{text}}<extra></extra>",
                "connectgaps": False,
                "line": {"color": color, "width": 2, "dash": DASHES[i % 2]},
            }
        )
        traces.append(places | {"mode": "markers", "marker": {"color": color, "size": 8}, "hoverinfo": "skip"})
    return traces


def _facts(path: Any) -> tuple[str, ...]:
    lines = []
    for i, split in enumerate(path.splits):
        heights = []
        for height, stderr in zip(path.barrier[i], path.barrier_stderr[i], strict=True):
            value, error = uncertain(float(height), float(stderr)) if np.isfinite(height) else (number(height), "")
            # The ends belong to the path: 0 means that no point lies above the line between them.
            heights.append("none" if height == 0 else f"{value} ± {error}" if error else value)
        lines.append(f"{split}: barrier {', '.join(heights)}")
    said = {
        "recompute": "running statistics recomputed at every point",
        "interpolate": "running statistics interpolated",
        "batch": "each batch's own statistics",
    }
    if path.batchnorm in said:
        lines.append(said[path.batchnorm])
    if path.unaligned_barrier is not None:
        before = [
            " ± ".join(t for t in uncertain(float(h), float(e)) if t)
            for h, e in zip(path.unaligned_barrier[0], path.unaligned_barrier_stderr[0], strict=True)
        ]
        lines.append(
            f"units of each end permuted to fit the state before it, by {path.align}; {path.splits[0]} barrier before: "
            f"{', '.join(before)}"
        )
    if path.curve == "bezier":
        lines.append("along a trained quadratic Bezier curve")
    return tuple(lines)
