"""Learning-rate range tests: which rate the loss bears."""

from __future__ import annotations

from collections.abc import Sequence

from ..blocks import Picture, Section
from ..figures.range_test import range_tests
from ..runs import Run
from . import section


@section(order=37)
def build(runs: Sequence[Run]) -> Section | None:
    """Return the range tests of all runs that have one."""
    chart = range_tests(runs)
    return Section("range-tests", "Learning-rate range test", [Picture(chart)], "Learning rate") if chart else None
