"""How high a path's barriers are above the line between its states, how sure that is, and what was checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..passes import Evaluation
from ..results import Check
from ..verification import block_error
from .walk import Found, Walk


def heights(points: Sequence[Evaluation], positions: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (loss minus the straight line between the ends of its segment, its paired standard error)."""
    ends = {s: i for i, (s, t) in enumerate(positions) if t == 1.0}
    excess, errors = [], []
    for (segment, t), here in zip(positions, points, strict=True):
        first = points[ends[segment - 1] if segment else 0]
        last = points[ends[segment]]
        if t in (0.0, 1.0):
            excess.append(0.0 if math.isfinite(here.loss) else math.nan)
            errors.append(0.0)
            continue
        line = (1 - t) * first.loss + t * last.loss
        excess.append(here.loss - line)
        errors.append(paired_error((here, first, last), (1.0, -(1 - t), -t)))
    return np.array(excess), np.array(errors)


def paired_error(found: Sequence[Evaluation], coefficients: Sequence[float]) -> float:
    """Return the standard error of sum_i c_i * loss_i over the same samples, from the blocks of each evaluation.

    NaN where the loss can't be taken apart into samples, is not finite, or weighs its samples differently at each
    point.
    """
    weights = [[w for _, w in e.blocks] for e in found]
    if not weights[0] or any(w != weights[0] for w in weights[1:]):
        return math.nan
    means = [sum(c * e.blocks[j][0] for c, e in zip(coefficients, found, strict=True)) for j in range(len(weights[0]))]
    total = sum(c * e.loss for c, e in zip(coefficients, found, strict=True))
    return block_error(list(zip(means, weights[0], strict=True)), total)


def path_checks(
    walk: Walk,
    found: Sequence[Found],
    splits: Sequence[str],
    loss: np.ndarray,
    excess: np.ndarray,
    error: np.ndarray,
    tops: np.ndarray,
    members: Sequence[np.ndarray],
) -> tuple[Check, ...]:
    at_states = [0, *(i for i, (_, t) in enumerate(walk.positions) if t == 1.0)]
    own = np.array([[e.loss for e in f.states] for f in found])
    return (
        _ends(walk.policy, loss[:, at_states], own),
        _finite(loss),
        _statistics(walk.policy),
        _resolution(walk.position, excess, error, tops, members, splits),
    )


def _ends(policy: str, reached: np.ndarray, own: np.ndarray) -> Check:
    """Each end of the path is its checkpoint, up to the statistics that were recomputed."""
    with np.errstate(invalid="ignore"):  # a loss that is not finite minus itself
        gap = 0.0 if np.array_equal(reached, own, equal_nan=True) else float(np.max(np.abs(reached - own)))
    if gap == 0:
        return Check("ends", "pass", "the loss at each state is the checkpoint's, bit for bit", 0.0, 0.0)
    if policy == "recompute":
        text = (
            f"with recomputed running statistics the loss at a state differs by up to {gap:.3g} from the one with the "
            "checkpoint's own"
        )
        return Check("ends", "pass", text, gap)
    text = f"the loss at a state differs by {gap:.3g} from the checkpoint's: it is not reproducible here"
    return Check("ends", "fail", text, gap, 0.0)


def _finite(loss: np.ndarray) -> Check:
    wrong = int(loss.size - np.isfinite(loss).sum())
    if not wrong:
        return Check("finite", "pass", f"all {loss.size} points are finite", 0.0, 0.0)
    text = f"{wrong} of {loss.size} points are not finite: a barrier over them is not either"
    return Check("finite", "warn", text, wrong / loss.size, 0.0)


def _statistics(policy: str) -> Check:
    said = {
        "none": "the model keeps no running statistics",
        "batch": "each batch's own statistics at every point",
        "recompute": "running statistics estimated anew over the train draw at every point",
        "interpolate": "running statistics interpolated as the weights are",
    }
    return Check("batchnorm", "pass", said[policy])


def _resolution(
    position: np.ndarray,
    excess: np.ndarray,
    error: np.ndarray,
    tops: np.ndarray,
    members: Sequence[np.ndarray],
    splits: Sequence[str],
) -> Check:
    """How much higher the barrier may be between the points: the parabola through the highest one and its neighbors.

    Warns where that is more than the barrier's standard error (chosen by us).
    """
    missed, said = 0.0, ""
    limit = math.nan
    for i, split in enumerate(splits):
        for s, inside in enumerate(members):
            top = int(tops[i, s])
            if top in (inside[0], inside[-1]):
                continue
            low, high, after = excess[i, top - 1 : top + 2]
            bend = low - 2 * high + after
            more = (after - low) ** 2 / (-8 * bend) if bend < 0 else 0.0
            if math.isfinite(more) and more > missed:
                missed, limit, said = more, float(error[i, top]), f" on {split}, near {position[top]:.3g}"
    if not missed:
        return Check("resolution", "pass", "no barrier has its top between the points", 0.0)
    text = f"between the points a barrier may be {missed:.3g} higher{said}"
    level = "warn" if missed > limit else "pass"
    return Check("resolution", level, text + (": take more points" if level == "warn" else ""), missed, limit)
