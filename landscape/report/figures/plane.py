"""A slice of the loss along two directions: contour lines, or a surface that one can turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...counted import counted
from ...errors import MeasurementError
from ...surface.slices import Plane
from ..chart import Chart, Control, Panel, Series, css, ref, scaled_axis
from ..numbers import count, given, number
from ..palette import HOLE, INK, SURFACE_MAP
from ..room import place_labels
from ..runs import Run
from ..scales import Scale, finite, scales
from ..value import measured
from .registry import figure, new_axes
from .self_check import label_of, quantity_of, write_self_check

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Contour levels between the lowest and the highest loss (chosen by us: enough to see the basin's shape).
LEVELS = 16


@figure("plane")
def draw_plane(
    result: Plane,
    *,
    ax: Axes | None = None,
    scale: Literal["auto", "linear", "log"] = "auto",
    projection: Literal["contour", "3d"] = "contour",
    quantity: str = "loss",
    zlim: tuple[float, float] | None = None,
    view: tuple[float, float] = (32.0, -58.0),
    levels: int = LEVELS,
    cmap: str = SURFACE_MAP,
    points: bool = False,
    checks: bool = True,
    bar: bool = True,
) -> Axes:
    """Draw a Plane as filled contours, or as a surface with `projection="3d"` (or on 3D axes).

    The center (the checkpoint) is marked; points that are not finite are holes. `scale="auto"` takes the
    logarithm where the losses span more than a factor of 20, and asinh in its place where a loss is 0 or below.
    `zlim` fixes the heights and the colors, for pictures that are compared; `view` is (elevation, azimuth) in
    degrees. `quantity` may also be held_out_loss, held_out_accuracy or one of `term_names`. `points` marks the points
    that were evaluated, where others are interpolated. A few small lines say how far the picture can be trusted;
    `checks=False` leaves them out, `bar=False` the color bar.
    Raises MeasurementError where the plane has no such quantity, or no finite point.
    """
    values = quantity_of(result, quantity)
    known = finite([values]) if zlim is None else np.array(zlim, dtype=float)
    if not len(known):
        raise MeasurementError("no point of this plane is finite: there is no surface to draw")
    choices, default = scales(known, finite([np.array([result.center_loss])]))
    shares = quantity.endswith("accuracy")
    wanted = ("linear" if shares else default) if scale == "auto" else scale
    chosen = choices.get(wanted, choices["linear"])
    units = label_of(quantity)

    solid = projection == "3d" or (ax is not None and ax.name == "3d")
    if ax is None:
        ax = new_axes((5.0, 4.4), projection="3d") if solid else new_axes((5.0, 4.2))
    heights = chosen.forward(values)
    ticks, texts = chosen.ticks()
    low, high = chosen.range
    if solid:
        center = float(chosen.forward(np.array([result.center_loss]))[0]) if quantity == "loss" else np.nan
        _draw_surface(ax, result, heights, center, (low, high), cmap, view)
        ax.set_zticks(ticks, texts)  # type: ignore[attr-defined]
        ax.set_zlim(low, high)  # type: ignore[attr-defined]
        ax.set_zlabel(_scale_label(units, chosen))  # type: ignore[attr-defined]
    else:
        drawn = ax.contourf(
            result.alpha,
            result.beta,
            np.ma.masked_invalid(heights).T,
            levels=np.linspace(low, high, levels),
            cmap=cmap,
            extend=_beyond(heights, low, high),
        )
        ax.set_facecolor(HOLE)
        ax.plot(0, 0, marker="+", markersize=11, markeredgewidth=3.2, color="white", linestyle="none")
        ax.plot(0, 0, marker="+", markersize=10, markeredgewidth=1.4, color=INK, linestyle="none")
        if points and not np.all(result.evaluated):
            i, j = np.nonzero(result.evaluated)
            ax.plot(result.alpha[i], result.beta[j], ".", color="white", markersize=3, markeredgewidth=0)
        ax.set_aspect("equal")
        if bar and ax.figure is not None:
            # Beside the plane itself, which is flat where a trajectory is long, rather than beside its place.
            add_bar(ax.figure, drawn, ax, chosen, units, cax=ax.inset_axes((1.03, 0.07, 0.035, 0.86)))
    ax.set_xlabel("α (step along d₁)")
    ax.set_ylabel("β (step along d₂)")
    if checks:
        write_self_check(ax, result)
    if solid and ax.figure is not None:
        place_labels(ax.figure)
    return ax


def _beyond(heights: np.ndarray, low: float, high: float) -> Literal["neither", "both", "min", "max"]:
    """Return at which ends losses lie outside the limits, as matplotlib names it."""
    under, over = bool(np.nanmin(heights) < low), bool(np.nanmax(heights) > high)
    return "both" if under and over else "min" if under else "max" if over else "neither"


def add_bar(figure: Any, drawn: Any, ax: Any, scale: Scale, units: str, **place: Any) -> None:
    """Add a color bar that is labelled with true losses."""
    ticks, texts = scale.ticks()
    bar = figure.colorbar(drawn, ax=ax, **place)
    bar.set_ticks(ticks, labels=texts)
    bar.set_label(_scale_label(units, scale))
    bar.outline.set_visible(False)


def _draw_surface(
    ax: Any, result: Plane, heights: np.ndarray, center: float, limits: tuple, cmap: str, view: tuple
) -> None:
    a, b = np.meshgrid(result.alpha, result.beta, indexing="ij")
    ax.plot_surface(
        a,
        b,
        np.clip(heights, *limits),
        cmap=cmap,
        vmin=limits[0],
        vmax=limits[1],
        rcount=heights.shape[0],
        ccount=heights.shape[1],
        linewidth=0.15,
        edgecolor=(0, 0, 0, 0.25),
        antialiased=True,
    )
    if np.isfinite(center):
        # In front of everything: from most sides the walls hide the middle of a basin.
        ax.computed_zorder = False
        for width, ink in ((3.2, "white"), (1.4, INK)):
            mark = {"marker": "+", "markersize": 9 + width / 2, "markeredgewidth": width, "color": ink}
            ax.plot([0], [0], [np.clip(center, *limits)], linestyle="none", zorder=5, **mark)
    ax.view_init(*view)
    ax.set_box_aspect((1, 1, 0.85), zoom=0.84)  # room for the label of the heights, which the layout overlooks
    for axis, values in ((ax.xaxis, result.alpha), (ax.yaxis, result.beta)):
        places = inner_ticks(span([values]))
        axis.set_ticks(places, [given(p) for p in places])


def _scale_label(units: str, scale: Scale) -> str:
    return units if scale.kind == "linear" else f"{units}, {scale.words}"


# ------------------------------------------------------------------------------------------------ on the page


def surfaces(runs: Sequence[Run]) -> Chart | None:
    """Return the planes of these runs side by side on one span, one height scale and one color scale."""
    planes: list[tuple[Run, Any]] = [(r, p) for r in runs if (p := r.get("plane")) is not None]
    planes = [(r, p) for r, p in planes if len(finite([p.loss]))]
    if not planes:
        return None
    centers = finite([np.array([p.center_loss]) for _, p in planes])
    choices, default = scales(finite([p.loss for _, p in planes] + [centers]), centers)
    if rise := _rise(planes):
        choices[RISE] = rise
        if _losses(planes) > 1:
            default = RISE
    span_a = span([p.alpha for _, p in planes])
    span_b = span([p.beta for _, p in planes])
    layouts, colors = {}, {}
    for name, scale in choices.items():
        layouts[f"3d.{name}"] = _solid_layout(span_a, span_b, scale)
        layouts[f"contour.{name}"] = contour_layout(span_a, span_b)
        colors[f"3d.{name}"] = colors[f"contour.{name}"] = scale
    series, panels = [], []
    for i, (run, plane) in enumerate(planes):
        series.append(
            Series(
                {"alpha": plane.alpha, "beta": plane.beta, "loss": plane.loss, "evaluated": plane.evaluated},
                ("alpha", "beta"),
                run.name,
                run.index,
            )
        )
        center = float(plane.center_loss)
        views = {}
        for name, scale in choices.items():
            above = center if name == RISE else None
            views[f"3d.{name}"] = _solid_traces(i, center, scale, above)
            views[f"contour.{name}"] = [*contour_traces(i, center, scale, above=above), *_evaluated(plane)]
        panels.append(Panel(run.name, _label(run, plane), views, run.index, _facts(plane)))
    both = len(planes) == 1
    if both:  # one run has the room for both pictures side by side
        panels, layouts, colors = _side_by_side(panels[0], layouts, colors)
    words = {"linear": "Linear", "log": _log_word(choices), RISE: "Above center"}
    options = tuple((k, words[k]) for k in choices)
    return Chart(
        id="surfaces",
        title="Loss surfaces",
        caption=_caption(planes),
        series=series,
        panels=panels,
        layouts=layouts,
        controls=(
            Control("view", "View", ((("both", "Both"),) if both else ()) + _VIEWS, "both" if both else "3d"),
            Control("scale", "Height", options, default),
        ),
        height=300,
        legend=False,
        colors=colors,
        color_label="loss",
        notes=_notes(planes, choices, default),
        kind="surface",
    )


_VIEWS = (("3d", "3D"), ("contour", "Contour"))
#: The choice of heights that are each run's loss minus its own at the center.
RISE = "rise"
#: Below this share of the largest rise heights are drawn linear, and above it logarithmic (chosen by us: walls are a
#: hundred times as high as what lies about a minimum, and would leave it flat).
LINEAR_RISE = 0.01


def _rise(planes: Sequence[tuple[Run, Any]]) -> Scale | None:
    """Return the scale of what all planes rise to from their centers; None for a single one, or an unknown center.

    Losses of different kinds have different floors (a smoothed label's is its entropy), which would take up most of a
    common scale.
    """
    centers = [float(p.center_loss) for _, p in planes]
    if len(planes) < 2 or not np.isfinite(centers).all():
        return None
    found = finite([p.loss - c for (_, p), c in zip(planes, centers, strict=True)])
    low, high = float(found.min()), float(found.max())
    width = LINEAR_RISE * max(abs(low), abs(high))
    return Scale("asinh" if width > 0 else "linear", low, high, width or 1.0, ", above each center")


def _losses(planes: Sequence[tuple[Run, Any]]) -> int:
    return len({str(r.settings["loss"]) for r, _ in planes if r.settings.get("loss")})


def _side_by_side(panel: Panel, layouts: dict, colors: dict) -> tuple[list[Panel], dict, dict]:
    """Return the panel and one for its contour, which stands beside it where "both" is chosen."""
    scales_ = [k.removeprefix("3d.") for k in layouts if k.startswith("3d.")]
    both = {f"both.{k}": {**layouts[f"contour.{k}"], **layouts[f"3d.{k}"]} for k in scales_}
    for layout in both.values():
        layout.pop("margin", None)
    first = {**panel.views, **{f"both.{k}": panel.views[f"3d.{k}"] for k in scales_}}
    second: dict = {key: [] for key in panel.views}
    second |= {f"both.{k}": panel.views[f"contour.{k}"] for k in scales_}
    panels = [replace(panel, views=first), replace(panel, views=second, title="", lines=())]
    return panels, layouts | both, colors | {f"both.{k}": colors[f"3d.{k}"] for k in scales_}


def _log_word(choices: dict[str, Scale]) -> str:
    return "Log" if choices["log"].kind == "log" else "Asinh"


def span(axes: Sequence[np.ndarray]) -> list[float]:
    return [float(min(np.min(a) for a in axes)), float(max(np.max(a) for a in axes))]


def inner_ticks(ends: Sequence[float]) -> list[float]:
    """Return three ticks of a surface's axis: none in the corners, where the labels of two axes would collide."""
    low, high = ends
    return [low / 2, 0.0, high / 2] if low == -high else [low + share * (high - low) for share in (0.25, 0.5, 0.75)]


def _ticks(ends: list[float]) -> dict:
    """Return the ticks of a surface on the page: round numbers where zero isn't in the middle."""
    return {"tickvals": inner_ticks(ends)} if ends[0] == -ends[1] else {"nticks": 5}


def _solid_layout(span_a: list[float], span_b: list[float], scale: Scale) -> dict:
    return {
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "scene": {
            "xaxis": {"title": {"text": "α"}, "range": span_a, **_ticks(span_a)},
            "yaxis": {"title": {"text": "β"}, "range": span_b, **_ticks(span_b)},
            "zaxis": scaled_axis("rise" if scale.note else "loss", scale, pad=0.0),
            "aspectmode": "manual",
            "aspectratio": {"x": 0.99, "y": 0.99, "z": 0.93},
        },
    }


def _hover(above: float | None) -> str:
    word = "loss" if above is None else f"loss {number(above)} +"
    return f"α %{{x:.3g}}, β %{{y:.3g}}<br>{word} %{{text}}<extra></extra>"


def _solid_traces(i: int, center: float, scale: Scale, above: float | None = None) -> list[dict]:
    low, high = scale.range
    height = ref(i, "loss", scale, transpose=True, above=above)
    traces: list[dict] = [
        {
            "type": "surface",
            "x": ref(i, "alpha"),
            "y": ref(i, "beta"),
            "z": height,
            "text": ref(i, "loss", transpose=True, text=True, above=above),
            "hovertemplate": _hover(above),
            "colorscale": "Viridis",
            "cmin": low,
            "cmax": high,
            "showscale": False,
            "connectgaps": False,
            "lighting": {"ambient": 0.72, "diffuse": 0.55, "specular": 0.04, "roughness": 0.9, "fresnel": 0.0},
            "contours": {
                "z": {
                    "show": True,
                    "start": low,
                    "end": high,
                    "size": (high - low) / 12,
                    "color": "rgba(255,255,255,0.35)",
                    "width": 1,
                }
            },
        }
    ]
    if np.isfinite(center):
        traces.append(
            {
                "type": "scatter3d",
                "mode": "markers",
                "x": [0],
                "y": [0],
                "z": [float(scale.forward(np.array([center if above is None else 0.0]))[0])],
                "marker": {"size": 3.5, "color": css("mark"), "line": {"color": css("paper"), "width": 1}},
                "hovertemplate": f"the checkpoint<br>loss {number(center)}<extra></extra>",
            }
        )
    return traces


def _evaluated(plane: Any) -> list[dict]:
    """Return the points that were evaluated, as small dots, where others are interpolated."""
    known = np.asarray(plane.evaluated, dtype=bool)
    if known.all():
        return []
    i, j = np.nonzero(known)
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "x": np.asarray(plane.alpha)[i].tolist(),
            "y": np.asarray(plane.beta)[j].tolist(),
            "marker": {"size": 2.5, "color": "rgba(255,255,255,0.75)"},
            "hoverinfo": "skip",
        }
    ]


