"""Signals and deadlines as a wish to stop, which a training grants at its next step, when it can save itself."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

#: Clusters warn with one of these before they kill (Slurm: --signal=USR1@120, or SIGTERM); Ctrl-C is SIGINT, Windows'
#: Ctrl-Break SIGBREAK.
SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")


class Stop:
    """Whether a training shall save itself and leave: `signal` is the number of the signal that asked, 0 for none.

    `deadline` is a time of time.monotonic().
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.signal = 0
        self.deadline = deadline
        #: Whether a signal is raised as KeyboardInterrupt at once, for what can't look at `asked` (measurements).
        self.at_once = False

    def ask(self, number: int) -> None:
        """Ask for the training to stop, as this signal does."""
        self.signal = number

    @property
    def asked(self) -> bool:
        """Whether to stop now."""
        return bool(self.signal) or self.late

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    @property
    def why(self) -> str:
        """The reason in words."""
        if self.signal:
            return f"stopped by {signal.Signals(self.signal).name}"
        return "the time limit came first"


@contextlib.contextmanager
def at_once(stop: Stop) -> Iterator[None]:
    """Let a signal that asks `stop` interrupt what is inside; one that has asked already does so at the entry."""
    stop.at_once = True
    try:
        if stop.signal:
            raise KeyboardInterrupt
        yield
    finally:
        stop.at_once = False


class Interrupted(Exception):
    """A training saved itself and left because it was asked to."""


@contextlib.contextmanager
def listening(stop: Stop, names: Sequence[str] = SIGNALS) -> Iterator[Stop]:
    """Let signals ask `stop` inside; a second Ctrl-C is a KeyboardInterrupt at once.

    Outside the main thread nothing is listened to: whoever runs us there keeps the signals.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        again = bool(stop.signal) and number == signal.SIGINT
        stop.ask(number)
        if again or stop.at_once:
            raise KeyboardInterrupt

    before: dict[int, Any] = {}
    try:
        for name in names:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    except ValueError:
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
