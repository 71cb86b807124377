"""One temperature for all logits, fitted so that it can neither diverge nor become negative."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..results import Check, Cost
from .checked import read_predictions
from .columns import Columns
from .inputs import Predictions
from .table import Temperature

#: Temperatures that are looked for (chosen by us: far outside every published one, about 0.5 to 5).
BOUNDS = (1e-3, 1e3)
# Newton on log T ends when a step is below this: T to 12 digits (chosen by us).
_TOLERANCE = 1e-12


def fit_temperature(logits: Any, labels: Any, *, ignore_index: int | None = None, class_dim: int = 1) -> Temperature:
    """Fit the temperature T > 0 that minimizes the mean NLL of softmax(logits / T), in float64.

    Args:
        logits: (n, C), (n, C, ...) or, for a binary task, (n,): torch tensor or NumPy array of floats.
        labels: class indices of shape (n,), (n, ...).
        ignore_index, class_dim: as in `calibration_error`.

    The NLL is convex in 1/T, so its slope changes sign at most once: Newton's method on log T, kept inside a bracket
    by bisection, can't diverge, and T can't become negative. Where no minimum lies within `bounds` = (0.001, 1000),
    T is NaN, never the bound, and `outcome` says which way the NLL falls: perfectly separable logits have no minimum
    above the lower bound. The standard error is the sandwich estimate for independent samples (for groups of pixels
    or tokens: between the samples they come from), by the delta method.

    Cost: one evaluation of all softmaxes an iteration, usually 6 to 16. Raises MeasurementError as
    `calibration_error` does.
    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    return temperature_of(
        read_predictions(
            logits=logits, probabilities=None, labels=labels, ignore_index=ignore_index, class_dim=class_dim
        ),
        {"ignore_index": ignore_index},
    )


def temperature_of(predictions: Predictions, settings: Mapping[str, Any] | None = None) -> Temperature:
    """Return the temperature of logits that are read and checked; see `fit_temperature`.

    The standard error takes rows of one group (pixels of an image) together.
    """
    start = time.perf_counter()
    slope = _Slope(predictions)
    # x = -log T = log(1/T); the slope of the NLL in 1/T rises with x.
    low, high = -math.log(BOUNDS[1]), -math.log(BOUNDS[0])
    outcome = "converged"
    if slope.flat:
        x, outcome = 0.0, "flat"
    elif slope(low)[0] >= 0:
        x, outcome = low, "at the upper bound"
    elif slope(high)[0] <= 0:
        x, outcome = high, "at the lower bound"
    else:
        x = _root(slope, low, high)
    final = math.exp(x)
    nll, scores, curvature = slope.moments(final)
    n = len(scores)
    stderr = math.nan
    if outcome == "converged" and n > 1:
        sums = scores if predictions.groups is None else np.bincount(_numbered(predictions.groups), scores)
        stderr = math.sqrt(float(np.sum(sums**2))) / (n * curvature * final**2)
    found = -final * float(scores.mean())
    return Temperature(
        value=1 / final if outcome in ("converged", "flat") else math.nan,
        stderr=stderr,
        nll_before=slope.moments(1.0)[0],
        nll_after=nll,
        slope=found,
        iterations=slope.evaluations,
        samples=n,
        bounds=BOUNDS,
        outcome=outcome,
        status="complete" if outcome == "converged" else "partial",
        checks=(_check(outcome, found, apart=slope.apart),),
        settings={**(settings or {}), "input": "logits", "dtype": predictions.dtype},
        warnings=predictions.warnings,
        cost=Cost(seconds=time.perf_counter() - start),
    )


def _root(slope: _Slope, low: float, high: float) -> float:
    """Return x in (low, high) where the slope is 0: Newton, and bisection where that leaves or stalls."""
    x, last = 0.0, math.inf
    while True:
        first, second = slope(x)
        low, high = (x, high) if first < 0 else (low, x)
        guess = x - first / second if second > 0 else math.inf
        if first == 0 or abs(guess - x) <= _TOLERANCE:
            return x
        # Unless Newton at least halves the slope, the bracket is halved instead: one of the two must end.
        if not low < guess < high or abs(first) > last / 2:
            guess = (low + high) / 2
            if not low < guess < high:
                return x
        x, last = guess, abs(first)


def _numbered(groups: Any) -> np.ndarray:
    return np.unique(groups.cpu().numpy(), return_inverse=True)[1].reshape(-1)


def _check(outcome: str, slope: float, *, apart: bool) -> Check:
    small = f"the logits are more than {1 / BOUNDS[0]:,.0f} times too small"
    message = {
        "converged": "the temperature is a minimum of the NLL",
        "at the lower bound": f"no minimum above T={BOUNDS[0]:g}: "
        + ("the logits tell these labels apart perfectly" if apart else small),
        "at the upper bound": f"no minimum below T={BOUNDS[1]:g}: the logits say nothing about these labels, or are "
        f"more than {BOUNDS[1]:,.0f} times too large",
        "flat": "every temperature fits alike (the logits of each row are equal): T=1 kept",
    }[outcome]
    return Check("temperature", "pass" if outcome == "converged" else "warn", message, abs(slope))


class _Slope:
    """Derivatives of the mean NLL along x = log(1/T)."""

    def __init__(self, predictions: Predictions) -> None:
        self.columns = Columns(predictions)
        self.evaluations = 0
        # The largest of each column is 0.
        self.flat = all(z.min() == 0 for z, _ in self.columns)
        self.apart = all((z[y, np.arange(len(y))] == 0).all() for z, y in self.columns)

    def __call__(self, x: float) -> tuple[float, float]:
        """Return the slope of the NLL in 1/T at 1/T = exp(x), and its derivative with respect to x."""
        self.evaluations += 1
        beta = math.exp(x)
        _, scores, curvature = self.moments(beta)
        return float(scores.mean()), beta * curvature

    def moments(self, beta: float) -> tuple[float, np.ndarray, float]:
        """Return mean NLL, each row's d NLL / d beta = E_p z - z_y, and the mean of Var_p z, at beta = 1/T."""
        nll = curvature = 0.0
        scores = []
        for z, y in self.columns:
            p = np.exp(beta * z)
            total = p.sum(axis=0)
            own = z[y, np.arange(len(y))]
            mean = np.einsum("cn,cn->n", p, z) / total
            nll += float(np.sum(np.log(total) - beta * own))
            curvature += float(np.sum(np.einsum("cn,cn->n", p, (z - mean) ** 2) / total))
            scores.append(mean - own)
        n = len(self.columns)
        return nll / n, np.concatenate(scores), curvature / n
