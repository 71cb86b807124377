"""A training's way on its plane, over the contour where there is one; and how far the plane's loss is from its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...errors import MeasurementError
from ...surface.routes import Trajectory
from ...surface.slices import Plane
from ..chart import Chart, Control, Panel, Series, css, ref, run_css, scaled_axis
from ..numbers import number
from ..palette import INK, RUN_COLORS
from ..runs import Run
from ..scales import Scale, finite, scales
from .plane import draw_plane
from .registry import figure, new_axes, set_height, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Checkpoints up to which each has a marker of its own (chosen by us).
MARKERS = 80


@figure("trajectory")
def draw_trajectory(
    result: Trajectory,
    *,
    ax: Axes | None = None,
    surface: Plane | None = None,
    fingerprint: str = "",
    view: Literal["plane", "loss"] = "plane",
    **style: Any,
) -> Axes:
    """Draw a Trajectory on its plane, over the contour of `surface` where one is given; or its losses, `view="loss"`.

    `surface` must be a Plane around the same last checkpoint along the same directions: `fingerprint` is that of the
    checkpoint which it was measured on, where it is known. `style` goes to its contour (see `draw_plane`). With
    `view="loss"` the checkpoints' own losses stand beside those at their places on the plane: the gap between the
    picture and the training. Raises MeasurementError for a plane of another model or other directions, and for a
    trajectory without losses.
    """
    if view == "loss":
        return _draw_losses(result, ax)
    places = np.asarray(result.coordinates, dtype=float)
    if surface is not None:
        result.lies_on(surface, fingerprint)
        ax = draw_plane(surface, ax=ax, projection="contour", **style)
    else:
        if style:
            raise TypeError(f"{next(iter(style))!r} is a style of the contour: give surface=, the plane below")
        ax = ax or new_axes((5.0, 4.2))
        ax.set_aspect("equal", adjustable="datalim")
        tidy(ax)
    marker = "o" if len(places) <= MARKERS else ""
    ax.plot(*places.T, color="white", linewidth=3.4, solid_capstyle="round")
    ax.plot(
        *places.T, color=RUN_COLORS[1], linewidth=1.5, marker=marker, markersize=3.6, markeredgecolor="white",
        markeredgewidth=0.6,
    )  # fmt: skip
    ax.plot(*places[0], "s", color="white", markeredgecolor=INK, markersize=6, linestyle="none", label="first")
    ax.plot(*places[-1], "*", color="white", markeredgecolor=INK, markersize=11, linestyle="none", label="last")
    ax.legend(fontsize=8, framealpha=0.85, loc="best", handletextpad=0.3)
    first = second = ""
    if result.share is not None:
        first, second = (f"{float(s):.1%} of the variance" for s in result.share[:2])
        first, second = f", {first}", f",\n{second}"  # the plane of a long way is flat
    ax.set_xlabel(f"α (step along d₁{first})")
    ax.set_ylabel(f"β (step along d₂{second})")
    return ax


def _draw_losses(result: Trajectory, ax: Axes | None) -> Axes:
    if result.loss is None or result.plane_loss is None:
        raise MeasurementError("this trajectory has no losses; measure it with losses=True")
    ax = ax or new_axes((5.4, 3.6))
    own, drawn = (np.asarray(v, dtype=float) for v in (result.loss, result.plane_loss))
    choices, default = scales(finite([own, drawn]))
    for values, color, dash, label in (
        (own, RUN_COLORS[0], "-", "the checkpoint"),
        (drawn, RUN_COLORS[1], "--", "its place on the plane"),
    ):
        ax.plot(
            result.step, np.where(np.isfinite(values), values, np.nan), dash, color=color, linewidth=1.6, label=label
        )
    if result.loss_stderr is not None:
        error = np.asarray(result.loss_stderr, dtype=float)
        ax.fill_between(result.step, own - error, own + error, color=RUN_COLORS[0], alpha=0.18, linewidth=0)
    chosen = choices[default]
    set_height(ax, chosen)
    ax.legend(frameon=False)
    ax.set_xlabel(_step_label(result))
    ax.set_ylabel(f"{result.split} loss")
    tidy(ax)
    return ax


def _step_label(result: Any) -> str:
    return "training step" if result.settings.get("steps") == "as in the files" else "checkpoint"


# ------------------------------------------------------------------------------------------------ on the page


def trajectories(runs: Sequence[Run]) -> Chart | None:
    """Return the trajectory of each run that has one, over its contour where the run has that plane, and its losses."""
    found: list[tuple[Run, Any]] = [(r, t) for r in runs if (t := r.get("trajectory")) is not None]
    if not found:
        return None
    below = [_below(run, t) for run, t in found]
    heights = finite([s.loss for s, _ in below if s is not None])
    choices, default = scales(heights) if len(heights) else ({}, "")
    losses = [v for _, t in found if t.loss is not None for v in (t.loss, t.plane_loss)]
    gap_scales, gap_default = scales(finite(losses)) if losses else ({}, "")
    gap_scale = gap_scales.get(gap_default)
    series: list[Series] = []
    panels = []
    names = list(choices) or ["linear"]
    for (run, t), (surface, _) in zip(found, below, strict=True):
        at = len(series)
        columns = {"step": t.step, "alpha": t.coordinates[:, 0], "beta": t.coordinates[:, 1], "off_plane": t.off_plane}
        if t.loss is not None:
            columns |= {"loss": t.loss, "plane_loss": t.plane_loss, "gap": t.gap}
        series.append(Series(columns, ("step",), run.name, run.index))
        under = None
        if surface is not None:
            under = len(series)
            series.append(
                Series(
                    {"alpha": surface.alpha, "beta": surface.beta, "loss": surface.loss},
                    ("alpha", "beta"),
                    f"{run.name}, plane",
                    run.index,
                )
            )
        views: dict[str, list[dict]] = {
            f"plane.{name}": _plane_traces(at, under, run, t, choices.get(name)) for name in names
        }
        if gap_scale is not None and t.loss is not None:
            views |= {f"loss.{name}": _loss_traces(at, run, gap_scale) for name in names}
        label = f"The way of {run.name} on its plane, {len(t.step)} checkpoints."
        panels.append(Panel(run.name, label, views, run.index, _facts(t)))
    layouts: dict[str, dict] = {}
    for name in names:
        layouts[f"plane.{name}"] = {
            "xaxis": {"title": {"text": "α (step along d₁)"}, "constrain": "domain"},
            "yaxis": {"title": {"text": "β (step along d₂)"}, "scaleanchor": "x", "constrain": "domain"},
            "hovermode": "closest",
            **({"plot_bgcolor": css("hole")} if choices else {}),
        }
        if gap_scale is not None:
            layouts[f"loss.{name}"] = {
                "xaxis": {"title": {"text": _step_label(found[0][1])}},
                "yaxis": scaled_axis("loss", gap_scale),
                "hovermode": "closest",
            }
    options = [("plane", "Plane"), *([("loss", "Losses")] if gap_scale is not None else [])]
    return Chart(
        id="trajectories",
        title="Trajectories",
        caption="Each checkpoint at the foot of its perpendicular on the plane, from the first (square) to the last "
        "(star). The color is the plane's loss; under Losses it stands beside the checkpoints' own (solid), since a "
        "training leaves its plane.",
        series=series,
        panels=panels,
        layouts=layouts,
        controls=(
            Control("view", "View", tuple(options), "plane"),
            Control(
                "scale", "Color", tuple((k, "Linear" if k == "linear" else "Log") for k in names), default or names[0]
            ),
        ),
        height=340,
        legend=False,
        colors={f"plane.{k}": v for k, v in choices.items()},
        color_label="loss",
        notes=tuple(note for _, note in below if note),
    )


def _below(run: Run, t: Any) -> tuple[Any, str]:
    """Return the run's last plane that this trajectory lies on, and why there is none where a plane looks like one."""
    note = ""
    planes: tuple[Any, ...] = run.results.get("plane", ())
    for surface in reversed(planes):
        if surface.status == "failed":
            continue
        try:
            t.lies_on(surface, run.fingerprint)
        except MeasurementError as error:
            if tuple(surface.directions) == tuple(t.labels):
                note = f"{run.name}: drawn without a contour; {error}."
            continue
        return surface, ""
    return None, note


