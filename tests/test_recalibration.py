"""Recalibration: each map against another way to it, fits that have not seen what they are judged on, and its use."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from torch import nn

import landscape
from landscape.calibration.checked import read_predictions
from landscape.calibration.maps import METHODS
from landscape.calibration.one_vs_rest import fit_histogram, fit_isotonic
from landscape.calibration.recalibration import recalibrate
from landscape.calibration.scores import calibration_error
from landscape.calibration.temperature import fit_temperature
from landscape.calibration.vector import PRIOR, fit_vector
from landscape.errors import CheckpointError, MeasurementError


def sampled(seed: int = 0, n: int = 3000, classes: int = 4, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are `scale` times too large, and labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * 2
    return z * scale, drawn(softmax(z), rng)


def drawn(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.minimum((p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1), p.shape[1] - 1)


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def binary(seed: int = 0, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n) * 2
    return 2 * z + 0.7, (rng.random(n) < 1 / (1 + np.exp(-z))).astype(int)


def read(values: np.ndarray, labels: np.ndarray, kind: str = "logits"):
    given = {"logits": None, "probabilities": None, kind: values}
    return read_predictions(**given, labels=labels, ignore_index=None, class_dim=1)


# ------------------------------------------------------------------------------------------------ vector scaling


def test_vector_scaling_is_the_minimum_of_what_it_says() -> None:
    z, y = sampled(n=400, classes=3)
    z = z + np.array([0.5, 0, -1]) + z * np.array([0.3, 0, 0])
    t = fit_temperature(z, y).value

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:  # by autograd, from the docstring alone
        w, b = torch.tensor(x[:3], requires_grad=True), torch.tensor(x[3:], requires_grad=True)
        nll = nn.functional.cross_entropy(torch.tensor(z) * w + b, torch.tensor(y))
        value = nll + PRIOR / (2 * len(y)) * (((w * t - 1) ** 2).sum() + (b**2).sum())
        return value.item(), np.concatenate([g.numpy() for g in torch.autograd.grad(value, (w, b))])

    best = minimize(objective, np.concatenate([np.full(3, 0.1), np.zeros(3)]), jac=True, method="BFGS")
    found = fit_vector(read(z, y))
    assert found.check.level == "pass"
    assert objective(np.concatenate([found.weights, found.biases]))[0] <= best.fun + 1e-10
    np.testing.assert_allclose(found.weights, best.x[:3], atol=1e-4)  # a minimum is flat: half the digits
    np.testing.assert_allclose(found.biases, best.x[3:], atol=1e-4)


@pytest.mark.parametrize("factor", [1e-2, 30.0])
def test_vector_scaling_does_not_depend_on_the_scale_of_the_logits(factor: float) -> None:
    z, y = sampled(n=500)
    one, other = fit_vector(read(z, y)), fit_vector(read(z * factor, y))
    np.testing.assert_allclose(other.weights * factor, one.weights, rtol=1e-3)
    np.testing.assert_allclose(other.biases, one.biases, atol=1e-3)


def test_vector_scaling_finds_the_factors_and_shifts_behind_the_labels() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60_000, 3))
    w, b = np.array([0.5, 1.0, 2.0]), np.array([1.0, -1.0, 0.0])
    y = drawn(softmax(z * w + b), rng)
    found = fit_vector(read(z, y))
    np.testing.assert_allclose(found.weights, w, atol=0.06)  # standard errors are about 0.012
    np.testing.assert_allclose(found.biases, b, atol=0.06)


def test_vector_scaling_stays_finite_where_classes_are_told_apart() -> None:
    y = np.arange(60) % 3
    found = fit_vector(read(np.eye(3)[y] * 4.0, y))
    assert found.check.level == "pass"
    assert np.isfinite([*found.weights, *found.biases]).all()
    assert (found.weights > 1).all()


def test_vector_scaling_never_turns_a_logit_over() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2000, 3))
    y = drawn(softmax(z * np.array([-2.0, 1.0, 1.0])), rng)
    assert fit_vector(read(z, y)).weights[0] == 0.0


def test_vector_scaling_of_a_binary_task_is_platt_scaling() -> None:
    z, y = binary(n=20_000)
    found = fit_vector(read(z, y))
    oracle = LogisticRegression(C=1e9, tol=1e-10, max_iter=1000).fit(z[:, None], y)
    assert found.weights == pytest.approx(oracle.coef_[0], rel=1e-3)  # the prior weighs as one of 20,000 samples
    assert found.biases == pytest.approx(oracle.intercept_, rel=2e-3)


# ------------------------------------------------------------------------------------------------ one against the rest


def test_an_isotonic_map_is_scikit_learns_within_its_floor() -> None:
    z, y = binary()
    p = 1 / (1 + np.exp(-z))
    found = recalibrate("isotonic", probabilities=p, labels=y, held_out=(p[:100], y[:100]))
    oracle = IsotonicRegression(out_of_bounds="clip").fit(p, y)
    grid = np.linspace(0, 1, 5001)
    floor = 1 / (len(y) + 2)
    np.testing.assert_allclose(found.apply(grid), np.clip(oracle.predict(grid), floor, 1 - floor), atol=2 * floor)
    assert (np.diff(found.apply(grid)) >= -1e-15).all()
    assert found.apply(np.array([0.0, 1.0])) == pytest.approx([floor, 1 - floor])


def test_several_classes_are_mapped_one_by_one_and_normalized() -> None:
    z, y = sampled()
    p = softmax(z)
    found = recalibrate("isotonic", probabilities=p, labels=y, held_out=(p, y))
    floor = 1 / (len(y) + 2)
    raw = np.stack(
        [
            IsotonicRegression(y_min=floor, y_max=1 - floor, out_of_bounds="clip").fit(p[:, k], y == k).predict(p[:, k])
            for k in range(4)
        ],
        axis=1,
    )
    np.testing.assert_allclose(found.apply(p), raw / raw.sum(axis=1, keepdims=True), atol=1e-12)


def test_a_histogram_gives_each_bin_its_share() -> None:
    z, y = binary(n=1000)
    found = fit_histogram(read(z, y), bins=8)
    p = 1 / (1 + np.exp(-z))
    order = np.argsort(p)
    naive = [y[part].mean() for part in np.array_split(order, 8)]  # no ties in these
    np.testing.assert_allclose(found.levels, naive, atol=1e-12)
    assert found.knots[-1] == 1.0
    mapped = recalibrate("histogram", logits=z, labels=y, held_out=(z, y), histogram_bins=8)
    np.testing.assert_array_equal(mapped.probabilities(np.array([-1e3, 1e3])), found.levels[[0, 7]])
    ends = replace(mapped, input="probabilities").apply(found.knots)
    np.testing.assert_array_equal(ends, found.levels)  # a bin holds its upper end
    assert ((p[order][np.array([124, 999])] <= found.knots[[0, 7]]) & (p[order][125] > found.knots[0])).all()


def test_ties_stay_in_one_bin_and_empty_classes_have_a_level() -> None:
    p = np.array([[0.5, 0.5, 0.0]] * 30 + [[0.9, 0.1, 0.0]] * 30)
    y = np.array([0, 1] * 15 + [0] * 27 + [1] * 3)
    for fit in (fit_isotonic, fit_histogram):
        found = fit(read(p, y, "probabilities"))
        own = found.owners == 0
        assert found.knots[own].size <= 2
        np.testing.assert_allclose(np.unique(found.levels[own]), [0.5, 0.9])
        np.testing.assert_allclose(found.levels[found.owners == 2], 1 / 62)  # Laplace: never seen in 60


# ------------------------------------------------------------------------------------------------ fit and judge


def test_a_temperature_is_fitted_on_one_half_and_judged_on_the_other() -> None:
    z, y = sampled()
    found = recalibrate("temperature", logits=z, labels=y, seed=5, folds=0)
    order = np.random.default_rng(5).permutation(len(y))
    fit, judge = order[:1500], order[1500:]
    alone = fit_temperature(z[fit], y[fit])
    assert (found.temperature, found.temperature_stderr) == (alone.value, alone.stderr)
    assert (found.fitted, found.judged, found.folds) == (1500, 1500, 0)
    for i, scale in enumerate((1.0, found.temperature)):
        direct = calibration_error(logits=z[judge] / scale, labels=y[judge])
        assert found.ece[i] == pytest.approx(direct.ece, rel=1e-12)
        assert found.nll[i] == pytest.approx(direct.nll, rel=1e-12)
        np.testing.assert_array_equal(found.counts[i], direct.counts)
    assert found.ece_change == pytest.approx(found.ece[1] - found.ece[0], rel=1e-12)
    assert found.nll_change == pytest.approx(found.nll[1] - found.nll[0], rel=1e-9)
    assert found.ece_change_interval[1] < 0
    assert found.before is not None
    assert found.before.ece == found.ece[0]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_judged_has_no_part_in_the_fit(method) -> None:
    z, y = sampled(n=2000)
    found = recalibrate(method, logits=z, labels=y)
    order = np.random.default_rng(0).permutation(2000)
    wrong = y.copy()
    wrong[order[1000:]] = (y[order[1000:]] + 1) % 4
    other = recalibrate(method, logits=z, labels=wrong)
    for name, value in found.parameters.items():
        np.testing.assert_array_equal(value, other.parameters[name])
    assert other.accuracy[0] < found.accuracy[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_mends_an_overconfident_model(method) -> None:
    z, y = sampled(n=6000)
    found = recalibrate(method, logits=z, labels=y)
    assert found.ece[1] < 0.4 * found.ece[0]
    assert found.ece_change_interval[1] < 0
    assert found.nll_change_interval[1] < 0
    assert np.isfinite(found.nll).all()
    if method == "temperature":
        assert found.keeps_accuracy
        assert found.changed == found.accuracy_change == 0.0
    else:
        assert not found.keeps_accuracy
        assert found.changed > 0
        assert math.isnan(found.temperature)


def test_few_predictions_are_cross_fitted() -> None:
    z, y = sampled(n=300)
    found = recalibrate(logits=z, labels=y, seed=3)
    assert (found.folds, found.judged, found.fitted) == (5, 300, 300)
    assert found.temperature == fit_temperature(z, y).value
    fold = np.empty(300, dtype=int)
    fold[np.random.default_rng(3).permutation(300)] = np.arange(300) % 5
    after = np.empty_like(z)
    for k in range(5):
        after[fold == k] = z[fold == k] / fit_temperature(z[fold != k], y[fold != k]).value
    assert found.nll[1] == pytest.approx(calibration_error(logits=after, labels=y).nll, rel=1e-9)
    assert recalibrate(logits=z, labels=y, folds=0).judged == 150
    assert recalibrate(logits=z, labels=y, folds=10).folds == 10


def test_a_set_of_its_own_to_judge_on() -> None:
    z, y = sampled()
    found = recalibrate(logits=z[:2000], labels=y[:2000], held_out=(z[2000:], y[2000:]))
    assert (found.fitted, found.judged, found.folds) == (2000, 1000, 0)
    assert found.temperature == fit_temperature(z[:2000], y[:2000]).value
    with pytest.raises(MeasurementError, match="held_out has 3 classes, the logits of the fit have 4"):
        recalibrate(logits=z, labels=y, held_out=(z[:, :3], np.minimum(y, 2)))


def test_probabilities_are_scaled_by_their_logarithms() -> None:
    z, y = sampled(n=2000)
    one, other = recalibrate(logits=z, labels=y), recalibrate(probabilities=softmax(z), labels=y)
    assert other.temperature == pytest.approx(one.temperature, rel=1e-9)
    np.testing.assert_allclose(other.apply(softmax(z)), one.probabilities(z), atol=1e-12)
    assert other.input == "probabilities"
    np.testing.assert_allclose(softmax(one.apply(z)), one.probabilities(z), atol=1e-12)


def test_a_binary_task_and_its_two_columns_are_one() -> None:
    z, y = binary()
    one = recalibrate(logits=z, labels=y)
    two = recalibrate(logits=np.stack([np.zeros_like(z), z], axis=1), labels=y)
    assert one.binary
    assert one.temperature == pytest.approx(two.temperature, rel=1e-9)
    assert one.ece == pytest.approx(two.ece, rel=1e-9)
    np.testing.assert_allclose(one.probabilities(z), two.probabilities(np.stack([z * 0, z], axis=1))[:, 1], atol=1e-12)


def test_tokens_of_one_sample_stay_together() -> None:
    z, y = sampled(n=3000)
    copies = 6
    z3, y3 = np.repeat(z[:500, None], copies, axis=1), np.repeat(y[:500, None], copies, axis=1)
    found = recalibrate(logits=z3, labels=y3, class_dim=-1, folds=0)
    alone = recalibrate(logits=z[:500], labels=y[:500], folds=0)
    chosen = np.sort(np.random.default_rng(0).permutation(500)[:250])
    assert found.temperature == fit_temperature(z3[chosen], y3[chosen], class_dim=-1).value
    assert found.fitted == 250 * copies
    # Copies add nothing: a split by rows would put each sample on both sides, and shrink every error by sqrt(6).
    width = np.diff(found.nll_change_interval)[0]
    assert width == pytest.approx(np.diff(alone.nll_change_interval)[0], rel=0.35)  # other halves of the samples
    assert any("depend on each other" in w for w in found.warnings)


def test_the_standard_error_of_a_temperature_takes_groups_together() -> None:
    z, y = sampled(n=400)
    alone = fit_temperature(z, y)
    copied = fit_temperature(np.repeat(z[:, None], 5, axis=1), np.repeat(y[:, None], 5, axis=1), class_dim=-1)
    assert copied.value == pytest.approx(alone.value, rel=1e-10)
    assert copied.stderr == pytest.approx(alone.stderr, rel=1e-9)


def test_every_interval_of_a_change_covers_nothing_where_nothing_changes() -> None:
    z, y = sampled(n=4000, scale=1.0)
    hits = 0
    for seed in range(20):
        found = recalibrate(logits=z, labels=y, seed=seed)
        hits += found.ece_change_interval[0] <= 0 <= found.ece_change_interval[1]
    assert hits >= 17


# ------------------------------------------------------------------------------------------------ bad input

SEPARABLE = np.eye(4)[np.arange(80) % 4] * 3.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "platt"}, "'platt' is not one of 'temperature', 'vector', 'isotonic', 'histogram'"),
        ({"logits": SEPARABLE, "labels": np.arange(80) % 4}, r"no minimum above T=0\.001: .* apart perfectly"),
        (
            {"logits": SEPARABLE * 1e-8, "labels": np.where(np.arange(80) < 8, 0, np.arange(80) % 4)},
            r"no minimum above T=0\.001: the logits are more than 1,000 times too small",
        ),
        ({"logits": SEPARABLE, "labels": (np.arange(80) + 1) % 4}, r"no minimum below T=1000"),
        ({"logits": np.ones((80, 4)), "labels": np.arange(80) % 4}, "every temperature fits alike"),
        ({"logits": None, "probabilities": np.eye(4)[np.arange(80) % 4]}, r"row 0 has a probability of exactly 0 \(80"),
        ({"logits": SEPARABLE[:20], "labels": np.arange(20) % 4}, "20 samples are too few.*at least 30"),
        ({"share": 1.0}, "share=1.0 must lie between 0 and 1"),
        ({"folds": 1}, r"folds=1 must be 0 \(one split\) or at least 2"),
        ({"folds": 1000}, "folds=1000 exceeds the 80 samples"),
        ({"logits": np.full((80, 4), np.nan)}, "must be finite, got nan in row 0"),
    ],
)
def test_bad_input_is_one_clear_line(arguments, said) -> None:
    given = {"logits": SEPARABLE, "labels": np.arange(80) % 4, "method": "temperature", **arguments}
    with pytest.raises(MeasurementError, match=said) as caught:
        recalibrate(**given)
    assert "\n" not in str(caught.value)


def test_a_probability_of_zero_has_a_binary_and_an_isotonic_answer() -> None:
    rng = np.random.default_rng(0)
    p = np.round(rng.beta(0.5, 0.5, size=2000), 2)  # many exact 0 and 1
    y = (rng.random(2000) < 0.1 + 0.8 * p).astype(int)
    with pytest.raises(MeasurementError, match=r"a probability of exactly 0 or 1 .*method=\"isotonic\""):
        recalibrate("temperature", probabilities=p, labels=y)
    found = recalibrate("isotonic", probabilities=p, labels=y)
    assert math.isinf(found.nll[0])
    assert math.isfinite(found.nll[1])
    assert math.isnan(found.nll_change_interval[0])  # no interval of a change from inf
    assert found.ece_change_interval[1] < 0


# ------------------------------------------------------------------------------------------------ using the map


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_arrays_and_tensors_of_every_layout_give_the_same(method, kind) -> None:
    z, y = sampled(n=1200, classes=3)
    values = z if kind == "logits" else softmax(z)
    found = recalibrate(method, labels=y, **{kind: values})
    flat = found.apply(values[:24])
    assert isinstance(flat, np.ndarray)
    shaped = values[:24].reshape(2, 3, 4, 3)
    np.testing.assert_array_equal(found.apply(shaped, class_dim=-1).reshape(24, 3), flat)
    moved = found.apply(np.moveaxis(shaped, -1, 1))
    np.testing.assert_array_equal(np.moveaxis(moved, 1, -1).reshape(24, 3), flat)
    tensor = found.apply(torch.from_numpy(values[:24]))
    np.testing.assert_allclose(tensor.numpy(), flat, atol=1e-12)
    single = found.probabilities(torch.from_numpy(values[:24]).float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), found.probabilities(values[:24]), atol=2e-5)
    with pytest.raises(MeasurementError, match="have 4 classes along dim 1, the recalibration was fitted on 3"):
        found.apply(np.zeros((5, 4)))


def test_gradients_flow_through_a_calibrated_model() -> None:
    z, y = sampled(n=1200, classes=3)
    for method in ("temperature", "vector"):
        found = recalibrate(method, logits=z, labels=y)
        assert torch.autograd.gradcheck(found.apply, torch.tensor(z[:3], requires_grad=True))


class Wrapped(nn.Module):
    """Returns its logits inside a dict or an object, as other libraries' models do."""

    def __init__(self, net: nn.Module, form: str) -> None:
        super().__init__()
        self.net = net
        self.form = form

    def forward(self, x: torch.Tensor):
        logits = self.net(x)
        if self.form == "dict":
            return {"logits": logits, "hidden": x}
        return type("Output", (), {})() if self.form == "none" else _Output(logits)


