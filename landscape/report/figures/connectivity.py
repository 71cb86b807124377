"""The barriers between each two of several checkpoints, as a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MeasurementError
from ...surface.routes import Connectivity
from ..chart import Chart, Panel, Series, css, ref
from ..numbers import number, uncertain
from ..palette import HOLE, INK, SURFACE_MAP
from ..runs import Run
from ..scales import Scale, finite
from .registry import figure, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: States up to which each cell has its number written in it (chosen by us: legible at a column's width).
WRITTEN = 8
#: States up to which the standard errors are written, too.
WITH_ERRORS = 4
#: Characters of a state's name on an axis (chosen by us).
NAME = 22


def shown(result: Any, split: int) -> np.ndarray:
    """Return a split's barriers (state, state), with NaN where there is nothing to show: from a state to itself."""
    table = np.array(result.barrier[split], dtype=float)
    np.fill_diagonal(table, np.nan)
    return table


def labels(states: Sequence[str]) -> list[str]:
    """Return names short enough for an axis: without the folders and the ending that all share, and cut if need be."""
    parts = [s.replace("\\", "/").split("/") for s in states]
    while min(map(len, parts)) > 1 and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while min(map(len, parts)) > 1 and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    names = ["/".join(p) for p in parts]
    ends = {n[n.rfind(".") :] if "." in n else "" for n in names}
    end = ends.pop() if len(ends) == 1 else ""
    names = [n.removesuffix(end) for n in names] if end else names
    return [n if len(n) <= NAME else f"{n[: NAME // 2 - 1]}…{n[-NAME // 2 :]}" for n in names]


@figure("connectivity")
def draw_connectivity(
    result: Connectivity,
    *,
    ax: Axes | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str = SURFACE_MAP,
) -> Axes:
    """Draw the barriers of a Connectivity's first split as a matrix of colors, with their numbers for up to 8 states.

    `limits` fixes the colors, for matrices that are compared; they begin at 0. Pairs without a finite barrier are
    holes. Raises MeasurementError where no barrier is finite.
    """
    table, limits = shown(result, 0), limits or shared_limits([result])
    if limits is None or not len(finite([table])):
        raise MeasurementError("no barrier between these states is finite: there is nothing to draw")
    low, high = limits
    ax = ax or new_axes((5.0, 4.2))
    drawn = ax.imshow(np.ma.masked_invalid(table), cmap=cmap, vmin=low, vmax=high)
    ax.set_facecolor(HOLE)
    names = labels(result.states)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(length=0)
    if len(names) <= WRITTEN:
        for i, j in np.argwhere(np.isfinite(table)):
            value, error = uncertain(float(table[i, j]), float(result.barrier_stderr[0, i, j]))
            red, green, blue, _ = drawn.cmap(drawn.norm(table[i, j]))
            bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.55
            text = f"{value}\n±{error}" if error and len(names) <= WITH_ERRORS else value
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=INK if bright else "white")
    if ax.figure is not None:
        bar = ax.figure.colorbar(drawn, ax=ax, shrink=0.86, label=f"{result.splits[0]} loss barrier")
        bar.outline.set_visible(False)  # type: ignore[operator]
    return ax


def shared_limits(found: Sequence[Connectivity]) -> tuple[float, float] | None:
    """Return the colors' ends for matrices that are compared; None where no barrier of them is finite."""
    known = finite([shown(c, 0) for c in found])
    return (0.0, float(known.max()) or 1.0) if len(known) else None


# ------------------------------------------------------------------------------------------------ on the page


def connections(runs: Sequence[Run]) -> Chart | None:
    """Return the barriers of each run that has them, and of each split, on one color scale."""
    found: list[tuple[Run, Any]] = [(r, c) for r in runs if (c := r.get("connectivity")) is not None]
    pieces = [(r, c, k) for r, c in found for k in range(len(c.splits)) if len(finite([shown(c, k)]))]
    if not pieces:
        return None
    scale = Scale("linear", 0.0, float(finite([shown(c, k) for _, c, k in pieces]).max()) or 1.0)
    low, high = scale.range
    series, panels = [], []
    for i, (run, c, k) in enumerate(pieces):
        names = labels(c.states)
        table = shown(c, k)
        data = {"barrier": table, "barrier_stderr": c.barrier_stderr[k], "distance": c.distance}
        if c.unaligned_barrier is not None:
            data["unaligned_barrier"] = c.unaligned_barrier[k]
        series.append(Series(data, ("state", "other"), f"{run.name}, {c.splits[k]}", run.index))
        trace = {
            "type": "heatmap",
            "x": names,
            "y": names,
            "z": ref(i, "barrier"),
            "hovertemplate": "%{y} to %{x}<br>barrier %{z:.4g}<extra></extra>",
            "colorscale": "Viridis",
            "zmin": low,
            "zmax": high,
            "showscale": False,
            "hoverongaps": False,
            "xgap": 1,
            "ygap": 1,
        }
        if len(names) <= WRITTEN:
            told = [[number(float(v), 3) if np.isfinite(v) else "" for v in row] for row in table]
            trace |= {"text": told, "texttemplate": "%{text}"}
        name = f"{run.name}, {c.splits[k]}" if len(c.splits) > 1 else run.name
        described = f"Loss barriers between each two of {len(names)} checkpoints, {name}."
        panels.append(Panel(name, described, {"all": [trace]}, run.index, _facts(c, k)))
    return Chart(
        id="connectivity",
        title="Barriers between checkpoints",
        caption="How high the loss rises above the line between its ends, on the path between each two checkpoints. "
        "Near 0 the two lie in one basin, as far as this path shows. Standard errors and distances are in the CSV.",
        series=series,
        panels=panels,
        layouts={
            "all": {
                "xaxis": {"type": "category", "constrain": "domain", "tickangle": -45},
                "yaxis": {"type": "category", "scaleanchor": "x", "constrain": "domain", "autorange": "reversed"},
                "hovermode": "closest",
                "plot_bgcolor": css("hole"),
            }
        },
        height=340,
        legend=False,
        colors={"all": scale},
        color_label="loss barrier",
    )


def _facts(c: Any, split: int) -> tuple[str, ...]:
    lines = [f"{c.splits[split]}: barriers {spread(c.barrier[split], c.barrier_stderr[split], c.pairs())}"]
    if c.unaligned_barrier is not None:
        before = spread(c.unaligned_barrier[split], c.unaligned_barrier_stderr[split], c.pairs())
        lines.append(f"units permuted to fit, by {c.align}; before that barriers {before}")
    if c.statistics:
        lines.append(c.statistics)
    if c.curve == "bezier":
        lines.append("along trained quadratic Bezier curves")
    return tuple(lines)


def spread(barrier: np.ndarray, stderr: np.ndarray, pairs: Sequence[tuple[int, int]]) -> str:
    """Return the lowest and the highest barrier in words, with their standard errors; one alone where there is one."""
    known = sorted((float(barrier[i, j]), float(stderr[i, j])) for i, j in pairs if np.isfinite(barrier[i, j]))
    if not known:
        return "not finite"
    ends = [known[0]] if len(known) == 1 else [known[0], known[-1]]
    return " to ".join(" ± ".join(t for t in uncertain(*end) if t) for end in ends)
