"""The trace estimate: exact where it must be, unbiased, with a standard error that can be believed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Task, trace
from landscape.curvature.measure import measure_trace
from landscape.errors import MeasurementError
from landscape.results import measurements


def symmetric(n: int, seed: int = 0) -> torch.Tensor:
    matrix = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix + matrix.T


class Counted:
    """A dense matrix that counts the columns it multiplies."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix
        self.shape, self.dtype, self.device = tuple(matrix.shape), matrix.dtype, matrix.device
        self.products = 0

    def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
        assert v.dtype == self.dtype
        assert v.ndim == 2
        self.products += v.shape[1]
        return self.matrix @ v


# ------------------------------------------------------------------------------------------- the estimate


@pytest.mark.parametrize("diagonal", [[1.0, -2.0, 5.0], [0.0] * 4, [3.0], list(range(50))])
def test_a_diagonal_matrix_is_exact_from_any_draw(diagonal: list[float]) -> None:
    found = trace(torch.diag(torch.tensor(diagonal, dtype=torch.float64)), draws=5)
    assert found.value == sum(diagonal)
    assert found.stderr == 0
    assert (found.samples == sum(diagonal)).all()


def test_it_is_unbiased_with_the_known_variance() -> None:
    matrix = symmetric(30)
    found = trace(matrix, draws=4000)
    # Five standard errors: once in two million.
    assert abs(found.value - float(matrix.trace())) < 5 * found.stderr
    off = float((matrix**2).sum() - (matrix.diagonal() ** 2).sum())
    # The sample variance of 4,000 nearly Gaussian draws has a relative deviation of 2%; 10% is five of them.
    assert found.samples.var(ddof=1) == pytest.approx(2 * off, rel=0.1)
    assert found.stderr == pytest.approx(found.samples.std(ddof=1) / math.sqrt(4000))
    assert found.value == pytest.approx(found.samples.mean())


def test_two_standard_errors_hold_the_truth_as_often_as_they_should() -> None:
    matrix = symmetric(20)
    true = float(matrix.trace())
    runs = [trace(matrix, draws=32, seed=seed) for seed in range(200)]
    held = sum(abs(run.value - true) <= 2 * run.stderr for run in runs)
    # Student's t with 31 degrees: 94.6%, 189 of 200, deviation 3.2; four of them either way.
    assert 176 <= held <= 200
    assert len({run.value for run in runs}) == 200


def test_a_naive_sum_over_the_same_signs_agrees() -> None:
    matrix = symmetric(12)
    generator = torch.Generator().manual_seed(5)
    naive = []
    for _ in range(11):
        v = torch.randint(0, 2, (12,), generator=generator, dtype=torch.int8).double() * 2 - 1
        naive.append(sum(float(v[i] * matrix[i, j] * v[j]) for i in range(12) for j in range(12)))
    np.testing.assert_allclose(trace(matrix, draws=11, seed=5).samples, naive, rtol=1e-12)


def test_the_sign_of_the_trace_does_not_matter() -> None:
    matrix = symmetric(20)
    assert trace(-matrix).value == -trace(matrix).value


def test_float32_is_summed_in_float64() -> None:
    # One large positive and one large negative entry: the trace is what is left.
    diagonal = torch.cat([torch.tensor([2.0**30, -(2.0**30)]), torch.ones(1000)])

    class Large(Counted):
        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            return self.matrix[:, None] * v

    operator = Large(diagonal)
    operator.shape = (1002, 1002)
    assert trace(operator, draws=3).value == 1000.0


# ------------------------------------------------------------------------------------------- draws and cost


