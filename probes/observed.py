"""Predictions that a loop makes anyway, counted as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from landscape.calibration.accumulator import CalibrationAccumulator
from landscape.data import as_tensor

#: Numbers of logits that are kept for the fit of a temperature (chosen by us: 16 MB; 400,000 samples of ten classes,
#: 4,000 of a thousand, where its standard error is about 0.02).
KEPT = 4 << 20


class Observed:
    """One split's predictions since the last evaluation: counted for calibration, the first ones kept for a
    temperature.

    The accumulator sees all of them; `logits` and `labels` are the first `KEPT` numbers of logits, on their device.
    """

    def __init__(self, ignore_index: int | None = None) -> None:
        self.accumulator = CalibrationAccumulator(ignore_index=ignore_index)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._numbers = 0
        #: Whether every prediction was kept.
        self.whole = True

    def update(self, logits: Any = None, labels: Any = None, **more: Any) -> None:
        """Count a batch; see `CalibrationAccumulator.update`."""
        given = {k: v for k, v in (("logits", logits), ("labels", labels)) if v is not None}
        self.accumulator.update(**given, **more)
        if logits is None or labels is None:
            return
        logits, labels = as_tensor(logits).detach(), as_tensor(labels).detach()
        if self._numbers + logits.numel() > KEPT:
            self.whole = False
            return
        self._numbers += logits.numel()
        self._kept.append((logits.clone(), labels.clone()))

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """The kept logits and labels, None where there are none."""
        if not self._kept:
            return None
        logits, labels = zip(*self._kept, strict=True)
        ignored = self.accumulator.settings.ignore_index
        if len({y.shape[1:] for y in labels}) > 1 and ignored is not None:
            logits, labels = _as_long(logits, labels, ignored)
        same = [y.shape[1:] == labels[0].shape[1:] for y in labels]
        return torch.cat([x for x, s in zip(logits, same, strict=True) if s]), torch.cat(
            [y for y, s in zip(labels, same, strict=True) if s]
        )


def _as_long(
    logits: Sequence[Tensor], labels: Sequence[Tensor], ignored: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return batches of sequences (or pictures) as long as the longest, filled up with labels that are ignored."""
    inner = labels[0].ndim - 1
    size = [max(y.shape[1 + d] for y in labels) for d in range(inner)]
    found = []
    for x, y in zip(logits, labels, strict=True):
        missing = [n for d in reversed(range(inner)) for n in (0, size[d] - y.shape[1 + d])]
        last = x.shape[:-1] == y.shape  # classes last, as language models have them; else behind the samples
        if last and x.shape[:1] + x.shape[2:] == y.shape:
            last = False
        found.append((pad(x, [0, 0, *missing] if last else missing), pad(y, missing, value=ignored)))
    return tuple(x for x, _ in found), tuple(y for _, y in found)
