"""Sharpness measures: how much the loss rises around the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...curvature.spectrum import SharpnessEstimate
from ...errors import MeasurementError
from ..palette import MUTED, RUN_COLORS
from ..scales import finite
from .registry import figure, new_axes, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@figure("sharpness")
def draw_sharpness(result: SharpnessEstimate, *, ax: Axes | None = None, color: str = RUN_COLORS[0]) -> Axes:
    """Draw each sharpness measure as a dot with its standard error; a dagger marks what a rescaling changes.

    The measures have norms and radii of their own: compare one measure across runs, not the measures with each
    other. Those that are shares of 1 + loss (Keskar's) have an axis of their own above, and hollow dots. Raises
    MeasurementError where no measure is finite.
    """
    values, errors = np.ravel(result.values), np.ravel(result.stderr)
    if not len(finite([values])):
        raise MeasurementError("no sharpness measure is finite: there is nothing to draw")
    ax = ax or new_axes((5.2, 0.8 + 0.42 * len(values)))
    row = np.arange(len(values))
    marks = ["†" if changes else "" for changes in np.ravel(result.rescaling)]
    labels = [f"{n}{m} (ρ = {r:.3g})" for n, m, r in zip(result.names, marks, np.ravel(result.rho), strict=True)]
    shares = np.array([unit == "%" for unit in result.units or ("loss",) * len(values)])
    look: dict[str, Any] = {"fmt": "o", "color": color, "markersize": 5.5, "elinewidth": 1.2, "capsize": 2.5}
    if not shares.all():
        ax.errorbar(values[~shares], row[~shares], xerr=errors[~shares], **look)
    if shares.any():
        above = ax.twiny()
        above.errorbar(values[shares], row[shares], xerr=errors[shares], markerfacecolor="none", **look)
        above.set_xlabel("○ in % of 1 + loss")
        _from_zero(above)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.set_yticks(row, labels)
    ax.set_ylim(len(values) - 0.4, -0.6)
    label = "rise of the loss, ± standard error"
    ax.set_xlabel(label + ("\n† changed by rescaling layers" if any(marks) else ""))
    _from_zero(ax)
    tidy(ax)
    return ax


def _from_zero(ax: Axes) -> None:
    """Put the zeros of both axes at the same place where no number is clearly below it."""
    low, high = ax.get_xlim()
    if low > -0.1 * high:
        ax.set_xlim(-0.06 * high, high)
