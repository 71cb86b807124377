"""How the results of one figure share it: laid over one another, or in panels that can be compared."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import LandscapeError
from .numbers import given
from .palette import RUN_COLORS
from .room import columns_of, few_and_short, lines_of, names_within
from .runs import Run
from .scales import Scale, finite, scales
from .style import PAPER, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Kinds whose panels have the same axes, so that runs can be compared: which of the two.
COMPARED = {
    "basin": "xy", "diagonal": "x", "eigenvalues": "y", "estimate": "y", "frobenius": "y", "layers": "x", "path": "y",
    "performance": "x", "sampling": "y", "sharpness": "x", "trace": "y",
}  # fmt: skip
#: Least width of a panel in inches, with letters of 8 points, where its kind needs more or less than 2.1 for its labels
#: and what stands above it (seen with the longest that occur).
LEAST = {
    "plane": 1.5, "eigenvalues": 2.6, "calibration": 2.6, "recalibration": 2.9, "sharpness": 3.2, "layers": 2.9,
    "diagonal": 2.6,
}  # fmt: skip


def drawing(kind: str) -> Any:
    """Return the function that draws results of this kind."""
    from .figures.generic import draw_generic
    from .figures.registry import figures

    return figures().get(kind, draw_generic)


def draw_over(figure: Figure, kind: str, found: list[tuple[Run, Any]], options: dict[str, Any], size: Any) -> str:
    """Draw all results on one axis of a figure of this size, and return the scale of its heights in words."""
    draw, words = drawing(kind), ""
    figure.set_size_inches(*size)
    ax = figure.add_subplot()
    options = dict(options)
    limits = options.pop("zlim", None)
    if kind == "line" and options.get("scale", "auto") == "auto" and options.get("quantity", "loss") == "loss":
        centers = finite([np.array([x.center_loss]) for _, x in found])
        words = scales(finite([x.loss for _, x in found]), centers)[1]
        options["scale"] = words
    extra = {"band": False, "counts": False, "joined": True} if kind == "calibration" else {}
    for i, (run, result) in enumerate(found):
        draw(result, ax=ax, color=RUN_COLORS[i % len(RUN_COLORS)], label=run.name, **extra, **options)
    if limits:
        ax.set_ylim(*limits)
    _one_legend(figure, ax)
    return {"log": "logarithmic", "linear": "linear"}.get(words, words)


def _one_legend(figure: Figure, ax: Axes) -> None:
    """Show each name once: within the axes where there are few, below them where they would lie over the data."""
    handles, labels = ax.get_legend_handles_labels()
    handle_of = dict(zip(reversed(labels), reversed(handles), strict=True))
    runs = list(dict.fromkeys(labels))
    if len(runs) < 2:
        return
    from matplotlib.transforms import ScaledTranslation

    width, height = (float(x) for x in figure.get_size_inches())
    size = float(ax.xaxis.label.get_fontsize())
    names, once = names_within(runs, width, size), [handle_of[name] for name in runs]
    if few_and_short(names, width, size):
        ax.legend(once, names, frameon=False, loc="best")
        return
    columns = columns_of(names, width, size)
    below = ax.transAxes + ScaledTranslation(0, -3.2 * size / 72, figure.dpi_scale_trans)
    ax.legend(
        once, names, loc="upper left", frameon=False, ncols=columns, bbox_to_anchor=(0, 0),
        bbox_transform=below,
    )  # fmt: skip
    figure.set_size_inches(width, height + (1 + lines_of(names, columns)) * size * 1.45 / 72)


def draw_beside(
    figure: Figure,
    kind: str,
    found: list[tuple[Run, Any]],
    options: dict[str, Any],
    inches: float,
    height: float | None,
    style: Style,
    titles: bool,
) -> str:
    """Draw a panel for each result, on shared scales where they can be compared; return the heights' scale in words."""
    draw, n = drawing(kind), len(found)
    solid = options.get("projection") == "3d"
    words, shared = "", None
    options = dict(options)
    if kind == "plane":
        options, shared = _one_scale(found, options)
        words = "" if shared.kind == "linear" else shared.words
        options.update(checks=False)
    if kind == "line":
        options.pop("zlim", None)
    if kind == "eigenvalue_map":
        from .figures import eigenvalue_map

        options["limits"] = eigenvalue_map.shared_limits([x for _, x in found], options.get("quantity", "ratio"))
    if kind == "connectivity":
        from .figures import connectivity

        options["limits"] = connectivity.shared_limits([x for _, x in found])
    least = (1.7 if solid else LEAST.get(kind, 2.1)) * style.font / PAPER.font
    across = min(n, max(1, int(inches / least)), 4)
    across = math.ceil(n / math.ceil(n / across))
    down = math.ceil(n / across)
    each = inches / across
    deepest = max(_broken(run.name, each, style).count("\n") for run, _ in found) if titles else 0
    above = (0.3 if titles else 0.1) + (0.2 if solid and each < 2 else 0.0)
    shape = _shape(kind, solid, n)
    if kind in ("plane", "trajectory") and n == 1 and not solid:
        shape -= _ROOM * (1 - min(1.0, _sides(*found[0])))  # no empty paper above and below a long trajectory
    figure.set_size_inches(inches, height or down * (each * shape + above))
    axes, drawn = [], None
    for i, (run, result) in enumerate(found):
        ax: Any = figure.add_subplot(down, across, i + 1, **({"projection": "3d"} if solid else {}))
        extra: dict[str, Any] = {}
        if kind == "plane" and n > 1:
            extra["bar"] = False
        if "color" in inspect.signature(draw).parameters:
            extra["color"] = RUN_COLORS[i % len(RUN_COLORS)]
        if kind == "trajectory":
            extra.update(_surface_below(run, result))
        draw(result, ax=ax, **extra, **options)
        if titles:
            own = ax.get_title(loc="left")
            name = _broken(run.name, each, style)
            # Of 3D axes the layout sees one line of title: further ones go down, into the empty corner above the box.
            place: dict[str, Any] = {"y": 1.0, "pad": 1.2 * style.font, "va": "top"} if solid and deepest else {}
            ax.set_title(
                f"{name}\n{own}" if own else name, loc="left" if own else "center", fontsize=style.font, **place
            )
        if solid and shared is not None:
            label = f"height: {_height(options.get('quantity', 'loss'), shared)}" if i == 0 else ""
            _room_for_labels(ax, shared, label, each, style, deepest)
        axes.append(ax)
        if kind == "plane" and not solid:
            drawn = ax.collections[0]
    for which in COMPARED.get(kind, ""):
        # Those that a panel has beside its own (of measures with other units) are compared among themselves.
        for alike in (axes, [ax for ax in figure.axes if ax not in axes]):
            _same_limits(alike, which)
    if kind == "plane" and n > 1:
        _same_span(axes, found)
        for i, ax in enumerate(axes):
            if not solid and i % across:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
            if not solid and i // across < down - 1 and i + across < n:
                ax.set_xlabel("")
                ax.tick_params(labelbottom=False)
        if drawn is not None and shared is not None:
            from .figures.plane import add_bar
            from .figures.self_check import label_of

            add_bar(
                figure, drawn, axes, shared, label_of(options.get("quantity", "loss")), shrink=0.9, aspect=26, pad=0.01
            )
    return words


