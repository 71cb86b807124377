"""One process of a sweep: reads cells as lines of JSON from stdin, trains them, tells of them on stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from typing import Any, TextIO

from .stopping import Stop, listening

#: Seconds between two lines about the progress.
_TELL_SECONDS = 0.5


def main() -> int:
    """Work through the cells that stdin names; ends with stdin, or when asked to stop."""
    # What user code prints must not mix with our lines: they go to a descriptor of their own, stdout to stderr.
    stop = Stop()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines, listening(stop):
        os.dup2(2, 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        speaker = _Speaker(lines, stop)
        setup = json.loads(sys.stdin.readline() or "{}")
        if not setup:
            return 0
        return _work(setup, speaker, stop)


class _Speaker:
    """Writes lines; when nobody reads them any more, asks the training to stop: the sweep itself was killed."""

    def __init__(self, lines: TextIO, stop: Stop) -> None:
        self._lines, self._stop = lines, stop
        self._lock = threading.Lock()

    def tell(self, **message: Any) -> None:
        try:
            with self._lock:
                self._lines.write(json.dumps(message) + "\n")
                self._lines.flush()
        except (BrokenPipeError, ValueError):
            self._stop.ask(signal.SIGTERM)


def _work(setup: dict[str, Any], speaker: _Speaker, stop: Stop) -> int:
    from landscape.archive.schema import plain

    from .cell import How, Tell
    from .grid import Cell
    from .sources import Source
    from .study import attempt

    threading.Thread(target=_watch, daemon=True).start()
    source = Source(setup["task"])
    how = How(**setup["how"])
    if setup.get("seconds") is not None:
        stop.deadline = time.monotonic() + setup["seconds"]

    def telling() -> Tell:
        last = 0.0

        def tell(cell: Cell, training: Any) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= _TELL_SECONDS:
                last = now
                progress = {"step": training.step, "epoch": training.epoch, "loss": training.last_loss}
                speaker.tell(progress=plain({**progress, **training.metrics}))

        return tell

    for line in sys.stdin:
        message = json.loads(line)
        if message.get("end") or stop.asked:
            break
        cell = Cell.from_dict(message["cell"])
        result = attempt(
            cell, source, message["folder"], how, stop=stop, tell=telling(), say=lambda t: speaker.tell(say=t)
        )
        speaker.tell(result=plain(result.to_dict()))
        if stop.asked:
            break
    return 0


def _watch() -> None:
    """Find out that the sweep is gone, also while a long measurement says nothing."""
    parent = os.getppid()
    while True:
        time.sleep(1.0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)  # the handler runs in the main thread, and may interrupt it
            return


if __name__ == "__main__":
    sys.exit(main())
