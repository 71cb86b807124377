"""A training as it went, for papers: loss, learning rate, gradient norm and curvature over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..palette import MUTED, RUN_COLORS
from ..runs import Run
from .registry import tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Steps over which the running mean of the loss is taken, as a share of the run (chosen by us).
SMOOTHED = 0.02
#: Thresholds are drawn up to this many times the largest eigenvalue (chosen by us).
FAR = 100.0
#: Events that are marked, and their colors.
MARKED = {"spike": RUN_COLORS[4], "not_finite": RUN_COLORS[1], "skipped_step": MUTED}

Panel = tuple[str, Callable[["Axes", Any, str, str], bool]]


def draw_records(figure: Figure, found: Sequence[tuple[Run, Any]], width: float, height: float | None = None) -> None:
    """Draw the records of these runs into an empty figure: a panel for each quantity that any of them has.

    `found` holds (run, record): a record gives Series by name (steps, values, column). Runs share each panel, apart by
    color; in inches, `width` of the figure and `height`, by default one that keeps the panels' shape.
    """
    panels = [(label, draw) for label, names, draw in _PANELS if any(_has(h, names) for _, h in found)]
    across = min(2, len(panels)) if width > 4.5 else 1
    down = -(-len(panels) // max(across, 1))
    figure.set_size_inches(width, height or 0.62 * width / across * down + 0.2)
    first: Any = None
    for i, (label, draw) in enumerate(panels):
        ax = figure.add_subplot(down, across, i + 1, sharex=first)
        first = first or ax
        for k, (run, record) in enumerate(found):
            draw(ax, record, RUN_COLORS[k % len(RUN_COLORS)], run.name if len(found) > 1 else "")
        _mark(ax, found)
        ax.set_ylabel(label)
        if i >= len(panels) - across:
            ax.set_xlabel("optimizer step")
        tidy(ax)
        if i == 0 and len(found) > 1:
            ax.legend(frameon=False)


def _has(record: Any, names: Sequence[str]) -> bool:
    return any((s := record.get(n)) is not None and len(s.steps) for n in names)


def _rows(record: Any, name: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a column that were neither superseded nor left out."""
    series = record.get(name)
    if series is None or column not in series.names:
        return np.zeros(0), np.zeros(0)
    series = series.current()
    steps, values = np.asarray(series.steps, dtype=float), np.asarray(series.column(column), dtype=float)
    known = np.isfinite(values)
    return steps[known], values[known]


def _smoothed(ax: Axes, steps: np.ndarray, values: np.ndarray, color: str, label: str) -> bool:
    """Draw each step faintly and the running mean over it; a logarithmic axis where all are positive and far apart."""
    if not len(steps):
        return False
    ax.plot(steps, values, color=color, linewidth=0.6, alpha=0.25)
    window = max(1, int(SMOOTHED * len(values)))
    smooth = np.convolve(values, np.full(window, 1 / window), mode="valid")
    # Each mean at the middle of its window: at the end of it, the curve would lag behind its own steps.
    middle = steps[(window - 1) // 2 :][: len(smooth)]
    ax.plot(middle, smooth, color=color, linewidth=1.5, label=label or None)
    if (values > 0).all() and values.max() > 20 * values.min():
        ax.set_yscale("log")
    return True


def _loss(ax: Axes, record: Any, color: str, label: str) -> bool:
    return _smoothed(ax, *_rows(record, "loss", "loss"), color, label)


def _rate(ax: Axes, record: Any, color: str, label: str) -> bool:
    series = record.get("learning_rate")
    for k, name in enumerate(series.names if series is not None else ()):
        steps, values = _rows(record, "learning_rate", name)
        ax.plot(steps, values, color=color, linewidth=1.4, linestyle=("-", "--", ":", "-.")[k % 4])
    return series is not None


def _gradient(ax: Axes, record: Any, color: str, label: str) -> bool:
    return _smoothed(ax, *_rows(record, "gradient_norm", "global"), color, label)


def _curvature(ax: Axes, record: Any, color: str, label: str) -> bool:
    steps, values = _rows(record, "curvature", "lambda_max")
    at, limit = _rows(record, "curvature", "threshold")
    ax.plot(steps, values, "o-", color=color, markersize=3, linewidth=1.2)
    if len(values) and (values > 0).all():
        if values.max() > 20 * values.min():
            ax.set_yscale("log")
        # A learning rate that goes to 0 takes the threshold to infinity: the picture ends well above the eigenvalues.
        limit = np.where(limit <= FAR * values.max(), limit, np.nan)
    ax.plot(at, limit, color=color, linewidth=1.0, linestyle="--")
    return bool(len(steps))


def _mark(ax: Axes, found: Sequence[tuple[Run, Any]]) -> None:
    for _, record in found:
        for event in record.events:
            if event.kind in MARKED:
                ax.axvline(event.step, color=MARKED[event.kind], linewidth=0.6, alpha=0.6, zorder=0)


_PANELS = (
    ("loss of the batch", ("loss",), _loss),
    ("learning rate", ("learning_rate",), _rate),
    ("gradient norm", ("gradient_norm",), _gradient),
    ("λ max (dashed: threshold)", ("curvature",), _curvature),
)
