"""Curves over the steps of a training, those of several runs overlaid; long ones as mean and envelope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...counted import counted
from ..chart import Chart, Control, Panel, Series, plotly_text, ref, run_css
from ..numbers import count, given
from ..palette import PLOTLY_DASHES
from ..recorded import Curves
from ..runs import Run
from ..scales import Scale

#: All charts over steps zoom together.
LINK = "steps"
#: Buckets of all runs together in a chart (chosen by us: a page of 100 runs stays below its 15 MB).
BUCKETS = 24_000
#: Points of a curve that are marked one by one; more of them run into one another (chosen by us).
MARKERS = 60
#: A scale of more than this from smallest to largest is logarithmic at first (chosen by us, as for surfaces).
LOG_ABOVE = 20.0


@dataclass(frozen=True)
class Curve:
    """One column of a quantity in a chart: how it is dashed, what it is called, and the columns of its interval.

    `markers` marks single points, where they are few, and joins them; `joined` joins them unmarked. `error` is the
    (quantity, column) that holds what its bars reach over, up and down. `without` names a quantity whose runs it leaves
    out: they have a curve of that one in its place.
    """

    quantity: str
    column: str
    label: str = ""
    dash: int = 0
    bounds: tuple[str, str] | None = None
    markers: bool = False
    joined: bool = False
    error: tuple[str, str] | None = None
    without: str = ""


@dataclass(frozen=True)
class View:
    """What a chart shows at a time: curves that share an axis, and a constant worth a line."""

    key: str
    label: str
    unit: str
    curves: tuple[Curve, ...]
    level: float | None = None


def over_steps(
    id: str,
    title: str,
    caption: str,
    runs: Sequence[Run],
    views: Sequence[View],
    *,
    marks: bool = False,
    height: int = 260,
) -> Chart | None:
    """Return a chart of the views that any of these runs has numbers for; None where there are none.

    `marks` draws what went wrong (spikes, steps that were not finite or were skipped) on the curves.
    """
    most = max(40, BUCKETS // max(len(runs), 1))
    series: list[Series] = []
    at: dict[tuple[int, str], tuple[int, Curves]] = {}
    epochs = False
    for run in runs:
        drawn_of = [q for v in views for c in v.curves for q in (c.quantity, c.error[0] if c.error else c.quantity)]
        for quantity in dict.fromkeys(drawn_of):
            found = run.recorded.curves.get(quantity)
            if found is None:
                continue
            columns = _columns(found, views, quantity)
            if not columns:
                continue
            kept = found.coarser(most)
            data: dict[str, object] = {"step": np.rint(kept.steps).astype(np.int64)}
            epoch = run.recorded.epoch(kept.steps)
            epochs |= bool(np.isfinite(epoch).any())
            data["epoch"] = epoch if np.isfinite(epoch).any() else kept.steps
            for name in columns:
                mean, low, high = kept.column(name)
                data[_named(quantity, name)] = mean
                if kept.reduced:
                    data |= {_named(quantity, name) + "_min": low, _named(quantity, name) + "_max": high}
            at[run.index, quantity] = (len(series), kept)
            series.append(Series(data, ("step",), run.name, run.index))
    drawn: dict[str, list[dict]] = {}
    layouts: dict[str, dict] = {}
    options = []
    logs = []
    for view in views:
        traces = [t for run in runs for c in view.curves for t in _traces(run, c, view, at)]
        if not traces:
            continue
        if marks:
            traces += [t for run in runs for t in _marks(run, view, at)]
        options.append((view.key, view.label))
        ends = _ends(runs, view, at)
        both = ends is not None and ends[0] > 0
        # A band that reaches 0 has no place on a logarithmic axis.
        banded = min(_lows(runs, view, at), default=1.0)
        if both and ends is not None and ends[1] > LOG_ABOVE * ends[0] and banded > 0:
            logs.append(view.key)
        for scale in ("linear", "log"):
            key = f"{view.key}.{scale}"
            drawn[key] = traces
            layouts[key] = _layout(view, Scale("log", *ends) if scale == "log" and both and ends else None)
            if scale == "linear" and ends is not None and ends[0] == ends[1] > 0:
                layouts[key]["yaxis"]["range"] = [0.0, 2 * ends[0]]
    if not options:
        return None
    first = options[0][0]
    controls = [Control("show", "Show", tuple(options), first)]
    controls.append(
        Control("scale", "Scale", (("linear", "Linear"), ("log", "Log")), "log" if first in logs else "linear")
    )
    axes = (("step", "Step"), ("epoch", "Epoch")) if epochs else (("step", "Step"),)
    controls.append(Control("axis", "Across", axes, "step", keyed=False))
    own = len({run for run, _ in at})
    label = f"{title} of {counted(own, 'run')} over the steps of training."
    return Chart(
        id=id,
        title=title,
        caption=caption,
        series=series,
        panels=(Panel("", label, drawn),),
        layouts=layouts,
        controls=tuple(controls),
        height=height,
        wide=True,
        link=LINK,
        extent=extent(runs),
    )


def _named(quantity: str, column: str) -> str:
    return column if column == quantity else f"{quantity}.{column}"


def _columns(found: Curves, views: Sequence[View], quantity: str) -> list[str]:
    """Return the columns of a quantity that any view draws and that hold a number."""
    curves = [c for v in views for c in v.curves]
    wanted = [n for c in curves if c.quantity == quantity for n in (c.column, *(c.bounds or ()))]
    wanted += [c.error[1] for c in curves if c.error and c.error[0] == quantity]
    known: np.ndarray = np.asarray(np.any(np.isfinite(found.mean), axis=0))
    return [n for n in dict.fromkeys(wanted) if n in found.names and known[found.names.index(n)]]


def _traces(run: Run, curve: Curve, view: View, at: dict[tuple[int, str], tuple[int, Curves]]) -> list[dict]:
    found = at.get((run.index, curve.quantity))
    if found is None or (run.index, curve.without) in at:
        return []
    i, kept = found
    if curve.column not in _columns(kept, [view], curve.quantity):
        return []
    name = _named(curve.quantity, curve.column)
    traces: list[dict] = []
    edges: tuple[str, str] | None = None
    if curve.bounds and all(b in kept.names for b in curve.bounds):
        edges = tuple(_named(curve.quantity, b) for b in curve.bounds)  # type: ignore[assignment]
    elif kept.reduced:
        edges = (f"{name}_min", f"{name}_max")
    base = {"type": "scatter", "run": run.index, "x": ref(i, "@axis")}
    if edges:
        edge = {**base, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        traces.append({**edge, "y": ref(i, edges[0])})
        traces.append({**edge, "y": ref(i, edges[1]), "fill": "tonexty", "fillcolor": run_css(run.index, 0.16)})
    points = int(np.isfinite(kept.column(curve.column)[0]).sum())
    mode = "lines+markers" if points <= (MARKERS if curve.markers else 2) else "lines"
    label = plotly_text(curve.label).replace("%{", "% {")
    traces.append(
        {
            **base,
            "mode": mode,
            "y": ref(i, name),
            "text": ref(i, name, text=True),
            "customdata": ref(i, "step"),
            "hovertemplate": (f"{label} " if label else "") + "%{text} at step %{customdata}",
            "named": run.index,
            "connectgaps": curve.markers or curve.joined,
            "line": {"color": run_css(run.index), "width": 1.7, "dash": PLOTLY_DASHES[curve.dash % len(PLOTLY_DASHES)]},
            "marker": {"color": run_css(run.index), "size": 5},
            **_bars(run, curve, kept, at),
        }
    )
    return traces


def _bars(run: Run, curve: Curve, kept: Curves, at: dict[tuple[int, str], tuple[int, Curves]]) -> dict:
    """Return error bars, where every row is drawn and its error was recorded with it."""
    found = at.get((run.index, curve.error[0])) if curve.error else None
    if found is None or curve.error is None or kept.reduced or curve.error[1] not in found[1].names:
        return {}
    i, errors = found
    if not np.array_equal(errors.steps, kept.steps):
        return {}
    array = ref(i, _named(*curve.error))
    return {"error_y": {"type": "data", "array": array, "color": run_css(run.index), "thickness": 1.2, "width": 3}}


#: What went wrong at a step: how it is marked.
_WRONG = {"spike": "triangle-up-open", "not_finite": "x-thin-open", "skipped_step": "circle-open"}


def _marks(run: Run, view: View, at: dict[tuple[int, str], tuple[int, Curves]]) -> list[dict]:
    """Return the steps that went wrong, on the first curve of the view (at its highest in their bucket)."""
    curve = view.curves[0]
    found = at.get((run.index, curve.quantity))
    if found is None or curve.column not in found[1].names:
        return []
    kept = found[1]
    high = kept.column(curve.column)[2]
    known = np.flatnonzero(np.isfinite(high))
    traces = []
    for kind, symbol in _WRONG.items():
        events = run.recorded.events.get(kind, ())
        if not events or not len(known):
            continue
        steps = np.array([e.step for e in events], dtype=float)
        places = known[np.clip(np.searchsorted(kept.steps[known], steps), 0, len(known) - 1)]
        epoch = run.recorded.epoch(steps)
        x = {"step": steps.tolist(), "epoch": [float(e) if np.isfinite(e) else None for e in epoch]}
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "run": run.index,
                "x": {"pick": "axis", "of": x},
                "y": [float(f"{v:.6g}") for v in high[places]],
                "hovertemplate": kind.replace("_", " ") + " at step %{customdata}",
                "customdata": [int(s) for s in steps],
                "named": run.index,
                "marker": {"symbol": symbol, "size": 10, "color": run_css(run.index), "line": {"width": 1.6}},
            }
        )
    return traces


def _ends(runs: Sequence[Run], view: View, at: dict[tuple[int, str], tuple[int, Curves]]) -> tuple[float, float] | None:
    low, high = np.inf, -np.inf
    for run in runs:
        for curve in view.curves:
            found = at.get((run.index, curve.quantity))
            if found and curve.column in found[1].names:
                mean, least, most = found[1].column(curve.column)
                if np.isfinite(mean).any():
                    low, high = min(low, float(np.nanmin(least))), max(high, float(np.nanmax(most)))
    return (low, high) if np.isfinite(low) else None


def _lows(runs: Sequence[Run], view: View, at: dict[tuple[int, str], tuple[int, Curves]]) -> list[float]:
    """Return the smallest number of each band's lower bound."""
    lows = []
    for run in runs:
        for curve in view.curves:
            found = at.get((run.index, curve.quantity))
            if found and curve.bounds and curve.bounds[0] in found[1].names:
                low = found[1].column(curve.bounds[0])[1]
                lows += [float(np.nanmin(low))] if np.isfinite(low).any() else []
    return lows


