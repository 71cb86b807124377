"""The loss on a line or a plane: every point, or only those that the picture needs."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..counted import counted
from ..curvature.slopes import norm
from ..errors import MeasurementError, ObjectiveError
from ..journal import until
from ..objective import Objective, as_objective
from ..passes import Evaluation
from ..results import Check, Cost
from ..tasks import Task
from . import checks
from .adaptive import FIRST, HELD_OUT, OUT_OF_TIME, Filled, OutOfTime, Sheet, between, coarse_to_fine, complete, fill
from .directions import PARALLEL, Direction, cosine, random_direction
from .points import Autocast, Criteria, Points, check_criteria
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
    held_out: bool = False,
    criteria: Criteria | None = None,
    autocast: Autocast | None = None,
    bend: bool = True,
    time_limit: float | None = None,
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
        held_out: also the loss (and accuracy) on the other split, at the same weights.
        criteria: further losses of (outputs, target) by name, from the same passes; see `Objective.evaluate`. The terms
            of a loss that returns {term: mean} are always there.
        autocast: "bfloat16" or "float16" for faster passes; their error at five points is then a check.
        bend: also the exact curvature along d (one Hessian product), and how far the line leaves the parabola that
            slope and curvature give.
        time_limit: seconds after which no further point is evaluated; the points left out are NaN, and the result's
            status is "partial". The ends come first, then ever finer steps.
        seed: of the direction that is drawn, 0 to 2**32 - 1; without effect on a given one.
        progress: a bar on stderr.

    Returns a Line in the loss's own unit. Losses that are not finite are kept. The centre is evaluated even where 0
    is not among the alphas, and is the checkpoint's loss bit for bit.

    Costs one forward pass over the draw for each point (two where the task has its own `predict`, or BatchNorm
    statistics are recomputed; one more with `held_out`), one for the checkpoint, 2 to verify a task that is new, 7 for
    the check of the slope and 9 for the bend. Model, buffers, gradients, RNG state and flags are as before on every way
    out.

    Raises MeasurementError for alphas that are empty, not finite or not increasing, and for a direction that doesn't
    fit the model, is zero or not finite; ObjectiveError where the loss can't be measured at the checkpoint.
    """
    steps = checked_steps(alphas, "alphas", LINE_POINTS)
    begun, spent = time.perf_counter(), _passes(task)
    with until(time_limit), as_objective(task, split) as objective, _other(objective, held_out) as other:
        d = given_direction(direction, objective, seed, "given")
        slice_ = _Slice(objective, (d,), other, accuracy, criteria, autocast)
        found = np.full((len(steps), len(slice_.points.names)), np.nan)
        done = np.zeros(len(steps), dtype=bool)
        order = [i for i, _ in coarse_to_fine((len(steps), 1))]
        with contextlib.suppress(OutOfTime), _bar(len(steps), "line", progress) as bar:
            for i, row in zip(order, slice_.points.rows([(float(steps[i]),) for i in order]), strict=True):
                found[i], done[i] = row, True
                bar.update()
        columns = slice_.columns(found)
        bent = slice_.finish([(a,) for a in steps[done]], columns["loss"][done], math.nan, bend)
        return Line(
            alpha=steps,
            loss=columns["loss"],
            accuracy=columns.get("accuracy"),
            held_out_loss=columns.get("held-out loss"),
            held_out_accuracy=columns.get("held-out accuracy"),
            terms=slice_.terms(columns),
            term_names=slice_.points.terms,
            center_loss=slice_.at_zero,
            checkpoint_loss=slice_.checkpoint.loss,
            loss_stderr=slice_.checkpoint.stderr,
            direction_norm=d.norm,
            slope=bent.slopes[0],
            curvature=float(bent.curvatures[0, 0]),
            bend=bent.bend,
            samples=objective.samples,
            split=objective.split,
            direction=d.label,
            seed=d.seed,
            batchnorm=checks.policy(objective),
            status="complete" if done.all() else "partial",
            settings={**_settings(d), "autocast": autocast},
            checks=bent.checks,
            notes=tuple(dict.fromkeys((*objective.notes, *d.notes, *slice_.notes))),
            cost=Cost(bent.products, _passes(objective) - spent + _extra(other), time.perf_counter() - begun),
        )


