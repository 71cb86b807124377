"""Eigenpairs against dense decompositions, and the claims that come with them: residuals, nothing missed, cost."""

from __future__ import annotations

import functools
import json
import math
import warnings

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import nn

from landscape import Hessian, Task, eigenpairs
from landscape.curvature import audit as audit_module
from landscape.curvature import krylov, lanczos
from landscape.curvature.chain import hiding_chance
from landscape.curvature.measure import measure_eigenvalues
from landscape.errors import MeasurementError
from landscape.results import measurements


class Counted:
    """A dense matrix that counts its products; nothing but the operator's contract."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self.shape, self.dtype, self.device = tuple(matrix.shape), matrix.dtype, matrix.device
        self.products = 0

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        assert v.shape == (self.shape[0],)
        assert v.dtype == self.dtype
        self.products += 1
        return self.matrix @ v


class Diagonal(Counted):
    """The same spectrum without the cost of a dense product; to a random start it makes no difference."""

    def __init__(self, values: np.ndarray, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(torch.zeros(1, 1, dtype=dtype))
        self.values = torch.as_tensor(values).to(dtype)
        self.shape = (len(values), len(values))

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        self.products += 1
        return self.values * v


def rotated(values: np.ndarray, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Return a dense symmetric matrix with these eigenvalues."""
    n = len(values)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    matrix = (q * torch.as_tensor(values, dtype=torch.float64)) @ q.T
    return ((matrix + matrix.T) / 2).to(dtype)


def net_like(n: int = 3000) -> np.ndarray:
    """Outliers that thin out into a bulk around zero, as trained networks have them, with some negative ones."""
    outliers = np.array([3.0, 2.4, 2.1, 1.4, 1.2, 1.0, 0.87, 0.59, 0.27, 0.21, 0.2, 0.17, 0.14, 0.11])
    tail = 0.1 / np.arange(1, 200) ** 1.2
    bulk = np.linspace(-0.03, 0.03, n - 14 - 199 - 3) ** 3 / 0.03**2
    return np.concatenate([outliers, tail, bulk, [-0.09, -0.05, -0.04]])


SPECTRA = {
    "simple": np.linspace(-1, 2, 60),
    "clustered": np.concatenate([1 + 1e-5 * np.arange(5), [0.5, 0.5, 0.5], np.linspace(0, 0.1, 80)]),
    "repeated 9 times": np.concatenate([np.repeat([1.0, 0.6, 0.3], 9), np.linspace(-0.1, 0.1, 60)]),
    "plus and minus": np.concatenate([np.arange(1.0, 31), -np.arange(1.0, 31)]),
    "zero": np.zeros(40),
    "identity": np.ones(40),
    "rank 3": np.concatenate([[3.0, 2.0, 1.0], np.zeros(60)]),
    "rank 3, negative": np.concatenate([[-3.0, -2.0, -1.0], np.zeros(60)]),
    "slow decay": 1 / np.sqrt(np.arange(1.0, 151)),
    "tiny": 1e-30 * np.linspace(-1, 1, 30),
    "huge": 1e30 * np.linspace(-1, 1, 30),
    "n = 1": np.array([-2.0]),
    "n = 2": np.array([1.0, 2.0]),
}


def expected(values: np.ndarray, which: str, k: int) -> np.ndarray:
    ascending = np.sort(values)
    if which == "smallest":
        return ascending[:k]
    if which == "magnitude":
        return np.array(sorted(values, key=lambda x: -abs(x)))[:k]
    return ascending[::-1][:k]


def explicit(matrix: torch.Tensor, values: np.ndarray, vectors: torch.Tensor) -> np.ndarray:
    v = vectors.double()
    return torch.linalg.vector_norm(matrix.double() @ v - v * torch.as_tensor(values), dim=0).numpy()


