"""THE figure for a paper: one kind of result of one or several runs, with its caption, its methods and its BibTeX."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LandscapeError
from . import captions, methods
from .aside import whole
from .palette import RUN_COLORS
from .panels import draw_beside, draw_over, drawing
from .references import bibtex, cited
from .room import fold_labels
from .runs import Run, gather
from .style import Style, fit, style_of, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What people call a kind of result.
ALIASES = {
    "surface": "plane",
    "landscape": "plane",
    "contour": "plane",
    "slice": "line",
    "barriers": "connectivity",
    "spectrum": "eigenvalues",
    "reliability": "calibration",
    "history": "training",
    "curves": "training",
    "ablation": "effects",
    "settings": "effects",
}
#: Kinds that are laid over one another unless asked otherwise: a curve each, on one axis.
OVERLAID = frozenset({"line", "density", "training"})
#: More panels than this are refused (chosen by us: in two columns a panel of twelve is 1.7 inches wide).
MOST_PANELS = 12
SUFFIXES = (".pdf", ".svg", ".png")


@dataclass(frozen=True)
class Drawn:
    """A figure with the words that belong to it; `style` is what it must be saved within."""

    figure: Figure
    caption: str
    methods: str
    bibtex: str
    style: Style

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the figure as .pdf, .svg or .png, the same bytes for the same numbers."""
        stamp = {".pdf": "CreationDate", ".svg": "Date"}.get(Path(path).suffix.lower())
        with styled(self.style):
            metadata: Any = {stamp: None} if stamp else None
            self.figure.savefig(path, dpi=self.style.dpi, metadata=metadata)

    def text(self) -> str:
        """Return caption and methods as they are written beside the figure."""
        return f"Caption\n\n{self.caption}\n\nMethods\n\n{self.methods}\n"


def make_figure(
    runs: Sequence[Run] | Sequence[str | os.PathLike[str]],
    what: str,
    *,
    style: str | Style = "paper",
    column: str | None = None,
    overlay: bool | None = None,
    projection: str | None = None,
    view: tuple[float, float] | None = None,
    zlim: tuple[float, float] | None = None,
    scale: str = "auto",
    quantity: str | None = None,
    width: float | None = None,
    height: float | None = None,
    titles: bool | None = None,
) -> Drawn:
    """Return the figure of one kind of result of these runs (or of the archives at these paths).

    Args:
        what: a kind of result (`plane`, `eigenvalues`, ...), "surface" and others of `ALIASES`, "training" for the
            record of a training, or "effects" for what each setting of a sweep does.
        style: paper, screen or talk.
        column: "single" or "double"; by default double for several panels.
        overlay: all runs on one axis, or a panel each; by default overlaid where a run is a curve.
        projection, view, zlim, scale, quantity: of a plane or a line, as in `landscape.draw`. `view` (elevation,
            azimuth in degrees) makes a plane a surface; several planes always share one scale. Of a training,
            `quantity` names the panels, with commas between them: loss, learning_rate, gradient_norm, lambda_max
            (against its threshold), or any that was recorded, such as "update.ratio".
        width, height: in inches, in place of the style's.
        titles: a name above each panel; by default where there are several.

    Raises LandscapeError where no run has such a result, or the choices don't fit it.
    """
    chosen, kind = style_of(style), ALIASES.get(what, what)
    listed = [r for r in runs if isinstance(r, Run)] or gather([p for p in runs if not isinstance(p, Run)])
    if kind == "effects":
        from .pictures import effects_figure

        return effects_figure(listed, chosen, width or chosen.width(column or "double"))
    found = _found(listed, kind, what)
    if view is not None and projection is None and kind == "plane":
        projection = "3d"
    options = {"projection": projection, "view": view, "zlim": zlim, "quantity": quantity}
    options = {k: v for k, v in options.items() if v is not None}
    panes: list[Any] = []
    if kind == "training":
        from .figures.record import panels_of

        for name in options.keys() - {"quantity"}:
            raise LandscapeError(f"the figure of a training has no {name}: leave --{name} out")
        if overlay is False:
            raise LandscapeError("the trainings share each panel: leave --beside out, or choose one with --checkpoint")
        panes = panels_of(found, quantity)
    else:
        options = _checked(kind, options, scale)
    together = kind in OVERLAID if overlay is None else overlay
    if together and kind not in OVERLAID | {"eigenvalues", "calibration", "layers"} and len(found) > 1:
        raise LandscapeError(f"{kind} results can't be laid over one another; leave --overlay out for a panel each")
    together = together and len(found) > 1
    if together and len(found) > len(RUN_COLORS):
        raise LandscapeError(
            f"{len(found)} runs on one axis can't be told apart, at most {len(RUN_COLORS)}: choose with --checkpoint"
        )
    if len(found) > MOST_PANELS and not together:
        raise LandscapeError(f"{len(found)} panels don't fit a figure, at most {MOST_PANELS}: choose with --checkpoint")
    panels = len(panes) if kind == "training" else 1 if together else len(found)
    inches = width or chosen.width(column or ("double" if panels > 1 else "single"))
    with styled(chosen):
        figure = empty_figure()
        if kind == "training":
            from .figures.record import draw_records

            draw_records(figure, found, panes, inches, height, scale)
            words = ""
        elif together:
            words = draw_over(figure, kind, found, options, (inches, height or 0.68 * inches))
        else:
            named = len(found) > 1 if titles is None else titles
            words = draw_beside(figure, kind, found, options, inches, height, chosen, named)
        fit(figure, chosen)
        fold_labels(figure)
    results = [r for _, r in found]
    if kind == "training":
        text, how, keys = captions.training(found, panes)
        return Drawn(figure, text, how, bibtex(cited([], *keys)), chosen)
    text = captions.caption(found, quantity or "loss", words)
    return Drawn(figure, text, methods.methods(found), bibtex(cited(results)), chosen)


