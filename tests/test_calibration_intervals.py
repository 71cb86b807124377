"""Intervals against textbook cases, slow versions of themselves, and each other; coverage is measured elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta, binomtest, chi2, ncx2, norm, t

from landscape.calibration.bins import Bins, equal_width_edges, right_closed
from landscape.calibration.intervals import (
    accuracy_interval,
    bootstrap_ece,
    debiased_l2_interval,
    ece_interval,
    gap_interval,
    mean_interval,
    ratio_interval,
    simulate_grouped,
    spread,
)
from landscape.calibration.scores import calibration_error
from landscape.calibration.totals import Groups

EDGES = equal_width_edges(15)


def pairs(seed: int, n: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    c = rng.uniform(0.4, 1.0, size=n)
    return c, (rng.random(n) < c - shift).astype(np.int64)


def grouped(c: np.ndarray, y: np.ndarray, group: np.ndarray, edges: np.ndarray = EDGES) -> Groups:
    """Return the sums of groups by a plain loop."""
    at, bins = right_closed(c, edges), len(edges) - 1
    sums = [
        [np.bincount(at[group == g], of[group == g], minlength=bins) for g in np.unique(group)]
        for of in (np.ones(len(c)), y, c)
    ]
    brier = np.bincount(group, (c - y) ** 2)
    return Groups(*map(np.array, sums), brier, 0 * brier, np.bincount(group, y))


# ------------------------------------------------------------------------------------------------ squared error


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.3])
def test_in_one_bin_the_squared_error_has_a_noncentral_chi_square_interval(shift: float) -> None:
    """One bin: T / s^2 is noncentral chi-square with one degree of freedom, inverted here by bisection."""
    c, y = pairs(0, 4000, shift)
    bins = Bins(equal_width_edges(1)).add(c, y.astype(bool))
    found = debiased_l2_interval(bins)
    s = spread(bins).error[0]
    x = (bins.signed_errors[0] / s) ** 2

    def end(share: float) -> float:
        grid = np.linspace(0, (math.sqrt(x) + 6) ** 2, 200_001)
        inside = ncx2.cdf(x, 1, np.maximum(grid, 1e-12)) >= share
        return grid[inside].max() * s**2 if inside.any() else 0.0

    # The lower end: the largest theta at which T is not in the upper 2.5%.
    exact = end(0.975), end(0.025)
    if shift == 0.3:
        assert found == pytest.approx(exact, rel=0.02)  # a gamma distribution with three equal cumulants
    else:
        assert found[0] == pytest.approx(exact[0], abs=0.1 * s**2)
        assert exact[1] <= found[1] <= 1.2 * exact[1]  # with one degree of freedom alone a little wide near 0


def test_with_few_groups_zero_is_rejected_by_students_quantile() -> None:
    """One bin, six groups, T = D^2 - s^2: 0 is outside where D^2 / s^2 > 1 + (t / z)^2 (chi^2 - 1): 7.9, not 5.0."""
    limit = 1 + (t.ppf(0.975, 5) / norm.ppf(0.975)) ** 2 * (chi2.ppf(0.975, 1) - 1)
    for shift, rejected in ((11, False), (14, True)):
        missed = shift + 10 * np.array([1, -1, 1, -1, 1, -1])
        y = np.concatenate([np.arange(100) < 50 - k for k in missed])
        c, group = np.full(600, 0.5), np.repeat(np.arange(6), 100)
        bins = Bins(equal_width_edges(1)).add(c, y)
        ratio = missed.sum() ** 2 / (((missed - missed.mean()) ** 2).sum() * 6 / 5)
        assert ratio > 5.1
        assert (ratio > limit) == rejected
        found = debiased_l2_interval(bins, grouped(c, y, group, equal_width_edges(1)))
        assert (found[0] > 0) == rejected


def test_zero_belongs_to_the_squared_error_unless_chi_square_rejects() -> None:
    """Bins of equal noise: T at theta = 0 is a multiple of chi-square, which the interval's test must be."""
    rng = np.random.default_rng(0)
    edges = np.array([0, 0.25, 0.5, 0.75, 1.0])
    levels = np.array([0.2, 0.4, 0.6, 0.8])
    agree = 0
    for _ in range(200):
        c = np.repeat(levels, 500)
        y = rng.random(2000) < 0.5 + 0 * c  # equal variances
        shifted = c - levels.repeat(500) + 0.5  # confidence 1/2 in each bin: calibrated
        bins = Bins(edges).add(shifted, y, np.repeat(np.arange(4), 500))
        found = debiased_l2_interval(bins)
        statistic = (bins.signed_errors**2 / spread(bins).error ** 2).sum()
        agree += (found[0] == 0) == (statistic <= chi2.ppf(0.975, 4))
    assert agree >= 198  # the variances are estimated: a hair's breadth may decide


