"""Rank correlation within groups: against counting the pairs one by one, and by its coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from landscape.comparison.ranks import kendall_within


def counted(x: np.ndarray, y: np.ndarray, groups: list[str]) -> float:
    """Return tau-b over the pairs within groups, pair by pair."""
    agree, x_apart, y_apart = 0.0, 0, 0
    for i, j in itertools.combinations(range(len(x)), 2):
        if groups[i] == groups[j]:
            a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
            agree, x_apart, y_apart = agree + a * b, x_apart + a**2, y_apart + b**2
    return agree / math.sqrt(x_apart * y_apart)


def test_the_value_counts_the_pairs_within_groups() -> None:
    rng = np.random.default_rng(0)
    x, y = np.round(rng.normal(size=20), 1), np.round(rng.normal(size=20), 1)
    groups = [str(g) for g in rng.integers(0, 4, size=20)]
    assert kendall_within(x, y, groups).tau == pytest.approx(counted(x, y, groups))


def test_one_group_is_the_plain_correlation() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=12), rng.normal(size=12)
    found = kendall_within(x, y, ["a"] * 12)
    expected = stats.kendalltau(x, y)
    assert found.tau == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.04)  # 2,000 permutations: 0.01
    assert (found.runs, found.groups) == (12, 1)


def test_full_agreement_has_the_interval_of_kendalls_variance_and_a_p_of_one_in_all_orders() -> None:
    found = kendall_within(np.arange(18.0), np.arange(18.0), ["a"] * 12 + ["b"] * 6, draws=400)
    pairs = 66 + 15
    # Var(S) = n (n - 1) (2n + 5) / 18 for each group; tau is taken as one pair short of 1; the bootstrap says [1, 1].
    spread = math.sqrt(12 * 11 * 29 / 18 + 6 * 5 * 17 / 18) / pairs
    assert found.low == pytest.approx(math.tanh(math.atanh(1 - 1 / pairs) - 1.25 * stats.norm.ppf(0.975) * spread))
    assert (found.tau, found.high) == (1, 1)
    assert found.p_value == 1 / 401  # the order that was seen is one of all: never 0


def test_what_only_tells_the_groups_apart_ranks_nothing_within_them() -> None:
    rng = np.random.default_rng(2)
    loss = np.repeat([0.0, 10.0], 10)
    found = kendall_within(loss + rng.normal(size=20), loss + rng.normal(size=20), ["a"] * 10 + ["b"] * 10)
    assert found.low < 0 < found.high
    assert found.p_value > 0.05


def test_too_few_pairs_and_ties_give_no_number() -> None:
    x = np.arange(6.0)
    for groups in (list("abcdef"), list("aabbcc")):  # no pair; three pairs
        assert math.isnan(kendall_within(x, x, groups).tau)
    assert math.isnan(kendall_within(np.ones(8), np.arange(8.0), ["a"] * 8).tau)
    x = np.array([0.0, 1, 2, 3, np.nan, 5, 6, 7])
    assert kendall_within(x, np.arange(8.0), ["a"] * 8).runs == 7


@pytest.mark.parametrize(("size", "groups"), [(3, 8), (6, 4), (12, 3)])
@pytest.mark.parametrize("r", [0.0, 0.5, 0.8])
def test_the_interval_covers_within_groups(size: int, groups: int, r: float) -> None:
    rng, held, truth = np.random.default_rng(size), [], 2 / math.pi * math.asin(r)
    where = np.repeat(np.arange(groups), size)
    for seed in range(100):
        x = rng.normal(size=size * groups)
        y = r * x + math.sqrt(1 - r * r) * rng.normal(size=size * groups)
        found = kendall_within(x + 5 * where, y - 5 * where, where.tolist(), draws=200, seed=seed)
        held.append(found.low <= truth <= found.high)
    # 97 to 99% in 300 trials of 400 draws: binomial(100, 0.97) is below 0.91 with 0.2%.
    assert np.mean(held) >= 0.90
