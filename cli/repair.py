"""`landscape repair`: finish the archive of a run that was killed."""

from __future__ import annotations

from pathlib import Path

import click

from .options import Command
from .output import say, warn


@click.command(cls=Command, example="landscape repair runs/a/run.h5")
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...", type=click.Path(path_type=Path))
def command(archives: tuple[Path, ...]) -> None:
    """Put what a killed run left beside its archive into it.

    Nothing has to be repaired to be read: show, watch, report and a resumed run join the archive with what lies beside
    it. Nothing is thrown away: the archive is written anew and renamed, and what can't be read is kept beside it.
    """
    from landscape.archive.compaction import repair

    for path in archives:
        done = repair(path)
        if done.leftovers:
            say(f"{path}: the archive held every row already; removed what was left beside it")
        else:
            rows = sum(done.rows.values())
            say(
                f"{path}: {rows:,} rows of {len(done.rows)} quantities, {done.events:,} events and {done.results:,} "
                f"results of probes went into the archive"
            )
            for quantity, count in done.rows.items():
                say(f"  {quantity}: {count:,} rows")
            if done.torn:
                say(f"  {done.torn:,} bytes at the end were torn when the run was killed: no whole row was among them")
        for kept in done.damaged:
            warn(f"a file was damaged, and is kept as {kept}")
        say(f"status: {done.status}")
        click.echo(done.path)
