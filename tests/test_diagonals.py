"""Frobenius norm and diagonal: exact where they must be, unbiased, with standard errors that can be believed."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Hessian, Task, diagonal, frobenius_norm, spectral_density, trace
from landscape.errors import MeasurementError


def symmetric(n: int, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix + matrix.T


def small_task() -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Task(model, nn.CrossEntropyLoss(), (x, torch.arange(30) % 3), batch_size=7)


def dense(task: Task) -> torch.Tensor:
    A = Hessian(task)
    return A @ torch.eye(A.shape[0], dtype=torch.float64)


# ------------------------------------------------------------------------------------------- the norm


def test_the_norm_of_a_diagonal_or_orthogonal_matrix_is_exact() -> None:
    found = frobenius_norm(torch.diag(torch.tensor([3.0, -4.0], dtype=torch.float64)), draws=3)
    assert (found.value, found.stderr) == (5.0, 0.0)
    turn = torch.linalg.qr(symmetric(9)).Q
    assert frobenius_norm(turn, draws=2).value == pytest.approx(3.0)
    assert frobenius_norm(torch.zeros(4, 4), draws=2, precision=0.1).value == 0.0


def test_the_norm_is_the_root_of_a_naive_mean() -> None:
    matrix, generator = symmetric(12), torch.Generator().manual_seed(5)
    naive = []
    for _ in range(11):
        v = torch.randint(0, 2, (12,), generator=generator, dtype=torch.int8).double() * 2 - 1
        naive.append(sum(sum(float(matrix[i, j] * v[j]) for j in range(12)) ** 2 for i in range(12)))
    found = frobenius_norm(matrix, draws=11, seed=5)
    np.testing.assert_allclose(found.samples, naive, rtol=1e-12)
    assert found.value == pytest.approx(math.sqrt(np.mean(naive)))
    assert found.stderr == pytest.approx(np.std(naive, ddof=1) / math.sqrt(11) / (2 * found.value))


def test_two_standard_errors_hold_the_norm() -> None:
    matrix = symmetric(20)
    true, runs = float(matrix.norm()), [frobenius_norm(matrix, seed=seed) for seed in range(200)]
    # As for the trace: 94.6% of 200, four deviations either way.
    assert 176 <= sum(abs(run.value - true) <= 2 * run.stderr for run in runs) <= 200


def test_the_norm_reaches_a_precision_or_says_that_it_did_not() -> None:
    found = frobenius_norm(symmetric(40), draws=8, precision=0.02)
    assert found.status == "complete"
    assert found.stderr <= 0.02 * found.value
    assert 8 < found.products < 1000
    late = frobenius_norm(symmetric(40), draws=4, precision=1e-6, max_draws=21)
    assert (late.status, late.products) == ("partial", 21)
    assert "of the norm after 21 draws, not 1e-06: raise max_draws" in late.warnings[0]


# ------------------------------------------------------------------------------------------- the diagonal


def test_a_diagonal_matrix_is_exact_from_any_draw() -> None:
    found = diagonal(torch.diag(torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)), draws=2)
    assert found.diagonal.tolist() == [1.0, -2.0, 5.0]
    assert found.stderr.tolist() == [0.0, 0.0, 0.0]
    assert (found.relative_error, found.trace, found.trace_stderr) == (0.0, 4.0, 0.0)
    np.testing.assert_array_equal(found.quantiles, [[-2.0, -0.5, 1.0, 3.0, 5.0]])


def test_entries_and_errors_are_those_of_a_naive_loop() -> None:
    matrix, generator = symmetric(9), torch.Generator().manual_seed(3)
    draws = []
    for _ in range(13):
        v = torch.randint(0, 2, (9,), generator=generator, dtype=torch.int8).double() * 2 - 1
        draws.append((v * (matrix @ v)).numpy())
    found = diagonal(matrix, draws=13, seed=3)
    np.testing.assert_allclose(found.diagonal, np.mean(draws, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.stderr, np.std(draws, axis=0, ddof=1) / math.sqrt(13), rtol=1e-10)
    assert found.trace == pytest.approx(trace(matrix, draws=13, seed=3).value)
    assert found.trace_stderr == pytest.approx(trace(matrix, draws=13, seed=3).stderr)


def test_errors_of_entries_hold_the_truth_and_have_the_known_size() -> None:
    matrix = symmetric(40)
    found = diagonal(matrix, draws=400)
    z = (found.diagonal - matrix.diagonal()) / found.stderr
    # 40 nearly normal numbers: their mean square is 1 within 4 of its deviations, sqrt(2 / 40).
    assert abs(float(z.square().mean()) - 1) < 4 * math.sqrt(2 / 40)
    off = (matrix**2).sum(dim=1) - matrix.diagonal() ** 2
    # The sample variance of 400 draws has a deviation of 7%, the largest of 40 under four of them.
    np.testing.assert_allclose(found.stderr**2 * 400, off, rtol=0.3)
    assert found.noise[0] == pytest.approx(math.sqrt(float(off.mean()) / 400), rel=0.05)


def test_a_small_spread_on_large_entries_keeps_its_digits() -> None:
    matrix = 1e9 * torch.eye(6, dtype=torch.float64) + symmetric(6)
    np.testing.assert_allclose(diagonal(matrix, draws=20).stderr, diagonal(symmetric(6), draws=20).stderr, rtol=1e-6)


def test_a_precision_is_reached_or_said_not_to_be() -> None:
    matrix = symmetric(30) + 20 * torch.eye(30, dtype=torch.float64)
    found = diagonal(matrix, draws=4, precision=0.1)
    assert found.status == "complete"
    assert found.relative_error <= 0.1
    assert found.relative_error == pytest.approx(float(found.stderr.norm() / found.diagonal.norm()))
    assert 4 < found.products < 1000
    late = diagonal(matrix, draws=4, precision=1e-5, max_draws=12)
    assert (late.status, late.products) == ("partial", 12)
    assert "of the diagonal after 12 draws" in late.warnings[0]


def decaying(n: int = 60, power: float = 1.5) -> torch.Tensor:
    """Return a dense matrix with eigenvalues 10 / i^power."""
    basis = torch.linalg.qr(symmetric(n)).Q
    return basis @ torch.diag(10 / torch.arange(1, n + 1, dtype=torch.float64) ** power) @ basis.T


@pytest.mark.parametrize("matrix", [symmetric(20), decaying(20)])
def test_xdiag_is_its_definition(matrix: torch.Tensor) -> None:
    generator = torch.Generator().manual_seed(4)
    signs = [torch.randint(0, 2, (20,), generator=generator, dtype=torch.int8).double() * 2 - 1 for _ in range(6)]
    estimates = []
    for i, w in enumerate(signs):
        q = torch.linalg.qr(torch.stack([matrix @ v for j, v in enumerate(signs) if j != i], dim=1)).Q
        product = matrix @ w
        estimates.append((q @ q.T @ matrix).diagonal() + w * (product - q @ (q.T @ product)))
    found = diagonal(matrix, "xdiag", draws=13, seed=4)
    # The naive sketches are orthonormalized anew for each vector: rounding only.
    np.testing.assert_allclose(found.diagonal, torch.stack(estimates).mean(dim=0), rtol=1e-9, atol=1e-9)
    expected = torch.stack(estimates).std(dim=0) / math.sqrt(6)
    np.testing.assert_allclose(found.stderr, expected, rtol=1e-6, atol=1e-9)
    assert found.products == 12
    assert found.trace == pytest.approx(float(torch.stack(estimates).sum(dim=1).mean()))


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_xdiag_is_exact_for_a_small_rank_and_for_a_small_matrix(rank: int) -> None:
    factor = torch.randn(40, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = diagonal(factor @ factor.T, "xdiag", draws=12)
    np.testing.assert_allclose(found.diagonal, (factor**2).sum(dim=1), atol=1e-10)
    few = diagonal(symmetric(rank + 1), "xdiag", draws=30)
    np.testing.assert_allclose(few.diagonal, symmetric(rank + 1).diagonal(), atol=1e-10)
    assert few.relative_error < 1e-10


def test_xdiag_is_unbiased_closer_and_its_errors_can_be_believed() -> None:
    matrix = decaying()
    true = matrix.diagonal()
    runs = [diagonal(matrix, "xdiag", draws=24, seed=100 + s) for s in range(100)]
    errors = torch.stack([run.diagonal - true for run in runs])
    z = errors.mean(dim=0) / (errors.std(dim=0) / 10)
    assert float(z.abs().max()) < 4.5
    plain = torch.stack([diagonal(matrix, draws=24, seed=100 + s).diagonal - true for s in range(100)])
    assert float(errors.norm()) < float(plain.norm()) / 3
    # The spread of estimates that share a sketch is a little small: the stated error is at least 0.7 of the true one.
    stated = np.mean([run.relative_error * float(run.diagonal.norm()) for run in runs])
    assert 0.7 < stated / float(errors.norm(dim=1).mean()) < 1.3


def test_xdiag_goes_on_to_a_precision() -> None:
    found = diagonal(decaying(), "xdiag", draws=8, precision=0.1)
    assert found.status == "complete"
    assert found.relative_error <= 0.1
    assert 8 < found.products < 60
    fresh = diagonal(decaying(), "xdiag", draws=found.products)
    np.testing.assert_allclose(found.diagonal, fresh.diagonal, rtol=1e-8)
    late = diagonal(decaying(), "xdiag", draws=8, precision=1e-9, max_draws=13)
    assert (late.status, late.products) == ("partial", 12)


def test_without_layers_the_sum_is_the_trace_with_its_standard_error() -> None:
    matrix = symmetric(20)
    found, of_trace = diagonal(matrix, draws=24), trace(matrix, draws=24)
    assert found.sums == pytest.approx([of_trace.value], rel=1e-12)
    assert found.sums_stderr == pytest.approx([of_trace.stderr], rel=1e-12)
    assert found.trace_stderr == pytest.approx(of_trace.stderr, rel=1e-12)


def test_sums_by_layer_are_the_blocks_traces() -> None:
    task = small_task()
    matrix = dense(task)
    found = diagonal(Hessian(task), draws=60)
    assert found.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert found.sizes.tolist() == [20, 5, 15, 3]
    blocks = [float(part.sum()) for part in matrix.diagonal().split(found.sizes.tolist())]
    assert (np.abs(found.sums - blocks) < 5 * found.sums_stderr).all()
    # The very draws on the dense matrix.
    same = diagonal(matrix, draws=60)
    np.testing.assert_allclose(found.diagonal, same.diagonal, rtol=1e-9, atol=1e-13)
    assert found.sums.sum() == pytest.approx(same.sums[0])
    assert found.sums_stderr[0] != pytest.approx(math.sqrt(float(found.stderr[:20].square().sum())))
    only = diagonal(Hessian(task, parameters="2"), draws=5)
    assert only.names == ("2.weight", "2.bias")


def test_the_results_describe_themselves() -> None:
    found = diagonal(Hessian(small_task()), draws=4)
    json.dumps(found.attributes())
    json.dumps(found.summary())
    assert "diagonal" not in found.variables()
    assert found.variables()["sums"].stderr == "sums_stderr"
    assert found.summary()["layers"]["2.bias"]["sum"] == found.sums[3]
    assert found.split == "train"
    norm = frobenius_norm(Hessian(small_task()), draws=4)
    json.dumps(norm.attributes())
    assert norm.variables()["samples"].units == "loss^2 / parameter^4"
    assert norm.settings["operator"] == "Hessian"


@pytest.mark.parametrize("estimate", [frobenius_norm, diagonal])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 1}, "draws=1 has no standard error"),
        ({"precision": -1.0}, r"precision=-1\.0 must be a positive share of the"),
        ({"max_draws": 50}, "max_draws=50 needs a precision"),
    ],
)
def test_bad_settings_are_one_clear_line(estimate, settings: dict, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        estimate(symmetric(4), **settings)


@pytest.mark.parametrize("estimate", [frobenius_norm, diagonal])
def test_a_product_that_is_not_finite_is_named(estimate) -> None:
    matrix = symmetric(4)
    matrix[0, 0] = math.inf
    with pytest.raises(MeasurementError, match="product 1 is not finite"):
        estimate(matrix)


@pytest.mark.parametrize(
    "estimate", [frobenius_norm, diagonal, trace, partial(trace, method="xtrace"), spectral_density]
)
def test_estimates_from_products_that_are_not_symmetric_say_so(estimate) -> None:
    rough = torch.randn(30, 30, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    even, odd = rough + rough.T, rough - rough.T
    share = float(odd.norm() / rough.norm())
    for matrix, level in ((even, "pass"), (even + 1e-5 * odd, "warn"), (rough, "fail")):
        found = estimate(matrix)
        check = next(c for c in found.checks if c.name == "symmetry")
        assert check.level == level
        assert (check.message in found.warnings) == (level != "pass")
        assert found.status == "complete"
    assert share / 3 < check.value < 3 * share
    sizes = [next(c for c in frobenius_norm(rough, seed=s).checks if c.name == "symmetry").value for s in range(200)]
    assert np.sqrt(np.mean(np.square(sizes))) == pytest.approx(share, rel=0.1)


def test_symmetry_is_seen_where_vectors_come_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rough = torch.randn(30, 30, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    monkeypatch.setattr("landscape.curvature.probing._BLOCK_BYTES", 1)
    alone = next(c for c in frobenius_norm(rough, draws=4).checks if c.name == "symmetry")
    g = torch.Generator().manual_seed(0)
    u, v = (torch.randint(0, 2, (30,), generator=g, dtype=torch.int8).double() * 2 - 1 for _ in range(2))
    sizes = (float((rough @ u).square().sum()), float((rough @ v).square().sum()))
    assert alone.value == pytest.approx(
        abs(float(u @ rough @ v - v @ rough @ u)) / math.sqrt(np.mean(sizes)), rel=1e-12
    )


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(MeasurementError, match="diagonal method 'magic' is unknown; there is hutchinson, xdiag"):
        diagonal(symmetric(4), "magic")
    with pytest.raises(MeasurementError, match="draws=3 is too few for this method"):
        diagonal(symmetric(4), "xdiag", draws=3)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["hutchinson", "xdiag"])
def test_a_gpu_gives_the_same_diagonal_norm_and_trace(method: str) -> None:
    host, device = (diagonal(symmetric(20).to(d), method, draws=12) for d in ("cpu", "cuda"))
    assert device.diagonal.device.type == "cuda"
    np.testing.assert_allclose(device.diagonal.cpu(), host.diagonal, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(device.sums_stderr, host.sums_stderr, rtol=1e-8)
    for estimate in (lambda A: frobenius_norm(A), lambda A: trace(A, "hutch++"), lambda A: trace(A, "xtrace")):
        assert estimate(symmetric(20).cuda()).value == pytest.approx(estimate(symmetric(20)).value, rel=1e-9)
