"""Paths as people read them."""

from __future__ import annotations

import os


def relative(path: str | os.PathLike[str], to: str | os.PathLike[str] = ".") -> str:
    """Return the path as seen from the folder `to`; the full one where none leads there, as between Windows' drives."""
    try:
        return os.path.relpath(path, to)
    except ValueError:
        return os.path.abspath(path)
