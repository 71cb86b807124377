"""Regression with Gaussian heads: closed forms, quadrature, naive counts, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import kstest, norm

from landscape.calibration.quantiles import QuantileAccumulator, quantile_calibration
from landscape.errors import MeasurementError
from landscape.results import rebuild


def data(seed: int = 0, n: int = 800, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean, std = rng.normal(size=n), np.exp(rng.normal(size=n) * 0.3)
    return mean, std / scale, mean + std * rng.normal(size=n)


def test_crps_is_the_integral_of_its_definition() -> None:
    for m, s, y in ((0.0, 1.0, 0.3), (1.0, 0.5, 4.0), (-2.0, 3.0, -2.0)):
        naive = quad(lambda x, m=m, s=s, y=y: (norm.cdf(x, m, s) - (x >= y)) ** 2, m - 40 * s, y)[0]
        naive += quad(lambda x, m=m, s=s, y=y: (norm.cdf(x, m, s) - (x >= y)) ** 2, y, m + 40 * s)[0]
        found = quantile_calibration(mean=np.array([m, m]), std=np.array([s, s]), targets=np.array([y, y]))
        assert found.crps == pytest.approx(naive, rel=1e-6)  # the quadrature's own tolerance
        assert found.nll == pytest.approx(-norm.logpdf(y, m, s), rel=1e-12)


def test_frequencies_are_naive_counts() -> None:
    mean, std, y = data()
    found = quantile_calibration(mean=mean, std=std, targets=y, levels=10)
    naive = [(y <= norm.ppf(p, mean, std)).mean() for p in np.arange(1, 10) / 10]
    assert found.frequency == pytest.approx(naive, abs=1e-12)
    assert found.quantile_error == pytest.approx(np.abs(np.array(naive) - np.arange(1, 10) / 10).mean(), rel=1e-12)
    assert found.counts.sum() == found.samples == 800
    exact = kstest(norm.cdf(y, mean, std), "uniform")
    assert found.ks == pytest.approx(exact.statistic, abs=1 / 1000 + 1 / 800)
    assert found.rmse == pytest.approx(math.sqrt(((y - mean) ** 2).mean()), rel=1e-12)
    assert found.mean_std == pytest.approx(std.mean(), rel=1e-12)
    assert found.rms_std == pytest.approx(math.sqrt((std**2).mean()), rel=1e-12)
    assert found.std_ratio == pytest.approx(math.sqrt((((y - mean) / std) ** 2).mean()), rel=1e-12)


def test_the_standard_errors_are_those_of_the_single_scores() -> None:
    mean, std, y = data(n=20)
    each = [quantile_calibration(mean=mean[[i]], std=std[[i]], targets=y[[i]]) for i in range(20)]
    found = quantile_calibration(mean=mean, std=std, targets=y)
    for name in ("crps", "nll"):
        expected = np.std([getattr(e, name) for e in each], ddof=1) / math.sqrt(20)
        assert getattr(found, f"{name}_stderr") == pytest.approx(expected, rel=1e-9)


def test_the_squared_error_is_debiased_by_the_frequencys_own_variance() -> None:
    """Four of five targets below the median: 0.3^2 - 0.8 0.2 / 4."""
    found = quantile_calibration(mean=np.zeros(5), std=np.ones(5), targets=np.array([-1.0, -1, -1, -1, 1]), levels=2)
    assert found.debiased_l2 == pytest.approx(0.09 - 0.04, rel=1e-12)


def test_right_distributions_pass_and_narrow_ones_do_not() -> None:
    right = [quantile_calibration(mean=m, std=s, targets=y) for m, s, y in map(data, range(60))]
    assert sum(r.calibration_p_value <= 0.05 for r in right) <= 8  # 3 expected; binomial(60, 0.05) exceeds 8 with 0.3%
    inside = np.mean(
        [(r.frequency >= r.consistency_band[:, 0]) & (r.frequency <= r.consistency_band[:, 1]) for r in right]
    )
    assert 0.93 <= inside <= 0.99
    unbiased = np.mean([r.debiased_l2 for r in right])
    assert unbiased < np.mean([(r.frequency - r.level).var() for r in right])
    mean, std, y = data(scale=2.0)
    narrow = quantile_calibration(mean=mean, std=std, targets=y)
    assert narrow.calibration_p_value < 1e-6
    assert narrow.std_ratio == pytest.approx(2.0, rel=0.1)  # 800 samples: 2.5% standard error
    assert narrow.rms_std < narrow.rmse
    assert (narrow.frequency_interval[:, 0] <= narrow.frequency).all()


def test_variance_log_variance_batches_and_merges_agree() -> None:
    mean, std, y = (torch.tensor(x).reshape(200, 4) for x in data())
    whole = quantile_calibration(mean=mean, std=std, targets=y)
    parts = [QuantileAccumulator(), QuantileAccumulator()]
    parts[0].update(mean=mean[:50], variance=std[:50] ** 2, targets=y[:50])
    parts[1].update(mean=mean[50:90], log_variance=2 * std[50:90].log(), targets=y[50:90])
    parts[1].update(mean=mean[90:], std=std[90:], targets=y[90:]).update(mean=mean[:0], std=std[:0], targets=y[:0])
    found = parts[0].merge(parts[1]).compute()
    assert found.counts.tolist() == whole.counts.tolist()
    for name in ("crps", "nll", "crps_stderr", "std_ratio", "ks"):
        assert getattr(found, name) == pytest.approx(getattr(whole, name), rel=1e-9)
    one = quantile_calibration(mean=mean, std=torch.ones(1, dtype=torch.float64), targets=y)
    assert one.mean_std == 1.0


def test_the_result_survives_the_archive() -> None:
    mean, std, y = data()
    found = quantile_calibration(mean=mean, std=std, targets=y)
    again = rebuild("quantile_calibration", found.variables(), found.attributes())
    assert again.summary() == found.summary()


MEAN, STD, TARGETS = data(n=30)


def changed(a: np.ndarray, value: float) -> np.ndarray:
    a = a.copy()
    a[7] = value
    return a


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no scale": ({}, "exactly one of them, got none"),
    "two scales": ({"std": STD, "variance": STD}, "got std, variance"),
    "negative": ({"std": changed(STD, -1.0)}, "std must be positive, got -1 in row 7 (1 of 30 are)"),
    "zero": ({"variance": changed(STD, 0.0)}, "variance must be positive, got 0 in row 7"),
    "overflow": ({"log_variance": changed(STD, 2000.0)}, "finite exponential, got 2000 in row 7"),
    "nan": ({"std": changed(STD, np.nan)}, "std must be finite, got nan in row 7"),
    "nan target": ({"std": STD, "targets": changed(TARGETS, np.nan)}, "targets must be finite, got nan in row 7"),
    "shapes": ({"std": STD, "mean": MEAN[:5]}, "mean of shape (5,)"),
    "scale shape": ({"std": STD[:5]}, "std of shape (5,)"),
    "integers": ({"std": STD, "targets": TARGETS.astype(int)}, "floating point"),
    "empty": ({"mean": MEAN[:0], "std": STD[:0], "targets": TARGETS[:0]}, "nothing was counted"),
    "levels": ({"std": STD, "levels": 7}, "must be a divisor of 1000"),
}


@pytest.mark.parametrize(("given", "message"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_one_clear_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(MeasurementError) as caught:
        quantile_calibration(**{"mean": MEAN, "targets": TARGETS, **given})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(TypeError, match="levels"):
        QuantileAccumulator(levels=2.0)  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="cannot be merged"):
        QuantileAccumulator(levels=10).merge(QuantileAccumulator())
