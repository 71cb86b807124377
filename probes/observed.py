"""Predictions that a loop makes anyway, counted as they come."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
        return torch.cat([x for x, _ in self._kept]), torch.cat([y for _, y in self._kept])
