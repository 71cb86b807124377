"""Values that a checkpoint may hold beside its weights: text, numbers, True, None, lists and dicts of these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def check_plain(value: Any, name: str) -> None:
    """Raise TypeError, naming the value, unless it is plain all through."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{name} has the key {key!r}; a checkpoint keeps text keys only")
            check_plain(inner, f"{name}[{key!r}]")
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, name)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(
            f"{name} is a {type(value).__name__}; a checkpoint keeps plain values only: use float(...), int(...) or "
            "str(...)"
        )


def plain_copy(value: Any) -> Any:
    """Return plain values in dicts and lists of their own."""
    if isinstance(value, Mapping):
        return {k: plain_copy(v) for k, v in value.items()}
    return [plain_copy(v) for v in value] if isinstance(value, list | tuple) else value
