"""Calibration while training, from predictions that the loop makes anyway."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from landscape.calibration.table import Calibration
from landscape.calibration.temperature import fit_temperature
from landscape.errors import MeasurementError

from .observed import Observed
from .probe import Found, Now, Probe, Quantity, Run
from .when import every

_COLUMNS = ("ece", "ece_low", "ece_high", "nll", "brier", "accuracy", "temperature", "samples")


class CalibrationProbe(Probe):
    """ECE with its interval, NLL, Brier score, accuracy and fitted temperature of what `Recorder.observe` was shown.

    Evaluated at each `end_epoch` and `end_evaluation`; the whole `Calibration` (reliability table, bands) is kept
    beside the row of `calibration`. Columns of the first split carry plain names, those of others "split.ece". The
    temperature is fitted on the same predictions (the first 4 million logits), so it says how far off the confidence
    is, and not how good the recalibrated model would be; NaN where there is none. No forward pass; milliseconds an
    evaluation.

    Args:
        temperature: False leaves the fit out.
    """

    name = "calibration"
    expensive = True
    #: Evaluated when an epoch or an evaluation ends, not by a lattice.
    evaluates = True
    when = every(epochs=1)

    def __init__(self, *, temperature: bool = True) -> None:
        self._fits = temperature
        self._splits: tuple[str, ...] = ()

    def start(self, run: Run) -> Sequence[Quantity]:
        return [Quantity("calibration", (), "", "calibration of the predictions that the loop made", "epoch")]

    def measure(self, run: Run, now: Now) -> Found | None:
        if not run.observed:
            return None
        new = [s for s in run.observed if s not in self._splits]
        if new:
            self._splits = (*self._splits, *new)
            doc = f"calibration of the predictions that the loop made on {', '.join(self._splits)}"
            columns = tuple(_named(s, i, c) for i, s in enumerate(self._splits) for c in _COLUMNS)
            run.declare(Quantity("calibration", columns, "", doc, "epoch"))
        row, results = [], []
        for split in self._splits:
            seen: Observed | None = run.observed.get(split)
            if seen is None:
                row += [math.nan] * len(_COLUMNS)
                continue
            found = seen.accumulator.compute(seed=run.seed)
            temperature = self._temperature(seen)
            results.append(replace(found, temperature=temperature))
            row += _row(found, temperature)
        return Found({"calibration": row}, tuple(results))

    def _temperature(self, seen: Observed) -> float:
        kept = seen.kept if self._fits else None
        if kept is None:
            return math.nan
        try:
            return float(fit_temperature(*kept, ignore_index=seen.accumulator.ignore_index).value)
        except MeasurementError:
            return math.nan  # one class only, several labels at once: there is no such temperature


def _named(split: str, place: int, column: str) -> str:
    return column if place == 0 else f"{split}.{column}"


def _row(found: Calibration, temperature: float) -> list[Any]:
    low, high = (float(bound) for bound in found.ece_interval)
    return [found.ece, low, high, found.nll, found.brier, found.accuracy, temperature, float(found.samples)]
