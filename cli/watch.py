"""`landscape watch`: a training run as it happens, in the terminal."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Command, Duration

if TYPE_CHECKING:
    from landscape.archive.watching import Watched

#: Looks in a row at which nobody writes a run before it counts as killed: it may just be beginning.
_KILLED_AFTER = 2


@click.command(cls=Command, example="landscape watch runs/a/run.h5")
@click.argument("archive", metavar="ARCHIVE", type=click.Path(path_type=Path))
@click.option("--every", type=Duration(), default="2s", help="Time between two looks.")
@click.option("--once", is_flag=True, help="Print one frame and exit.")
@click.option(
    "--ascii", "plain", is_flag=True, help="Draw without braille dots; the default where they can't be shown."
)
@click.option("--width", type=click.IntRange(30), help="Columns; by default the terminal's.")
@click.option("--height", type=click.IntRange(10), help="Lines; by default the terminal's.")
def command(archive: Path, every: float, once: bool, plain: bool, width: int | None, height: int | None) -> None:
    """Follow a training run: losses, gradient norms, curvature, speed and events.

    Reads what the recorder has written, while it writes, and ends with the run; Ctrl-C ends the watching alone. Runs
    that have ended or were killed are shown as they ended. In a pipe it prints a line whenever something is new.
    """
    from landscape.archive.watching import Watched
    from landscape.report.textplot import Pen
    from landscape.report.watching import frame

    watched = Watched(archive)
    terminal = sys.stdout.isatty()
    pen = Pen(braille=not plain and _has_braille(), colour=terminal and not os.environ.get("NO_COLOR"))

    def lines() -> list[str]:
        size = shutil.get_terminal_size((100, 30))
        # The line under the last one is the prompt's.
        return frame(watched, width or size.columns, height or max(size.lines - 1, 10), pen)

    try:
        if once:
            watched.refresh()
        elif terminal:
            _follow_on_screen(watched, every, lines)
        else:
            _follow_in_a_pipe(watched, every)
    except KeyboardInterrupt as stop:
        if type(stop) is not KeyboardInterrupt:
            raise  # somebody else's signal: it is no way to end the watching
    click.echo("\n".join(lines()))


def _looks(watched: Watched, every: float) -> Iterator[None]:
    """Look again and again until the run has ended."""
    silent = 0
    while True:
        standing = watched.refresh()
        silent = silent + 1 if standing.status == "killed" else 0
        if standing.ended and (standing.status != "killed" or silent >= _KILLED_AFTER):
            return
        yield
        time.sleep(every)


def _follow_on_screen(watched: Watched, every: float, lines: Callable[[], list[str]]) -> None:
    with _screen():
        for _ in _looks(watched, every):
            text = "\x1b[K\n".join(lines())
            click.echo(f"\x1b[H{text}\x1b[K\x1b[J", nl=False, color=True)
            sys.stdout.flush()


def _follow_in_a_pipe(watched: Watched, every: float) -> None:
    from landscape.report.watching import summary

    said = -1
    for _ in _looks(watched, every):
        if watched.standing.step != said:
            said = watched.standing.step
            click.echo(summary(watched))
            sys.stdout.flush()


@contextlib.contextmanager
def _screen() -> Iterator[None]:
    """Draw on the terminal's other screen, without a cursor, and go back in the end."""
    sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")
    try:
        yield
    finally:
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()


def _has_braille() -> bool:
    """Whether stdout takes braille dots: an encoding without them, and Linux's own console, do not."""
    if os.environ.get("TERM") in ("linux", "dumb", "vt100"):
        return False
    try:
        "\u28ff│·".encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True
