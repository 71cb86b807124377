"""Columns whose names follow from what was measured: a training's own numbers, and users' own measurements."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ..results import Result, StoredResult, Variable
from .finals import ended
from .numbers import count
from .runs import Run
from .value import Measure, Value, measured, scalar_variables


def _last_recorded(quantity: str, column: str) -> Callable[[Run], Value]:
    def read(run: Run) -> Value:
        found = ended(run, quantity, column)
        if found is None:
            return Value(missing="not recorded")
        if found.broken:  # the mean of the losses before would rank a training that broke down among those that ended
            return Value(missing=f"not finite after step {count(found.step)}")
        return replace(measured(found.value, found.error, "standard error of batches"), step=found.step)

    return read


def recorded_columns(runs: Sequence[Run]) -> list[Measure]:
    """Return columns of what trainings recorded at their ends, where a run has nothing else to show for its loss."""
    if not any(r.recorded and r.get("performance") is None for r in runs):
        return []
    names = dict.fromkeys(n for r in runs for n in r.recorded.finals if n[0] in ("loss", "logged", "metrics"))
    batches = "mean over the batches of the last epoch while it trained, each before its step, ± standard error"
    columns = []
    for quantity, name in names:
        note = batches if quantity == "loss" else "the last number that the training loop logged"
        label = "batch loss" if (quantity, name) == ("loss", "loss") else name
        key = re.sub(r"[^\w./-]", "_", f"recorded.{name}")
        columns.append(Measure(key, label, "Recorded", _last_recorded(quantity, name), note))
    return columns


def own_columns(runs: Sequence[Run]) -> list[Measure]:
    """Return a column for each scalar number of users' own measurements, `kind.name`, with the error it declares."""
    found: dict[tuple[str, str], Variable] = {}
    for run in runs:
        for kind, result in run.every():
            if result.status != "failed" and not _ours(result):
                numbers = {n: v for n, v in scalar_variables(result).items() if v.data.dtype.kind in "fiu"}
                found |= {(kind, name): v for name, v in numbers.items()}
    columns = []
    for (kind, name), v in found.items():
        label, note = f"{kind} {name}".replace("_", " "), ", in ".join(filter(None, (v.doc, v.units)))
        columns.append(Measure(f"{kind}.{name}", label, "Own", _own(kind, name), note, rank=2))
    return columns


def _ours(result: Result) -> bool:
    """Return whether a result's class is this package's: another's, or one not known here, is of a user."""
    package = __name__.partition(".")[0]
    return type(result).__module__.partition(".")[0] == package and not isinstance(result, StoredResult)


def _own(kind: str, name: str) -> Callable[[Run], Value]:
    def read(run: Run) -> Value:
        result = run.get(kind)
        if result is None:
            return Value(missing=run.missing(kind))
        variables = result.variables()
        v = variables.get(name)
        if v is None or v.dims:
            return Value(missing="not measured")
        value, step = float(v.data), run.probed_at.get(kind)
        if not math.isfinite(value):
            return Value(missing="not finite")
        if v.interval in variables:
            low, high = (float(b) for b in np.ravel(variables[v.interval].data))
            return Value(value, math.nan, low, high, "interval", step=step)
        error = variables[v.stderr].data if v.stderr in variables else math.nan
        return replace(measured(value, error), step=step)

    return read
