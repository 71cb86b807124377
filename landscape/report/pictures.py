"""A folder of figures: one for each kind of result that the runs have, with their captions beside them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import LandscapeError
from .aside import whole
from .effects import effects
from .paper import OVERLAID, Drawn, empty_figure, make_figure
from .references import bibtex
from .room import fold_labels
from .runs import Run, gather
from .sections import by_task
from .style import Style, fit, style_of, styled

#: What is drawn, in this order; kinds of the user's own follow.
ORDER = (
    "plane", "calibration", "training", "line", "eigenvalues", "density", "trajectory", "path", "connectivity",
    "recalibration", "sharpness", "layers", "trace",
)  # fmt: skip
#: Kinds whose numbers stand in tables, or that have no figure worth a page.
LEFT_OUT = frozenset({"performance", "sample_scores", "reference", "estimate", "frobenius"})
#: As many runs are drawn beside, and over, one another (chosen by us; the tables hold them all).
MOST_BESIDE, MOST_OVER, MOST_EFFECTS = 6, 7, 9
#: Dots an inch of pictures for a README (chosen by us: 10 inches become 1000 dots, which a page shows as they are).
SMALL = 100


def every_figure(runs: Sequence[Run], style: str | Style = "paper") -> Iterator[tuple[str, Drawn | LandscapeError]]:
    """Yield (name, figure) for each kind of result of these runs; the error where one can't be drawn."""
    kinds = [k for run in runs for k in run.results if run.get(k) is not None and k not in LEFT_OUT]
    for kind in sorted(dict.fromkeys(["training", *kinds]), key=lambda k: (ORDER.index(k) if k in ORDER else 99, k)):
        having = list(runs) if kind == "training" else [r for r in runs if r.get(kind) is not None]
        shown = having[: MOST_OVER if kind in OVERLAID else MOST_BESIDE]
        try:
            drawn = make_figure(shown, kind, style=style)
        except LandscapeError as error:
            if kind != "training":
                yield kind, error
            continue
        if len(having) > len(shown):
            drawn = _told(drawn, f" The first {len(shown)} of {len(having)} runs.")
        yield kind, drawn
    with contextlib.suppress(LandscapeError):
        yield "effects", effects_figure(runs, style_of(style))


def write_pictures(runs: Sequence[Run], folder: Path, form: str) -> list[Path]:
    """Write every figure into a folder, with captions.md and references.bib; the paths, the figures first."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise LandscapeError(f"{folder} can't be written: {error.strerror or error}; choose another place") from error
    paths, words, entries = [], ["# Captions and methods", ""], []
    for name, drawn in every_figure(runs):
        if isinstance(drawn, LandscapeError):
            words += [f"## {name}", "", f"Not drawn: {drawn}", ""]
            continue
        paths.append(whole(folder / f"{name}.{form}", drawn.save))
        words += [f"## {name}", "", drawn.caption, "", drawn.methods, ""]
        entries += drawn.bibtex.strip().split("\n\n")
    if not paths:
        raise LandscapeError("these archives hold nothing that could be drawn; landscape show says what they hold")
    references = "\n\n".join(dict.fromkeys(entries)) + "\n"
    paths.append(whole(folder / "captions.md", lambda p: p.write_text("\n".join(words), encoding="utf-8")))
    paths.append(whole(folder / "references.bib", lambda p: p.write_text(references, encoding="utf-8")))
    return paths


def write_two_pictures(paths: Sequence[str | os.PathLike[str]], folder: Path) -> list[Path]:
    """Write the two pictures that matter, for a README: surfaces.png and calibration.png, at most 150 kB each.

    Raises LandscapeError where no archive holds what is drawn, or the folder can't be written.
    """
    runs = gather(paths)
    style = replace(style_of("screen"), dpi=SMALL)
    return [
        whole(folder / f"{name}.png", make_figure(runs, what, style=style).save)
        for name, what in (("surfaces", "surface"), ("calibration", "recalibration"))
    ]


def _told(drawn: Drawn, more: str) -> Drawn:
    return replace(drawn, caption=drawn.caption + more)


def effects_figure(runs: Sequence[Run], style: Style, width: float | None = None) -> Drawn:
    """Return the main effects on each number, a panel each, the names of the effects beside the first of a row.

    Raises LandscapeError where no setting differs, or too few seeds were trained for an interval.
    """
    responses = [r for _, members in by_task(runs).items() for r in effects(members)[0]]
    found = [r for r in responses if any(e.low == e.low for e in r.found.main)][:MOST_EFFECTS]
    if not found:
        why = (
            "too few seeds for an interval" if responses else "these runs don't differ in a setting, or have no numbers"
        )
        raise LandscapeError(f"there are no effects to draw: {why}; landscape sweep --seeds 5 trains more")
    from .effects import rests_on
    from .figures.effects import draw_effects

    across = min(3 if (width or style.double) > 4.5 else 1, len(found))
    down = -(-len(found) // across)
    with styled(style):
        figure = empty_figure()
        rows = max(len(r.found.main) for r in found)
        figure.set_size_inches(width or style.double, down * (0.6 + 0.042 * style.font * rows) + 0.2)
        for i, response in enumerate(found):
            ax = draw_effects(response, ax=figure.add_subplot(down, across, i + 1), interactions=False)
            if i % across:
                ax.set_yticklabels([])
        fit(figure, style)
        for ax in figure.axes:
            if ax.get_xscale() == "linear":
                ax.locator_params(axis="x", nbins=3)
        fold_labels(figure)
    caption = (
        "What changes when one setting changes, averaged over the others, with 95% intervals over seeds: "
        f"{rests_on(found[0])}. The interactions stand in the tables."
    )
    how = (
        "Main effects are averaged over the other settings with equal weights; intervals are those of least squares "
        r"with bias-reduced standard errors clustered by seed \cite{pustejovsky2018small}, not corrected for their "
        "number."
    )
    return Drawn(figure, caption, how, bibtex(["pustejovsky2018small", "landscape-probe"]), style)
