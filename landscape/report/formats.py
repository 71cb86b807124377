"""A report in the format that its reader wants: a page, a PDF, a folder of figures, Markdown, CSV or JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import LandscapeError
from .aside import whole
from .runs import Run, gather

#: Format -> what it is, for help pages; the endings of files are the formats' names, and those of SUFFIXES.
FORMATS = {
    "html": "one self-contained page with figures that turn and zoom",
    "pdf": "tables, and vector figures with their captions",
    "png": "a folder of figures",
    "svg": "a folder of vector figures",
    "md": "tables for a pull request",
    "csv": "one row for each run, every number with its uncertainty",
    "json": "the same as one object",
}
SUFFIXES = {".htm": "html", ".markdown": "md"}


def format_of(out: str | os.PathLike[str], name: str | None = None) -> str:
    """Return the format that is named, or that the ending of `out` says. Raises LandscapeError for an unknown one."""
    known = ", ".join(FORMATS)
    if name is not None:
        if name not in FORMATS:
            raise LandscapeError(f"there is no report format {name!r}; there are {known}")
        return name
    suffix = Path(out).suffix.lower()
    found = SUFFIXES.get(suffix, suffix.removeprefix("."))
    if found not in FORMATS:
        if Path(out).is_dir():
            raise LandscapeError(f"{out} is a folder, expected a file such as {Path(out) / 'report.html'}")
        raise LandscapeError(
            f"the ending of {out} tells no report format: let it be one of {known}, or give landscape report --format"
        )
    return found


def target_of(out: str | os.PathLike[str], form: str) -> Path:
    """Return the file, or the folder of figures, that a report in this format is written to."""
    path = Path(out)
    return path.with_suffix("") if form in ("png", "svg") and path.suffix.lower() == f".{form}" else path


def write_report(
    paths: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    title: str | None = None,
    force: bool = True,
) -> Path:
    """Write one report about the runs in these archives, and return where: by its ending a page or another of FORMATS.

    Each archive may hold several checkpoints, and each checkpoint is a row; what an archive lacks is said there. An
    .html file is one self-contained page, about 5 MB of it Plotly's own script, so that figures can be turned and
    hovered without a network; "figures.png" is a folder of figures. Torch is not imported. A report that is there is
    replaced, because it can be made anew from the archives at any time; force=False refuses to.

    Raises as `write_report_as`.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    write_report_as(listed, out, title=title, force=force)
    return target_of(out, format_of(out))


def check_report(out: str | os.PathLike[str], *, force: bool) -> None:
    """Refuse a report that could not be written in the end, before anything is measured. Raises LandscapeError."""
    form = format_of(out)
    check_target(target_of(out, form), form, force=force)


def write_report_as(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    form: str | None = None,
    *,
    title: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write a report about these archives in a format of FORMATS, by default that of the ending; what was written.

    `out` "figures.png" or a folder with form="png" is a folder of figures. Files appear whole or not at all. Raises
    ArchiveError where there is no archive or one can't be read, LandscapeError for an unknown format, and where `out`
    exists and is not to be replaced, or can't be written.
    """
    form = format_of(out, form)
    target = target_of(out, form)
    check_target(target, form, force=force)
    runs = gather(paths)
    if form in ("png", "svg"):
        from .pictures import write_pictures

        return write_pictures(runs, target, form)
    if form == "pdf":
        from .booklet import write_booklet

        return [whole(target, lambda aside: write_booklet(runs, aside, title=title))]
    text = _text(runs, form, title)
    return [whole(target, lambda aside: aside.write_text(text, encoding="utf-8", newline=""))]


def _text(runs: Sequence[Run], form: str, title: str | None) -> str:
    if form == "html":
        from .page import render_report

        return render_report(runs, title=title)
    if form == "md":
        from .markdown import markdown

        return markdown(runs, title=title)
    from .tables import as_csv, as_json

    return as_csv(runs) if form == "csv" else as_json(runs)


def check_target(target: Path, form: str, *, force: bool) -> None:
    """Refuse a place where the report can't be written, before anything is read or drawn."""
    folder = form in ("png", "svg")
    parent = target.parent
    if folder and target.exists() and not target.is_dir():
        raise LandscapeError(f"{target} is a file, expected a folder for the figures; choose another name")
    if not folder and target.is_dir():
        raise LandscapeError(f"{target} is a folder, expected a file such as {target / f'report.{form}'}")
    if not parent.is_dir():
        raise LandscapeError(f"the folder {parent} does not exist; create it, or write somewhere else")
    taken = target.is_dir() and any(target.glob(f"*.{form}")) if folder else target.exists()
    if taken and not force:
        what = "holds figures" if folder else "exists"
        raise LandscapeError(
            f"{target} {what}; pass --force to replace {'them' if folder else 'it'}, or choose another name"
        )
    if not os.access(target if target.exists() else parent, os.W_OK):
        raise LandscapeError(f"{target} cannot be written: permission denied")