def write_figure(
    runs: Sequence[Run] | Sequence[str | os.PathLike[str]],
    what: str,
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    words: bool = True,
    **options: Any,
) -> list[Path]:
    """Write the figure of `make_figure`, and beside it caption and methods (.txt) and references (.bib); their paths.

    The format is that of the suffix of `out`: .pdf, .svg or .png. Raises LandscapeError for another one, for files that
    exist and are not to be replaced, and for a place that can't be written.
    """
    target = Path(out)
    if target.suffix.lower() not in SUFFIXES:
        raise LandscapeError(f"{target} must end in one of {', '.join(SUFFIXES)}: the ending is the format")
    paths = [target, *([target.with_suffix(".txt"), target.with_suffix(".bib")] if words else [])]
    for path in paths:
        if path.is_dir():
            raise LandscapeError(f"{path} is a folder, expected a file")
        if path.exists() and not force:
            raise LandscapeError(f"{path} exists; choose another name, or replace it with --force")
    drawn = make_figure(runs, what, **options)
    whole(target, drawn.save)
    try:
        for path, text in zip(paths[1:], (drawn.text(), drawn.bibtex), strict=False):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LandscapeError(f"{target} can't be written: {error.strerror or error}; choose another place") from error
    return paths


# ------------------------------------------------------------------------------------------------ parts


def _found(runs: Sequence[Run], kind: str, what: str) -> list[tuple[Run, Any]]:
    if kind == "training":
        found = [(run, record) for run in runs if (record := _record(run))]
        # An archive's record belongs to the training, not to each of its checkpoints.
        return list({run.archive: (run, record) for run, record in reversed(found)}.values())[::-1] or _nothing(
            runs, what
        )
    return [(run, result) for run in runs if (result := run.get(kind)) is not None] or _nothing(runs, what)


def _nothing(runs: Sequence[Run], what: str) -> Any:
    known = [kind for run in runs for kind in run.results if run.get(kind) is not None]
    if any(_record(run) for run in runs):
        known.append("training")
    told = list(dict.fromkeys(known))
    failed = {run.missing(ALIASES.get(what, what)) for run in runs} - {"not measured"}
    close = difflib.get_close_matches(what, [*told, *(a for a, kind in ALIASES.items() if kind in told)], n=1)
    why = f" ({'; '.join(sorted(failed))})" if failed else ""
    raise LandscapeError(
        f"there is no {what} to draw{why}; these archives have {', '.join(told) or 'no results'}"
        + ("; plane is also called surface" if "plane" in told and what != "surface" else "")
        + (f"; did you mean {close[0]}?" if close else "")
    )


def _record(run: Run) -> Any:
    """Return the training record of a run's archive, None where it has none."""
    if not run.archive or not Path(run.archive).exists():
        return None
    from ..archive.reader import open_archive

    return getattr(open_archive(run.archive), "history", None) or None


def empty_figure() -> Figure:
    """Return a figure that no pyplot knows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _checked(kind: str, options: dict[str, Any], scale: str) -> dict[str, Any]:
    """Refuse what the drawing of this kind doesn't know, by name."""
    known = inspect.signature(drawing(kind)).parameters
    if scale != "auto":
        options = {**options, "scale": scale}
    for name in options:
        if name not in known and not (name == "zlim" and kind == "line"):
            raise LandscapeError(f"the figure of {kind} has no {name}: leave --{name} out")
    return options
