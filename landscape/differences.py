"""What differs between two sets of facts about a measurement, in words: why numbers of one aren't the other's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return what differs between two mappings of facts, a few words each: "the loss (MSELoss() before, now L1Loss())".

    A fact that is a mapping itself, such as a task's settings, is told key by key; of a text with a digest behind "#"
    the digest isn't shown.
    """
    found = []
    for name in dict.fromkeys((*now, *before)):
        a, b = before.get(name), now.get(name)
        if isinstance(a, Mapping) or isinstance(b, Mapping):
            inner = differences(a if isinstance(a, Mapping) else {}, b if isinstance(b, Mapping) else {})
            found += [f"the {name} {text.removeprefix('the ')}" for text in inner]
        elif a != b:
            found.append(f"the {name}{_change(a, b)}")
    return found


def _change(a: Any, b: Any) -> str:
    old, new = ("none" if x is None else str(x).partition("#")[0].strip()[:100] for x in (a, b))
    if not (old and new):
        return ""
    return f" ({new} with other code or settings)" if old == new else f" ({old} before, now {new})"