def _plane_traces(at: int, under: int | None, run: Run, t: Any, scale: Scale | None) -> list[dict]:
    traces: list[dict] = []
    if under is not None and scale is not None:
        low, high = scale.range
        traces.append(
            {
                "type": "contour",
                "x": ref(under, "alpha"),
                "y": ref(under, "beta"),
                "z": ref(under, "loss", scale, transpose=True),
                "text": ref(under, "loss", transpose=True, text=True),
                "hovertemplate": "α %{x:.3g}, β %{y:.3g}<br>loss %{text}<extra></extra>",
                "colorscale": "Viridis",
                "zmin": low,
                "zmax": high,
                "autocontour": False,
                "contours": {"start": low, "end": high, "size": (high - low) / 16},
                "line": {"width": 0.6, "color": "rgba(255,255,255,0.45)"},
                "showscale": False,
                "connectgaps": False,
            }
        )
    path = {"type": "scatter", "x": ref(at, "alpha"), "y": ref(at, "beta")}
    traces.append(path | {"mode": "lines", "line": {"color": "#ffffff", "width": 4.5}, "hoverinfo": "skip"})
    traces.append(
        path
        | {
            "mode": "lines+markers" if len(t.step) <= MARKERS else "lines",
            "text": ref(at, "step", text=True),
            "hovertemplate": f"{_step_label(t)} %{{text}}<br>α %{{x:.3g}}, β %{{y:.3g}}<extra></extra>",
            "line": {"color": run_css(run.index), "width": 2},
            "marker": {"color": run_css(run.index), "size": 5, "line": {"color": "#ffffff", "width": 0.8}},
        }
    )
    for i, (symbol, size) in ((0, ("square", 9)), (-1, ("star", 13))):
        a, b = (float(v) for v in t.coordinates[i])
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [a],
                "y": [b],
                "marker": {
                    "symbol": symbol,
                    "size": size,
                    "color": "#ffffff",
                    "line": {"color": "#1f2328", "width": 1.2},
                },
                "hovertemplate": f"the {'first' if i == 0 else 'last'} checkpoint<extra></extra>",
            }
        )
    return traces


def _loss_traces(at: int, run: Run, scale: Scale) -> list[dict]:
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": ref(at, "step"),
            "y": ref(at, column, scale),
            "text": ref(at, column, text=True),
            "hovertemplate": f"%{{x}}: {said} %{{text}}<extra></extra>",
            "connectgaps": False,
            "line": {"color": run_css(run.index), "width": 2, "dash": dash},
        }
        for column, dash, said in (("loss", "solid", "its own loss"), ("plane_loss", "dot", "loss on the plane"))
    ]


def _facts(t: Any) -> tuple[str, ...]:
    lines = []
    if t.share is not None:
        lines.append(f"axes hold {float(t.share[0]):.1%} and {float(t.share[1]):.1%} of the variance")
    lines.append(f"{float(t.captured):.1%} of the squared distances lie in the plane")
    if t.gap is not None and len(finite([t.gap])):
        gap = np.asarray(t.gap, dtype=float)
        at = int(np.nanargmax(np.where(np.isfinite(gap), np.abs(gap), -1.0)))
        lines.append(f"largest gap {number(float(gap[at]), 3)} (its own loss {number(float(t.loss[at]), 3)})")
    return tuple(lines)
