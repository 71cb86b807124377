"""A quantity of each layer over the steps of training, as a map: one picture where curves would be hundreds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..chart import Chart, Control, Panel, Series, coded, css, ref
from ..numbers import count
from ..recorded import Curves
from ..runs import Run
from ..scales import Scale, finite
from .steps import LINK, extent

#: Cells of the maps of all runs together (chosen by us: a page of 100 runs stays below its 15 MB).
CELLS = 400_000


def layer_map(runs: Sequence[Run], quantities: Sequence[tuple[str, str]]) -> Chart | None:
    """Return maps of (quantity, label), a panel for each run, one logarithmic color scale for each quantity."""
    found = [(run, {q: m for q, _ in quantities if (m := run.recorded.maps.get(q)) is not None}) for run in runs]
    found = [(run, maps) for run, maps in found if maps]
    if not found:
        return None
    cells = max(500, CELLS // len(found))
    series: list[Series] = []
    views: list[dict[str, list[dict]]] = [{} for _ in found]
    layouts, colors, options, rows = {}, {}, [], 0
    epochs = False
    for quantity, label in quantities:
        kept = [(k, run, _fitting(maps[quantity], cells)) for k, (run, maps) in enumerate(found) if quantity in maps]
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = [np.log10(np.where(m.mean > 0, m.mean, np.nan)) for _, _, m in kept]
        known = finite(logs)
        if not len(known):
            continue
        # Two in a thousand at each end don't stretch the colors of all the others.
        low, high = np.quantile(known, [0.002, 0.998])
        scale = Scale("log", float(10**low), float(10**high))
        for (k, run, m), z in zip(kept, logs, strict=True):
            epoch = run.recorded.epoch(m.steps)
            epochs |= bool(np.isfinite(epoch).any())
            rows = max(rows, len(m.names))
            columns = {
                "step": np.rint(m.steps).astype(np.int64),
                "layer": list(m.names),
                "epoch": epoch if np.isfinite(epoch).any() else m.steps,
                f"log10_{quantity}": coded(z),
            }
            views[k][quantity] = [_trace(len(series), f"log10_{quantity}", scale)]
            series.append(Series(columns, ("step", "layer"), run.name, run.index))
        options.append((quantity, label))
        layouts[quantity] = _layout()
        colors[quantity] = scale
    if not options:
        return None
    panels = [
        Panel(run.name, f"{options[0][1]} of each layer over the steps of {run.name}.", _every(v, layouts), run.index)
        for (run, _), v in zip(found, views, strict=True)
    ]
    axes = (("step", "Step"), ("epoch", "Epoch")) if epochs else (("step", "Step"),)
    return Chart(
        id="layer-map",
        title="Layer by layer",
        caption="Each row is a parameter tensor (or a module, where they are many: the root of the summed squares), "
        "each column some steps together (their mean), dark to bright on a logarithmic scale that all runs share.",
        series=series,
        panels=panels,
        layouts=layouts,
        controls=(
            Control("show", "Show", tuple(options), options[0][0]),
            Control("axis", "Across", axes, "step", keyed=False),
        ),
        height=max(220, min(620, 80 + 15 * rows)),
        colors=colors,
        color_label="norm",
        legend=len(found) > 1,
        notes=_notes(found),
        kind="map",
        link=LINK,
        extent=extent([r for r, _ in found]),
    )


def _fitting(found: Curves, cells: int) -> Curves:
    return found.coarser(max(20, cells // max(len(found.names), 1)))


def _every(views: dict[str, list[dict]], layouts: dict[str, dict]) -> dict[str, list[dict]]:
    return {key: views.get(key, []) for key in layouts}


def _notes(found: Sequence[tuple[Run, dict[str, Curves]]]) -> tuple[str, ...]:
    longest = max((m for _, maps in found for m in maps.values()), key=lambda m: m.rows)
    if not longest.reduced:
        return ()
    return (f"{count(longest.rows)} rows drawn as {count(len(longest.steps))} columns: each is the mean of its rows.",)


def _trace(i: int, name: str, scale: Scale) -> dict:
    low, high = scale.range
    return {
        "type": "heatmap",
        "x": ref(i, "@axis"),
        "y": {**ref(i, "layer"), "plain": True},
        "z": ref(i, name, transpose=True),
        "text": {**ref(i, name, transpose=True), "power": True},
        "zmin": low,
        "zmax": high,
        "colorscale": "Viridis",
        "showscale": False,
        "hovertemplate": "%{y}: %{text} at %{x}<extra></extra>",
    }


def _layout() -> dict:
    return {
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "tickfont": {"size": 10}},
        "plot_bgcolor": css("hole"),
        "hovermode": "closest",
        "margin": {"l": 80, "r": 14, "t": 8, "b": 40},
    }
