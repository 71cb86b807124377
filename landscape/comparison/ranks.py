"""Rank correlation over a handful of runs, with an interval that stays honest when there are few."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

#: With fewer runs no interval means anything: five ranks can agree by chance in 1 case of 60 (chosen by us).
FEWEST = 5
_Z95 = 1.959964  # normal quantile of a two-sided 95% interval


@dataclass(frozen=True)
class RankCorrelation:
    """Kendall's tau-b over `runs` pairs, its 95% interval, and how often chance alone gives as much."""

    tau: float
    low: float
    high: float
    p_value: float
    runs: int


def kendall(x: np.ndarray, y: np.ndarray, *, draws: int = 2000, seed: int = 0) -> RankCorrelation:
    """Return Kendall's tau-b (1945, ties corrected) of two samples, with an interval and a permutation test.

    The interval is the wider of two on each side: the percentile bootstrap over runs, and the one of Fieller,
    Hartley and Pearson (1957), tanh(atanh(tau) +- 1.96 sqrt(0.437 / (n - 4))). Neither does alone: the bootstrap
    of ranks that agree fully is a single point (for 5 runs with a true tau of 0.8 it held the truth in 64% of
    500 trials), and the other is too narrow from about 8 runs on. `draws` resamples and permutations (2,000:
    chosen by us, the p-value is good to 0.01). NaN throughout for fewer than FEWEST runs, or where one side is
    constant.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    n = len(x)
    nothing = RankCorrelation(math.nan, math.nan, math.nan, math.nan, n)
    if n < FEWEST:
        return nothing
    above, beside = _signs(x), _signs(y)
    agree, x_apart, y_apart = above * beside, above**2, beside**2
    tau = float(_ratio(agree.sum(), x_apart.sum(), y_apart.sum()))
    if math.isnan(tau):
        return nothing
    rng = np.random.default_rng(seed)
    # How often each run was drawn is all that a bootstrap sample's tau depends on.
    times = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)
    again = _ratio(*(np.sum((times @ pairs) * times, axis=1) for pairs in (agree, x_apart, y_apart)))
    low, high = np.quantile(again[np.isfinite(again)], [0.025, 0.975])
    inside = 1 - 2 / (n * (n - 1))  # half a pair short of +-1, where atanh is infinite
    z, half = math.atanh(max(-inside, min(inside, tau))), _Z95 * math.sqrt(0.437 / (n - 4))
    low = min(float(low), math.tanh(z - half))
    high = max(float(high), math.tanh(z + half))
    extreme = 0
    for _ in range(draws):
        order = rng.permutation(n)
        extreme += abs(float(np.sum(above * beside[np.ix_(order, order)]))) >= abs(agree.sum()) - 0.5
    return RankCorrelation(tau, low, high, float((extreme + 1) / (draws + 1)), n)


def _signs(x: np.ndarray) -> np.ndarray:
    """Return the sign of each pair's difference, (n, n)."""
    return np.sign(x[:, None] - x[None, :])


def _ratio(agree: np.ndarray, x_apart: np.ndarray, y_apart: np.ndarray) -> np.ndarray:
    """Return tau-b from its three sums over pairs; NaN where all of one side is tied."""
    under = np.sqrt(np.asarray(x_apart * y_apart, dtype=float))
    return np.divide(agree, under, out=np.full(under.shape, np.nan), where=under > 0)
