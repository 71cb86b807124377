"""One frame of `landscape watch`: how a run stands, its curves as text, and what happened, in a terminal's size."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..archive.history import Event
from ..archive.training import WORTH_A_SHARE
from ..archive.watching import Curve, Standing, Watched
from ..counted import counted
from .textplot import Drawn, Pen, plot, short

#: Lines of a plot at least, its title and its axis of steps included; columns from which two stand side by side.
_LEAST, _SIDE_BY_SIDE = 7, 76
#: Of several optimizers, how many have their own plots (chosen by us).
_MOST_OPTIMIZERS = 3
#: Lines of events that are always shown where there are any.
_EVENT_LINES = 3
_STATUS = {"running": "green", "complete": "green", "killed": "red", "failed": "red", "interrupted": "yellow"}
#: Kinds of events that are bad news.
_BAD = ("lost_rows", "probe_failed", "not_finite", "failed")
#: Names of logged losses that are those of held-out data; "d_loss" of a GAN is none.
_HELD_OUT = re.compile(r"(?<![a-z])(val|valid|validation|eval|evaluation|test|dev|held)(?![a-z])", re.IGNORECASE)
#: Settings that are shown first.
_FIRST = ("loss", "optimizer", "lr", "schedule", "batch_size", "seed")


@dataclass(frozen=True)
class Panel:
    """One plot: its title in words, and what is drawn."""

    title: str
    value: str
    curves: tuple[Drawn, ...]
    beside: str = ""


def frame(watched: Watched, width: int, height: int, pen: Pen) -> list[str]:
    """Return the lines of one frame, at most `height` of at most `width` columns, save escapes for colours."""
    head = _head(watched, width, pen)
    events = _events(list(watched.events), width, pen)
    panels = _panels(watched)
    columns = 2 if width >= _SIDE_BY_SIDE and len(panels) > 1 else 1
    shown = min(len(events), max(_EVENT_LINES, height // 6))
    room = max(height - len(head) - (shown + 1 if shown else 0), _LEAST)
    rows = max(1, min(math.ceil(len(panels) / columns), room // _LEAST))
    lines = [*head, *_grid(panels[: rows * columns], columns, width, room // rows, pen)]
    if shown:
        lines += ["", *events[-shown:]]
    return lines[:height]


def summary(watched: Watched) -> str:
    """Return how a run stands in one line without colours, for logs."""
    told = [_standing(watched.standing, watched, Pen(braille=False))]
    told += [f"{panel.title} {panel.value}" for panel in _panels(watched)]
    return ", ".join(told)


# ------------------------------------------------------------------------------------------------- head


def _head(watched: Watched, width: int, pen: Pen) -> list[str]:
    standing = watched.standing
    name = watched.path.name
    colour = _STATUS.get(standing.status, "yellow")
    plain = f"{name}  {_standing(standing, watched, pen)}"
    line = _cut(plain, width)
    if line.startswith(f"{name}  {standing.status}"):
        rest = line[len(name) + 2 + len(standing.status) :]
        line = f"{pen.paint(name, 'bold')}  {pen.paint(standing.status, 'bold', colour)}{rest}"
    lines = [line]
    run = watched.run
    # Those of several optimizers carry their names: lr.generator.
    ranks = {name: rank for rank, name in enumerate(_FIRST)}
    keys = sorted(run, key=lambda k: ranks.get(k.partition(".")[0], len(_FIRST)))
    settings = ", ".join(f"{k} {_setting(run[k])}" for k in keys if run[k] not in ("", None))
    if settings:
        lines.append(pen.paint(_cut(settings, width), "dim"))
    lines += [pen.paint(_cut(text, width), "red") for text in _warnings(watched)]
    return [*lines, ""]


def _standing(standing: Standing, watched: Watched, pen: Pen) -> str:
    dot = " · " if pen.braille else ", "
    told = [standing.status]
    told.append(f"step {standing.step:,}")
    if standing.epoch is not None:
        told.append(f"epoch {standing.epoch:,}")
    if math.isfinite(standing.seconds):
        told.append(_duration(standing.seconds))
    if math.isfinite(standing.speed):
        told.append(f"{short(standing.speed)} steps/s")
    if standing.seconds > 0 and math.isfinite(standing.recording):
        share = f"{100 * standing.recording / standing.seconds:.1f}%"
        told.append(f"recording {share if standing.seconds >= WORTH_A_SHARE else _duration(standing.recording)}")
    return dot.join(told)


def _warnings(watched: Watched) -> Iterator[str]:
    if watched.standing.status == "killed":
        torn = f" ({watched.torn:,} bytes torn)" if watched.torn else ""
        yield f"nobody writes this run any more{torn}; landscape repair {watched.path}"
    lost = [e for e in watched.events if e.kind == "lost_rows"]
    if watched.lost:
        yield f"{counted(watched.lost, 'row')} could not be written"
    elif lost:
        yield lost[-1].message


def _setting(value: object) -> str:
    text = short(value) if isinstance(value, float) else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


# ------------------------------------------------------------------------------------------------- plots


def _panels(watched: Watched) -> list[Panel]:
    ranks, losses, logged = (_of(watched, q) for q in ("embedding_rank", "loss", "logged"))
    validation = _validation(watched)
    found = [
        _panel(watched, "loss", [("loss", "loss"), *validation], beside="validation"),
        *_of_each_optimizer(watched, "gradient norm", ("gradient_norm", "gradient_norm_before"), "global", "unclipped"),
        _curvature(watched),
        _panel(watched, "learning rate", _of(watched, "learning_rate")[:2]),
        _panel(watched, "calibration error", _of(watched, "calibration", "ece")[:1]),
        *_of_each_optimizer(watched, "update / weights", ("update",), "ratio"),
        *_of_each_optimizer(watched, "noise scale", ("noise_scale",), "noise_scale"),
        *[_panel(watched, f"rank of {key[1]}", [key]) for key in ranks[:2]],
        *[_panel(watched, key[1], [key]) for key in losses if key[1] != "loss"][:3],
        *[_panel(watched, key[1], [key]) for key in logged if key not in validation][:4],
    ]
    panels = [panel for panel in found if panel is not None]
    return panels or [Panel("loss", "", ())]


def _panel(watched: Watched, title: str, keys: Sequence[tuple[str, str]], beside: str = "") -> Panel | None:
    """Return a plot of the first of some curves, with the second one dotted."""
    curves = [c for key in keys if (c := watched.curve(*key)) is not None and _any(c)]
    if not curves:
        return None
    first, *others = curves[:2]
    told = short(first.last) + (f", {beside} {short(others[0].last)}" if others and beside else "")
    told += f", {first.bad:,} not finite" if first.bad else ""
    return Panel(title, told, (*[_drawn(o, "yellow", True) for o in others], _drawn(first, "cyan", False)))


def _curvature(watched: Watched) -> Panel | None:
    largest, threshold = (watched.curve("curvature", name) for name in ("lambda_max", "threshold"))
    if largest is None or not _any(largest):
        return None
    told = short(largest.last)
    drawn = [_drawn(largest, "cyan", False)]
    if threshold is not None and _any(threshold):
        told += f", unstable above {short(threshold.last)}"
        drawn.insert(0, _drawn(threshold, "red" if largest.last >= threshold.last else "yellow", True))
    return Panel("lambda_max", told, tuple(drawn))


def _drawn(curve: Curve, colour: str, dotted: bool) -> Drawn:
    steps, means, _, _ = curve.points()
    return Drawn(steps, means, colour, dotted)


def _any(curve: Curve) -> bool:
    return math.isfinite(curve.last)


def _of(watched: Watched, quantity: str, column: str | None = None) -> list[tuple[str, str]]:
    """Return the curves of a quantity; with a column those that are called so in any split (`test.ece`)."""
    return [
        key
        for key in watched.curves
        if key[0].partition(".")[0] == quantity and column in (None, key[1], key[1].rpartition(".")[2])
    ]


def _of_each_optimizer(
    watched: Watched, title: str, quantities: Sequence[str], column: str, beside: str = ""
) -> list[Panel | None]:
    """Return a plot for each optimizer, named where there are several."""
    suffixes = [key[0].removeprefix(quantities[0]) for key in _of(watched, quantities[0], column)]
    return [
        _panel(watched, f"{title} {suffix[1:]}".rstrip(), [(q + suffix, column) for q in quantities], beside)
        for suffix in suffixes[:_MOST_OPTIMIZERS]
    ]


def _validation(watched: Watched) -> list[tuple[str, str]]:
    keys = [("logged", name) for _, name in _of(watched, "logged") if "loss" in name and _HELD_OUT.search(name)]
    return keys[:1] or [key for key in _of(watched, "calibration", "nll")[:1] if key[1] != "nll"]


def _grid(panels: Sequence[Panel], columns: int, width: int, height: int, pen: Pen) -> list[str]:
    lines = []
    gap = 2
    own = (width - gap * (columns - 1)) // columns
    for begin in range(0, len(panels), columns):
        blocks = []
        for panel in panels[begin : begin + columns]:
            title = _cut(f"{panel.title}  {panel.value}", own)
            padded = title.ljust(own)
            if title.startswith(panel.title):
                padded = pen.paint(panel.title, "bold") + padded[len(panel.title) :]
            blocks.append([padded, *plot(panel.curves, own, height - 1, pen)])
        lines += [(" " * gap).join(row).rstrip() for row in zip(*blocks, strict=True)]
    return lines


# ------------------------------------------------------------------------------------------------- events


def _events(events: Sequence[Event], width: int, pen: Pen) -> list[str]:
    """Return a line for each event, of the same kind one behind the other a line for all."""
    told = []
    steps = max((len(f"{e.step:,}") for e in events), default=0)
    for kind, same in groupby((e for e in events if e.kind != "epoch"), key=lambda e: e.kind):
        found = list(same)
        last = found[-1]
        count = f" ({len(found)} times)" if len(found) > 1 else ""
        message = "".join(c if c.isprintable() else "?" for c in last.message)
        line = _cut(f"{last.step:>{steps},}  {kind.replace('_', ' ')}{count}  {message}", width)
        told.append(pen.paint(line, "red" if kind in _BAD else "dim"))
    return told


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 3, 0)] + "..."
