"""The line and the plane that `landscape probe` measures, with their presets."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from ..errors import MeasurementError
from ..results import Option, measurement
from ..tasks import Task
from .adaptive import FIRST, HELD_OUT
from .derived import gradient_direction, hessian_directions
from .directions import IGNORE, NORMALIZE, Ignore, Normalize, orthogonalize, random_direction
from .grid import LINE_POINTS, PLANE_POINTS, SECOND_SEED, axis, check_tolerance, line, plane
from .points import Autocast
from .slices import Line, Plane
from .trajectory import check_last, trajectory_plane

_SHARED = {
    "span": Option(1.0, "steps run from -span to span", "Li et al. 2018"),
    "split": Option("train", "data to take the loss over: train or test", choices=("train", "test")),
    "held_out": Option(False, "also the loss and accuracy on the other split, at the same points"),
    "autocast": Option(None, "bfloat16 or float16 for faster passes, their error checked; None: the task's precision"),
    "normalize": NORMALIZE,
    "ignore": IGNORE,
}
#: Passes beside the points: two to verify the objective, one for the checkpoint, a gradient (3) for the check of the
#: slope; and 4 for each direction; for the bend a gradient's graph (3) and 6 for each direction.
_BESIDE, _SLOPE, _GRAPH, _PRODUCT = 6, 4, 3, 6
#: Share of a 51 x 51 grid that a tolerance of 1% takes (median over trained small nets; 4 to 8%), for the estimate.
_ADAPTIVE = 0.062
#: Hessian products for the two eigenvectors to draw along, for the estimate.
_EIGENVECTORS = 25

Kind = Literal["random", "gradient", "hessian", "trajectory"]


def _line_passes(*, grid: int = LINE_POINTS, held_out: bool = False, **_: Any) -> float:
    points = grid + (grid + 1) % 2
    return points * (1 + held_out) + _BESIDE + _SLOPE + _GRAPH + _PRODUCT + 2 * held_out


def _plane_passes(
    *,
    grid: int = PLANE_POINTS,
    tol: float | None = None,
    budget: int | None = None,
    directions: Kind = "random",
    held_out: bool = False,
    **_: Any,
) -> float:
    points = grid**2 + (grid + 1) % 2
    if tol is not None:
        # Twice the tolerance takes two thirds of the points, half of it a half more (median of the same nets).
        wanted = FIRST**2 + HELD_OUT + (_ADAPTIVE * LINE_POINTS**2 - FIRST**2 - HELD_OUT) * (0.01 / tol) ** 0.6
        points = min(points, wanted, budget or points)
    eigenvectors = 6 * _EIGENVECTORS if directions == "hessian" else 3 if directions == "gradient" else 0
    beside = _BESIDE + 2 * (_SLOPE + _PRODUCT) + _GRAPH
    return points * (1 + held_out) + beside + eigenvectors + 2 * held_out


def check_plane(
    *,
    grid: Any = PLANE_POINTS,
    directions: Any = "random",
    tol: Any = None,
    budget: Any = None,
    checkpoints: Any = None,
    span: Any = 1.0,
    **_: Any,
) -> None:
    """Refuse options that no plane could be measured with, before anything is."""
    axis(span, _points(grid))
    check_tolerance(tol, budget)
    if directions not in get_args(Kind):
        raise MeasurementError(f"directions={directions!r} is none of {', '.join(get_args(Kind))}")
    if (directions == "trajectory") != (checkpoints is not None):
        raise MeasurementError(
            "a plane along a trajectory needs its checkpoints: give three or more (plane.checkpoints='run/*.pt')"
            if directions == "trajectory"
            else f"checkpoints are given, but the plane's directions are {directions}: set directions=trajectory"
        )
    if directions == "trajectory":
        checkpoint_paths(checkpoints)


def check_line(*, grid: Any = LINE_POINTS, span: Any = 1.0, **_: Any) -> None:
    """Refuse options that no line could be measured with, before anything is."""
    axis(span, _points(grid))


@measurement(
    "line",
    section="line",
    order=40,
    preset={"quick": {"grid": 31}, "standard": {"grid": 51}, "thorough": {"grid": 101}},
    options={"grid": Option(LINE_POINTS, "points of the line", "Li et al. 2018"), **_SHARED},
    estimate=_line_passes,
    check=check_line,
)
def measure_line(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    grid: int = LINE_POINTS,
    span: float = 1.0,
    split: str = "train",
    held_out: bool = False,
    autocast: Autocast | None = None,
    normalize: Normalize | None = "filter",
    ignore: Ignore | None = "biasbn",
) -> Line:
    """Loss and accuracy along one random filter-normalized direction.

    The direction is drawn with `seed`. Costs one forward pass for each point and 19 or 20 beside; see `line`.
    """
    steps = axis(span, _points(grid))
    d = random_direction(task, seed, normalize, ignore)
    return line(task, d, steps, split=split, held_out=held_out, autocast=autocast, progress=progress)


@measurement(
    "plane",
    section="surface",
    order=45,
    preset={"quick": {"grid": 15}, "standard": {"grid": 25}, "thorough": {"grid": 51, "tol": 0.01}},
    options={
        "grid": Option(PLANE_POINTS, "points of each side", "chosen by us; Li et al. 2018 take 51"),
        "directions": Option(
            "random", "random, gradient (and a random one), hessian (top two eigenvectors), trajectory"
        ),
        "tol": Option(
            None, "interpolate where the stated error stays below this share of the log range; None: all points"
        ),
        "budget": Option(None, "points to evaluate at most, with tol"),
        "checkpoints": Option(None, "for a trajectory: three checkpoints or more, separated by commas, or a pattern"),
        **_SHARED,
    },
    estimate=_plane_passes,
    check=check_plane,
)
def measure_plane(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    grid: int = PLANE_POINTS,
    directions: Kind = "random",
    tol: float | None = None,
    budget: int | None = None,
    checkpoints: str | Sequence[str] | None = None,
    span: float = 1.0,
    split: str = "train",
    held_out: bool = False,
    autocast: Autocast | None = None,
    normalize: Normalize | None = "filter",
    ignore: Ignore | None = "biasbn",
) -> Plane:
    """Loss and accuracy over a plane of two random filter-normalized directions.

    The directions are drawn with `seed` and `seed + 1_000_000`. Costs one forward pass for each of the grid^2 points
    (with `tol` for some of them) and 29 or 30 beside; see `plane`. Other directions: "gradient" and a random one made
    orthogonal to it, "hessian" (the two largest eigenvalues' vectors), both as long as the random ones, so that `span`
    means the same; "trajectory" (the first two principal axes of `checkpoints`), whose steps run over the
    checkpoints' own rectangle around the last of them, so that `span` has no effect; the task's model must hold that
    one, and a result of another checkpoint is refused.
    """
    check_plane(grid=grid, directions=directions, tol=tol, budget=budget, checkpoints=checkpoints, span=span)
    more: dict[str, Any] = {"tol": tol, "budget": budget, "held_out": held_out, "autocast": autocast}
    more |= {"split": split, "seed": seed, "progress": progress}
    if directions == "trajectory":
        paths = checkpoint_paths(checkpoints)
        check_last(task, paths[-1])
        found, way = trajectory_plane(task, paths, grid=_points(grid), **more)
        notes = (*found.notes, *(n for n in way.notes if n not in found.notes))
        return replace(found, notes=notes, along=(way,))
    steps = axis(span, _points(grid))
    if directions == "hessian":
        d1, d2 = hessian_directions(task, 2, split=split, seed=seed, progress=progress)
    elif directions == "gradient":
        d1 = gradient_direction(task, split=split)
        d2 = orthogonalize(d1, random_direction(task, seed, normalize, ignore))
    else:
        d1, d2 = (random_direction(task, s, normalize, ignore) for s in (seed, seed + SECOND_SEED))
    return plane(task, d1, d2, steps, steps, **more)


def checkpoint_paths(given: str | Sequence[str] | None) -> list[str]:
    """Return the paths that were given: a list, names separated by commas, or a pattern, sorted as people number."""
    names = given.split(",") if isinstance(given, str) else list(given or ())
    found: list[str] = []
    for name in (n.strip() for n in names):
        matches = [name] if os.path.exists(name) else sorted(glob.glob(name), key=_numbered)
        if not matches:
            raise MeasurementError(f"no checkpoint is called, or matches, {name!r}")
        found += matches
    if len(found) < 3:
        raise MeasurementError(f"a trajectory's plane needs at least three checkpoints, got {len(found)}")
    return found


def _numbered(path: str) -> list[tuple[int, str]]:
    """Return a key that sorts step-9 before step-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def _points(grid: Any) -> int:
    if isinstance(grid, bool) or not isinstance(grid, int):
        raise MeasurementError(f"grid={grid!r} must be a whole number of points, at least 2")
    return grid
