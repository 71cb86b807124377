"""Basins: radii and volumes in closed form, roughness of known curves, rays that never rise, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import gammaln
from torch import nn
from untouched import State, data, messy

from landscape.errors import MeasurementError, ObjectiveError
from landscape.objective import Objective
from landscape.results import measurements, rebuild
from landscape.surface.basin import _drawn, _sampled, _scales, basin, log_volume, roughness
from landscape.tasks import Task

DOUBLE = torch.float64


class Bowl(nn.Module):
    """A loss of its weights alone, one row of filters each of its own size."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)


def of_weights(weight: torch.Tensor, loss, **settings) -> Task:
    def batch_loss(model, batch):
        return loss(model.weight) + 0 * batch.mean()

    return Task(Bowl(weight), train=[torch.zeros(4, 1, dtype=DOUBLE)], batch_loss=batch_loss, rebatch=False, **settings)


WEIGHT = torch.tensor([[3.0, 4.0], [0.5, -0.5], [1.0, 0.0]], dtype=DOUBLE)
#: Root mean square of each filter, for each of its weights.
SCALE = np.repeat([5 / math.sqrt(2), 0.5, 1 / math.sqrt(2)], 2)
CURVATURE = torch.tensor([[1.0, 2.0], [30.0, 40.0], [5.0, 6.0]], dtype=DOUBLE)


def ellipsoid() -> Task:
    return of_weights(WEIGHT.clone(), lambda w: (CURVATURE * (w - WEIGHT) ** 2).sum())


def level(result, name: str) -> str:
    return {c.name: c.level for c in result.checks}[name]


# ------------------------------------------------------------------------------------------------------- radii


