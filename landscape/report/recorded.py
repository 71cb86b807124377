"""What a page keeps of a training's record: for each quantity a few hundred buckets of steps, however long it was.

Each bucket holds the mean, the smallest and the largest of its rows, so that a spike of one step stays visible, and
nothing is smoothed without a word. The rows are read piece by piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .finals import QUANTITIES, Final, Finals

#: Buckets of a curve, and of a map over layers (chosen by us: a bucket is about two pixels of a wide figure).
CURVE_BUCKETS, MAP_BUCKETS = 500, 160
#: Quantities whose columns are parameters or layers, drawn as a map; a column "global" of theirs is a curve.
PER_LAYER = ("gradient_norm", "gradient_norm_before", "update_norm", "weight_norm", "embedding_rank")
#: Columns beyond which a quantity without "global" is a map too, and rows of a map (chosen by us: they fit a screen).
MOST_CURVES, MOST_ROWS = 24, 40
#: Events of one kind that are kept to be drawn, evenly over the training; all of them are counted.
MOST_EVENTS = 400


@dataclass(frozen=True)
class Curves:
    """Columns (k,) of a quantity over buckets (n,) of steps: `mean`, `low` and `high` (n, k) of their rows.

    `rows` are how many there were in all; `reduced` says whether a bucket holds more than one. NaN: nothing recorded.
    """

    names: tuple[str, ...]
    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray
    rows: int
    units: str = ""
    doc: str = ""
    last: int = -1

    @property
    def reduced(self) -> bool:
        return self.rows > len(self.steps)

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return mean, low and high of one column."""
        k = self.names.index(name)
        return self.mean[:, k], self.low[:, k], self.high[:, k]

    def coarser(self, most: int) -> Curves:
        """Return the same in at most so many buckets: neighbors together, nothing interpolated."""
        n = len(self.steps)
        if n <= most:
            return self
        starts = np.unique(np.linspace(0, n, most, endpoint=False).astype(int))
        totals = np.add.reduceat(self.counts, starts, axis=0)
        sums = np.add.reduceat(np.where(self.counts > 0, self.mean, 0.0) * self.counts, starts, axis=0)
        with np.errstate(invalid="ignore"):
            mean = sums / np.where(totals > 0, totals, np.nan)
        weights = np.maximum(self.counts.max(axis=1), 1)
        steps = np.add.reduceat(self.steps * weights, starts) / np.add.reduceat(weights, starts)
        low, high = np.fmin.reduceat(self.low, starts, axis=0), np.fmax.reduceat(self.high, starts, axis=0)
        return Curves(self.names, steps, mean, low, high, totals, self.rows, self.units, self.doc, self.last)


