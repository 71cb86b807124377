"""The line and the plane that `landscape probe` measures, with their presets."""

from __future__ import annotations

from typing import Any

from ..errors import MeasurementError
from ..results import Option, measurement
from ..tasks import Task
from .directions import Ignore, Normalize, random_direction
from .grid import LINE_POINTS, PLANE_POINTS, SECOND_SEED, axis, line, plane
from .slices import Line, Plane

_SHARED = {
    "span": Option(1.0, "steps run from -span to span", "Li et al. 2018"),
    "split": Option("train", "data to take the loss over: train or test"),
    "normalize": Option("filter", "scale of the random directions: filter, layer, weight or None", "Li et al. 2018"),
    "ignore": Option("biasbn", "biasbn: biases and normalization layers stay in place; or None", "Li et al. 2018"),
}
#: Passes beside the points: two to verify the objective, one for the checkpoint, a gradient (3) for the check of the
#: slope; and 4 for each direction.
_BESIDE = 6


def _line_passes(*, grid: int = LINE_POINTS, **_: Any) -> float:
    return grid + (grid + 1) % 2 + _BESIDE + 4


def _plane_passes(*, grid: int = PLANE_POINTS, **_: Any) -> float:
    return grid**2 + (grid + 1) % 2 + _BESIDE + 8


@measurement(
    "line",
    section="line",
    order=40,
    preset={"quick": {"grid": 31}, "standard": {"grid": 51}, "thorough": {"grid": 101}},
    options={"grid": Option(LINE_POINTS, "points of the line", "Li et al. 2018"), **_SHARED},
    estimate=_line_passes,
)
def measure_line(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    grid: int = LINE_POINTS,
    span: float = 1.0,
    split: str = "train",
    normalize: Normalize | None = "filter",
    ignore: Ignore | None = "biasbn",
) -> Line:
    """Loss and accuracy along one random filter-normalized direction.

    The direction is drawn with `seed`. Costs one forward pass for each point and 10 or 11 beside; see `line`.
    """
    steps = axis(span, _points(grid))
    d = random_direction(task, seed, normalize, ignore)
    return line(task, d, steps, split=split, progress=progress)


@measurement(
    "plane",
    section="surface",
    order=45,
    preset={"quick": {"grid": 15}, "standard": {"grid": 25}, "thorough": {"grid": 51}},
    options={"grid": Option(PLANE_POINTS, "points of each side", "chosen by us; Li et al. 2018 take 51"), **_SHARED},
    estimate=_plane_passes,
)
def measure_plane(
    task: Task,
    *,
    seed: int = 0,
    progress: bool = False,
    grid: int = PLANE_POINTS,
    span: float = 1.0,
    split: str = "train",
    normalize: Normalize | None = "filter",
    ignore: Ignore | None = "biasbn",
) -> Plane:
    """Loss and accuracy over a plane of two random filter-normalized directions.

    The directions are drawn with `seed` and `seed + 1_000_000`. Costs one forward pass for each of the grid^2 points
    and 14 or 15 beside; see `plane`.
    """
    steps = axis(span, _points(grid))
    d1, d2 = (random_direction(task, s, normalize, ignore) for s in (seed, seed + SECOND_SEED))
    return plane(task, d1, d2, steps, steps, split=split, progress=progress)


def _points(grid: Any) -> int:
    if isinstance(grid, bool) or not isinstance(grid, int):
        raise MeasurementError(f"grid={grid!r} must be a whole number of points, at least 2")
    return grid