def _same_limits(axes: Sequence[Any], which: str) -> None:
    if axes:
        low, high = zip(*(getattr(ax, f"get_{which}lim")() for ax in axes), strict=True)
        for ax in axes:
            getattr(ax, f"set_{which}lim")(min(low), max(high))


def _height(quantity: str, scale: Scale) -> str:
    from .figures.self_check import label_of

    return label_of(quantity) if scale.kind == "linear" else f"{label_of(quantity)}, {scale.words}"


def _room_for_labels(ax: Any, scale: Scale, label: str, inches: float, style: Style, lines: int) -> None:
    """Keep the labels of a surface within its panel: short names close to the axes, few ticks, a smaller box.

    matplotlib lays out 3D axes without their labels. What the heights are stands in the corner, below so many further
    lines of the title.
    """
    pad = -1.0 if style.font < 12 else 0.35 * style.small
    for axis, name in ((ax.xaxis, "α"), (ax.yaxis, "β"), (ax.zaxis, "")):
        axis.set_tick_params(pad=pad, labelsize=style.small)
        axis.set_label_text(name)
        axis.labelpad = 0.0 if style.font < 12 else 0.8 * style.font
        if name and inches < 2:  # the middle one would lie over its neighbors
            ends = axis.get_ticklocs()[::2]
            axis.set_ticks(ends, [given(float(e)) for e in ends])
    # As many as fit on the length that is seen of the axis, which from above is little.
    room = int(19 * inches * math.cos(math.radians(ax.elev)) / style.font)
    ticks, texts = scale.ticks(max(3, room))
    if room < 3:
        ticks, texts = ticks[:: len(ticks) - 1 or 1], texts[:: len(texts) - 1 or 1]
    ax.set_zticks(ticks, texts)
    # They stand centered on their places: long ones need more room, or they reach over the axis.
    ax.zaxis.set_tick_params(pad=pad + 0.3 * style.small * max(0, max(map(len, texts), default=0) - 3))
    if label:
        # Below the name, wherever the layout puts it.
        above: Any = ("axes fraction", ax.title) if ax.get_title() else ("axes fraction", "axes fraction")
        ax.annotate(
            label, (0.0, 0.0 if ax.get_title() else 0.97), xycoords=above, xytext=(0, -0.35 * style.font),
            textcoords="offset points", fontsize=style.small, va="top", annotation_clip=False,
        )  # fmt: skip
    # Large letters reach further down, beyond the box that the layout knows.
    zoom = 0.78 if style.font >= 12 else 0.9 if inches > 2 else 0.84
    ax.set_box_aspect((1, 1, 0.8), zoom=zoom - 0.06 * lines)


