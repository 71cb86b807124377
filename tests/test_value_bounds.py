"""What is proven about each eigenvalue: bounds against dense decompositions, the run's own proof, and their cost."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import numpy as np
import pytest
import scipy.special
import torch
from test_lanczos import SPECTRA, Counted, Diagonal, dense_hessian, expected, net_like, rotated, small_task
from test_lanczos import softmax_regression as softmax

from landscape import Hessian, eigenpairs
from landscape.curvature import search
from landscape.curvature.audit import Audit
from landscape.curvature.bounds import estimated_errors, proven, value_bounds
from landscape.curvature.chain import Chain, hiding_chance
from landscape.curvature.krylov import Ritz
from landscape.curvature.measure import measure_eigenvalues
from landscape.errors import MeasurementError
from landscape.results import rebuild

HARD = {
    **SPECTRA,
    "net": net_like(300),
    "near copies": np.concatenate([1 + 1e-7 * np.arange(3), 0.8 + 1e-4 * np.arange(4), np.linspace(-0.5, 0.5, 70)]),
    "tolerance apart": np.concatenate([1 - 1e-3 * np.arange(8), np.linspace(-0.3, 0.6, 70)]),
    "indefinite, low rank": np.concatenate([[2.0, 2.0, -3.0, -3.0, 1.0], np.zeros(60)]),
}


@functools.cache
def hard(name: str) -> tuple[torch.Tensor, np.ndarray]:
    matrix = rotated(HARD[name])
    return matrix, torch.linalg.eigvalsh(matrix).numpy()


# ------------------------------------------------------------------------------------------- bounds hold


def test_the_products_own_rounding_is_added_to_every_bound() -> None:
    none, weights = np.zeros(2), np.eye(2)
    exact = Ritz(np.array([1.0, 2.0]), weights, np.zeros((1, 2)), none, none, rounding=0.0)
    found = [value_bounds(r, 0.5, 1, np.array([0, 1])) for r in (exact, dataclasses.replace(exact, rounding=1e-3))]
    assert found[0].max() < 1e-14
    assert found[1] - found[0] == pytest.approx([1e-3, 1e-3], rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("stop", ["residual", "value"])
@pytest.mark.parametrize("which", ["largest", "both", "magnitude"])
@pytest.mark.parametrize("name", HARD)
def test_bounds_hold_against_the_dense_decomposition(name: str, which: str, stop: str, dtype: torch.dtype) -> None:
    if name in ("huge", "tiny") and dtype == torch.float32:
        pytest.skip("its squares leave float32's range")
    matrix, dense = hard(name)
    scale = np.abs(dense).max()
    rounding = 20 * torch.finfo(dtype).eps * scale  # of the float32 matrix itself, and of its products
    for seed in range(3):
        k = min(len(dense), 1 if seed == 2 else 4)
        found = eigenpairs(matrix.to(dtype), k, which, seed=seed, stop=stop)
        assert found.bounds is not None
        sides = [(found.values, found.bounds, expected(dense, "largest" if which == "both" else which, k))]
        if which == "both":
            sides.append((found.smallest, found.smallest_bounds, dense[:k]))
        for values, bounds, true in sides:
            error = np.abs(np.abs(values) - np.abs(true)) if which == "magnitude" else np.abs(values - true)
            assert (error <= bounds + rounding).all()
            if stop == "value":
                assert (bounds <= 1e-3 * scale * (1 + 1e-6) + rounding + 1e-300).all()
        assert all(c.level == "pass" for c in found.checks)
        assert found.converged.all()


@pytest.mark.parametrize("stop", ["residual", "value"])
@pytest.mark.parametrize("k", [1, 5, 9, 12])
def test_bounds_hold_with_nine_copies(k: int, stop: str) -> None:
    hessian, largest = softmax()
    dense = torch.linalg.eigvalsh(hessian).flip(0).numpy()
    for seed in range(10):
        found = eigenpairs(hessian, k, seed=seed, stop=stop)
        np.testing.assert_allclose(found.values[:9], largest, atol=2e-3 * largest)
        assert found.bounds is not None
        assert (np.abs(found.values - dense[:k]) <= found.bounds + 1e-12).all()


def wrong_claims(probability: float, monkeypatch: pytest.MonkeyPatch, runs: int) -> int:
    """Count bounds that do not hold, of the largest of 1000 eigenvalues that lie close behind it."""
    monkeypatch.setattr(search, "ERROR_PROBABILITY", probability)
    monkeypatch.setattr("landscape.curvature.chain.ERROR_PROBABILITY", probability)
    values = np.concatenate([[1.0], np.linspace(-0.2, 0.9, 999)])
    wrong = 0
    for seed in range(runs):
        found = eigenpairs(Diagonal(values), 1, seed=seed, tol=1e-2, stop="value")
        assert found.bounds is not None
        wrong += bool(1.0 - found.values[0] > found.bounds[0])
    return wrong


def test_the_runs_own_proof_errs_no_more_often_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # 1% of 300 is 3; a binomial with that mean exceeds 10 in 3 of 10,000 trials.
    assert wrong_claims(0.01, monkeypatch, 300) <= 10


def test_a_careless_proof_would_err_more(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wrong_claims(0.9, monkeypatch, 100) > 10  # so the test above can fail


def test_the_chance_holds_for_a_start_that_is_random_in_part() -> None:
    # The chance at which the run calls the truth excluded must be uniform or larger: P(chance(top) <= x) <= x.
    rng = np.random.default_rng(0)
    values = np.concatenate([[1.0], rng.uniform(-0.3, 0.5, 40)])
    n, chances = len(values), []
    fixed = rng.standard_normal(n)
    fixed[0] = 0.0  # the worst: nothing of the eigenvector but by chance
    fixed /= np.linalg.norm(fixed)
    for _ in range(2000):
        z = rng.standard_normal(n)
        s = fixed + 0.3 * z / np.linalg.norm(z)
        size = np.linalg.norm(s)
        basis, alphas, betas = [s / size], [], []
        for _ in range(4):
            w = values * basis[-1]
            alphas.append(basis[-1] @ w)
            for _ in range(2):
                w = w - np.array(basis).T @ (np.array(basis) @ w)
            betas.append(np.linalg.norm(w))
            basis.append(w / betas[-1])
        top = np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))[-1]
        chances.append(hiding_chance(alphas, betas, 1.0, n, 0.3 / size) if top < 1 else 1.0)
    for x in (0.01, 0.05, 0.2):
        assert np.mean(np.array(chances) <= x) <= x + 3 * math.sqrt(x / 2000)


# ------------------------------------------------------------------------------------------- the pieces


def test_a_chain_in_closed_form() -> None:
    chain = Chain(3)
    assert chain.chance(5.0, 1) == 1.0  # nothing multiplied yet
    assert chain.reached(5.0, 1) == math.inf
    chain.append(0.5, 0.25)
    assert chain.chance(1.5, 1) == pytest.approx(math.sqrt(1 / 17))
    assert chain.chance(-0.5, -1) == pytest.approx(math.sqrt(1 / 17))
    assert chain.chance(0.4, 1) == 1.0  # not beyond the Ritz value
    assert chain.chance(math.inf, 1) == 0.0
    # sqrt(1 / (1 + (x / 0.25)^2)) = 0.01 at x = 25 (less 1 in 20,000).
    assert chain.reached(0.5, 1) == pytest.approx(0.5 + 0.25 * math.sqrt(1e4 - 1))
    assert chain.reached(0.5, -1) == pytest.approx(0.5 - 0.25 * math.sqrt(1e4 - 1))
    assert chain.reached(100.0, 1) == 100.0  # far enough already
    assert Chain(3, share=0.0, alphas=[0.5], betas=[0.25]).chance(1.5, 1) == 1.0
    half = Chain(3, share=0.5, alphas=[0.5], betas=[0.25])
    assert half.chance(1.5, 1) == pytest.approx(scipy.special.betainc(0.5, 1, 4 / 17))


def test_bounds_are_the_residuals_square_over_the_distance_to_the_level() -> None:
    # Two Ritz values, one pending vector; below 0.5 there is nothing more.
    coupling = np.array([[1e-3, 1e-2]])
    ritz = Ritz(np.array([0.4, 1.0]), np.eye(2), coupling, np.abs(coupling[0]), np.abs(coupling[0]), 0.0)
    chosen = np.array([1, 0])
    first, second = value_bounds(ritz, 0.5, 1, chosen)
    assert second == pytest.approx(0.1)  # below the level: the level itself
    exact = 1e-4 / 0.5
    assert exact <= first <= 2.1 * exact
    assert proven(ritz, 0.5, 1, chosen, 1.1 * exact).tolist() == [True, False]
    assert proven(ritz, 0.5, 1, chosen, 0.9 * exact).tolist() == [False, False]
    mirrored = Ritz(-ritz.values, ritz.weights, coupling, ritz.outside, ritz.residuals, 0.0)
    np.testing.assert_allclose(value_bounds(mirrored, -0.5, -1, chosen), [first, second])
    np.testing.assert_allclose(estimated_errors(ritz, np.array([1])), [1e-4 / 0.6])


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold_for_any_split_of_a_matrix(seed: int) -> None:
    # A level above the complement's Schur term is all that the bounds need: no Krylov space, several pending vectors.
    rng = np.random.default_rng(seed)
    n, j = 30, 12
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    h, rest = np.sort(rng.uniform(0, 3, j)), rng.uniform(-1, 1, n - j)
    couple = np.zeros((n - j, j))
    couple[:3] = 0.2 * rng.standard_normal((3, j))
    full = q @ np.block([[np.diag(h), couple.T], [couple, np.diag(rest)]]) @ q.T
    true = np.linalg.eigvalsh(full)
    ritz = Ritz(h, np.eye(j), couple[:3], np.linalg.norm(couple, axis=0), np.linalg.norm(couple, axis=0), 1e-12)
    for level in np.linspace(1.0, 3.0, 9):
        if (true > level).sum() == (h > level).sum():  # what an audit would have found
            bounds = value_bounds(ritz, level, 1, np.arange(j))
            above = h > level
            assert (true[-j:][above] - h[above] <= bounds[above]).all()
            assert (true[-j:][above] - h[above] >= -1e-12).all()


def test_bounds_hold_the_rounding_of_the_hosts_eigenvalues() -> None:
    # An eigenvalue of residual 5e-11 that the dense eigenproblem of 20 rows gets wrong by 7 eps (seen, seed 11).
    for seed in range(8, 14):
        rng = np.random.default_rng(seed)
        top, _, bulk = 3 * rng.random(14) ** 2 + 0.3, rng.integers(0, 9), 0.03 * rng.standard_normal(1986)
        values = np.concatenate([np.sort(top)[::-1], bulk])
        found = eigenpairs(Diagonal(values), 6, seed=seed)
        assert (abs(found.values - values[:6]) <= found.bounds).all()


def test_an_audit_that_is_refuted_is_dropped() -> None:
    values = net_like(300)
    space = search.Subspace(lambda v: torch.as_tensor(values) * v, 300, torch.float64, torch.device("cpu"), 0)
    space.begin(space.random(), 1.0)
    for _ in range(20):
        space.expand(0)
    run = search.Search(space, search.Wanted("largest", 3, None), 1e-3, 100, 300, True, None)
    run.audits[1] = Audit("clear", 1, 2.2, 0.01, 2.2, 5, beyond=1)  # two lie above
    run.read_chain(space.ritz())
    assert 1 not in run.audits


# ------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize(("which", "most"), [("largest", 11), ("smallest", 34)])
def test_one_end_value_costs_no_audit(which: str, most: int) -> None:
    values = net_like()
    for seed in range(4):
        found = eigenpairs(Diagonal(values), 1, which, seed=seed)
        assert found.products <= most
        assert found.bounds is not None
        assert math.isfinite(found.bounds[0])
        assert {c.level for c in found.checks} == {"pass"}


def test_values_alone_are_found_sooner_than_small_residuals() -> None:
    values = net_like()
    by_value = [eigenpairs(Diagonal(values), 10, seed=seed, stop="value", verify=False) for seed in range(5)]
    plain = [eigenpairs(Diagonal(values), 10, seed=seed, verify=False) for seed in range(5)]
    assert sum(f.products for f in by_value) < sum(f.products for f in plain)
    for found in by_value:
        assert found.bounds is not None
        assert np.isnan(found.bounds).all()  # nobody looked: nothing is proven
        assert found.converged.all()
        assert found.status == "complete"


# ------------------------------------------------------------------------------------------- the result


def test_the_criterion_is_in_the_result() -> None:
    found = eigenpairs(Diagonal(net_like()), 5, "both", stop="value", k_smallest=2)
    assert (found.stop, found.settings["stop"]) == ("value", "value")
    assert next(c for c in found.checks if c.name == "convergence").message == (
        "every eigenvalue's own error is within tol"
    )
    again = rebuild("eigenvalues", found.variables(), json.loads(json.dumps(found.attributes())))
    np.testing.assert_array_equal(again.bounds, found.bounds)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(again.smallest_bounds, found.smallest_bounds)  # type: ignore[attr-defined]
    old = {k: v for k, v in found.variables().items() if "bounds" not in k}
    assert rebuild("eigenvalues", old, {}).bounds is None  # type: ignore[attr-defined]
    assert eigenpairs(rotated(SPECTRA["simple"]), 3, method="arpack").bounds is None


@pytest.mark.parametrize("settings", [{"stop": "vector"}, {"stop": "value", "method": "arpack"}])
def test_a_criterion_that_does_not_fit_is_refused(settings: dict) -> None:
    with pytest.raises(MeasurementError, match="stop"):
        eigenpairs(rotated(SPECTRA["simple"]), 3, **settings)


def test_values_below_their_own_error_are_named() -> None:
    found = eigenpairs(Counted(rotated(np.concatenate([[3.0, 2.0], 1e-4 * np.linspace(-1, 1, 60)]))), 4)
    assert any(
        note.startswith("2 of 4 eigenvalues, up to ") and "are no larger than their own error" in note
        for note in found.notes
    )
    assert eigenpairs(rotated(np.linspace(1, 2, 60)), 4).notes == ()


def test_values_that_no_tolerance_resolves_are_called_zero() -> None:
    zero = eigenpairs(torch.zeros(8, 8), 3, which="both")
    assert zero.notes == ("every product is 0, and so are all eigenvalues: the operator is the zero matrix",)
    assert not zero.values.any()
    deficient = eigenpairs(rotated(np.array([3.0, 2.0, 0, 0, 0, 0, 0])), 7)  # the whole space: no proof is lacking
    assert [note.split(": ")[1] for note in deficient.notes] == ["they are 0 to the rounding of the products"]


def test_the_measurement_offers_it() -> None:
    task, model, x, y = small_task()
    dense = torch.linalg.eigvalsh(dense_hessian(model, x, y)).numpy()
    found = measure_eigenvalues(task, k=5, k_smallest=2, stop="value")
    assert found.bounds is not None
    assert (np.abs(found.values - dense[::-1][:5]) <= found.bounds).all()
    assert found.stop == "value"
    assert eigenpairs(Hessian(task), 5).stop == "residual"
