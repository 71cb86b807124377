"""One process of a run over several checkpoints: measures those that it is given, and tells what it finds at once."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

from ..workers.process import Speaker, serve
from ..workers.stopping import Stop


def _ready(setup: dict[str, Any], speaker: Speaker, stop: Stop) -> Callable[[dict[str, Any]], None]:
    from .measuring import Measuring  # what it imports, and what that prints, comes behind `serve`

    measuring = Measuring(setup, speaker, stop)
    warnings.showwarning = measuring.warn
    return measuring


if __name__ == "__main__":
    sys.exit(serve(_ready))
