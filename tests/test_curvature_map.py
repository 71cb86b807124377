"""Eigenvalue maps: against dense Hessians at every point, warm and cold, holes, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from untouched import State, messy
from untouched import data as batch

from landscape.errors import MeasurementError
from landscape.objective import Objective
from landscape.results import measurements, rebuild
from landscape.surface.curvature_map import eigenvalue_map
from landscape.surface.directions import Direction, random_direction
from landscape.surface.grid import SECOND_SEED
from landscape.tasks import Task

DOUBLE = torch.float64


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(DOUBLE)


def data(n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g, dtype=DOUBLE), torch.randint(3, (n,), generator=g)


def task() -> Task:
    return Task(net(), nn.CrossEntropyLoss(), data(), batch_size=11)


def dense(weights: dict[str, torch.Tensor]) -> np.ndarray:
    """Return the Hessian of the mean loss at these weights by double differentiation of a flat vector."""
    model, (x, y) = net(), data()
    sizes = [w.numel() for w in weights.values()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        parts = {n: p.view_as(weights[n]) for n, p in zip(weights, flat.split(sizes), strict=True)}
        return F.cross_entropy(functional_call(model, parts, x), y)

    return torch.autograd.functional.hessian(loss, torch.cat([w.reshape(-1) for w in weights.values()])).numpy()


@pytest.mark.parametrize("warm", [True, False])
def test_every_point_has_the_ends_of_its_dense_spectrum(warm):
    made = task()
    d1, d2 = random_direction(made, 1), random_direction(made, 2)
    alphas, betas = np.array([-1.0, 0.0, 0.7]), np.array([0.0, 1.5])
    found = eigenvalue_map(made, d1, d2, alphas, betas, tol=1e-7, warm=warm)
    weights = {n: p.detach() for n, p in made.model.named_parameters()}
    for i, a in enumerate(alphas):
        for j, b in enumerate(betas):
            exact = np.linalg.eigvalsh(dense({n: w + a * d1[n] + b * d2[n] for n, w in weights.items()}))
            # An eigenvalue errs by tol^2 of the largest, over the gap to its neighbor; here the gaps are above 1e-3.
            assert found.largest[i, j] == pytest.approx(exact[-1], abs=1e-9)
            assert found.smallest[i, j] == pytest.approx(exact[0], abs=1e-9)
            assert found.ratio[i, j] == pytest.approx(abs(exact[0] / exact[-1]), abs=1e-8)
    assert (found.largest_residual <= 1e-7 * np.abs(found.largest)).all()
    assert found.converged.all()
    assert found.status == "complete"
    assert found.loss[1, 0] == pytest.approx(F.cross_entropy(made.model(data()[0]), data()[1]).item(), rel=1e-12)
    assert found.parameters == 43
    assert found.cost.products > found.products.sum()  # the audit at the center


def test_the_directions_are_those_of_the_plane_with_this_seed():
    found = measurements()["eigenvalue_map"].run(task(), seed=4, grid=2, span=0.5)
    assert found.seeds == (4, 4 + SECOND_SEED)
    assert found.alpha.tolist() == [-0.5, 0.5]
    assert not measurements()["eigenvalue_map"].default


def test_a_point_that_is_not_finite_is_a_hole_and_the_others_stay():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, dtype=DOUBLE))

        def forward(self, x):
            return x * self.weight.sqrt()

    x = torch.ones(4, 3, dtype=DOUBLE)
    made = Task(Root(), nn.MSELoss(), (x, x))
    d1 = Direction({"weight": torch.tensor([1.0, 0, 0], dtype=DOUBLE)})
    d2 = Direction({"weight": torch.tensor([0, 1.0, 0], dtype=DOUBLE)})
    # At -1 the root is 0: the loss is finite, its derivative isn't. At -2 the loss isn't either.
    found = eigenvalue_map(made, d1, d2, [-2.0, -1.0, 0.0, 1.0], [0.0, 1.0])
    assert np.isnan(found.largest[:2]).all()
    assert np.isfinite(found.largest[2:]).all()
    assert found.status == "complete"
    assert {c.name: c.level for c in found.checks}["finite"] == "warn"


def test_what_has_not_converged_is_said():
    found = eigenvalue_map(task(), alphas=[0.0, 1.0], betas=[0.0], tol=1e-9, max_products=3)
    assert found.status == "partial"
    assert not found.converged.all()
    assert {c.name: c.level for c in found.checks}["convergence"] == "warn"
    assert rebuild("eigenvalue_map", found.variables(), found.attributes()).status == "partial"


def test_an_objective_is_measured_around_its_center_and_put_back():
    made = task()
    with Objective(made) as objective:
        inside = eigenvalue_map(objective, alphas=[0.0], betas=[0.0])
        assert all(torch.equal(p, c) for p, c in zip(objective.parameters, objective.center, strict=True))
    np.testing.assert_allclose(inside.largest, eigenvalue_map(made, alphas=[0.0], betas=[0.0]).largest, rtol=1e-12)


def test_the_callers_model_is_untouched():
    model = messy()
    made = Task(model, nn.CrossEntropyLoss(), batch(40, torch.float32))
    before = State(model)
    eigenvalue_map(made, alphas=[0.0, 0.5], betas=[0.0])
    before.unchanged()


def test_what_is_no_plane_is_refused():
    made = task()
    d = random_direction(made, 1)
    with pytest.raises(MeasurementError, match="parallel"):
        eigenvalue_map(made, d, Direction({n: 2 * t for n, t in d.items()}))
    for steps, said in (([], "empty"), ([1.0, 0.0], "reversed"), ([np.nan], "finite"), ([[0.0]], "one dimension")):
        with pytest.raises(MeasurementError, match=f"betas .*{said}"):
            eigenvalue_map(made, betas=steps)
    with pytest.raises(TypeError, match="alphas must be a sequence of numbers, got str"):
        eigenvalue_map(made, alphas="all")
    with pytest.raises(MeasurementError, match="tol"):
        eigenvalue_map(made, tol=-1.0)
    with pytest.raises(MeasurementError, match="grid"):
        measurements()["eigenvalue_map"].run(made, grid=2.5)


@pytest.mark.gpu
def test_on_a_gpu_the_map_is_the_same():
    steps = [0.0, 1.0]
    expected = eigenvalue_map(task(), alphas=steps, betas=steps, tol=1e-7)
    found = eigenvalue_map(task().replace(device="cuda"), alphas=steps, betas=steps, tol=1e-7)
    np.testing.assert_allclose(found.largest, expected.largest, rtol=1e-9)
    np.testing.assert_allclose(found.smallest, expected.smallest, atol=1e-9)