def test_the_squared_interval_holds_its_estimate_and_shrinks() -> None:
    widths = []
    for n in (500, 2000, 8000):
        c, y = pairs(1, n, 0.1)
        found = calibration_error(probabilities=c, labels=y, kind="top-label")
        assert found.debiased_l2_interval is not None
        assert found.debiased_l2_interval[0] <= found.debiased_l2 <= found.debiased_l2_interval[1]
        widths.append(np.diff(np.sqrt(found.debiased_l2_interval))[0])
    assert widths[2] < 0.4 * widths[0]


# ------------------------------------------------------------------------------------------------ means


def test_the_interval_of_a_symmetric_mean_is_the_textbook_one() -> None:
    x = norm.ppf((np.arange(400) + 0.5) / 400) + 3
    error, found = mean_interval(np.array([x.sum(), (x**2).sum(), (x**3).sum()]), 400)
    assert error == pytest.approx(x.std(ddof=1) / 20, rel=1e-9)
    assert found == pytest.approx([3 - norm.ppf(0.975) * error, 3 + norm.ppf(0.975) * error], abs=1e-6)


def test_the_interval_of_a_skewed_mean_leans_to_the_long_side() -> None:
    """Exponential, n = 100: near the exact interval of its mean from the chi-square distribution."""
    x = -np.log1p(-(np.arange(100) + 0.5) / 100)
    mean = x.mean()
    _, found = mean_interval(np.array([x.sum(), (x**2).sum(), (x**3).sum()]), 100)
    exact = 200 * mean / chi2.ppf([0.975, 0.025], 200)
    plain = mean + np.array([-1.96, 1.96]) * x.std(ddof=1) / 10
    assert found == pytest.approx(exact, rel=0.025)
    assert abs(found - exact).max() < 0.5 * abs(plain - exact).max()


def test_the_ends_are_those_where_halls_polynomial_is_the_normal_quantile() -> None:
    """g(u) = u + a u^2 + a^2 u^3 / 3 + a / (2 n) with u = (mean - end) / (sqrt(n) stderr), a third of the skewness."""
    x = np.random.default_rng(0).exponential(size=12) ** 2
    error, found = mean_interval(np.array([x.sum(), (x**2).sum(), (x**3).sum()]), 12)
    a = ((x - x.mean()) ** 3).mean() / x.std() ** 3 / 3
    u = (x.mean() - found) / math.sqrt(12) / error
    g = u + a * u**2 + a**2 * u**3 / 3 + a / (2 * 12)
    assert g * math.sqrt(12) == pytest.approx([norm.ppf(0.975), norm.ppf(0.025)], rel=1e-9)


