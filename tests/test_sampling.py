"""How far numbers move with the data: parts that are what they say, known biases found, intervals that hold."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from landscape import Hessian, Objective, Task, eigenpairs, measurements, sampling_error, sharpness, to_precision, trace
from landscape.batch import batch_size_of
from landscape.curvature.extrapolation import Parts, spread
from landscape.curvature.measure import measure_eigenvalues
from landscape.curvature.quantities import numbers_of
from landscape.curvature.spectrum import Eigenpairs
from landscape.curvature.subsamples import Subsamples
from landscape.errors import MeasurementError


def regression(n: int = 400, p: int = 5, seed: int = 0, spectrum: list[float] | None = None, **settings) -> Task:
    """Return a linear regression on Gaussian inputs, whose Hessian is 2 X^T X / n; `spectrum` is E x x^T's."""
    scale = torch.tensor(spectrum or [1.0] * p, dtype=torch.float64).sqrt()
    x = torch.randn(n, len(scale), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    model = nn.Linear(len(scale), 1, bias=False).double()
    return Task(model, nn.MSELoss(), (x, x[:, :1]), **settings)


def inputs(task: Task) -> torch.Tensor:
    return torch.cat([x for x, _ in task.draw().batches])


def top(task: Task) -> float:
    """Return lambda_max of X^T X / n of the task's draw: what eigenpairs would find, without its cost."""
    x = inputs(task)
    return float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1])


def mean_square(task: Task) -> float:
    return float(inputs(task).square().sum(dim=1).mean())


# ------------------------------------------------------------------------------------------- parts of a draw


def rows_of(part: Task) -> list[float]:
    return inputs(part)[:, 0].tolist()


@pytest.mark.parametrize("n", [64, 100, 403])
def test_parts_are_disjoint_and_hold_everything(n: int) -> None:
    task = regression(n, batch_size=32)
    parts = Subsamples(task, "train", seed=3)
    assert parts.ratio == 4
    everything = sorted(rows_of(task))
    levels = {count: list(parts.parts(count)) for count in (16, 4, 1)}
    for count, found in levels.items():
        assert len(found) == count
        assert sorted(x for part, _ in found for x in rows_of(part)) == everything
        assert [samples for _, samples in found] == [len(rows_of(part)) for part, _ in found]
        assert max(s for _, s in found) - min(s for _, s in found) <= 1
        assert all(batch_size_of(b) <= 32 for part, _ in found for b in part.draw().batches)
    for i, (middle, _) in enumerate(levels[4]):
        four = [x for part, _ in levels[16][4 * i : 4 * i + 4] for x in rows_of(part)]
        assert sorted(rows_of(middle)) == sorted(four)
    # Random parts: those of a sorted data set are no runs of it.
    ordered = regression(n)
    ordered.train = (torch.arange(n, dtype=torch.float64)[:, None], torch.zeros(n, 1, dtype=torch.float64))
    first = rows_of(next(iter(Subsamples(ordered, "train", seed=0).parts(4)))[0])
    assert np.mean(first) > n / 4


def test_batches_that_must_stay_whole_do() -> None:
    batches = [(torch.full((k, 1), float(i)), torch.zeros(k, 1)) for i, k in enumerate([3, 5, 2, 4, 3, 5, 2, 4, 1])]
    task = Task(nn.Linear(1, 1), nn.MSELoss(), batches, rebatch=False)
    parts = Subsamples(task, "train", seed=0)
    assert (parts.whole_batches, parts.ratio) == (True, 2)
    found = [(part.draw().batches, samples) for part, samples in parts.parts(4)]
    assert sorted(float(x[0, 0]) for part, _ in found for x, _ in part) == list(range(9))
    for part, samples in found:
        assert all(any(x is b[0] for b in batches) for x, _ in part)
        assert samples == sum(len(x) for x, _ in part)
    for settings in ({"rng": "fixed"}, {"batchnorm": "batch"}):
        model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
        assert Subsamples(Task(model, nn.MSELoss(), batches, **settings), "train", 0).whole_batches