# ------------------------------------------------------------------------------------------- right values


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_dense_decomposition_is_met(name: str, which: str) -> None:
    k = min(6, len(SPECTRA[name]))
    matrix = rotated(SPECTRA[name])
    dense = torch.linalg.eigvalsh(matrix).numpy()
    scale = np.abs(dense).max()
    found = eigenpairs(matrix, k, which, tol=1e-8)
    # At residuals of 1e-8 an isolated value errs by 1e-16; inside a cluster closer than that, by the residual itself.
    if which == "magnitude":
        np.testing.assert_allclose(np.abs(found.values), np.abs(expected(dense, which, k)), atol=1e-8 * scale, rtol=0)
    else:
        np.testing.assert_allclose(found.values, expected(dense, which, k), atol=1e-8 * scale, rtol=0)
    if which == "both":
        np.testing.assert_allclose(found.smallest, dense[:k], atol=1e-8 * scale, rtol=0)
    else:
        assert len(found.smallest) == 0
    assert found.status == "complete"
    assert found.converged.all()
    assert found.smallest_converged.all()
    assert all(check.level == "pass" for check in found.checks)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_default_tolerance_bounds_the_error(k: int, seed: int) -> None:
    values = net_like()
    found = eigenpairs(Diagonal(values), k, "both", seed=seed, k_smallest=2)
    np.testing.assert_allclose(found.values, expected(values, "largest", k), atol=1e-3 * 3.0)
    np.testing.assert_allclose(found.smallest, np.sort(values)[:2], atol=1e-3 * 3.0)
    assert found.values[0] == pytest.approx(3.0, abs=3.0 * 1e-5)  # isolated: tol^2 over the gap


@pytest.mark.parametrize("name", ["simple", "clustered", "repeated 9 times", "slow decay"])
def test_float32_is_within_1e_4_of_lambda_1(name: str) -> None:
    matrix = rotated(SPECTRA[name], dtype=torch.float32)
    dense = torch.linalg.eigvalsh(matrix.double()).numpy()
    found = eigenpairs(matrix, 6, "both")
    assert found.vectors.dtype == torch.float32
    scale = np.abs(dense).max()
    np.testing.assert_allclose(found.values[0], dense[-1], atol=1e-4 * scale)
    np.testing.assert_allclose(found.values, dense[::-1][:6], atol=1e-3 * scale)
    np.testing.assert_allclose(found.smallest, dense[:6], atol=1e-3 * scale)


def test_all_of_a_small_operator() -> None:
    values = np.linspace(-1, 1, 25)
    operator = Counted(rotated(values))
    found = eigenpairs(operator, 25, tol=1e-10)
    np.testing.assert_allclose(found.values, values[::-1], atol=1e-13)
    assert found.products == operator.products == 25
    assert math.isnan(found.complement)


@pytest.mark.parametrize("k", [5, 10])
def test_arpack_agrees(k: int) -> None:
    values = net_like()
    arpack = scipy.sparse.linalg.eigsh(scipy.sparse.diags(values), k, which="LA", tol=1e-10)[0][::-1]
    np.testing.assert_allclose(eigenpairs(Diagonal(values), k, tol=1e-8).values, arpack, atol=1e-9)


# ------------------------------------------------------------------------------------------- residuals and vectors


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_residuals_are_the_explicit_ones(dtype: torch.dtype, tol: float) -> None:
    matrix = rotated(np.concatenate([net_like(400), np.repeat(1.3, 3)]), dtype=dtype)
    found = eigenpairs(matrix, 8, "both", tol, k_smallest=2)
    # Six roundings of ||A|| = 3 cover what the recurrence can't know: the rounding of the vectors themselves.
    slack = 6 * torch.finfo(dtype).eps * 3.0
    for values, residuals, vectors in (
        (found.values, found.residuals, found.vectors),
        (found.smallest, found.smallest_residuals, found.smallest_vectors),
    ):
        true = explicit(matrix, values, vectors)
        np.testing.assert_allclose(residuals, true, rtol=0.05, atol=slack)
        assert (true <= 2 * residuals).all()  # nothing is understated, not even at the level of rounding
        assert (residuals <= tol * 3.0 * 1.01).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_are_orthonormal_with_a_fixed_sign(dtype: torch.dtype) -> None:
    matrix = rotated(SPECTRA["repeated 9 times"], dtype=dtype)
    found = eigenpairs(matrix, 12, "both", k_smallest=3)
    every = torch.cat([found.vectors, found.smallest_vectors], dim=1).double()
    torch.testing.assert_close(every.T @ every, torch.eye(15).double(), rtol=0, atol=100 * torch.finfo(dtype).eps)
    assert (every.gather(0, every.abs().argmax(dim=0, keepdim=True)) > 0).all()


def test_the_same_seed_gives_the_same_bits() -> None:
    matrix = rotated(SPECTRA["repeated 9 times"])
    a, b, other = (eigenpairs(matrix, 10, "both", seed=seed) for seed in (3, 3, 4))
    assert (a.values == b.values).all()
    assert torch.equal(a.vectors, b.vectors)
    assert (a.residuals == b.residuals).all()
    assert not torch.equal(a.vectors, other.vectors)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    eigenpairs(rotated(SPECTRA["rank 3"]), 5)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------- nothing is missed


