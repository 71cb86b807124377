"""Adaptive planes: evaluate where the picture needs it, interpolate elsewhere, and say how far off that may be.

No torch here: what is evaluated comes in as a function, so that the method can be tried on full grids that are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial import KDTree, QhullError

from .interpolation import Interpolant, Survey

#: Points held out: with 59 the largest error among them bounds the 95th percentile with 95% confidence, whatever the
#: distribution (0.95^59 = 0.0485).
HELD_OUT = 59
#: Points of each side of the first lattice, denser towards the edges as Chebyshev's are (chosen by us: 5, 6 and 7 end
#: at the same number of points).
FIRST = 5
#: Each round adds this share of the points evaluated so far, and at least 3 (chosen by us: 4% needs 4% fewer points
#: than 8%, and twice the rounds).
ROUND = 0.04
#: The maximum stated is the geometric mean of the largest deviation and the third largest leave-one-out error, times
#: SAFETY + FEW / points: few points have seen little. Calibrated on 33 full grids of small nets, so that it held in 80
#: of 100 cases at every tolerance from 0.5% to 3%; benchmarks/surface.py counts anew, on others.
SAFETY, FEW = 1.0, 90.0
#: The points held out are drawn when the maximum stated has come down to this many tolerances: they lower it, too
#: (chosen by us: at 1.15 planes need 12% more points in all, and the bound on the 95th percentile is 20% tighter).
NEARLY = 2.0
#: Above this share of the grid the rest is evaluated as well: the surface is too rough to be interpolated (chosen by
#: us; the matrices of the interpolation would grow, and little would be saved).
ROUGH = 0.5
#: Why a sheet was left unfinished when the time was over.
OUT_OF_TIME = "the time limit came first"

Scale = Literal["log", "asinh"]
Points = Sequence[tuple[int, int]]


class OutOfTime(Exception):
    """Raised by what evaluates when there is no time for another point."""


@dataclass(frozen=True)
class Heights:
    """The scale on which errors count: the logarithm, or asinh(x / width) where a value is 0 or below."""

    scale: Scale
    width: float = 1.0

    @classmethod
    def of(cls, values: np.ndarray, center: float) -> Heights:
        """Return the scale for these finite values; asinh is linear within the size of `center`."""
        if (values > 0).all():
            return cls("log")
        typical = abs(center) or float(np.median(np.abs(values))) or 1.0
        return cls("asinh", typical)

    def forward(self, values: np.ndarray) -> np.ndarray:
        return np.log(values) if self.scale == "log" else np.arcsinh(values / self.width)

    def backward(self, heights: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp(heights) if self.scale == "log" else self.width * np.sinh(heights)


@dataclass(frozen=True)
class Filled:
    """A grid of which some points were evaluated, and how sure the others are.

    `error` is the stated maximum of |interpolated - true| and `error_p95` the bound on its 95th percentile, as shares
    of the range of the heights; 0 on a full grid, NaN where unknown. `deviation` (a, b) is the typical error at each
    point, in the same unit. `finished` is False where time or budget ran out before the tolerance was reached.
    """

    loss: np.ndarray
    evaluated: np.ndarray
    heights: Heights
    error: float
    error_p95: float
    deviation: np.ndarray
    finished: bool
    reason: str


class Sheet:
    """A grid that fills: `loss` and `evaluated` (a, b), and the function that evaluates points of it.

    `evaluate(points)` yields the losses of these (i, j), one by one, and may raise OutOfTime between them.
    """

    def __init__(
        self,
        rows: np.ndarray,
        columns: np.ndarray,
        evaluate: Callable[[Points], object],
        center: float,
    ) -> None:
        self.rows, self.columns = rows, columns
        self.shape = (len(rows), len(columns))
        self.loss = np.full(self.shape, np.nan)
        self.evaluated = np.zeros(self.shape, dtype=bool)
        self.center = center
        self.positions = np.stack(np.meshgrid(_scaled(rows), _scaled(columns), indexing="ij"), axis=-1)
        self._evaluate = evaluate

    @property
    def count(self) -> int:
        return int(self.evaluated.sum())

    def add(self, points: Points) -> None:
        """Evaluate those of these points that are not yet."""
        for (i, j), value in self._evaluate([p for p in points if not self.evaluated[p]]):  # type: ignore[attr-defined]
            self.loss[i, j] = value
            self.evaluated[i, j] = True

    def missing(self) -> list[tuple[int, int]]:
        return [(int(i), int(j)) for i, j in np.argwhere(~self.evaluated)]


def fill(sheet: Sheet, tol: float | None, *, budget: int | None = None, seed: int = 0) -> Filled:
    """Evaluate a sheet until the stated maximum error is at most `tol`; all of it with tol=None.

    Args:
        tol: the error allowed, as a share of the range of the heights.
        budget: points to evaluate at most, those held out included; None: as many as it takes.
        seed: of the draw of the points that are held out.

    Rounds of points go where the deviation is largest. When the stated maximum comes near the tolerance, 59 points
    drawn at random among the others are predicted before they are evaluated: the largest of those errors bounds the
    95th percentile with 95% confidence, whatever the surface. Then they join, which lowers the error further, and
    rounds go on until the stated maximum is at most `tol`. A rough surface (half of the grid is evaluated, or a loss is
    not finite: beside a hole no interpolation can be trusted) falls back to the whole grid.
    """
    heard = math.nan
    reason = "every point was evaluated"
    try:
        if tol is None or sheet.loss.size <= 2 * (FIRST**2 + HELD_OUT):
            sheet.add(coarse_to_fine(sheet.shape))
        else:
            sheet.add(_lattice(sheet))
            while True:
                if not np.isfinite(sheet.loss[sheet.evaluated]).all():
                    return _all_of(
                        sheet, budget, heard, "a loss is not finite, and nothing can be interpolated beside it"
                    )
                if sheet.count > ROUGH * sheet.loss.size:
                    return _all_of(sheet, budget, heard, "too rough to be interpolated to this tolerance")
                surface, heights, extent = _interpolant(sheet)
                rest = ~sheet.evaluated
                survey = surface.survey(sheet.positions[rest])
                stated = _maximum(surface, survey) / extent if extent else 0.0
                left = sheet.loss.size if budget is None else budget - sheet.count
                if math.isnan(heard) and (stated <= NEARLY * tol or left <= HELD_OUT):
                    heard = _hold_out(sheet, surface, heights, seed)
                elif stated <= tol:
                    reason = "the stated maximum error is within the tolerance"
                    break
                elif left <= 0:
                    reason = f"the budget of {budget} points was spent before the tolerance was reached"
                    break
                else:
                    reserved = HELD_OUT if math.isnan(heard) else 0
                    more = min(max(3, int(ROUND * sheet.count)), left - reserved)
                    candidates = np.argwhere(rest)
                    chosen = surface.spread_out(survey, more)
                    sheet.add([(int(i), int(j)) for i, j in candidates[chosen]])
                    if not chosen:
                        return _all_of(sheet, budget, heard, "the interpolation gained nothing from further points")
    except OutOfTime:
        reason = OUT_OF_TIME
    return _finished(sheet, heard, tol, reason)


def complete(values: np.ndarray, sheet: Sheet) -> tuple[np.ndarray, float]:
    """Return another positive or signed quantity with the points that were not evaluated interpolated, and its error.

    In the way and on the scale of the loss; the error is its own stated maximum as a share of its own range.
    """
    other = Sheet(sheet.rows, sheet.columns, lambda points: (), sheet.center)
    other.loss, other.evaluated = values, sheet.evaluated
    done = _finished(other, math.nan, None, "")
    return done.loss, done.error


def between(values: np.ndarray, sheet: Sheet) -> np.ndarray:
    """Return shares (accuracies) with the points that were not evaluated interpolated linearly, NaN where they can't.

    No error is stated for them: an accuracy moves in steps.
    """
    known = sheet.evaluated & np.isfinite(values)
    filled = values.copy()
    holes = ~sheet.evaluated
    if holes.any() and known.sum() >= 3:
        from scipy.interpolate import LinearNDInterpolator  # takes a quarter of a second to import

        try:
            filled[holes] = LinearNDInterpolator(sheet.positions[known], values[known])(sheet.positions[holes])
        except QhullError:  # all on one line
            return filled
    return filled


def coarse_to_fine(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return every point of a grid, the corners first, then ever finer lattices: what is stopped early is a picture."""
    levels = [_levels(n) for n in shape]
    points = [(i, j) for i in range(shape[0]) for j in range(shape[1])]
    return sorted(points, key=lambda p: (max(levels[0][p[0]], levels[1][p[1]]), p))


