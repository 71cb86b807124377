"""Our own definition of calibration: against exact fractions, naive loops and closed forms, in float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from landscape.calibration.bins import Bins, equal_mass_edges, equal_width_edges
from landscape.calibration.intervals import clopper_pearson, ece_interval, simulate_correct
from landscape.calibration.scores import calibration_error
from landscape.calibration.totals import Atoms
from landscape.results import rebuild

# The worked examples: binary predictions are given as the probability of the true class.
BINARY_TRUE = np.array([0.95, 0.7, 0.9, 0.5, 0.2])
WORKED = np.array([[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.4, 0.4, 0.2], [0.2, 0.5, 0.3]])
WORKED_LABELS = np.array([1, 0, 2, 1, 0])


def example(seed: int = 0, n: int = 600, classes: int = 4, sharpen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return logits whose softmax is true, times `sharpen`, and their labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * 2
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    y = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return z * sharpen, y


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


# ------------------------------------------------------------------------------------------------ definition


@pytest.mark.parametrize("bins", [1, 3, 5, 10, 15, 100])
def test_ece_is_the_exact_rational_number(bins: int) -> None:
    """A naive loop in exact fractions, on confidences that sit on edges, at 1, and in ties."""
    rng = np.random.default_rng(bins)
    p = rng.dirichlet([0.5, 0.5, 0.5], size=300)
    p[:20] = [0.0, 1.0, 0.0]
    p[20:40] = [0.5, 0.5, 0.0]
    p[40:60] = [0.75, 0.25, 0.0]
    y = rng.integers(3, size=300)
    grid = [Fraction(float(i / bins)) for i in range(bins + 1)]
    members: list[list[tuple[Fraction, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(p.tolist(), y.tolist(), strict=True):
        top = max(row)
        at = next(i for i in range(bins) if Fraction(top) <= grid[i + 1])
        members[at].append((Fraction(top), row.index(top) == label))
    gaps = [abs(sum(c for c, _ in m) - sum(r for _, r in m)) for m in members]
    expected = sum(gaps) / 300
    found = calibration_error(probabilities=p, labels=y, bins=bins)
    assert found.counts.tolist() == [len(m) for m in members]
    assert found.counts.dtype == np.int64
    assert found.ece == pytest.approx(float(expected), rel=1e-13)  # float64 sums of 300 numbers
    worst = max(float(g / len(m)) for g, m in zip(gaps, members, strict=True) if m)
    assert found.mce == pytest.approx(worst, rel=1e-13)


@pytest.mark.parametrize(("bins", "ece"), [(5, 0.20), (10, 0.36), (15, 0.36)])
def test_the_worked_predictions(bins: int, ece: float) -> None:
    found = calibration_error(probabilities=WORKED, labels=WORKED_LABELS, bins=bins, strict=False)
    assert found.ece == pytest.approx(ece, rel=1e-14)
    assert found.nll == pytest.approx(0.723275, abs=5e-7)  # printed to six decimals
    assert found.brier == pytest.approx(0.396, rel=1e-14)
    assert found.accuracy == 0.6  # the first class wins the tie of row 3, which is wrong


def test_the_worked_binary_predictions() -> None:
    for y in (np.ones(5, int), np.zeros(5, int), np.array([1, 0, 1, 0, 1])):
        p = np.where(y == 1, BINARY_TRUE, 1 - BINARY_TRUE)
        found = calibration_error(probabilities=p, labels=y, strict=False)
        assert found.nll == pytest.approx(0.563183, abs=5e-7)
        assert found.brier == pytest.approx(0.1985, rel=1e-13)


def test_edges_are_divided_one_by_one() -> None:
    assert equal_width_edges(5)[3] == 0.6
    assert np.linspace(0, 1, 6)[3] != 0.6  # why
    p = np.full((4, 2), [0.6, 0.4])
    found = calibration_error(probabilities=p, labels=np.array([0, 0, 1, 1]), bins=5, strict=False)
    assert found.counts.tolist() == [0, 0, 4, 0, 0]


def test_logits_probabilities_and_tensors_agree() -> None:
    z, y = example(sharpen=1.5)
    a = calibration_error(logits=z, labels=y)
    b = calibration_error(probabilities=softmax(z), labels=y)
    c = calibration_error(logits=torch.tensor(z, requires_grad=True), labels=torch.tensor(y))
    for name in ("ece", "mce", "brier", "nll", "accuracy", "debiased_l2"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-12)
        assert getattr(a, name) == getattr(c, name)


def test_a_binary_task_is_its_two_columns() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=400) * 2
    y = (rng.random(400) < 1 / (1 + np.exp(-1.3 * z))).astype(int)
    one = calibration_error(logits=z, labels=y)
    two = calibration_error(logits=np.stack([np.zeros(400), z], axis=1), labels=y)
    assert one.counts.tolist() == two.counts.tolist()
    assert one.ece == pytest.approx(two.ece, rel=1e-12)
    assert one.nll == pytest.approx(two.nll, rel=1e-12)
    assert one.brier == pytest.approx(two.brier / 2, rel=1e-12)
    assert one.accuracy == two.accuracy == np.mean((z > 0) == (y == 1))


def test_a_binary_tie_is_class_zero() -> None:
    for scores in ({"logits": np.zeros(20)}, {"probabilities": np.full(20, 0.5)}):
        found = calibration_error(**scores, labels=np.arange(20) % 4 // 3)  # every fourth is class 1
        assert found.accuracy == 0.75


def test_the_positive_view_is_the_frequency_of_class_one() -> None:
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.8, 0.8, 0.8, 0.8])
    y = np.array([1, 1, 0, 0, 1, 1, 1, 0])
    found = calibration_error(probabilities=p, labels=y, bins=5, confidence="positive")
    assert found.counts.tolist() == [4, 0, 0, 4, 0]
    assert found.accuracies[[0, 3]].tolist() == [0.5, 0.75]
    assert found.ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.05, rel=1e-14)


def test_pixels_and_tokens_are_rows() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4, 3, 5, 6))
    labels = rng.integers(3, size=(4, 5, 6))
    labels[rng.random(labels.shape) < 0.3] = 255
    rows = np.moveaxis(logits, 1, -1)[labels != 255]
    flat = calibration_error(logits=rows, labels=labels[labels != 255])
    pixels = calibration_error(logits=logits, labels=labels, ignore_index=255)
    tokens = calibration_error(
        logits=np.moveaxis(logits, 1, -1).reshape(4, 30, 3),
        labels=labels.reshape(4, 30),
        ignore_index=255,
        class_dim=-1,
    )
    assert pixels.ece == flat.ece == tokens.ece
    assert pixels.samples == flat.samples == int((labels != 255).sum())
    assert (pixels.groups, tokens.groups, flat.groups) == (4, 4, 0)  # an image, a text: groups by themselves
    assert pixels.brier_stderr != flat.brier_stderr


def test_ignored_rows_may_hold_anything() -> None:
    z, y = example(n=50)
    bad = np.vstack([z, [[np.nan] * 4]])
    found = calibration_error(logits=bad, labels=np.append(y, -100), ignore_index=-100)
    assert found.ece == calibration_error(logits=z, labels=y).ece


def test_float16_counts_do_not_overflow() -> None:
    p = torch.full((70_000,), 0.75, dtype=torch.float16)
    y = torch.arange(70_000) % 2
    found = calibration_error(probabilities=p, labels=y)
    assert found.counts.sum() == 70_000
    assert found.ece == 0.25


# ------------------------------------------------------------------------------------------------ other scores


def test_a_true_label_of_probability_zero_is_an_infinite_nll() -> None:
    p = np.array([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    found = calibration_error(probabilities=p, labels=np.array([0, 0, 1]), strict=False)
    assert found.nll == math.inf
    assert math.isnan(found.nll_stderr)
    assert any("1 of 3 true labels had probability 0" in w for w in found.warnings)
    confident = calibration_error(logits=np.array([2000.0, 1.0, -1.0]), labels=np.array([0, 0, 1]), strict=False)
    assert confident.nll == pytest.approx((2000 + 2 * math.log1p(math.e)) / 3, rel=1e-14)  # finite from logits


def test_debiased_l2_by_hand() -> None:
    # Bin (0.8, 1]: 4 samples at 0.9, 2 right; bin (0.4, 0.6]: 1 sample, which says nothing.
    p = np.array([0.9, 0.9, 0.9, 0.9, 0.55])
    y = np.array([1, 1, 0, 0, 1])
    found = calibration_error(probabilities=p, labels=y, bins=5)
    assert found.debiased_l2 == pytest.approx(4 / 5 * ((0.9 - 0.5) ** 2 - 0.25 / 3), rel=1e-13)


def test_debiased_l2_is_unbiased_for_a_calibrated_model() -> None:
    rng = np.random.default_rng(3)
    values = []
    for _ in range(400):
        c = rng.choice([0.55, 0.75, 0.95], size=300)
        bins = Bins(equal_width_edges(10)).add(c, rng.random(300) < c)
        gap, acc, n = bins.confidences - bins.accuracies, bins.accuracies, bins.counts
        with np.errstate(invalid="ignore"):
            values.append(np.nansum(n / 300 * (gap**2 - acc * (1 - acc) / (n - 1))))
        assert bins.debiased_l2 == pytest.approx(max(0.0, values[-1]), rel=1e-10, abs=1e-16)
    # Without the floor its mean is 0: within 4 standard errors of 400 draws.
    assert abs(np.mean(values)) < 4 * np.std(values) / 20


def test_standard_errors_are_those_of_a_mean() -> None:
    z, y = example(n=300)
    p = softmax(z)
    found = calibration_error(logits=z, labels=y)
    nll = -np.log(p[np.arange(300), y])
    brier = ((p - np.eye(4)[y]) ** 2).sum(axis=1)
    right = (p.argmax(axis=1) == y).astype(float)
    for name, values in (("nll", nll), ("brier", brier), ("accuracy", right)):
        assert getattr(found, name) == pytest.approx(values.mean(), rel=1e-12)
        assert getattr(found, name + "_stderr") == pytest.approx(values.std(ddof=1) / math.sqrt(300), rel=1e-12)


# ------------------------------------------------------------------------------------------------ accumulator


def test_batches_give_the_same_as_all_at_once() -> None:
    rng = np.random.default_rng(0)
    c, y = rng.random(1000), rng.random(1000) < 0.6
    edges = equal_width_edges(15)
    whole = Bins(edges).add(c, y)
    batches = Bins(edges)
    for part in np.array_split(np.arange(1000), 7):
        batches.add(c[part], y[part])
    assert batches.counts.tolist() == whole.counts.tolist()
    assert batches.correct.tolist() == whole.correct.tolist()
    assert batches.ece == pytest.approx(whole.ece, rel=1e-12)
    assert ece_interval(batches) == pytest.approx(ece_interval(whole), rel=1e-9)


# ------------------------------------------------------------------------------------------------ equal mass


def test_equal_mass_bins_hold_equal_counts() -> None:
    z, y = example(n=600)
    found = calibration_error(logits=z, labels=y, bins=15, mass="equal")
    assert found.counts.tolist() == [40] * 15
    assert found.edges[0] == 0.0
    assert found.edges[-1] == 1.0
    # Where they can't be equal, bin b ends with sample ceil(b n / bins).
    assert equal_mass_edges(np.arange(1, 11) / 20, 3).tolist() == [0.0, 4 / 20, 7 / 20, 1.0]


def test_equal_mass_keeps_ties_together() -> None:
    p = np.array([0.55] * 50 + [0.6, 0.7, 0.8, 0.9] + [1.0] * 6)
    found = calibration_error(probabilities=p, labels=np.arange(60) % 2, bins=6, mass="equal")
    assert found.counts.sum() == 60
    for value in np.unique(p):
        assert np.unique(np.searchsorted(found.edges, p[p == value], side="left")).size == 1
    assert found.counts.tolist() == [50, 10]
    assert any("2 equal-mass bins of the 6" in w for w in found.warnings)
    assert equal_mass_edges(np.full(9, 0.3), 3).tolist() == [0.0, 1.0]


# ------------------------------------------------------------------------------------------------ uncertainty


def test_clopper_pearson_in_closed_form() -> None:
    found = clopper_pearson(np.array([0, 10, 5, 0]), np.array([10, 10, 10, 0]))
    edge = 1 - 0.025 ** (1 / 10)  # no success in ten
    assert found[0] == pytest.approx([0.0, edge], abs=1e-12)
    assert found[1] == pytest.approx([1 - edge, 1.0], abs=1e-12)
    assert found[2] == pytest.approx([0.187086, 0.812914], abs=5e-7)  # tabulated
    assert np.isnan(found[3]).all()


def test_simulated_labels_have_the_mean_and_variance_of_the_confidences() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(3000)
    index = (confidence > 0.7).astype(np.int64)
    confidence[:50], index[:50] = 1.0, 2  # a sure bin, a small one, an empty one
    confidence[50:60], index[50:60] = 0.5, 3
    bins = Bins(equal_width_edges(5)).add(confidence, np.zeros(3000, bool), index)
    found = simulate_correct(bins, np.random.default_rng(1), draws=20_000)
    for b in range(5):
        c = confidence[index == b]
        mean, variance = c.sum(), (c * (1 - c)).sum()
        # 5 standard errors of 20,000 draws; rounding the number of trials adds less than 1e-3 to the variance.
        assert abs(found[:, b].mean() - mean) <= 5 * math.sqrt(variance / 20_000) + 1e-9
        assert found[:, b].var() == pytest.approx(variance, rel=5 * math.sqrt(2 / 20_000) + 1e-3, abs=1e-9)


def test_simulated_labels_of_a_small_bin_are_drawn_one_by_one() -> None:
    confidence = np.array([0.02, 0.5, 0.98])
    bins = Bins(equal_width_edges(1)).add(confidence, np.ones(3, bool))
    one = np.ones(3, np.int64)
    atoms = Atoms(confidence, one, one, 0 * confidence, exact=True)
    found = np.bincount(simulate_correct(bins, np.random.default_rng(0), atoms, draws=40_000)[:, 0], minlength=4)
    p, q = confidence, 1 - confidence
    one_right = p[0] * q[1] * q[2] + q[0] * p[1] * q[2] + q[0] * q[1] * p[2]
    two_right = q[0] * p[1] * p[2] + p[0] * q[1] * p[2] + p[0] * p[1] * q[2]
    exact = [q.prod(), one_right, two_right, p.prod()]
    assert found / 40_000 == pytest.approx(exact, abs=4 * math.sqrt(0.25 / 40_000))  # 4 standard errors


def test_the_consistency_band_of_one_confidence_is_binomial() -> None:
    from scipy.stats import binom

    p = np.full(200, 0.9)
    found = calibration_error(probabilities=p, labels=np.arange(200) % 2, bins=10)
    filled = found.consistency_band[8]
    assert found.counts[8] == 200
    # Quantiles from 1,000 draws: one count (0.005) of slack.
    assert filled == pytest.approx(binom.ppf([0.025, 0.975], 200, 0.9) / 200, abs=0.0051)
    assert np.isnan(found.consistency_band[0]).all()


def test_the_test_of_calibration_has_its_level_and_power() -> None:
    rejected = [calibration_error(logits=z, labels=y).calibration_p_value <= 0.05 for z, y in map(example, range(100))]
    assert 1 <= sum(rejected) <= 12  # 5 expected; a binomial(100, 0.05) lies in here with 99.3%
    z, y = example(n=2000, sharpen=2.0)
    found = calibration_error(logits=z, labels=y)
    assert found.calibration_p_value == 1 / 1001
    assert found.ece_interval[0] > 0.02


def test_the_interval_holds_zero_unless_the_test_rejects() -> None:
    for seed in range(20):
        z, y = example(seed)
        found = calibration_error(logits=z, labels=y)
        if found.calibration_p_value > 0.05:
            assert found.ece_interval[0] == 0.0
        assert found.ece_interval[0] <= found.ece <= found.ece_interval[1] <= 1


def test_the_interval_of_one_wide_bin_is_the_textbook_one() -> None:
    rng = np.random.default_rng(0)
    c = rng.uniform(0.7, 0.9, size=5000)
    y = rng.random(5000) < c - 0.2
    found = ece_interval(Bins(equal_width_edges(1)).add(c, y))
    gap, error = (c - y).mean(), (c - y).std() / math.sqrt(5000)
    assert found == pytest.approx([gap - 1.959964 * error, gap + 1.959964 * error], abs=0.02 * error)  # n = 5000


def test_a_bin_without_a_mistake_does_not_look_certain() -> None:
    # 200 hits of 200 at a confidence of 0.999: the resampled spread is 0, yet an accuracy of 0.985 shows this too.
    found = ece_interval(Bins(equal_width_edges(15)).add(np.full(200, 0.999), np.ones(200, bool)))
    assert found[0] == 0.0
    assert (1 - (found[1] + 0.001)) ** 200 <= 0.055  # the chance of no mistake at the upper end: 5%, as it says


def test_an_interval_shrinks_with_the_samples() -> None:
    widths = []
    for n in (500, 2000, 8000):
        z, y = example(n=n, sharpen=1.5)
        low, high = calibration_error(logits=z, labels=y).ece_interval
        widths.append(high - low)
    assert widths[2] < widths[1] < widths[0]
    assert widths[2] < 0.5 * widths[0]


# ------------------------------------------------------------------------------------------------ the result


def test_the_result_survives_the_archive_and_names_its_settings() -> None:
    z, y = example()
    found = calibration_error(logits=z.astype(np.float32), labels=y, seed=3)
    again = rebuild("calibration", found.variables(), found.attributes())
    assert repr(again.summary()) == repr(found.summary())  # by repr: NaN differs from NaN
    assert again.settings["dtype"] == "float32"
    assert again.settings["seed"] == 3
    assert again.convention == "landscape"
    assert found.variables()["edges"].data.shape == (16,)


def test_the_seed_decides_the_simulation_alone() -> None:
    z, y = example()
    a, b, c = (calibration_error(logits=z, labels=y, seed=s) for s in (0, 0, 1))
    assert np.array_equal(a.consistency_band, b.consistency_band, equal_nan=True)
    assert not np.array_equal(a.consistency_band, c.consistency_band, equal_nan=True)
    assert a.ece == c.ece


def test_the_inputs_are_not_written_to() -> None:
    z, y = example(n=50)
    p = softmax(z)
    kept = p.copy(), y.copy()
    for convention in (None, "torchmetrics", "netcal", "guo"):
        calibration_error(probabilities=p, labels=y, convention=convention)
    assert np.array_equal(p, kept[0])
    assert np.array_equal(y, kept[1])
