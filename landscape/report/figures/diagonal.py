"""The diagonal of an operator by parameter tensor: the sum of each, which is that block's trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...curvature.estimates import DiagonalEstimate
from ...errors import MeasurementError
from ..chart import Chart
from ..palette import MUTED, RUN_COLORS
from ..runs import Run
from ..value import Z95
from .registry import figure, new_axes, tidy
from .rows import rows_chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X_LABEL = "sum of the diagonal (loss / parameter²)"


@figure("diagonal")
def draw_diagonal(
    result: DiagonalEstimate, *, ax: Axes | None = None, color: str = RUN_COLORS[0], label: str | None = None
) -> Axes:
    """Draw the diagonal's sum over each parameter tensor, with 95% intervals, in the model's order from the top.

    Raises MeasurementError where no sum is finite.
    """
    sums = np.asarray(result.sums, dtype=float)
    if not np.isfinite(sums).any():
        raise MeasurementError("no sum of this diagonal is finite: there is nothing to draw")
    rows = np.arange(len(sums))
    ax = ax or new_axes((5.4, max(2.0, 0.8 + 0.24 * len(rows))))
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.errorbar(
        sums,
        rows,
        xerr=Z95 * np.asarray(result.sums_stderr, dtype=float),
        fmt="o",
        color=color,
        markersize=5,
        elinewidth=1.2,
        capsize=2.5,
        label=label,
    )
    ax.set_yticks(rows, [name or "all" for name in result.names])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(X_LABEL)
    ax.set_ylabel("parameter tensor")
    if label:
        ax.legend(frameon=False, fontsize="small")
    tidy(ax)
    return ax


def diagonals(runs: Sequence[Run]) -> Chart | None:
    """Return the sums of these runs' diagonals by parameter tensor, in one picture."""
    kept: list[tuple[Run, Any]] = [(r, d) for r in runs if (d := r.get("diagonal")) is not None]
    found = [
        (r, d.names, np.asarray(d.sums, dtype=float), Z95 * np.asarray(d.sums_stderr, dtype=float)) for r, d in kept
    ]
    found = [row for row in found if np.isfinite(row[2]).any()]
    if not found:
        return None
    return rows_chart(
        "diagonal",
        "Diagonal by parameter tensor",
        "The diagonal's entries, summed over each parameter tensor: the trace of that block. Bars are 95% intervals "
        "over the random vectors.",
        X_LABEL,
        found,
        column="sum",
    )
