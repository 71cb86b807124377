"""`landscape show`: what archives hold, in words or as JSON."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command
from .output import json_line


@click.command(cls=Command, example="landscape show run.landscape.h5")
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; NaN and inf as null, with a warning.")
def command(archives: tuple[Path, ...], as_json: bool) -> None:
    """Print what archives hold.

    Every number comes with its uncertainty, its checks, its warnings and where it came from. Several archives
    with --json are one object {"schema": 1, "archives": [...]}.
    """
    from landscape.archive.describe import archive_json, describe_archive
    from landscape.archive.reader import open_archive

    opened = [open_archive(path) for path in archives]
    if as_json:
        shown = [archive_json(archive) for archive in opened]
        click.echo(json_line(shown[0] if len(shown) == 1 else {"schema": 1, "archives": shown}))
    else:
        click.echo("\n\n".join(describe_archive(archive) for archive in opened))