def plane(
    task: Task | Objective,
    d1: Along = None,
    d2: Along = None,
    alphas: Any = None,
    betas: Any = None,
    *,
    tol: float | None = None,
    budget: int | None = None,
    split: str = "train",
    accuracy: bool = True,
    held_out: bool = False,
    criteria: Criteria | None = None,
    autocast: Autocast | None = None,
    bend: bool = True,
    time_limit: float | None = None,
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
        tol: None evaluates every point. A number evaluates where the picture needs it and interpolates elsewhere, until
            the stated maximum error is at most this share of the range of log loss (asinh where a loss is 0 or below);
            see `landscape.surface.adaptive.fill` for the method. On trained small nets 0.01 took 4 to 8% of a 51 x 51
            grid. Accuracy is interpolated linearly, without an error.
        budget: points to evaluate at most, with `tol`; the result says whether the tolerance was reached.
        split, accuracy, held_out, criteria, autocast, bend, seed, progress: as for `line`.
        time_limit: seconds after which no further point is evaluated; the others are interpolated as well as they can
            be, and the result's status is "partial".

    Returns a Plane. Costs as for `line`: one forward pass for each point evaluated, 11 for the check of the slopes and
    15 for the bend.

    Raises what `line` raises, and MeasurementError for two parallel directions (|cosine| > 1 - 1e-6), a tolerance that
    is not between 0 and 1, and a budget that is too small for any.
    """
    rows = checked_steps(alphas, "alphas", PLANE_POINTS)
    columns_ = checked_steps(betas, "betas", PLANE_POINTS)
    check_tolerance(tol, budget)
    begun, spent = time.perf_counter(), _passes(task)
    with until(time_limit), as_objective(task, split) as objective, _other(objective, held_out) as other:
        first = given_direction(d1, objective, seed, "given d1")
        second = given_direction(d2, objective, seed + SECOND_SEED, "given d2")
        angle = cosine(first, second)
        if abs(angle) > PARALLEL:
            raise MeasurementError(
                f"d1 and d2 are parallel (cosine {angle:.9f}): they span no plane; give another d2, or measure a line"
            )
        slice_ = _Slice(objective, (first, second), other, accuracy, criteria, autocast)
        names = slice_.points.names
        found = np.full((len(rows), len(columns_), len(names)), np.nan)

        def evaluate(points: Any) -> Iterator[tuple[tuple[int, int], float]]:
            steps = [(float(rows[i]), float(columns_[j])) for i, j in points]
            for (i, j), row in zip(points, slice_.points.rows(steps), strict=True):
                found[i, j] = row
                bar.update()
                yield (i, j), row[0]

        sheet = Sheet(rows, columns_, evaluate, slice_.checkpoint.loss)
        with _bar(None if tol is not None else found[..., 0].size, "plane", progress) as bar:
            filled = fill(sheet, tol, budget=budget, seed=seed)
        columns = slice_.columns(found)
        at = [(float(rows[i]), float(columns_[j])) for i, j in np.argwhere(sheet.evaluated)]
        bent = slice_.finish(at, sheet.loss[sheet.evaluated], angle, bend)
        others = _completed(columns, sheet, filled, slice_)
        stopped = filled.reason == OUT_OF_TIME
        return Plane(
            alpha=rows,
            beta=columns_,
            loss=filled.loss,
            accuracy=others.get("accuracy"),
            held_out_loss=others.get("held-out loss"),
            held_out_accuracy=others.get("held-out accuracy"),
            terms=slice_.terms(others),
            term_names=slice_.points.terms,
            evaluated=filled.evaluated,
            deviation=None if sheet.evaluated.all() else filled.deviation,
            error=filled.error,
            error_p95=filled.error_p95,
            center_loss=slice_.at_zero,
            checkpoint_loss=slice_.checkpoint.loss,
            loss_stderr=slice_.checkpoint.stderr,
            cosine=angle,
            direction_norms=np.array([first.norm, second.norm]),
            slopes=np.array(bent.slopes),
            curvatures=bent.curvatures,
            bend=bent.bend,
            samples=objective.samples,
            split=objective.split,
            directions=(first.label, second.label),
            seeds=(first.seed, second.seed),
            batchnorm=checks.policy(objective),
            scale=filled.heights.scale,
            scale_width=filled.heights.width,
            status="partial" if stopped else "complete",
            settings={**_settings(first, second), "tol": tol, "budget": budget, "autocast": autocast},
            checks=(*bent.checks, checks.interpolation(filled, tol)),
            notes=tuple(dict.fromkeys((*objective.notes, *first.notes, *second.notes, *slice_.notes))),
            cost=Cost(bent.products, _passes(objective) - spent + _extra(other), time.perf_counter() - begun),
        )


def check_tolerance(tol: float | None, budget: int | None) -> None:
    """Refuse a tolerance or a budget that no plane could keep."""
    if tol is not None and (isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 < tol < 1):
        raise MeasurementError(
            f"tol={tol!r} must be a share of the picture's range between 0 and 1, such as 0.01; or None"
        )
    if budget is None:
        return
    least = FIRST**2 + 1 + HELD_OUT
    if tol is None:
        raise MeasurementError(f"budget={budget!r} needs a tolerance: give tol, such as 0.01")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < least:
        raise MeasurementError(
            f"budget={budget!r} must be a whole number of at least {least} points: {FIRST**2 + 1} to begin with, and "
            f"{HELD_OUT} held out"
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
class _Bent:
    """What a slice says about itself when its points are there."""

    slopes: tuple[float, ...]
    curvatures: np.ndarray
    bend: float
    products: int
    checks: tuple[Check, ...]


class _Slice:
    """One slice under way: the checkpoint's loss first, then the points, then what the picture says about itself."""

    def __init__(
        self,
        objective: Objective,
        directions: tuple[Direction, ...],
        held_out: Objective | None,
        accuracy: bool,
        criteria: Criteria | None,
        autocast: Autocast | None,
    ) -> None:
        self.objective, self.directions, self.autocast = objective, directions, autocast
        objective.reset()
        self.checkpoint: Evaluation = objective.evaluate(stderr=True)
        if not math.isfinite(self.checkpoint.loss):  # a task is verified once, and its weights may have diverged since
            raise ObjectiveError(
                f"the loss at the checkpoint is {self.checkpoint.loss} on the {objective.split} data: there is nothing "
                "to picture around it (look for diverged weights)"
            )
        check_criteria(criteria, self.checkpoint)
        if autocast not in (None, "bfloat16", "float16"):
            raise MeasurementError(
                f"autocast={autocast!r} is none of bfloat16 and float16; None is the task's own precision"
            )
        if autocast is not None and objective.dtype != torch.float32:
            raise MeasurementError(
                "autocast works on float32 weights: give the task dtype=torch.float32, or leave it out"
            )
        self.points = Points(
            objective,
            directions,
            checkpoint=self.checkpoint,
            accuracy=accuracy,
            held_out=held_out,
            criteria=criteria,
            autocast=autocast,
        )
        self.at_zero = math.nan
        self.notes: tuple[str, ...] = ()

    def columns(self, found: np.ndarray) -> dict[str, np.ndarray]:
        """Return the last axis of an array as one array for each quantity."""
        return {name: np.ascontiguousarray(found[..., k]) for k, name in enumerate(self.points.names)}

    def terms(self, columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
        return np.stack([columns[name] for name in self.points.terms]) if self.points.terms else None

    def finish(self, at: list[tuple[float, ...]], loss: np.ndarray, angle: float, bend: bool) -> _Bent:
        """Evaluate the centre and the derivatives there, and check the picture."""
        objective = self.objective
        zero = [i for i, steps in enumerate(at) if not any(steps)]
        self.at_zero = float(loss[zero[0]]) if zero else self.points.at((0.0,) * len(self.directions))[0]
        expected, low = self.checkpoint.loss, None
        if self.autocast is not None:
            expected = self.points.at((0.0,) * len(self.directions))[0]
            low = checks.autocast(self.points, at, loss, self.autocast)
        objective.reset()
        exact = checks.derivatives(objective, self.directions, curved=bend)
        quadratic, departure = checks.bend(exact, self.checkpoint.loss, at, loss) if bend else (None, math.nan)
        made = (
            checks.center(expected, self.at_zero),
            checks.finite(loss),
            checks.directions(self.directions, norm(objective.center), angle),
            checks.batchnorm(objective),
            checks.samples(self.checkpoint, loss),
            checks.slope(objective, self.directions, self.checkpoint, exact),
            quadratic,
            low,
        )
        reused = self.points.reused
        if reused:
            self.notes = (f"{counted(reused, 'point comes', 'points come')} from an earlier run that was interrupted",)
        return _Bent(exact.slopes, exact.curvatures, departure, exact.products, tuple(c for c in made if c is not None))


def _completed(columns: dict[str, np.ndarray], sheet: Sheet, filled: Filled, slice_: _Slice) -> dict[str, np.ndarray]:
    """Return the quantities beside the loss with their other points interpolated, and note how."""
    if sheet.evaluated.all():
        return columns
    others, said = {}, []
    for name, values in columns.items():
        if name in ("accuracy", "held-out accuracy"):
            others[name] = between(values, sheet)
            said.append(f"{name} is interpolated linearly between the points evaluated, and no error is stated for it")
        elif name != "loss":
            others[name], error = complete(values, sheet)
            said.append(
                f"{name} is interpolated from the same points; its stated maximum error is {error:.2g} of its range"
            )
    slice_.notes = (*slice_.notes, *said)
    return others


@contextlib.contextmanager
def _other(objective: Objective, wanted: bool) -> Iterator[Objective | None]:
    """Give the objective of the other split, entered on the same weights; None where it is not wanted."""
    if not wanted:
        yield None
        return
    task = objective.task
    splits = [s for s in task.splits if s != objective.split]
    if not splits:
        raise MeasurementError(
            f"held_out=True needs data beside the {objective.split} split: give the task both train and test"
        )
    with Objective(task, splits[0], process_group=objective.process_group) as other:
        yield other


def _extra(other: Objective | None) -> float:
    return 0.0 if other is None else other.passes


def _bar(total: int | None, what: str, progress: bool) -> Any:
    return tqdm(total=total, desc=what, unit="point", leave=False, disable=not progress)


def _passes(task: Task | Objective) -> float:
    """Return what an Objective has spent already; that is no cost of the slice."""
    return task.passes if isinstance(task, Objective) else 0.0


def given_direction(given: Along, objective: Objective, seed: int, label: str) -> Direction:
    """Return a direction that was given, fitted to the objective; a random one with this seed where none was."""
    if given is None:
        return random_direction(objective, seed)
    d = given if isinstance(given, Direction) else Direction(given, label=label)
    return d.fitted(objective)


def _settings(*chosen: Direction) -> dict[str, Any]:
    return {"normalize": [d.normalize for d in chosen], "ignore": [d.ignore for d in chosen]}


def checked_steps(values: Any, name: str, points: int) -> np.ndarray:
    """Return the steps (n,) as float64; `points` of them from -1 to 1 where none are given.

    Raises TypeError for what holds no numbers, MeasurementError for steps that are not finite or not increasing.
    """
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
