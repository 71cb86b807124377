"""One file for each figure: `draw_<kind>` for papers (matplotlib), and the same as a chart of the page (Plotly)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import MeasurementError
from ...results import Result, kind_of
from .generic import draw_generic
from .registry import figure, figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "figure", "figures"]


def draw(result: Result, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw any result as a matplotlib figure and return its main axes; `axes.figure.savefig("x.pdf")` keeps it.

    Nothing is computed and no global style is touched: the numbers drawn are the result's own, with their units
    on the axes and their uncertainty where they have one. Without `ax` the axes lie in a new Figure (not in
    pyplot's list). `style` goes to the drawing of the result's kind: see `landscape.report.figures.plane` and
    its neighbors. A kind that has no drawing of its own is drawn from its variables: scalars as a table, one
    dimension as a line over its coordinate, two as a heat map.

    Raises TypeError for something that is no Result, or a style that the drawing does not know; MeasurementError for
    one that failed.
    """
    if not isinstance(result, Result):
        raise TypeError(f"draw needs a Result, got {type(result).__name__}; measure one, or read an archive's entries")
    if result.status == "failed":
        why = "; ".join(c.message for c in result.checks if c.level == "fail")
        raise MeasurementError(f"there is nothing to draw: {kind_of(result)} was not measured{why and f' ({why})'}")
    return figures().get(kind_of(result), draw_generic)(result, ax=ax, **style)