def test_samples_of_different_lengths_are_taken_out_of_every_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"tokens": torch.randint(0, 9, (20, length), generator=generator), "id": torch.arange(20) + 20 * i}
        for i, length in enumerate([7, 9, 5, 7])
    ]
    task = Task(nn.Linear(1, 1), nn.MSELoss(), batches, forward=lambda m, b: (b["id"], b["id"]))
    found = [part.draw().batches for part, _ in Subsamples(task, "train", 0).parts(16)]
    assert sorted(int(i) for part in found for batch in part for i in batch["id"]) == list(range(80))
    lengths = {int(i): b["tokens"].shape[1] for part in found for b in part for i in b["id"]}
    assert [lengths[i] for i in (0, 20, 40, 60)] == [7, 9, 5, 7]


def test_too_few_units_are_refused() -> None:
    with pytest.raises(MeasurementError, match="the draw holds 7 samples: how numbers move with the data takes 8"):
        sampling_error(regression(7), top)
    with pytest.raises(MeasurementError, match=r"5 batches, which must stay whole: .* smaller batches"):
        sampling_error(regression(50, batch_size=10, rebatch=False), top)
    with pytest.raises(MeasurementError, match="the draw holds 1 batch, which must stay whole: "):
        sampling_error(regression(50, batch_size=50, rebatch=False), top)


# ------------------------------------------------------------------------------------------- bias and spread


def ladder(value: Callable[[float], float], n: int = 1600, r: int = 4, noise: float = 0.0, seed: int = 0) -> Parts:
    """Return one number on the parts of a run whose mean on m samples is value(m), with second-order noise."""
    g = np.random.default_rng(seed)
    whole = np.array([value(n)])
    middle = value(n / r) + noise * g.normal(size=(r, 1)) / r
    fine = np.repeat(middle - value(n / r) + value(n / r**2), r, axis=0) + noise * g.normal(size=(r * r, 1))
    return Parts(n, fine, middle, whole)


@pytest.mark.parametrize("law", [0.5, 1.0])
@pytest.mark.parametrize(("population", "r"), [(math.inf, 4), (6400.0, 4), (math.inf, 2)])
def test_a_bias_that_follows_a_law_is_found(law: float, population: float, r: int) -> None:
    parts = ladder(lambda m: 10 + 40 * m**-law, r=r, noise=1e-9)
    true = 40 * (1600**-law - (0.0 if math.isinf(population) else population**-law))
    bias, error, fits = parts.bias(population)
    assert fits.all()
    if r == 4:  # the levels tell the laws apart
        assert bias[0] == pytest.approx(true, rel=1e-6)
        assert error[0] < 1e-6
    # From the spread of two halves nobody can: the range holds all of them.
    assert bias[0] - error[0] - 1e-9 <= true <= bias[0] + error[0] + 1e-9


@pytest.mark.parametrize("law", [0.5, 0.7, 1.0])
def test_the_range_of_the_bias_holds_it_in_noise(law: float) -> None:
    held = 0
    for seed in range(200):
        bias, error, _ = ladder(lambda m: 10 + 40 * m**-law, noise=0.3 * 40 * 100**-law, seed=seed).bias(math.inf)
        held += abs(bias[0] - 40 * 1600**-law) <= error[0]
    # Two deviations, each from four differences: Student's t with 3 degrees gives 86%, the range of laws adds to it.
    assert held >= 165


def test_a_bias_that_does_not_fall_fits_no_law() -> None:
    # As if the number had no limit: it grows by the same step from level to level.
    bias, _, fits = ladder(lambda m: math.log(m), noise=1e-6).bias(math.inf)
    assert not fits.any()
    assert bias[0] < 0


def test_what_is_linear_in_the_data_has_no_bias_and_the_known_error() -> None:
    task = regression(1600, 3)
    square = inputs(task).square().sum(dim=1).numpy()
    found = sampling_error(task, mean_square)
    assert found.values[0] == pytest.approx(square.mean())
    assert abs(found.bias[0]) + found.bias_error[0] < 1e-12
    # A spread over 16 parts has a deviation of 1 / sqrt(30); the larger of two is a little more.
    assert found.stderr[0] == pytest.approx(square.std(ddof=1) / 40, rel=0.6)
    assert found.resolved.all()
    np.testing.assert_allclose(found.means, square.mean(), rtol=1e-12)


def test_the_finite_population_correction_shrinks_the_error() -> None:
    task = regression(1600, max_samples=400)
    data, source = sampling_error(task, mean_square), sampling_error(task, mean_square, of="source")
    assert (data.population, source.population) == (1600, math.inf)
    assert data.stderr[0] == pytest.approx(source.stderr[0] * math.sqrt(0.75))
    parts = [Parts(100, np.arange(16.0)[:, None], np.arange(4.0)[:, None], np.zeros(1))]
    variance = max(np.arange(16.0).var(ddof=1) * 100 / 16, np.arange(4.0).var(ddof=1) * 25)
    assert spread(parts, math.inf)[0] == pytest.approx(math.sqrt(variance / 100))
    assert spread(parts, 100)[0] == 0


