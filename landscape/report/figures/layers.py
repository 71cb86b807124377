"""The largest eigenvalue of each layer's own block of the Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...curvature.spectrum import LayerCurvature
from ...errors import MeasurementError
from ..chart import Chart
from ..palette import MUTED, RUN_COLORS
from ..runs import Run
from .registry import figure, new_axes, round_ticks, tidy
from .rows import rows_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X_LABEL = "λ max of the layer's own block (loss / parameter²)"


@figure("layers")
def draw_layers(
    result: LayerCurvature, *, ax: Axes | None = None, color: str = RUN_COLORS[0], label: str | None = None
) -> Axes:
    """Draw the largest eigenvalue of each layer, the model's first at the top, on a logarithmic axis.

    The bars are the residuals, the dashed line is the largest eigenvalue over all layers together, in the color of its
    run where it has a `label`. An eigenvalue that is not positive has no place on the axis. Raises MeasurementError
    where none is.
    """
    values = np.asarray(result.largest, dtype=float)
    if not (values > 0).any():
        raise MeasurementError("no layer's largest eigenvalue is positive: there is nothing to draw on a log axis")
    rows = np.arange(len(values))
    ax = ax or new_axes((5.4, max(2.0, 0.8 + 0.24 * len(rows))))
    ax.axvline(float(result.whole), color=color if label else MUTED, linewidth=0.9, linestyle="--")
    up = values > 0
    residuals = np.asarray(result.residuals, dtype=float)
    ax.errorbar(values[up], rows[up], xerr=residuals[up], fmt="o", color=color, markersize=5, capsize=2.5, label=label)
    ax.set_xscale("log")
    round_ticks(ax.xaxis)
    ax.set_yticks(rows, list(result.names))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(X_LABEL.replace(" (", "\n(") + "\ndashed: of all layers together")
    ax.set_ylabel("layer")
    if label:
        ax.legend(frameon=False, fontsize="small")
    tidy(ax)
    return ax


def layer_rows(runs: Sequence[Run]) -> Chart | None:
    """Return the largest eigenvalue of each layer of these runs, in one picture."""
    kept: list[tuple[Run, Any]] = [(r, d) for r in runs if (d := r.get("layers")) is not None]
    found = [(r, d.names, np.asarray(d.largest, dtype=float), np.asarray(d.residuals, dtype=float)) for r, d in kept]
    found = [row for row in found if np.isfinite(row[2]).any()]
    if not found:
        return None
    return rows_chart(
        "layers",
        "Largest eigenvalue layer by layer",
        "Of each layer's own diagonal block of the Hessian; none can exceed the largest eigenvalue of the whole. Bars "
        "are the residuals.",
        X_LABEL,
        found,
        column="eigenvalue",
        log=True,
    )
