"""`landscape export`: an archive in another program's format."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command


@click.command(cls=Command, example="landscape export run.h5 -o surface.vtp --option height=log10")
@click.argument("archive", metavar="ARCHIVE", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The file to write."
)
@click.option(
    "--format", "name", metavar="NAME", help="loss-landscape, vtp or vtk; by default what FILE's ending says."
)
@click.option("--checkpoint", metavar="LABEL", help="Which checkpoint, where the archive holds several.")
@click.option("--option", "options", metavar="KEY=VALUE", multiple=True, help="Option of the format; repeatable.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def command(
    archive: Path, out: Path, name: str | None, checkpoint: str | None, options: tuple[str, ...], force: bool
) -> None:
    """Write an archive in another program's format.

    \b
    loss-landscape  the HDF5 surface file of tomgoldstein/loss-landscape
    vtp, vtk        a surface for ParaView; options: split=train|test, height=loss|log10|flat
    """
    from landscape.archive.convert import export_archive

    chosen = {}
    for text in options:
        key, sign, value = text.partition("=")
        if not (key and sign):
            raise click.UsageError(f"--option takes KEY=VALUE, such as height=log10; got {text!r}.")
        chosen[key] = value
    click.echo(export_archive(archive, out, name, checkpoint=checkpoint, force=force, **chosen))
