"""The loss along a path between states: straight, or a trained Bezier curve; and how high its barrier is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from ..alignment.aligned import Alignment
from ..alignment.permuting import Method, align_states
from ..errors import MeasurementError
from ..parameters import trainable, unwrap
from ..results import Cost
from ..session import batchnorm_layers
from ..tasks import Task
from .barriers import heights, path_checks
from .curve import RATE, STEPS, Trained
from .routes import Path
from .states import State, check_finite, differ, holding, mixable, read_state, same
from .walk import Found, Walk

Curve = Literal["linear", "bezier"]
Statistics = Literal["recompute", "interpolate"]
#: Points of each segment, its ends included (chosen by us: a barrier's top is resolved to 4% of the way).
POINTS = 25


def interpolate(
    task: Task,
    *states: Any,
    points: int = POINTS,
    curve: Curve = "linear",
    batchnorm: Statistics = "recompute",
    splits: Sequence[str] = ("train",),
    accuracy: bool = True,
    align: Method | None = None,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Evaluate the loss along a path through two or more states, and the height of its barrier.

    Args:
        task: a Task; its model says what the states must fit, and its own weights don't matter.
        states: two or more: state_dicts, modules, Checkpoints or paths of checkpoint files and folders. More than two
            make a polyline, one segment for each neighboring pair.
        points: of each segment, both ends included.
        curve: "linear", theta(t) = (1 - t) a + t b, or "bezier": (1 - t)^2 a + 2 t (1 - t) m + t^2 b with m trained to
            lower the loss along it (Garipov et al. 2018, arXiv:1802.10026, section 3), which costs `steps` gradients
            of a batch for each segment.
        batchnorm: what BatchNorm's running statistics are at each point: "recompute" estimates them anew over the
            train draw, its batches by their size (default: interpolated ones make barriers that the weights don't have,
            Jordan et al. 2023, arXiv:2211.08403), "interpolate" takes those of the ends in the same proportion as the
            weights, so that the ends are the checkpoints to the last bit. A task with batchnorm="batch" keeps
            each batch's own.
        splits: the data to take the loss over, "train" and "test".
        accuracy: also the share of right labels, where the task has labels.
        align: "weights" or "activations" permutes the hidden units of each state but the first so that they fit those
            of the one before it, by `landscape.align` on the train data, so that no barrier is left that comes from
            the order of units alone, as far as it was found. Leave `batchnorm` at "recompute" then. The straight path
            before the alignment is measured, too.
        steps, rate, seed: of the curve's training (see `landscape.surface.curve.train_middle`) and of the alignment.
        progress: bars on stderr.

    Returns a Path. Frozen and complex parameters and other floating-point buffers are mixed as the weights are, along a
    curve linearly. Losses that are not finite are kept; a barrier over them is not finite either, and the check
    "finite" says so.

    Costs for each split one forward pass a point and one a state, one more for each point where statistics are
    recomputed, 2 to verify the task; twice that and the alignments' own with `align`. The states stay where they are,
    and come to the task's device point by point. The caller's model and states are as before on every way out.

    Raises CheckpointError for a state that doesn't fit the model, naming what differs; MeasurementError for fewer than
    two states, two neighbors that are identical, a state that is not finite, buffers of whole numbers that differ;
    ObjectiveError where the loss can't be measured at the first state.
    """
    if not isinstance(task, Task):
        raise TypeError(f"interpolate needs a landscape.Task, got {type(task).__name__}")
    _check_settings(states, points, curve, batchnorm, splits, align)
    begun = time.perf_counter()
    model = unwrap(task.model)
    names = tuple(trainable(model))
    read = [read_state(given, model, i + 1) for i, given in enumerate(states)]
    for state in read:
        check_finite(state, names)
    for i, (a, b) in enumerate(itertools.pairwise(read), start=1):
        check_apart(a, b, i, i + 1)
    policy = task.batchnorm if task.batchnorm == "batch" else batchnorm
    if not batchnorm_layers(model):
        policy = "none"
    # Statistics are set here, point by point: the objective itself must leave them alone.
    ready = task.replace(batchnorm="batch" if policy == "batch" else "eval")
    found: list[Alignment] = []
    before: Path | None = None

    def measured(states: Sequence[State], curve: Curve) -> Path:
        walk = Walk(ready, names, states, points, policy, accuracy, progress)
        with holding(model, states[0]):
            trained = walk.train(steps, rate, seed) if curve == "bezier" else []
            if policy == "recompute":
                walk.recompute()
            reached = [walk.evaluate(split) for split in splits]
        return _result(walk, reached, trained, splits, curve, seed)

    if align is not None:
        before = measured(read, "linear")
        for i in range(1, len(read)):
            one = align_states(task, *read[i - 1 : i + 1], method=align, split="train", seed=seed, progress=progress)
            read[i] = replace(read[i], weights=one.weights)
            found.append(one)
    path = measured(read, curve)
    if before is not None and align is not None:
        path = _with_alignment(path, before, found, align)
    return replace(path, cost=replace(path.cost, seconds=time.perf_counter() - begun))


