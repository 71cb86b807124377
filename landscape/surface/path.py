"""The loss along a path between states: straight, or a trained Bezier curve; and how high its barrier is."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from ..alignment.aligned import Alignment
from ..alignment.permuting import Method, align_states
from ..errors import MeasurementError
from ..objective import Objective
from ..parameters import trainable, unwrap
from ..passes import Evaluation
from ..results import Check, Cost
from ..session import batchnorm_layers, recomputing
from ..tasks import Task
from ..verification import block_error
from .curve import RATE, STEPS, Trained, train_middle
from .routes import Path
from .states import State, check_finite, differ, holding, mixable, others, read_state, same

Curve = Literal["linear", "bezier"]
Statistics = Literal["recompute", "interpolate"]
#: Points of each segment, its ends included (chosen by us: a barrier's top is resolved to 4% of the way).
POINTS = 25

Tensors = Sequence[torch.Tensor]
#: Running mean and variance of each BatchNorm layer, in order.
Moments = list[tuple[torch.Tensor, torch.Tensor]]


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
    _check_states(read, names)
    policy = task.batchnorm if task.batchnorm == "batch" else batchnorm
    if not batchnorm_layers(model):
        policy = "none"
    # Statistics are set here, point by point: the objective itself must leave them alone.
    ready = task.replace(batchnorm="batch" if policy == "batch" else "eval")
    found: list[Alignment] = []
    before: Path | None = None

    def measured(states: Sequence[State], curve: Curve) -> Path:
        walk = _Walk(ready, names, states, points, policy, accuracy, progress)
        return walk.measure(curve, splits, steps, rate, seed)

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
    said = [
        f"{one.states[1]} was permuted to fit {one.states[0]}: {int(one.moved.sum())} of {int(one.units.sum())} units "
        f"in {len(one.units)} groups changed places, by {method}; it computes what it did before"
        for one in found
    ]
    kept = [replace(c, name=f"alignment {c.name}") for one in found for c in one.checks]
    return replace(
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
        notes=tuple(dict.fromkeys((*said, *path.notes))),
        cost=replace(path.cost, passes=path.cost.passes + before.cost.passes + sum(one.cost.passes for one in found)),
    )


@dataclass(frozen=True)
class _Found:
    """Of one split: an Evaluation at each position, and of each state with its own statistics."""

    points: list[Evaluation]
    states: list[Evaluation]
    samples: int
    notes: tuple[str, ...]


class _Walk:
    """A model led along a path: weights, buffers and running statistics set at each position."""

    def __init__(
        self,
        task: Task,
        names: tuple[str, ...],
        states: Sequence[State],
        points: int,
        policy: str,
        accuracy: bool,
        progress: bool,
    ) -> None:
        self.task = task
        self.names = names
        self.states = states
        self.policy = policy
        self.accuracy = accuracy
        self.progress = progress
        self.passes = 0.0
        self.middles: list[list[torch.Tensor]] = []
        self._tied = names_of_tied(unwrap(task.model), names)
        self._moments: list[Moments] = []
        inner = np.linspace(0.0, 1.0, points)
        # (segment, t): the last point of a segment is the first one of the next, and evaluated once.
        self.positions = [(0, 0.0)] + [(s, float(t)) for s in range(len(states) - 1) for t in inner[1:]]

    @property
    def position(self) -> np.ndarray:
        return np.array([s + t for s, t in self.positions])

    def measure(self, curve: Curve, splits: Sequence[str], steps: int, rate: float, seed: int) -> Path:
        """Measure everything that a Path holds."""
        begun = time.perf_counter()
        trained: list[Trained] = []
        with holding(unwrap(self.task.model), self.states[0]):
            if curve == "bezier":
                trained = self.train(steps, rate, seed)
            if self.policy == "recompute":
                self.recompute()
            found = [self.evaluate(split) for split in splits]
        return _result(self, found, trained, splits, self.distances(), curve, seed, time.perf_counter() - begun)

    def at(self, objective: Objective, segment: int, t: float) -> None:
        """Set parameters, frozen parameters and buffers to those of the path at t on a segment."""
        a, b = self.states[segment], self.states[segment + 1]
        first, last = a.chosen(self.names), b.chosen(self.names)
        if self.middles and 0 < t < 1:
            shares, ends = bezier_weights(t), (first, self.middles[segment], last)
        else:
            shares, ends = (1 - t, t), (first, last)
        set_mixed(objective.parameters, ends, shares)
        beside, measured = [others(s, self.names) for s in (a, b)], {id(p) for p in objective.parameters}
        with objective.writing() as live:
            for name, tensor in live.items():
                # Further names of tied parameters are none of their own: those have moved along the curve already.
                if name in beside[0] and id(tensor) not in measured and mixable(tensor):
                    set_mixed([tensor], [[o[name]] for o in beside], (1 - t, t))

    def recompute(self) -> None:
        """Estimate BatchNorm's statistics over the train draw at every position, and keep them."""
        with Objective(self.task, "train") as objective, self._bar("statistics", len(self.positions)) as bar:
            layers = batchnorm_layers(objective.model)
            for segment, t in self.positions:
                self.at(objective, segment, t)
                with objective.measuring(), recomputing(objective.model):
                    for i in range(len(objective)):
                        objective.value(i)
                objective.passes += 1
                self._moments.append([_moments(layer) for layer in layers])
                bar.update()
            self.passes += objective.passes

    def evaluate(self, split: str) -> _Found:
        """Evaluate one split at every position, and every state as it is."""
        points, own = [], []
        with Objective(self.task, split) as objective:
            layers = batchnorm_layers(objective.model)
            with self._bar(f"path, {split}", len(self.positions)) as bar:
                for i, (segment, t) in enumerate(self.positions):
                    self.at(objective, segment, t)
                    if self._moments:
                        for layer, (mean, variance) in zip(layers, self._moments[i], strict=True):
                            layer.running_mean.copy_(mean)  # type: ignore[union-attr]
                            layer.running_var.copy_(variance)  # type: ignore[union-attr]
                    points.append(objective.evaluate(accuracy=self.accuracy, stderr=True))
                    bar.update()
            for i in range(len(self.states)):
                self.at(objective, min(i, len(self.states) - 2), float(i == len(self.states) - 1))
                own.append(objective.evaluate())
            self.passes += objective.passes
            has_labels = self.accuracy and objective.has_labels
            self.accuracy = has_labels
            return _Found(points, own, objective.samples, objective.notes)

    def train(self, steps: int, rate: float, seed: int) -> list[Trained]:
        """Train the middle point of each segment's curve on the train draw."""
        made = []
        with Objective(self.task, "train") as objective:
            for segment in range(len(self.states) - 1):
                self.at(objective, segment, 0.5)  # buffers that batch statistics don't replace
                ends = [
                    [w.to(p.device, p.dtype) for w, p in zip(s.chosen(self.names), objective.parameters, strict=True)]
                    for s in self.states[segment : segment + 2]
                ]
                with self._bar(f"curve {segment + 1}", steps) as bar:
                    made.append(train_middle(objective, *ends, steps=steps, rate=rate, seed=seed, update=bar.update))
            self.passes += objective.passes
        self.middles = [m.middle for m in made]
        return made

    def distances(self) -> np.ndarray:
        """Return the Euclidean distance between the ends of each segment, over the trainable parameters."""
        return np.array(
            [
                math.sqrt(
                    sum(
                        float((b.weights[n].cpu().double() - a.weights[n].cpu().double()).square().sum())
                        for n in self.names
                    )
                )
                for a, b in itertools.pairwise(self.states)
            ]
        )

    def middle_states(self) -> list[dict[str, torch.Tensor]]:
        """Return each middle point as a state_dict on the CPU; its running statistics are those half way."""
        made = []
        for segment, middle in enumerate(self.middles):
            a, b = self.states[segment], self.states[segment + 1]
            state = {k: v.detach().clone() for k, v in a.weights.items()}
            for name, value in state.items():
                if mixable(value):
                    set_mixed([value], [[a.weights[name]], [b.weights[name]]], (0.5, 0.5))
            for name, value in zip(self.names, middle, strict=True):
                for tied in self._tied[name]:
                    if tied in state:
                        state[tied].copy_(value)
            made.append(state)
        return made

    def _bar(self, what: str, total: int) -> Any:
        return tqdm(total=total, desc=what, leave=False, disable=not self.progress)


