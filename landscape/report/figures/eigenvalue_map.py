"""The ratio of the Hessian's extreme eigenvalues over a plane: where the loss is as good as convex."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import MeasurementError
from ...surface.fields import EigenvalueMap
from ..chart import Chart, Panel, Series, css, ref
from ..numbers import count, number
from ..palette import HOLE, INK, RUN_COLORS, SURFACE_MAP
from ..runs import Run
from ..scales import Scale, finite
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "ratio": "|λ min / λ max|",
    "largest": "λ max (loss / parameter²)",
    "smallest": "λ min (loss / parameter²)",
}


@figure("eigenvalue_map")
def draw_eigenvalue_map(
    result: EigenvalueMap,
    *,
    ax: Axes | None = None,
    quantity: Literal["ratio", "largest", "smallest"] = "ratio",
    limits: tuple[float, float] | None = None,
    cmap: str = SURFACE_MAP,
) -> Axes:
    """Draw an EigenvalueMap as a heat map (a line where it has one row), each point as it was measured.

    Points that are not finite are holes; a cross marks those where an eigenvalue has not converged. `limits` fixes the
    colors, for maps that are compared; the ratio's begin at 0. Raises MeasurementError where no point is finite.
    """
    values = np.asarray(getattr(result, quantity), dtype=float)
    known = finite([values])
    if not len(known):
        raise MeasurementError("no point of this map is finite: there is nothing to draw")
    low, high = limits or (0.0 if quantity == "ratio" else float(known.min()), float(known.max()))
    if 1 in values.shape:
        return _draw_row(result, values, quantity, ax)
    ax = ax or new_axes((5.0, 4.2))
    drawn = ax.pcolormesh(
        result.alpha, result.beta, np.ma.masked_invalid(values).T, cmap=cmap, shading="nearest", vmin=low, vmax=high
    )
    ax.set_facecolor(HOLE)
    late = np.argwhere(np.isfinite(values) & ~np.asarray(result.converged, dtype=bool))
    if len(late) and np.isfinite(np.asarray(result.largest_residual)).any():
        ax.plot(result.alpha[late[:, 0]], result.beta[late[:, 1]], "x", color="white", markersize=5)
    ax.plot(0, 0, marker="+", markersize=11, markeredgewidth=3.2, color="white", linestyle="none")
    ax.plot(0, 0, marker="+", markersize=10, markeredgewidth=1.4, color=INK, linestyle="none")
    ax.set_aspect("equal")
    if ax.figure is not None:
        # As high as the map, which is a square in a place that may be taller.
        bar = ax.figure.colorbar(drawn, cax=ax.inset_axes((1.03, 0.0, 0.05, 1.0)), label=LABELS[quantity])
        bar.outline.set_visible(False)  # type: ignore[operator]
    ax.set_xlabel("α (step along d₁)")
    ax.set_ylabel("β (step along d₂)")
    return ax


def shared_limits(maps: Sequence[EigenvalueMap], quantity: str = "ratio") -> tuple[float, float] | None:
    """Return the colors' ends for maps that are compared; None where no point of them is finite."""
    known = finite([np.asarray(getattr(m, quantity), dtype=float) for m in maps])
    if not len(known):
        return None
    return 0.0 if quantity == "ratio" else float(known.min()), float(known.max())


def _draw_row(result: EigenvalueMap, values: np.ndarray, quantity: str, ax: Axes | None) -> Axes:
    ax = ax or new_axes((5.0, 3.4))
    along = values.shape[1] == 1
    ax.plot(result.alpha if along else result.beta, values.ravel(), "o-", color=RUN_COLORS[0], markersize=3)
    ax.set_xlabel("α (step along d₁)" if along else "β (step along d₂)")
    ax.set_ylabel(LABELS[quantity])
    tidy(ax)
    return ax


# ------------------------------------------------------------------------------------------------ on the page


def eigenvalue_maps(runs: Sequence[Run]) -> Chart | None:
    """Return the ratio maps of these runs side by side on one color scale."""
    found: list[tuple[Run, Any]] = [(r, m) for r in runs if (m := r.get("eigenvalue_map")) is not None]
    found = [(r, m) for r, m in found if len(finite([m.ratio]))]
    if not found:
        return None
    scale = Scale("linear", 0.0, float(finite([m.ratio for _, m in found]).max()))
    low, high = scale.range
    series, panels = [], []
    for i, (run, m) in enumerate(found):
        series.append(
            Series(
                {
                    "alpha": m.alpha,
                    "beta": m.beta,
                    "ratio": m.ratio,
                    "largest": m.largest,
                    "smallest": m.smallest,
                    "largest_residual": m.largest_residual,
                    "smallest_residual": m.smallest_residual,
                },
                ("alpha", "beta"),
                run.name,
                run.index,
            )
        )
        traces = [
            {
                "type": "heatmap",
                "x": ref(i, "alpha"),
                "y": ref(i, "beta"),
                "z": ref(i, "ratio", transpose=True),
                "text": ref(i, "largest", transpose=True, text=True),
                "hovertemplate": "α %{x:.3g}, β %{y:.3g}<br>ratio %{z:.3g}, λ max %{text}<extra></extra>",
                "colorscale": "Viridis",
                "zmin": low,
                "zmax": high,
                "showscale": False,
                "hoverongaps": False,
            },
            {
                "type": "scatter",
                "mode": "markers",
                "x": [0],
                "y": [0],
                "marker": {"symbol": "cross-thin", "size": 11, "line": {"color": "#ffffff", "width": 2}},
                "hoverinfo": "skip",
            },
        ]
        panels.append(
            Panel(run.name, f"Ratio of extreme eigenvalues of {run.name}.", {"all": traces}, run.index, _facts(m))
        )
    return Chart(
        id="eigenvalue-maps",
        title="Convexity over the plane",
        caption="|λ min / λ max| of the Hessian at each point of the plane: near 0 the loss is as good as convex "
        "there, in the directions too that the picture doesn't show. Residuals are in the CSV.",
        series=series,
        panels=panels,
        layouts={
            "all": {
                "xaxis": {"title": {"text": "α (step along d₁)"}, "constrain": "domain"},
                "yaxis": {"title": {"text": "β (step along d₂)"}, "scaleanchor": "x", "constrain": "domain"},
                "hovermode": "closest",
                "plot_bgcolor": css("hole"),
            }
        },
        height=300,
        legend=False,
        colors={"all": scale},
        color_label="|λ min / λ max|",
    )


def _facts(m: Any) -> tuple[str, ...]:
    known = finite([m.ratio])
    lines = [f"median {number(float(np.median(known)), 3)}, largest {number(float(known.max()), 3)}"]
    late = int((np.isfinite(m.largest) & ~np.asarray(m.converged, dtype=bool)).sum())
    if not len(finite([m.largest_residual])):
        lines.append("residuals unknown")
    elif late:
        lines.append(f"{count(late)} of {count(m.largest.size)} points not converged")
    return tuple(lines)
