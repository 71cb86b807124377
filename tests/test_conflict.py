"""Directions between gradients that conflict, against METHODS' numbers, a general solver and what defines them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from landscape.dynamics.conflict import conflict_free, upgrad
from landscape.errors import MeasurementError


def rows(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(seed: int, k: int, p: int) -> torch.Tensor:
    return torch.randn(k, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_worked_numbers():
    np.testing.assert_allclose(upgrad(rows([1, 0], [-2, 1])), [0.1, 0.7], atol=1e-12)
    np.testing.assert_allclose(conflict_free(rows([1, 0], [-1, 1])), [0.35355, 0.85355], atol=5e-6)


@pytest.mark.parametrize("seed", range(5))
def test_upgrad_is_the_mean_of_projections_that_a_general_solver_finds(seed):
    J = drawn(seed, 3, 5).numpy()
    found = [
        minimize(
            lambda d, g=g: 0.5 * ((d - g) ** 2).sum(),
            np.zeros(5),
            jac=lambda d, g=g: d - g,
            constraints={"type": "ineq", "fun": lambda d: J @ d, "jac": lambda d: J},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        ).x
        for g in J
    ]
    np.testing.assert_allclose(upgrad(torch.tensor(J)), np.mean(found, 0), atol=1e-6)


@pytest.mark.parametrize(("k", "p"), [(2, 50), (6, 50), (6, 4)])
def test_no_term_rises_along_upgrad(k, p):
    J = drawn(k + p, k, p)
    assert float((J @ upgrad(J)).min()) >= -1e-9


def test_without_a_conflict_upgrad_is_the_mean():
    J = drawn(0, 3, 20).abs()
    torch.testing.assert_close(upgrad(J), J.mean(0))


@pytest.mark.parametrize("k", [2, 4])
def test_conflict_free_has_one_angle_to_all_and_the_length_of_their_projections(k):
    J = drawn(k, k, 30)
    d = conflict_free(J)
    cosines = torch.nn.functional.cosine_similarity(J, d[None])
    assert float(cosines.min()) > 0
    torch.testing.assert_close(cosines, cosines.mean().expand(k))
    torch.testing.assert_close(d.norm(), (J @ d / d.norm()).sum())
    dense = np.linalg.pinv((J / J.norm(dim=1, keepdim=True)).numpy()).sum(1)
    np.testing.assert_allclose(d / d.norm(), dense / np.linalg.norm(dense), atol=1e-9)


@pytest.mark.parametrize("direction", [upgrad, conflict_free])
def test_rows_without_a_direction_and_opposite_ones(direction):
    torch.testing.assert_close(direction(torch.zeros(2, 3)), torch.zeros(3))
    torch.testing.assert_close(direction(rows([1, 2], [-1, -2])), torch.zeros(2, dtype=torch.float64))
    alone = direction(rows([3, 4], [0, 0]))
    torch.testing.assert_close(alone / alone.norm(), rows([0.6, 0.8])[0])
    assert direction(drawn(0, 2, 3).float()).dtype == torch.float32


@pytest.mark.parametrize("direction", [upgrad, conflict_free])
@pytest.mark.parametrize(
    ("given", "said"), [(torch.ones(3), "expected a row for each term"), (rows([1.0, float("nan")]), "not finite")]
)
def test_what_is_no_matrix_of_gradients_is_refused(direction, given, said):
    with pytest.raises(MeasurementError, match=said):
        direction(given)
