"""Results of going from one state of a model to another: paths between them, and a training's trajectory. No torch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..counted import counted
from ..errors import MeasurementError
from ..results import Result, array, beside
from .slices import Plane

#: Room left around a trajectory on each side of its plane, as a share of its extent (chosen by us).
MARGIN = 0.15
#: Relative difference of norms and cosines up to which two planes are the same: float32 sums in another order.
SAME = 1e-5
#: Which statistics BatchNorm had along a path, in words.
STATISTICS = {
    "recompute": "running statistics recomputed at every point",
    "interpolate": "running statistics interpolated",
    "batch": "each batch's own statistics",
}


@dataclass(frozen=True, kw_only=True)
class Path(Result, kind="path", section="path"):
    """The loss (and accuracy, where there are labels) along a path through two or more states.

    `position` counts segments: state i lies at i, its last point is a state too. `excess` is the loss minus the
    straight line between the losses of its segment's ends; `barrier` is its largest value on each segment (Entezari et
    al. 2022, arXiv:2110.06296: 0 at least, since the ends belong to the segment), at `barrier_at`.
    `instability` is the largest loss minus the mean of the two ends' (Frankle et al. 2020, arXiv:1912.05671, section
    2). Both are maxima over the points evaluated. Standard errors of differences are paired: the same samples lie at
    every point. `own_loss` is each state's loss with its own running statistics, which may differ from the path's
    end where they are recomputed; `batchnorm` says which they are ("none" for a model without any).

    `align` is "none", or how the units of each state but the first were permuted to fit those of the one before it (see
    `align`): `groups` of units that change places together, their `units`, and how many `moved`. The straight path
    through the states as they were, on the same points and samples, is then in the fields that begin with `unaligned`.
    """

    position: np.ndarray = array("position", units="segments", coordinate=True, doc="segments from the first state")
    loss: np.ndarray = array("split", "position", units="loss", stderr="loss_stderr", doc="mean loss over the samples")
    loss_stderr: np.ndarray = array("split", "position", units="loss", doc="standard error over the samples")
    accuracy: np.ndarray | None = array(
        "split", "position", units="share", stderr="accuracy_stderr", doc="share of right labels", default=None
    )
    accuracy_stderr: np.ndarray | None = array(
        "split", "position", units="share", doc="standard error over the samples", default=None
    )
    excess: np.ndarray = array(
        "split", "position", units="loss", stderr="excess_stderr", doc="loss minus the line between the ends' losses"
    )
    excess_stderr: np.ndarray = array("split", "position", units="loss", doc="paired standard error over the samples")
    barrier: np.ndarray = array(
        "split", "segment", units="loss", stderr="barrier_stderr", doc="largest excess of a segment"
    )
    barrier_stderr: np.ndarray = array(
        "split", "segment", units="loss", doc="paired standard error of the excess at that point"
    )
    barrier_at: np.ndarray = array("split", "segment", units="segments", doc="where the excess is largest")
    instability: np.ndarray = array(
        "split", "segment", units="loss", doc="largest loss of a segment minus the mean of its ends' losses"
    )
    own_loss: np.ndarray = array("split", "state", units="loss", doc="loss of each state with its own statistics")
    distance: np.ndarray = array(
        "segment", units="||theta||_2 units", doc="Euclidean distance between a segment's ends, trainable parameters"
    )
    training_loss: np.ndarray | None = array(
        "segment", "step", units="loss", doc="loss of each step's batch while the curve was trained", default=None
    )
    groups: np.ndarray | None = array("segment", doc="groups of units that may change places", default=None)
    units: np.ndarray | None = array("segment", doc="units in these groups", default=None)
    moved: np.ndarray | None = array("segment", doc="units that changed places, to align its end", default=None)
    unaligned_loss: np.ndarray | None = array(
        "split", "position", units="loss", doc="mean loss on the straight path before the alignment", default=None
    )
    unaligned_barrier: np.ndarray | None = array(
        "split",
        "segment",
        units="loss",
        stderr="unaligned_barrier_stderr",
        doc="barrier before the alignment",
        default=None,
    )
    unaligned_barrier_stderr: np.ndarray | None = array(
        "split", "segment", units="loss", doc="paired standard error of that barrier", default=None
    )
    unaligned_distance: np.ndarray | None = array(
        "segment", units="||theta||_2 units", doc="distance between a segment's ends before the alignment", default=None
    )
    samples: np.ndarray = array("split", doc="number of samples")
    splits: tuple[str, ...] = ("train",)
    states: tuple[str, ...] = ()
    curve: str = "linear"
    align: str = "none"
    batchnorm: str = "none"
    seed: int | None = None
    middles: Any = beside("a state_dict for each segment: the trained middle point of a Bezier curve")

    @property
    def statistics(self) -> str:
        """Which statistics BatchNorm had along the path, in words; "" where the model keeps none."""
        return STATISTICS.get(self.batchnorm, "")

    def summary(self) -> dict[str, Any]:
        highest = [int(np.argmax(np.where(np.isnan(row), np.inf, row))) for row in self.barrier]
        return {
            "barrier": {
                split: {
                    "value": float(self.barrier[i, k]),
                    "stderr": float(self.barrier_stderr[i, k]),
                    "at": float(self.barrier_at[i, k]),
                }
                for i, (split, k) in enumerate(zip(self.splits, highest, strict=True))
            },
            "points": len(self.position),
            "curve": self.curve,
            "batchnorm": self.batchnorm,
        } | self._before()

    def permuted(self) -> tuple[str, ...]:
        """Return for each segment what was permuted to fit what, in words; nothing where there was no alignment."""
        if self.groups is None or self.units is None or self.moved is None:
            return ()
        return tuple(
            f"{b} was permuted to fit {a}: {moved} of {counted(int(units), 'unit')} in {counted(int(groups), 'group')} "
            f"changed places, by {self.align}; it computes what it did before"
            for (a, b), groups, units, moved in zip(
                itertools.pairwise(self.states), self.groups, self.units, self.moved, strict=True
            )
        )

    def _before(self) -> dict[str, Any]:
        """Return what the alignment changed; nothing where there was none."""
        if self.unaligned_barrier is None or self.unaligned_barrier_stderr is None or self.unaligned_distance is None:
            return {}
        highest = [int(np.argmax(np.where(np.isnan(row), np.inf, row))) for row in self.unaligned_barrier]
        return {
            "align": self.align,
            "unaligned_barrier": {
                split: {
                    "value": float(self.unaligned_barrier[i, k]),
                    "stderr": float(self.unaligned_barrier_stderr[i, k]),
                }
                for i, (split, k) in enumerate(zip(self.splits, highest, strict=True))
            },
            "groups": np.asarray(self.groups).tolist(),
            "units": np.asarray(self.units).tolist(),
            "moved": np.asarray(self.moved).tolist(),
            "distance": [float(d) for d in self.distance],
            "unaligned_distance": [float(d) for d in self.unaligned_distance],
        }


@dataclass(frozen=True, kw_only=True)
class Connectivity(Result, kind="connectivity", section="connectivity"):
    """The barrier of the path between each two of several states: which of them lie in one basin.

    All matrices are symmetric, 0 from a state to itself. `barrier`, `instability` and `distance` are those of `Path`,
    `own_loss` is each state's loss with its own running statistics. NaN is a pair that was not measured (the status is
    then "partial"); a barrier over losses that are not finite is not finite either. With `align` the later state of a
    pair was permuted to fit the earlier one, and the fields that begin with `unaligned` are those before.
    """

    barrier: np.ndarray = array(
        "split", "state", "other", units="loss", stderr="barrier_stderr", doc="largest excess on the path between two"
    )
    barrier_stderr: np.ndarray = array(
        "split", "state", "other", units="loss", doc="paired standard error of the excess at that point"
    )
    instability: np.ndarray = array(
        "split", "state", "other", units="loss", doc="largest loss on the path minus the mean of its ends' losses"
    )
    distance: np.ndarray = array(
        "state", "other", units="||theta||_2 units", doc="Euclidean distance of two states, trainable parameters"
    )
    own_loss: np.ndarray = array("split", "state", units="loss", doc="loss of each state with its own statistics")
    unaligned_barrier: np.ndarray | None = array(
        "split",
        "state",
        "other",
        units="loss",
        stderr="unaligned_barrier_stderr",
        doc="barrier before the alignment",
        default=None,
    )
    unaligned_barrier_stderr: np.ndarray | None = array(
        "split", "state", "other", units="loss", doc="paired standard error of that barrier", default=None
    )
    samples: np.ndarray = array("split", doc="number of samples")
    splits: tuple[str, ...] = ("train",)
    states: tuple[str, ...] = ()
    curve: str = "linear"
    align: str = "none"
    batchnorm: str = "none"

    def pairs(self) -> list[tuple[int, int]]:
        """Return each pair of states, the earlier one first."""
        return list(itertools.combinations(range(len(self.states)), 2))

    @property
    def statistics(self) -> str:
        """Which statistics BatchNorm had along the paths, in words; "" where the model keeps none."""
        return STATISTICS.get(self.batchnorm, "")

    def summary(self) -> dict[str, Any]:
        def listed(split: int, values: np.ndarray, errors: np.ndarray) -> list[dict[str, Any]]:
            return [
                {"states": [i, j], "value": float(values[split, i, j]), "stderr": float(errors[split, i, j])}
                for i, j in self.pairs()
            ]

        found: dict[str, Any] = {
            "states": list(self.states),
            "barrier": {s: listed(k, self.barrier, self.barrier_stderr) for k, s in enumerate(self.splits)},
            "curve": self.curve,
            "align": self.align,
            "batchnorm": self.batchnorm,
        }
        if self.unaligned_barrier is not None and self.unaligned_barrier_stderr is not None:
            before = self.unaligned_barrier, self.unaligned_barrier_stderr
            found["unaligned_barrier"] = {s: listed(k, *before) for k, s in enumerate(self.splits)}
        return found


@dataclass(frozen=True, kw_only=True)
class Trajectory(Result, kind="trajectory", section="trajectory"):
    """Checkpoints of one training, seen from the last: principal axes, their place on a plane, and its gap.

    Rows are theta_i - theta_final over the trainable parameters (Li et al. 2018, section 7). `share` is each principal
    axis's part of the rows' variance about their mean. `coordinates` are those of the plane's two directions around
    the last checkpoint: the foot of the perpendicular, by least squares where the directions are oblique. `distance`
    is ||theta_i - theta_final||, `off_plane` what of it the plane doesn't show. `plane_loss` is the loss at that foot,
    where the picture draws the checkpoint, `gap` is plane_loss - loss (`loss`: the checkpoint's own, on the same
    samples, with its own running statistics). Losses are None where they were not asked for.

    `fingerprint` is the last checkpoint's (as `Checkpoint.fingerprint`), which a plane drawn below must have.
    """

    step: np.ndarray = array("step", units="step", coordinate=True, doc="training step, or number of the checkpoint")
    coordinates: np.ndarray = array("step", "direction", units="step along d", doc="place on the plane")
    distance: np.ndarray = array("step", units="||theta||_2 units", doc="distance from the last checkpoint")
    off_plane: np.ndarray = array("step", units="||theta||_2 units", doc="distance from the plane")
    loss: np.ndarray | None = array(
        "step", units="loss", stderr="loss_stderr", doc="loss of each checkpoint", default=None
    )
    loss_stderr: np.ndarray | None = array("step", units="loss", doc="standard error over the samples", default=None)
    plane_loss: np.ndarray | None = array("step", units="loss", doc="loss at its place on the plane", default=None)
    gap: np.ndarray | None = array(
        "step", units="loss", stderr="gap_stderr", doc="loss on the plane minus loss of the checkpoint", default=None
    )
    gap_stderr: np.ndarray | None = array("step", units="loss", doc="paired, over the samples", default=None)
    share: np.ndarray | None = array("axis", units="share", doc="share of the variance of each axis", default=None)
    captured: float = array(
        units="share", doc="share of the sum of squared distances from the last checkpoint that the plane shows"
    )
    direction_norms: np.ndarray = array("direction", units="||theta||_2 units", doc="Euclidean norms of d1 and d2")
    cosine: float = array(doc="cosine of the angle between d1 and d2")
    parameters: int = array(doc="number of trainable parameters", default=0)
    samples: int = array(doc="number of samples", default=0)
    split: str = "train"
    directions_from: str = "pca"
    labels: tuple[str, str] = ("", "")
    states: tuple[str, ...] = ()
    fingerprint: str = ""
    batchnorm: str = "eval"
    axes: Any = beside("the two Directions of the plane")

    def directions(self) -> tuple[Any, Any]:
        """Return the plane's two Directions, for `plane(task, d1, d2, *trajectory.ranges())`.

        Raises MeasurementError for a trajectory that was read from an archive, which doesn't keep them.
        """
        if self.axes is None:
            raise MeasurementError(
                "this trajectory was read from an archive, which keeps its numbers but not the directions: run "
                "trajectory(task, states) again"
            )
        return self.axes

    def ranges(self, points: int = 25, margin: float = MARGIN) -> tuple[np.ndarray, np.ndarray]:
        """Return (alphas, betas): even steps over the trajectory's rectangle, with a margin; 0 is one of them.

        `margin` is a share of the longer extent, on each side. The step that lies nearest to 0 is moved there, so that
        the last checkpoint is a point of the grid.
        """
        if points < 2:
            raise MeasurementError(f"a grid of {points} points shows no slice; give at least 2")
        # In the units of weight space, so that both sides of the rectangle get the same room.
        extents = np.ptp(self.coordinates, axis=0) * self.direction_norms
        room = margin * float(extents.max()) / self.direction_norms
        found = []
        for k in (0, 1):
            low, high = self.coordinates[:, k].min() - room[k], self.coordinates[:, k].max() + room[k]
            steps = np.linspace(low, high, points)
            steps[np.argmin(np.abs(steps))] = 0.0
            found.append(steps)
        return found[0], found[1]

    def lies_on(self, surface: Plane, fingerprint: str = "") -> None:
        """Raise MeasurementError unless `surface` is a plane around this trajectory's last checkpoint along its axes.

        `fingerprint` is that of the checkpoint which the plane was measured on, where it is known.
        """
        if fingerprint and self.fingerprint and fingerprint != self.fingerprint:
            raise MeasurementError(
                f"the plane belongs to another model: its checkpoint has the fingerprint {fingerprint[:12]}, the "
                f"trajectory ends in {self.fingerprint[:12]}; measure the plane around the trajectory's last checkpoint"
            )
        if tuple(surface.directions) != tuple(self.labels):
            raise MeasurementError(
                f"the plane lies along {' and '.join(map(repr, surface.directions))}, the trajectory was projected "
                f"onto {' and '.join(map(repr, self.labels))}: measure plane(task, *trajectory.directions(), ...)"
            )
        norms = np.asarray(surface.direction_norms, dtype=float)
        same = np.allclose(norms, self.direction_norms, rtol=SAME, atol=0)
        if not same or not math.isclose(surface.cosine, self.cosine, rel_tol=0, abs_tol=10 * SAME):
            raise MeasurementError(
                f"the plane's directions have norms {norms[0]:.6g} and {norms[1]:.6g} and cosine {surface.cosine:.3g}, "
                f"the trajectory's {self.direction_norms[0]:.6g}, {self.direction_norms[1]:.6g} and {self.cosine:.3g}: "
                "they are other directions, or of another model"
            )

    def summary(self) -> dict[str, Any]:
        largest = None
        if self.gap is not None:
            known = np.abs(self.gap[np.isfinite(self.gap)])
            largest = float(known.max()) if len(known) else math.nan
        return {
            "checkpoints": len(self.step),
            "share": None if self.share is None else [float(s) for s in self.share[:2]],
            "captured": self.captured,
            "largest_gap": largest,
        }
