"""One file for each section of the page; a new file here is found by itself, and placed by its order."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence

from ..blocks import Section
from ..runs import Run

Build = Callable[[Sequence[Run]], Section | None]

_SECTIONS: dict[str, tuple[int, Build]] = {}


def section(order: int) -> Callable[[Build], Build]:
    """Register a function that makes a section from the runs, or None where they have nothing to show there."""

    def register(build: Build) -> Build:
        _SECTIONS[build.__module__] = (order, build)
        return build

    return register


def build_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the sections that these runs fill, in order."""
    for info in pkgutil.iter_modules(__path__, __name__ + "."):
        importlib.import_module(info.name)
    builders = sorted(_SECTIONS.values(), key=lambda item: item[0])
    return [s for _, build in builders if (s := build(runs)) is not None]


def by_task(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each task, in the order first seen."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.task, []).append(run)
    return groups
