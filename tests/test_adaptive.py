"""Adaptive planes: the interpolation against slow versions, and what is stated against grids that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import RBFInterpolator
from torch import nn

from landscape import Task, journal
from landscape.errors import MeasurementError
from landscape.surface.adaptive import (
    FIRST,
    HELD_OUT,
    Filled,
    OutOfTime,
    Sheet,
    _finished,
    _hold_out,
    _interpolant,
    _lattice,
    between,
    coarse_to_fine,
    fill,
)
from landscape.surface.grid import axis, plane
from landscape.surface.interpolation import Interpolant

STEPS = np.linspace(-1, 1, 41)


def scattered(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 2))


def sheet_of(loss: np.ndarray, most: int | None = None) -> Sheet:
    """Return a sheet over a grid that is known, whose time is over after `most` points."""
    left = [math.inf if most is None else most]

    def evaluate(points):
        for p in points:
            if left[0] <= 0:
                raise OutOfTime
            left[0] -= 1
            yield p, loss[p]

    return Sheet(np.linspace(-1, 1, loss.shape[0]), np.linspace(-3, 5, loss.shape[1]), evaluate, float(loss.flat[0]))


def errors(found: Filled, loss: np.ndarray) -> np.ndarray:
    true = found.heights.forward(loss)
    return np.abs(found.heights.forward(found.loss) - true) / np.ptp(true)


def basin(seed: int = 0, n: int = 41) -> np.ndarray:
    """Return a surface as trained nets have them: a narrow minimum, slopes that level off, a ridge with a kink."""
    g = np.random.default_rng(seed)
    a, b = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n), indexing="ij")
    turn, shift = g.uniform(0, math.pi), g.uniform(-0.3, 0.3)
    u, v = a * math.cos(turn) + b * math.sin(turn), b * math.cos(turn) - a * math.sin(turn)
    rise = 3 * np.tanh(2 * (u**2 + g.uniform(0.2, 1) * v**2)) + 0.5 * np.abs(u - shift) * np.maximum(v, 0)
    return 0.02 + rise


# ----------------------------------------------------------------------------------------------- interpolation


def test_the_surface_is_that_of_another_library():
    p, at = scattered(40), scattered(25, 1)
    values = np.sin(3 * p[:, 0]) + p[:, 1] ** 2
    expected = RBFInterpolator(p, values, kernel="cubic", degree=1)(at)
    np.testing.assert_allclose(Interpolant(p, values)(at), expected, rtol=1e-8, atol=1e-10)


def test_it_goes_through_its_points_and_is_exact_for_planes():
    p, at = scattered(30), scattered(9, 1)
    values = 2 - 3 * p[:, 0] + 0.5 * p[:, 1]
    np.testing.assert_allclose(Interpolant(p, values)(p), values, atol=1e-10)
    np.testing.assert_allclose(Interpolant(p, values)(at), 2 - 3 * at[:, 0] + 0.5 * at[:, 1], atol=1e-10)


def test_leave_one_out_errors_are_those_of_leaving_one_out():
    p = scattered(20)
    values = np.exp(p[:, 0] * p[:, 1])
    for i, error in enumerate(Interpolant(p, values).left_out):
        rest = np.arange(20) != i
        assert error == pytest.approx(values[i] - Interpolant(p[rest], values[rest])(p[i : i + 1])[0], abs=1e-9)


def test_the_deviation_is_nothing_at_the_points_and_largest_in_the_gap():
    p = np.stack(np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9)), -1).reshape(-1, 2)
    p = p[np.linalg.norm(p - 0.3, axis=1) > 0.4]
    surface = Interpolant(p, np.cos(4 * p[:, 0]))
    # A difference of large numbers, and then its root: rounding leaves some 1e-8 of the power, 1e-4 of the deviation.
    assert surface.survey(p).deviation.max() < 1e-3 * surface.survey(np.array([[0.3, 0.3]])).deviation[0]
    candidates = scattered(500, 2)
    survey = surface.survey(candidates)
    (first,) = surface.spread_out(survey, 1)
    assert first == survey.deviation.argmax()
    assert np.linalg.norm(candidates[survey.power.argmax()] - 0.3) < 0.4


def test_the_roughness_is_that_of_the_neighbours_and_a_share_of_all():
    p, at = scattered(12), scattered(7, 1)
    values = np.sin(3 * p[:, 0]) + np.abs(p[:, 1])
    surprises = []
    for i in range(12):
        rest = np.arange(12) != i
        others = Interpolant(p[rest], values[rest])
        power = others.survey(p[i : i + 1]).power[0]
        surprises.append((values[i] - others(p[i : i + 1])[0]) ** 2 / power)
    for x, found in zip(at, Interpolant(p, values).survey(at).roughness, strict=True):
        squares = [float(((x - y) ** 2).sum()) for y in p]
        width = sorted(squares)[2]
        weights = [math.exp(-s / (2 * width)) for s in squares]
        # One point more, which was as surprising as all are on average.
        total = math.fsum(w * s for w, s in zip(weights, surprises, strict=True)) + math.fsum(surprises) / 12
        assert found == pytest.approx(math.sqrt(total / (math.fsum(weights) + 1)), rel=1e-6)


def test_points_chosen_together_keep_apart_as_if_chosen_one_by_one():
    p = scattered(8)
    surface = Interpolant(p, np.zeros(8))  # nothing but distances decides
    candidates = scattered(300, 3)
    chosen = surface.spread_out(surface.survey(candidates), 40)
    assert len(set(chosen)) == 40
    for k in range(1, 40):
        more = np.vstack([p, candidates[chosen[:k]]])
        alone = Interpolant(more, np.zeros(len(more)))
        power = alone.survey(candidates).power
        assert power[chosen[k]] == pytest.approx(power.max(), rel=1e-6)


# ---------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize("seed", range(4))
def test_the_tolerance_is_kept_with_few_points(seed):
    loss = basin(seed, 51)
    found = fill(sheet_of(loss), 0.01, seed=seed)
    assert found.finished
    assert found.evaluated.sum() <= 0.1 * loss.size
    assert errors(found, loss).max() <= 0.01
    assert 0 < found.error <= 0.01
    assert 0 < found.error_p95 <= found.error
    np.testing.assert_array_equal(found.loss[found.evaluated], loss[found.evaluated])
    assert (found.deviation[found.evaluated] == 0).all()


def test_what_is_stated_holds_as_often_as_it_should():
    stated = []
    for seed in range(16):
        loss = basin(seed, 51)
        found = fill(sheet_of(loss), (0.01, 0.02, 0.03)[seed % 3], seed=seed)
        rest = ~found.evaluated
        assert rest.any()
        off = errors(found, loss)[rest]
        stated.append((found.error / off.max(), found.error_p95 / np.quantile(off, 0.95)))
    ratios = np.array(stated)
    assert (ratios[:, 0] >= 1).mean() >= 0.8
    assert (ratios[:, 0] >= 0.5).all()
    assert (ratios[:, 1] >= 1).mean() >= 0.89


def test_the_same_losses_give_the_same_points():
    loss = basin()
    a, b, other = (fill(sheet_of(loss), 0.01, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(a.evaluated, b.evaluated)
    np.testing.assert_array_equal(a.loss, b.loss)
    assert (a.evaluated != other.evaluated).any()


def test_a_tighter_tolerance_takes_more_points():
    counts = [fill(sheet_of(basin(1, 51)), tol).evaluated.sum() for tol in (0.03, 0.01, 0.003)]
    assert counts[0] < counts[1] < counts[2]


def test_a_rough_surface_is_evaluated_as_a_whole():
    loss = 1 + np.random.default_rng(0).random((41, 41))
    found = fill(sheet_of(loss), 0.01)
    assert found.evaluated.all()
    assert (found.error, found.error_p95) == (0.0, 0.0)
    assert "too rough" in found.reason
    np.testing.assert_array_equal(found.loss, loss)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_hole_makes_the_whole_grid_be_evaluated(bad):
    loss = basin()
    loss[30:, 25:] = bad
    found = fill(sheet_of(loss), 0.01)
    assert found.evaluated.all()
    assert "not finite" in found.reason
    np.testing.assert_array_equal(found.loss, loss)


def test_a_loss_of_zero_or_below_goes_by_asinh():
    loss = basin() - 0.5
    found = fill(sheet_of(loss), 0.01)
    assert found.heights.scale == "asinh"
    assert found.heights.width == abs(loss.flat[0])
    assert errors(found, loss).max() <= 0.01
    assert not found.evaluated.all()


class TestPointsHeldOut:
    """What they bound is the error of points that were predicted first, whatever their loss is."""

    def start(self, loss: np.ndarray) -> Sheet:
        """Return a sheet with the first lattice, which knows nothing of what lies between its points."""
        sheet = sheet_of(loss)
        sheet.add(_lattice(sheet))
        return sheet

    def pit(self, depth: float) -> np.ndarray:
        """Return a surface whose floor, between the first points, is flat at 0.03 - `depth`."""
        a, b = np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41), indexing="ij")
        return np.maximum((a + 0.35) ** 2 + (b + 0.35) ** 2, 0.03) - depth

    @pytest.mark.parametrize("depth", [0.0, 0.03, 0.0300001], ids=["above zero", "zero", "below zero"])
    def test_a_loss_of_zero_among_them_counts_as_every_other(self, depth):
        loss = self.pit(depth)
        sheet = self.start(loss)
        known = sheet.evaluated.copy()
        assert (loss[known] > 0).all()
        surface, heights, _ = _interpolant(sheet)
        heard = _hold_out(sheet, surface, heights, 0)
        drawn = sheet.evaluated & ~known
        assert drawn.sum() == HELD_OUT
        assert (loss[drawn] == loss.min()).any()
        predicted = heights.backward(surface(sheet.positions[drawn]))
        scale = np.log if depth == 0 else lambda x: np.arcsinh(x / sheet.center)
        expected = np.abs(scale(predicted) - scale(loss[drawn])).max() / np.ptp(scale(loss[sheet.evaluated]))
        assert heard == pytest.approx(expected, rel=1e-12)
        assert 0 < heard < 1

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_none_that_is_not_finite_bounds_anything(self, bad):
        loss = basin()
        loss[7:20, 7:20] = bad  # between the first points
        sheet = self.start(loss)
        assert np.isfinite(loss[sheet.evaluated]).all()
        surface, heights, _ = _interpolant(sheet)
        assert math.isnan(_hold_out(sheet, surface, heights, 0))

    def test_a_spike_on_what_seemed_flat_is_told(self):
        loss = np.full((41, 41), 0.7)
        loss[8:16, 8:16] = 0.9  # between the first points
        sheet = self.start(loss)
        surface, heights, extent = _interpolant(sheet)
        assert extent == 0
        assert _hold_out(sheet, surface, heights, 0) == pytest.approx(1.0)


def test_a_flat_surface_needs_the_first_points_and_those_held_out_alone():
    found = fill(sheet_of(np.full((41, 41), 0.7)), 0.01)
    assert found.evaluated.sum() <= FIRST**2 + HELD_OUT + 3
    np.testing.assert_allclose(found.loss, 0.7, rtol=1e-11)
    assert found.error == 0


def test_a_budget_is_kept_and_what_was_not_reached_is_said():
    loss = basin(2, 51)
    found = fill(sheet_of(loss), 1e-4, budget=150)
    assert found.evaluated.sum() == 150
    assert not found.finished
    assert found.error > 1e-4
    assert "budget of 150 points" in found.reason
    assert errors(found, loss).max() <= 2 * found.error
    rough = fill(sheet_of(1 + np.random.default_rng(0).random((41, 41))), 0.01, budget=900)
    assert rough.evaluated.sum() == 900
    assert not rough.finished


@pytest.mark.parametrize("budget", [110, 111, 112])  # rounds add 3 points: one of these ends 1 above those held out
def test_a_budget_holds_the_points_held_out(budget):
    found = fill(sheet_of(basin()), 1e-6, budget=budget)
    assert found.evaluated.sum() == budget
    assert math.isfinite(found.error_p95)


def test_the_bound_is_what_was_heard_and_no_estimate():
    sheet = sheet_of(np.exp(basin()))
    sheet.add(_lattice(sheet))
    found = _finished(sheet, 0.9, 0.5, "")
    assert found.error < 0.9
    assert found.error_p95 == 0.9
    assert math.isnan(_finished(sheet, math.nan, 0.5, "").error_p95)


@pytest.mark.parametrize("tol", [None, 0.001])
def test_what_there_was_time_for_is_interpolated(tol):
    loss = basin(3)
    found = fill(sheet_of(loss, most=120), tol)
    assert found.evaluated.sum() == 120
    assert not found.finished
    assert "time limit" in found.reason
    assert np.isfinite(found.loss).all()
    assert errors(found, loss).max() <= 2 * found.error


def test_deviations_are_shares_of_the_range():
    # Cubed, a loss has three times the range of heights, and every error with it.
    plain, cubed = (fill(sheet_of(loss, most=120), 0.01) for loss in (basin(3), basin(3) ** 3))
    np.testing.assert_allclose(cubed.deviation, plain.deviation, rtol=1e-6)
    assert cubed.error == pytest.approx(plain.error, rel=1e-6)


def test_too_little_time_leaves_holes_and_no_error_is_made_up():
    found = fill(sheet_of(basin(), most=4), None)
    assert np.isnan(found.loss).sum() == 41 * 41 - 4
    assert math.isnan(found.error)


def test_stopped_beside_a_hole_nothing_is_made_up_there():
    loss = basin()
    loss[25:, :] = math.nan
    found = fill(sheet_of(loss, most=200), 0.01)
    assert not found.finished
    assert np.isnan(found.loss[30:]).all()
    assert np.isfinite(found.loss[:20]).all()


def test_a_small_grid_is_evaluated_as_a_whole():
    found = fill(sheet_of(basin()[::5, ::5]), 0.01)
    assert found.evaluated.all()


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (9, 9), (15, 4)])
def test_coarse_to_fine_is_every_point_once_the_corners_first(shape):
    order = coarse_to_fine(shape)
    assert sorted(order) == [(i, j) for i in range(shape[0]) for j in range(shape[1])]
    ends = {0, shape[0] - 1}, {0, shape[1] - 1}
    corners = {(i, j) for i in ends[0] for j in ends[1]}
    assert set(order[: len(corners)]) == corners


def test_accuracies_are_interpolated_linearly_inside_what_was_evaluated():
    sheet = sheet_of(basin())
    sheet.add([(0, 0), (0, 40), (40, 0), (40, 40), (20, 20)])
    a, b = np.meshgrid(STEPS, STEPS, indexing="ij")
    exact = 0.5 + 0.25 * a - 0.125 * b
    found = between(np.where(sheet.evaluated, exact, np.nan), sheet)
    np.testing.assert_allclose(found, exact, atol=1e-12)


# -------------------------------------------------------------------------------------------------- on a model


def digits() -> Task:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(120, 6, generator=g, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0).long()
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return Task(model, nn.CrossEntropyLoss(), (x, y), (x[:40], y[:40]))


def test_an_adaptive_plane_is_the_full_one_within_its_error():
    task, steps = digits(), axis(1, 41)
    full = plane(task, alphas=steps, betas=steps, held_out=True)
    found = plane(task, alphas=steps, betas=steps, tol=0.01, held_out=True)
    assert found.evaluated.sum() < 0.15 * full.loss.size
    known = found.evaluated
    for name in ("loss", "accuracy", "held_out_loss", "held_out_accuracy"):
        np.testing.assert_array_equal(getattr(found, name)[known], getattr(full, name)[known])
    off = np.abs(np.log(found.loss) - np.log(full.loss)) / np.ptp(np.log(full.loss))
    assert off.max() <= found.error <= 0.01
    assert found.loss[20, 20] == found.center_loss == found.checkpoint_loss
    assert found.cost.passes < 0.5 * full.cost.passes
    (check,) = [c for c in found.checks if c.name == "interpolation"]
    assert (check.level, check.value, check.limit) == ("pass", found.error, 0.01)
    assert f"{known.sum()} of 1681 points were evaluated" in check.message
    assert any("accuracy is interpolated linearly" in n for n in found.notes)
    assert (full.error, full.error_p95, full.deviation) == (0.0, 0.0, None)


@pytest.mark.parametrize(("seconds", "points"), [(50, 49), (0, 0)])
def test_a_time_limit_leaves_the_best_picture_so_far(monkeypatch, seconds, points):
    ticks = iter(range(10**6))  # a clock that moves by a second whenever somebody looks
    monkeypatch.setattr(journal, "monotonic", lambda: next(ticks))
    found = plane(digits(), alphas=axis(1, 21), betas=axis(1, 21), time_limit=seconds)
    assert found.status == "partial"
    assert abs(found.evaluated.sum() - points) <= 2
    assert np.isfinite(found.loss).all() == bool(points)
    assert found.center_loss == found.checkpoint_loss
    (check,) = [c for c in found.checks if c.name == "interpolation"]
    assert check.level == "warn"
    assert "time limit" in check.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tol": 0}, "tol=0 must be a share"),
        ({"tol": 1.5}, "between 0 and 1"),
        ({"tol": math.nan}, "tol=nan"),
        ({"tol": "1%"}, "tol='1%'"),
        ({"budget": 100}, "needs a tolerance"),
        ({"tol": 0.01, "budget": 50}, "at least 85 points"),
    ],
)
def test_a_tolerance_that_nothing_could_keep_is_refused(options, message):
    with pytest.raises(MeasurementError, match=message):
        plane(digits(), alphas=axis(1, 3), betas=axis(1, 3), **options)
