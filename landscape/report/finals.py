"""How a recorded training ended: the last numbers of its record, and the last Result of each kind that a probe kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArchiveError
from ..results import Result

#: Quantities whose last numbers are kept.
QUANTITIES = ("loss", "logged", "metrics", "curvature")
#: Steps that the loss is averaged over at most, and without a record of epochs: a tenth of the run, which has changed
#: less than its error by then, and so many at most (chosen by us).
MOST_STEPS, WITHOUT_EPOCHS = 1000, 100


@dataclass(frozen=True)
class Final:
    """The last finite number of a column, at `step`; of the loss, the mean over the `rows` steps up to it, with the
    standard error of a mean over as many batches. `broken`: losses came after it, and none of them was finite.
    """

    value: float
    step: int
    error: float = math.nan
    rows: int = 1
    broken: bool = False


class Finals:
    """Keeps the last numbers of each column as a record's rows come in, in any order of their steps."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], Final] = {}
        self._tails: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._last_loss = -1.0

    def add(self, quantity: str, names: Sequence[str], steps: np.ndarray, values: np.ndarray) -> None:
        """Take in rows (n,) of a quantity's columns (n, k)."""
        known = np.isfinite(values)
        if quantity == "loss":
            self._last_loss = max(self._last_loss, float(steps.max(initial=-1)))
        for k, name in enumerate(names):
            rows = np.flatnonzero(known[:, k])
            if len(rows):
                at = rows[int(np.argmax(steps[rows]))]
                before = self._last.get((quantity, name))
                if before is None or steps[at] >= before.step:
                    self._last[quantity, name] = Final(float(values[at, k]), int(steps[at]))
            if quantity == "loss" and len(rows):
                old = self._tails.get(name, (np.empty(0), np.empty(0)))
                found = np.concatenate([old[0], steps[rows]]), np.concatenate([old[1], values[rows, k]])
                order = np.argsort(found[0], kind="stable")[-MOST_STEPS:]
                self._tails[name] = (found[0][order], found[1][order])

    def taken(self, ends: np.ndarray) -> dict[tuple[str, str], Final]:
        """Return what there is by (quantity, column); the loss over as many steps as the last epoch in `ends` had."""
        found = dict(self._last)
        length = float(np.diff(ends, prepend=0.0)[-1]) if len(ends) else 0.0
        for name, (steps, values) in self._tails.items():
            tenth = min(WITHOUT_EPOCHS, max(1.0, float(steps[-1]) / 10))
            mean = values[steps > steps[-1] - (length if length > 0 else tenth)]
            error = float(mean.std(ddof=1)) / math.sqrt(len(mean)) if len(mean) > 1 else math.nan
            # Every row has the total loss; its terms are missing where a step didn't log them.
            broken = name == "loss" and steps[-1] < self._last_loss
            found["loss", name] = Final(float(mean.mean()), int(steps[-1]), error, len(mean), broken)
        return found


def last_results(history: Any, step: int | None = None) -> tuple[dict[str, tuple[Result, int]], list[str]]:
    """Return the last Result of each kind that probes measured while training, with its step, and what can't be read.

    With `step`, only what was measured after exactly so many steps: it describes the weights of a checkpoint made
    there. Of several splits at one step, the first.
    """
    last: dict[str, Any] = {}
    for probed in history.probed.values() if history else ():
        for one in probed:
            before = last.get(one.kind)
            wanted = not one.superseded and (step is None or one.step == step)
            if wanted and (before is None or one.step > before.step):
                last[one.kind] = one
    found, problems = {}, []
    for kind, one in last.items():
        try:
            found[kind] = (one.result, one.step)
        except ArchiveError as error:
            problems.append(str(error))
    return found, problems


def ended(run: Any, quantity: str, column: str) -> Final | None:
    """Return the last number of a column that speaks for this run: None for a checkpoint made at another step."""
    final: Mapping[tuple[str, str], Final] = run.recorded.finals
    found = final.get((quantity, column))
    return found if found is not None and (run.only_recorded or found.step == run.step) else None