def test_samples_in_groups_of_one_are_independent() -> None:
    c, y = pairs(2, 900, 0.05)
    alone = calibration_error(probabilities=c, labels=y, kind="top-label")
    each = calibration_error(probabilities=c, labels=y, kind="top-label", groups=np.arange(900))
    assert each.groups == 900
    # G / (G - 1), and Student's quantile instead of the normal one: 1.0011 and 1.0013.
    for name in ("brier_stderr", "nll_stderr", "accuracy_stderr"):
        assert getattr(each, name) == pytest.approx(getattr(alone, name), rel=2e-3)
    assert each.ece_interval == pytest.approx(alone.ece_interval, rel=0.15, abs=2e-3)
    assert each.consistency_band[14] == pytest.approx(alone.consistency_band[14], abs=0.02)


def test_copies_of_samples_in_groups_add_no_certainty() -> None:
    """Each sample ten times over: as groups the intervals are those of the samples, else they are far too narrow."""
    c, y = pairs(3, 400, 0.1)
    few = calibration_error(probabilities=c, labels=y, kind="top-label")
    tenfold = {"probabilities": np.repeat(c, 10), "labels": np.repeat(y, 10), "kind": "top-label"}
    many = calibration_error(**tenfold, groups=np.repeat(np.arange(400), 10))  # type: ignore[arg-type]
    blind = calibration_error(**tenfold)  # type: ignore[arg-type]
    scale = t.ppf(0.975, 399) / norm.ppf(0.975)
    assert many.brier_stderr == pytest.approx(few.brier_stderr, rel=1e-9)
    assert np.diff(many.brier_interval) == pytest.approx(np.diff(few.brier_interval) * scale, rel=1e-3)
    assert np.diff(many.ece_interval) >= 0.8 * np.diff(few.ece_interval)
    assert np.diff(blind.ece_interval) < 0.6 * np.diff(few.ece_interval)
    # Normal draws here, binomial ones there.
    assert many.calibration_p_value == pytest.approx(few.calibration_p_value, abs=0.06)


def test_the_spread_of_groups_is_the_sandwich() -> None:
    c, y = pairs(4, 600, 0.05)
    group = np.random.default_rng(0).integers(40, size=600)
    bins = Bins(EDGES).add(c, y.astype(bool))
    found = spread(bins, grouped(c, y, group))
    at = right_closed(c, EDGES)
    d = bins.signed_errors
    each = np.zeros((40, 15))
    for g in range(40):
        here = group == g
        each[g] = np.bincount(at[here], (c - y)[here], minlength=15) - here.sum() * d
    expected = 40 / 39 * each.T @ each / 600**2
    assert found.covariance == pytest.approx(expected[np.ix_(found.filled, found.filled)], rel=1e-12, abs=1e-18)
    assert found.quantile == pytest.approx(t.ppf(0.975, 39))
    assert (found.error**2 >= np.diag(found.covariance) - 1e-18).all()


def test_a_bins_accuracy_in_groups_has_the_interval_of_its_effective_size() -> None:
    """Copies in groups have the interval of what was copied; blind to the groups it is Clopper and Pearson's."""
    c, y = pairs(3, 900, 0.1)
    edges = equal_width_edges(1)
    bins = Bins(edges).add(np.repeat(c, 10), np.repeat(y, 10).astype(bool))
    found = accuracy_interval(bins, grouped(np.repeat(c, 10), np.repeat(y, 10), np.repeat(np.arange(900), 10), edges))
    effective = 899 * (norm.ppf(0.975) / t.ppf(0.975, 899)) ** 2
    hits = y.mean() * effective
    ends = beta.ppf(0.025, hits, effective - hits + 1), beta.ppf(0.975, hits + 1, effective - hits)
    assert found[0] == pytest.approx(ends, rel=1e-9)
    exact = binomtest(int(y.sum()) * 10, 9000).proportion_ci(0.95, "exact")
    assert accuracy_interval(bins)[0] == pytest.approx((exact.low, exact.high), rel=1e-9)