def contour_layout(span_a: list[float], span_b: list[float]) -> dict:
    """Return the layout of a plane's contours: both directions on one scale, holes gray."""
    return {
        "xaxis": {"title": {"text": "α (step along d₁)"}, "range": span_a, "constrain": "domain"},
        "yaxis": {"title": {"text": "β (step along d₂)"}, "range": span_b, "scaleanchor": "x"},
        "hovermode": "closest",
        "plot_bgcolor": css("hole"),
    }


def contour_traces(
    i: int, center: float, scale: Scale, what: str = "the checkpoint", above: float | None = None
) -> list[dict]:
    """Return the contours of series i, or of what is `above` a given loss, and the center, named `what`."""
    low, high = scale.range
    return [
        {
            "type": "contour",
            "x": ref(i, "alpha"),
            "y": ref(i, "beta"),
            "z": ref(i, "loss", scale, transpose=True, above=above),
            "text": ref(i, "loss", transpose=True, text=True, above=above),
            "hovertemplate": _hover(above),
            "colorscale": "Viridis",
            "zmin": low,
            "zmax": high,
            "autocontour": False,
            "contours": {"start": low, "end": high, "size": (high - low) / LEVELS},
            "line": {"width": 0.6, "color": "rgba(255,255,255,0.45)"},
            "showscale": False,
            "connectgaps": False,
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": [0],
            "y": [0],
            "marker": {
                "symbol": "cross-thin",
                "size": 11,
                "line": {"color": "#ffffff", "width": 2},
            },
            "hovertemplate": f"{what}<br>loss {number(center)}<extra></extra>",
        },
    ]


