"""Predictions of an evaluation that a library runs, on their way to the recorder."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from landscape.labels import default_prediction, default_target

from ..recorder import Recorder

#: (logits, labels), or what `Recorder.observe` takes by name; None where there is nothing to count.
Predicted = tuple[Tensor, Tensor] | Mapping[str, Any] | None


class Predictions:
    """Shows a recorder what `find(*arguments)` makes of each batch; a failure is warned about once, and ends it."""

    def __init__(self, find: Callable[..., Predicted]) -> None:
        self._find = find
        self._off = False

    def observe(self, recorder: Recorder, split: str, *arguments: Any) -> None:
        """Count the predictions of a batch, on every process of a distributed evaluation."""
        if self._off or not recorder.evaluates:
            return
        try:
            found = self._find(*arguments)
            if found is None:
                return
            if not isinstance(found, Mapping):
                logits, labels = found
                found = {"logits": logits, "labels": labels}
            named: dict[str, Any] = dict(found)
            recorder.observe(**named, split=split, everywhere=True)
        except Exception as error:
            self._off = True
            text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            warnings.warn(
                f"predictions of the evaluation can't be counted for calibration, training goes on: {text}",
                RuntimeWarning,
                stacklevel=2,
            )


def named_logits(outputs: Any, batch: Any = None) -> tuple[Tensor, Tensor] | None:
    """Return (logits, labels) of outputs that say which of them are logits: a mapping or an object with `logits`.

    Labels are those of the outputs, else of the batch (a mapping, or a pair). A bare tensor may as well hold
    probabilities, or no classes at all, so that it is left alone.
    """
    if isinstance(outputs, Tensor):
        return None
    labels = default_target(outputs) if isinstance(outputs, Mapping) else getattr(outputs, "labels", None)
    if labels is None:
        labels = default_target(batch) if isinstance(batch, Mapping) else None
    if labels is None and isinstance(batch, list | tuple) and len(batch) == 2:
        labels = batch[1]
    return default_prediction(outputs, labels, None)