def bezier_weights(t: float) -> tuple[float, float, float]:
    """Return the shares of first end, middle and last end of the quadratic Bezier curve at t."""
    return (1 - t) ** 2, 2 * t * (1 - t), t**2


def set_mixed(targets: Tensors, ends: Sequence[Tensors], shares: Sequence[float]) -> None:
    """Write sum_i shares_i * ends_i into the targets; a single end with share 1 arrives bit for bit."""
    with torch.no_grad():
        for j, target in enumerate(targets):
            parts = [(end[j].to(target.device, target.dtype), c) for end, c in zip(ends, shares, strict=True) if c]
            if len(parts) == 1 and parts[0][1] == 1.0:
                target.copy_(parts[0][0])
                continue
            torch.mul(parts[0][0], parts[0][1], out=target)
            for value, c in parts[1:]:
                target.add_(value, alpha=c)


def names_of_tied(model: nn.Module, names: tuple[str, ...]) -> dict[str, list[str]]:
    """Return for each of these parameters all the names that the model has it under."""
    every = dict(model.named_parameters(remove_duplicate=False))
    return {name: [n for n, p in every.items() if p is every[name]] for name in names}


def _moments(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.running_mean.clone(), layer.running_var.clone()


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


def _check_states(states: Sequence[State], names: tuple[str, ...]) -> None:
    for state in states:
        check_finite(state, names)
    for i, (a, b) in enumerate(itertools.pairwise(states), start=1):
        if not differ(a, b):
            raise MeasurementError(
                f"the states {i} and {i + 1} ({a.label} and {b.label}) are identical: there is no path between them"
            )
        for name, value in a.weights.items():
            exact = not mixable(value) and not name.endswith("num_batches_tracked")
            if exact and not same(value, b.weights[name]):
                raise MeasurementError(
                    f"{name!r} holds whole numbers that differ between {a.label} and {b.label}: nothing lies between "
                    "them (a mask, perhaps?)"
                )


def _result(
    walk: _Walk,
    found: Sequence[_Found],
    trained: Sequence[Trained],
    splits: Sequence[str],
    distance: np.ndarray,
    curve: Curve,
    seed: int,
    seconds: float,
) -> Path:
    rows = [_heights(f.points, walk.positions) for f in found]
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
    made = _checks(walk, found, splits, loss, excess, error, table(lambda i, m: float(top(i, m))).astype(int), members)
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
        distance=distance,
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
        cost=Cost(passes=walk.passes, seconds=seconds),
    )


def _heights(points: Sequence[Evaluation], positions: Sequence[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
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


def _checks(
    walk: _Walk,
    found: Sequence[_Found],
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
