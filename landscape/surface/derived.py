"""Directions that the loss, or other checkpoints, give: gradient, Hessian eigenvectors, the way between two states."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..curvature.lanczos import eigenpairs
from ..curvature.operators import Hessian
from ..curvature.search import Which
from ..errors import MeasurementError
from ..objective import Objective, as_objective
from ..parameters import is_scale, trainable, unflatten, unwrap
from ..tasks import Task
from .directions import Direction, Normalize, cosine, rescaled
from .states import read_state

#: Residual allowed of an eigenvector to draw along, as a share of |lambda_1| (chosen by us: an angle of about 1 degree
#: where the eigenvalues are well apart; a picture needs no more).
TOL = 1e-2


@dataclass(frozen=True)
class Projection:
    """A direction d as sum_i coefficients_i d_i + what is left over; `captured` is the share of ||d||^2 in the sum."""

    coefficients: np.ndarray
    captured: float
    cosines: np.ndarray


def gradient_direction(
    task: Task | Objective, *, split: str = "train", length: float | None = None, normalize: Normalize | None = None
) -> Direction:
    """Return the direction of the gradient of the mean loss: steepest ascent, alpha < 0 goes down.

    `task` is a Task, or an Objective at whose centre and on whose own split it is taken; else on `split`. `length` is
    its Euclidean norm; None: that of the weights that a filter-normalized direction moves, so that a step of 1 goes as
    far as along a random one. `normalize` gives its filters (layers) the norms of the weights' own instead, see
    `rescaled`. Costs one gradient, 3 passes. Raises MeasurementError where the gradient is zero, and for a length that
    is not a finite number above 0.
    """
    with as_objective(task, split) as objective:
        objective.reset()
        tensors = objective.gradient()
        if not any(bool(t.any()) for t in tensors):
            raise MeasurementError("the gradient is zero at the checkpoint: there is no steepest direction")
        return _made(objective, tensors, "gradient", length, normalize)


def hessian_directions(
    task: Task | Objective,
    k: int = 2,
    *,
    which: Which = "largest",
    split: str = "train",
    tol: float = TOL,
    length: float | None = None,
    normalize: Normalize | None = None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Direction, ...]:
    """Return the directions of k Hessian eigenvectors, orthogonal, each label with its eigenvalue.

    `which` as in `eigenpairs`: "largest", "smallest", "both" (k from each end) or "magnitude". `length` and `normalize`
    as in `gradient_direction`; normalizing turns eigenvectors into other directions, and the label says so. The notes
    name pairs that did not converge to `tol` (default 1e-2: chosen by us, a direction to look along needs no more).
    `task` and `split` as in `gradient_direction`, `seed` of the search's random start, `progress` a bar on stderr.
    Costs what `eigenpairs` costs, 10 to 30 products for two, and raises what it does.
    """
    with as_objective(task, split) as objective:
        objective.reset()
        found = eigenpairs(Hessian(objective), k, which, tol, seed=seed, progress=progress)
        made = []
        columns = (
            (found.vectors, found.values, found.converged),
            (found.smallest_vectors, found.smallest, found.smallest_converged),
        )
        for vectors, values, converged in columns:
            if vectors is None:
                continue
            for i, value in enumerate(values):
                label = f"Hessian eigenvector {i + 1} of {'the smallest' if vectors is not found.vectors else which}"
                notes = () if converged[i] else (f"{label} did not converge to a residual of {tol:g}",)
                tensors = unflatten(vectors[:, i].contiguous(), objective.parameters)
                made.append(_made(objective, tensors, f"{label}, eigenvalue {value:.6g}", length, normalize, notes))
        return tuple(made)


def direction_between(task: Task, state: Any, other: Any = None, *, normalize: Normalize | None = None) -> Direction:
    """Return the way from one state to another: alpha = 0 is the first, alpha = 1 the second.

    A state is a state_dict, a module, a Checkpoint or the path of a checkpoint. With `other=None` the way leads from
    the task's own weights to `state`, which is what `line(task, ...)` around the task's weights wants; else from
    `state` to `other`. Buffers (BatchNorm's running statistics) are no part of it: see `interpolate` for paths that
    carry them along. `normalize` rescales it, see `rescaled`: then alpha = 1 is no longer the second state. Raises
    CheckpointError for a state that can't be read or doesn't fit the task's model, TypeError for what is no state.
    """
    model = unwrap(task.model)
    names = tuple(trainable(model))
    first = read_state(task.model if other is None else state, model, 1)
    second = read_state(state if other is None else other, model, 2)
    tensors = {
        n: b.detach().to(dtype) - a.detach().to(dtype)
        for n, a, b in zip(names, first.chosen(names), second.chosen(names), strict=True)
        # In bfloat16 the difference would be rounded to 3 digits, and no longer lead to the second state.
        for dtype in [functools.reduce(torch.promote_types, (a.dtype, b.dtype), torch.float32)]
    }
    label = f"from {'the weights' if other is None else first.label} to {second.label}"
    d = Direction(tensors, label=label, notes=(*first.notes, *second.notes))
    return d if normalize is None else rescaled(task, d, normalize)


def project(direction: Direction, onto: Sequence[Direction]) -> Projection:
    """Return the least-squares coefficients of a direction on others (oblique ones too), and the share they capture.

    Sums in float64 over all parameters; costs no pass over the data. Raises MeasurementError where the others are
    parallel or none.
    """
    if not onto:
        raise MeasurementError("give at least one direction to project onto")
    norms = np.array([d.norm for d in onto])
    gram = np.array([[cosine(a, b) for b in onto] for a in onto])
    if np.linalg.cond(gram) > 1e12:
        raise MeasurementError("the directions to project onto are parallel: leave one of them out")
    cosines = np.array([cosine(d, direction) for d in onto])
    shares = np.linalg.solve(gram, cosines)
    return Projection(shares * direction.norm / norms, float(cosines @ shares), cosines)


def _made(
    objective: Objective,
    tensors: Sequence[torch.Tensor],
    label: str,
    length: float | None,
    normalize: Normalize | None,
    notes: tuple[str, ...] = (),
) -> Direction:
    d = Direction(dict(zip(objective.names, tensors, strict=True)), label=label, notes=notes)
    if normalize is not None:
        return rescaled(objective, d, normalize)
    if length is None:
        modules, own = objective.modules_of(), dict(zip(objective.names, objective.center, strict=True))
        moved = [c for name, c in own.items() if not is_scale(modules.get(name), name, c)] or list(own.values())
        length = math.sqrt(sum(float(t.double().square().sum()) for t in moved))
    if not (math.isfinite(length) and length > 0):
        raise MeasurementError(f"length={length} must be a finite number above 0")
    return d.of_norm(length)
