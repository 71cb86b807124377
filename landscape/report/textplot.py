"""Curves as text: braille dots where a terminal has them, ASCII where not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Columns of the labels on the vertical axis.
LABEL = 9
#: A positive range that spans more than this is drawn on a logarithmic axis (chosen by us).
_LOGARITHMIC = 20.0
#: A dotted curve is followed up to so many times the greatest value of the others (chosen by us).
_REACH = 10.0
#: Bits of a braille character by (row, column) of its 4 x 2 dots.
_DOTS = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
_COLOURS = {"cyan": 36, "yellow": 33, "green": 32, "red": 31, "magenta": 35, "bold": 1, "dim": 2}


@dataclass(frozen=True)
class Drawn:
    """A curve to draw: `steps` and `values` (n,), its colour, and whether it is `dotted`, as a limit is."""

    steps: np.ndarray
    values: np.ndarray
    colour: str = "cyan"
    dotted: bool = False


@dataclass(frozen=True)
class Pen:
    """What a terminal can show."""

    braille: bool = True
    colour: bool = False

    def paint(self, text: str, *styles: str) -> str:
        """Return text in a style, as it is where the terminal shall stay plain."""
        if not self.colour or not text or not styles:
            return text
        return f"\x1b[{';'.join(str(_COLOURS[s]) for s in styles)}m{text}\x1b[0m"


def plot(curves: Sequence[Drawn], width: int, height: int, pen: Pen) -> list[str]:
    """Return `height` lines of `width` columns: the curves over a common axis of steps, the last one on top.

    The last line is the axis of steps. Empty where there is no finite value.
    """
    rows, columns = max(height - 1, 1), max(width - LABEL - 1, 4)
    given = [c for c in curves if np.isfinite(c.values).any()]
    if not given:
        middle = "nothing recorded yet"[:columns].center(columns)
        lines = [" " * LABEL + _bar(pen) + (middle if i == rows // 2 else " " * columns) for i in range(rows)]
        return [*lines, " " * width]
    first, last = (f([f(c.steps) for c in given]) for f in (min, max))
    # Dots of a character: 4 x 2 in braille; 2 x 1 in ASCII, an upper and a lower one.
    down, across = (4, 2) if pen.braille else (2, 1)
    ways = [_way(c, (float(first), float(last)), columns * across) for c in given]
    logarithmic, low, high = _range([w for _, w in ways], [c.dotted for c in given])
    masks = [
        _dots(at, values, c.dotted, (low, high), logarithmic, (rows * down, columns * across))
        for c, (at, values) in zip(given, ways, strict=True)
    ]
    lines = []
    for row in range(rows):
        cells = [m[row * down : (row + 1) * down] for m in masks]
        label = _label(row, rows, low, high, logarithmic)
        lines.append(pen.paint(f"{label:>{LABEL - 1}} {_bar(pen)}", "dim") + _row(cells, given, columns, pen))
    return [*lines, pen.paint(_steps(first, last, width), "dim")]


def short(value: float) -> str:
    """Return a number in at most 8 characters."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _bar(pen: Pen) -> str:
    return "│" if pen.braille else "|"


def _way(curve: Drawn, steps: tuple[float, float], columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of dots that a curve passes through, and its mean in each, interpolated between points."""
    finite = np.isfinite(curve.values)
    x, y = curve.steps[finite].astype(float), curve.values[finite]
    span = steps[1] - steps[0] or 1.0
    used, inverse = np.unique(np.rint((x - steps[0]) / span * (columns - 1)).astype(int), return_inverse=True)
    means = np.bincount(inverse, y) / np.bincount(inverse)
    at = np.arange(used[0], used[-1] + 1)
    return at, np.interp(at, used, means)


def _range(ways: Sequence[np.ndarray], dotted: Sequence[bool]) -> tuple[bool, float, float]:
    """Return whether the axis is logarithmic, and its ends, in logarithms then.

    Dotted curves that are far from the others don't stretch it: what lies outside of it is not drawn.
    """
    own = np.concatenate([w for w, d in zip(ways, dotted, strict=True) if not d] or list(ways))
    reach = _REACH * max(abs(float(own.max())), abs(float(own.min())))
    both = np.concatenate([own, *(w[np.abs(w) <= reach] for w, d in zip(ways, dotted, strict=True) if d)])
    low, high = float(both.min()), float(both.max())
    logarithmic = low > 0 and high / low > _LOGARITHMIC
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-300):
        pad = 0.05 * abs(high) or 1.0
        return logarithmic, low - pad, high + pad
    return logarithmic, low, high


def _dots(
    columns: np.ndarray,
    values: np.ndarray,
    dotted: bool,
    ends: tuple[float, float],
    logarithmic: bool,
    size: tuple[int, int],
) -> np.ndarray:
    """Return the dots of a curve as booleans (rows, columns)."""
    dots = np.zeros(size, dtype=bool)
    if logarithmic:
        values = np.log10(np.maximum(values, np.finfo(float).tiny))
    heights = (values - ends[0]) / (ends[1] - ends[0])
    places = np.rint((1 - np.clip(heights, 0, 1)) * (size[0] - 1)).astype(int)
    for i, (column, place) in enumerate(zip(columns, places, strict=True)):
        if dotted:
            dots[place, column] = column % 4 < 2 and 0 <= heights[i] <= 1
            continue
        before = places[i - 1] if i else place
        # A steep piece is joined: half by this column, half by the one before.
        middle = (before + place) // 2
        dots[min(place, middle) : max(place, middle) + 1, column] = True
        if i and before != place:
            dots[min(before, middle) : max(before, middle) + 1, column - 1] = True
    return dots


def _row(cells: Sequence[np.ndarray], curves: Sequence[Drawn], columns: int, pen: Pen) -> str:
    """Return one line of characters; each has the colour of the last curve that passes through it."""
    down, across = (4, 2) if pen.braille else (2, 1)
    shapes = [c.reshape(down, columns, across).transpose(1, 0, 2) for c in cells]
    parts, colour, run = [], "", ""
    for i in range(columns):
        there = [k for k, shape in enumerate(shapes) if shape[i].any()]
        dots = np.any([shapes[k][i] for k in there], axis=0) if there else None
        if dots is None:
            text, own = " ", colour
        elif pen.braille:
            text, own = chr(0x2800 + int(_DOTS[dots].sum())), curves[there[-1]].colour
        else:
            text = {(True, False): "'", (False, True): ".", (True, True): ":"}[bool(dots[0, 0]), bool(dots[1, 0])]
            text, own = ("-" if curves[there[-1]].dotted else text), curves[there[-1]].colour
        if own != colour:
            parts.append(pen.paint(run, *([colour] if colour else [])))
            colour, run = own, ""
        run += text
    return "".join([*parts, pen.paint(run, *([colour] if colour else []))])


def _label(row: int, rows: int, low: float, high: float, logarithmic: bool) -> str:
    """Return the axis's label of a line: of the ends, and of the middle where there is room."""
    if row not in (0, rows - 1, *([rows // 2] if rows >= 5 and rows % 2 else [])):
        return ""
    value = high - (high - low) * row / max(rows - 1, 1)
    return short(10**value if logarithmic else value)


def _steps(first: float, last: float, width: int) -> str:
    left, right = f"{first:,.0f}", f"{last:,.0f}"
    room = width - LABEL - 1 - len(left) - len(right)
    if room < 1 or first == last:
        return (" " * (LABEL + 1) + right).ljust(width)[:width]
    middle = " step " if room > 10 else " "
    return " " * (LABEL + 1) + left + middle.center(room) + right
