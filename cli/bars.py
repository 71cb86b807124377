"""Bars and lines of letters: a reliability diagram and a curve in one line of a terminal each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

#: Heights, and the signs of a bin: none, within its interval, accuracy above and below confidence; plain where the
#: terminal can't show them.
HEIGHTS, PLAIN_HEIGHTS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
SIGNS, PLAIN_SIGNS = "·=▲▼", ".=^v"
#: Letters of a curve (chosen by us: it stands beside its numbers in 80 columns).
WIDTH = 40


def fancy() -> bool:
    """Whether standard output can show block characters."""
    try:
        (HEIGHTS + SIGNS).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def reliability(table: Any, *, plain: bool | None = None) -> list[str]:
    """Return two lines for a Calibration: how each bin's accuracy lies against its confidence, and its samples.

    A letter a bin, confidence 0 at the left and 1 at the right: "=" where the confidence lies within the accuracy's
    95% interval, up or down where the accuracy is above or below it, a dot for an empty bin.
    """
    use_plain = not fancy() if plain is None else plain
    none, within, above, below = PLAIN_SIGNS if use_plain else SIGNS
    counts = np.asarray(table.counts, dtype=float)
    confidence = np.asarray(table.confidences, dtype=float)
    low, high = np.asarray(table.accuracy_interval, dtype=float).T
    signs = np.full(len(counts), none)
    filled = counts > 0
    signs[filled] = within
    signs[filled & (low > confidence)] = above
    signs[filled & (high < confidence)] = below
    told = [
        f"{n} bin{'s' if n > 1 else ''} {word} {sign}"
        for word, sign in (("overconfident", below), ("underconfident", above))
        if (n := int((signs == sign).sum()))
    ]
    words = ", ".join(told) or f"every bin within its 95% interval {within}"
    return [f"0 {''.join(signs)} 1  {words}", f"0 {heights(counts, plain=use_plain)} 1  samples in each bin"]


def heights(values: Sequence[float] | np.ndarray, *, plain: bool = False) -> str:
    """Return numbers of 0 or more as heights, the largest full; a dot for 0."""
    letters, none = (PLAIN_HEIGHTS, PLAIN_SIGNS[0]) if plain else (HEIGHTS, SIGNS[0])
    x = np.asarray(values, dtype=float)
    top = float(x.max()) if x.size else 0.0
    return "".join(none if not v > 0 else letters[min(len(letters) - 1, int(len(letters) * v / top))] for v in x)


def curve(values: np.ndarray, *, plain: bool | None = None) -> str:
    """Return a curve in at most WIDTH letters: the mean of each stretch, on a log scale where it spans decades."""
    use_plain = not fancy() if plain is None else plain
    letters = PLAIN_HEIGHTS if use_plain else HEIGHTS
    x = np.asarray(values, dtype=float)
    x = x[np.isfinite(x)]
    if not len(x):
        return ""
    parts = np.array([p.mean() for p in np.array_split(x, min(WIDTH, len(x)))])
    if parts.min() > 0 and parts.max() > 20 * parts.min():
        parts = np.log(parts)
    span = float(np.ptp(parts)) or 1.0
    return "".join(letters[min(len(letters) - 1, int(len(letters) * (p - parts.min()) / span))] for p in parts)
