"""Predictions that a loop makes anyway, counted as they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from landscape.batch import as_tensor
from landscape.calibration.accumulator import CalibrationAccumulator
from landscape.calibration.inputs import Form

#: Numbers of logits that are kept for the fit of a temperature (chosen by us: 16 MB; 400,000 samples of ten classes,
#: 4,000 of a thousand, where its standard error is about 0.02).
KEPT = 4 << 20


class Observed:
    """One split's predictions since the last evaluation: counted for calibration, the first ones kept for a
    temperature.

    The accumulator sees all of them; `logits` and `labels` are the first `KEPT` numbers of logits, on their device.
    """

    def __init__(self, ignore_index: int | None = None, kind: Form | None = None) -> None:
        self.accumulator = CalibrationAccumulator(ignore_index=ignore_index, kind=kind)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._numbers = 0

    def update(self, logits: Any = None, labels: Any = None, **more: Any) -> None:
        """Count a batch; see `CalibrationAccumulator.update`."""
        given = {k: v for k, v in (("logits", logits), ("labels", labels)) if v is not None}
        self.accumulator.update(**given, **more)
        if logits is None or labels is None:
            return
        logits, labels = as_tensor(logits).detach(), as_tensor(labels).detach()
        if self._numbers + logits.numel() <= KEPT:
            self._numbers += logits.numel()
            self._kept.append((logits.clone(), labels.clone()))

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """The kept logits and labels, None where there are none.

        Sequences are filled up to the longest with the label that is ignored; without one, only batches as long as the
        first are here.
        """
        if not self._kept:
            return None
        pairs, ignored = self._kept, self.accumulator.settings.ignore_index
        if len({y.shape[1:] for _, y in pairs}) > 1:
            first = pairs[0][1].shape[1:]
            pairs = [p for p in pairs if p[1].shape[1:] == first] if ignored is None else _as_long(pairs, ignored)
        return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def _as_long(pairs: Sequence[tuple[Tensor, Tensor]], ignored: int) -> list[tuple[Tensor, Tensor]]:
    """Return batches of sequences (or pictures) as long as the longest, filled up with labels that are ignored."""
    inner = pairs[0][1].ndim - 1
    size = [max(y.shape[1 + d] for _, y in pairs) for d in range(inner)]
    found = []
    for x, y in pairs:
        missing = [n for d in reversed(range(inner)) for n in (0, size[d] - y.shape[1 + d])]
        last = x.shape[:-1] == y.shape  # classes last, as language models have them; else behind the samples
        if last and x.shape[:1] + x.shape[2:] == y.shape:
            last = False
        found.append((pad(x, [0, 0, *missing] if last else missing), pad(y, missing, value=ignored)))
    return found
