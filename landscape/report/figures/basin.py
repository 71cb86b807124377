"""The basin around the weights: every line's loss, and where it has risen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import MeasurementError
from ...surface.fields import Basin
from ..chart import Chart, Panel, Series, css, ref, run_css
from ..numbers import given, number, uncertain
from ..palette import INK, MUTED, PLOTLY_MARKERS, RUN_COLORS, RUN_MARKERS
from ..runs import Run
from ..scales import finite
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The picture ends at this multiple of the largest rise (chosen by us: the basin, not the slopes far above it).
ABOVE = 1.6


@figure("basin")
def draw_basin(result: Basin, *, ax: Axes | None = None, color: str = RUN_COLORS[0]) -> Axes:
    """Draw a Basin: the rise of the loss along every line, and a mark where each ray reaches each rise.

    The mean width of each rise stands in the legend with its standard error. Raises MeasurementError where no point of
    any line is finite.
    """
    start = float(result.loss[0, np.flatnonzero(result.step == 0)[0]])
    rises = np.asarray(result.loss, dtype=float) - start
    if not len(finite([rises])):
        raise MeasurementError("no point of these lines is finite: there is nothing to draw")
    ax = ax or new_axes((5.4, 3.8))
    top = ABOVE * float(np.max(result.rise))
    for row in rises:
        ax.plot(result.step, np.where(np.isfinite(row), row, np.nan), color=color, linewidth=0.8, alpha=0.45)
    for j, rise in enumerate(np.asarray(result.rise, dtype=float)):
        ax.axhline(rise, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        radii = np.concatenate([-result.radius[:, 0, j], result.radius[:, 1, j]])
        radii = radii[np.isfinite(radii)]
        value, error = uncertain(float(result.width[j]), float(result.width_stderr[j]))
        said = f"rise {given(rise)}: width {value} ± {error}" if error else f"rise {given(rise)}: not reached"
        ax.plot(
            radii, np.full(len(radii), rise), RUN_MARKERS[j % len(RUN_MARKERS)], color=color, markeredgecolor=INK,
            markeredgewidth=0.5, markersize=4.5, linestyle="none", label=said,
        )  # fmt: skip
    reached = finite([result.radius])
    far = 1.25 * float(reached.max()) if len(reached) else float(np.max(result.step))
    ax.set_xlim(-far, far)
    low = min(0.0, float(finite([rises]).min()))
    ax.set_ylim(low - 0.04 * top, top)
    ax.legend(frameon=False, fontsize=9, loc="upper center")
    ax.set_xlabel("step along the line\n(1: each filter moves by about its own norm)")
    ax.set_ylabel(f"rise of the {result.split} loss")
    tidy(ax)
    return ax


# ------------------------------------------------------------------------------------------------ on the page


def basins(runs: Sequence[Run]) -> Chart | None:
    """Return the basins of these runs side by side on one span and one height."""
    found: list[tuple[Run, Any]] = [(r, b) for r in runs if (b := r.get("basin")) is not None]
    found = [(r, b) for r, b in found if len(finite([b.loss]))]
    if not found:
        return None
    reached = finite([b.radius for _, b in found])
    far = 1.25 * float(reached.max() if len(reached) else max(np.max(b.step) for _, b in found))
    top = ABOVE * max(float(np.max(b.rise)) for _, b in found)
    low = min(0.0, *(float(finite([_rises(b)]).min()) for _, b in found))
    series: list[Series] = []
    panels = []
    for run, b in found:
        at = len(series)
        rises = _rises(b)
        gap = np.full((len(rises), 1), np.nan)  # between two lines
        series.append(
            Series(
                {
                    "line": np.repeat(b.ray, len(b.step) + 1),
                    "step": np.hstack([np.tile(b.step, (len(rises), 1)), gap]).ravel(),
                    "rise": np.hstack([rises, gap]).ravel(),
                },
                ("line",),
                run.name,
                run.index,
                csv=False,
            )
        )
        series.append(
            Series(
                {
                    "rise": b.rise,
                    "width": b.width,
                    "width_stderr": b.width_stderr,
                    "width_spread": b.width_spread,
                    "log_volume_bound": b.log_volume_bound,
                    "log_volume_bound_stderr": b.log_volume_bound_stderr,
                },
                ("rise",),
                run.name,
                run.index,
            )
        )
        panels.append(Panel(run.name, f"The basin of {run.name}.", {"all": _traces(at, run, b)}, run.index, _facts(b)))
    return Chart(
        id="basins",
        title="Width of the basin",
        caption="The rise of the loss along random lines through each checkpoint, and where it reaches each level "
        "(marks). A step of 1 moves each filter by about its own norm. Random lines are flatter than the steepest "
        "ones: read it beside the eigenvalues.",
        series=series,
        panels=panels,
        layouts={
            "all": {
                "xaxis": {"title": {"text": "step along the line"}, "range": [-far, far]},
                "yaxis": {"title": {"text": "rise of the loss"}, "range": [low - 0.04 * top, top]},
                "hovermode": "closest",
            }
        },
        height=300,
        legend=False,
    )


def _rises(b: Any) -> np.ndarray:
    return np.asarray(b.loss, dtype=float) - float(b.loss[0, np.flatnonzero(b.step == 0)[0]])


def _traces(at: int, run: Run, b: Any) -> list[dict]:
    traces: list[dict] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": ref(at, "step"),
            "y": ref(at, "rise"),
            "hoverinfo": "skip",
            "connectgaps": False,
            "line": {"color": run_css(run.index, 0.45), "width": 1},
        }
    ]
    for j, rise in enumerate(np.asarray(b.rise, dtype=float)):
        radii = np.concatenate([-b.radius[:, 0, j], b.radius[:, 1, j]])
        radii = radii[np.isfinite(radii)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [float(r) for r in radii],
                "y": [float(rise)] * len(radii),
                "hovertemplate": f"rise {given(float(rise))} at %{{x:.3g}}<extra></extra>",
                "marker": {
                    "symbol": PLOTLY_MARKERS[j % len(PLOTLY_MARKERS)],
                    "size": 7,
                    "color": run_css(run.index),
                    "line": {"color": css("ink"), "width": 0.6},
                },
            }
        )
    return traces


def _facts(b: Any) -> tuple[str, ...]:
    lines = []
    for j, rise in enumerate(np.asarray(b.rise, dtype=float)):
        if not np.isfinite(b.width[j]):
            lines.append(f"rise {given(float(rise))}: not reached")
            continue
        value, error = uncertain(float(b.width[j]), float(b.width_stderr[j]))
        spread = number(float(b.width_spread[j]), 2)
        lines.append(f"width at a rise of {given(float(rise))}: {value} ± {error}, spread {spread}")
    if np.isfinite(b.roughness):
        value, error = uncertain(float(b.roughness), float(b.roughness_stderr))
        lines.append(f"roughness {value}" + (f" ± {error}" if error else ""))
    return tuple(lines)
