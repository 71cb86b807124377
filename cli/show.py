"""`landscape show`: what archives hold, in words or as JSON."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command
from .output import json_line


@click.command(cls=Command, example="landscape show run.landscape.h5")
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...", type=click.Path(path_type=Path))
@click.option("--full", is_flag=True, help="Every number, setting, check and version of every result.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; NaN and inf as null, with a warning.")
def command(archives: tuple[Path, ...], full: bool, as_json: bool) -> None:
    """Print what archives hold.

    A table of the numbers with their uncertainty, a bar of reliability, how a training went, and the checks that
    aren't green. --full adds every setting, check, warning and where it came from. Several archives with --json are
    one object {"schema": 1, "archives": [...]}.
    """
    from landscape.archive.describe import archive_json, describe_archive
    from landscape.archive.reader import open_archive

    opened = [open_archive(path) for path in archives]
    if as_json:
        shown = [archive_json(archive) for archive in opened]
        click.echo(json_line(shown[0] if len(shown) == 1 else {"schema": 1, "archives": shown}))
    elif full:
        click.echo("\n\n".join(describe_archive(archive) for archive in opened))
    else:
        from .glance import archive_text

        click.echo("\n\n".join(archive_text(archive) for archive in opened))
