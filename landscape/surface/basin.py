"""How wide and how rough the basin around the weights is: along random rays, up to a rise of the loss."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln, logsumexp
from tqdm import tqdm

from ..errors import MeasurementError, ObjectiveError
from ..objective import Objective, as_objective
from ..parameters import filter_dim, is_scale
from ..results import Check, Cost, Option, measurement
from ..tasks import Task
from . import checks
from .directions import IGNORE, SEEDS, Ignore
from .fields import Basin

#: Random lines through the weights, each two rays (chosen by us: the spread is then known to 18%).
RAYS = 16
RISES = (0.1, 1.0)
#: Radii are known to this share of themselves (chosen by us: below the spread between rays on every net tried).
TOL = 0.01
#: Even steps on each side of a line, over which roughness is taken, and how far they go (Li et al. 2018: 51 from -1).
SIDE, SPAN = 25, 1.0
#: No ray is followed farther: 16 times the norm of the weights (chosen by us).
LIMIT = 16.0
#: With fewer rays that count, a volume is called a lower estimate (chosen by us).
FEWEST = 10.0


def basin(
    task: Task | Objective,
    *,
    rays: int = RAYS,
    rises: Sequence[float] = RISES,
    tol: float = TOL,
    side: int = SIDE,
    span: float = SPAN,
    limit: float = LIMIT,
    ignore: Ignore | None = "biasbn",
    split: str = "train",
    seed: int = 0,
    progress: bool = False,
) -> Basin:
    """Measure the width, the volume and the roughness of the basin around the weights along random lines.

    A line goes both ways along d = sqrt(n) S g / ||g||, g ~ N(0, 1) in n dimensions, where S holds for each weight the
    root mean square of its filter: a step of 1 moves each filter by about its own norm, as filter normalization does
    (Li et al. 2018). Unlike there the norm of each filter is not pinned but Gaussian, so that g / ||g|| is uniform on
    the sphere and the volume below is one. With ignore="biasbn" biases and scales stay, as in slices; filters of norm
    zero always do.

    Radius: the first step at which the loss has risen by `rise`, along each ray: `side` even steps to `span`, then
    steps growing by half up to `limit`, then bisection until the bracket is within `tol` of itself. A loss that is not
    finite has risen. A dip back below between two of these steps is not seen. Width: both radii of a line together.

    Volume, of the region {x : L(theta + S x) - L(theta) <= rise on the whole segment from 0 to x}, in units in which
    each filter's root mean square is 1: V = omega_n E[R^n], R = radius * sqrt(n), omega_n the unit ball's (Huang et al.
    2020, arXiv:1906.03291). In thousands of dimensions E[R^n] is ruled by the longest rays, most of which no
    sample of rays meets: `log_volume` is then a lower estimate, and `effective_rays` and the check "volume" say so.
    `log_volume_bound` = log omega_n + n E[log R] is a lower bound of the true log volume (Jensen), with an honest
    standard error. Both are in nats; divide by n to compare nets.

    Roughness of a line within `span`: total variation over that of its least valley (down to its lowest point, and up),
    minus 1: 0 for any curve that falls, then rises. `normalized_variation` is total variation over range, whose mean
    and spread Wu et al. 2021 (arXiv:2103.11069) make their roughness index of. Both are taken on the even steps.

    Args:
        task: a Task, or an Objective (whose own split is measured, around its center).
        rays: lines. rises: of the loss, in its own unit, above 0. tol, side, span, limit: see above.
        seed: of the lines; line i is the same however many are drawn.
        split, ignore, progress: as for `line`.

    Returns a Basin, spread and standard error over the lines. Costs 2 * side passes for each line and about 7 for each
    radius that is bracketed; 4 beside. The model is as before on every way out.

    Raises MeasurementError for settings out of range or nothing to move, ObjectiveError where the loss at the weights
    is not finite.
    """
    heights = _check(rays, rises, tol, side, span, limit, seed)
    begun = time.perf_counter()
    spent = task.passes if isinstance(task, Objective) else 0.0
    with as_objective(task, split) as objective:
        objective.reset()
        start = objective.evaluate(stderr=True)
        if not math.isfinite(start.loss):
            raise ObjectiveError(f"the loss at the checkpoint is {start.loss}: no basin lies around it")
        scales, n = _scales(objective, ignore)
        steps = np.linspace(span / side, span, side)
        radius = np.full((rays, 2, len(heights)), np.nan)
        loss = np.full((rays, 2 * side + 1), start.loss)
        again = 0
        with tqdm(total=rays, desc="basin", unit="line", leave=False, disable=not progress) as bar:
            for i in range(rays):
                d = _drawn(scales, n, seed, i)
                along = [t.to(w.device, w.dtype) for t, w in zip(d, objective.center, strict=True)]
                # Outwards from the weights, first to one side, then to the other.
                for k, (sign, places) in enumerate(((-1.0, slice(side - 1, None, -1)), (1.0, slice(side + 1, None)))):
                    ray = _Ray(objective, along, sign, start.loss)
                    loss[i, places] = [ray.loss(float(s)) for s in steps]
                    for j, height in enumerate(heights):
                        radius[i, k, j] = ray.radius(height, tol, limit)
                        again += ray.falls_below(height, radius[i, k, j])
                bar.update()
        return _result(
            objective, heights, radius, loss, np.concatenate([-steps[::-1], [0.0], steps]), n, limit, again,
            start.stderr, {"tol": tol, "limit": limit, "ignore": ignore}, seed,
            Cost(passes=objective.passes - spent, seconds=time.perf_counter() - begun),
        )  # fmt: skip


def _basin_passes(*, rays: int = RAYS, side: int = SIDE, rises: Sequence[float] = RISES, **_: Any) -> float:
    return rays * (2.0 * side + 2 * 7 * len(tuple(rises))) + 4


@measurement(
    "basin",
    default=False,
    order=55,
    preset={"quick": {"rays": 4}, "standard": {}, "thorough": {"rays": 64}},
    options={
        "rays": Option(RAYS, "random lines through the weights"),
        "rises": Option(list(RISES), "rises of the loss at which the width is taken"),
        "tol": Option(TOL, "share of a radius up to which it is known"),
        "span": Option(SPAN, "how far the even steps go, for roughness", "Li et al. 2018"),
        "split": Option("train", "data to take the loss over: train or test", choices=("train", "test")),
        "ignore": IGNORE,
    },
    estimate=_basin_passes,
)
def measure_basin(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    rays: int = RAYS,
    rises: Sequence[float] = RISES,
    tol: float = TOL,
    span: float = SPAN,
    split: str = "train",
    ignore: Ignore | None = "biasbn",
) -> Basin:
    """Width, volume and roughness of the basin along random filter-scaled lines, with their spread.

    See `basin` for what is estimated, and the cost.
    """
    return basin(
        task, rays=rays, rises=rises, tol=tol, span=span, ignore=ignore, split=split, seed=seed, progress=progress
    )


class _Ray:
    """The loss along one ray, each step evaluated once."""

    def __init__(self, objective: Objective, d: Sequence[torch.Tensor], sign: float, start: float) -> None:
        self._objective = objective
        self._d = d
        self._sign = sign
        self._start = start
        self._known: dict[float, float] = {0.0: start}

    def loss(self, step: float) -> float:
        if step not in self._known:
            self._objective.move((self._d,), (self._sign * step,))
            self._known[step] = self._objective.evaluate().loss
        return self._known[step]

    def _above(self, step: float, height: float) -> bool:
        return not self.loss(step) - self._start < height  # a NaN has risen

    def radius(self, height: float, tol: float, limit: float) -> float:
        """Return the first step whose rise reaches `height`, within `tol` of itself; NaN where none does."""
        low = 0.0
        for step in sorted(self._known):
            if self._above(step, height):
                high = step
                break
            low = step
        else:
            high = low
            while not self._above(high, height):
                if high >= limit:
                    return math.nan
                low, high = high, min(1.5 * high, limit)
        while high - low > tol * high:
            middle = (low + high) / 2
            if self._above(middle, height):
                high = middle
            else:
                low = middle
        return (low + high) / 2

    def falls_below(self, height: float, radius: float) -> bool:
        """Say whether the loss is below the rise again at a step beyond the radius."""
        return any(step > radius and not self._above(step, height) for step in self._known)


def _scales(objective: Objective, ignore: Ignore | None) -> tuple[list[torch.Tensor], int]:
    """Return, for each parameter, the root mean square of each weight's filter (0: it stays), and how many move."""
    modules = objective.modules_of()
    made, n = [], 0
    for name, w in zip(objective.names, objective.center, strict=True):
        exact = w.detach().to("cpu", torch.float64)
        if is_scale(modules.get(name), name, w):
            # A tensor without filters is one: all its weights share a scale.
            size = (
                exact.square().mean().sqrt() if ignore is None else torch.zeros((), dtype=torch.float64, device="cpu")
            )
            scale = size.expand_as(exact)
        else:
            dim = filter_dim(modules.get(name), name)
            rest = [i for i in range(w.ndim) if i != dim]
            scale = exact.square().mean(dim=rest, keepdim=True).sqrt().expand_as(exact)
        made.append(scale)
        n += int((scale > 0).sum())
    if not n:
        raise MeasurementError(
            "there is nothing to move: every weight is zero, a bias or the scale of a layer; give ignore=None"
        )
    return made, n


