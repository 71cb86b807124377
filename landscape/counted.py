"""How many of something, in words: "1 line", "2 lines"."""

from __future__ import annotations


def counted(n: int, one: str, many: str = "") -> str:
    """Return the number with thousands apart and the noun that fits it; `many` where that is not `one` and an s.

    What agrees with the noun belongs to it: counted(n, "cell failed", "cells failed").
    """
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"
