"""Lanczos quadrature and the spectral density: exact where theory says so, published kernels by the letter."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from landscape import spectral_density, trace
from landscape.curvature.kernels import KERNELS, Smoothing, smooth
from landscape.curvature.quadrature import tridiagonalize
from landscape.errors import MeasurementError

#: What a trained network's Hessian looks like: a few outliers, a bulk around zero.
NET = [50.0, 30, 20, 10, 8, 7, 5, 4, 3, *np.random.default_rng(0).normal(0, 0.3, 51)]


def rotated(eigenvalues: list[float], seed: int = 0) -> torch.Tensor:
    """Return a dense symmetric matrix with these eigenvalues, in float64."""
    n = len(eigenvalues)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def start(n: int, k: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------- Lanczos (as google/spectral-density)


def test_a_full_run_takes_the_matrix_apart() -> None:
    matrix = rotated(NET)
    (run,) = tridiagonalize(lambda v: matrix @ v, start(60), 60)
    basis = torch.stack([run.basis[i] for i in range(60)])
    t = np.diag(run.matrix.alphas) + np.diag(run.matrix.betas, 1) + np.diag(run.matrix.betas, -1)
    # Rounding of 60 float64 products with a matrix of norm 50.
    np.testing.assert_allclose(basis @ matrix @ basis.T, t, atol=1e-12 * 50)
    np.testing.assert_allclose(basis.T @ torch.from_numpy(t) @ basis, matrix, atol=1e-12 * 50)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
def test_the_basis_stays_orthonormal_after_eigenvalues_have_converged(dtype: torch.dtype, limit: float) -> None:
    # Without reorthogonalization the basis turns back to the first eigenvector once that has converged.
    eigenvalues = [1000.0, 100.0, *np.linspace(0, 1, 198)]
    matrix = rotated(eigenvalues).to(dtype)
    (run,) = tridiagonalize(lambda v: matrix @ v, start(200).to(dtype), 60)
    basis = torch.stack([run.basis[i] for i in range(60)])
    assert float((basis @ basis.T - torch.eye(60, dtype=dtype)).abs().max()) < 10 * limit
    nodes, _ = run.matrix.rule()
    # One copy of each outlier: no ghosts.
    assert (nodes > 500).sum() == 1
    assert ((nodes > 50) & (nodes < 500)).sum() == 1
    np.testing.assert_allclose(nodes[-2:], [100, 1000], rtol=20 * limit)


def test_extreme_eigenvalues_come_first_and_nodes_interlace() -> None:
    matrix, exact = rotated(NET), np.sort(NET)
    (run,) = tridiagonalize(lambda v: matrix @ v, start(60), 25)
    nodes = [run.matrix.rule(m)[0] for m in range(1, 26)]
    np.testing.assert_allclose(nodes[-1][-3:], exact[-3:], rtol=1e-10)
    for few, more in itertools.pairwise(nodes):
        assert (more[:-1] <= few + 1e-12).all()
        assert (few <= more[1:] + 1e-12).all()
    assert nodes[-1].min() >= exact[0] - 1e-12


@pytest.mark.parametrize("m", [1, 3, 8])
def test_a_rule_is_exact_up_to_degree_2m_minus_1(m: int) -> None:
    matrix, v = rotated(list(np.linspace(-1, 1, 60))), start(60)
    v = v / v.norm()
    (run,) = tridiagonalize(lambda x: matrix @ x, v, m)
    nodes, weights = run.matrix.rule()
    assert len(nodes) == m
    power = v
    for degree in range(2 * m):
        # Rounding only: all powers are of order 1.
        assert float((v * power).sum()) == pytest.approx((weights * nodes**degree).sum(), abs=1e-13), degree
        power = matrix @ power
    # One degree more is the first that is not exact; the error is the product of the squared betas, 4^-m or so.
    assert abs(float((v * power).sum()) - (weights * nodes ** (2 * m)).sum()) > 0.1 * 4.0**-m


@pytest.mark.parametrize(
    ("eigenvalues", "distinct"),
    [([3.0] * 12, 1), ([0.0] * 12, 1), ([5.0, 2.0] * 6, 2), ([4.0, 1.0] + [0.0] * 18, 3), ([7.0], 1)],
)
def test_an_invariant_subspace_ends_a_run_with_an_exact_rule(eigenvalues: list[float], distinct: int) -> None:
    matrix, v = rotated(eigenvalues), start(len(eigenvalues))
    v = v / v.norm()
    products = 0

    def multiply(x: torch.Tensor) -> torch.Tensor:
        nonlocal products
        products += x.shape[1]
        return matrix @ x

    (run,) = tridiagonalize(multiply, v, 10)
    nodes, weights = run.matrix.rule()
    assert run.matrix.invariant
    assert products == len(nodes) == distinct
    np.testing.assert_allclose(nodes, sorted(set(eigenvalues)), atol=1e-12)
    # Exact for every function, not only for polynomials of low degree.
    exact = float((v * torch.linalg.matrix_exp(matrix) @ v).sum()) if len(eigenvalues) == 1 else None
    full = (v.T @ torch.linalg.matrix_exp(matrix) @ v).item()
    assert (weights * np.exp(nodes)).sum() == pytest.approx(full, rel=1e-12)
    assert exact is None or exact == pytest.approx(full)


def test_runs_side_by_side_are_the_runs_one_by_one() -> None:
    matrix, starts = rotated([4.0, 1.0] + [0.0] * 18), start(20, 3)
    starts[:, 1] = matrix[:, 0]  # in the range: one node less than the others
    together = tridiagonalize(lambda v: matrix @ v, starts, 10)
    for i, run in enumerate(together):
        (alone,) = tridiagonalize(lambda v: matrix @ v, starts[:, i : i + 1], 10)
        np.testing.assert_allclose(run.matrix.alphas, alone.matrix.alphas, atol=1e-13)
    assert [len(run.matrix.alphas) for run in together] == [3, 2, 3]


# --------------------------------------------------------------------------------- what follows from the rules


def test_trace_norm_and_moments_are_those_of_the_same_vectors() -> None:
    matrix = rotated(NET)
    found = spectral_density(matrix, steps=20, draws=6, seed=3)
    hutchinson = trace(matrix, draws=6, seed=3)
    assert found.trace == pytest.approx(hutchinson.value, rel=1e-12)
    assert found.trace_stderr == pytest.approx(hutchinson.stderr, rel=1e-10)
    assert found.moment(1) == pytest.approx((found.trace, found.trace_stderr))
    assert found.moment(0) == pytest.approx((60.0, 0.0), abs=1e-10)
    square, error = found.moment(2)
    assert found.frobenius == pytest.approx(math.sqrt(square))
    assert found.frobenius_stderr == pytest.approx(error / (2 * found.frobenius))


def test_trace_norm_and_negative_share_hold_the_truth() -> None:
    exact = np.array(NET[:30])
    matrix = rotated(NET[:30])
    truth = {
        "trace": exact.sum(),
        "frobenius": math.sqrt((exact**2).sum()),
        "negative": -exact[exact < 0].sum() / np.abs(exact).sum(),
    }
    held = dict.fromkeys(truth, 0)
    for seed in range(100):
        found = spectral_density(matrix, steps=30, draws=12, seed=seed)
        for name, true in truth.items():
            held[name] += abs(getattr(found, name) - true) <= 2 * getattr(found, name + "_stderr")
    # Student's t with 11 degrees: 93%; skewed draws take a few more. Three deviations of 100 such runs are 9.
    assert all(h >= 82 for h in held.values()), held


def test_few_draws_are_said_to_be_rough_and_are() -> None:
    # Of rank 4, as a small net's Hessian can be: what few draws agree on is then what none of them saw.
    eigenvalues = [2.0, 1.0, 0.5, -0.3, *[0.0] * 196]
    matrix, truth = rotated(eigenvalues), sum(eigenvalues)
    runs = [spectral_density(matrix, 6, draws=4, seed=seed) for seed in range(150)]
    gaps = np.array([abs(r.trace - truth) / r.trace_stderr for r in runs])
    assert (gaps <= 2).mean() < 0.9
    assert (gaps <= 2).mean() + 0.05 < (gaps <= stats.t.ppf(0.975, 3)).mean()
    assert all("4 random vectors" in r.notes[-1] and "takes 3.2 of them" in r.notes[-1] for r in runs)
    assert not spectral_density(matrix, 6, draws=8).notes


def test_a_diagonal_matrix_is_exact_from_any_draw() -> None:
    matrix = torch.diag(torch.tensor([3.0, 3.0, -1.0, 0.0], dtype=torch.float64))
    found = spectral_density(matrix, steps=10, draws=3)
    assert (found.trace, found.trace_stderr) == pytest.approx((5.0, 0.0), abs=1e-12)
    assert found.negative == pytest.approx(1 / 7)
    weights = found.weights[found.weights > 0].reshape(3, 3)
    np.testing.assert_allclose(weights, [[0.25, 0.25, 0.5]] * 3, atol=1e-14)
    assert found.products == 9
    assert found.checks[0].value == 0


@pytest.mark.parametrize("value", [0.0, -2.5, 7.0])
def test_a_single_eigenvalue_is_one_peak(value: float) -> None:
    found = spectral_density(value * torch.eye(5, dtype=torch.float64), steps=4, draws=2)
    step = found.grid[1] - found.grid[0]
    assert found.grid[np.argmax(found.density)] == pytest.approx(value, abs=step)
    assert found.density.sum() * step == pytest.approx(1.0, abs=1e-8)
    assert found.frobenius == pytest.approx(abs(value) * math.sqrt(5))
    assert (found.negative, found.products) == (1.0 if value < 0 else 0.0, 2)


# ------------------------------------------------------------------------------------------- the density


def dense_density(eigenvalues: list[float], grid: np.ndarray, sigma: float) -> np.ndarray:
    return sum(stats.norm.pdf(grid, loc=x, scale=sigma) for x in eigenvalues) / len(eigenvalues)


def test_many_exact_rules_give_the_density_of_the_eigenvalues() -> None:
    found = spectral_density(rotated(NET), steps=60, draws=400, width=0.02)
    exact = dense_density(NET, found.grid, found.sigma)
    # Half the absolute difference is the share of eigenvalues in the wrong place: 60 weights, each off by
    # sqrt(2 / 400) = 7% of itself, neighbours averaged by the kernel.
    assert np.abs(found.density - exact).sum() * (found.grid[1] - found.grid[0]) / 2 < 0.03
    z = (found.density - exact)[exact > 1e-6] / found.stderr[exact > 1e-6]
    assert np.abs(z).max() < 5


def test_the_band_holds_the_density_of_the_eigenvalues() -> None:
    held = []
    for seed in range(40):
        found = spectral_density(rotated(NET), steps=60, draws=8, seed=seed, width=0.02)
        exact = dense_density(NET, found.grid, found.sigma)
        there = exact > 1e-4
        held.append(((found.band[:, 0] <= exact) & (exact <= found.band[:, 1]))[there].mean())
        assert (found.band[there] > 0).all()
        assert (found.band[:, 0] <= found.density).all()
        assert (found.density <= found.band[:, 1]).all()
    # 95% is claimed; draws of eight are skewed (a squared normal each), which costs up to 4%.
    assert 0.88 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_no_peak_falls_between_the_grid_of_our_kernel(scale: float) -> None:
    eigenvalues = [scale * x for x in (1000.0, 333.3, 77.7, 5.0, 1.0, 0.1, -0.1, -2.0)]
    found = spectral_density(rotated(eigenvalues), steps=8, draws=2)
    peak = (found.weights / (found.sigma * math.sqrt(2 * math.pi))).mean(axis=0)
    for node, height in zip(found.nodes[0, -3:], peak[-3:], strict=True):
        nearest = np.argmin(np.abs(found.grid - node))
        assert found.density[nearest] >= 0.99 * height
    assert found.density.sum() * (found.grid[1] - found.grid[0]) == pytest.approx(1, abs=1e-6)
    assert {c.name: c.level for c in found.checks} == {"steps": "pass", "grid": "pass", "symmetry": "pass"}


@pytest.mark.parametrize("scale", [1.0, 0.01])  # a range above and one below 1
def test_pyhessians_kernel_is_its_own_formula(scale: float) -> None:
    found = spectral_density(scale * rotated(NET), steps=15, draws=3, kernel="pyhessian")
    # Its plot, written out: a sum over the nodes of each run at each of 10,000 points, the mean over runs, normalized.
    nodes, weights = found.nodes, found.weights
    high, low = nodes.max(axis=1).mean() + 0.01, nodes.min(axis=1).mean() - 0.01
    grid = np.linspace(low, high, 10_000)
    variance = 1e-5 * max(1, high - low)
    rows = np.zeros((3, 10_000))
    for i in range(3):
        for theta, w in zip(nodes[i], weights[i], strict=True):
            rows[i] += w * np.exp(-((theta - grid) ** 2) / (2.0 * variance)) / np.sqrt(2 * np.pi * variance)
    density = rows.mean(axis=0)
    density = density / (np.sum(density) * (grid[1] - grid[0]))
    np.testing.assert_allclose(found.grid, grid, rtol=1e-12)
    np.testing.assert_allclose(found.density, density, rtol=1e-9, atol=1e-12)
    assert found.checks[1].level == "pass"


def test_pyhessians_grid_is_said_to_miss_peaks_where_it_does() -> None:
    found = spectral_density(rotated([5000.0, 3000.0, 1.0, 0.0]), steps=4, draws=2, kernel="pyhessian")
    assert found.checks[1].level == "warn"
    assert "peaks fall between its points" in found.warnings[-1]


def test_papyans_kernel_is_its_own_formula() -> None:
    steps = 20
    found = spectral_density(rotated(NET), steps=steps, draws=3, kernel="papyan")
    low, high = found.nodes.min(), found.nodes.max()
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low)
    mapped = (found.nodes - (high + low) / 2) / ((high - low) / 2)
    sigma = 2 / ((steps - 1) * math.sqrt(8 * math.log(3.0)))
    t = np.linspace(-1, 1, 1024)
    naive = np.mean(
        [
            sum(w * stats.norm.pdf(t, loc=theta, scale=sigma) for theta, w in zip(*rule, strict=True))
            for rule in zip(mapped, found.weights, strict=True)
        ],
        axis=0,
    ) / ((high - low) / 2)
    np.testing.assert_allclose(found.density, naive, rtol=1e-9, atol=1e-14)
    assert found.sigma == pytest.approx(sigma * (high - low) / 2)
    # kappa = 3: two nodes at their mean distance 2 / (m - 1) have a third of the peak between them.
    assert math.exp(-((1 / (steps - 1)) ** 2) / (2 * sigma**2)) == pytest.approx(1 / 3)


def test_smoothing_a_long_rule_by_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, weights = np.random.default_rng(0).normal(size=(2, 50)), np.full((2, 50), 0.02)
    smoothing = Smoothing(np.linspace(-4, 4, 200), 0.1)
    whole = smooth(nodes, weights, smoothing)
    monkeypatch.setattr("landscape.curvature.kernels._TABLE", 1000)
    np.testing.assert_allclose(smooth(nodes, weights, smoothing), whole, rtol=1e-12)


# ------------------------------------------------------------------------------------------- cost, checks, bad input


def test_too_few_steps_are_found_out() -> None:
    matrix = rotated([*np.linspace(0, 1, 150), *np.linspace(3, 9, 50)])
    few, many = spectral_density(matrix, steps=6), spectral_density(matrix, steps=200)
    assert few.checks[0].level == "warn"
    assert "raise steps, or take a wider kernel" in few.warnings[0]
    assert many.checks[0].level == "pass"


def test_what_fewer_steps_move_is_a_share_of_the_eigenvalues() -> None:
    """Rules of 6 and of 8 steps have no node in common, and a narrow kernel lets none overlap: all of them move."""
    found = spectral_density(rotated(list(np.linspace(0, 1, 40))), steps=8, draws=2, width=1e-4)
    assert found.checks[0].name == "steps"
    assert found.checks[0].value == pytest.approx(1, rel=1e-3)
    assert "6 instead of 8 steps move 100.0% of the eigenvalues" in found.checks[0].message


def test_a_precision_is_reached_with_more_draws() -> None:
    found = spectral_density(rotated(NET), steps=30, draws=3, precision=0.03, width=0.05)
    assert found.status == "complete"
    assert 3 < len(found.nodes) < 1000
    assert found.stderr.sum() * (found.grid[1] - found.grid[0]) <= 0.03
    late = spectral_density(rotated(NET), steps=30, draws=2, precision=1e-4, max_draws=5)
    assert (late.status, len(late.nodes), late.products) == ("partial", 5, 150)
    assert "after 5 draws, not 0.0001: raise max_draws" in late.warnings[-1]


def test_draws_side_by_side_or_one_by_one_are_the_same() -> None:
    matrix = rotated(NET)
    many, one = spectral_density(matrix, steps=9, draws=5), spectral_density(matrix, steps=9, draws=5, memory=1)
    np.testing.assert_allclose(many.density, one.density, rtol=1e-8, atol=1e-12)
    assert many.products == one.products == 45


@pytest.mark.parametrize("kernel", list(KERNELS))
def test_the_result_describes_itself(kernel: str) -> None:
    found = spectral_density(rotated(NET), steps=5, draws=2, kernel=kernel)
    json.dumps(found.attributes())
    assert found.variables()["density"].stderr == "stderr"
    assert found.variables()["grid"].coordinate
    assert found.summary()["trace"] == {"value": found.trace, "stderr": found.trace_stderr}
    assert (found.kernel, found.operator, found.parameters) == (kernel, "matrix", 60)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0 gives no quadrature"),
        ({"draws": 1}, "draws=1 has no standard error"),
        ({"kernel": "box"}, "kernel 'box' is unknown; there is gaussian, pyhessian, papyan"),
        ({"kernel": "papyan", "width": 0.1}, "width=0.1 is for kernel='gaussian'"),
        ({"width": -1.0}, r"width=-1\.0 must be a positive share"),
        ({"precision": 0.0}, r"precision=0\.0 must be a positive share of the eigenvalues"),
        ({"max_draws": 9}, "max_draws=9 needs a precision"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        spectral_density(rotated([1.0, 2.0]), **settings)


def test_a_product_that_is_not_finite_is_named() -> None:
    matrix = rotated(NET)
    matrix[3, 4] = math.nan
    with pytest.raises(MeasurementError, match="product 1 is not finite"):
        spectral_density(matrix)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_density() -> None:
    host, device = (spectral_density(rotated(NET).to(d), steps=30, draws=4) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(device.grid, host.grid, rtol=1e-9)
    np.testing.assert_allclose(device.density, host.density, rtol=1e-6, atol=1e-9)
