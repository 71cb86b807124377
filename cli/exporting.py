"""`landscape export`: an archive in another program's format, or in its store."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command


@click.command(cls=Command, example="landscape export run.h5 -o surface.vtp --option height=log10")
@click.argument("archive", metavar="ARCHIVE", type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", metavar="FILE", type=click.Path(path_type=Path), help="File or folder.")
@click.option(
    "--format", "name", metavar="NAME",
    help="csv, parquet, tensorboard, loss-landscape, vtp, vtk, wandb or mlflow; by default what FILE's ending says.",
)  # fmt: skip
@click.option("--checkpoint", metavar="LABEL", help="Which checkpoint, where the archive holds several.")
@click.option("--option", "options", metavar="KEY=VALUE", multiple=True, help="Option of the format; repeatable.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
def command(
    archive: Path, out: Path | None, name: str | None, checkpoint: str | None, options: tuple[str, ...], force: bool
) -> None:
    """Write an archive in another program's format.

    \b
    csv, parquet    the training's record and results: a folder with a table for each quantity, events and
                    results; a FILE with that ending gets one table with a row for each number
    tensorboard     the same as a folder with an event file; options: points=10000 of each curve
    loss-landscape  the HDF5 surface file of tomgoldstein/loss-landscape
    vtp, vtk        a surface for ParaView; options: split=train|test, height=loss|log10|flat
    wandb           a run of Weights & Biases; options: project, entity, group, name, mode=offline, dir, columns=all
    mlflow          a run of MLflow; options: experiment, uri, name, columns=all

    The last two write no FILE: settings, numbers, the training's record and the archive itself go to the tracker.
    """
    from landscape.archive.convert import export_archive
    from landscape.archive.trackers import TRACKERS, export_to_tracker

    chosen = {}
    for text in options:
        key, sign, value = text.partition("=")
        if not (key and sign):
            raise click.UsageError(f"--option takes KEY=VALUE, such as height=log10; got {text!r}.")
        chosen[key] = value
    if name in TRACKERS:
        if out is not None:
            raise click.UsageError(f"{name} writes no file: leave -o out (its options: --option KEY=VALUE).")
        click.echo(export_to_tracker(archive, name, checkpoint=checkpoint, **chosen))
        return
    if out is None:
        raise click.UsageError("Say which file to write: -o surface.vtp; or --format wandb or mlflow.")
    if str(out) == "-":
        raise click.UsageError(
            "An export is a file or a folder, got the standard output (-): name one, such as run.csv."
        )
    click.echo(export_archive(archive, out, name, checkpoint=checkpoint, force=force, **chosen))