class _Output:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 3)


def test_a_calibrated_model_is_three_lines_from_its_file(tmp_path) -> None:
    z, y = sampled(n=1500, classes=3)
    found = recalibrate("vector", logits=z, labels=y)
    path = tmp_path / "calibrated.pt"
    landscape.save_checkpoint(path, net(), recalibration=found, step=7)
    torch.load(path, weights_only=True)

    model = nn.Linear(3, 3)
    landscape.load_checkpoint(path, model)
    model = landscape.Calibrated(model, landscape.load_recalibration(path))
    x = torch.randn(5, 3)
    np.testing.assert_allclose(model(x).detach().numpy(), found.apply(net()(x)).detach().numpy(), rtol=1e-6)
    assert model(x).dtype == torch.float32
    assert "method='vector'" in repr(model)
    assert set(model.state_dict()) == {"model.weight", "model.bias", "weights", "biases"}


@pytest.mark.parametrize("method", METHODS)
def test_a_recalibration_comes_back_from_its_file_as_it_was(tmp_path, method) -> None:
    z, y = sampled(n=1500, classes=3)
    found = recalibrate(method, logits=z, labels=y)
    landscape.save_recalibration(tmp_path / "map.pt", found)
    again = landscape.load_recalibration(tmp_path / "map.pt")
    assert again.summary() == found.summary()
    np.testing.assert_array_equal(again.apply(z), found.apply(z))
    assert [c.message for c in again.checks] == [c.message for c in found.checks]
    assert again.settings == found.settings