def _one_scale(found: list[tuple[Run, Any]], options: dict[str, Any]) -> tuple[dict[str, Any], Scale]:
    """Return the options with the scale and the limits that all planes share."""
    from .figures.self_check import quantity_of

    quantity = options.get("quantity", "loss")
    limits = options.get("zlim")
    values = finite([quantity_of(p, quantity) for _, p in found]) if limits is None else np.array(limits, dtype=float)
    if not len(values):
        raise LandscapeError("no point of these planes is finite: there is no surface to draw")
    choices, default = scales(values, finite([np.array([p.center_loss]) for _, p in found]))
    name = options.get("scale", "linear" if quantity.endswith("accuracy") else default)
    scale = choices.get(name, choices["linear"])
    if limits is None and len(found) > 1:
        options = {**options, "zlim": (float(values.min()), float(values.max()))}
    return {**options, "scale": name}, scale


def _same_span(axes: Sequence[Any], found: list[tuple[Run, Any]]) -> None:
    for ends, values in (("set_xlim", [p.alpha for _, p in found]), ("set_ylim", [p.beta for _, p in found])):
        low, high = min(float(np.min(v)) for v in values), max(float(np.max(v)) for v in values)
        for ax in axes:
            getattr(ax, ends)(low, high)


def _surface_below(run: Run, way: Any) -> dict[str, Any]:
    plane = run.get("plane")
    if plane is None:
        return {}
    try:
        way.lies_on(plane, "")
    except LandscapeError:
        return {}
    return {"surface": plane, "checks": False}


#: Width of a single contour over that of its figure, which holds the labels and the color bar as well.
_ROOM = 0.64


def _sides(run: Run, result: Any) -> float:
    """Return height over width of a contour, both in its own steps; 1 where no plane is drawn."""
    plane = result if result.kind == "plane" else _surface_below(run, result).get("surface")
    if plane is None:
        return 1.0
    up, along = (np.asarray(x, dtype=float) for x in (plane.beta, plane.alpha))
    return float((up[-1] - up[0]) / (along[-1] - along[0]))


def _shape(kind: str, solid: bool, panels: int) -> float:
    """Return height over width of a panel."""
    if kind in ("plane", "trajectory", "eigenvalue_map"):
        return 0.82 if solid else (0.8 if panels == 1 else 0.94)
    return {"calibration": 1.15, "recalibration": 1.25, "sharpness": 0.62, "performance": 0.4}.get(kind, 0.72)


def _broken(name: str, inches: float, style: Style) -> str:
    """Return a name in as many lines as its panel's width needs."""
    import textwrap

    return "\n".join(textwrap.wrap(name, max(8, int(inches * 72 / (0.7 * style.font))))) or name
