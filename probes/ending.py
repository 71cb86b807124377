"""The end of a recorded run that nobody closed: the program ends, or nobody holds the recorder any more."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable
from typing import Protocol

from .opening import Opened
from .sink import Sink


class Closable(Protocol):
    """A recorder, as far as its end goes."""

    #: Whether a step was taken or anything logged.
    began: bool

    def close(self, status: str = ...) -> None:
        """Finish the archive with this status; a second call does nothing."""

    def withdraw(self) -> None:
        """Detach, and leave no archive; nothing was recorded."""


def close_at_exit(recorder: Closable, sink: Sink, opened: Opened) -> None:
    """Finish the archive of a loop that ended without `close`: the program did not say that all went well.

    Where no loop ever began, nothing is left.
    """
    own, process = weakref.ref(recorder), os.getpid()

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
    forgotten = weakref.finalize(recorder, _abandon, sink, opened, close)
    forgotten.atexit = False


def _abandon(sink: Sink, opened: Opened, close: Callable[[], None]) -> None:
    atexit.unregister(close)
    if sink.empty:
        opened.undo()
        return
    sink.close()
    opened.release()
