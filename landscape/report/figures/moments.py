"""Lines, surfaces and reliability of one training at successive steps, on common scales, the steps told by color."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..chart import Chart, Control, Panel, Series, css, ref, scaled_axis
from ..moments import Moments, moments, notes
from ..numbers import count, interval, number
from ..runs import Run
from ..scales import Ordered, Scale, finite, scales
from .calibration import bin_boxes, diagonal, each_traces, reliability_layout, reliability_series, together_layout
from .plane import contour_layout, contour_traces, span

#: Colors of the style sheet from the first step to the last (--time-0 ...).
COLORS = 8
#: Moments that a surface or a reliability diagram is shown of, one at a time.
ONE_BY_ONE = 6
#: What a bin must hold to be drawn among those of other steps: a share of the predictions, and so many of them (chosen
#: by us: the 95% interval of an accuracy out of five covers half of all accuracies and more).
LEAST_SHARE, LEAST_SAMPLES = 0.01, 5


def lines_over_steps(runs: Sequence[Run]) -> Chart | None:
    """Return the lines of each training at successive steps, one over the other."""
    found = moments(runs, "line")
    if not found:
        return None
    everything: list[Any] = [x for m in found for _, x in m.found]
    centers = finite([np.array([x.center_loss]) for x in everything])
    choices, default = scales(finite([x.loss for x in everything] + [centers]), centers)
    order = _order(found)
    series, panels = [], []
    for m in found:
        views: dict[str, list[dict]] = {name: [] for name in choices}
        for step, line in m.found:
            i, x = len(series), _any(line)
            data = {"alpha": x.alpha, "loss": x.loss, "step": np.full(len(x.alpha), step)}
            series.append(Series(data, ("alpha",), f"{m.run.name}, step {step}", m.run.index))
            for name, scale in choices.items():
                views[name].append(_line(i, step, order, "alpha", "loss", scale=scale))
        panels.append(Panel(m.run.name, _told("The loss along one direction", m), views, m.run.index))
    layouts = {
        name: {
            "xaxis": {"title": {"text": "α (step along d)"}},
            "yaxis": scaled_axis("loss", scale),
            "hovermode": "closest",
        }
        for name, scale in choices.items()
    }
    options = tuple((k, "Linear" if k == "linear" else "Log") for k in choices)
    return Chart(
        id="lines-steps",
        title="Loss along one direction, while training",
        caption="The loss at θ + α d at successive steps of each training, from dark to bright; θ are the weights of "
        "that step, and d is one and the same draw, scaled to their filters.",
        series=series,
        panels=panels,
        layouts=layouts,
        controls=(Control("scale", "Height", options, default),),
        height=320,
        legend=False,
        colors=dict.fromkeys(choices, order),
        color_label="optimizer step",
        notes=notes(found, "lines"),
        kind="moments",
    )


def surfaces_over_steps(runs: Sequence[Run]) -> Chart | None:
    """Return the planes of each training at one step at a time, on one span and one color scale for all of them."""
    found = [_with_numbers(m) for m in moments(runs, "plane", ONE_BY_ONE)]
    found = [m for m in found if m.found]
    if not found:
        return None
    everything: list[Any] = [x for m in found for _, x in m.found]
    centers = finite([np.array([x.center_loss]) for x in everything])
    choices, default = scales(finite([x.loss for x in everything] + [centers]), centers)
    spans = [span([getattr(x, axis) for x in everything]) for axis in ("alpha", "beta")]
    options = _one_by_one(found)
    series, panels = [], []
    for m in found:
        views: dict[str, list[dict]] = {f"{k}.{name}": [] for k, _ in options for name in choices}
        for key, (step, plane) in zip((k for k, _ in options), _spread(m, len(options)), strict=True):
            i, x = len(series), _any(plane)
            data = {"alpha": x.alpha, "beta": x.beta, "loss": x.loss}
            series.append(Series(data, ("alpha", "beta"), f"{m.run.name}, step {step}", m.run.index))
            for name, scale in choices.items():
                traces = contour_traces(i, float(x.center_loss), scale, what=f"the weights of step {count(step)}")
                views[f"{key}.{name}"] = [*traces, _written(f"step {count(step)}", spans[0][0], spans[1][1], "#ffffff")]
        panels.append(Panel(m.run.name, _told("Loss surfaces", m), views, m.run.index))
    layouts = {f"{k}.{name}": contour_layout(*spans) for k, _ in options for name in choices}
    heights = tuple((k, "Linear" if k == "linear" else "Log") for k in choices)
    return Chart(
        id="surfaces-steps",
        title="Loss surfaces, while training",
        caption="The loss at θ + α d₁ + β d₂ around the weights of one step (marked), for each training; all steps "
        "of all trainings share one span and one color scale.",
        series=series,
        panels=panels,
        layouts=layouts,
        controls=(Control("moment", "Step", options, options[-1][0]), Control("scale", "Colors", heights, default)),
        height=300,
        legend=False,
        colors={f"{k}.{name}": scale for k, _ in options for name, scale in choices.items()},
        color_label="loss",
        notes=notes(found, "surfaces"),
        kind="map",
    )


def reliability_over_steps(runs: Sequence[Run]) -> Chart | None:
    """Return the reliability of each training: at successive steps in one diagram, or one step with its bands."""
    found = [_with_predictions(m) for m in moments(runs, "calibration", ONE_BY_ONE - 1)]
    found = [m for m in found if m.found]
    if not found:
        return None
    order = _order(found)
    options = _one_by_one(found)
    series: list[Series] = []
    panels, top = [], 0.05
    for m in found:
        views: dict[str, list[dict]] = {"all": [diagonal()]}
        places: dict[int, int] = {}
        for step, result in m.found:
            table = _any(result)
            places[step] = len(series)
            own = reliability_series(m.run, table, name=f"{m.run.name}, step {step}")
            series += [own, bin_boxes(table)]
            top = max(top, float(np.nanmax(own.columns["share_of_samples"])))
            low, high = (float(b) for b in np.ravel(table.ece_interval)[:2])
            told = "ECE " + " ".join(interval(float(table.ece), low, high))
            views["all"].append(_line(len(series), step, order, "confidence", "accuracy", told, markers=True))
            series.append(_filled(own))
        for key, (step, result) in zip((k for k, _ in options), _spread(m, len(options)), strict=True):
            ece = number(float(_any(result).ece), 2)
            text = _written(f"step {count(step)}, ECE {ece}", 0.0, 1.0, None)
            views[key] = [diagonal(), *each_traces(places[step], m.run), text]
        panels.append(Panel(m.run.name, _told("Reliability", m), views, m.run.index))
    return Chart(
        id="reliability-steps",
        title="Reliability, while training",
        caption="The accuracy of each bin at its mean confidence, from predictions on held-out data at successive "
        "steps, from dark to bright (without bins that hold less than 1% of them, or fewer than 5); or of one step, "
        "with Clopper–Pearson 95% bars and, in gray, where 95% of the dots of a calibrated model would fall.",
        series=series,
        panels=panels,
        layouts={"all": together_layout(), **{k: reliability_layout(top) for k, _ in options}},
        controls=(Control("moment", "Step", (("all", "All"), *options), "all"),),
        height=340,
        legend=False,
        colors={"all": order},
        color_label="optimizer step",
        notes=notes(found, "diagrams"),
        kind="moments",
    )


def _any(result: Any) -> Any:
    return result


def _with_numbers(m: Moments) -> Moments:
    return Moments(m.run, tuple((s, p) for s, p in m.found if len(finite([_any(p).loss]))), m.measured, m.unread)


def _with_predictions(m: Moments) -> Moments:
    kept = tuple((s, c) for s, c in m.found if np.nansum(np.asarray(_any(c).counts, dtype=float)) > 0)
    return Moments(m.run, kept, m.measured, m.unread)


def _order(found: Sequence[Moments]) -> Ordered:
    return Ordered(tuple(sorted({step for m in found for step, _ in m.found})))


def _one_by_one(found: Sequence[Moments]) -> tuple[tuple[str, str], ...]:
    """Return the choices of a moment: the steps where all trainings share them, else which of how many."""
    steps = {tuple(step for step, _ in m.found) for m in found}
    if len(steps) == 1:
        return tuple((str(i), count(step)) for i, step in enumerate(steps.pop()))
    n = max(len(m.found) for m in found)
    return tuple((str(i), {0: "first", n - 1: "last"}.get(i, f"{i + 1} of {n}")) for i in range(n))


def _spread(m: Moments, n: int) -> list[tuple[int, Any]]:
    """Return a moment for each of n choices; those of a training that has fewer are repeated."""
    last = len(m.found) - 1
    return [m.found[round(i * last / max(n - 1, 1))] for i in range(n)]


def _filled(own: Series) -> Series:
    """Return the bins that many lines in one picture are drawn through: the others jump with single samples."""
    share, samples = (np.asarray(own.columns[name]) for name in ("share_of_samples", "samples"))
    keep = (share >= LEAST_SHARE) & (samples >= LEAST_SAMPLES)
    kept = {name: np.asarray(own.columns[name])[keep] for name in ("confidence", "accuracy", "samples")}
    return Series(kept, ("confidence",), csv=False)


def _line(
    i: int,
    step: int,
    order: Ordered,
    x: str,
    y: str,
    told: str = "",
    *,
    scale: Scale | None = None,
    markers: bool = False,
) -> dict:
    color = css(f"time-{round(order.share(step) * (COLORS - 1))}")
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers else "lines",
        "x": ref(i, x),
        "y": ref(i, y, scale),
        "text": ref(i, "samples" if markers else "loss", text=True),
        "hovertemplate": f"step {count(step)}: "
        + (f"{told}<br>confidence %{{x:.3f}}, accuracy %{{y:.3f}}, %{{text}} samples" if markers else "%{text}")
        + "<extra></extra>",
        "line": {"color": color, "width": 1.6},
        "marker": {"color": color, "size": 5},
        "connectgaps": markers,
        "cliponaxis": not markers,
    }


def _written(text: str, x: float, y: float, color: str | None) -> dict:
    """Return words in the upper left corner: panels share their layouts, so that it can't be an annotation."""
    return {
        "type": "scatter",
        "mode": "text",
        "x": [x],
        "y": [y],
        "text": [f" {text}"],
        "textposition": "bottom right",
        "textfont": {"size": 12, "color": color or css("ink")},
        "hoverinfo": "skip",
    }


def _told(what: str, m: Moments) -> str:
    first, last = m.found[0][0], m.found[-1][0]
    return f"{what} of {m.run.name} at {len(m.found)} steps, from step {count(first)} to step {count(last)}."