def test_the_radii_of_a_quadratic_are_known():
    made = ellipsoid()
    found = basin(made, rays=5, rises=(0.1, 1.0, 20.0), tol=1e-6, seed=3)
    with Objective(made) as objective:
        scales, n = _scales(objective, "biasbn")
    np.testing.assert_allclose(scales[0].numpy().ravel(), SCALE, rtol=1e-14)
    assert n == found.dimensions == 6
    for i in range(5):
        d = _drawn(scales, n, 3, i)[0].numpy().ravel()
        bend = (CURVATURE.numpy().ravel() * d**2).sum()
        for j, rise in enumerate((0.1, 1.0, 20.0)):
            np.testing.assert_allclose(found.radius[i, :, j], math.sqrt(rise / bend), rtol=1e-6)
        # A unit vector in units of the filters' sizes, times sqrt(n).
        assert np.linalg.norm(d / SCALE) == pytest.approx(math.sqrt(6), rel=1e-12)
    np.testing.assert_allclose(found.width, found.radius.sum(axis=1).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(found.width_stderr, found.width_spread / math.sqrt(5), rtol=1e-14)


def test_the_first_rise_counts_and_a_dip_behind_it_is_said():
    # Along one line: up to 2 at a distance of 1 of its weight, down to 0 at 2, up again.
    made = of_weights(
        torch.ones(1, 2, dtype=DOUBLE), lambda w: 2 * torch.sin(math.pi / 2 * (w - 1).norm() / math.sqrt(2)).abs()
    )
    found = basin(made, rays=2, rises=(1.0,), tol=1e-6, span=2.0)
    np.testing.assert_allclose(found.radius, 1 / 3, rtol=1e-5)  # 2 sin(pi/6) = 1
    assert level(found, "star") == "warn"
    assert level(basin(ellipsoid(), rays=2), "star") == "pass"


def test_a_dip_just_behind_the_radius_is_said():
    def stairs(w: torch.Tensor) -> torch.Tensor:
        r = (w - 1).norm() / math.sqrt(2)
        return r / 0.3 - torch.where((r > 0.42) & (r < 0.5), 1.2, 0.0)

    found = basin(of_weights(torch.ones(1, 2, dtype=DOUBLE), stairs), rays=2, rises=(1.0,), tol=1e-6, span=2.0)
    np.testing.assert_allclose(found.radius, 0.3, rtol=1e-5)
    assert level(found, "star") == "warn"  # 2 / 25 apart, one step lies at 0.48


def test_a_ray_that_never_rises_is_not_counted_and_said():
    made = of_weights(torch.ones(1, 2, dtype=DOUBLE), lambda w: torch.relu(w - 1).square().sum())
    found = basin(made, rays=6, rises=(0.5,), limit=4.0)
    assert np.isnan(found.radius).any()
    assert level(found, "reached") == "warn"
    assert level(found, "volume") == "warn"
    both = np.isfinite(found.radius[:, :, 0]).all(axis=1)
    assert 1 < both.sum() < len(both)
    widths = found.radius[both, :, 0].sum(axis=1)
    assert found.width[0] == pytest.approx(widths.mean())
    assert found.width_stderr[0] == pytest.approx(widths.std(ddof=1) / math.sqrt(len(widths)))
    flat = basin(of_weights(torch.ones(1, 2, dtype=DOUBLE), lambda w: 0 * w.sum()), rays=2)
    assert np.isnan(flat.width).all()
    assert flat.roughness == 0


def test_a_loss_that_is_not_finite_has_risen():
    made = of_weights(torch.ones(1, 2, dtype=DOUBLE), lambda w: -(w.log()).mean())
    found = basin(made, rays=4, rises=(50.0,), tol=1e-4)
    with Objective(made) as objective:
        scales, n = _scales(objective, "biasbn")
    for i in range(4):
        d = _drawn(scales, n, 0, i)[0].numpy().ravel()
        # The logarithm ends where a weight reaches 0: there the loss is NaN beyond, long before it is 50.
        for k, sign in enumerate((-1, 1)):
            ends = [-1 / (sign * v) for v in d if sign * v < 0]
            if ends:
                assert found.radius[i, k, 0] == pytest.approx(min(ends), rel=2e-4)
    assert level(found, "finite") == "warn"


# ------------------------------------------------------------------------------------------------------ volume


def test_the_volume_of_an_ellipsoid_is_known():
    rise = 0.7
    found = basin(ellipsoid(), rays=400, rises=(rise,), tol=1e-4, side=2)
    axes = rise / (CURVATURE.numpy().ravel() * SCALE**2)
    exact = 3 * math.log(math.pi) - gammaln(4) + 0.5 * np.log(axes).sum()
    # Four standard errors of its own; the estimate is far from certain with 400 lines, and says so.
    assert abs(found.log_volume[0] - exact) < 4 * found.log_volume_stderr[0]
    assert 0.02 < found.log_volume_stderr[0] < 0.5
    assert found.log_volume_bound[0] < exact
    assert found.effective_rays[0] > 10
    assert level(found, "volume") == "pass"


def test_the_volume_of_a_ball_is_exact():
    radii = np.full((3, 2), 2.0)
    for n in (1, 2, 3, 10_000):
        found = log_volume(radii, n)
        exact = n / 2 * math.log(math.pi) - gammaln(n / 2 + 1) + n * math.log(2)
        assert found.value == pytest.approx(exact, rel=1e-12)
        assert found.bound == pytest.approx(exact, rel=1e-12)
        assert found.stderr == pytest.approx(0, abs=1e-8)
        assert found.effective == pytest.approx(3)
    assert math.exp(log_volume(radii, 2).value) == pytest.approx(4 * math.pi)


def test_the_errors_of_a_volume_are_those_of_leaving_lines_out():
    radii = np.array([[1.0, 1.0], [1.0, 3.0], [3.0, 3.0]])  # means 1, 2 and 3 in one dimension
    found = log_volume(radii, 1)
    assert found.value == pytest.approx(math.log(2 * 2.0))  # a line's own two ends
    without = np.log([2.5, 2.0, 1.5])
    assert found.stderr == pytest.approx(math.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum()))
    means = np.array([0, math.log(3) / 2, math.log(3)])
    assert found.bound == pytest.approx(math.log(2) + means.mean())
    assert found.bound_stderr == pytest.approx(means.std(ddof=1) / math.sqrt(3))
    assert found.effective == pytest.approx(36 / 14)  # (1 + 2 + 3)^2 / (1 + 4 + 9)


def test_one_long_ray_rules_a_volume_in_many_dimensions():
    found = log_volume(np.array([[1.0, 1.0], [1.0, 1.0], [1.2, 1.0]]), 1000)
    assert found.effective == pytest.approx(1.0)
    assert found.stderr > 50
    assert found.bound < found.value


# --------------------------------------------------------------------------------------------------- roughness


