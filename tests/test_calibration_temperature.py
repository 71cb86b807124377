"""The fitted temperature against closed forms, at its bounds, and against a general minimizer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from landscape.calibration.temperature import BOUNDS, fit_temperature
from landscape.results import rebuild


def two_classes(a: float, right: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of logits (5, 5 + a): the NLL is least at T = a / log(right / wrong)."""
    z = np.tile([5.0, 5.0 + a], (right + wrong, 1))
    return z, np.array([1] * right + [0] * wrong)


@pytest.mark.parametrize("a", [1e-2, 0.5, 1.0, 3.0, 40.0, 700.0])
@pytest.mark.parametrize(("right", "wrong"), [(3, 1), (9, 1), (501, 499), (999, 1)])
def test_two_classes_in_closed_form(a: float, right: int, wrong: int) -> None:
    expected = a / math.log(right / wrong)
    found = fit_temperature(*two_classes(a, right, wrong))
    if not BOUNDS[0] < expected < BOUNDS[1]:
        assert found.outcome == "at the upper bound"
        return
    q = right / (right + wrong)
    assert found.converged
    assert found.value == pytest.approx(expected, rel=1e-10)  # the slope is known to 1e-16 / (curvature > 1e-4)
    assert found.nll_after == pytest.approx(-q * math.log(q) - (1 - q) * math.log(1 - q), rel=1e-12)
    assert found.nll_before >= found.nll_after
    assert abs(found.slope) < 1e-12  # the last step in log T was below 1e-12, the curvature is below 1/2


def test_the_standard_error_in_closed_form() -> None:
    # One parameter b = a/T = logit(q): se(b) = 1/sqrt(n q (1 - q)), and T = a/b.
    found = fit_temperature(*two_classes(2.0, 300, 100))
    b = math.log(3)
    assert found.stderr == pytest.approx(2.0 / b**2 / math.sqrt(400 * 0.75 * 0.25), rel=1e-10)


def sampled(seed: int, n: int = 2000, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * 2
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return z, (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)


@pytest.mark.parametrize("factor", [0.05, 0.5, 2.5, 100.0])
def test_scaled_logits_scale_the_temperature(factor: float) -> None:
    z, y = sampled(0)
    one = fit_temperature(z, y)
    assert one.value == pytest.approx(1.0, abs=4 * one.stderr)
    assert one.stderr < 0.05
    scaled = fit_temperature(z * factor, y)
    assert scaled.value == pytest.approx(one.value * factor, rel=1e-10)
    assert scaled.nll_after == pytest.approx(one.nll_after, rel=1e-12)


def test_the_standard_error_covers_the_truth() -> None:
    inside = 0
    for seed in range(100):
        found = fit_temperature(*sampled(seed, n=300))
        inside += abs(found.value - 1.0) <= 1.96 * found.stderr
    assert inside >= 88  # binomial(100, 0.95) is below with 0.3%


def test_a_general_minimizer_finds_the_same() -> None:
    z, y = sampled(3)
    z = z * 1.7 + np.random.default_rng(0).normal(size=(2000, 1))  # a shift of a row changes nothing

    def nll(log_t: float) -> float:
        scaled = torch.tensor(z) / math.exp(log_t)
        return torch.nn.functional.cross_entropy(scaled, torch.tensor(y)).item()

    best = minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(z, y)
    assert found.value == pytest.approx(math.exp(best.x), rel=1e-6)  # a minimum is flat: half the digits
    assert found.nll_after <= best.fun + 1e-14
    assert found.nll_before == pytest.approx(nll(0.0), rel=1e-12)


def test_separable_logits_end_at_the_lower_bound() -> None:
    z = np.eye(4)[np.arange(40) % 4] * 3.0
    found = fit_temperature(z, np.arange(40) % 4)
    assert math.isnan(found.value)  # never the bound of the search
    assert found.outcome == "at the lower bound"
    assert found.status == "partial"
    assert found.checks[0].level == "warn"
    assert "perfectly" in found.checks[0].message
    assert math.isnan(found.stderr)
    assert not found.converged
    assert found.nll_after == 0.0


def test_useless_logits_end_at_the_upper_bound() -> None:
    z = np.eye(4)[np.arange(40) % 4] * 3.0
    found = fit_temperature(z, (np.arange(40) + 1) % 4)
    assert math.isnan(found.value)
    assert found.outcome == "at the upper bound"
    assert found.nll_after == pytest.approx(math.log(4), rel=1e-2)


def test_equal_logits_keep_temperature_one() -> None:
    found = fit_temperature(np.ones((20, 3)) * 5, np.arange(20) % 3)
    assert (found.value, found.outcome) == (1.0, "flat")
    assert found.nll_after == found.nll_before == pytest.approx(math.log(3), rel=1e-14)


@pytest.mark.parametrize("scale", [1e4, 1e5])
def test_huge_logits_with_mistakes_do_not_diverge(scale: float) -> None:
    z, y = sampled(1)
    found = fit_temperature(z * scale, y)
    assert math.isnan(found.value)  # it would be 10,000 or more
    assert "1,000 times too large" in found.checks[0].message
    assert math.isfinite(found.nll_after)
    assert found.nll_after <= found.nll_before


def test_few_evaluations_are_enough() -> None:
    for seed in range(10):
        z, y = sampled(seed)
        assert fit_temperature(z * 2.5, y).iterations <= 15
    # One mistake in 100,000, far from T = 1: Newton alone creeps here (16).
    assert fit_temperature(*two_classes(100.0, 99_999, 1)).iterations <= 12


def test_binary_logits_and_layouts() -> None:
    z, y = sampled(0, classes=2)
    two = fit_temperature(z, y)
    one = fit_temperature(z[:, 1] - z[:, 0], y)
    assert one.value == pytest.approx(two.value, rel=1e-12)
    shaped = fit_temperature(
        torch.tensor(z.reshape(40, 50, 2)), torch.tensor(y.reshape(40, 50)), class_dim=-1, ignore_index=-100
    )
    assert shaped.value == two.value


def test_the_temperature_survives_the_archive() -> None:
    found = fit_temperature(*sampled(0))
    again = rebuild("temperature", found.variables(), found.attributes())
    assert again.summary() == found.summary()
    assert again.converged  # type: ignore[attr-defined]