@pytest.mark.parametrize("right", [0, 1])
def test_without_a_mistake_a_group_counts_as_one_sample(right: int) -> None:
    c, y, group = np.full(120, 0.9), np.full(120, right), np.repeat(np.arange(12), 10)
    bins = Bins(EDGES).add(c, y.astype(bool))
    (found,) = (x for x in accuracy_interval(bins, grouped(c, y, group)) if np.isfinite(x).all())
    effective = 12 * (norm.ppf(0.975) / t.ppf(0.975, 11)) ** 2
    end = 0.025 ** (1 / effective)
    assert found == pytest.approx((end, 1) if right else (0, 1 - end), rel=1e-9)
    alone = accuracy_interval(bins, grouped(c, y, np.zeros(120, dtype=int)))
    assert np.isfinite(alone).all(axis=1).sum() == 1


@pytest.mark.parametrize(("mean", "spread_of"), [(0.8, 10.0), (0.8, 3.0), (0.95, 5.0)])
def test_intervals_of_accuracies_in_groups_cover(mean: float, spread_of: float) -> None:
    """Groups of 30 whose own accuracies scatter: theirs holds the mean in 93% at least, the blind one in far fewer."""
    rng, edges, c = np.random.default_rng(1), equal_width_edges(1), np.full(1920, 0.9)
    held, blind = 0, 0
    for _ in range(1000):
        shares = rng.beta(mean * spread_of, (1 - mean) * spread_of, size=64)
        y = (rng.random(1920) < np.repeat(shares, 30)).astype(np.int64)
        bins = Bins(edges).add(c, y.astype(bool))
        right = y.reshape(64, 30).sum(axis=1)
        groups = Groups(np.full((64, 1), 30), right[:, None], np.full((64, 1), 27.0), 0.0 * right, 0.0 * right, right)
        (low, high), (least, most) = accuracy_interval(bins, groups)[0], accuracy_interval(bins)[0]
        held, blind = held + (low <= mean <= high), blind + (least <= mean <= most)
    assert held >= 930
    assert blind < 800


def test_the_gap_on_the_whole_has_the_interval_of_a_mean() -> None:
    c, y = pairs(4, 600, 0.05)
    off, group = c - y, np.random.default_rng(0).integers(40, size=600)
    bins = Bins(EDGES).add(c, y.astype(bool))
    half = norm.ppf(0.975) * off.std(ddof=1) / math.sqrt(600)
    assert gap_interval(bins) == pytest.approx((off.mean() - half, off.mean() + half), rel=1e-9)
    sums, sizes = np.bincount(group, off), np.bincount(group)
    assert gap_interval(bins, grouped(c, y, group)) == pytest.approx(ratio_interval(sums, sizes)[1], rel=1e-9)
    assert np.isnan(gap_interval(Bins(EDGES).add(c[:1], y[:1].astype(bool)))).all()
    found = calibration_error(probabilities=c, labels=y, kind="top-label")
    assert found.confidence_gap == pytest.approx(off.mean(), rel=1e-12)
    assert found.confidence_gap_interval == pytest.approx(gap_interval(bins), rel=1e-5)  # squares are of cells


# ------------------------------------------------------------------------------------------------ resampling


@pytest.mark.parametrize("edges", [EDGES, equal_width_edges(1)], ids=["narrow bins", "one bin"])
def test_resampling_counts_is_resampling_samples(edges: np.ndarray) -> None:
    c, y = pairs(5, 2000, 0.04)
    if len(edges) == 2:  # one bin of all confidences, whose own spread is half of the errors'
        c = np.random.default_rng(5).uniform(size=2000)
        y = (np.random.default_rng(6).random(2000) < c - 0.04).astype(np.int64)
    bins = Bins(edges).add(c, y.astype(bool))
    rng = np.random.default_rng(0)
    fast = bootstrap_ece(bins, rng, draws=4000)
    at = right_closed(c, edges)
    slow = []
    for _ in range(4000):
        take = rng.integers(2000, size=2000)
        slow.append(np.abs(np.bincount(at[take], (c - y)[take], minlength=15)).sum() / 2000)
    error = np.std(slow) / math.sqrt(4000)
    assert abs(fast.mean() - np.mean(slow)) < 5 * math.sqrt(2) * error
    assert fast.std() == pytest.approx(np.std(slow), rel=5 * math.sqrt(1 / 4000))  # 5 standard errors of the ratio
    ends = [0.025, 0.975]
    assert np.quantile(fast, ends) == pytest.approx(np.quantile(slow, ends), abs=0.2 * np.std(slow))