def test_outputs_that_hold_logits_are_copied_with_calibrated_ones() -> None:
    z, y = sampled(n=1500, classes=3)
    found = recalibrate(logits=z, labels=y)
    x = torch.randn(5, 3)
    expected = net()(x) / found.temperature
    out = landscape.Calibrated(Wrapped(net(), "dict"), found)(x)
    torch.testing.assert_close(out["logits"], expected)
    assert out["hidden"] is x
    torch.testing.assert_close(landscape.Calibrated(Wrapped(net(), "object"), found)(x).logits, expected)
    with pytest.raises(landscape.LandscapeError, match="returned a Output, expected a tensor"):
        landscape.Calibrated(Wrapped(net(), "none"), found)(x)


def test_a_recalibration_survives_the_archive(tmp_path) -> None:
    z, y = sampled(n=1500, classes=3)
    for method in METHODS:
        found = recalibrate(method, logits=z, labels=y)
        landscape.save_archive(tmp_path / "run.h5", found, force=True)
        again = landscape.open_archive(tmp_path / "run.h5").entries[0].result
        assert again.summary() == found.summary()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(again.apply(z), found.apply(z))  # type: ignore[attr-defined]
        np.testing.assert_array_equal(again.diagram("after").counts, found.after.counts)  # type: ignore[attr-defined, union-attr]


