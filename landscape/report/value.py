"""A number of one run with its uncertainty, or with the reason why it is missing; and a column of such numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..results import Result, Variable
from .numbers import count, interval, uncertain
from .runs import Run

#: Half-width of a 95% interval in standard errors, for a mean over samples or draws.
Z95 = 1.959964
#: Groups whose columns are called by the split alone.
SHORT = ("Loss", "Accuracy", "Perplexity")


@dataclass(frozen=True)
class Value:
    """A number of one run; `low` and `high` bound it at 95%, `how` says by what; `missing` says why there is none.

    `step` is set where it was measured or recorded while the run trained: after so many steps, not on a checkpoint.
    """

    number: float = math.nan
    error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    how: str = ""
    missing: str = ""
    step: int | None = None

    @property
    def when(self) -> str:
        """When it was measured, where that was while training, in words."""
        return "" if self.step is None else f"step {count(self.step)}"

    @property
    def known(self) -> bool:
        """True where there is a finite number."""
        return math.isfinite(self.number)

    def text(self) -> tuple[str, str]:
        """Return the number and its uncertainty as they are written."""
        if self.missing:
            return self.missing, ""
        if self.how == "interval":
            return interval(self.number, self.low, self.high)
        value, error = uncertain(self.number, self.error, most=5 if self.how == "residual" else 6)
        return value, f"± {error}" if error and error != "0" else ""


@dataclass(frozen=True)
class Measure:
    """A column of the table of runs: where it stands, what it is called, and how to read it off a run.

    Columns of a higher `rank` are the first to be put away where the table is wider than the page. The number lies
    between the two `limits`, whatever an interval that knows nothing of them says.
    """

    key: str
    label: str
    group: str
    read: Callable[[Run], Value]
    note: str = ""
    sharpness: bool = False
    rank: int = 1
    limits: tuple[float, float] = (-math.inf, math.inf)

    @property
    def title(self) -> str:
        """What the column is called where its group isn't seen: "loss test" for "test"."""
        return f"{self.group.lower()} {self.label}" if self.group in SHORT else self.label


def measured(number_: Any, error: Any = math.nan, how: str = "standard error", freedom: float = math.inf) -> Value:
    """Return a Value with a standard error or a residual.

    The interval at 95% is from the normal law, or from Student's with so many degrees of freedom where the standard
    error itself rests on few blocks of samples.
    """
    x, e = float(number_), float(error)
    half = e if how == "residual" else _quantile(freedom) * e
    return Value(x, e, x - half, x + half, how)


def _quantile(freedom: float) -> float:
    if not math.isfinite(freedom):
        return Z95
    from scipy.special import stdtrit  # a tenth of a second, for whoever has a loss to compare

    return float(stdtrit(freedom, 0.975))


def scalar_variables(result: Result) -> dict[str, Variable]:
    """Return the scalars of a result by name, those that are another's uncertainty left out."""
    variables = result.variables()
    errors = {v.stderr for v in variables.values()} | {v.interval for v in variables.values()}
    return {name: v for name, v in variables.items() if not v.dims and name not in errors}
