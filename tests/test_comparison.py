"""Differences between models on the same samples: against other ways to the same number, and by their coverage."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from landscape.comparison.paired import (
    Binned,
    Difference,
    _moments,
    _rare_mistakes,
    ece_difference,
    independent_difference,
    mean_difference,
    pulled_difference,
)
from landscape.errors import MeasurementError

BINS = 15


def binned(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Binned:
    edges = np.arange(bins + 1) / bins
    return Binned(confidence, correct, np.maximum(np.searchsorted(edges, confidence) - 1, 0), bins)


def softened(confidence: np.ndarray, temperature: float) -> np.ndarray:
    return expit(logit(confidence) / temperature)


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return confidences of a confident classifier and the uniform numbers that decide its labels."""
    return np.clip(1 - 0.9 * rng.beta(0.6, 4.0, size=n), 0.1, 1 - 1e-6), rng.random(n)


# ------------------------------------------------------------------------------------------------ means


def test_a_mean_difference_is_that_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=50)
    b = a + rng.normal(size=50) * 0.1 + 0.03
    found = mean_difference(a, b)
    low, high = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert found.value == pytest.approx((b - a).mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    assert found.paired
    assert found.samples == 50


def test_equal_groups_are_a_t_test_of_their_means() -> None:
    rng = np.random.default_rng(1)
    change = np.repeat(rng.normal(size=20), 5) + rng.normal(size=100) * 0.1
    found = mean_difference(np.zeros(100), change, np.repeat(np.arange(20) * 7, 5))
    low, high = stats.ttest_1samp(change.reshape(20, 5).mean(axis=1), 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)
    alone = mean_difference(np.zeros(100), change)
    assert alone.high - alone.low < 0.6 * (high - low)  # taking them as independent is far too sure here


def test_a_difference_of_pulls_has_the_freedom_of_the_side_whose_rarest_share_fewer_groups_hold() -> None:
    pulls = np.random.default_rng(10).normal(size=(2, 12))
    for held in ((3, 9), (9, 3)):
        found = pulled_difference((0.5, 0.75), pulls, held)
        half = stats.t.ppf(0.975, 2) * stats.sem(pulls[1] - pulls[0])
        assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), rel=1e-9)


def test_a_mean_of_one_sample_or_of_infinities_has_no_interval() -> None:
    assert math.isnan(mean_difference(np.zeros(1), np.ones(1)).low)
    found = mean_difference(np.zeros(3), np.array([1.0, math.inf, 0.0]))
    assert math.isinf(found.value)
    assert math.isnan(found.high)


def test_independent_intervals_add_in_squares_each_side_for_itself() -> None:
    found = independent_difference((0.10, 0.06, 0.13), (0.20, 0.16, 0.28))
    assert found.value == pytest.approx(0.10)
    assert found.low == pytest.approx(0.10 - 0.05)  # 3-4-5: 0.20 - 0.16 below, 0.13 - 0.10 above
    assert found.high == pytest.approx(0.10 + math.hypot(0.08, 0.04))
    assert not found.paired


# ------------------------------------------------------------------------------------------------ ECE


def test_the_value_is_the_difference_of_the_two_errors() -> None:
    rng = np.random.default_rng(2)
    c, u = draw(rng, 700)
    a, b = binned(c, u < c), binned(softened(c, 0.5), u < c)
    ece = [
        sum(abs((s.confidence - s.correct)[s.index == k].sum()) for k in range(BINS)) / 700  # by its definition
        for s in (a, b)
    ]
    found = ece_difference(a, b)
    assert found.value == pytest.approx(ece[1] - ece[0], rel=1e-12)
    assert found.low <= found.value <= found.high
    again = ece_difference(b, a)
    assert again.value == pytest.approx(-found.value, rel=1e-12)
    width = found.high - found.low
    assert (again.low, again.high) == pytest.approx((-found.high, -found.low), abs=0.1 * width)  # other draws


def test_the_same_predictions_differ_by_nothing() -> None:
    c, u = draw(np.random.default_rng(3), 500)
    found = ece_difference(binned(c, u < c), binned(c, u < c))
    assert found == Difference(0.0, 0.0, 0.0, True, 500)


def test_pairing_is_worth_having() -> None:
    c, u = draw(np.random.default_rng(4), 2000)
    right = u < softened(c, 1.6)
    a, b = binned(c, right), binned(softened(c, 1.3), right)
    paired, apart = ece_difference(a, b), ece_difference(a, b, paired=False)
    assert paired.value == pytest.approx(apart.value, rel=1e-12)
    assert paired.high < 0
    assert paired.high - paired.low < 0.75 * (apart.high - apart.low)


def test_far_from_zero_the_interval_is_that_of_resampled_samples() -> None:
    # Every bin far from 0 on both sides: |D| is linear there, and resampling is the oracle.
    rng = np.random.default_rng(5)
    c, u = rng.uniform(0.42, 1, size=4000), rng.random(4000)
    right = u < c - 0.35
    d = c + 0.4 * (1 - c)
    found = ece_difference(binned(c, right, 5), binned(d, right, 5))

    def difference(rows: np.ndarray) -> float:
        gaps = []
        for s in (binned(c[rows], right[rows], 5), binned(d[rows], right[rows], 5)):
            gaps.append(np.abs(np.bincount(s.index, s.confidence - s.correct)).sum() / len(rows))
        return gaps[1] - gaps[0]

    again = [difference(rng.integers(0, 4000, 4000)) for _ in range(600)]
    width = float(np.diff(np.quantile(again, [0.025, 0.975]))[0])
    assert found.high - found.low == pytest.approx(width, rel=0.15)  # 600 resamples: 5%; the outermost of three