def softmax_regression(classes: int = 10, features: int = 12) -> tuple[torch.Tensor, float]:
    """Return the Hessian of softmax regression at W = 0, and its largest eigenvalue in closed form."""
    x = torch.randn(200, features, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.linspace(0.5, 2, features)
    second = x.T @ x / len(x)
    p = torch.full((classes,), 1 / classes, dtype=torch.float64)
    return torch.kron(torch.diag(p) - torch.outer(p, p), second), float(torch.linalg.eigvalsh(second)[-1]) / classes


@pytest.mark.parametrize("k", [1, 5, 9, 12])
def test_every_copy_of_a_repeated_eigenvalue_is_found(k: int) -> None:
    hessian, largest = softmax_regression()
    dense = torch.linalg.eigvalsh(hessian).flip(0).numpy()
    found = eigenpairs(hessian, k)
    np.testing.assert_allclose(found.values, dense[:k], atol=1e-3 * largest)
    np.testing.assert_allclose(found.values[:9], largest, atol=1e-3 * largest)
    assert found.complement <= dense[k] * (1 + 1e-12)  # a Ritz value of the rest: never above its top
    if k == 12:  # a fresh vector looked; a k-th copy more would change none of the values that were asked for
        assert found.complement >= dense[k] - 0.5 * largest
    assert [c.level for c in found.checks] == ["pass"] * 3


def test_without_the_audit_copies_are_missed_and_the_result_says_so() -> None:
    hessian, largest = softmax_regression()
    found = eigenpairs(hessian, 9, verify=False)
    assert found.values[1] < 0.95 * largest
    assert found.converged.all()
    check = next(c for c in found.checks if c.name == "multiplicity")
    assert (check.level, check.message) == (
        "warn",
        "missed and repeated eigenvalues were not looked for (verify=False)",
    )
    assert math.isnan(found.complement)


def test_residuals_inside_a_bulk_prove_nothing_and_the_audit_goes_on() -> None:
    values = np.concatenate([np.linspace(-0.05, 0.05, 2000), [10, 9, 6, 5, 3, 1, 0.7, 0.5, 0.3, 0.2]])
    operator = Diagonal(values)
    found, hasty = eigenpairs(operator, 20), eigenpairs(operator, 20, verify=False)
    error = [np.abs(r.values - np.sort(values)[::-1][:20]).max() for r in (found, hasty)]
    assert hasty.converged.all()
    assert error[0] < 1e-3 * 10 < 0.02 < error[1] + 0.01  # the hasty one is off by more than its residuals say
    assert error[1] > 5 * error[0]


def run_with_a_hidden_eigenvector(seed: int) -> tuple[bool, str]:
    """Start where the largest eigenvector has no part at all: only the audit can find it."""
    values = np.concatenate([[1.0, 0.5], np.linspace(-0.1, 0.1, 98)])
    start = torch.randn(100, generator=torch.Generator().manual_seed(10_000 + seed), dtype=torch.float64)
    start[0] = 0
    found = eigenpairs(Diagonal(values), 1, start=start, seed=seed)
    return bool(abs(found.values[0] - 1.0) < 1e-3), next(c.level for c in found.checks if c.name == "multiplicity")


def test_the_audit_errs_no_more_often_than_it_says() -> None:
    outcomes = [run_with_a_hidden_eigenvector(seed) for seed in range(200)]
    assert {level for _, level in outcomes} == {"pass"}
    missed = sum(not right for right, _ in outcomes)
    # 1% of 200 is 2; a binomial with that mean exceeds 8 in 2 of 10,000 trials.
    assert missed <= 8


def test_a_careless_audit_would_miss_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "ERROR_PROBABILITY", 0.5)
    missed = sum(not run_with_a_hidden_eigenvector(seed)[0] for seed in range(100))
    assert missed > 3  # so the test above can fail


