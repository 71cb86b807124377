"""Write docs/python.md: the public names, each with the first sentence of its docstring. `make names` runs this."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import landscape
import landscape.probes

PAGE = Path(__file__).with_name("python.md")
HEAD = """# Python: the public names

Made by `make names` from `landscape.__all__` and the docstrings. `help(landscape.NAME)` shows the rest: arguments with
their defaults and where these come from, shapes, costs, errors, sources.

All are imported from `landscape` or `landscape.probes`, and load on first use: `import landscape` imports neither torch
nor h5py.
"""
#: Heading -> (guide, modules whose names stand below it: by the longest one that fits).
AREAS = {
    "Tasks": ("tasks.md", ["tasks", "tokens", "task_files", "objective", "errors"]),
    "Checkpoints": ("checkpoints.md", ["checkpoint", "checkpoints"]),
    "Curvature and sharpness": ("curvature.md", ["curvature"]),
    "Surfaces, paths, trajectories": ("surfaces.md", ["surface", "alignment"]),
    "Calibration and scores": ("calibration.md", ["calibration", "class_scores"]),
    "Losses, schedules, optimizers": ("sweeps.md#losses-schedules-and-optimizers-in-your-own-loop", ["training"]),
    "Results, archives, reports": ("reports.md", ["archive", "report"]),
    "A measurement of your own": ("extending.md", ["results"]),
}
#: The same of `landscape.probes`, by its modules' first part.
OF_PROBES = {
    "Recording": ("recording.md", ["recorder", "chosen", "when", "probe"]),
    "Probes of a recorder": (
        "recording.md#probes",
        ["gradients", "updates", "rates", "noise", "terms", "calibration", "curvature", "surface", "embeddings"],
    ),
    "Sweeps": ("sweeps.md", ["sweep"]),
    "What the command line calls": (
        "reports.md",
        ["posthoc", "execution", "calibrating", "connecting", "inspection", "outcome"],
    ),
}


def home(package: ModuleType, name: str) -> str:
    """Return the module that a public name comes from, below its package."""
    full = package._NAMES[name]
    return full.removeprefix(f"{package.__name__}.").lstrip(".")


def area(areas: Mapping[str, tuple[str, list[str]]], module: str) -> str:
    for heading, (_, modules) in areas.items():
        if any(module == m or module.startswith(f"{m}.") for m in modules):
            return heading
    raise LookupError(f"docs/names.py: no area for {module}")


def sentence(thing: Any) -> str:
    """Return the first sentence of a docstring, in one line, as a cell of a table."""
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    first = re.split(r"(?<=[a-z)\]`])\. (?=[A-Z])", paragraph)[0]
    return first.replace("|", "\\|").rstrip(":.")


def tables(package: ModuleType, areas: Mapping[str, tuple[str, list[str]]], names: Iterable[str]) -> list[str]:
    rows: dict[str, list[str]] = {heading: [] for heading in areas}
    for name in names:
        rows[area(areas, home(package, name))].append(f"| `{name}` | {sentence(getattr(package, name))} |")
    lines = []
    for heading, (guide, _) in areas.items():
        lines += ["", f"### {heading}", "", f"[Guide]({guide})", "", "| name | |", "|---|---|", *rows[heading]]
    return lines


def page() -> str:
    own = [n for n in landscape.__all__ if n != "__version__"]
    lines = [HEAD, "## `landscape`", *tables(landscape, AREAS, own)]
    lines += ["", "## `landscape.probes`", *tables(landscape.probes, OF_PROBES, landscape.probes.__all__)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
