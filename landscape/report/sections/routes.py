"""Trajectories of trainings, and paths between checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Block, Notes, Picture, Section
from ..figures.path import paths
from ..figures.trajectory import trajectories
from ..runs import Run
from . import section
from .missing import missing


@section(order=33)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the trajectories and the paths of all runs that have one."""
    blocks: list[Block] = []
    for kind, what, chart in (("trajectory", "trajectory", trajectories(runs)), ("path", "path", paths(runs))):
        with_kind = [r for r in runs if r.results.get(kind)]
        if chart is not None:
            blocks.append(Picture(chart))
        # They belong to single runs more often than to all: only what went wrong is said.
        notes = missing(with_kind, kind, what)
        if notes:
            blocks.append(Notes(notes))
    return Section("routes", "Trajectories and paths", blocks, "Trajectories") if blocks else None
