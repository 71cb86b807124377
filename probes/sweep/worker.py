"""One process of a sweep: trains the cells that it is given, and tells how far they are and what came of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from ..workers.process import Speaker, serve
from ..workers.stopping import Stop

#: Seconds between two lines about the progress.
_TELL_SECONDS = 0.5


def _ready(setup: dict[str, Any], speaker: Speaker, stop: Stop) -> Callable[[dict[str, Any]], None]:
    from landscape.archive.schema import plain

    from .cell import How, Tell
    from .grid import Cell
    from .sources import Source
    from .study import attempt

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

    def train(message: dict[str, Any]) -> None:
        cell = Cell.from_dict(message["cell"])
        result = attempt(
            cell, source, message["folder"], how, stop=stop, tell=telling(), say=lambda t: speaker.tell(say=t)
        )
        speaker.tell(result=plain(result.to_dict()))

    return train


if __name__ == "__main__":
    sys.exit(serve(_ready))