def _drawn(scales: Sequence[torch.Tensor], n: int, seed: int, number: int) -> list[torch.Tensor]:
    """Return line `number`: S g / ||g|| * sqrt(n), from a generator of its own, in the objective's order."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % SEEDS)
    g = [torch.randn(s.shape, generator=generator, dtype=torch.float64, device="cpu") * (s > 0) for s in scales]
    size = math.sqrt(sum(float(t.square().sum()) for t in g))
    return [t * s * (math.sqrt(n) / size) for t, s in zip(g, scales, strict=True)]


def _check(
    rays: int, rises: Sequence[float], tol: float, side: int, span: float, limit: float, seed: int
) -> np.ndarray:
    for name, value, least in (("rays", rays, 2), ("side", side, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise MeasurementError(f"{name}={value!r} must be a whole number, at least {least}")
    try:
        heights = np.array([float(r) for r in rises])
    except TypeError:
        raise MeasurementError(f"rises={rises!r} must be a list of rises of the loss, such as [0.1, 1]") from None
    if not len(heights) or not (np.isfinite(heights).all() and (heights > 0).all()):
        raise MeasurementError(f"rises={list(rises)!r} must be finite numbers above 0, at least one")
    if not 0 < tol < 1:
        raise MeasurementError(f"tol={tol} must lie between 0 and 1: it is a share of the radius")
    if not (math.isfinite(limit) and 0 < span <= limit):
        raise MeasurementError(f"span={span} must be above 0, and at most limit={limit}, which must be finite")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise MeasurementError(f"seed={seed!r} must be a whole number from 0 to 2**32 - 1")
    return heights


@dataclass(frozen=True)
class _Volume:
    """The log of a mean of r^n over lines, its jackknife error, how many lines count, and Jensen's bound."""

    value: float
    stderr: float
    bound: float
    bound_stderr: float
    effective: float