def test_resampling_groups_resamples_whole_groups() -> None:
    c, y = pairs(6, 600, 0.05)
    group = np.repeat(np.arange(60), 10)
    y = np.repeat(y[:60], 10)
    bins = Bins(EDGES).add(c, y.astype(bool))
    found = bootstrap_ece(bins, np.random.default_rng(0), grouped(c, y, group), draws=500)
    alone = bootstrap_ece(bins, np.random.default_rng(0), draws=500)
    assert found.std() > 1.3 * alone.std()


def test_a_p_value_counts_the_observed_labels_in() -> None:
    """No simulated label set is as far off: 1 of 1,001. Confidences of 1 that are all right: every one is as far."""
    c, right = np.full(200, 0.9), np.ones(200, dtype=np.int64)
    assert calibration_error(probabilities=c, labels=1 - right, kind="top-label").calibration_p_value == 1 / 1001
    assert calibration_error(probabilities=np.ones(200), labels=right, kind="top-label").calibration_p_value == 1


def test_a_percentile_interval_is_named_in_the_settings() -> None:
    c, y = pairs(7, 1000, 0.1)
    usual = calibration_error(probabilities=c, labels=y, kind="top-label")
    found = calibration_error(probabilities=c, labels=y, kind="top-label", interval="percentile")
    assert "percentiles" in found.settings["interval"]
    assert "inversion" in usual.settings["interval"]
    assert found.ece_interval.tolist() != usual.ece_interval.tolist()
    assert found.ece_interval == pytest.approx(usual.ece_interval, abs=0.03)


def test_simulated_groups_scatter_as_they_do() -> None:
    c, y = pairs(8, 3000)
    group = np.repeat(np.arange(60), 50)
    y = np.repeat(y[::50], 50)
    groups, bins = grouped(c, y, group), Bins(EDGES).add(c, y.astype(bool))
    found = simulate_grouped(bins, groups, np.random.default_rng(0), draws=4000)
    each = groups.confidence_sums - groups.correct
    expected = np.sqrt(np.diag(each.T @ each) * 60 / 59)
    inside = (bins.confidence_sums > 4 * expected) & (bins.counts - bins.confidence_sums > 4 * expected)
    assert inside.sum() >= 3
    assert found.std(axis=0)[inside] == pytest.approx(expected[inside], rel=5 / math.sqrt(8000))


def test_a_single_group_says_nothing_and_few_groups_little() -> None:
    c, y = pairs(9, 300)
    one = calibration_error(probabilities=c, labels=y, kind="top-label", groups=np.zeros(300, int))
    assert any("too narrow" in w for w in one.warnings)
    assert one.groups == 0
    few = calibration_error(probabilities=c, labels=y, kind="top-label", groups=np.arange(300) % 5)
    assert any("5 groups" in w for w in few.warnings)


def test_bins_that_never_scatter_have_finite_intervals() -> None:
    for c, y in (
        (np.ones(50), np.ones(50, bool)),
        (np.full(50, 0.7), np.ones(50, bool)),
        (np.zeros(50), np.zeros(50, bool)),
    ):
        table = Bins(EDGES).add(c, y)
        for found in (ece_interval(table), debiased_l2_interval(table)):
            assert np.isfinite(found).all()
            assert 0 <= found[0] <= found[1] <= 1
        assert ece_interval(table)[0] <= table.ece <= ece_interval(table)[1]