def test_the_same_seed_gives_the_same_bits_and_more_draws_continue_it() -> None:
    matrix = symmetric(25)
    a, b = trace(matrix, draws=13, seed=2), trace(matrix, draws=13, seed=2)
    assert (a.samples == b.samples).all()
    longer = trace(matrix, draws=30, seed=2)
    np.testing.assert_allclose(longer.samples[:13], a.samples, rtol=1e-12)
    assert not np.allclose(trace(matrix, draws=13, seed=3).samples, a.samples)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    trace(symmetric(5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("draws", [2, 8, 13])
def test_every_product_is_counted(draws: int) -> None:
    operator = Counted(symmetric(9))
    found = trace(operator, draws=draws)
    assert operator.products == found.products == found.cost.products == len(found.samples) == draws


def test_a_precision_is_reached_with_as_few_draws_as_it_takes() -> None:
    matrix = symmetric(40) + 30 * torch.eye(40, dtype=torch.float64)
    found = trace(matrix, draws=8, precision=0.01)
    assert found.status == "complete"
    assert found.stderr <= 0.01 * found.value
    assert 8 < found.products < 1000
    assert found.checks[0].level == "pass"
    before = found.samples[:-8]  # one block less would not have been enough
    assert before.std(ddof=1) / math.sqrt(len(before)) > 0.01 * before.mean()
    assert abs(found.value - float(matrix.trace())) < 5 * found.stderr


def test_a_precision_out_of_reach_is_a_partial_result() -> None:
    operator = Counted(symmetric(40))
    found = trace(operator, draws=4, precision=1e-6, max_draws=21)
    assert operator.products == 21
    assert found.status == "partial"
    assert found.checks[0].level == "warn"
    assert "after 21 draws, not 1e-06: raise max_draws" in found.warnings[0]


def test_a_zero_operator_reaches_any_precision() -> None:
    found = trace(torch.zeros(6, 6), draws=2, precision=0.1)
    assert (found.value, found.stderr, found.status, found.products) == (0.0, 0.0, "complete", 2)


# ------------------------------------------------------------------------------------------- deflated estimates


def decaying(n: int = 100, power: float = 1.5, seed: int = 0) -> torch.Tensor:
    """Return a dense matrix with eigenvalues 10 / i^power."""
    basis = torch.linalg.qr(symmetric(n, seed)).Q
    return basis @ torch.diag(10 / torch.arange(1, n + 1, dtype=torch.float64) ** power) @ basis.T


def naive_xtrace(matrix: torch.Tensor, seed: int, k: int) -> list[float]:
    """XTrace as its definition reads: for each vector a sketch from all the others, orthonormalized anew."""
    n, generator = len(matrix), torch.Generator().manual_seed(seed)
    return xtrace_of(matrix, [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(k)])


def xtrace_of(matrix: torch.Tensor, vectors: list[torch.Tensor]) -> list[float]:
    n, k, found = len(matrix), len(vectors), []
    for i, w in enumerate(vectors):
        q = torch.linalg.qr(torch.stack([matrix @ v for j, v in enumerate(vectors) if j != i], dim=1)).Q
        rest = w - q @ (q.T @ w)
        rest = rest * math.sqrt(n - k + 1) / rest.norm()
        found.append(float((q.T @ matrix @ q).trace() + rest @ matrix @ rest))
    return found


def naive_hutch(matrix: torch.Tensor, seed: int, budget: int) -> list[float]:
    n, generator, third = len(matrix), torch.Generator().manual_seed(seed), budget // 3
    signs = [
        torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8).double() * 2 - 1 for _ in range(budget - third)
    ]
    q = torch.linalg.qr(matrix @ torch.stack(signs[:third], dim=1)).Q
    rest = [g - q @ (q.T @ g) for g in signs[third:]]
    return [float((q.T @ matrix @ q).trace() + g @ matrix @ g) for g in rest]


def naive_jackknife(matrix: torch.Tensor, seed: int, k: int, groups: int) -> float:
    """The whole of XTrace anew without each group of its vectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [torch.randn(len(matrix), generator=generator, dtype=torch.float64) for _ in range(k)]
    left = []
    for group in np.array_split(np.arange(k), groups):
        kept = [v for i, v in enumerate(vectors) if i not in group]
        left.append(np.mean(xtrace_of(matrix, kept)))
    return math.sqrt((groups - 1) / groups * sum((x - np.mean(left)) ** 2 for x in left))


@pytest.mark.parametrize(("k", "groups"), [(6, 6), (30, 24)])
def test_xtraces_error_is_the_jackknifes(k: int, groups: int) -> None:
    matrix = decaying(60)
    assert trace(matrix, "xtrace", draws=2 * k, seed=4).stderr == pytest.approx(
        naive_jackknife(matrix, 4, k, groups), rel=1e-8
    )


@pytest.mark.parametrize("matrix", [symmetric(20), decaying(20)])
def test_each_method_is_its_definition(matrix: torch.Tensor) -> None:
    # The naive sketches are orthonormalized anew for each vector: rounding only.
    xtrace = trace(matrix, "xtrace", draws=13, seed=4)
    np.testing.assert_allclose(xtrace.samples, naive_xtrace(matrix, 4, 6), rtol=1e-9, atol=1e-9)
    hutch = trace(matrix, "hutch++", draws=13, seed=4)
    np.testing.assert_allclose(hutch.samples, naive_hutch(matrix, 4, 13), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_a_small_rank_gives_the_exact_trace(method: str, rank: int) -> None:
    factor = torch.randn(40, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = trace(factor @ factor.T, method, draws=18)
    assert found.value == pytest.approx(float((factor**2).sum()), rel=1e-10, abs=1e-12)
    assert found.stderr == pytest.approx(0, abs=1e-10 * (found.value + 1e-12))


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_more_products_than_parameters_are_no_harm(method: str, n: int) -> None:
    found = trace(symmetric(n), method, draws=30)
    assert found.value == pytest.approx(float(symmetric(n).trace()), rel=1e-10)
    assert found.stderr == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(("method", "least"), [("hutch++", 82), ("xtrace", 90)])
def test_deflated_estimates_are_unbiased_and_their_errors_can_be_believed(method: str, least: int) -> None:
    matrix = decaying()
    true, runs = float(matrix.trace()), [trace(matrix, method, draws=24, seed=1000 + seed) for seed in range(100)]
    errors = np.array([run.value - true for run in runs])
    assert abs(errors.mean()) < 4 * errors.std() / 10
    # 8 draws of the rest leave a standard error of their own; XTrace's is never too small on average. The bounds are
    # three deviations below.
    assert sum(abs(e) <= 2 * run.stderr for e, run in zip(errors, runs, strict=True)) >= least
    plain = np.array([trace(matrix, draws=24, seed=1000 + seed).value - true for seed in range(100)])
    # What deflation is for: 4 times closer at least, on eigenvalues that decay as i^-1.5.
    assert errors.std() < plain.std() / 4


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_a_continued_estimate_is_the_one_from_one_go(method: str) -> None:
    operator = Counted(decaying(60))
    found = trace(operator, method, draws=12, precision=0.015)
    assert found.status == "complete"
    assert 12 < found.products == operator.products < 60
    assert found.stderr <= 0.015 * found.value
    # Sketch and draws come in another order, so that not the samples agree but what they estimate.
    fresh = trace(decaying(60), method, draws=found.products)
    assert abs(found.value - fresh.value) < 6 * max(found.stderr, fresh.stderr)
    assert len(found.samples) == len(fresh.samples)
    late = trace(decaying(60), method, draws=12, precision=1e-9, max_draws=15)
    assert late.status == "partial"
    assert 14 <= late.products <= 15


def test_a_continued_xtrace_has_the_very_samples() -> None:
    # Its vectors are drawn in the same order, and the sketch spans the same space.
    found = trace(decaying(60), "xtrace", draws=12, precision=0.015)
    fresh = trace(decaying(60), "xtrace", draws=found.products)
    np.testing.assert_allclose(found.samples, fresh.samples, rtol=1e-9)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_float32_errs_by_rounding(method: str) -> None:
    double, single = trace(decaying(), method, draws=24), trace(decaying().float(), method, draws=24)
    if method == "hutch++":  # XTrace's vectors are drawn in the operator's own precision
        np.testing.assert_allclose(single.samples, double.samples, rtol=1e-4)
    assert abs(single.value - double.value) < 5 * double.stderr


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, r"trace method 'magic' is unknown; there is hutchinson, hutch\+\+, xtrace"),
        (
            {"method": "hutch++", "draws": 5},
            "draws=5 is too few for this method and its standard error; take at least 6",
        ),
        (
            {"method": "xtrace", "draws": 3},
            "draws=3 is too few for this method and its standard error; take at least 4",
        ),
        ({"draws": 1}, "draws=1 has no standard error; take at least 2"),
        ({"precision": 0.0}, "precision=0.0 must be a positive share"),
        ({"precision": -0.1}, "precision=-0.1 must be"),
        ({"precision": math.nan}, "precision=nan must be"),
        ({"max_draws": 50}, "max_draws=50 needs a precision"),
        ({"precision": 0.1, "max_draws": 5}, "max_draws=5 is below draws=32"),
    ],
)
def test_bad_settings_are_one_clear_line(settings: dict, message: str) -> None:
    with pytest.raises(MeasurementError, match=message):
        trace(symmetric(4), **settings)


def test_what_is_no_operator_is_refused() -> None:
    with pytest.raises(MeasurementError, match="square operator"):
        trace(torch.ones(3, 4))
    with pytest.raises(TypeError, match=r"got torch\.float16"):
        trace(torch.eye(3, dtype=torch.float16))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_product_that_is_not_finite_is_named(bad: float) -> None:
    class Breaks(Counted):
        def __matmul__(self, v: torch.Tensor) -> torch.Tensor:
            product = super().__matmul__(v)
            if self.products == 16:
                product[2, 3] = bad
            return product

    with pytest.raises(MeasurementError, match="product 12 is not finite"):
        trace(Breaks(symmetric(4)))


# ------------------------------------------------------------------------------------------- the result, on a task


def test_the_result_describes_itself() -> None:
    found = trace(symmetric(4), draws=6, precision=0.5)
    json.dumps(found.attributes())
    assert found.variables()["value"].stderr == "stderr"
    assert found.variables()["samples"].dims == ("draw",)
    assert found.summary()["trace"] == {"value": found.value, "stderr": found.stderr, "draws": found.products}
    assert found.settings["operator"] == "matrix"
    assert found.split == ""


def test_progress_goes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    trace(symmetric(4), progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "trace" in captured.err
    trace(symmetric(4))
    assert capsys.readouterr().err == ""


def test_the_measurement_meets_the_dense_hessian() -> None:
    # Linear regression: H = 2 X^T X / n for one output, whatever the weights.
    x = torch.randn(31, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Linear(7, 1, bias=False).double()
    task = Task(model, nn.MSELoss(), train=(x, x[:, :1]), batch_size=9)
    known = measurements()["trace"]
    found = known.run(task, seed=0, progress=False, **known.settings("thorough"))
    true = float(2 * (x**2).sum() / 31)
    assert abs(found.value - true) < 5 * found.stderr
    assert found.stderr < 0.2 * true
    dense = 2 * x.T @ x / 31
    np.testing.assert_allclose(found.samples, trace(dense, draws=128).samples, rtol=1e-10)
    assert (found.split, found.settings["samples"], found.settings["operator"]) == ("train", 31, "Hessian")
    assert found.cost.passes >= 3 * found.products
    assert measure_trace(task, draws=4, seed=1).products == 4
