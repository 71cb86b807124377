"""The spectral density: the share of eigenvalues at each place, on a logarithmic axis, with its band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...counted import counted
from ...curvature.estimates import SpectralDensity
from ...curvature.spectrum import Eigenpairs
from ...errors import MeasurementError
from ..chart import Chart, Control, Panel, Series, ref, run_css, run_dash, scaled_axis
from ..numbers import count
from ..palette import INK, RUN_COLORS
from ..runs import Run
from ..scales import Scale
from .registry import figure, new_axes, round_ticks, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

X_LABEL, Y_LABEL = "eigenvalue (loss / parameter²)", "density (share of eigenvalues per unit)"
#: The picture ends at this share of the height of a single eigenvalue's peak: what lies below is the kernel's tail.
BELOW_ONE = 0.1


def floor_of(result: Any) -> float:
    """Return the lowest density that says something: a tenth of a single eigenvalue's peak."""
    return BELOW_ONE / (max(int(result.parameters), 1) * float(result.sigma) * math.sqrt(2 * math.pi))


@figure("density")
def draw_density(
    result: SpectralDensity,
    *,
    ax: Axes | None = None,
    scale: Literal["log", "linear"] = "log",
    eigenvalues: Eigenpairs | None = None,
    color: str = RUN_COLORS[0],
    label: str | None = None,
) -> Axes:
    """Draw a spectral density with its band over the draws; `eigenvalues` are marked at the foot of the picture.

    Draw several into one `ax` to compare them, each with its `color` and `label`. Raises MeasurementError where the
    density is zero or not finite everywhere.
    """
    grid, density = np.asarray(result.grid, dtype=float), np.asarray(result.density, dtype=float)
    if not (np.isfinite(density) & (density > 0)).any():
        raise MeasurementError("this density is zero or not finite everywhere: there is nothing to draw")
    ax = ax or new_axes((5.4, 3.4))
    others = bool(ax.lines)
    band, foot = np.asarray(result.band, dtype=float), floor_of(result) if scale == "log" else 0.0
    top = 3 * float(np.nanmax(density))
    ax.fill_between(grid, band[:, 0], band[:, 1], color=color, alpha=0.2, linewidth=0)
    ax.plot(grid, density, color=color, linewidth=1.4, label=label)
    if scale == "log":
        ax.set_yscale("log")
        round_ticks(ax.yaxis)
        # Those drawn before keep their single eigenvalues and their peaks in the picture.
        low, high = ax.get_ylim() if others else (foot, top)
        ax.set_ylim(min(low, foot), max(high, top))
    else:
        ax.set_ylim(bottom=0)
    if eigenvalues is not None:
        places = np.concatenate([np.ravel(eigenvalues.values), np.ravel(eigenvalues.smallest)])
        ax.plot(
            places,
            np.zeros(len(places)),
            "|",
            color=INK,
            markersize=10,
            transform=ax.get_xaxis_transform(),
            clip_on=False,
            label="eigenvalues",
        )
    if label or eigenvalues is not None:
        ax.legend(frameon=False, fontsize="small")
    ax.set_xlabel(f"{result.operator} {X_LABEL}")
    ax.set_ylabel(Y_LABEL.replace(" (", "\n("))
    tidy(ax)
    return ax


def densities(runs: Sequence[Run]) -> Chart | None:
    """Return the densities of these runs over one axis, their eigenvalues as ticks at the foot."""
    found: list[tuple[Run, Any]] = [(r, d) for r in runs if (d := r.get("density")) is not None]
    found = [(r, d) for r, d in found if np.isfinite(d.density).all() and np.max(d.density) > 0]
    if not found:
        return None
    foot, height = min(floor_of(d) for _, d in found), max(float(np.max(d.density)) for _, d in found)
    choices = {"log": Scale("log", foot, 3 * height), "linear": Scale("linear", 0.0, 1.05 * height)}
    series: list[Series] = []
    views: dict[str, list[dict]] = {name: [] for name in choices}
    for run, result in found:
        i, band = len(series), np.asarray(result.band, dtype=float)
        columns = {"eigenvalue": result.grid, "density": result.density, "low": band[:, 0], "high": band[:, 1]}
        series.append(Series(columns, ("eigenvalue",), run.name, run.index))
        pairs: Any = run.get("eigenvalues")
        places = np.zeros(0) if pairs is None else np.concatenate([np.ravel(pairs.values), np.ravel(pairs.smallest)])
        series.append(Series({"at": places, "foot": np.full(len(places), 1.3 * foot)}, ("at",), csv=False))
        for name, scale in choices.items():
            views[name] += _traces(i, run, scale) + (_ticks(i + 1, run, scale) if len(places) else [])
    layouts = {
        name: {
            "xaxis": {"title": {"text": X_LABEL}},
            "yaxis": scaled_axis(Y_LABEL, scale, pad=0.0),
            "hovermode": "closest",
        }
        for name, scale in choices.items()
    }
    draws = sorted({len(d.nodes) for _, d in found})
    marked = any(run.get("eigenvalues") is not None for run, _ in found)
    return Chart(
        id="density",
        title="Spectral density",
        caption="The share of all eigenvalues at each place, from stochastic Lanczos quadrature, smoothed. Shaded: 95% "
        "intervals over the random vectors. "
        + ("Ticks at the foot: the eigenvalues computed one by one. " if marked else "")
        + "On the logarithmic axis the picture ends at a tenth of the height of a single eigenvalue's peak.",
        series=series,
        panels=(Panel("", f"Spectral density of {counted(len(found), 'run')}.", views),),
        layouts=layouts,
        controls=(Control("scale", "Height", (("log", "Log"), ("linear", "Linear")), "log"),),
        height=380,
        wide=True,
        notes=(f"{' to '.join(count(n) for n in (draws[0], draws[-1])[: len(draws)])} random vectors for each run.",),
    )


def _traces(i: int, run: Run, scale: Scale) -> list[dict]:
    shared: dict[str, Any] = {"type": "scatter", "mode": "lines", "run": run.index, "x": ref(i, "eigenvalue")}
    edge = {"line": {"width": 0}, "hoverinfo": "skip"}
    return [
        {**shared, **edge, "y": ref(i, "high", scale)},
        {**shared, **edge, "y": ref(i, "low", scale), "fill": "tonexty", "fillcolor": run_css(run.index, 0.16)},
        {
            **shared,
            "y": ref(i, "density", scale),
            "text": ref(i, "density", text=True),
            "hovertemplate": "%{x:.4g}: %{text}",
            "named": run.index,
            "line": {
                "color": run_css(run.index),
                "width": 1.8,
                "dash": run_dash(run.index),
            },
        },
    ]


def _ticks(i: int, run: Run, scale: Scale) -> list[dict]:
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "run": run.index,
            "x": ref(i, "at"),
            "y": ref(i, "foot", scale),
            "hovertemplate": "eigenvalue %{x:.5g}",
            "named": run.index,
            "marker": {"symbol": "line-ns-open", "size": 10, "color": run_css(run.index), "line": {"width": 1.6}},
        }
    ]
