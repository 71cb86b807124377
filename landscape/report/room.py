"""Room for the words of a figure: axis labels and names in as many lines as they need to stay within it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A label in more lines makes the axes smaller, and so may need one more (seen: the fourth time all fit).
_TIMES = 5
#: Share of its room that a label may take (chosen by us).
_SURE = 0.97
#: Width of a letter over its size, in the mean (seen in DejaVu Sans).
LETTER = 0.62


def fold_labels(figure: Figure) -> None:
    """Lay the figure out, and break labels that would reach out of their panel's place in it, between words.

    Labels of 3D axes are left alone: they lie along their axes, where the layout doesn't see them.
    """
    if any(ax.name == "3d" for ax in figure.axes):
        place_labels(figure)
    for _ in range(_TIMES):
        # What hangs at an axes (a color bar, a strip) is placed with it: the next layout finds room for it.
        figure.draw_without_rendering()
        axes = [(part, ax) for ax in figure.axes if ax.name != "3d" for part in (ax, *ax.child_axes)]
        folded = [_fold(figure, axis, ax) for part, ax in axes for axis in (part.xaxis, part.yaxis)]
        if not any(folded):
            break
    figure.draw_without_rendering()


def place_labels(figure: Any) -> None:
    """Draw once without the layout, which places the labels of 3D axes.

    matplotlib before 3.11.2 places them in no other way: its layout would take new ones to lie where they were made,
    far outside of the figure, and give up.
    """
    whole = getattr(figure, "figure", None) or figure  # of a subfigure
    engine = whole.get_layout_engine()
    whole.set_layout_engine("none")
    whole.draw_without_rendering()
    whole.set_layout_engine(engine)


#: Names that a legend holds within the axes (chosen by us: three lines leave the curves their room), and the share of
#: the axes' width that they may take there (chosen by us: the curves keep the other half).
INSIDE, NARROW = 3, 0.45
#: Inches that a legend takes beside its names, with letters of 8 points (seen: its lines, and room around them).
_BESIDE = 0.45


def names_within(names: Sequence[str], inches: float, size: float) -> list[str]:
    """Return the names of a legend that is so wide, with letters of `size` points, in as many lines as each needs."""
    letters = int((inches - _BESIDE * size / 8) * 72 / (LETTER * size))
    return ["\n".join(textwrap.wrap(name, max(letters, 8))) or name for name in names]


def few_and_short(names: Sequence[str], inches: float, size: float) -> bool:
    """Say whether a legend of these names leaves an axes that is so wide its room: else it belongs below."""
    return len(names) <= INSIDE and _longest(names) * LETTER * size < NARROW * inches * 72


def columns_of(names: Sequence[str], inches: float, size: float) -> int:
    """Return in how many columns a legend of these names stands below a figure that is so wide."""
    return max(1, min(len(names), int(inches * 72 / (size * (LETTER * _longest(names) + 3)))))


def _longest(names: Sequence[str]) -> int:
    return max(len(line) for name in names for line in name.split("\n"))


def lines_of(names: Sequence[str], columns: int) -> int:
    """Return how many lines a legend of these names has, in so many columns, filled one after the other."""
    rows = -(-len(names) // columns)
    return sum(max(name.count("\n") + 1 for name in names[row::rows]) for row in range(rows))


def _fold(figure: Figure, axis: Any, home: Any) -> bool:
    """Break one label where it is too long for the place of the axes that it belongs to; say whether it was."""
    text, box = axis.label.get_text(), axis.label.get_window_extent()
    low, high = _place(figure, home, axis.axis_name)
    start, end = (box.x0, box.x1) if axis.axis_name == "x" else (box.y0, box.y1)
    # It stands in the middle of its axis; letters are some hundredths wider at the resolution of the file.
    room = 2 * _SURE * min((start + end) / 2 - low, high - (start + end) / 2)
    if not text.strip() or not 0 < room < end - start:
        return False
    letters = int(max(map(len, text.split("\n"))) * room / (end - start))
    lines = "\n".join(part for line in text.split("\n") for part in _lines(line, letters))
    axis.label.set_text(lines)
    return lines != text


def _lines(line: str, letters: int) -> list[str]:
    """Break a line into pieces of at most so many letters where its words allow it, before its unit first."""
    if len(line) <= letters:
        return [line]
    words, _, unit = line.rpartition(" (")
    parts = [words, f"({unit}"] if words else [line]
    return [piece for part in parts for piece in textwrap.wrap(part, max(letters, 1), break_long_words=False)]


def _place(figure: Figure, ax: Any, name: str) -> tuple[float, float]:
    """Return from where to where the labels of an axes may reach, in pixels: halfway to the axes beside it."""
    low, high = 0.0, figure.bbox.width if name == "x" else figure.bbox.height
    spec = ax.get_subplotspec()
    if spec is None:  # a color bar of several panels
        return low, high
    start, end = _ends(ax, name)
    across = "rowspan" if name == "x" else "colspan"
    for other in figure.axes:
        place = other.get_subplotspec()
        if other is ax or place is None or getattr(place, across) != getattr(spec, across):
            continue
        first, last = _ends(other, name)
        if last <= start:
            low = max(low, (last + start) / 2)
        elif first >= end:
            high = min(high, (end + first) / 2)
    return low, high


def _ends(ax: Any, name: str) -> tuple[float, float]:
    box = ax.get_window_extent()
    return (box.x0, box.x1) if name == "x" else (box.y0, box.y1)
