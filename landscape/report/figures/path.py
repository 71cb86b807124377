"""The loss along a path between checkpoints, and its barrier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import MeasurementError
from ...surface.routes import Path
from ..chart import Chart, Control, Panel, Series, css, ref, run_css, scaled_axis
from ..numbers import uncertain
from ..palette import INK, MUTED, RUN_COLORS
from ..runs import Run
from ..scales import Scale, finite, scales
from .registry import figure, new_axes, set_height, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The straight path through the states as they were, in the words and the dashes of both figures.
BEFORE = "before permuting units"
SHORT = (0, (1.5, 1.5))
#: Share of the axis from which a barrier's text fits beside it (chosen by us, for the smallest figures).
UPRIGHT = 0.5


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
    on each segment of the first split. Where units were permuted, short dashes are the loss along the straight path
    before. Raises MeasurementError where the path has no such quantity.
    """
    values = result.loss if quantity == "loss" else result.accuracy
    before = result.unaligned_loss if quantity == "loss" else None
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
        if before is not None:
            z = np.asarray(before[i], dtype=float)
            ax.plot(at, np.where(np.isfinite(z), z, np.nan), color=color, linewidth=1.1, linestyle=SHORT)
    if quantity == "loss":
        _draw_barriers(ax, result, states)
    choices, default = scales(finite([np.asarray(v) for v in (values, before) if v is not None]))
    chosen = choices.get(default if scale == "auto" else scale, choices["linear"])
    set_height(ax, chosen)
    if before is not None:
        _label_before(ax, result)
    elif len(result.splits) > 1:
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
        if height > UPRIGHT * np.ptp(ax.get_ylim()):
            placed = {"xy": (where, top - height / 2), "xytext": (-4, 0), "rotation": 90, "ha": "right", "va": "center"}
        else:
            placed = {"xy": (where, top), "xytext": (0, 5), "ha": "center", "va": "bottom"}
        ax.annotate(
            text, **placed, textcoords="offset points", color=INK, fontsize=8.5, zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
        )  # fmt: skip


def _label_before(ax: Axes, result: Path) -> None:
    """Say what the path before the alignment is: at its top, or beside the splits' names above all lines."""
    top = _top(result)
    if len(result.splits) > 1:
        ax.plot([], [], color=MUTED, linewidth=1.1, linestyle=SHORT, label=BEFORE)
        shown = ax.yaxis.get_transform()
        low, high = (shown.transform(y) for y in ax.get_ylim())
        ax.set_ylim(top=float(shown.inverted().transform(high + 0.45 * (high - low))))
        ax.legend(frameon=False, loc="upper center")
    elif top is not None:
        x, y, side = top
        ax.margins(y=0.12)
        ax.annotate(
            BEFORE, xy=(x, y), xytext=(0, 3), textcoords="offset points", ha=side, va="bottom", color=MUTED,
            fontsize=8.5,
        )  # fmt: skip


def _top(path: Any) -> tuple[float, float, str] | None:
    """Return where the path before the alignment is highest, and to which side of it a text has room."""
    at, loss = np.asarray(path.position), np.asarray(path.unaligned_loss, dtype=float)
    known = np.where(np.isfinite(loss), loss, -np.inf).max(axis=0)
    k = int(np.argmax(known))
    # The side that a text's anchor is on: near the left end it goes on to the right.
    side = ("left", "center", "right")[min(2, int(3 * at[k] / at[-1]))]
    return (float(at[k]), float(known[k]), side) if np.isfinite(known[k]) else None


# ------------------------------------------------------------------------------------------------ on the page

DASHES = ("solid", "dash")


def paths(runs: Sequence[Run]) -> Chart | None:
    """Return the path of each run that has one: the loss on each split, the states, and the line between them."""
    found: list[tuple[Run, Any]] = [(r, p) for r in runs if (p := r.get("path")) is not None]
    found = [(r, p) for r, p in found if len(finite([p.loss]))]
    if not found:
        return None
    losses = [loss for _, p in found for loss in (p.loss, p.unaligned_loss) if loss is not None]
    choices, _ = scales(finite(losses))
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
                    }
                    | ({} if path.unaligned_loss is None else {"unaligned_loss": path.unaligned_loss[i]}),
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
        + (" Dashes: the second split." if any(len(p.splits) > 1 for _, p in found) else "")
        + (f" Short dashes: {BEFORE}." if any(p.unaligned_loss is not None for _, p in found) else ""),
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
        if path.unaligned_loss is not None:
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": ref(first + i, "position"),
                    "y": ref(first + i, "unaligned_loss", scale),
                    "text": ref(first + i, "unaligned_loss", text=True),
                    "hovertemplate": f"{split}, {BEFORE}, position %{{x:.3g}}<br>loss %{{text}}<extra></extra>",
                    "connectgaps": False,
                    "line": {"color": color, "width": 1.5, "dash": "2px,3px"},
                    "opacity": 1 if i == 0 else 0.6,
                }
            )
        traces.append(places | {"mode": "markers", "marker": {"color": color, "size": 8}, "hoverinfo": "skip"})
    top = _top(path) if path.unaligned_loss is not None else None
    if top is not None:
        x, y, side = top
        traces.append(
            {
                "type": "scatter",
                "mode": "text",
                "x": [x],
                "y": [float(scale.forward(np.array([y]))[0])],
                "text": [BEFORE],
                "textposition": f"top {({'left': 'right', 'right': 'left'}).get(side, side)}",
                "textfont": {"color": css("muted")},
                "cliponaxis": False,
                "hoverinfo": "skip",
            }
        )
    return traces


def _facts(path: Any) -> tuple[str, ...]:
    rows = zip(path.splits, path.barrier, path.barrier_stderr, strict=True)
    lines = [f"{split}: barrier {_heights(row, errors)}" for split, row, errors in rows]
    if path.unaligned_barrier is not None:
        lines.append(f"units of each state but the first permuted to fit the one before it, by {path.align}")
        for split, row, errors in zip(path.splits, path.unaligned_barrier, path.unaligned_barrier_stderr, strict=True):
            lines.append(f"{split}: barrier {BEFORE} {_heights(row, errors)}")
    if path.statistics:
        lines.append(path.statistics)
    if path.curve == "bezier":
        lines.append("along a trained quadratic Bezier curve")
    return tuple(lines)


def _heights(barriers: Sequence[float], errors: Sequence[float]) -> str:
    """Return the barrier of each segment; "none" for 0, because the ends belong to the path: no point lies above."""
    told = []
    for height, stderr in zip(barriers, errors, strict=True):
        value, error = uncertain(float(height), float(stderr))
        told.append("none" if height == 0 else f"{value} ± {error}" if error else value)
    return ", ".join(told)
