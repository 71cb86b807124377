"""Rank correlation over a handful of runs, with an interval that stays honest when there are few."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
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


@dataclass(frozen=True)
class WithinCorrelation(RankCorrelation):
    """Kendall's tau over the pairs of runs within groups alone; `groups` is how many groups have a pair."""

    groups: int = 0


#: How much wider than under independence the interval is taken (chosen by us by simulation, so that it covers at
#: 95% for taus of 0, 0.33 and 0.59 in 24 to 36 runs in groups of 3 to 12).
_WIDER = 1.25


def kendall_within(
    x: np.ndarray, y: np.ndarray, groups: Sequence[Hashable], *, draws: int = 2000, seed: int = 0
) -> WithinCorrelation:
    """Return Kendall's tau-b over the pairs of runs that lie in the same group, with an interval and a test.

    With the groups being the settings that are held fixed this is what Jiang et al. (2020, "Fantastic generalization
    measures", section 4) average over: a measure that only tells one loss from another ranks nothing within a loss. The
    pairs of all groups count alike. The test permutes y within each group. The interval is the wider, on each side, of
    the percentile bootstrap of runs within groups and of tanh(atanh(tau) +- 1.96 s), s being the standard error under
    independence, a quarter wider. NaN throughout for fewer than FEWEST runs that have a partner, for fewer than 10
    pairs, or where one side is constant in every group.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    members: dict[Hashable, list[int]] = {}
    for i in known.tolist():
        members.setdefault(groups[i], []).append(i)
    parts = [np.array(m) for m in members.values() if len(m) > 1]
    n = sum(map(len, parts))
    nothing = WithinCorrelation(math.nan, math.nan, math.nan, math.nan, n, len(parts))
    pairs = sum(len(m) * (len(m) - 1) // 2 for m in parts)
    if n < FEWEST or pairs < FEWEST * (FEWEST - 1) // 2:
        return nothing
    above, beside = ([_signs(v[m]) for m in parts] for v in (x, y))
    sums = np.array([[np.sum(a * b), np.sum(a**2), np.sum(b**2)] for a, b in zip(above, beside, strict=True)])
    agree, x_apart, y_apart = sums.sum(axis=0)
    tau = float(_ratio(agree, x_apart, y_apart))
    if math.isnan(tau):
        return nothing
    rng = np.random.default_rng(seed)
    again, shuffled = np.zeros((draws, 3)), np.zeros(draws)
    for a, b in zip(above, beside, strict=True):
        k = len(a)
        times = rng.multinomial(k, np.full(k, 1 / k), size=draws).astype(float)
        again += np.stack([np.sum((times @ m) * times, axis=1) for m in (a * b, a**2, b**2)], axis=1)
        orders = rng.permuted(np.tile(np.arange(k), (draws, 1)), axis=1)
        block = max(1, 4_000_000 // k**2)  # as many orders at a time as 32 MB hold
        for start in range(0, draws, block):
            part = orders[start : start + block]
            shuffled[start : start + block] += np.sum(a[None] * b[part[:, :, None], part[:, None, :]], axis=(1, 2))
    found = _ratio(*again.T)
    low, high = np.quantile(found[np.isfinite(found)], [0.025, 0.975])
    # Var(S) of a group of k under independence is k(k-1)(2k+5)/18, S over unordered pairs (Kendall 1948).
    spread = math.sqrt(sum(len(m) * (len(m) - 1) * (2 * len(m) + 5) / 18 for m in parts)) / pairs
    inside = 1 - 1 / pairs
    z = math.atanh(max(-inside, min(inside, tau)))
    low = min(float(low), math.tanh(z - _WIDER * _Z95 * spread))
    high = max(float(high), math.tanh(z + _WIDER * _Z95 * spread))
    extreme = int(np.sum(np.abs(shuffled) >= abs(agree) - 0.5))
    return WithinCorrelation(tau, low, high, (extreme + 1) / (draws + 1), n, len(parts))


def _signs(x: np.ndarray) -> np.ndarray:
    """Return the sign of each pair's difference, (n, n)."""
    return np.sign(x[:, None] - x[None, :])


def _ratio(agree: np.ndarray, x_apart: np.ndarray, y_apart: np.ndarray) -> np.ndarray:
    """Return tau-b from its three sums over pairs; NaN where all of one side is tied."""
    under = np.sqrt(np.asarray(x_apart * y_apart, dtype=float))
    return np.divide(agree, under, out=np.full(under.shape, np.nan), where=under > 0)