def _label(run: Run, plane: Any) -> str:
    known = finite([plane.loss])
    return (
        f"Loss surface of {run.name}: {number(float(plane.center_loss))} at the checkpoint, "
        f"{number(float(known.min()))} to {number(float(known.max()))} over the plane."
    )


def _facts(plane: Any) -> tuple[str, ...]:
    # A surface that another program measured doesn't hold the checkpoint's own loss.
    center = plane.checkpoint_loss if np.isfinite(plane.checkpoint_loss) else plane.center_loss
    value, error = measured(center, plane.loss_stderr).text()
    lines = [f"center {value} {error}".strip() if np.isfinite(center) else "center unknown"]
    total, evaluated = int(np.size(plane.loss)), int(np.sum(plane.evaluated))
    holes = total - int(np.isfinite(plane.loss).sum())
    if evaluated < total:
        lines.append(f"{count(evaluated)} of {count(total)} points evaluated, {_error(plane)}")
    if holes:
        lines.append(f"{counted(holes, 'point')} not finite (holes)")
    return tuple(lines)


def _error(plane: Any) -> str:
    """Return the stated error of the points that were not evaluated, with its bound."""
    stated, bound = float(plane.error), float(plane.error_p95)
    if not np.isfinite(stated):
        return "error unknown"
    text = f"error ≲ {number(100 * stated, 2)}% of the range"
    return text + (f" (95%: {number(100 * bound, 2)}%)" if np.isfinite(bound) else "")


