"""Any result without a drawing of its own: scalars as a table, one dimension as a line, two as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...counted import counted
from ...errors import MeasurementError
from ...results import Result, Variable, kind_of
from ..chart import Chart, Panel, Series, css, plotly_text, ref, run_css, run_dash, run_symbol
from ..numbers import interval, number, uncertain
from ..palette import HOLE, MUTED, RUN_COLORS, SURFACE_MAP
from ..room import LETTER
from ..runs import Run
from ..scales import Scale, finite
from ..value import Z95, scalar_variables
from .calibration import diagonal as identity_line
from .registry import new_axes, tidy, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


#: How the label of a dimension ends that has no coordinate.
_INDEX = "(index)"


def draw_generic(
    result: Result, *, ax: Axes | None = None, variable: str | None = None, color: str = RUN_COLORS[0]
) -> Axes:
    """Draw one variable of any result; by default the one with the most dimensions (up to 2), else all scalars.

    Standard errors and intervals are drawn where the result declares them: as a band, or as bars of dots where the
    dimension has no coordinate, so that what lies between two numbers is nothing (classes, draws). Where the result has
    `names` for them, each has a row. Shares that should be what their coordinate says have a dashed diagonal. Raises
    MeasurementError where the result has no such variable, or none that can be drawn.
    """
    variables = result.variables()
    name = variable or main_variable(variables)
    if variable is not None and variable not in variables:
        raise MeasurementError(
            f"{kind_of(result)!r} has no variable {variable!r}; it has {', '.join(variables) or 'none'}"
        )
    if name is None:
        return _draw_table(result, ax)
    v = variables[name]
    data = _numbers(v)
    if data is None or data.ndim not in (1, 2) or not len(finite([data])):
        raise MeasurementError(f"{name!r} has no finite numbers over one or two dimensions: it can't be drawn")
    names = getattr(result, "names", ())
    if data.ndim == 1 and len(names) == len(data):
        return _draw_rows(names, data, *spread(variables, v, data), _described(name, v), ax, color)
    if data.ndim == 1:
        ax = ax or new_axes((5.0, 3.4))
        x, x_label = _positions(variables, v.dims[0], len(data))
        low, high = spread(variables, v, data)
        known = np.where(np.isfinite(data), data, np.nan)
        if v.identity:
            ax.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        if x_label.endswith(_INDEX):
            bars = np.abs(np.stack([known - low, high - known])) if np.isfinite(low).any() else None
            ax.errorbar(x, known, yerr=bars, fmt="o", color=color, markersize=4, elinewidth=1.2, capsize=2)
            whole_numbers(ax.xaxis)
        else:
            ax.plot(x, known, "o-", color=color, linewidth=1.4, markersize=3)
            if np.isfinite(low).any():
                ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        ax.set_xlabel(x_label)
        ax.set_ylabel(_described(name, v))
        tidy(ax)
        return ax
    ax = ax or new_axes((5.2, 4.2))
    (x, x_label), (y, y_label) = (_positions(variables, d, n) for d, n in zip(v.dims, data.shape, strict=True))
    ax.set_facecolor(HOLE)
    drawn = ax.pcolormesh(x, y, np.ma.masked_invalid(data).T, cmap=SURFACE_MAP, shading="nearest")
    ax.figure.colorbar(drawn, ax=ax, label=_named(name, v))
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    for axis, label in ((ax.xaxis, x_label), (ax.yaxis, y_label)):
        if label.endswith(_INDEX):
            whole_numbers(axis)
    return ax


def _draw_rows(
    names: Sequence[str], data: np.ndarray, low: np.ndarray, high: np.ndarray, label: str, ax: Axes | None, color: str
) -> Axes:
    """Draw a number for each name, the first at the top, with its 95% interval where there is one."""
    rows = np.arange(len(data))
    ax = ax or new_axes((5.4, max(2.0, 0.8 + 0.3 * len(rows))))
    known = np.where(np.isfinite(data), data, np.nan)
    bars = np.abs(np.stack([known - low, high - known])) if np.isfinite(low).any() else None
    ax.errorbar(known, rows, xerr=bars, fmt="o", color=color, markersize=4.5, elinewidth=1.2, capsize=2)
    ax.set_yticks(rows, [str(name).replace("_", " ") for name in names])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlabel(label)
    tidy(ax)
    return ax


def _draw_table(result: Result, ax: Axes | None) -> Axes:
    rows = scalars(result)
    if not rows:
        raise MeasurementError(f"this {kind_of(result)!r} result holds no number: there is nothing to draw")
    ax = ax or new_axes((5.0, 0.6 + 0.3 * len(rows)))
    ax.axis("off")
    cells = [
        [name.replace("_", " "), f"{value} {error}".strip(), units.replace("^2", "²")]
        for name, value, error, units in rows
    ]
    # A column is as wide as its longest text, with a letter of room.
    letters = [1 + max(len(row[k]) for row in [["", "value", "unit"], *cells]) for k in range(3)]
    table = ax.table(
        cellText=[cell[1:] for cell in cells],
        rowLabels=[cell[0] for cell in cells],
        colLabels=["value", "unit"],
        colWidths=[n / sum(letters) for n in letters[1:]],
        cellLoc="right",
        loc="upper center",
    )
    table.auto_set_font_size(False)
    room = ax.get_window_extent().width * 72 / ax.figure.dpi
    table.set_fontsize(min(9.0, room / (LETTER * sum(letters))))
    for cell in table.get_celld().values():
        cell.set_edgecolor(HOLE)
        cell.PAD = 0.03
    ax.set_title(kind_of(result).replace("_", " "), fontsize=10)
    return ax


def scalars(result: Result) -> list[tuple[str, str, str, str]]:
    """Return (name, value, uncertainty, units) of every scalar, those that are another's uncertainty left out."""
    variables = result.variables()
    found = []
    for name, v in scalar_variables(result).items():
        if v.data.dtype.kind not in "fiub":
            found.append((name, str(v.data.item()), "", v.units))
        elif v.data.dtype.kind in "iub":
            found.append((name, f"{v.data.item():,}", "", v.units))
        else:
            value = float(v.data)
            if v.stderr is not None and v.stderr in variables:
                text, error = uncertain(value, float(variables[v.stderr].data))
                found.append((name, text, f"± {error}" if error else "", v.units))
            elif v.interval is not None and v.interval in variables:
                bounds = np.ravel(variables[v.interval].data)
                found.append((name, *interval(value, float(bounds[0]), float(bounds[1])), v.units))
            else:
                found.append((name, number(value), "", v.units))
    return found


