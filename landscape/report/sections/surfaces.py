"""The loss surfaces side by side."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Block, Notes, Picture, Section
from ..figures.plane import surfaces
from ..runs import Run
from . import section
from .missing import missing


@section(order=30)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the surfaces of all runs that have one, and the names of those that don't."""
    chart = surfaces(runs)
    if chart is None and not any(r.results.get("plane") for r in runs):
        return None
    blocks: list[Block] = [Picture(chart)] if chart else []
    notes = missing(runs, "plane", "surface")
    if notes:
        blocks.append(Notes(notes))
    return Section("surfaces", "Loss surfaces", blocks, "Surfaces")
