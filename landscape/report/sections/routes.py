"""Trajectories of trainings, paths between checkpoints, and the barriers between many."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Block, Notes, Picture, Section
from ..figures.connectivity import connections
from ..figures.path import paths
from ..figures.trajectory import trajectories
from ..runs import Run
from . import section
from .missing import missing


@section(order=33)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the trajectories and the paths of all runs that have one."""
    blocks: list[Block] = []
    charts = (
        ("trajectory", "trajectory", trajectories(runs)),
        ("path", "path", paths(runs)),
        ("connectivity", "matrix of barriers", connections(runs)),
    )
    for kind, what, chart in charts:
        with_kind = [r for r in runs if r.results.get(kind)]
        if chart is not None:
            blocks.append(Picture(chart))
        # They belong to single runs more often than to all: only what went wrong is said.
        notes = missing(with_kind, kind, what)
        if notes:
            blocks.append(Notes(notes))
    return Section("routes", "Trajectories and paths", blocks, "Trajectories") if blocks else None
