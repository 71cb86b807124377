"""Logits laid out for fits that go through them many times: blocks that fit the cache, a row for each class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .inputs import Predictions

# Numbers in a block: with its exponentials it stays in a core's own cache. Sums over the classes then run along memory
# (measured: 4 times as fast as rows of 10 classes in blocks of 32 MiB).
_BLOCK = 1 << 16
#: Numbers that are kept in float64 between the passes, 256 MiB (chosen by us); of more each pass makes them anew.
KEPT = 1 << 25


class Columns:
    """Iterate over (logits, labels) of predictions, in float64: (C, b) and (b,).

    `shifted` brings each column's largest logit to 0. A binary task has two classes, with logits (0, z).
    """

    def __init__(self, predictions: Predictions, *, shifted: bool = True) -> None:
        self.shifted = shifted
        self.values, self.labels = predictions.values, predictions.labels
        self.classes = predictions.classes
        self._kept = list(self._made()) if self.classes * len(self.labels) <= KEPT else None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self._made() if self._kept is None else iter(self._kept)

    def _made(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        step = max(1, _BLOCK // self.classes)
        for start in range(0, len(self.labels), step):
            z = self.values[start : start + step].astype(np.float64)
            z = np.stack([np.zeros_like(z), z]) if z.ndim == 1 else np.ascontiguousarray(z.T)
            yield z - z.max(axis=0) if self.shifted else z, self.labels[start : start + step]