@pytest.mark.parametrize("size", [1, 4])
def test_the_covariance_of_bin_means_is_that_of_single_samples_or_groups(size: int) -> None:
    rng = np.random.default_rng(8)
    c, u = draw(rng, 12)
    sides = [binned(c, u < c, 3), binned(softened(c, 0.6), u < c, 2)]
    groups = np.arange(12) // size if size > 1 else None
    mean, covariance = _moments([(s.gaps(), replace(s, groups=groups)) for s in sides])
    columns = np.concatenate([s.gaps()[:, None] * np.eye(s.bins)[s.index] for s in sides], axis=1)
    np.testing.assert_allclose(mean, columns.mean(axis=0), rtol=1e-12)
    of_groups = columns.reshape(12 // size, size, 5).mean(axis=1)
    np.testing.assert_allclose(covariance, np.cov(of_groups.T) / len(of_groups), rtol=1e-9, atol=1e-18)


def test_a_mistake_not_seen_yet_moves_the_cells_that_its_sample_lies_in_together() -> None:
    rng = np.random.default_rng(9)
    first, second = (
        Binned(rng.random(30), rng.random(30) < share, rng.integers(0, bins, 30), bins)
        for share, bins in ((0.95, 3), (0.8, 4))
    )
    expected, lacking = np.zeros((7, 7)), []
    for side in (first, second):
        z2, own = stats.norm.ppf(0.975) ** 2, []
        for b in range(side.bins):
            right = side.correct[side.index == b]
            share = (right.sum() + z2 / 2) / (len(right) + z2)
            own.append(share * (1 - share) / 30**2 - 1e-5)  # what is lacking of a sample's variance, 1e-5 is there
        lacking.append(own)
    for i, j in zip(first.index, second.index, strict=True):
        cell = np.isin(np.arange(7), (i, 3 + j))
        expected += np.outer(cell, cell) * max(lacking[0][i], lacking[1][j], 0.0)
    counts = np.concatenate([np.bincount(s.index, minlength=s.bins) for s in (first, second)])
    np.testing.assert_allclose(_rare_mistakes(first, second, np.diag(1e-5 * counts), True), expected, rtol=1e-7)


def test_groups_widen_the_interval() -> None:
    rng = np.random.default_rng(6)
    c, u = draw(rng, 300)
    c, u = np.repeat(c, 10), np.repeat(u, 10)  # ten copies of each sample
    a, b = binned(c, u < c), binned(softened(c, 0.6), u < c)
    groups = np.repeat(np.arange(300), 10)
    true = ece_difference(binned(c[::10], (u < c)[::10]), binned(softened(c, 0.6)[::10], (u < c)[::10]))
    found, alone = ece_difference(replace(a, groups=groups), replace(b, groups=groups)), ece_difference(a, b)
    assert found.value == pytest.approx(true.value, rel=1e-9)
    assert alone.high - alone.low < 0.6 * (true.high - true.low)
    assert found.high - found.low == pytest.approx(true.high - true.low, rel=0.25)  # the rare-mistake floor differs


def test_other_samples_are_refused_as_a_pair() -> None:
    c, u = draw(np.random.default_rng(7), 100)
    with pytest.raises(MeasurementError, match=r"got 100 and 50; pass paired=False"):
        ece_difference(binned(c, u < c), binned(c[:50], (u < c)[:50]))


def coverage(scenario: str, n: int, trials: int) -> float:
    """Return how often the interval holds the population's difference."""

    def models(rng: np.random.Generator, size: int) -> tuple[Binned, Binned]:
        c, u = draw(rng, size)
        if scenario == "one is right":
            return binned(c, u < c), binned(softened(c, 0.9), u < c)
        if scenario == "mended":
            right = u < softened(c, 1.5)
            return binned(c, right), binned(softened(c, 1.5), right)
        if scenario == "rare mistakes":
            c = 1 - 0.5 * rng.beta(0.5, 40, size=size)
            return binned(c, u < c), binned(softened(c, 0.7), u < c)
        other = np.clip(expit(logit(c) + 0.7 * rng.normal(size=size)), 0.1, 1 - 1e-6)
        v = np.where(rng.random(size) < 0.6, u, rng.random(size))
        return binned(c, u < c), binned(other, v < softened(other, 1.4))  # two models, different mistakes

    def ece(side: Binned) -> float:
        return float(np.abs(np.bincount(side.index, side.gaps())).sum()) / len(side.index)

    a, b = models(np.random.default_rng(1), 2_000_000)  # its own error is below 1e-3
    truth = ece(b) - ece(a)
    found = [ece_difference(*models(np.random.default_rng(100 + i), n)) for i in range(trials)]
    return float(np.mean([d.low - 1e-3 <= truth <= d.high + 1e-3 for d in found]))


@pytest.mark.parametrize("scenario", ["one is right", "mended", "rare mistakes", "two models"])
def test_the_interval_of_a_difference_covers(scenario: str) -> None:
    # 95% meant: binomial(200, 0.95) is below 0.90 with 0.2%. Of 300 samples many sets show no mistake in some bins.
    assert coverage(scenario, 300, 200) >= 0.90


@pytest.mark.slow
@pytest.mark.parametrize("n", [300, 1000, 5000])
@pytest.mark.parametrize("scenario", ["one is right", "mended", "rare mistakes", "two models"])
def test_the_interval_of_a_difference_covers_at_every_size(scenario: str, n: int) -> None:
    assert coverage(scenario, n, 500) >= 0.92


def test_a_difference_says_what_it_is() -> None:
    found = Difference(0.1, 0.0, 0.2)
    assert found.interval.tolist() == [0.0, 0.2]
