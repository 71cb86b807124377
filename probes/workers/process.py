"""One worker's side: reads jobs as lines of JSON from stdin, does them, tells of them on stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from landscape.side_by_side import share_memory

from .stopping import Stop, listening


class Speaker:
    """Writes lines; when nobody reads them any more, asks the work to stop: whoever gave it was killed."""

    def __init__(self, lines: TextIO, stop: Stop) -> None:
        self._lines, self._stop = lines, stop
        self._lock = threading.Lock()

    def tell(self, **message: Any) -> None:
        """Write one line. A signal that would interrupt at once waits until the line is whole."""
        before, self._stop.at_once = (self._stop.at_once, self._stop.signal), False
        try:
            with self._lock:
                self._lines.write(json.dumps(message) + "\n")
                self._lines.flush()
        except (OSError, ValueError):  # a broken pipe, which Windows calls an invalid argument
            self._stop.ask(signal.SIGTERM)
        finally:
            self._stop.at_once = before[0]
        if self._stop.at_once and self._stop.signal and not before[1]:
            raise KeyboardInterrupt


def serve(ready: Callable[[dict[str, Any], Speaker, Stop], Callable[[dict[str, Any]], None]]) -> int:
    """Do the jobs that stdin names; ends with stdin, or when asked to stop.

    `ready` is given the first line, and returns what does a job; all that a job has to say it tells the speaker.
    """
    # What user code prints must not mix with our lines: they go to a descriptor of their own, stdout to stderr.
    stop = Stop()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as lines, listening(stop):
        os.dup2(2, 1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        setup = json.loads(sys.stdin.readline() or "{}")
        if not setup:
            return 0
        threading.Thread(target=_watch, daemon=True).start()
        # Behind what is installed, so that nothing of it is hidden: where whoever gives the work finds its modules.
        sys.path += [p for p in setup.pop("path") if p not in sys.path]
        share_memory(**setup.pop("sharing"))
        do = ready(setup, Speaker(lines, stop), stop)
        for line in sys.stdin:
            message = json.loads(line)
            if message.get("end") or stop.asked:
                break
            do(message)
            if stop.asked:
                break
    return 0


def _watch() -> None:
    """Find out that whoever gave the work is gone, also while a long measurement says nothing."""
    parent = os.getppid()
    while True:
        time.sleep(1.0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)  # the handler runs in the main thread, and may interrupt it
            return