def test_intervals_hold_the_sources_value_where_a_subsample_is_biased() -> None:
    spectrum, held, plain, biased = [2.0, 1.5, 1.0, 1.0, 0.5, 0.5], 0, 0, 0
    for seed in range(100):
        found = sampling_error(regression(200, seed=seed, spectrum=spectrum), top, seed=seed)
        low, high = found.interval[0]
        held += low <= 2.0 <= high
        plain += abs(found.values[0] - 2.0) <= 2 * found.stderr[0]
        biased += found.values[0] > 2.0
    # 95% of 100 within three deviations, on the side that matters.
    assert held >= 89
    assert biased > 60
    assert held >= plain


def test_the_edge_of_a_bulk_is_no_resolved_estimate_or_a_right_one() -> None:
    # Isotropic inputs, 60 dimensions, 300 samples: lambda_max is (1 + sqrt(60 / 300))^2 = 2.1 instead of 1.
    calls, held = [], 0
    for seed in range(20):
        found = sampling_error(regression(300, 60, seed=seed), top, seed=seed)
        calls += found.calls
        held += found.interval[0, 0] <= 1.0 <= found.interval[0, 1]
        assert found.values[0] > 1.7
    assert held >= 17
    assert "upper estimate" in calls
    assert not set(calls) - {"upper estimate", "estimate"}


def test_an_unresolved_number_is_left_as_it_is_and_named() -> None:
    found = next(
        f for s in range(20) if not (f := sampling_error(regression(300, 60, seed=s), top, seed=s)).resolved[0]
    )
    assert found.estimates[0] == found.values[0]
    assert found.calls == ("upper estimate",)
    assert found.checks[0].level == "warn"
    assert "value: upper estimate, its bias can't be resolved on 300 samples; draw more" in found.warnings[0]
    assert found.interval[0, 1] < found.values[0] + found.bias_error[0] + 3 * found.stderr[0]


# ------------------------------------------------------------------------------------------- to a precision


def test_the_true_value_lies_within_the_stated_error() -> None:
    task = regression(12_000, spectrum=[3.0, 2.0, 1.0, 0.5])
    true = top(task)
    held, work, drawn = 0, [], set()
    for seed in range(100):
        found = to_precision(task.replace(seed=seed), top, 0.1, seed=seed, start=256)
        assert found.status == "complete"
        assert found.error[0] <= 0.1
        held += found.interval[0, 0] <= true <= found.interval[0, 1]
        work.append(found.work)
        drawn.add(found.samples)
    # What a 95% interval reaches with 99% probability.
    assert held >= 89
    assert np.median(work) < 0.5
    assert len(drawn) > 10


def test_a_precision_beyond_the_samples_takes_the_whole_split() -> None:
    task = regression(4000)
    found = to_precision(task, top, 1e-4)
    assert (found.status, found.samples, found.population) == ("complete", 4000, 4000)
    assert found.estimates[0] == found.values[0] == top(task)
    assert (found.error[0], found.stderr[0], found.bias[0]) == (0, 0, 0)
    assert found.settings["stages"] == [512, 4000]
    assert found.work == pytest.approx((3 * 512 + 4000) / 4000)
    assert found.calls == ("estimate",)


def test_the_whole_split_is_taken_where_it_costs_no_more_than_a_draw_on_three_levels() -> None:
    task = regression(4000)
    pilot = sampling_error(task.replace(max_samples=512), mean_square).error[0]
    # A third of the pilot's error takes some 2,400 of the 4,000 samples: three times that is more than all of them.
    assert to_precision(task, mean_square, pilot / 3).settings["stages"] == [512, 4000]
    # Three quarters of it take some 1,000: three times that is less.
    stages = to_precision(task, mean_square, pilot / 1.3).settings["stages"]
    assert stages[:2] == [512, 1024]


def test_a_small_split_is_measured_whole_at_once() -> None:
    found = to_precision(regression(1000), top, 0.05)
    assert (found.settings["stages"], found.work, found.error[0]) == ([1000], 1.0, 0)
    few = to_precision(regression(5), top, 0.05)
    assert (few.samples, few.status) == (5, "complete")


