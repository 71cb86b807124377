"""The end of a recorded run: its archive is finished; also where nobody closed it, and the program ends."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from landscape.archive.compaction import compact
from landscape.errors import ArchiveError

from .opening import Opened
from .probe import Run
from .sink import Sink


def finish(
    path: Path, run: Run, sink: Sink, opened: Opened, status: str, over_budget: Iterable[str], seconds: float
) -> str | None:
    """Put the rows into the archive, give it this status, and let others write it; returns what went wrong, None if
    nothing. `over_budget` is noted; `seconds` were spent recording, in all sessions.
    """
    sink.open()
    for told in over_budget:
        sink.event(run.step, "over_budget", told)
    if sink.lost:
        sink.event(run.step, "lost_rows", f"{sink.lost} rows could not be written")
    problem = sink.close()
    elapsed = sink.earlier + sink.elapsed
    try:
        compact(
            path,
            status,
            lost_rows=sink.lost,
            sessions=opened.session + 1,
            steps=run.step,
            epochs=run.epoch,
            seconds=round(elapsed, 3),
            seconds_recording=round(seconds, 3),
        )
    except ArchiveError as error:
        problem = str(error)
    finally:
        opened.release()  # not before: a reader shall not take a run for a killed one while it is compacted
    return problem


class Closable(Protocol):
    """A recording, as far as its end goes."""

    #: Whether a step was taken or anything logged.
    began: bool

    def close(self, status: str = ...) -> None:
        """Finish the archive with this status; a second call does nothing."""

    def withdraw(self) -> None:
        """Detach, and leave no archive; nothing was recorded."""


def close_at_exit(recording: Closable, sink: Sink, opened: Opened) -> None:
    """Finish the archive of a loop that ended without `close`: the program did not say that all went well.

    Where no loop ever began, nothing is left.
    """
    own, process = weakref.ref(recording), os.getpid()

    def close() -> None:
        found = own()
        if found is not None and os.getpid() == process:  # a forked child's end is not the training's
            if found.began:
                found.close("interrupted")
            else:
                found.withdraw()

    atexit.register(close)
    # One that nobody holds any more, its model and optimizer gone: its rows are written, and its archive is free; where
    # there are none, it is gone too.
    forgotten = weakref.finalize(recording, _abandon, sink, opened, close)
    forgotten.atexit = False


def _abandon(sink: Sink, opened: Opened, close: Callable[[], None]) -> None:
    atexit.unregister(close)
    if sink.empty:
        opened.undo()
        return
    sink.close()
    opened.release()
