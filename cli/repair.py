"""`landscape repair`: finish the archive of a run that was killed, or salvage a damaged one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from landscape.counted import counted
from landscape.errors import DamagedError

from .options import Command
from .output import say, warn


@click.command(cls=Command, example="landscape repair runs/a/run.h5")
@click.argument("archives", nargs=-1, required=True, metavar="ARCHIVE...", type=click.Path(path_type=Path))
def command(archives: tuple[Path, ...]) -> None:
    """Put what a killed run left beside its archive into it, or salvage a damaged archive.

    Nothing of a killed run has to be repaired to be read: show, watch, report and a resumed run join the archive with
    what lies beside it. Nothing is thrown away: the archive is written anew and renamed, and what can't be read is kept
    beside it.

    An archive that is damaged (bits that changed, a copy that was cut short) stays as it is. All of it that can be
    proven intact goes to run.salvaged.h5 beside it, and what is lost is said, line by line.
    """
    from landscape.archive.compaction import repair
    from landscape.archive.salvage import salvage

    for path in archives:
        try:
            done = repair(path)
        except DamagedError as error:
            say(str(error).partition(", so its numbers")[0])
            _tell_salvaged(path, salvage(path))
        else:
            _tell(path, done)


def _tell(path: Path, done: Any) -> None:
    if done.leftovers:
        say(f"{path}: the archive held every row already; removed what was left beside it")
    else:
        rows = sum(done.rows.values())
        say(
            f"{path}: {counted(rows, 'row')} of {counted(len(done.rows), 'quantity', 'quantities')}, "
            f"{counted(done.events, 'event')} and {counted(done.results, 'result')} of probes went into the archive"
        )
        for quantity, count in done.rows.items():
            say(f"  {quantity}: {counted(count, 'row')}")
        if done.torn and done.damaged:
            torn = counted(done.torn, "byte at the end fits", "bytes at the end fit")
            say(f"  {torn} no checksum: the rows in there are lost")
        elif done.torn:
            torn = counted(done.torn, "byte at the end was", "bytes at the end were")
            say(f"  {torn} torn when the run was killed: no whole row was among them")
    for kept in done.damaged:
        warn(f"a file was damaged, and is kept as {kept}")
    say(f"status: {done.status}")
    click.echo(done.path)


def _tell_salvaged(path: Path, done: Any) -> None:
    if done.mended:
        one = done.mended == 1
        pages = "1 damaged page of 4 KB was" if one else f"{done.mended:,} damaged pages of 4 KB were"
        say(f"{pages} mended by parity, and {'fits its checksum' if one else 'fit their checksums'}")
    for line in done.lost:
        say(f"  lost: {line}")
    if not done.lost:
        say("nothing is lost: everything that was measured is there again")
    if not done.proven:
        warn("its checksums are gone, or it never had any: what was kept can be read, and is unproven")
    if done.rows is not None:
        _tell(done.path, done.rows)
    else:
        click.echo(done.path)
    say(f"{path} is as it was; to go on with {done.path.name} in its place, rename it")