def test_the_bound_behind_the_audit_holds_at_every_step() -> None:
    # A naive Lanczos in NumPy; u is the top eigenvector, its weight in the start is known.
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(5, 60))
        values = np.sort(rng.standard_normal(n)) * rng.uniform(0.1, 3, n)
        top = values.max()
        r = rng.standard_normal(n)
        r /= np.linalg.norm(r)
        chance_of_truth = scipy.special.betainc(0.5, (n - 1) / 2, r[values.argmax()] ** 2)
        basis, alphas, betas = [r], [], []
        for _ in range(min(n - 1, 12)):
            w = values * basis[-1]
            alphas.append(basis[-1] @ w)
            for _ in range(2):
                w = w - np.array(basis).T @ (np.array(basis) @ w)
            betas.append(np.linalg.norm(w))
            basis.append(w / betas[-1])
            for level in (top, 0.9 * top) if top > 0 else (top,):
                if np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))[-1] < level:
                    assert hiding_chance(alphas, betas, level, n) >= chance_of_truth * (1 - 1e-9)


def test_the_chance_after_one_product_in_closed_form() -> None:
    # One product: p_1(x) = (x - alpha) / beta. In 3 dimensions the square of a coordinate of a random direction has
    # the distribution function sqrt(x) (Archimedes).
    assert hiding_chance([0.5], [0.25], 1.5, 3) == pytest.approx(math.sqrt(1 / (1 + 4.0**2)))
    assert hiding_chance([0.5], [0.0], 1.5, 3) == 0.0


def test_an_audit_that_runs_out_of_memory_says_how_far_it_came() -> None:
    values = net_like()
    found = eigenpairs(Diagonal(values), 5, memory=8 * len(values) * 9)
    check = next(c for c in found.checks if c.name == "multiplicity")
    np.testing.assert_allclose(found.values, values[:5], atol=3e-3)
    assert check.level == "warn"
    assert check.value > check.limit
    assert "may have been; choose another k, loosen tol, or raise memory" in check.message
    assert check.message in found.warnings


# ------------------------------------------------------------------------------------------- cost


@pytest.mark.parametrize("name", ["zero", "identity"])
def test_an_invariant_subspace_ends_the_run(name: str) -> None:
    operator = Counted(rotated(SPECTRA[name]))
    found = eigenpairs(operator, 5)
    assert found.products == operator.products == 5  # one for each pair: the start itself proves the rest
    assert [c.level for c in found.checks] == ["pass"] * 3
    np.testing.assert_allclose(found.values, SPECTRA[name][0], atol=1e-12)
    assert found.bounds is not None
    assert (found.bounds < 1e-9).all()


def test_a_subspace_knows_that_it_is_invariant() -> None:
    matrix = rotated(SPECTRA["rank 3"])
    space = krylov.Subspace(lambda v: matrix @ v, 63, torch.float64, torch.device("cpu"), 0)
    space.inject()
    while len(space.pending):
        space.expand(0)
    assert len(space) == 4  # the range of rank 3 and one vector of the null space, and not a fifth out of rounding
    np.testing.assert_allclose(space.ritz().values, [0, 1, 2, 3], atol=1e-13)
    assert space.asymmetry < 1e-14


def test_every_product_is_counted() -> None:
    for which in ("largest", "both", "magnitude"):
        operator = Diagonal(net_like())
        found = eigenpairs(operator, 5, which)
        assert operator.products == found.products == found.cost.products
        assert found.cost.seconds > 0


@pytest.mark.parametrize(("k", "most"), [(1, 15), (5, 21), (10, 36)])
def test_a_net_like_spectrum_takes_few_products(k: int, most: int) -> None:
    values = net_like()
    products = [eigenpairs(Diagonal(values), k, seed=seed).products for seed in range(3)]
    plain = [eigenpairs(Diagonal(values), k, seed=seed, verify=False).products for seed in range(3)]
    count = Diagonal(values)
    linear = scipy.sparse.linalg.LinearOperator(
        count.shape, matvec=lambda x: (count @ torch.as_tensor(x)).numpy(), dtype="float64"
    )
    v0 = np.random.default_rng(0).standard_normal(len(values))
    scipy.sparse.linalg.eigsh(linear, k, which="LA", tol=1e-3, v0=v0)
    assert max(products) <= most
    assert max(plain) < count.products  # ARPACK, at the same tolerance, without any check for copies


