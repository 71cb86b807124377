"""`landscape import`: another program's file as an archive."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command
from .output import say


@click.command(cls=Command, example="landscape import surface.h5 -o run.h5")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", metavar="ARCHIVE", type=click.Path(path_type=Path), help="The archive to write.")
@click.option(
    "--directions", metavar="FILE", type=click.Path(path_type=Path),
    help="Its direction file; by default the one that FILE names, there or beside it.",
)  # fmt: skip
@click.option("--name", metavar="TEXT", help="What reports call it; by default FILE's name.")
@click.option("--append", is_flag=True, help="Add to an archive that exists.")
@click.option("--force", is_flag=True, help="Replace an archive that exists.")
def command(
    source: Path, out: Path | None, directions: Path | None, name: str | None, append: bool, force: bool
) -> None:
    """Read a surface file of tomgoldstein/loss-landscape into an archive.

    Lines, planes and eigenvalue maps become results like our own. What the file doesn't tell (the checkpoint's own
    loss, standard errors, the number of samples) is missing there, and said.
    """
    if append and force:
        raise click.UsageError("--append adds to the archive, --force replaces it: give one of them.")
    from landscape.archive.loss_landscape import read_surface
    from landscape.archive.save import save_archive
    from landscape.archive.schema import Subject

    found = read_surface(source, directions)
    target = out if out is not None else source.with_name(f"{source.name}.landscape.h5")
    subject = Subject(name=name or found.name, facts={"imported_from": "loss-landscape"})
    run = {"imported_from": "loss-landscape", "file": source.name}
    save_archive(target, found.results, subject=subject, run=run, append=append, force=force)
    for text in dict.fromkeys(n for r in found.results for n in r.notes):
        say(f"note: {text}")
    click.echo(target)