def _levels(n: int) -> list[int]:
    """Return for each index at which halving it first appears; the ends at 0."""
    found = [-1] * n
    parts = 1
    level = 0
    while -1 in found:
        for k in range(parts + 1):
            index = round(k * (n - 1) / parts)
            if found[index] < 0:
                found[index] = level
        parts, level = 2 * parts, level + 1
    return found


def _lattice(sheet: Sheet) -> list[tuple[int, int]]:
    """Return the first points: a lattice as dense towards the edges as Chebyshev's, and the centre if it is on it."""
    sides = []
    for steps in (sheet.rows, sheet.columns):
        spread = (1 - np.cos(np.pi * np.arange(FIRST) / (FIRST - 1))) / 2
        wanted = steps[0] + spread * (steps[-1] - steps[0])
        sides.append(sorted({int(np.argmin(np.abs(steps - w))) for w in wanted}))
    points = [(i, j) for i in sides[0] for j in sides[1]]
    zero = [np.flatnonzero(steps == 0) for steps in (sheet.rows, sheet.columns)]
    if all(len(z) for z in zero):
        points.append((int(zero[0][0]), int(zero[1][0])))
    return list(dict.fromkeys(points))


def _interpolant(sheet: Sheet) -> tuple[Interpolant, Heights, float]:
    """Return the surface through the finite points evaluated, its scale, and the range of their heights."""
    known = sheet.evaluated & np.isfinite(sheet.loss)
    heights = Heights.of(sheet.loss[known], sheet.center)
    found = heights.forward(sheet.loss[known])
    return Interpolant(sheet.positions[known], found), heights, float(np.ptp(found))