def main_variable(variables: Mapping[str, Variable]) -> str | None:
    """Return the name of the variable that says most: two dimensions before one, coordinates and errors last."""
    errors = {v.stderr for v in variables.values()} | {v.interval for v in variables.values()}
    for ndim in (2, 1):
        for name, v in variables.items():
            data = _numbers(v)
            if (
                data is not None
                and data.ndim == ndim
                and not v.coordinate
                and v.drawn
                and name not in errors
                and len(finite([data]))
            ):
                return name
    return None


def _numbers(v: Variable) -> np.ndarray | None:
    return np.asarray(v.data, dtype=float) if v.data.dtype.kind in "fiub" else None


def _positions(variables: Mapping[str, Variable], dim: str, n: int) -> tuple[np.ndarray, str]:
    """Return the coordinate of a dimension and its label; the index where there is none."""
    for name, v in variables.items():
        if v.coordinate and v.dims == (dim,) and len(v.data) == n and v.data.dtype.kind in "fiu":
            return np.asarray(v.data, dtype=float), _named(name, v)
    return np.arange(n, dtype=float), f"{dim} {_INDEX}"


def _named(name: str, v: Variable) -> str:
    said = name.replace("_", " ")
    return f"{said} ({v.units.replace('^2', '²')})" if v.units else said


#: What a variable says of itself stands beside its name where it is at most so long (chosen by us: a line or two).
_SHORT = 60


def _described(name: str, v: Variable) -> str:
    return f"{_named(name, v)}\n{v.doc}" if 0 < len(v.doc) <= _SHORT else _named(name, v)


