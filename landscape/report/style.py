"""Sizes and strokes for where a figure will stand: a column of a paper, a screen, a talk. Nothing global stays set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LandscapeError
from .palette import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Style:
    """How large a figure and its letters are: widths in inches, font sizes in points.

    `single` and `double` are the widths of one and of two columns; `stroke` multiplies the widths of lines and the
    sizes of markers that the drawings have on a screen.
    """

    name: str
    single: float
    double: float
    font: float
    small: float
    stroke: float
    dpi: int

    def width(self, column: str) -> float:
        """Return the width of "single" or "double", in inches."""
        if column not in ("single", "double"):
            raise LandscapeError(f"a figure spans a single or a double column, got {column!r}")
        return self.single if column == "single" else self.double


#: 3.3 and 6.9 inches fit the columns of IEEE, ACM and ICML (NeurIPS and ICLR: a page of 5.5, say --width 5.5); 8 points
#: are the size of a caption there, and 7 about the least that journals ask for.
PAPER = Style("paper", 3.3, 6.9, 8.0, 7.0, 0.75, 400)
SCREEN = Style("screen", 5.2, 10.0, 10.0, 9.0, 1.0, 144)
#: A slide of 13.3 x 7.5 inches: letters of 18 points are read from the last row.
TALK = Style("talk", 6.2, 12.6, 18.0, 15.0, 1.8, 200)
STYLES = {style.name: style for style in (PAPER, SCREEN, TALK)}


def style_of(name: str | Style) -> Style:
    """Return a style by its name. Raises LandscapeError for an unknown one."""
    if isinstance(name, Style):
        return name
    if name not in STYLES:
        raise LandscapeError(f"there is no style {name!r}; there are {', '.join(STYLES)}")
    return STYLES[name]


def settings(style: Style) -> dict[str, Any]:
    """Return matplotlib's settings for a style: fonts that stay text in PDF and SVG, thin frames, dark gray ink."""
    return {
        "font.size": style.font,
        "axes.titlesize": style.font,
        "axes.labelsize": style.font,
        "xtick.labelsize": style.small,
        "ytick.labelsize": style.small,
        "legend.fontsize": style.small,
        "figure.titlesize": style.font,
        "axes.linewidth": 0.8 * style.stroke,
        "xtick.major.width": 0.8 * style.stroke,
        "ytick.major.width": 0.8 * style.stroke,
        "xtick.major.size": 0.35 * style.font,
        "ytick.major.size": 0.35 * style.font,
        "axes.labelpad": 0.3 * style.font,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.formatter.use_mathtext": True,  # a factor beside an axis as × 10⁶, not 1e6
        "legend.handlelength": 1.5,
        "legend.borderaxespad": 0.3,
        "figure.constrained_layout.w_pad": 0.02,
        "figure.constrained_layout.h_pad": 0.02,
        # Type 42 embeds the font itself, so that text can be searched and edited; journals refuse Type 3.
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        # The same numbers give the same file.
        "svg.hashsalt": "landscape-probe",
    }


@contextmanager
def styled(style: Style) -> Iterator[None]:
    """Draw and save within: matplotlib's settings are the style's inside, and as they were after."""
    from matplotlib import rc_context

    rc: Any = settings(style)
    with rc_context(rc):
        yield


def fit(figure: Figure, style: Style) -> None:
    """Bring what a drawing sized in points of its own to the style: letters within bounds, strokes scaled."""
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.text import Text
    from matplotlib.ticker import AutoLocator

    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        size = float(text.get_fontsize())
        text.set_fontsize(min(max(size, style.small), style.font))
    for legend in figure.findobj(Legend):
        assert isinstance(legend, Legend)
        # On white, so that it can be read where it has to lie over the data.
        legend.set_frame_on(True)
        legend.get_frame().set(alpha=0.8, linewidth=0, facecolor="white")
    for ax in figure.axes:
        if ax.get_xscale() == "linear" and isinstance(ax.xaxis.get_major_locator(), AutoLocator):
            ax.locator_params(axis="x", nbins=5)
    own = {part for ax in figure.findobj(Axes) for part in _ticks(ax)}
    named = {line for legend in figure.legends for line in legend.get_lines()}
    for line in figure.findobj(Line2D):
        assert isinstance(line, Line2D)
        if (line.axes is None and line not in named) or line in own:
            continue
        line.set_linewidth(line.get_linewidth() * style.stroke)
        line.set_markersize(line.get_markersize() * style.stroke)
        line.set_markeredgewidth(line.get_markeredgewidth() * style.stroke)
    for bars in figure.findobj(LineCollection):
        assert isinstance(bars, LineCollection)
        bars.set_linewidth((np.atleast_1d(bars.get_linewidth()) * style.stroke).tolist())


def _ticks(axes: Any) -> set[Any]:
    """Return the lines that belong to the axis rather than to the data: the settings sized them."""
    found: set[Any] = set()
    for axis in (axes.xaxis, axes.yaxis, *([axes.zaxis] if hasattr(axes, "zaxis") else [])):
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            found |= {tick.tick1line, tick.tick2line, tick.gridline}
        found.add(axis.line if hasattr(axis, "line") else None)
    return found