def log_volume(radii: np.ndarray, n: int) -> _Volume:
    """Estimate log(omega_n E[R^n]) from the radii (lines, 2) of both rays of each line, in units of R.

    The two rays of a line are not independent: lines are what is averaged over and left out.
    """
    count = len(radii)
    ball = n / 2 * math.log(math.pi) - float(gammaln(n / 2 + 1))
    logs = n * np.log(radii)
    each = logsumexp(logs, axis=1) - math.log(2)
    value = float(logsumexp(each)) - math.log(count)
    left_out = np.array([logsumexp(np.delete(each, i)) for i in range(count)])  # of sums: a constant moves no error
    error = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    means = logs.mean(axis=1)
    weights = np.exp(each - each.max())
    return _Volume(
        ball + value,
        error,
        ball + float(means.mean()),
        float(means.std(ddof=1)) / math.sqrt(count),
        float(weights.sum() ** 2 / (weights**2).sum()),
    )


def roughness(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (roughness, normalized variation, local extremes) of each row; not finite where a row isn't.

    A row without any range is neither rough nor anything else: 0, 0, 0.
    """
    rough, varied, turns = (np.full(len(loss), np.nan) for _ in range(3))
    for i, row in enumerate(loss):
        if not np.isfinite(row).all():
            continue
        variation = float(np.abs(np.diff(row)).sum())
        lowest, highest = float(row.min()), float(row.max())
        valley = float(row[0] - lowest + row[-1] - lowest)
        slopes = np.sign(np.diff(row))
        slopes = slopes[slopes != 0]
        turns[i] = float((slopes[1:] != slopes[:-1]).sum())
        varied[i] = variation / (highest - lowest) if highest > lowest else 0.0
        # A row whose both ends are its lowest points is all hill: no valley to compare with.
        rough[i] = variation / valley - 1 if valley > 0 else (math.inf if variation > 0 else 0.0)
    return rough, varied, turns


def _result(
    objective: Objective,
    heights: np.ndarray,
    radius: np.ndarray,
    loss: np.ndarray,
    steps: np.ndarray,
    n: int,
    limit: float,
    again: int,
    loss_stderr: float,
    settings: dict[str, Any],
    seed: int,
    cost: Cost,
) -> Basin:
    rays = len(radius)
    rough, varied, turns = roughness(loss)
    width = radius.sum(axis=1)
    reached = np.isfinite(width)
    counts = reached.sum(axis=0)

    def over_lines(values: np.ndarray, how: Any) -> np.ndarray:
        return np.array([how(v[k]) if k.sum() > 1 else math.nan for v, k in zip(values.T, reached.T, strict=True)])

    spread = over_lines(width, lambda v: v.std(ddof=1))
    # A ray that has not risen by the limit is that long at least: volumes with one are lower estimates.
    volumes = [log_volume(np.where(np.isfinite(r), r, limit) * math.sqrt(n), n) for r in np.moveaxis(radius, 2, 0)]
    known = np.isfinite(rough)
    open_rays = int((~np.isfinite(radius)).sum())
    return Basin(
        ray=np.arange(rays),
        rise=heights,
        step=steps,
        loss=loss,
        radius=radius,
        width=over_lines(width, np.mean),
        width_stderr=spread / np.sqrt(np.maximum(counts, 1)),
        width_spread=spread,
        log_volume=np.array([v.value for v in volumes]),
        log_volume_stderr=np.array([v.stderr for v in volumes]),
        log_volume_bound=np.array([v.bound for v in volumes]),
        log_volume_bound_stderr=np.array([v.bound_stderr for v in volumes]),
        effective_rays=np.array([v.effective for v in volumes]),
        roughness=float(rough[known].mean()) if known.any() else math.nan,
        roughness_stderr=float(rough[known].std(ddof=1) / math.sqrt(known.sum())) if known.sum() > 1 else math.nan,
        roughness_spread=float(rough[known].std(ddof=1)) if known.sum() > 1 else math.nan,
        line_roughness=rough,
        normalized_variation=varied,
        extremes=turns,
        dimensions=n,
        samples=objective.samples,
        split=objective.split,
        seed=seed,
        batchnorm=checks.policy(objective),
        settings=settings,
        checks=(
            _reached(open_rays, radius.size, limit),
            _volume_check(volumes, open_rays),
            _star(again, radius.size),
            checks.finite(loss),
            _sampled(heights, loss_stderr),
            checks.batchnorm(objective),
        ),
        notes=objective.notes,
        cost=cost,
    )


def _reached(open_rays: int, total: int, limit: float) -> Check:
    if not open_rays:
        return Check("reached", "pass", "the loss reaches every rise along every ray", 0.0, 0.0)
    text = f"{open_rays} of {total} radii are longer than {limit:g}: widths are means over the others"
    return Check("reached", "warn", text, open_rays / total, 0.0)


def _volume_check(volumes: Sequence[_Volume], open_rays: int) -> Check:
    least = min(v.effective for v in volumes)
    one = f"{least:.3g}" == "1"
    if least >= FEWEST and not open_rays:
        return Check("volume", "pass", f"{least:.3g} lines count in the volume", least, FEWEST)
    text = (
        f"{least:.3g} {'line rules' if one else 'lines rule'} the volume: it is a lower estimate, whatever its "
        "standard error; compare the bound, or widths"
    )
    return Check("volume", "warn", text, least, FEWEST)


def _star(again: int, total: int) -> Check:
    text = f"along {again} of {total} rays the loss falls below the rise again farther out; that part is not counted"
    return Check("star", "warn" if again else "pass", text, again / total)


def _sampled(heights: np.ndarray, stderr: float) -> Check:
    """A rise below the loss's own standard error is a rise of these samples, perhaps of no others."""
    if math.isnan(stderr):
        return Check("samples", "pass", "the loss can't be taken apart into samples: no standard error")
    text = f"the loss's standard error over the samples is {stderr:.3g}, the smallest rise {heights.min():g}"
    return Check("samples", "warn" if stderr > heights.min() else "pass", text, stderr, float(heights.min()))
