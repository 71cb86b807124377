"""Loss and accuracy on each split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from ...errors import MeasurementError
from ...performance import Performance
from ..palette import RUN_COLORS
from ..scales import finite
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure("performance")
def draw_performance(
    result: Performance,
    *,
    ax: Axes | None = None,
    quantity: Literal["loss", "accuracy"] = "loss",
    color: str = RUN_COLORS[0],
) -> Axes:
    """Draw the loss (or accuracy) of each split as a dot with its standard error over the samples.

    Raises MeasurementError where no split has a finite value.
    """
    values = np.ravel(np.asarray(getattr(result, quantity), dtype=float))
    errors = np.ravel(np.asarray(getattr(result, f"{quantity}_stderr"), dtype=float))
    if not len(finite([values])):
        raise MeasurementError(f"no split has a finite {quantity}: there is nothing to draw")
    ax = ax or new_axes((4.6, 0.9 + 0.5 * len(values)))
    row = np.arange(len(values))
    ax.errorbar(values, row, xerr=errors, fmt="o", color=color, markersize=6, elinewidth=1.2, capsize=2.5)
    ax.set_yticks(row, list(result.splits))
    ax.set_ylim(len(values) - 0.4, -0.6)
    said = "mean loss" if quantity == "loss" else "accuracy (share of right labels)"
    ax.set_xlabel(said + (", ± standard error" if len(finite([errors])) else ""))
    tidy(ax)
    return ax
