"""One-dimensional slices, overlaid."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Block, Notes, Picture, Section
from ..figures.line import lines
from ..runs import Run
from . import section
from .missing import missing


@section(order=60)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the lines of all runs that have one."""
    if not any(r.results.get("line") for r in runs):
        return None
    chart = lines(runs)
    blocks: list[Block] = [Picture(chart)] if chart else []
    notes = missing(runs, "line", "line")
    if notes:
        blocks.append(Notes(notes))
    return Section("lines", "Loss along one direction", blocks, "Lines")
