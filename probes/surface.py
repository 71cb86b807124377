"""Slices of the loss surface while training: a line, or a coarse plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from landscape.errors import MeasurementError
from landscape.surface.grid import line, plane

from .probe import Found, Now, Probe, Quantity, Run
from .when import When, log_spaced


class SurfaceProbe(Probe):
    """A filter-normalized line (or plane) through the weights on one fixed draw, drawn with the same seed each time.

    Results are kept beside the rows of `surface`: the loss at the center, and the mean rise of the loss half a filter
    norm away. Needs `Recorder(..., task=...)`.

    Args:
        points: along the line, or along each side of the plane; odd, so that the center is one of them.
        plane: a plane instead of a line.
        span: how far from the weights, in filter norms.
        samples: of the fixed draw; 512 by default (chosen by us, as for curvature).
        when: by default log-spaced within 5% of the run's time.
        shared: as for `CurvatureProbe`.
    """

    name = "surface"
    expensive = True

    def __init__(
        self,
        points: int = 11,
        *,
        plane: bool = False,
        span: float = 1.0,
        samples: int | None = 512,
        when: When | None = None,
        split: str = "train",
        shared: bool = False,
    ) -> None:
        self.shared = shared
        if points < 3 or points % 2 == 0:
            raise MeasurementError(
                f"points={points}: give an odd number of at least 3, so that the center is one of them"
            )
        self.when = when if when is not None else log_spaced(budget=0.05)
        self.points, self.plane, self.span, self.samples, self.split = points, plane, span, samples, split

    def everywhere(self, run: Run) -> bool:
        return self.shared

    def start(self, run: Run) -> Sequence[Quantity]:
        if run.task is None:
            raise MeasurementError(
                "a surface needs the data of a task: Recorder(..., task=Task(model, loss, train=...))"
            )
        run.alone("the surface")
        self._task = run.task if self.samples is None else run.task.replace(max_samples=self.samples)
        doc = "loss at the weights, and its mean rise half a span away along the slice's first direction"
        return [Quantity("surface", ("center", "rise"), "loss", doc)]

    def measure(self, run: Run, now: Now) -> Found:
        steps = np.linspace(-self.span, self.span, self.points)
        with run.objective(self._task, self.split, self.shared) as objective:
            if self.plane:
                found = plane(objective, alphas=steps, betas=steps, seed=run.seed)
                along = found.loss[:, self.points // 2]
            else:
                found = line(objective, alphas=steps, seed=run.seed, bend=False)
                along = found.loss
        half = [float(np.interp(a, steps, along)) for a in (-self.span / 2, self.span / 2)]
        center = float(found.center_loss)
        return Found({"surface": (center, float(np.mean(half)) - center)}, (found,))
