"""`landscape report`: archives as one page."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command
from .output import check_page


@click.command(cls=Command, example="landscape report a.landscape.h5 b.landscape.h5 -o report.html")
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
    help="The page to write.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace the page if it exists.")
def command(archives: tuple[Path, ...], out: Path, force: bool) -> None:
    """Draw archives as one self-contained HTML page.

    The page opens from disk without a network: the table of runs, the surfaces on one scale, eigenvalues,
    reliability diagrams, provenance and warnings.
    """
    from landscape.report.page import write_report

    check_page(str(out), force=force)
    write_report(archives, out)
    click.echo(out)
