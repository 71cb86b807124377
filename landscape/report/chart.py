"""What the page's script draws: data columns once, and for each view the traces that point at them.

A `Chart` holds its numbers as `Series` of named columns. Traces and layouts are Plotly's, except for three
things that the script fills in: `ref(...)` (a column, perhaps on another scale), `css(...)` (a color that
follows light and dark) and `rows(...)` (the row of a run in a dot plot). So every number is in the page once, bit
for bit, each view is a few hundred bytes, and the same columns are the figure's CSV.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .scales import Ordered, Scale

#: Numbers that are all the same are written once from this many on.
FEWEST_REPEATED = 16
#: Characters of data beyond which they are compressed in the page (chosen by us: below, it gains nothing that shows).
PACKED_ABOVE = 150_000


@dataclass(frozen=True)
class Series:
    """Columns with the same dimensions: one coordinate column for each of `dims`, the others over all of them.

    `csv=False` keeps what only helps drawing (ends of error bars) out of the CSV.
    """

    columns: Mapping[str, Any]
    dims: tuple[str, ...]
    name: str = ""
    run: int | None = None
    csv: bool = True


@dataclass(frozen=True)
class Panel:
    """One picture of a chart: of one run, or of all of them; `views` maps a view's key to its traces.

    `label` is read out in place of the picture, `lines` stand under its title, and `layout` is what it doesn't
    share with the other panels.
    """

    title: str
    label: str
    views: Mapping[str, Sequence[Mapping[str, Any]]]
    run: int | None = None
    lines: tuple[str, ...] = ()
    layout: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Control:
    """A choice above a chart; the chosen values, joined by dots, are the key of the view.

    One that is not `keyed` chooses among columns instead: the column "@axis" is the one that control "axis" names.
    """

    name: str
    label: str
    options: tuple[tuple[str, str], ...]
    value: str
    keyed: bool = True


@dataclass(frozen=True)
class Chart:
    """A figure of the page. `layouts` maps each view's key to the layout that all its panels share.

    `height` is in pixels; None: a row for each run shown. `legend` shows the runs' names and markers;
    `colors` maps a view to the scale of its color bar; charts of one `link` zoom along their x-axes together, and
    share the controls that they have in common; `extent` is what they show at first, for each choice of the axis.
    """

    id: str
    title: str
    caption: str
    series: Sequence[Series]
    panels: Sequence[Panel]
    layouts: Mapping[str, Mapping[str, Any]]
    controls: tuple[Control, ...] = ()
    height: int | None = 320
    legend: bool = True
    wide: bool = False
    colors: Mapping[str, Scale | Ordered] = field(default_factory=dict)
    color_label: str = ""
    notes: tuple[str, ...] = ()
    kind: str = "chart"
    link: str = ""
    extent: Mapping[str, Sequence[float]] | None = None

    @property
    def view(self) -> str:
        """The key of the view shown first."""
        return ".".join(c.value for c in self.controls if c.keyed) or "all"

    @property
    def runs(self) -> set[int]:
        """The runs that have numbers in this chart."""
        return {s.run for s in self.series if s.run is not None}

    def color_bars(self) -> dict[str, dict[str, Any]]:
        """Return, for each view with colors, the ticks of its color bar as (percent, text)."""
        bars = {}
        for view, scale in self.colors.items():
            low, high = scale.range
            positions, texts = scale.ticks()
            bars[view] = {
                "scale": scale.words,
                "ticks": [(100 * (p - low) / (high - low), t) for p, t in zip(positions, texts, strict=True)],
            }
        return bars

    def json(self, *, exact: bool = True, words: bool = False) -> str:
        """Return the chart's data as JSON that is safe inside a script element.

        `exact=False` writes numbers in single precision. `words` adds what stands beside each panel, for panels
        that the page's script makes when their run is chosen.
        """
        page: dict[str, Any] = {
            "id": self.id,
            "series": [
                {
                    "name": s.name,
                    "run": s.run,
                    "dims": list(s.dims),
                    "csv": s.csv,
                    "columns": {k: encode(v, exact=exact) for k, v in s.columns.items()},
                }
                for s in self.series
            ],
            "panels": [{"run": p.run, "views": _once(p.views), "layout": p.layout} for p in self.panels],
            "layouts": self.layouts,
            "height": self.height,
        }
        if self.link:
            page |= {"link": self.link, "extent": self.extent}
        if words:
            page["words"] = [(p.title, p.label, p.lines) for p in self.panels]
        return script_json(page)


def _once(views: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the views with traces that several of them share written once, and named by the others."""
    first: dict[int, str] = {}
    return {
        key: traces if first.setdefault(id(traces), key) == key else {"same": first[id(traces)]}
        for key, traces in views.items()
    }