def _with_alignment(path: Path, before: Path, found: Sequence[Alignment], method: str) -> Path:
    kept = [replace(c, name=f"alignment {c.name}") for one in found for c in one.checks]
    aligned = replace(
        path,
        align=method,
        groups=np.array([len(one.units) for one in found]),
        units=np.array([int(one.units.sum()) for one in found]),
        moved=np.array([int(one.moved.sum()) for one in found]),
        unaligned_loss=before.loss,
        unaligned_barrier=before.barrier,
        unaligned_barrier_stderr=before.barrier_stderr,
        unaligned_distance=before.distance,
        checks=(*path.checks, *kept),
        warnings=tuple(dict.fromkeys((*path.warnings, *(w for one in found for w in one.warnings)))),
        cost=replace(path.cost, passes=path.cost.passes + before.cost.passes + sum(one.cost.passes for one in found)),
    )
    return replace(aligned, notes=tuple(dict.fromkeys((*aligned.permuted(), *path.notes))))


def _check_settings(
    states: Sequence[Any], points: int, curve: str, batchnorm: str, splits: Sequence[str], align: str | None
) -> None:
    if len(states) < 2:
        raise MeasurementError(f"a path needs at least two states, got {len(states)}: interpolate(task, a, b)")
    if isinstance(points, bool) or not isinstance(points, int) or points < 3:
        raise MeasurementError(f"points={points!r} must be a whole number, at least 3: both ends and one between")
    if curve not in ("linear", "bezier"):
        raise MeasurementError(f"curve={curve!r} is neither 'linear' nor 'bezier'")
    if batchnorm not in ("recompute", "interpolate"):
        raise MeasurementError(f"batchnorm={batchnorm!r} is neither 'recompute' nor 'interpolate'")
    if align is not None and align not in get_args(Method):
        raise MeasurementError(f"align={align!r} is neither 'weights' nor 'activations'")
    if isinstance(splits, str) or not splits:
        raise MeasurementError(f"splits={splits!r} must be one or both of 'train' and 'test', as a tuple")


def check_apart(a: State, b: State, i: int, j: int) -> None:
    """Raise MeasurementError where there is no path between two states, the i-th and the j-th."""
    if not differ(a, b):
        raise MeasurementError(
            f"the states {i} and {j} ({a.label} and {b.label}) are identical: there is no path between them"
        )
    for name, value in a.weights.items():
        exact = not mixable(value) and not name.endswith("num_batches_tracked")
        if exact and not same(value, b.weights[name]):
            raise MeasurementError(
                f"{name!r} holds whole numbers that differ between {a.label} and {b.label}: nothing lies between them "
                "(a mask, perhaps?)"
            )


def _result(
    walk: Walk,
    found: Sequence[Found],
    trained: Sequence[Trained],
    splits: Sequence[str],
    curve: Curve,
    seed: int,
) -> Path:
    rows = [heights(f.points, walk.positions) for f in found]
    segments = len(walk.states) - 1
    points = (len(walk.positions) - 1) // segments
    # A state between two segments belongs to both.
    members = [np.arange(k * points, (k + 1) * points + 1) for k in range(segments)]

    def table(value: Callable[[int, np.ndarray], float]) -> np.ndarray:
        return np.array([[value(i, members[s]) for s in range(segments)] for i in range(len(found))])

    loss = np.array([[e.loss for e in f.points] for f in found])
    excess, error = (np.array([r[k] for r in rows]) for k in (0, 1))

    def top(i: int, inside: np.ndarray) -> int:
        known = excess[i, inside]
        return int(inside[np.argmax(np.where(np.isnan(known), np.inf, known))])  # a NaN is no barrier of 0

    position = walk.position
    labelled = walk.accuracy
    tops = table(top).astype(int)
    made = path_checks(walk, found, splits, loss, excess, error, tops, members)
    return Path(
        position=position,
        loss=loss,
        loss_stderr=np.array([[e.stderr for e in f.points] for f in found]),
        accuracy=np.array([[e.accuracy for e in f.points] for f in found]) if labelled else None,
        accuracy_stderr=np.array([[e.accuracy_stderr for e in f.points] for f in found]) if labelled else None,
        excess=excess,
        excess_stderr=error,
        barrier=table(lambda i, m: excess[i, top(i, m)]),
        barrier_stderr=table(lambda i, m: error[i, top(i, m)]),
        barrier_at=table(lambda i, m: position[top(i, m)]),
        instability=table(lambda i, m: loss[i, m].max() - (loss[i, m[0]] + loss[i, m[-1]]) / 2),
        own_loss=np.array([[e.loss for e in f.states] for f in found]),
        distance=walk.distances(),
        training_loss=np.array([t.losses for t in trained]) if trained else None,
        samples=np.array([f.samples for f in found]),
        splits=tuple(splits),
        states=tuple(s.label for s in walk.states),
        curve=curve,
        batchnorm=walk.policy,
        seed=seed if trained else None,
        middles=walk.middle_states() if trained else None,
        settings={"points": points + 1}
        | ({"steps": len(trained[0].losses), "rate": trained[0].rate} if trained else {}),
        checks=made,
        notes=tuple(dict.fromkeys(n for source in (*found, *walk.states) for n in source.notes)),
        cost=Cost(passes=walk.passes),
    )
