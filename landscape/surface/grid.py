"""The loss on a grid along one or two directions: one forward pass over the draw for each point."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import MeasurementError, ObjectiveError
from ..objective import Objective, as_objective
from ..results import Check, Cost
from ..tasks import Task
from . import checks
from .directions import PARALLEL, Direction, cosine, random_direction
from .slices import Line, Plane

#: Points of a line, and of each side of a plane: the standard preset; span and 51 points are those of Li et al. 2018.
LINE_POINTS = 51
PLANE_POINTS = 25
#: Seed of a plane's second direction, counted from the first's (chosen by us: planes with neighbouring seeds share no
#: direction, and a line is the middle row of the plane with its seed).
SECOND_SEED = 1_000_000

Along = Direction | Mapping[str, torch.Tensor] | None


def line(
    task: Task | Objective,
    direction: Along = None,
    alphas: Any = None,
    *,
    split: str = "train",
    accuracy: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Line:
    """Evaluate the mean loss at theta + alpha * d for each alpha.

    Args:
        task: a Task, or an Objective (whose own split is measured, around its centre).
        direction: a Direction, or a mapping of every trainable parameter's name to a tensor of its shape; None draws
            `random_direction(task, seed)`, filter-normalized.
        alphas: steps (a,), finite and increasing; by default 51 from -1 to 1 (Li et al. 2018), 0 among them exactly.
        split: "train" or "test".
        accuracy: also the share of right labels, where the task has labels.
        seed: of the direction that is drawn, 0 to 2**32 - 1; without effect on a given one.
        progress: a bar on stderr.

    Returns a Line in the loss's own unit. Losses that are not finite are kept. The centre is evaluated even where 0
    is not among the alphas, and is the checkpoint's loss bit for bit.

    Costs one forward pass over the draw for each point (two where the task has its own `predict`, or BatchNorm
    statistics are recomputed), one for the checkpoint, 2 to verify a task that is new, and 7 for the check of the
    slope. Model, buffers, gradients, RNG state and flags are as before on every way out.

    Raises MeasurementError for alphas that are empty, not finite or not increasing, and for a direction that doesn't
    fit the model, is zero or not finite; ObjectiveError where the loss can't be measured at the checkpoint.
    """
    steps = _axis(alphas, "alphas", LINE_POINTS)
    begun, spent = time.perf_counter(), _passes(task)
    with as_objective(task, split) as objective:
        d = _direction(direction, objective, seed, "given")
        found = _evaluate(objective, (d,), [(float(a),) for a in steps], accuracy, progress, "line")
        return Line(
            alpha=steps,
            loss=found.loss,
            accuracy=found.accuracy,
            center_loss=found.center,
            checkpoint_loss=found.checkpoint,
            loss_stderr=found.stderr,
            direction_norm=d.norm,
            samples=objective.samples,
            split=objective.split,
            direction=d.label,
            seed=d.seed,
            batchnorm=checks.policy(objective),
            settings=_settings(d),
            checks=found.checks,
            notes=(*objective.notes, *d.notes),
            cost=Cost(passes=objective.passes - spent, seconds=time.perf_counter() - begun),
        )


def plane(
    task: Task | Objective,
    d1: Along = None,
    d2: Along = None,
    alphas: Any = None,
    betas: Any = None,
    *,
    split: str = "train",
    accuracy: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Plane:
    """Evaluate the mean loss at theta + alpha * d1 + beta * d2 on a grid; arrays are indexed [alpha, beta].

    Args:
        task: a Task, or an Objective (whose own split is measured, around its centre).
        d1, d2: as `direction` of `line`; None draws them with the seeds `seed` and `seed + 1_000_000`. They are not
            made orthogonal (nor are those of Li et al. 2018): the result gives their cosine, and see `orthogonalize`.
        alphas, betas: steps (a,) and (b,), finite and increasing, any rectangle; by default 25 each from -1 to 1 (the
            span of Li et al. 2018, who take 51 each; 25 chosen by us: a quarter of the cost).
        split, accuracy, seed, progress: as for `line`.

    Returns a Plane. Costs as for `line`: one forward pass for each of the a * b points, and 11 for the check of the
    slopes.

    Raises what `line` raises, and MeasurementError for two parallel directions (|cosine| > 1 - 1e-6).
    """
    rows = _axis(alphas, "alphas", PLANE_POINTS)
    columns = _axis(betas, "betas", PLANE_POINTS)
    begun, spent = time.perf_counter(), _passes(task)
    with as_objective(task, split) as objective:
        first = _direction(d1, objective, seed, "given d1")
        second = _direction(d2, objective, seed + SECOND_SEED, "given d2")
        angle = cosine(first, second)
        if abs(angle) > PARALLEL:
            raise MeasurementError(
                f"d1 and d2 are parallel (cosine {angle:.9f}): they span no plane; give another d2, or measure a line"
            )
        found = _evaluate(objective, (first, second), _serpentine(rows, columns), accuracy, progress, "plane", angle)
        shape = (len(rows), len(columns))
        return Plane(
            alpha=rows,
            beta=columns,
            loss=_unwind(found.loss, shape),
            accuracy=None if found.accuracy is None else _unwind(found.accuracy, shape),
            evaluated=np.ones(shape, dtype=bool),
            center_loss=found.center,
            checkpoint_loss=found.checkpoint,
            loss_stderr=found.stderr,
            cosine=angle,
            direction_norms=np.array([first.norm, second.norm]),
            samples=objective.samples,
            split=objective.split,
            directions=(first.label, second.label),
            seeds=(first.seed, second.seed),
            batchnorm=checks.policy(objective),
            settings=_settings(first, second),
            checks=found.checks,
            notes=tuple(dict.fromkeys((*objective.notes, *first.notes, *second.notes))),
            cost=Cost(passes=objective.passes - spent, seconds=time.perf_counter() - begun),
        )


def axis(span: float, points: int) -> np.ndarray:
    """Return `points` equal steps from -span to span, symmetric to the last bit: with an odd number, 0 is one of them.

    (numpy.linspace(-1, 1, 99) has -1e-16 in its middle.) Raises MeasurementError unless span > 0 and points >= 2.
    """
    if not (math.isfinite(span) and span > 0):
        raise MeasurementError(f"span={span} must be a finite number above 0")
    if points < 2:
        raise MeasurementError(f"a grid of {points} points shows no slice; give at least 2")
    steps = np.linspace(-span, span, points)
    return (steps - steps[::-1]) / 2


@dataclass(frozen=True)
class _Slice:
    """Losses at the points asked for, in their order, and what the picture says about itself."""

    loss: np.ndarray
    accuracy: np.ndarray | None
    center: float
    checkpoint: float
    stderr: float
    checks: tuple[Check, ...]


def _evaluate(
    objective: Objective,
    directions: Sequence[Direction],
    points: Sequence[tuple[float, ...]],
    accuracy: bool,
    progress: bool,
    what: str,
    angle: float = math.nan,
) -> _Slice:
    objective.reset()
    checkpoint = objective.evaluate(stderr=True)
    if not math.isfinite(checkpoint.loss):  # a task is verified once, and its weights may have diverged since
        raise ObjectiveError(
            f"the loss at the checkpoint is {checkpoint.loss} on the {objective.split} data: there is nothing to "
            "picture around it (look for diverged weights)"
        )
    along = [d.tensors(objective.names) for d in directions]
    accuracy = accuracy and objective.has_labels
    loss = np.full(len(points), np.nan)
    right = np.full(len(points), np.nan)
    at_zero = None
    with tqdm(total=len(points), desc=what, unit="point", leave=False, disable=not progress) as bar:
        for i, steps in enumerate(points):
            # Each point from the centre, so that no rounding error is carried along the path.
            objective.move(along, steps)
            found = objective.evaluate(accuracy=accuracy)
            loss[i], right[i] = found.loss, found.accuracy
            if not any(steps):
                at_zero = found.loss
            bar.update()
    if at_zero is None:
        objective.reset()
        at_zero = objective.evaluate().loss
    made = (
        checks.center(checkpoint.loss, at_zero),
        checks.finite(loss),
        checks.directions(directions, checks.norm(objective.center), angle),
        checks.batchnorm(objective),
        checks.samples(checkpoint, loss),
        checks.slope(objective, directions, checkpoint),
    )
    return _Slice(
        loss,
        right if accuracy else None,
        at_zero,
        checkpoint.loss,
        checkpoint.stderr,
        tuple(c for c in made if c is not None),
    )


def _passes(task: Task | Objective) -> float:
    """Return what an Objective has spent already; that is no cost of the slice."""
    return task.passes if isinstance(task, Objective) else 0.0


def _direction(given: Along, objective: Objective, seed: int, label: str) -> Direction:
    if given is None:
        return random_direction(objective, seed)
    d = given if isinstance(given, Direction) else Direction(given, label=label)
    return d.fitted(objective)


def _settings(*chosen: Direction) -> dict[str, Any]:
    return {"normalize": [d.normalize for d in chosen], "ignore": [d.ignore for d in chosen]}


def _axis(values: Any, name: str, points: int) -> np.ndarray:
    """Return the steps as float64, checked; the default where none are given."""
    if values is None:
        return axis(1.0, points)
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    try:
        steps = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a sequence of numbers, got {type(values).__name__}") from None
    if steps.ndim != 1:
        raise MeasurementError(f"{name} has shape {steps.shape}; expected one dimension of steps")
    if not len(steps):
        raise MeasurementError(f"{name} is empty: give at least one step")
    if not np.isfinite(steps).all():
        raise MeasurementError(f"{name} holds {steps[~np.isfinite(steps)][0]}: give finite steps")
    if len(steps) > 1 and not (np.diff(steps) > 0).all():
        how = f"reversed, from {steps[0]:g} to {steps[-1]:g}" if (np.diff(steps) < 0).all() else "not increasing"
        raise MeasurementError(f"{name} is {how}: give the steps in increasing order, each once")
    return steps


def _serpentine(rows: np.ndarray, columns: np.ndarray) -> list[tuple[float, float]]:
    """Return the points of the grid row by row, every other row backwards: neighbours follow each other."""
    return [(float(a), float(b)) for i, a in enumerate(rows) for b in (columns if i % 2 == 0 else columns[::-1])]


def _unwind(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return values in the order of `_serpentine` as an array [alpha, beta]."""
    grid = values.reshape(shape).copy()
    grid[1::2] = grid[1::2, ::-1].copy()
    return grid