def test_the_roughness_of_known_curves():
    steps = np.linspace(-1, 1, 201)
    curves = {
        "valley": steps**2,
        "slope": steps,
        "off center": (steps - 0.3) ** 4,
        "flat": 0 * steps,
        "waves": np.cos(3 * np.pi * steps) + 1,
    }
    rough, varied, turns = roughness(np.array(list(curves.values())))
    np.testing.assert_allclose(rough[:4], 0, atol=1e-12)
    assert turns[:4].tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(varied[:4], [2, 1, (1.3**4 + 0.7**4) / 1.3**4, 0], rtol=1e-6)
    # cos(3 pi s) + 1 from -1 to 1: ends at 0, up to 2 three times.
    assert rough[4] == math.inf
    assert varied[4] == pytest.approx(6, rel=1e-3)
    assert turns[4] == 5
    wave, _, _ = roughness(np.array([np.cos(4 * np.pi * steps) + 1]))
    assert wave[0] == pytest.approx(3.0, rel=1e-6)  # down and up four times; a valley does it once
    assert np.isnan(roughness(np.array([[1.0, np.nan, 2.0]]))[0]).all()


def test_a_basin_says_how_rough_it_is():
    rippled = of_weights(
        torch.ones(1, 40, dtype=DOUBLE), lambda w: (w - 1).square().sum() + 4 * torch.cos(12 * (w - 1)).mean()
    )
    smooth = of_weights(torch.ones(1, 40, dtype=DOUBLE), lambda w: (w - 1).square().sum())
    rough, plain = (basin(made, rays=4) for made in (rippled, smooth))
    assert plain.roughness == pytest.approx(0, abs=1e-12)
    assert rough.roughness > 10 * rough.roughness_stderr > 0
    assert rough.roughness_spread == pytest.approx(rough.line_roughness.std(ddof=1))
    assert rough.roughness_stderr == pytest.approx(rough.roughness_spread / 2)
    assert rough.loss.shape == (4, 51)
    assert (rough.loss[:, 25] == rough.loss[0, 25]).all()
    assert rough.step[25] == 0


@pytest.mark.parametrize(("error", "expected"), [(0.2, "pass"), (0.5, "warn"), (math.nan, "pass")])
def test_a_rise_below_the_losses_own_error_is_said(error, expected):
    check = _sampled(np.array([1.0, 0.3]), error)
    assert check.level == expected
    if not math.isnan(error):
        assert (check.value, check.limit) == (error, 0.3)


# ------------------------------------------------------------------------------------------------ what is moved


def test_lines_follow_from_the_seed_one_by_one():
    few, more, other = (basin(ellipsoid(), rays=r, rises=(1.0,), seed=s) for r, s in ((2, 1), (4, 1), (2, 2)))
    np.testing.assert_array_equal(few.radius, more.radius[:2])
    assert not np.array_equal(few.radius, other.radius)


def test_biases_stay_or_go_along():
    made = Task(nn.Linear(3, 2).to(DOUBLE), nn.MSELoss(), (torch.randn(5, 3, dtype=DOUBLE), torch.zeros(5, 2).double()))
    assert basin(made, rays=2).dimensions == 6
    assert basin(made, rays=2, ignore=None).dimensions == 8
    with torch.no_grad():
        made.model.weight[0].zero_()
    assert basin(made, rays=2).dimensions == 3
    with torch.no_grad():
        made.model.weight.zero_()
    with pytest.raises(MeasurementError, match="nothing to move"):
        basin(made, rays=2)


def test_the_callers_model_is_untouched():
    model = messy()
    made = Task(model, nn.CrossEntropyLoss(), data(40, torch.float32))
    before = State(model)
    found = basin(made, rays=2)
    before.unchanged()
    assert rebuild("basin", found.variables(), found.attributes()).dimensions == found.dimensions
    assert not measurements()["basin"].default


def test_settings_out_of_range_are_refused():
    made = ellipsoid()
    for wrong in (
        {"rays": 1}, {"rays": 2.0}, {"side": 1}, {"rises": ()}, {"rises": (0.1, -1)}, {"rises": (math.nan,)},
        {"rises": 0.1}, {"tol": 0}, {"tol": 1.0}, {"span": 0}, {"span": 20.0}, {"limit": math.inf}, {"seed": -1},
    ):  # fmt: skip
        with pytest.raises(MeasurementError, match=next(iter(wrong))):
            basin(made, **wrong)
    with pytest.raises(ObjectiveError):
        basin(of_weights(torch.ones(1, 2, dtype=DOUBLE), lambda w: (w - 2).log().sum()))


@pytest.mark.gpu
def test_on_a_gpu_the_lines_are_the_same():
    np.testing.assert_allclose(
        basin(ellipsoid().replace(device="cuda"), rays=2).radius, basin(ellipsoid(), rays=2).radius
    )
