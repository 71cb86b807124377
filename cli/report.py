"""`landscape report`: archives as a page, a PDF, figures, Markdown or tables."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command
from .output import say


@click.command(cls=Command, example="landscape report a.landscape.h5 b.landscape.h5 -o report.html")
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
    help="What to write; its ending is the format. figures.png is a folder of figures.",
)  # fmt: skip
@click.option("--format", "form", metavar="NAME", help="html, pdf, png, svg, md, csv or json, whatever the ending.")
@click.option("--title", help="In place of what was compared.")
@click.option("--force", is_flag=True, help="Replace what exists.")
@click.option(
    "--watch", is_flag=True, help="Write again whenever an archive grows, until Ctrl-C or all runs have ended."
)
@click.option(
    "--every", type=click.FloatRange(min=1), default=30.0, show_default=True, help="Seconds between looks with --watch."
)
def command(
    archives: tuple[Path, ...], out: Path, form: str | None, title: str | None, force: bool, watch: bool, every: float
) -> None:
    """Draw archives as one self-contained HTML page, or in another format.

    The page opens from disk without a network: the table of runs, the surfaces on one scale, eigenvalues,
    reliability diagrams, provenance and warnings.

    \b
    html      the page, with figures that turn and zoom
    pdf       tables, and vector figures with their captions
    png, svg  a folder of figures with captions.md and references.bib
    md        tables for a pull request
    csv       a row for each run, every number with its uncertainty
    json      the same as one object, with the effects of the settings
    """
    from landscape.report.formats import write_report_as

    for path in write_report_as(archives, out, form, title=title, force=force):
        click.echo(path)
    if watch:
        from landscape.report.rewriting import rewrites

        for _ in rewrites(archives, lambda: write_report_as(archives, out, form, title=title, force=True), every=every):
            say(f"written again: {out}")