def test_files_without_a_recalibration_are_refused(tmp_path) -> None:
    torch.save(net().state_dict(), tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match=r"plain\.pt holds no recalibration; write one with landscape calibrate"):
        landscape.load_recalibration(tmp_path / "plain.pt")
    z, y = sampled(n=1500, classes=3)
    landscape.save_recalibration(tmp_path / "map.pt", recalibrate(logits=z, labels=y))
    held = torch.load(tmp_path / "map.pt", weights_only=True)
    held["landscape"]["recalibration"]["variables"]["temperature"] = torch.tensor(math.nan)
    torch.save(held, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"bad\.pt is damaged or unknown: its temperature are not finite"):
        landscape.load_recalibration(tmp_path / "bad.pt")
    held["landscape"]["recalibration"]["attributes"]["method"] = "beta"
    torch.save(held, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="method 'beta' is not one of"):
        landscape.load_recalibration(tmp_path / "bad.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("n", "scale"), [(1200, 1.5), (600, 1.5), (600, 1.0)])
def test_the_intervals_of_a_change_cover_the_populations(n: int, scale: float) -> None:
    # n = 1,200: one split; 600: cross-fitted, where the truth is taken of the map that is kept.
    z, y = sampled(9, 50_000, scale=scale)
    before = calibration_error(logits=z, labels=y, classwise=False)
    hits = dict.fromkeys(("ece", "nll", "brier"), 0)
    for seed in range(100):
        found = recalibrate(logits=(few := sampled(1000 + seed, n, scale=scale))[0], labels=few[1], seed=seed)
        after = calibration_error(logits=z / found.temperature, labels=y, classwise=False)
        for name in hits:
            truth = getattr(after, name) - getattr(before, name)
            low, high = getattr(found, f"{name}_change_interval")
            slack = 3e-3 if name == "ece" else 1e-3  # the error of 50,000 samples
            hits[name] += low - slack <= truth <= high + slack
    assert min(hits.values()) >= 88, hits  # binomial(100, 0.95) is below with 0.3%
