"""The diagonal of the Hessian by parameter tensor."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Block, Notes, Picture, Section
from ..figures.diagonal import diagonals
from ..runs import Run
from . import section
from .missing import missing


@section(order=54)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the sums of the diagonal of all runs that have one."""
    if not any(r.results.get("diagonal") for r in runs):
        return None
    chart = diagonals(runs)
    blocks: list[Block] = [Picture(chart)] if chart else []
    notes = missing(runs, "diagonal", "diagonal")
    if notes:
        blocks.append(Notes(notes))
    return Section("diagonal", "Diagonal", blocks)