def _maximum(surface: Interpolant, survey: Survey) -> float:
    """Return the stated maximum error at the positions surveyed; see `SAFETY`."""
    left_out = np.sort(np.abs(surface.left_out))
    third = float(left_out[-min(3, len(left_out))])
    return (SAFETY + FEW / len(left_out)) * math.sqrt(float(survey.deviation.max()) * third)


def _hold_out(sheet: Sheet, surface: Interpolant, heights: Heights, seed: int) -> float:
    """Predict points drawn at random, evaluate them, and return the largest error; they join the others.

    As a share of the range of all that was evaluated by then, on the scale that suits all of it: a loss of 0 among
    points held out has no logarithm. NaN where a loss is not finite.
    """
    missing = sheet.missing()
    drawn = np.random.default_rng(seed).choice(len(missing), min(HELD_OUT, len(missing)), replace=False)
    points = [missing[k] for k in drawn]
    at = tuple(np.array(points).T)
    predicted = heights.backward(surface(sheet.positions[at]))
    sheet.add(points)
    found = sheet.loss[sheet.evaluated]
    if not np.isfinite(found).all():
        return math.nan
    scale = Heights.of(found, sheet.center)
    extent = float(np.ptp(scale.forward(found)))
    errors = np.abs(scale.forward(predicted) - scale.forward(sheet.loss[at]))
    return float(errors.max()) / extent if extent else 0.0


def _all_of(sheet: Sheet, budget: int | None, heard: float, reason: str) -> Filled:
    missing = set(sheet.missing())
    rest = [p for p in coarse_to_fine(sheet.shape) if p in missing]
    allowed = rest if budget is None else rest[: max(0, budget - sheet.count)]
    try:
        sheet.add(allowed)
    except OutOfTime:
        return _finished(sheet, heard, None, OUT_OF_TIME)
    if len(allowed) < len(rest):
        return _finished(sheet, heard, 0.0, f"the budget of {budget} points was spent ({reason})")
    return _finished(sheet, 0.0, None, f"the whole grid was evaluated: {reason}")


def _finished(sheet: Sheet, heard: float, tol: float | None, reason: str) -> Filled:
    """Interpolate what was not evaluated, and state the error."""
    rest = ~sheet.evaluated
    loss = sheet.loss.copy()
    deviation = np.zeros(sheet.shape)
    known = sheet.evaluated & np.isfinite(sheet.loss)
    heights = Heights.of(sheet.loss[known], sheet.center) if known.any() else Heights("log")
    if not rest.any():
        return Filled(loss, sheet.evaluated, heights, 0.0, 0.0, deviation, True, reason)
    deviation[rest] = np.nan
    if not _spans(sheet.positions[known]):
        return Filled(loss, sheet.evaluated, heights, math.nan, math.nan, deviation, False, reason)
    surface, heights, extent = _interpolant(sheet)
    at = sheet.positions[rest]
    survey = surface.survey(at)
    stated = _maximum(surface, survey) / extent if extent else 0.0
    found = heights.backward(surface(at))
    # Beside a point whose loss is not finite nothing is known: holes are drawn as wide as the nearest points say.
    holes = sheet.evaluated & ~np.isfinite(sheet.loss)
    if holes.any():
        away, _ = KDTree(sheet.positions[holes]).query(at)
        near, _ = KDTree(sheet.positions[known]).query(at)
        found[away <= near] = np.nan
    loss[rest] = found
    deviation[rest] = survey.deviation / extent if extent else 0.0
    reached = tol is not None and stated <= tol and not holes.any()
    # The bound stays what was heard, where the maximum is stated to be lower, too: an estimate would make it one.
    return Filled(loss, sheet.evaluated, heights, stated, heard, deviation, reached, reason)


def _spans(positions: np.ndarray) -> bool:
    """Whether there are enough points, not on one line, to interpolate and to leave one out."""
    return len(positions) >= 6 and np.linalg.matrix_rank(positions - positions.mean(axis=0), tol=1e-9) == 2


def _scaled(steps: np.ndarray) -> np.ndarray:
    """Return the steps mapped to [-1, 1]: the picture is a square, whatever the spans of its axes."""
    span = steps[-1] - steps[0]
    return 2 * (steps - steps[0]) / span - 1 if span > 0 else np.zeros_like(steps)