def spread(variables: Mapping[str, Variable], v: Variable, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95% interval of each number where the result declares one, else NaN."""
    if v.interval is not None and v.interval in variables:
        bounds = np.asarray(variables[v.interval].data, dtype=float)
        if bounds.shape == (*data.shape, 2):
            return bounds[..., 0], bounds[..., 1]
    if v.stderr is not None and v.stderr in variables:
        half = Z95 * np.asarray(variables[v.stderr].data, dtype=float)
        if half.shape == data.shape:
            return data - half, data + half
    return np.full(data.shape, np.nan), np.full(data.shape, np.nan)


# ------------------------------------------------------------------------------------------------ on the page


def charts(kind: str, runs: Sequence[Run]) -> list[Chart]:
    """Return a chart for each variable of this kind that has one or two dimensions, all runs together."""
    found: list[tuple[Run, dict[str, Variable]]] = [
        (r, result.variables()) for r in runs if (result := r.get(kind)) is not None
    ]
    names: dict[str, None] = {}
    for _, variables in found:
        errors = {v.stderr for v in variables.values()} | {v.interval for v in variables.values()}
        for name, v in variables.items():
            data = _numbers(v)
            usable = v.drawn and data is not None and data.ndim in (1, 2) and len(finite([data]))
            if usable and not v.coordinate and name not in errors:
                names[name] = None
    drawn = [_curves(kind, name, found) or _maps(kind, name, found) for name in names]
    return [c for c in drawn if c is not None]


def _curves(kind: str, name: str, found: Sequence[tuple[Run, dict[str, Variable]]]) -> Chart | None:
    lines = [(r, vs) for r, vs in found if name in vs and vs[name].data.ndim == 1]
    if not lines:
        return None
    series: list[Series] = []
    traces: list[dict] = []
    x_label = y_label = doc = ""
    if lines[0][1][name].identity:
        traces.append(identity_line())
    for run, variables in lines:
        v = variables[name]
        data = np.asarray(v.data)
        x, x_label = _positions(variables, v.dims[0], len(data))
        low, high = spread(variables, v, np.asarray(data, dtype=float))
        y_label, doc = _named(name, v), v.doc
        i = len(series)
        columns: dict[str, Any] = {v.dims[0]: x, name: data}
        apart, bars = x_label.endswith(_INDEX), {}
        if np.isfinite(low).any():
            columns |= {f"{name}_low": low, f"{name}_high": high}
            if apart:
                own, up, down = (ref(i, name + end) for end in ("", "_high", "_low"))
                ends = {"array": {"minus": [up, own]}, "arrayminus": {"minus": [own, down]}}
                look = {"color": run_css(run.index), "thickness": 1.2, "width": 3}
                bars = {"error_y": {"type": "data", "symmetric": False, **ends, **look}}
            else:
                traces += _band(i, run, v.dims[0], name)
        series.append(Series(columns, (v.dims[0],), run.name, run.index))
        traces.append(
            {
                "type": "scatter",
                "mode": "markers" if apart else "lines+markers" if len(data) <= 60 else "lines",
                "run": run.index,
                "x": ref(i, v.dims[0]),
                "y": ref(i, name),
                "hovertemplate": "%{x:.4g}: %{y:.5g}",
                "named": run.index,
                "line": {
                    "color": run_css(run.index),
                    "width": 1.8,
                    "dash": run_dash(run.index),
                },
                "marker": {"color": run_css(run.index), "size": 5, "symbol": run_symbol(run.index)},
                **bars,
            }
        )
    layout = {
        "xaxis": {"title": {"text": plotly_text(x_label)}},
        "yaxis": {"title": {"text": plotly_text(y_label)}},
        "hovermode": "closest",
    }
    return Chart(
        id=f"other-{kind}-{name}",
        title=f"{kind}: {name}",
        caption=_sentence(doc),
        series=series,
        panels=(Panel("", f"{name} of {counted(len(lines), 'run')}.", {"all": traces}),),
        layouts={"all": layout},
        wide=True,
    )


def _band(i: int, run: Run, dim: str, name: str) -> list[dict]:
    edge = {
        "type": "scatter",
        "mode": "lines",
        "run": run.index,
        "x": ref(i, dim),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [
        {**edge, "y": ref(i, f"{name}_low")},
        {**edge, "y": ref(i, f"{name}_high"), "fill": "tonexty", "fillcolor": run_css(run.index, 0.18)},
    ]


def _maps(kind: str, name: str, found: Sequence[tuple[Run, dict[str, Variable]]]) -> Chart | None:
    maps = [(r, vs) for r, vs in found if name in vs and vs[name].data.ndim == 2]
    if not maps:
        return None
    known = finite([vs[name].data for _, vs in maps])
    scale = Scale("linear", float(known.min()), float(known.max()))
    low, high = scale.range
    series, panels = [], []
    x_label = y_label = z_label = doc = ""
    for i, (run, variables) in enumerate(maps):
        v = variables[name]
        (x, x_label), (y, y_label) = (_positions(variables, d, n) for d, n in zip(v.dims, v.data.shape, strict=True))
        z_label, doc = _named(name, v), v.doc
        first, second = v.dims if v.dims[0] != v.dims[1] else (v.dims[0], f"{v.dims[1]}_2")
        series.append(Series({first: x, second: y, name: v.data}, (first, second), run.name, run.index))
        trace = {
            "type": "heatmap",
            "x": ref(i, first),
            "y": ref(i, second),
            "z": ref(i, name, transpose=True),
            "zmin": low,
            "zmax": high,
            "colorscale": "Viridis",
            "showscale": False,
            "hovertemplate": "%{x:.4g}, %{y:.4g}: %{z:.5g}<extra></extra>",
        }
        panels.append(Panel(run.name, f"{name} of {run.name} as a heat map.", {"all": [trace]}, run.index))
    layout = {
        "xaxis": {"title": {"text": plotly_text(x_label)}},
        "yaxis": {"title": {"text": plotly_text(y_label)}},
        "plot_bgcolor": css("hole"),
        "hovermode": "closest",
    }
    return Chart(
        id=f"other-{kind}-{name}",
        title=f"{kind}: {name}",
        caption=_sentence(doc),
        series=series,
        panels=panels,
        layouts={"all": layout},
        legend=False,
        colors={"all": scale},
        color_label=z_label,
    )


def _sentence(doc: str) -> str:
    return doc[:1].upper() + doc[1:].rstrip(".") + "." if doc else ""
