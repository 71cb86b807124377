"""Which function draws which kind of result as a matplotlib figure."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

Draw = Callable[..., "Axes"]
F = TypeVar("F", bound=Draw)

_FIGURES: dict[str, Draw] = {}


def figure(kind: str) -> Callable[[F], F]:
    """Register a function `(result, *, ax=None, **style) -> Axes` as the drawing of this kind of result."""

    def register(function: F) -> F:
        _FIGURES[kind] = function
        return function

    return register


def figures() -> dict[str, Draw]:
    """Return every registered drawing by kind; a new file in this folder is found by itself."""
    package = importlib.import_module("landscape.report.figures")
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(info.name)
    return dict(_FIGURES)


def new_axes(size: tuple[float, float], **options: Any) -> Axes:
    """Return axes in a figure of their own, in inches; no pyplot, so that nothing global holds on to it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(canvas)
    return canvas.add_subplot(**options)


def whole_numbers(axis: Axis) -> None:
    """Label an axis that counts or ranks with whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def tidy(ax: Axes) -> None:
    """Leave the two spines and a faint grid that a reader needs."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#d0d7de", linewidth=0.5)
    ax.set_axisbelow(True)
