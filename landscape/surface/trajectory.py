"""The way a training took, seen from its end: principal axes of its checkpoints, and its place on any plane."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoint import Checkpoint
from ..errors import MeasurementError
from ..objective import Objective
from ..parameters import unwrap
from ..passes import Evaluation
from ..results import Check, Cost
from ..tasks import Task
from . import checks
from .barriers import paired_error
from .directions import PARALLEL, Direction, cosine
from .grid import plane
from .routes import MARGIN, Trajectory
from .rows import MEMORY, Rows
from .slices import Plane
from .states import State, differ, holding, others, read_state

#: The second axis must hold this share of the variance of the first at least; else the checkpoints lie on a line
#: (chosen by us: what rounding to float32 leaves of a straight line is 1e-14).
FLAT = 1e-10
#: A gap of more than this share of the losses' range is said (chosen by us).
GAP = 0.1

Along = Direction | Mapping[str, torch.Tensor]


def trajectory(
    task: Task,
    states: Any,
    directions: Sequence[Along] | None = None,
    *,
    losses: bool = True,
    split: str = "train",
    memory: int = MEMORY,
    progress: bool = False,
) -> Trajectory:
    """Project the checkpoints of a training onto a plane around the last one, and say what the plane doesn't show.

    Args:
        task: a Task; its model says what the states must fit, and its own weights don't matter.
        states: the checkpoints in order, the last one the plane's center: a list of paths, Checkpoints, modules or
            state_dicts, an iterable that can be walked more than once, or a function that returns an iterator. They are
            read one at a time, from files only as far as needed.
        directions: two Directions (or mappings name -> tensor) to project onto; None: the first two principal axes of
            the rows theta_i - theta_final, of norm 1 (Li et al. 2018, arXiv:1712.09913, section 7; rows are centered
            for the axes, as scikit-learn's PCA does there, and projected uncentered).
        losses: also evaluate each checkpoint, and the point of the plane where the picture draws it.
        split: "train" or "test".
        memory: bytes for the piece of all rows that is held at a time (default 1 GiB).
        progress: bars on stderr.

    Returns a Trajectory: `.directions()` and `.ranges()` give what `plane` needs for the contour below. With oblique
    directions the place on the plane is by least squares, not by one scalar product for each.

    Principal axes come from the (m, m) matrix of products of the rows, summed in float64 over pieces of all rows (m^2 n
    multiplications), so that memory is a piece, three vectors of n in float64 and one checkpoint. The files are read
    three times: piece by piece for the matrix, then one after the other for the axes and for the losses. Two forward
    passes for each checkpoint with `losses` (four where BatchNorm statistics are recomputed), 2 to verify. Model and
    states are as before on every way out. benchmarks/trajectory.py: 1,000 checkpoints of 10 million parameters take
    1.8 GB.

    Raises CheckpointError for a state that doesn't fit the model; MeasurementError for fewer than three checkpoints or
    checkpoints on one line (without given directions), directions that are parallel or don't fit, a checkpoint that is
    not finite.
    """
    return _measured(task, states, directions, losses, split, memory, progress)[0]


def _measured(
    task: Task,
    states: Any,
    directions: Sequence[Along] | None,
    losses: bool,
    split: str,
    memory: int,
    progress: bool,
) -> tuple[Trajectory, State]:
    """Return the trajectory, and its last state."""
    if not isinstance(task, Task):
        raise TypeError(f"trajectory needs a landscape.Task, got {type(task).__name__}")
    begun = time.perf_counter()
    rows = Rows(states, unwrap(task.model), memory)
    projected = _principal(rows, progress) if directions is None else _onto(rows, _pair(directions, rows), progress)
    lost = _Losses.none()
    if losses:
        lost = _losses(task, rows, projected, split, progress)
    return _result(rows, projected, lost, split, time.perf_counter() - begun), rows.final


def trajectory_plane(
    task: Task,
    states: Any,
    *,
    grid: int = 25,
    margin: float = MARGIN,
    split: str = "train",
    memory: int = MEMORY,
    progress: bool = False,
    **settings: Any,
) -> tuple[Plane, Trajectory]:
    """Measure the plane of a training's first two principal axes around its last checkpoint, and the way on it.

    `grid` points a side over the trajectory's rectangle with `margin` (a share of its longer extent) on each side;
    `settings` go to `plane`, all else (task, states, split, memory, progress) to `trajectory`; costs and raises what
    both do. Draw both with `draw(trajectory, surface=plane)`.
    """
    found, last = _measured(task, states, None, True, split, memory, progress)
    alphas, betas = found.ranges(grid, margin)
    with holding(unwrap(task.model), last):
        return plane(task, *found.directions(), alphas, betas, split=split, progress=progress, **settings), found


def check_last(task: Task, last: Any) -> None:
    """Raise MeasurementError unless the task's model holds the state `last`, the center of a trajectory's plane.

    For whoever keeps the plane as a result of that model: `trajectory_plane` itself takes the state, not the model's.
    """
    model = unwrap(task.model)
    state = read_state(last, model, 1)
    if differ(read_state(model, model, 1), state):
        raise MeasurementError(
            f"the trajectory's plane lies around its last checkpoint, {state.label}, not around this one: measure it "
            "there"
        )


@dataclass(frozen=True)
class _Projection:
    """Where each row lies, along which directions."""

    axes: tuple[Direction, Direction]
    coordinates: np.ndarray
    squares: np.ndarray
    seen: np.ndarray
    angle: float
    share: np.ndarray | None


def _principal(rows: Rows, progress: bool) -> _Projection:
    m, n = rows.shape
    if m < 3:
        raise MeasurementError(
            f"the principal plane of {m} checkpoints is a line: give at least 3, or use interpolate(task, a, b)"
        )
    with tqdm(total=m * rows.pieces, desc="products", unit="file", leave=False, disable=not progress) as bar:
        products = rows.gram(bar.update)
    mean = products.mean(axis=0)
    centered = products - mean - mean[:, None] + mean.mean()
    values, vectors = np.linalg.eigh((centered + centered.T) / 2)
    values, vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
    if values[0] == 0:
        raise MeasurementError(f"the {m} checkpoints are all the same: there is no trajectory")
    if values[1] <= FLAT * values[0]:
        raise MeasurementError(
            f"the {m} checkpoints lie on one line (the second axis holds {values[1] / values[0]:.1g} of the first's "
            "variance): they span no plane; use interpolate(task, first, last)"
        )
    shares = vectors[:, :2] / np.sqrt(values[:2])
    coordinates = products @ shares
    # A sign for each axis: the checkpoint that is farthest along it, mostly the first, lies on the positive side.
    turn = np.where(coordinates[np.argmax(np.abs(coordinates), axis=0), (0, 1)] < 0, -1.0, 1.0)
    shares, coordinates = shares * turn, coordinates * turn
    sums = torch.zeros((2, n), dtype=torch.float64, device="cpu")
    with tqdm(total=m, desc="axes", unit="file", leave=False, disable=not progress) as bar:
        for i, state in enumerate(rows.read()):
            row = rows.flat(state) - rows.center
            for k in (0, 1):
                sums[k].add_(row, alpha=float(shares[i, k]))
            bar.update()
    share = values[: min(m - 1, n)] / values.sum()
    digest = fingerprint(rows.final)[:12]
    first, second = (
        Direction(
            rows.named((sums[k] / torch.linalg.vector_norm(sums[k])).to(rows.dtype)),
            label=f"principal axis {k + 1} of {m} checkpoints, ending in {digest} ({share[k]:.1%} of the variance)",
        )
        for k in (0, 1)
    )
    seen = (coordinates**2).sum(axis=1)
    return _Projection((first, second), coordinates, np.diag(products).copy(), seen, cosine(first, second), share)


def _onto(rows: Rows, axes: tuple[Direction, Direction], progress: bool) -> _Projection:
    m, _ = rows.shape
    angle = cosine(*axes)
    if abs(angle) > PARALLEL:
        raise MeasurementError(
            f"the two directions are parallel (cosine {angle:.9f}): they span no plane; give another second one"
        )
    flat = [torch.cat([t.reshape(-1).double().cpu() for t in d.tensors(rows.names)]) for d in axes]
    products = np.zeros((m, 2))
    squares = np.zeros(m)
    with tqdm(total=m, desc="projection", unit="file", leave=False, disable=not progress) as bar:
        for i, state in enumerate(rows.read()):
            row = (rows.flat(state) - rows.center).double()
            squares[i] = float(row @ row)
            products[i] = [float(row @ d) for d in flat]
            bar.update()
    rows.check(squares)
    if not squares.any():
        raise MeasurementError(f"the {m} checkpoints are all the same: there is no trajectory")
    between = np.array([[float(a @ b) for b in flat] for a in flat])
    coordinates = np.linalg.solve(between, products.T).T
    return _Projection(axes, coordinates, squares, (coordinates * products).sum(axis=1), angle, None)


def _pair(directions: Sequence[Along], rows: Rows) -> tuple[Direction, Direction]:
    if isinstance(directions, Mapping) or len(directions) != 2:
        raise MeasurementError("directions must be two Directions (or mappings of parameter names to tensors)")
    made = [
        d if isinstance(d, Direction) else Direction(d, label=f"given d{k}") for k, d in enumerate(directions, start=1)
    ]
    for d in made:
        for name, t in zip(rows.names, d.tensors(rows.names), strict=True):
            if t.shape != rows.final.weights[name].shape:
                raise MeasurementError(
                    f"the direction {d.label!r} has shape {tuple(t.shape)} for {name!r}, whose shape is "
                    f"{tuple(rows.final.weights[name].shape)}: was it made for another model?"
                )
    return made[0], made[1]


@dataclass(frozen=True)
class _Losses:
    """Evaluations of each checkpoint and of its place on the plane; empty where none were asked for."""

    true: list[Evaluation]
    drawn: list[Evaluation]
    passes: float
    samples: int
    policy: str
    notes: tuple[str, ...]

    @classmethod
    def none(cls) -> _Losses:
        return cls([], [], 0.0, 0, "", ())


def _losses(task: Task, rows: Rows, projected: _Projection, split: str, progress: bool) -> _Losses:
    model = unwrap(task.model)
    with holding(model, rows.final), Objective(task, split) as objective:
        axes = [d.fitted(objective).tensors(objective.names) for d in projected.axes]
        true, drawn = [], []

        with tqdm(total=2 * rows.shape[0], desc="losses", unit="point", leave=False, disable=not progress) as bar:
            for state in rows.read():
                objective.reset()  # also has statistics that are recomputed done anew
                with objective.writing() as live:
                    for name, value in others(state, rows.names).items():
                        live[name].copy_(value)
                    for p, w in zip(objective.parameters, state.chosen(objective.names), strict=True):
                        p.copy_(w)
                true.append(objective.evaluate(stderr=True))
                bar.update()
            # The last state was the final one: its running statistics are those of the picture below.
            for place in projected.coordinates:
                objective.move(axes, [float(c) for c in place])
                drawn.append(objective.evaluate(stderr=True))
                bar.update()
        return _Losses(true, drawn, objective.passes, objective.samples, checks.policy(objective), objective.notes)


def _result(rows: Rows, projected: _Projection, lost: _Losses, split: str, seconds: float) -> Trajectory:
    squares = projected.squares
    with_losses = bool(lost.true)
    loss = np.array([e.loss for e in lost.true])
    on_plane = np.array([e.loss for e in lost.drawn])
    with np.errstate(invalid="ignore"):  # a loss that is not finite minus another one
        gap = on_plane - loss
    errors = [paired_error((d, t), (1.0, -1.0)) for t, d in zip(lost.true, lost.drawn, strict=True)]
    first, second = projected.axes
    norm = math.sqrt(float(rows.center.double().square().sum()))
    made = [checks.directions(projected.axes, norm, projected.angle), _captured(squares, projected.seen)]
    if with_losses:
        made += [checks.center(float(loss[-1]), float(on_plane[-1])), checks.finite(loss), _gap(loss, gap, errors)]
    return Trajectory(
        step=np.arange(rows.shape[0]) if rows.steps is None else rows.steps,
        coordinates=projected.coordinates,
        distance=np.sqrt(squares),
        off_plane=np.sqrt(np.clip(squares - projected.seen, 0.0, None)),
        loss=loss if with_losses else None,
        loss_stderr=np.array([e.stderr for e in lost.true]) if with_losses else None,
        plane_loss=on_plane if with_losses else None,
        gap=gap if with_losses else None,
        gap_stderr=np.array(errors) if with_losses else None,
        share=projected.share,
        captured=float(projected.seen.sum() / squares.sum()),
        direction_norms=np.array([first.norm, second.norm]),
        cosine=projected.angle,
        parameters=rows.shape[1],
        samples=lost.samples,
        split=split,
        directions_from="given" if projected.share is None else "pca",
        labels=(first.label, second.label),
        states=rows.labels,
        fingerprint=fingerprint(rows.final),
        batchnorm=lost.policy,
        axes=projected.axes,
        settings={
            "memory": rows.width * rows.shape[0] * rows.dtype.itemsize,
            "steps": "counted" if rows.steps is None else "as in the files",
        },
        checks=tuple(made),
        notes=tuple(dict.fromkeys((*lost.notes, *rows.notes))),
        cost=Cost(passes=lost.passes, seconds=seconds),
    )


def _captured(squares: np.ndarray, seen: np.ndarray) -> Check:
    """How much of the way lies in the plane."""
    share = float(seen.sum() / squares.sum())
    far = float(np.sqrt(np.clip(squares - seen, 0.0, None).max()))
    text = f"the plane shows {share:.1%} of the squared distances from the last checkpoint; one lies {far:.4g} off it"
    return Check("captured", "pass", text, share)


def _gap(loss: np.ndarray, gap: np.ndarray, errors: Sequence[float]) -> Check:
    """How far the loss that the picture shows under the trajectory is from the checkpoints' own."""
    known = np.flatnonzero(np.isfinite(gap))
    if not len(known):
        return Check("gap", "warn", "no checkpoint has a finite loss both by itself and on the plane")
    at = int(known[np.argmax(np.abs(gap[known]))])
    limit = GAP * float(np.ptp(loss[np.isfinite(loss)]))
    text = (
        f"the loss on the plane differs from the checkpoint's by up to {gap[at]:+.3g} (checkpoint {at + 1}; standard "
        f"error over the samples {errors[at]:.2g})"
    )
    if abs(gap[at]) > limit:
        text += ": read the colors under the trajectory as the plane's, not as the training's loss"
        return Check("gap", "warn", text, abs(float(gap[at])), limit)
    return Check("gap", "pass", text, abs(float(gap[at])), limit)


def fingerprint(state: State) -> str:
    """Return the fingerprint of a state as a checkpoint has it: `Checkpoint.fingerprint`."""
    return Checkpoint("", dict(state.weights), {}, None, None, {}, None, ()).fingerprint
