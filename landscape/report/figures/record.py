"""A training as it went, for papers: loss, learning rate, gradient norm and curvature over the steps."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import LandscapeError
from ..palette import MUTED, RUN_COLORS
from ..room import columns_of, few_and_short, lines_of, names_within
from ..runs import Run
from .registry import round_ticks, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Steps over which the running mean of the loss is taken, as a share of the run (chosen by us).
SMOOTHED = 0.02
#: Of so few points each is drawn as it is, without a mean (chosen by us: epochs and probes, not steps).
SPARSE = 200
#: Thresholds are drawn up to this many times the largest eigenvalue (chosen by us).
FAR = 100.0
#: Events that are marked, and their colors.
MARKED = {"spike": RUN_COLORS[4], "not_finite": RUN_COLORS[1], "skipped_step": MUTED}

#: Points of a curve that are marked one by one; more of them would run into one another (chosen by us).
MARKERS = 40


@dataclass(frozen=True)
class Panel:
    """A panel: its axis' label, `draw(axes, record, color, run's name)`, and how a caption calls it.

    `quantity` and `column` say what it shows of a record; without a column all of them.
    """

    label: str
    quantity: str
    column: str
    draw: Callable[[Axes, Any, str, str], None]
    words: str
    averages: bool = False

    def of(self, record: Any) -> bool:
        """Whether a record has numbers to draw."""
        series = record.get(self.quantity)
        if series is None or not len(series.steps):
            return False
        return not self.column or (self.column in series.names and bool(np.isfinite(series.column(self.column)).any()))

    def averaged(self, record: Any) -> bool:
        """Whether a record's curve is drawn with a running mean."""
        return self.averages and len(_rows(record, self.quantity, self.column)[0]) > SPARSE


def panels_of(found: Sequence[tuple[Run, Any]], quantity: str | None = None) -> list[Panel]:
    """Return the panels for these records: of the usual quantities those recorded, or those that `quantity` names.

    `quantity` is one name or several, separated by commas: loss, learning_rate, gradient_norm, lambda_max (against its
    threshold), or any that was recorded, as "update.ratio" or "ratio". Raises LandscapeError for an unknown one.
    """
    if quantity is None:
        return [panel for panel in _PANELS.values() if any(panel.of(record) for _, record in found)]
    return [_named(found, name.strip()) for name in quantity.split(",")]


def _named(found: Sequence[tuple[Run, Any]], name: str) -> Panel:
    usual = _PANELS.get({"curvature": "lambda_max"}.get(name, name))
    if usual is not None and any(usual.of(record) for _, record in found):
        return usual
    known: dict[str, tuple[str, str, str]] = {}
    for _, record in found:
        for quantity, series in ((q, record.get(q)) for q in record):
            # What has a whole and its parts is drawn as a whole.
            columns = ["global"] if "global" in series.names else series.names
            for column in columns:
                whole = column in ("global", quantity)
                known[quantity if whole else f"{quantity}.{column}"] = (quantity, column, series.units)
    matching = [full for full in known if full == name or full.endswith("." + name)]
    if len(matching) != 1:
        told = [*(k for k, p in _PANELS.items() if any(p.of(r) for _, r in found)), *known]
        told = list(dict.fromkeys(matching or told))
        why = "is one of several" if matching else "was not recorded"
        near = difflib.get_close_matches(name, told, n=1)
        hint = f"; did you mean {near[0]}?" if near and not matching else ""
        raise LandscapeError(f"{name!r} {why}: there are {', '.join(told)}{hint}")
    quantity, column, unit = known[matching[0]]
    alone = {"global": quantity, quantity: quantity}.get(column)
    label = (alone or (column if quantity in ("logged", "metrics") else f"{quantity} {column}")).replace("_", " ")
    draw = partial(_column, quantity=quantity, column=column)
    return Panel(label + (f" ({unit})" if unit else ""), quantity, column, draw, label, averages=True)


def preconditioned(record: Any) -> bool:
    """Whether the λ max that decides stability was another than the Hessian's own: that of an adaptive optimizer."""
    eigenvalues, curvature = record.get("eigenvalue"), record.get("curvature")
    if eigenvalues is None or curvature is None:
        return False
    own = dict(zip(*_rows(record, "eigenvalue", "1"), strict=True))
    deciding = zip(*_rows(record, "curvature", "lambda_max"), strict=True)
    return any(not np.isclose(value, own[step], rtol=1e-6) for step, value in deciding if step in own)


def draw_records(
    figure: Figure,
    found: Sequence[tuple[Run, Any]],
    panels: Sequence[Panel],
    width: float,
    height: float | None = None,
    scale: str = "auto",
) -> None:
    """Draw the records of these runs into an empty figure, in panels as `panels_of` chooses them.

    `found` holds (run, record): a record gives Series by name (steps, values, column). Runs share each panel, apart by
    color; in inches, `width` of the figure and `height`, by default one that keeps the panels' shape. `scale` is that
    of the heights: linear, log, or auto.
    """
    across = min(2, len(panels)) if width > 4.5 else 1
    down = -(-len(panels) // max(across, 1))
    shape = 0.68 if len(panels) == 1 else 0.62
    figure.set_size_inches(width, height or shape * width / across * down + 0.2)
    first: Any = None
    for i, panel in enumerate(panels):
        ax = figure.add_subplot(down, across, i + 1, sharex=first)
        first = first or ax
        for k, (run, record) in enumerate(found):
            panel.draw(ax, record, RUN_COLORS[k % len(RUN_COLORS)], run.name if len(found) > 1 else "")
        _mark(ax, found)
        if scale != "auto":
            ax.set_yscale(scale)
        if ax.get_yscale() == "log":
            round_ticks(ax.yaxis)
        ax.set_ylabel(panel.label)
        if i >= len(panels) - across:
            ax.set_xlabel("optimizer step")
        tidy(ax)
    size = float(first.xaxis.label.get_fontsize())
    if len(found) > 1 and few_and_short([run.name for run, _ in found], width / across, size):
        first.legend(frameon=False)
    elif len(found) > 1:
        handles, labels = first.get_legend_handles_labels()
        labels = names_within(labels, width, size)
        columns = columns_of(labels, width, size)
        figure.legend(handles, labels, loc="outside lower center", frameon=False, ncols=columns)
        if height is None:
            wide, high = figure.get_size_inches()
            figure.set_size_inches(wide, high + (lines_of(labels, columns) + 0.5) * size * 1.45 / 72)


def _rows(record: Any, name: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a column that were neither superseded nor left out."""
    series = record.get(name)
    if series is None or column not in series.names:
        return np.zeros(0), np.zeros(0)
    series = series.current()
    steps, values = np.asarray(series.steps, dtype=float), np.asarray(series.column(column), dtype=float)
    known = np.isfinite(values)
    return steps[known], values[known]


def _column(ax: Axes, record: Any, color: str, label: str, quantity: str, column: str) -> None:
    steps, values = _rows(record, quantity, column)
    if len(steps):
        _logarithmic(ax, values)
        draw = _each if len(steps) <= SPARSE else _smoothed
        draw(ax, steps, values, color, label)


def _each(ax: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    """Draw every point; marked one by one where they are few."""
    ax.plot(
        steps, values, "o-" if len(values) <= MARKERS else "-", color=color, markersize=3, linewidth=1.2,
        label=label or None,
    )  # fmt: skip


def _smoothed(ax: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str) -> None:
    """Draw each step faintly and the running mean over it."""
    ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
    window = max(1, int(SMOOTHED * len(values)))
    smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
    # Each mean at the middle of its window: at the end of it, the curve would lag behind its own steps.
    middle = steps[(window - 1) // 2 :][: len(smooth)]
    ax.plot(middle, smooth, color=color, linewidth=1.5, label=label or None)


def _logarithmic(ax: Axes, values: np.ndarray) -> None:
    """Take a logarithmic axis where all are positive and far apart."""
    if (values > 0).all() and values.max() > 20 * values.min():
        ax.set_yscale("log")


def _rate(ax: Axes, record: Any, color: str, label: str) -> None:
    series = record.get("learning_rate")
    for k, name in enumerate(series.names if series is not None else ()):
        steps, values = _rows(record, "learning_rate", name)
        style = ("-", "--", ":", "-.")[k % 4]
        ax.plot(steps, values, color=color, linewidth=1.4, linestyle=style, label=None if k else label or None)


def _curvature(ax: Axes, record: Any, color: str, label: str) -> None:
    steps, values = _rows(record, "curvature", "lambda_max")
    at, limit = _rows(record, "curvature", "threshold")
    _each(ax, steps, values, color, label)
    if len(values) and (values > 0).all():
        _logarithmic(ax, values)
        # A learning rate that goes to 0 takes the threshold to infinity: the picture ends well above the eigenvalues.
        limit = np.where(limit <= FAR * values.max(), limit, np.nan)
    ax.plot(at, limit, color=color, linewidth=1.0, linestyle="--")
    if len(at) == 1:  # a line of one point would not be seen
        ax.plot(at, limit, "_", color=color, markersize=8)


def _mark(ax: Axes, found: Sequence[tuple[Run, Any]]) -> None:
    for _, record in found:
        for event in record.events:
            if event.kind in MARKED:
                ax.axvline(event.step, color=MARKED[event.kind], linewidth=0.6, alpha=0.6, zorder=0)


LAMBDA_MAX = Panel(
    "λ max (dashed: threshold)", "curvature", "lambda_max", _curvature,
    "λ max against the largest eigenvalue at which the optimizer is stable (dashed)",
)  # fmt: skip
_PANELS = {
    "loss": Panel(
        "loss of the batch", "loss", "loss", partial(_column, quantity="loss", column="loss"),
        "loss of each step's batch", averages=True,
    ),
    "learning_rate": Panel("learning rate", "learning_rate", "", _rate, "learning rate"),
    "gradient_norm": Panel(
        "gradient norm", "gradient_norm", "global", partial(_column, quantity="gradient_norm", column="global"),
        "gradient norm", averages=True,
    ),
    "lambda_max": LAMBDA_MAX,
}  # fmt: skip
