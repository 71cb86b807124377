"""Pieces of sentences that captions and methods share: lists, ranges, what directions are called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .numbers import count, given
from .runs import Run

Found = Sequence[tuple[Run, Any]]


def directions(names: Sequence[str], filters: bool = False) -> str:
    """Return what directions are called; where `filters`, with whom to cite for filter-normalized ones."""
    named = list(dict.fromkeys(names))
    if not named:
        return ""
    cite = r" \cite{li2018visualizing}" if filters and any("filter" in n for n in named) else ""
    parts = [n.partition(", seed ") for n in named]
    if len(named) > 1 and len({kind for kind, _, _ in parts}) == 1 and all(seed for *_, seed in parts):
        return f"Directions: {parts[0][0]}, seeds {listed([seed for *_, seed in parts])}{cite}."
    return f"Direction{'s' if len(names) > 1 else ''}: {listed(named)}{cite}."


def split(found: Found) -> str:
    """Return of which data the results are."""
    splits = sorted({str(getattr(x, "split", "") or "train") for _, x in found})
    return " and ".join({"train": "training"}.get(s, s) for s in splits)


def spanned(values: Sequence[int]) -> str:
    """Return "5 to 9", or the one number that all are."""
    if not values:
        return "–"
    low, high = min(values), max(values)
    return count(low) if low == high else f"{count(low)} to {count(high)}"


def ends(axis: np.ndarray) -> str:
    """Return "[-1, 1]" for an axis from -1 to 1."""
    return f"[{given(float(axis.min()))}, {given(float(axis.max()))}]"


def listed(texts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    texts = [str(t) for t in texts]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}" if texts else ""
