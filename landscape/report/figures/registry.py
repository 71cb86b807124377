"""Which function draws which kind of result as a matplotlib figure."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..numbers import given
from ..scales import Scale

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


#: Labels of an axis that isn't linear (chosen by us: as many as a color bar has).
_LABELS = 6


def set_height(ax: Axes, scale: Scale) -> None:
    """Give the y axis this scale, with round numbers beside it."""
    if scale.kind == "asinh":
        ax.set_yscale("asinh", linear_width=scale.width)
    elif scale.kind == "log":
        ax.set_yscale("log")
    if scale.kind != "linear":
        round_ticks(ax.yaxis, scale)


def round_ticks(axis: Axis, scale: Scale | None = None) -> None:
    """Label a logarithmic axis, or one of this scale, at round numbers as they are written everywhere: 0.03, 0.1, 10⁸.

    They follow the axis where its ends move.
    """
    from matplotlib.ticker import FuncFormatter, Locator, NullFormatter

    chosen = scale or Scale("log", 1.0, 10.0)

    class Round(Locator):
        def __call__(self) -> list[float]:
            assert self.axis is not None
            return self.tick_values(*self.axis.get_view_interval())

        def tick_values(self, vmin: float, vmax: float) -> list[float]:
            low, high = min(vmin, vmax), max(vmin, vmax)
            if chosen.kind == "log" and not low > 0:
                return []
            values = replace(chosen, low=low, high=high).round_values(_LABELS)
            tens = [v for v in values if v > 0 and math.log10(v).is_integer()]
            return tens if chosen.kind == "log" and len(tens) > 2 else values

    axis.set_major_locator(Round())
    axis.set_major_formatter(FuncFormatter(lambda value, _: given(float(value))))
    axis.set_minor_formatter(NullFormatter())


def tidy(ax: Axes) -> None:
    """Leave the two spines and a faint grid that a reader needs."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, color="#d0d7de", linewidth=0.5)
    ax.set_axisbelow(True)
