"""The report as a PDF: what was compared, the table of runs, and vector figures with their captions, a page each."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LandscapeError
from .blocks import Notes
from .measures import measures, setting, settings
from .page import default_title, facts
from .palette import INK, MUTED
from .paper import Drawn
from .pictures import every_figure
from .runs import Run
from .sections import glance
from .style import PAPER, styled
from .value import Measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A page of text is A4 across, in inches; so many lines of so many letters fit at this size of type.
PAGE, SIZE, LINES, LETTERS = (11.69, 8.27), 7.5, 49, 165
TITLES = {
    "plane": "Loss surfaces",
    "line": "Loss along one direction",
    "calibration": "Reliability",
    "recalibration": "Before and after recalibration",
    "density": "Spectral density",
    "training": "Training",
    "effects": "What each setting does",
}
#: Up to so many runs stand across, with a row for each number; more of them down.
ACROSS = 5


def write_booklet(runs: Sequence[Run], path: Path, *, title: str | None = None) -> None:
    """Write the PDF. Figures that can't be drawn are named on the last page."""
    from matplotlib.backends.backend_pdf import PdfPages

    name = title or default_title(runs)
    failed = []
    with styled(PAPER), PdfPages(path, metadata={"Title": name, "CreationDate": None}) as pages:
        for page in _pages([*_first(runs), "", "", *_table(runs)]):
            pages.savefig(_typed(name, page))
        for kind, drawn in every_figure(runs, PAPER):
            if isinstance(drawn, LandscapeError):
                failed.append(f"{kind}: {drawn}")
            else:
                pages.savefig(_captioned(kind, drawn))
        for page in _pages([_wrapped(text) for text in (*_checks(runs), *failed)]):
            pages.savefig(_typed("Is it right?", page))


def _captioned(kind: str, drawn: Drawn) -> Figure:
    """Return the figure with its name above and its caption below, grown by the room that they need."""
    figure = drawn.figure
    width, height = (float(x) for x in figure.get_size_inches())
    lines = textwrap.wrap(drawn.caption, int(width * 72 / (0.56 * PAPER.font)))
    above, below = 0.3, 0.12 + len(lines) * PAPER.font * 1.35 / 72
    whole = height + above + below
    figure.set_size_inches(width, whole)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, below / whole, 1, height / whole))
    name = TITLES.get(kind, kind.replace("_", " ").capitalize())
    figure.text(0.01, 1 - 0.08 / whole, name, va="top", fontsize=PAPER.font + 2, weight="bold")
    text = figure.text(
        0.01, (below - 0.05) / whole, "\n".join(lines), va="top", fontsize=PAPER.font, linespacing=1.35,
        parse_math=False,
    )  # fmt: skip
    text.set_in_layout(False)
    return figure


def _typed(title: str, lines: Sequence[str]) -> Figure:
    """Return a page of text in columns of letters of one width."""
    from matplotlib.backends.backend_pdf import FigureCanvasPdf
    from matplotlib.figure import Figure

    figure = Figure(figsize=PAGE)
    FigureCanvasPdf(figure)
    figure.text(0.04, 0.95, title, fontsize=14, weight="bold", color=INK, va="top", parse_math=False)
    figure.text(
        0.04, 0.9, "\n".join(lines), fontsize=SIZE, family="monospace", color=INK, va="top", linespacing=1.35,
        parse_math=False,
    )  # fmt: skip
    figure.text(0.04, 0.02, "landscape-probe", fontsize=SIZE, color=MUTED)
    return figure


def _pages(lines: Sequence[str]) -> list[list[str]]:
    flat = [part for line in lines for part in line.split("\n")]
    return [flat[i : i + LINES] for i in range(0, len(flat), LINES)]


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, LETTERS, subsequent_indent="    ")) or ""


def _first(runs: Sequence[Run]) -> list[str]:
    """Return what was compared, and what the page's first screen says of it."""
    lines = [f"{label:<12} {text}" for label, text in facts(runs)]
    said = glance.build(runs)
    for block in said.blocks if said else ():
        if isinstance(block, Notes):
            lines += ["", *(_wrapped(f"· {text}") for _, text in block.items)]
    return [_wrapped(line) if len(line) > LETTERS else line for line in lines]


def _checks(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs:
        for kind, result in run.every():
            for check in result.checks:
                if check.level != "pass":
                    found.append(f"{check.level.upper():<4} {run.name}, {kind}, {check.name}: {check.message}")
    return found or ["Every self-check passed."]


def _table(runs: Sequence[Run]) -> list[str]:
    names, same = settings(runs)
    columns = [m for m in measures(runs) if any(m.read(r).known for r in runs)]
    if len(runs) <= ACROSS:
        rows = [["", *(r.name for r in runs)]]
        rows += [[n, *(setting(r, n) for r in runs)] for n in names]
        rows += [[m.title, *(_text(m, r) for r in runs)] for m in columns]
        lines = _aligned(rows, (LETTERS - 30) // len(runs))
    else:
        lines = [*_aligned([["run", *names], *([r.name, *(setting(r, n) for n in names)] for r in runs)], 20), ""]
        # Several blocks of columns, one below the other, each with the runs' names.
        for i in range(0, len(columns), 6):
            block = columns[i : i + 6]
            rows = [["run", *(m.title for m in block)], *([r.name, *(_text(m, r) for m in block)] for r in runs)]
            lines += [*_aligned(rows, 23), ""]
    if same:
        lines += ["", _wrapped("The same in every run: " + "; ".join(f"{k} {v}" for k, v in same.items()) + ".")]
    return lines


def _text(measure: Measure, run: Run) -> str:
    value = measure.read(run)
    return value.missing.split(":")[0] if value.missing else " ".join(value.text()).strip()


def _aligned(rows: Sequence[Sequence[str]], widest: int) -> list[str]:
    """Return rows as columns of letters, each as wide as its longest cell and no wider than `widest`."""
    first = max(len(r[0]) for r in rows)
    limits = [min(first, 34)] + [min(max(len(str(r[i])) for r in rows), widest) for i in range(1, len(rows[0]))]

    def cell(text: Any, width: int) -> str:
        text = str(text)
        return (text if len(text) <= width else text[: width - 1] + "…").ljust(width)

    lines = ["  ".join(cell(t, w) for t, w in zip(row, limits, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("─" * w for w in limits), *lines[1:]]
