"""The ground around the weights: convexity over the plane, and the width of the basin."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Block, Notes, Picture, Section
from ..figures.basin import basins
from ..figures.eigenvalue_map import eigenvalue_maps
from ..runs import Run
from . import section
from .missing import missing


@section(order=36)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the basins and the eigenvalue maps of all runs that have one."""
    blocks: list[Block] = []
    for kind, what, chart in (
        ("basin", "basin", basins(runs)),
        ("eigenvalue_map", "eigenvalue map", eigenvalue_maps(runs)),
    ):
        if not any(r.results.get(kind) for r in runs):
            continue
        if chart is not None:
            blocks.append(Picture(chart))
        notes = missing(runs, kind, what)
        if notes:
            blocks.append(Notes(notes))
    return Section("basins", "Around the weights", blocks, "Basins") if blocks else None
