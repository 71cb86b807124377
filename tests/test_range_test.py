"""The learning-rate range test against known answers: a quadratic's 2 / lambda, and what it leaves untouched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Task, open_archive, save_archive
from landscape.errors import TrainingError
from landscape.probes.sweep.grid import Cell
from landscape.probes.sweep.range_test import range_test
from landscape.training.rates import QUADRATIC, RangeTest


def quadratic(scale: float = 2.0) -> Task:
    """Loss (scale w)^2 of one weight: the second derivative is 2 scale^2."""
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.full((1, 1), scale, dtype=torch.float64)
    return Task(model, nn.MSELoss(), (x, torch.zeros(1, 1, dtype=torch.float64)))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_on_a_quadratic_the_rate_meets_its_threshold_at_two_over_lambda_and_the_loss_turns_there(scale):
    found = range_test(lambda: quadratic(scale), Cell(optimizer="gd"), low=1e-3, high=100, steps=400)
    curvature = 2 * scale**2
    assert found.lambda_start == pytest.approx(curvature)
    assert found.critical == pytest.approx(2 / curvature) == found.critical_start
    # The last step that still shrinks the loss is the one before the critical rate: one step of the grid is 2.9%.
    assert found.best == pytest.approx(2 / curvature, rel=0.06)
    assert found.turn == pytest.approx(found.best * curvature / 2)
    assert found.ratio == pytest.approx(found.divergence * curvature / 2)


@pytest.mark.parametrize("steps", [200, 800])
def test_on_a_quadratic_the_blow_up_lags_by_the_zero_of_the_dilogarithm_however_slow(steps):
    found = range_test(lambda: quadratic(), Cell(optimizer="gd"), low=1e-3, high=100, steps=steps)
    # Li2 by its series at 1 / x: Re Li2(x) = pi^2 / 3 - log(x)^2 / 2 - Li2(1 / x).
    x = 2 * QUADRATIC
    assert math.pi**2 / 3 - math.log(x) ** 2 / 2 == pytest.approx(sum(x**-k / k**2 for k in range(1, 60)), abs=1e-12)
    # One step of the grid on either side, and what the loss gains there.
    assert found.ratio == pytest.approx(QUADRATIC, rel=2 * math.log(1e5) / steps)


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        ("sgd(momentum=0.9)", 2 * 1.9),
        ("nesterov", 2 * 1.9 / 2.8),
        ("sgd", 2.0),
    ],
)
def test_the_critical_rate_is_the_optimizers(optimizer, factor):
    found = range_test(lambda: quadratic(), Cell(optimizer=optimizer, batch_size="full"), low=1e-3, high=10, steps=60)
    assert found.critical_start == pytest.approx(factor / 8.0)
    assert found.critical == pytest.approx(factor / 8.0)


def test_where_the_curvature_changes_on_the_way_the_rate_meets_that_of_its_own_step():
    """Loss w^4 / 4 has the second derivative 3 w^2: flatter and flatter on the way down."""
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.ones(1, 1, dtype=torch.float64)

    def quartic(outputs, target):
        return (outputs**4 / 4).mean()

    task = Task(model, quartic, (x, x))
    found = range_test(lambda: task, Cell(optimizer="gd"), low=1e-3, high=100, steps=300)
    w, meets = 1.0, None
    for rate in found.rate:  # by hand
        if rate * 3 * w**2 >= 2:
            meets = rate
            break
        w -= rate * w**3
    assert found.critical_start == pytest.approx(2 / 3)
    assert found.critical == pytest.approx(meets, rel=math.log(1e5) / 299) if meets else math.isnan(found.critical)
    measured = np.isfinite(found.stable)
    assert 5 <= measured.sum() < 40
    np.testing.assert_allclose(found.stable[measured] * found.lambda_max[measured], 2.0)
    np.testing.assert_allclose(found.held, found.loss)  # one batch: the same samples


def test_a_loss_below_zero_blows_up_by_what_it_has_risen():
    def shifted(outputs, target):
        return nn.functional.mse_loss(outputs, target) - 5.0

    plain = range_test(lambda: quadratic(), Cell(optimizer="gd"), low=1e-3, high=100, steps=200)
    below = range_test(lambda: quadratic().replace(loss=shifted), Cell(optimizer="gd"), low=1e-3, high=100, steps=200)
    assert below.critical == plain.critical
    assert plain.divergence <= below.divergence < 1.5 * plain.divergence


def test_a_bounded_loss_blows_up_too():
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    y = 2 * (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

    def bounded():
        return Task(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), nn.CrossEntropyLoss(), (x, y))

    # Four classes: 0.75 by guessing, 2 at the most.
    found = range_test(bounded, Cell(loss="brier", optimizer="sgd", batch_size=50), high=1e3)
    assert found.held[0] == pytest.approx(0.75, abs=0.2)
    assert found.critical < found.divergence < 1e3


def test_momentum_that_swings_back_is_no_blow_up():
    found = range_test(
        lambda: quadratic(), Cell(optimizer="sgd(momentum=0.9)", batch_size="full"), low=0.01, high=0.4, steps=60
    )
    assert found.held[10:].max() > 0.3 * found.held[0] > found.held.min()  # it does swing back
    assert math.isnan(found.divergence)  # the threshold is 0.475


def test_weight_decay_adds_to_every_eigenvalue():
    found = range_test(
        lambda: quadratic(), Cell(optimizer="sgd(weight_decay=0.5)", batch_size="full"), low=1e-3, high=1e-2, steps=5
    )
    assert found.critical_start == pytest.approx(2 / 8.5)


def test_an_optimizer_without_a_state_has_a_threshold_from_its_first_step_on():
    found = range_test(lambda: quadratic(), Cell(optimizer="adam", batch_size="full"), low=1e-3, high=10, steps=50)
    assert math.isnan(found.critical_start)
    assert found.stable[1] > 0
    assert found.operator == "preconditioned"
    assert any("no threshold at the start" in note for note in found.notes)


def test_an_optimizer_without_a_threshold_is_said_and_its_losses_are_there():
    found = range_test(lambda: quadratic(), Cell(optimizer="lbfgs", batch_size="full"), low=1e-3, high=1, steps=5)
    assert math.isnan(found.critical)
    assert found.products == 0
    assert any("no threshold at the start" in note and "not defined" in note for note in found.notes)


def test_curvature_can_be_left_out():
    found = range_test(lambda: quadratic(), Cell(optimizer="gd"), low=1e-3, high=100, steps=50, curvature=False)
    assert found.divergence > found.best
    assert found.products == 0
    assert not found.warnings


def test_a_rate_above_the_threshold_from_the_beginning_is_said():
    found = range_test(lambda: quadratic(), Cell(optimizer="gd"), low=0.26, high=10, steps=30)
    assert math.isnan(found.critical)
    assert "at the lowest rate already" in found.warnings[0]


def test_a_rate_that_never_blows_up_is_said():
    found = range_test(lambda: quadratic(), Cell(optimizer="gd"), low=1e-3, high=1e-2, steps=5)
    assert math.isnan(found.divergence)
    assert math.isnan(found.ratio)
    assert "never blew up" in found.warnings[0]
    assert "met its stability threshold never below" in found.warnings[1]


def test_the_generators_and_the_result_survive(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = range_test(lambda: quadratic(), Cell(optimizer="gd"), low=1e-3, high=100, steps=50)
    assert torch.equal(torch.get_rng_state(), before)
    save_archive(tmp_path / "rates.h5", found)
    (entry,) = open_archive(tmp_path / "rates.h5").entries
    assert isinstance(entry.result, RangeTest)
    np.testing.assert_array_equal(entry.result.rate, found.rate)
    assert entry.result.summary() == pytest.approx(found.summary(), nan_ok=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"low": 1.0, "high": 0.1}, "must rise"),
        ({"low": 0.0}, "must rise"),
        ({"low": 1e-3, "high": 1.0, "steps": 2}, "3 or more"),
        ({"low": 1e200, "high": 1e300, "steps": 5}, "blew up at the lowest rate"),
    ],
)
def test_rates_that_can_not_be_are_refused(given, said):
    with pytest.raises(TrainingError, match=said):
        range_test(lambda: quadratic(), Cell(optimizer="gd"), **given)
