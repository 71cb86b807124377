"""Methods of other people's objects, wrapped for as long as a recorder is attached."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Wrapped:
    """Replaces methods on single objects, never on their classes, and puts them back."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def wrap(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Put `make(original)` in the place of `owner.name`."""
        own = owner.__dict__.get(name)
        original = getattr(owner, name)
        replaced = functools.wraps(original)(make(original))
        setattr(owner, name, replaced)

        def undo() -> None:
            if owner.__dict__.get(name) is not replaced:
                return  # somebody wrapped it again: ours stays inside theirs
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

        self._undo.append(undo)

    def restore(self) -> None:
        """Put everything back, the last first."""
        while self._undo:
            self._undo.pop()()