def _layout(view: View, log: Scale | None) -> dict:
    layout: dict = {
        "yaxis": {"title": {"text": plotly_text(view.unit)}, "type": "log" if log else "linear"},
        "hovermode": "closest",
        "margin": {"l": 58, "r": 14, "t": 8, "b": 40},
    }
    if log:
        positions, texts = log.ticks()
        layout["yaxis"] |= {"tickmode": "array", "tickvals": [10.0**p for p in positions], "ticktext": texts}
    if view.level is not None:
        at = float(np.log10(view.level)) if log and view.level > 0 else view.level
        layout["shapes"] = [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": view.level,
                "y1": view.level,
                "line": {"color": {"css": "muted"}, "width": 1, "dash": "dot"},
            }
        ]
        layout["annotations"] = [
            {
                "xref": "paper",
                "x": 1,
                "y": at,
                "xanchor": "right",
                "yanchor": "bottom",
                "showarrow": False,
                "text": given(view.level),
                "font": {"size": 11, "color": {"css": "muted"}},
            }
        ]
    return layout


def extent(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Return the steps and the epochs that these trainings reach over, which all charts over steps begin with."""
    last = max((float(r.recorded.last_step) for r in runs), default=1.0)
    ends = np.array([float(r.recorded.epoch(np.array([float(r.recorded.last_step)]))[0]) for r in runs])
    epochs = float(np.nanmax(ends)) if np.isfinite(ends).any() else last
    return {"step": [-0.01 * last, 1.01 * max(last, 1.0)], "epoch": [-0.01 * epochs, 1.01 * max(epochs, 0.01)]}


def in_buckets(runs: Sequence[Run]) -> str:
    """Return how the longest record is drawn, in words; empty where every row is."""
    most = max(40, BUCKETS // max(len(runs), 1))
    long = [c for r in runs for c in r.recorded.curves.values() if c.rows > min(len(c.steps), most)]
    if not long:
        return ""
    longest = max(long, key=lambda c: c.rows)
    each = count(round(longest.rows / min(len(longest.steps), most)))
    return (
        f"Records of up to {count(longest.rows)} rows are drawn in buckets of about {each}: the line is their mean, "
        "the band reaches from the smallest to the largest of them, so no spike is lost."
    )