def ref(
    series: int,
    column: str,
    scale: Scale | None = None,
    *,
    transpose: bool = False,
    text: bool = False,
    above: float | None = None,
) -> dict:
    """Point at a column of a series: as it is or `above` a number, on a scale, transposed (Plotly wants [y, x]), or as
    text."""
    found: dict[str, Any] = {"ref": [series, column]}
    if above is not None:
        found["above"] = above
    if scale is not None and scale.kind != "linear":
        found["scale"] = [scale.kind, scale.width]
    if transpose:
        found["transpose"] = True
    if text:
        found["text"] = True
    return found


def css(name: str, alpha: float | None = None) -> dict:
    """Name a color of the style sheet (its custom property, without the dashes)."""
    return {"css": name} if alpha is None else {"css": name, "alpha": alpha}


def run_css(run: int, alpha: float | None = None) -> dict:
    """Stand for the color of a run: the page gives the runs that are drawn colors that differ."""
    return {"hue": run} if alpha is None else {"hue": run, "alpha": alpha}


def run_symbol(run: int, *, open: bool = False) -> dict:
    """Stand for the marker of a run, filled or open."""
    return {"symbol_of": run, "open": open}


def run_dash(run: int) -> dict:
    """Stand for the dashes of a run's lines: solid, while there is a color for each run drawn."""
    return {"dash_of": run}


def rows(run: int, times: int = 1) -> dict:
    """Stand for the row of a run among the runs shown, this many times."""
    return {"row": run, "times": times}


def scaled_axis(title: str, scale: Scale, pad: float = 0.03) -> dict:
    """Return an axis over the scale's range that is labelled with true values."""
    low, high = scale.range
    margin = pad * (high - low)
    positions, texts = scale.ticks()
    return {
        "title": {"text": title},
        "range": [low - margin, high + margin],
        "tickmode": "array",
        "tickvals": positions,
        "ticktext": texts,
        "zeroline": False,
    }


def plotly_text(text: str) -> str:
    """Return text that Plotly shows as it is (it reads a few HTML tags and entities in labels)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def encode(column: Any, *, exact: bool = True) -> Any:
    """Return a column for the page: text as a list, numbers as base64 of their own bytes, little-endian.

    So every number arrives bit for bit, NaN and infinities included, which JSON cannot write. A column of one
    repeated number is written once; `Codes` are 16 bits each. With `exact=False` doubles become single precision.
    """
    if isinstance(column, Codes):
        packed = {"dtype": "i2", "shape": list(column.codes.shape), "zero": column.zero, "step": column.step}
        return packed | {"base64": base64.b64encode(column.codes.astype("<i2").tobytes()).decode("ascii")}
    array = np.asarray(column)
    if array.dtype.kind in "USO":
        return [str(v) for v in array.ravel()]
    if array.dtype.kind == "b":
        array = array.astype("u1")
    elif array.dtype.kind in "iu":
        fits = array.size == 0 or (abs(int(array.max())) < 2**31 and abs(int(array.min())) < 2**31)
        array = array.astype("<i4" if fits else "<f8")
    elif array.dtype != np.float32:
        array = array.astype("<f8")
        with np.errstate(over="ignore"):
            array = array if exact else array.astype("<f4")
    if array.size >= FEWEST_REPEATED:
        first = array.ravel()[0].item()
        if math.isfinite(first) and bool((array == first).all()) and (first or not np.signbit(array).any()):
            return {"fill": first, "shape": list(array.shape)}
    code = {"f": "f", "i": "i", "u": "u"}[array.dtype.kind] + str(array.dtype.itemsize)
    data = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": code, "shape": list(array.shape), "base64": base64.b64encode(data).decode("ascii")}


@dataclass(frozen=True)
class Codes:
    """Numbers in 16 bits: `zero + step * code`, -32768 for a hole. Made by `coded`."""

    codes: np.ndarray
    zero: float
    step: float


def coded(values: np.ndarray) -> Codes:
    """Return numbers as 16-bit codes between their smallest and their largest: off by 1/131,000 of that range at most.

    For maps whose colors show a hundredth of it (a layer x step map holds more numbers than all the curves do).
    """
    x = np.asarray(values, dtype=np.float64)
    known = np.isfinite(x)
    low, high = (float(x[known].min()), float(x[known].max())) if known.any() else (0.0, 0.0)
    step = (high - low) / 65_534 or 1.0
    zero = low + 32_767 * step
    codes = np.full(x.shape, -32_768, dtype=np.int16)
    codes[known] = np.clip(np.rint((x[known] - zero) / step), -32_767, 32_767)
    return Codes(codes, zero, step)


def script_json(value: Any) -> str:
    """Return JSON without a character that could end a script element or open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def packed(data: str) -> tuple[str, str]:
    """Return (media type, text) for a script element: JSON as it is, or compressed where it is long.

    Every browser since 2023 can undo that by itself (DecompressionStream). Level 5 and no time stamp: the same page
    from the same archives.
    """
    if len(data) <= PACKED_ABOVE:
        return "application/json", data
    squeezed = gzip.compress(data.encode("utf-8"), 5, mtime=0)
    return "application/gzip", base64.b64encode(squeezed).decode("ascii")