@dataclass(frozen=True)
class Recorded:
    """The record of one training, reduced: `curves` and `maps` by quantity, events by kind, epochs over steps; `finals`
    are the last numbers by (quantity, column).
    """

    curves: Mapping[str, Curves] = field(default_factory=dict)
    maps: Mapping[str, Curves] = field(default_factory=dict)
    events: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)
    epochs: tuple[np.ndarray, np.ndarray] = (np.empty(0), np.empty(0))
    last_step: int = -1
    torn: int = 0
    problems: tuple[str, ...] = ()
    finals: Mapping[tuple[str, str], Final] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.curves or self.maps or self.events)

    def epoch(self, steps: np.ndarray) -> np.ndarray:
        """Return the (fractional) epoch of these steps; NaN where no epoch was ever ended."""
        ends, numbers = self.epochs
        if not len(ends):
            return np.full(np.shape(steps), np.nan)
        ends, numbers = np.concatenate([[0.0], ends]), np.concatenate([[0.0], numbers])
        length = (ends[-1] - ends[-2]) / max(numbers[-1] - numbers[-2], 1e-9)
        beyond = numbers[-1] + (steps - ends[-1]) / length if length > 0 else np.full(np.shape(steps), numbers[-1])
        return np.where(steps > ends[-1], beyond, np.interp(steps, ends, numbers))

    def get(self, quantity: str, column: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (steps, means) of one column where anything finite was recorded of it."""
        found = self.curves.get(quantity)
        if found is None or column not in found.names:
            return None
        mean = found.column(column)[0]
        known = np.isfinite(mean)
        return (found.steps[known], mean[known]) if known.any() else None


def reduce(history: Any) -> Recorded:
    """Return a history reduced for the page; a quantity that can't be read becomes one of the `problems`."""
    from ..errors import ArchiveError

    if not history:
        return Recorded()
    curves: dict[str, Curves] = {}
    maps: dict[str, Curves] = {}
    problems = []
    finals = Finals()
    for name in history.names:
        try:
            for layered, found in _reduced(history, name, finals).items():
                (maps if layered else curves)[name] = found
        except (ArchiveError, OSError) as error:
            problems.append(str(error))
    epochs = curves.pop("epoch", None)
    events, counted = _events(history)
    ends = _epochs(epochs)
    return Recorded(
        curves,
        maps,
        events,
        counted,
        ends,
        max((c.last for c in (*curves.values(), *maps.values())), default=-1),
        history.torn,
        tuple(problems),
        finals.taken(ends[0]),
    )


def _reduced(history: Any, name: str, finals: Finals) -> dict[bool, Curves]:
    """Return a quantity's curves under False and its map under True, as far as it has them."""
    wanted: dict[bool, _Buckets] = {}
    for piece in history.pieces(name):
        if not wanted:
            wanted = _wanted(name, piece.names, piece.units, piece.doc)
        for buckets in wanted.values():
            buckets.add(np.asarray(piece.steps), np.asarray(piece.values))
        if name in QUANTITIES:
            finals.add(name, piece.names, np.asarray(piece.steps), np.asarray(piece.values))
    return {layered: buckets.curves() for layered, buckets in wanted.items() if buckets.total}


def _wanted(name: str, columns: Sequence[str], units: str, doc: str) -> dict[bool, _Buckets]:
    layered = name.partition(".")[0] in PER_LAYER or ("global" not in columns and len(columns) > MOST_CURVES)
    singles = [c for c in columns if not layered or c == "global"]
    others = [c for c in columns if c not in singles]
    wanted = {}
    if singles:
        at = [columns.index(c) for c in singles]
        wanted[False] = _Buckets(singles, lambda values: values[:, at], CURVE_BUCKETS, units, doc)
    if others:
        joined = _together(others, MOST_ROWS)
        groups = [[columns.index(c) for c in members] for members in joined.values()]
        pick = _joiner(groups, squares=name.startswith(("gradient", "update", "weight")))
        wanted[True] = _Buckets(list(joined), pick, MAP_BUCKETS, units, doc)
    return wanted


class _Buckets:
    """Mean, smallest and largest of each column in buckets of steps, as rows come in.

    Rows are kept as they are while there are no more than buckets. Then it begins with a bucket for each step, and
    whenever the training goes on beyond the last one, neighbors are joined: one pass is enough, and between half of
    `most` and `most` buckets reach over the training in the end.
    """

    def __init__(
        self,
        names: Sequence[str],
        pick: Callable[[np.ndarray], np.ndarray],
        most: int,
        units: str,
        doc: str,
    ) -> None:
        self.names, self.pick, self.facts = tuple(names), pick, (units, doc)
        n, k = most + most % 2, len(names)
        self.first: int | None = None
        self.width = 1
        self.total = 0
        self.last = -1
        self.kept: list[tuple[np.ndarray, np.ndarray]] | None = []
        self.sums, self.counts = np.zeros((n, k)), np.zeros((n, k), dtype=np.int64)
        self.low, self.high = np.full((n, k), np.nan), np.full((n, k), np.nan)
        self.steps, self.rows = np.zeros(n), np.zeros(n, dtype=np.int64)

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        if not len(steps):
            return
        x = self.pick(values)
        self.total += len(steps)
        self.last = max(self.last, int(steps.max()))
        if self.kept is None:
            return self._count(steps, x)
        self.kept.append((steps, x))
        if self.total > len(self.steps):
            for part in self.kept:
                self._count(*part)
            self.kept = None

    def _count(self, steps: np.ndarray, x: np.ndarray) -> None:
        if self.first is None:
            self.first = int(steps.min())
        while (int(steps.max()) - self.first) // self.width >= len(self.steps):
            self._halve()
        at = np.maximum(steps - self.first, 0) // self.width
        if (np.diff(at) < 0).any():  # rows of a resumed run may come after later ones
            order = np.argsort(at, kind="stable")
            at, x, steps = at[order], x[order], steps[order]
        starts = np.flatnonzero(np.diff(at, prepend=-1))
        where = at[starts]
        known = np.isfinite(x)
        self.sums[where] += np.add.reduceat(np.where(known, x, 0.0), starts, axis=0)
        self.counts[where] += np.add.reduceat(known.astype(np.int64), starts, axis=0)
        seen = np.where(known, x, np.nan)
        self.low[where] = np.fmin(self.low[where], np.fmin.reduceat(seen, starts, axis=0))
        self.high[where] = np.fmax(self.high[where], np.fmax.reduceat(seen, starts, axis=0))
        self.steps[where] += np.add.reduceat(steps.astype(float), starts)
        self.rows[where] += np.diff(np.append(starts, len(at)))

    def _halve(self) -> None:
        half = len(self.steps) // 2
        for name, join in (("sums", np.add), ("counts", np.add), ("low", np.fmin), ("high", np.fmax)):
            whole = getattr(self, name)
            whole[:half] = join(whole[0::2], whole[1::2])
            whole[half:] = np.nan if join in (np.fmin, np.fmax) else 0
        for whole in (self.steps, self.rows):
            whole[:half] = whole[0::2] + whole[1::2]
            whole[half:] = 0
        self.width *= 2

    def curves(self) -> Curves:
        if self.kept is not None:
            steps = np.concatenate([part for part, _ in self.kept])
            x = np.concatenate([part for _, part in self.kept])
            order = np.argsort(steps, kind="stable")
            x = np.where(np.isfinite(x[order]), x[order], np.nan)
            return Curves(
                self.names,
                steps[order].astype(float),
                x,
                x,
                x,
                np.isfinite(x).astype(int),
                self.total,
                *self.facts,
                self.last,
            )
        filled = self.rows > 0
        counts = self.counts[filled]
        with np.errstate(invalid="ignore"):
            mean = self.sums[filled] / np.where(counts > 0, counts, np.nan)
        # A constant stays the constant: rounding of the sums would draw it as a jagged line.
        mean = np.clip(mean, self.low[filled], self.high[filled])
        steps = self.steps[filled] / self.rows[filled]
        return Curves(
            self.names, steps, mean, self.low[filled], self.high[filled], counts, self.total, *self.facts, self.last
        )


def _joiner(groups: Sequence[Sequence[int]], *, squares: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes a column of each group: the root of the summed squares for norms, else the mean."""

    def join(values: np.ndarray) -> np.ndarray:
        joined = np.empty((len(values), len(groups)))
        for i, at in enumerate(groups):
            part = values[:, at]
            if len(at) == 1:
                joined[:, i] = part[:, 0]
            elif squares:
                joined[:, i] = np.sqrt(np.sum(part**2, axis=1))
            else:
                joined[:, i] = np.mean(part, axis=1)
        return joined

    return join


def _together(names: Sequence[str], most: int) -> dict[str, list[str]]:
    """Return {row: names}: the names as they are, or joined by their beginnings ("layer1.0") until they fit."""
    groups = {n: [n] for n in names}
    for depth in range(max((n.count(".") for n in names), default=0), 0, -1):
        if len(groups) <= most:
            return groups
        groups = {}
        for n in names:
            groups.setdefault(".".join(n.split(".")[:depth]), []).append(n)
    if len(groups) <= most:
        return groups
    size = -(-len(names) // most)
    return {
        f"{part[0]} … {part[-1]}" if len(part) > 1 else part[0]: part
        for part in (list(names[i : i + size]) for i in range(0, len(names), size))
    }


def _epochs(found: Curves | None) -> tuple[np.ndarray, np.ndarray]:
    if found is None:
        return np.empty(0), np.empty(0)
    known = np.isfinite(found.mean[:, 0]) & (found.steps > 0)
    return found.steps[known], found.mean[known, 0]


def _events(history: Any) -> tuple[dict[str, tuple[Any, ...]], dict[str, int]]:
    grouped: dict[str, list[Any]] = {}
    for event in history.events:
        if not event.superseded:
            grouped.setdefault(event.kind, []).append(event)
    return {kind: tuple(_thinned(found)) for kind, found in grouped.items()}, {k: len(v) for k, v in grouped.items()}


def _thinned(events: Sequence[Any]) -> Iterator[Any]:
    if len(events) <= MOST_EVENTS:
        yield from events
    else:
        yield from (events[i] for i in np.linspace(0, len(events) - 1, MOST_EVENTS).astype(int))
