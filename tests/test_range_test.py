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
from landscape.training.rates import RangeTest


def quadratic(scale: float = 2.0) -> Task:
    """Loss (scale w)^2 of one weight: the second derivative is 2 scale^2."""
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.full((1, 1), scale, dtype=torch.float64)
    return Task(model, nn.MSELoss(), (x, torch.zeros(1, 1, dtype=torch.float64)))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_on_a_quadratic_the_loss_turns_at_two_over_lambda(scale):
    found = range_test(lambda: quadratic(scale), Cell(optimizer="gd"), low=1e-3, high=100, steps=400)
    curvature = 2 * scale**2
    assert found.lambda_start == pytest.approx(curvature)
    assert found.lambda_best == pytest.approx(curvature)
    assert found.critical_best == found.critical_start == pytest.approx(2 / curvature)
    # The last step that still shrinks the loss is the one before the critical rate: one step of the grid is 2.9%.
    assert found.best == pytest.approx(2 / curvature, rel=0.06)
    assert found.divergence > found.critical_best
    assert found.ratio == pytest.approx(found.divergence * curvature / 2)


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        ("sgd(momentum=0.9)", 2 * 1.9),
        ("nesterov", 2 * 1.9 / 2.8),
        ("sgd", 2.0),
    ],
)
def test_the_critical_rate_is_the_optimizers(optimizer, factor):
    found = range_test(lambda: quadratic(), Cell(optimizer=optimizer, batch_size="full"), low=1e-3, high=1e-2, steps=5)
    assert found.critical_start == pytest.approx(factor / 8.0)


def test_weight_decay_adds_to_every_eigenvalue():
    found = range_test(
        lambda: quadratic(), Cell(optimizer="sgd(weight_decay=0.5)", batch_size="full"), low=1e-3, high=1e-2, steps=5
    )
    assert found.critical_start == pytest.approx(2 / 8.5)


def test_an_optimizer_without_a_state_has_no_threshold_at_the_start():
    found = range_test(lambda: quadratic(), Cell(optimizer="adam", batch_size="full"), low=1e-3, high=10, steps=50)
    assert math.isnan(found.critical_start)
    assert found.critical_best > 0
    assert found.operator == "preconditioned"
    assert any("no threshold at the start" in note for note in found.notes)


def test_a_rate_that_never_blows_up_is_said():
    found = range_test(lambda: quadratic(), Cell(optimizer="gd"), low=1e-3, high=1e-2, steps=5)
    assert math.isnan(found.divergence)
    assert math.isnan(found.ratio)
    assert "never blew up" in found.warnings[0]


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