@pytest.mark.parametrize(("k", "part", "share"), [(5, 0.1, 0.9), (1, 10.0, 0.85), (2, 10.0, 0.85)])
def test_a_warm_start_saves_products(k: int, part: float, share: float) -> None:
    values, verify = net_like(), k == 5
    cold = [eigenpairs(Diagonal(values), k, seed=seed, verify=verify) for seed in range(3)]
    generator = torch.Generator().manual_seed(1)
    drift = torch.randn(len(values), k, generator=generator, dtype=torch.float64) / math.sqrt(len(values))
    starts = [c.vectors + 0.02 * drift for c in cold]
    warm = [eigenpairs(Diagonal(values), k, start=s, seed=9, random_part=part, verify=verify) for s in starts]
    assert sum(w.products for w in warm) < share * sum(c.products for c in cold)
    for w in warm:
        np.testing.assert_allclose(w.values, values[:k], atol=3e-3)


def overtaken(seed: int, k: int, n: int = 800) -> tuple[Diagonal, Diagonal, np.ndarray]:
    """Return an operator before and after an eigenvalue of its second block has overtaken the k-th, and its spectrum.

    The blocks don't mix, as the weights of two experts do not, so that the old eigenvectors have no part in the new.
    """
    rng = np.random.default_rng(seed)
    first, second = (rng.exponential(0.02, n // 2) * rng.choice([1, -0.5], n // 2) for _ in range(2))
    first[: k + 2] = [2.6, *np.sort(rng.uniform(1, 2, k + 1))[::-1]]
    second[:3] = np.array([0.8, 0.6, 0.4]) * rng.uniform(0.3, 0.9) * first[k - 1]
    before = np.concatenate([first, second])
    first[: k + 2] *= rng.uniform(0.99, 1.01, k + 2)
    second[0] = np.sort(first)[-k] * rng.uniform(1.03, 1.3)
    after = np.concatenate([first, second])
    return Diagonal(before), Diagonal(after), np.sort(after)[::-1]


@pytest.mark.parametrize(("k", "most"), [(1, 6), (2, 4)])
def test_a_warm_start_sees_an_eigenvalue_that_overtook_elsewhere(k: int, most: int) -> None:
    missed = {0.1: 0, lanczos.RANDOM_PART: 0}
    for seed in range(25):
        old, new, values = overtaken(seed, k)
        start = eigenpairs(old, k, tol=1e-2, seed=seed).vectors
        for part in missed:
            found = eigenpairs(new, k, tol=1e-2, start=start, seed=1000 + seed, random_part=part, verify=False)
            missed[part] += np.abs(found.values - values[:k]).max() > 0.02 * values[0]
        sure = eigenpairs(new, k, tol=1e-2, start=start, seed=1000 + seed)
        np.testing.assert_allclose(sure.values, values[:k], atol=0.02 * values[0])
    assert missed[lanczos.RANDOM_PART] <= most
    assert missed[0.1] >= 20  # the case is one that a short random part misses


def test_a_start_vector_is_taken_as_it_is() -> None:
    values = np.linspace(0, 1, 50)
    first = torch.zeros(50, dtype=torch.float64)
    first[-1] = 3.0
    found = eigenpairs(Diagonal(values), 1, start=first, verify=False)
    assert found.products == 1  # the eigenvector itself: nothing to add
    assert found.values[0] == pytest.approx(1.0)


@pytest.mark.parametrize("part", [-1.0, math.nan, math.inf])
def test_a_random_part_that_is_no_length_is_refused(part: float) -> None:
    with pytest.raises(MeasurementError, match="must be a length"):
        eigenpairs(Diagonal(np.linspace(0, 1, 50)), 1, start=torch.ones(50, 1), random_part=part)


def test_a_start_on_a_wrong_eigenvector_is_corrected_by_the_audit() -> None:
    values = np.linspace(0, 1, 50)
    found = eigenpairs(Diagonal(values), 1, start=torch.eye(50, dtype=torch.float64)[3])
    assert found.values[0] == pytest.approx(1.0, abs=1e-3)


# ------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("rows", [12, 15, 25, 60])
def test_a_restart_within_the_memory_gives_the_same_answer(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = net_like()
    largest = 0
    append = krylov.Basis.append

    def watched(self: krylov.Basis, vector: torch.Tensor) -> None:
        nonlocal largest
        append(self, vector)
        largest = max(largest, len(self))

    monkeypatch.setattr(krylov.Basis, "append", watched)
    found = eigenpairs(Diagonal(values), 5, tol=1e-6, memory=8 * len(values) * rows)
    np.testing.assert_allclose(found.values, values[:5], atol=1e-9)
    assert found.converged.all()
    assert largest <= rows
    vectors = found.vectors
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(5).double(), atol=1e-13, rtol=0)
    true = explicit(torch.diag(torch.as_tensor(values)), found.values, vectors)
    np.testing.assert_allclose(found.residuals, true, rtol=0.05, atol=2e-14)


def test_both_ends_and_copies_survive_restarts() -> None:
    values = np.concatenate([np.repeat([1.0, 0.8], 4), 0.5 / np.arange(1, 300), [-0.7, -0.7, -0.3]])
    found = eigenpairs(Diagonal(values), 6, "both", tol=1e-6, k_smallest=3, memory=8 * len(values) * 20)
    np.testing.assert_allclose(found.values, [1, 1, 1, 1, 0.8, 0.8], atol=1e-6)
    np.testing.assert_allclose(found.smallest, [-0.7, -0.7, -0.3], atol=1e-6)


def test_a_basis_grows_in_blocks_without_moving() -> None:
    basis = krylov.Basis(10, torch.float64, torch.device("cpu"))
    rows = torch.randn(150, 10, dtype=torch.float64)
    basis.append(rows[0])
    where = basis[0].data_ptr()
    for row in rows[1:]:
        basis.append(row)
    assert basis[0].data_ptr() == where
    x, c = torch.randn(10, dtype=torch.float64), torch.randn(150, 3, dtype=torch.float64)
    torch.testing.assert_close(basis.dot(x), rows @ x)
    torch.testing.assert_close(basis.combine(c), rows.T @ c)
    basis.compress(c)
    torch.testing.assert_close(basis.combine(torch.eye(3, dtype=torch.float64)), rows.T @ c)


def test_long_float32_sums_stay_accurate() -> None:
    # Squares add up with one sign: the worst case for a running float32 sum.
    x = torch.randn(3_000_000, generator=torch.Generator().manual_seed(0)).abs()
    basis = krylov.Basis(len(x), torch.float32, torch.device("cpu"))
    basis.append(x)
    true = float(torch.linalg.vector_norm(x, dtype=torch.float64))
    assert float(basis.dot(x)) == pytest.approx(true**2, rel=1e-5)
    space = krylov.Subspace(lambda v: v, len(x), torch.float32, torch.device("cpu"), 0)
    _, _, size = space.orthogonalize(x, space.basis, product=False)
    assert size == pytest.approx(true, rel=5e-6)


# ------------------------------------------------------------------------------------------- bad input, honest status


MATRIX = rotated(SPECTRA["simple"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 61}, "k=61 exceeds the 60 parameters selected; lower k or select more parameters"),
        ({"which": "both", "k_smallest": 61}, "k_smallest=61 exceeds the 60 parameters"),
        ({"k": 0}, "k=0 is no number of eigenpairs"),
        ({"which": "both", "k_smallest": 0}, "k_smallest=0 is no number"),
        ({"k_smallest": 3}, "k_smallest=3 needs which='both'"),
        ({"tol": 0.0}, "tol=0.0 must be a positive share"),
        ({"tol": -1.0}, "tol=-1.0 must be"),
        ({"tol": math.nan}, "tol=nan must be"),
        ({"tol": 1e-17}, "finer than torch.float64 resolves"),
        ({"which": "LM"}, "which='LM' is unknown; choose from largest, smallest, both, magnitude"),
        ({"start": torch.ones(59)}, r"start has shape \(59,\); expected a vector \(60,\) or a subspace \(60, j\)"),
        ({"start": torch.ones(60, 2, 2)}, "start has shape"),
        ({"start": torch.ones(60, 0)}, "start has shape"),
        ({"start": torch.zeros(60)}, "start is zero"),
        ({"start": torch.eye(60)[:, :2] * torch.tensor([1.0, 0.0])}, "start is zero, or has a zero column"),
        ({"start": torch.full((60,), math.nan)}, "start is not finite"),
        ({"max_products": 3}, "max_products=3 cannot give 10 pairs"),
        ({"memory": 8 * 60 * 13}, "memory=6240 holds 13 vectors of 60 numbers; 10 pairs need 14, 6720 bytes"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        eigenpairs(MATRIX, **settings)


def test_float32_cannot_resolve_a_fine_tolerance() -> None:
    with pytest.raises(MeasurementError, match="or use float64"):
        eigenpairs(MATRIX.float(), tol=1e-8)


@pytest.mark.parametrize(
    ("operator", "error", "message"),
    [
        ([[1.0]], TypeError, "expected a symmetric operator with shape, dtype, device and A @ v; list has no shape"),
        (torch.ones(3, 4), MeasurementError, r"square operator \(n, n\), got shape \(3, 4\)"),
        (torch.ones(3), MeasurementError, "square operator"),
        (torch.ones(0, 0), MeasurementError, "no parameters"),
        (torch.eye(3, dtype=torch.bfloat16), TypeError, "float32 or float64, got torch.bfloat16"),
        (torch.eye(3, dtype=torch.complex64), TypeError, "float32 or float64"),
        (torch.eye(3, dtype=torch.int64), TypeError, "float32 or float64"),
    ],
)
def test_what_is_no_operator_is_refused(operator: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        eigenpairs(operator, 1)


def test_k_must_be_an_integer() -> None:
    with pytest.raises(TypeError, match="k must be an integer, got float"):
        eigenpairs(MATRIX, 2.5)  # type: ignore[arg-type]
    found = eigenpairs(MATRIX, np.int64(3))  # type: ignore[arg-type]
    assert len(found.values) == 3
    json.dumps(found.attributes())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite_is_named(bad: float) -> None:
    class Breaks(Counted):
        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            product = super().__matmul__(v)
            if self.products == 3:
                product[7] = bad
            return product

    with pytest.raises(MeasurementError, match=r"product 3 is not finite \(NaN or inf in 1 of 60 entries\)"):
        eigenpairs(Breaks(MATRIX.clone()), 5)


def test_an_overflow_of_float32_is_named() -> None:
    with pytest.raises(MeasurementError, match="product 1 overflows float32"):
        eigenpairs(Diagonal(1e38 * np.ones(1000), torch.float32), 2)


def test_a_product_of_the_wrong_shape_or_dtype_is_refused() -> None:
    class Wrong(Counted):
        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            return super().__matmul__(v).float()

    with pytest.raises(MeasurementError, match=r"expected A @ v of shape \(60,\) in torch.float64"):
        eigenpairs(Wrong(MATRIX), 2)


def test_running_out_of_products_is_a_partial_result() -> None:
    operator = Counted(MATRIX)
    found = eigenpairs(operator, 10, max_products=12)
    assert operator.products == 12
    assert found.status == "partial"
    assert len(found.values) == 10
    assert not found.converged.all()
    true = explicit(MATRIX, found.values, found.vectors)
    np.testing.assert_allclose(found.residuals, true, rtol=1e-6)
    assert (found.converged == (true <= 1e-3 * np.abs(np.r_[found.values, found.complement_smallest]).max())).all()
    assert any("have not converged after 12 products: raise max_products" in w for w in found.warnings)
    assert any("missed and repeated eigenvalues are not ruled out" in w for w in found.warnings)


def test_the_audit_stays_within_the_products_too() -> None:
    values = net_like()
    plain = eigenpairs(Diagonal(values), 5, verify=False).products
    found = eigenpairs(Diagonal(values), 5, max_products=plain + 1)
    assert found.products == plain + 1
    assert found.converged.all()
    assert next(c for c in found.checks if c.name == "multiplicity").level == "warn"


@pytest.mark.parametrize(("size", "level", "status"), [(3e-2, "fail", "partial"), (1e-6, "warn", "complete")])
def test_an_asymmetric_operator_is_found_out(size: float, level: str, status: str) -> None:
    noise = torch.randn(60, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise - noise.T) / torch.linalg.matrix_norm(noise - noise.T, 2)
    matrix = MATRIX + size * noise  # u.Av and v.Au differ by at most 2 * size, and ||A|| is 2
    found = eigenpairs(matrix, 3)
    check = next(c for c in found.checks if c.name == "symmetry")
    assert check.level == level
    assert 0.1 * size < check.value < 1.5 * size
    assert found.status == status
    assert any("not symmetric" in w for w in found.warnings)
    if level == "fail":  # more products don't help, and none is asked for
        assert "no more products mend that" in found.checks[0].message
        assert not any("max_products" in w for w in found.warnings)
    # Without symmetry the audit's reasoning has no ground: it must not say that nothing was missed.
    assert [c.level for c in found.checks if c.name == "multiplicity"] == ["warn" if level == "fail" else "pass"]
    np.testing.assert_allclose(found.residuals, explicit(matrix, found.values, found.vectors), rtol=0.3, atol=1e-14)


def test_the_operators_own_tensors_are_never_written() -> None:
    class Aliased(Counted):
        """Returns its argument, as an identity may."""

        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            self.products += 1
            return v

    found = eigenpairs(Aliased(torch.eye(20, dtype=torch.float64)), 4)
    np.testing.assert_allclose(found.values, 1.0)
    before = MATRIX.clone()
    eigenpairs(MATRIX, 4)
    assert torch.equal(MATRIX, before)


def test_an_operator_is_entered_once_and_left_on_errors() -> None:
    class Entered(Counted):
        log: list[str]

        def __enter__(self) -> Entered:
            self.log.append("in")
            return self

        def __exit__(self, *error: object) -> None:
            self.log.append("out")

        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            assert self.log == ["in"]
            return super().__matmul__(v) * (math.nan if self.products > 2 else 1)

    operator = Entered(MATRIX)
    operator.log = []
    with pytest.raises(MeasurementError, match="not finite"):
        eigenpairs(operator, 3)
    assert operator.log == ["in", "out"]


# ------------------------------------------------------------------------------------------- the result


def test_the_result_describes_itself() -> None:
    found = eigenpairs(MATRIX, 4, "both", k_smallest=2)
    assert found.variables()["values"].dims == ("rank",)
    assert found.variables()["smallest"].data.shape == (2,)
    json.dumps(found.attributes())
    again = type(found).restore(found.variables(), found.attributes())
    np.testing.assert_array_equal(again.variables()["values"].data, found.values)
    assert found.summary()["eigenvalues"] == found.values.tolist()
    assert found.operator == "matrix"
    assert found.settings["seed"] == 0
    assert found.parameters == 60


def test_progress_goes_to_stderr_only(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanczos, "tqdm", functools.partial(lanczos.tqdm, mininterval=0))
    found = eigenpairs(MATRIX, 3, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"eigenpairs: {found.products}product" in captured.err
    assert "to reach 1e-03" in captured.err
    eigenpairs(MATRIX, 3)
    assert capsys.readouterr().err == ""


@pytest.mark.gpu
def test_the_gpu_gives_the_same_pairs() -> None:
    matrix = rotated(SPECTRA["repeated 9 times"])
    there, here = eigenpairs(matrix.cuda(), 12, tol=1e-8), eigenpairs(matrix, 12, tol=1e-8)
    assert there.vectors.is_cuda
    np.testing.assert_allclose(there.values, here.values, atol=1e-8)


# ------------------------------------------------------------------------------------------- on a task


def small_task() -> tuple[Task, nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(23, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (23,), generator=generator)
    return Task(model, nn.CrossEntropyLoss(), train=(x, y), batch_size=7), model, x, y


def dense_hessian(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        out = torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), (x,))
        return nn.functional.cross_entropy(out, y)

    return torch.autograd.functional.hessian(loss, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))


def test_the_measurement_meets_the_dense_hessian() -> None:
    task, model, x, y = small_task()
    dense = torch.linalg.eigvalsh(dense_hessian(model, x, y)).numpy()
    found = measure_eigenvalues(task, k=5, k_smallest=2, tol=1e-9)
    np.testing.assert_allclose(found.values, dense[::-1][:5], rtol=1e-8)
    np.testing.assert_allclose(found.smallest, dense[:2], rtol=1e-8)
    assert (found.operator, found.split, found.which) == ("Hessian", "train", "both")
    assert found.settings["samples"] == 23
    assert found.cost.passes > 6 * found.products  # the objective's own checks cost passes too
    direct = eigenpairs(Hessian(task), 5, tol=1e-9)
    np.testing.assert_allclose(direct.values, found.values, rtol=1e-8)


def test_the_measurement_is_registered_with_its_options() -> None:
    known = measurements()["eigenvalues"]
    assert (known.section, known.default) == ("curvature", True)
    assert known.settings("quick")["k"] == 5
    assert known.settings("standard")["k"] == 10
    assert known.estimate is not None
    assert known.estimate(**known.settings("thorough")) > known.estimate(**known.settings("quick"))
    task = small_task()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = known.run(task, seed=1, progress=False, **known.settings("quick"))
    assert len(found.values) == 5
    assert len(found.smallest) == 1


def test_more_eigenvalues_than_parameters_are_refused_not_clipped() -> None:
    task = small_task()[0]
    with pytest.raises(MeasurementError, match="k=54 exceeds the 53 parameters selected"):
        measure_eigenvalues(task, k=54)