def _caption(planes: Sequence[tuple[Run, Any]]) -> str:
    first = planes[0][1]
    splits = sorted({str(p.split) for _, p in planes})
    names = sorted({d for _, p in planes for d in p.directions if d})
    return (
        f"The {' and '.join(splits)} loss at θ + α d₁ + β d₂ around each checkpoint (marked), on one span, one height "
        f"scale and one color scale. {np.shape(first.loss)[0]} × {np.shape(first.loss)[1]} points"
        + (f"; directions: {', '.join(names)}" if names else "")
        + ". A slice shows two directions out of very many: what looks flat here can be steep along others, so read it "
        "beside the eigenvalues."
    )


def _notes(planes: Sequence[tuple[Run, Any]], choices: dict[str, Scale], default: str) -> tuple[str, ...]:
    notes = []
    if default == RISE:
        notes.append(
            "The runs were trained with different losses, whose floors differ: the heights above each run's own center "
            "are shown first."
        )
    if default == "log":
        linear = choices["linear"]
        notes.append(
            f"Heights run from {number(linear.low, 3)} to {number(linear.high, 3)}, so the {choices['log'].words} "
            "height is shown first."
        )
    spans = {(float(p.alpha[0]), float(p.alpha[-1]), float(p.beta[0]), float(p.beta[-1])) for _, p in planes}
    if len(spans) > 1:
        notes.append("The planes were measured over different spans; the axes show the largest of them.")
    seeds = {(tuple(p.directions), tuple(p.seeds)) for _, p in planes}
    if len(planes) > 1 and len(seeds) > 1:
        notes.append("The planes lie along differently drawn directions (seeds or normalization differ).")
    return tuple(notes)
