"""Write a file beside its target, then rename it: a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

from ..errors import LandscapeError


def whole(target: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file beside the target, then rename it, with the permissions of one that it replaces.

    Raises LandscapeError where it can't be written.
    """
    aside = target.with_name(f".{target.stem}.{uuid.uuid4().hex[:8]}.partial{target.suffix}")
    try:
        try:
            mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
            write(aside)
            if mode is not None:
                aside.chmod(mode)
            os.replace(aside, target)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise LandscapeError(f"{target} can't be written: {error.strerror or error}; choose another place") from error
    return target