@pytest.mark.parametrize("given", ["drop_last", "half"])
def test_a_loader_that_gives_less_than_its_data_set_has_an_end(given: str) -> None:
    """It went on drawing the same samples for ever where the precision wasn't reached."""
    x, y = regression(1000).train
    data = TensorDataset(x, y)
    half = SubsetRandomSampler(range(700), generator=torch.Generator())
    loader = DataLoader(data, 64, drop_last=True) if given == "drop_last" else DataLoader(data, 64, sampler=half)
    found = to_precision(regression().replace(train=loader), top, 1e-4, start=100)
    count = 960 if given == "drop_last" else 700
    assert (found.samples, found.population, found.status, found.error[0]) == (count, count, "complete", 0)
    # The parts of one half are no parts of the other.
    if given == "half":
        assert sampling_error(regression().replace(train=loader, max_samples=100), top, of="data").population == 700


def test_max_samples_is_the_most_that_is_drawn() -> None:
    found = to_precision(regression(50_000, max_samples=600), top, 0.01)
    assert (found.status, found.samples, found.population) == ("partial", 600, 50_000)
    assert found.settings["stages"] == [512, 600]
    assert "on 600 samples, not 0.01: raise max_samples" in found.warnings[-1]
    assert found.error[0] > 0.01


def test_a_source_without_an_end_is_its_own_population() -> None:
    x = torch.randn(700, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    task = regression().replace(train=[(x[i : i + 50], x[i : i + 50, :1]) for i in range(0, 700, 50)])
    endless = task.replace(train=iter(task.train))
    found = to_precision(endless, mean_square, 0.2, start=128)
    assert (found.population, math.isnan(found.work), found.status) == (math.inf, True, "complete")
    assert found.notes == (f"the first {found.samples} train samples that the data gave, in their own order",)
    # Its end, when it comes, is taken for the whole.
    over = to_precision(endless, mean_square, 1e-3, start=128)
    assert (over.samples, over.population) == (700, 700)


def test_whole_batches_are_drawn_whole() -> None:
    columns = regression(20_000, spectrum=[3.0, 1.0])
    x, y = columns.train
    task = columns.replace(train=list(zip(x.split(8), y.split(8), strict=True)), rebatch=False)
    found = to_precision(task, top, 0.2, start=256)
    assert found.settings["units"] == "batches"
    assert found.samples % 8 == 0
    assert found.samples < 20_000
    assert found.interval[0, 0] <= top(task) <= found.interval[0, 1]


def test_an_error_of_its_own_that_is_too_large_stops_the_growth() -> None:
    pairs = Eigenpairs(
        values=np.array([2.0]),
        residuals=np.array([0.5]),
        converged=np.array([True]),
        smallest=np.zeros(0),
        smallest_residuals=np.zeros(0),
        smallest_converged=np.zeros(0, dtype=bool),
    )
    found = to_precision(regression(50_000), lambda task: pairs, 0.1)
    assert (found.status, found.samples) == ("partial", 512)
    assert "the measurement's own error is too large for that" in found.warnings[-1]


# ------------------------------------------------------------------------------------------- measurements and numbers


def small_net(n: int = 160, **settings) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return Task(model, nn.CrossEntropyLoss(), (x, torch.arange(n) % 3), batch_size=64, **settings)


def test_eigenvalues_by_name_are_those_of_the_parts() -> None:
    task = small_net()
    found = sampling_error(task, "eigenvalues", k=2, k_smallest=1, which="both")
    whole = eigenpairs(Hessian(task), 2, "both", k_smallest=1)
    assert found.names == ("lambda_1", "lambda_2", "lambda_n")
    np.testing.assert_allclose(found.values, [*whole.values, *whole.smallest], atol=2e-3 * whole.values[0])
    assert (found.own <= 1e-3 * whole.values[0]).all()
    parts = [eigenpairs(Hessian(part), 1).values[0] for part, _ in Subsamples(task, "train", 0).parts(16)]
    assert found.means[0, 0] == pytest.approx(np.mean(parts), rel=1e-5)
    assert found.spreads[0, 0] == pytest.approx(np.std(parts, ddof=1), rel=1e-3)
    assert found.means[0, 0] > found.means[2, 0]
    assert isinstance(found.measured, Eigenpairs)
    assert found.cost.products > 21
    assert found.parts.tolist() == [16, 4, 1]
    assert found.sizes.tolist() == [10, 40, 160]
    json.dumps(found.attributes())
    json.dumps({k: v for k, v in found.summary().items() if k != "population"})


def test_a_class_weighted_loss_keeps_its_weights() -> None:
    weights = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    task = small_net()
    task = task.replace(loss=nn.CrossEntropyLoss(weight=weights))

    def loss(part: Task) -> float:
        x, y = (torch.cat(c) for c in zip(*part.draw().batches, strict=True))
        return float(F.cross_entropy(part.model(x), y, weight=weights).detach())

    def measured(part: Task) -> float:
        with Objective(part) as objective:
            return objective.evaluate().loss

    a, b = sampling_error(task, loss), sampling_error(task, measured)
    np.testing.assert_allclose(a.means, b.means, rtol=1e-12)
    np.testing.assert_allclose(a.stderr, b.stderr, rtol=1e-9)


def test_loss_and_accuracy_are_followed_with_the_error_of_their_mean() -> None:
    task = small_net(400)
    found = sampling_error(task, "performance")
    assert found.names == ("train_loss", "train_accuracy")
    with Objective(task) as objective:
        there = objective.evaluate(accuracy=True, stderr=True)
    np.testing.assert_allclose(found.values, [there.loss, there.accuracy], rtol=1e-12)
    # The larger of the spreads over 16 and over 4 parts: with 3 degrees the second is up to 2.5 times too large.
    assert 0.5 < found.stderr[0] / there.stderr < 3
    assert (found.own == 0).all()


def test_sharpness_is_followed_by_the_names_of_its_measures() -> None:
    found = sampling_error(small_net(), "sharpness", kind="sam,average", batch=10, steps=2, draws=2)
    assert found.names == ("sam", "average")
    assert (found.own[:1] > 0).all()


def test_a_measurement_with_a_draw_of_its_own_takes_all_of_each_part() -> None:
    # The error bars are those of 1,600 samples: the value must be theirs too, not that of sharpness' own 1,024.
    task = small_net(1600)
    found = sampling_error(task, "sharpness", batch=50, steps=1)
    assert found.measured.settings["samples"] == found.samples == 1600
    assert found.values[0] == pytest.approx(sharpness(task, "sam", samples=1600, batch=50, steps=1).values[0])
    with pytest.raises(
        MeasurementError, match=r"samples=512 of sharpness would leave samples .* give Task\(max_samples"
    ):
        sampling_error(task, "sharpness", samples=512)


@pytest.mark.parametrize("name", ["sharpness", "batch_sharpness"])
def test_batches_that_do_not_fit_into_the_smallest_parts_are_another_measure(name: str) -> None:
    # m-sharpness falls with m: the batches' sizes would be taken for a bias that falls with the samples.
    with pytest.raises(
        MeasurementError, match=r"10 samples on the smallest parts .* give batch=10, or draw 640 samples"
    ):
        sampling_error(small_net(), name, batch=40)


def test_what_the_measurement_itself_warns_of_is_passed_on() -> None:
    found = sampling_error(small_net().replace(dtype=torch.float32), "trace", precision=1e-3, draws=8)
    assert any("raise max_draws" in text for text in found.warnings)
    assert "float64 weights are measured in float32" in found.notes


def test_the_trace_gets_a_share_of_the_precision_for_itself() -> None:
    task = small_net(8000)
    found = to_precision(task, "trace", 0.3)
    assert found.settings["options"] == {"precision": 0.075}
    assert found.measured.stderr <= 0.075 * found.measured.value
    assert found.own[0] == pytest.approx(1.96 * found.measured.stderr, rel=1e-3)
    exact = float((Hessian(task) @ torch.eye(43, dtype=torch.float64)).trace())
    assert found.interval[0, 0] <= exact <= found.interval[0, 1]
    assert found.status == "complete"


@pytest.mark.parametrize(
    ("returned", "names", "values"),
    [
        (2.5, ("value",), [2.5]),
        (torch.tensor(2.5, requires_grad=True), ("value",), [2.5]),
        (np.array([1.0, 2.0]), ("value_1", "value_2"), [1, 2]),
        ({"a": 1, "b": torch.tensor(2.0)}, ("a", "b"), [1, 2]),
        (trace(torch.eye(4), draws=2), ("trace",), [4]),
    ],
)
def test_numbers_come_in_every_form(returned, names: tuple, values: list) -> None:
    numbers = numbers_of(returned)
    assert numbers.names == names
    assert numbers.values.tolist() == values


def test_the_tasks_model_is_left_alone() -> None:
    task = small_net()
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    rng = torch.get_rng_state()
    sampling_error(task, "trace", draws=2)
    assert all(torch.equal(v, before[k]) for k, v in task.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in task.model.parameters())


def test_the_same_seed_gives_the_same_numbers() -> None:
    task = regression(300)
    a, b, c = (sampling_error(task, top, seed=s) for s in (1, 1, 2))
    assert a.interval.tolist() == b.interval.tolist()
    assert a.interval.tolist() != c.interval.tolist()
    assert a.values.tolist() == c.values.tolist()


def test_progress_goes_to_stderr_only(capsys: pytest.CaptureFixture[str]) -> None:
    to_precision(regression(9000), top, 0.3, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sampling" in captured.err
    sampling_error(regression(100), top)
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: sampling_error(t, "magic"), MeasurementError, "measurement 'magic' is unknown; there is"),
        (lambda t: sampling_error(t, 3.0), TypeError, "must be a name or a function of a task, got float"),
        (lambda t: sampling_error(t, top, k=3), MeasurementError, "the option 'k' is for measurements by name"),
        (lambda t: sampling_error(t, "trace", depth=3), MeasurementError, "'trace' has no option 'depth'"),
        (lambda t: sampling_error(t, top, of="world"), MeasurementError, "of='world' is neither 'data'"),
        (lambda t: sampling_error(t, lambda _: "many"), MeasurementError, "returned a str; expected a Result"),
        (lambda t: sampling_error(t, lambda _: math.nan), MeasurementError, "value is not finite on a part"),
        (lambda t: sampling_error(t, "line", grid=3), MeasurementError, "Line has neither value nor values"),
        (lambda t: to_precision(t, top, 0.0), MeasurementError, r"precision=0\.0 must be a positive share"),
        (lambda t: to_precision(t, top, math.inf), MeasurementError, "precision=inf must be"),
        (lambda t: to_precision(t, top, start=4), MeasurementError, "start=4 is too few samples"),
    ],
)
def test_bad_input_is_one_clear_line(call, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call(regression(100))


def test_numbers_that_come_and_go_are_refused() -> None:
    with pytest.raises(MeasurementError, match="returned 2 numbers on one part and 1 on another"):
        sampling_error(regression(100), lambda t: [1.0] * (1 if t.draw().samples < 7 else 2))


# ------------------------------------------------------------------------------------------- registered measurements


def test_eigenvalues_to_a_precision_are_those_of_the_draw_that_gives_it() -> None:
    task = small_net(8000)
    found = measure_eigenvalues(task, k=2, which="largest", precision=0.3)
    check = found.checks[-1]
    assert (check.name, check.level) == ("sampling", "pass")
    assert check.value <= check.limit == 0.3
    drawn = to_precision(task, "eigenvalues", 0.3)
    assert found.settings["stages"] == drawn.settings["stages"]
    assert found.settings["samples"] == drawn.samples < 8000
    assert found.values[0] == pytest.approx(drawn.values[0], rel=1e-6)
    assert found.cost.products > drawn.cost.products
    assert "on all 8,000 train samples lies in [" in check.message
    capped = measure_eigenvalues(small_net(8000, max_samples=600), k=1, which="largest", precision=1e-3)
    assert capped.checks[-1].level == "warn"
    assert any("raise max_samples" in w for w in capped.warnings)


@pytest.mark.parametrize("name", ["density", "frobenius", "diagonal", "sampling"])
def test_estimates_are_registered_and_asked_for(name: str) -> None:
    known = measurements()[name]
    assert not known.default
    settings = known.settings("quick") | {"draws": 4, "steps": 5}
    found = known.run(small_net(), seed=0, progress=False, **{k: v for k, v in settings.items() if k in known.options})
    assert found.status == "complete"
    assert found.split == "train"
    assert known.estimate is not None
    assert known.estimate(**known.settings("thorough")) >= known.estimate(**known.settings("quick")) > 0


def test_sampling_by_name_follows_the_largest_eigenvalue() -> None:
    found = measurements()["sampling"].run(small_net(), seed=0, progress=False)
    assert found.names == ("lambda_1",)
    more = measurements()["sampling"].run(small_net(8000), seed=0, progress=False, measurement="trace", precision=0.5)
    assert (more.names, more.status) == (("trace",), "complete")
