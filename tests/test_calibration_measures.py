"""Measures beyond the bins, against slow naive versions of their definitions, closed forms and other packages."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy.integrate import trapezoid
from scipy.stats import norm

from landscape.calibration.accumulator import CalibrationAccumulator
from landscape.calibration.bins import Bins, equal_width_edges
from landscape.calibration.scores import calibration_error
from landscape.calibration.selective import risk_coverage
from landscape.calibration.smooth import ks_error, smooth_ece
from landscape.calibration.table import Calibration
from landscape.calibration.totals import Atoms


def atoms(confidence: np.ndarray, correct: np.ndarray) -> Atoms:
    """Return atoms of pairs, ties joined."""
    value, at = np.unique(confidence, return_inverse=True)
    counts, right = np.bincount(at), np.bincount(at, correct).astype(np.int64)
    return Atoms(value, counts, right, value * (counts - right), exact=True)


def deterministic(n: int, fault: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs that need no generator, so that other packages' numbers can be kept here."""
    i = np.arange(n)
    c = 1 - 0.6 * ((i + 0.5) / n) ** 2.5
    accuracy = {"calibrated": c, "strong": c - 0.1, "temperature": 1 / (1 + np.sqrt((1 - c) / c))}[fault]
    return c, ((i * 7919 % n + 0.5) / n < accuracy).astype(int)


def several(seed: int = 0, n: int = 400, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * 2
    p = np.exp(1.5 * z) / np.exp(1.5 * z).sum(1, keepdims=True)
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return p, (q.cumsum(1) < rng.random((n, 1))).sum(1)


# ------------------------------------------------------------------------------------------------ without bins


def naive_smooth(c: np.ndarray, y: np.ndarray, width: float) -> float:
    """The integral by its definition: images of the kernel at -c and 2 - c, trapezoids on a fine grid."""
    t = np.linspace(0, 1, 4001)[:, None]
    kernel = sum(norm.pdf(t, m + s * c, width) for m in (-2, 0, 2) for s in (-1, 1))
    return float(trapezoid(np.abs((kernel * (y - c)).mean(1)), t[:, 0]))


@pytest.mark.parametrize("fault", ["calibrated", "strong", "temperature"])
def test_the_smooth_ece_is_its_own_bandwidth(fault: str) -> None:
    c, y = deterministic(500, fault)
    found = smooth_ece(atoms(c, y))
    assert found.ece == pytest.approx(found.bandwidth, abs=2e-6)
    assert found.ece == pytest.approx(naive_smooth(c, y, found.bandwidth), rel=1e-3)  # 16,384 points against 4,001


def test_the_smoothed_density_of_mirrored_confidences_is_its_own_mirror() -> None:
    """Half a point of the grid to one side, 3e-5, would show."""
    found = smooth_ece(atoms(np.array([0.13, 0.87] * 50), np.array([1, 0] * 50)))
    assert found.bandwidth > 0.1
    assert found.density == pytest.approx(found.density[::-1], rel=1e-9)


def test_the_smooth_ece_of_a_single_confidence_is_its_gap() -> None:
    found = smooth_ece(atoms(np.full(100, 0.7), np.arange(100) % 2))
    assert found.ece == pytest.approx(0.2, abs=2e-6)


@pytest.mark.parametrize(
    ("n", "fault", "theirs"),
    [
        (500, "calibrated", 0.013549),
        (500, "strong", 0.101480),
        (500, "temperature", 0.088818),
        (5000, "calibrated", 0.005853),
        (5000, "strong", 0.100132),
        (5000, "temperature", 0.091080),
    ],
)
def test_the_smooth_ece_is_near_that_of_its_authors(n: int, fault: str, theirs: float) -> None:
    """relplot 1.0.3 on the same pairs: its coarser grid rounds confidences, up to 2.5% here (see above for ours)."""
    assert smooth_ece(atoms(*deterministic(n, fault))).ece == pytest.approx(theirs, rel=0.03)


def test_the_smoothed_curve_runs_through_the_accuracies() -> None:
    rng = np.random.default_rng(0)
    c = rng.uniform(0.3, 0.9, size=200_000)
    y = (rng.random(200_000) < c - 0.1).astype(int)
    found = calibration_error(probabilities=c, labels=y, kind="top-label")
    assert found.smooth_confidence is not None
    assert found.smooth_accuracy is not None
    assert found.smooth_density is not None
    shown = np.isfinite(found.smooth_accuracy)
    inside = (found.smooth_confidence > 0.3) & (found.smooth_confidence < 0.9)
    assert shown[inside].all()
    # 5 standard errors of the samples within two bandwidths of 0.1: 0.5 / sqrt(60,000).
    assert found.smooth_accuracy[inside] == pytest.approx(found.smooth_confidence[inside] - 0.1, abs=0.01)
    assert trapezoid(found.smooth_density, found.smooth_confidence) == pytest.approx(1, abs=1e-3)
    assert not shown[found.smooth_confidence > 0.99].any() or found.smooth_ece_bandwidth > 0.03


def test_the_ks_error_is_the_largest_gap_of_the_sums() -> None:
    rng = np.random.default_rng(1)
    c = np.round(rng.random(300), 2)  # ties
    y = (rng.random(300) < c**2).astype(int)
    naive = max(abs((c[c <= t] - y[c <= t]).sum()) / 300 for t in np.unique(c))
    assert ks_error(atoms(c, y)) == (pytest.approx(naive, rel=1e-12), 0.0)
    # One-sided overconfidence: all gaps add up, and KS is the ECE.
    found = calibration_error(probabilities=c, labels=np.zeros(300, int), kind="top-label")
    assert found.ks == pytest.approx(found.ece, rel=1e-12)


# ------------------------------------------------------------------------------------------------ selective


def test_aurc_is_the_mean_risk_over_all_orders_of_ties() -> None:
    c = np.array([0.9, 0.8, 0.8, 0.8, 0.6, 0.6])
    y = np.array([1, 0, 1, 1, 0, 1])
    areas, curves = [], []
    for first in itertools.permutations([1, 2, 3]):
        for last in itertools.permutations([4, 5]):
            wrong = 1 - y[[0, *first, *last]]
            risks = np.cumsum(wrong) / np.arange(1, 7)
            areas.append(risks.mean())
            curves.append(risks)
    found = risk_coverage(atoms(c, y))
    assert found.aurc == pytest.approx(np.mean(areas), rel=1e-12)
    best = np.cumsum([0, 0, 0, 0, 1, 1]) / np.arange(1, 7)
    assert found.excess == pytest.approx(np.mean(areas) - best.mean(), rel=1e-12)
    kept = np.ceil(found.coverage * 6 - 1e-9).astype(int)
    assert found.risk == pytest.approx(np.mean(curves, axis=0)[kept - 1], rel=1e-12)


def test_a_perfect_order_has_no_excess_and_a_useless_one_the_error_rate() -> None:
    y = np.array([1] * 80 + [0] * 20)
    assert risk_coverage(atoms(np.linspace(1, 0.5, 100), y)).excess == pytest.approx(0, abs=1e-12)
    assert risk_coverage(atoms(np.full(100, 0.7), y)).aurc == pytest.approx(0.2, rel=1e-12)
    assert risk_coverage(atoms(np.linspace(1, 0.5, 100), np.ones(100))).aurc == 0.0


def test_the_risk_at_full_coverage_is_the_error_rate() -> None:
    p, y = several()
    found = calibration_error(probabilities=p, labels=y)
    assert found.coverage is not None
    assert found.risk is not None
    assert len(found.coverage) == len(found.risk) == 100
    assert found.risk[-1] == pytest.approx(1 - found.accuracy, rel=1e-12)
    sure, wrong = p.max(1), p.argmax(1) != y
    order = np.argsort(-sure)
    assert found.risk[49] == pytest.approx(wrong[order[:200]].mean(), rel=1e-12)
    assert found.aurc == pytest.approx((np.cumsum(wrong[order]) / np.arange(1, 401)).mean(), rel=1e-12)


# ------------------------------------------------------------------------------------------------ from the bins


def test_over_and_underconfidence_are_the_two_parts_of_the_ece() -> None:
    p, y = several()
    found = calibration_error(probabilities=p, labels=y)
    gap = np.nan_to_num(found.confidences - found.accuracies) * found.counts / 400
    assert found.overconfidence == pytest.approx(gap[gap > 0].sum(), rel=1e-12)
    assert found.underconfidence == pytest.approx(-gap[gap < 0].sum(), rel=1e-12)
    assert found.overconfidence + found.underconfidence == pytest.approx(found.ece, rel=1e-12)
    assert found.ece_l2 == pytest.approx(math.sqrt((gap**2 / np.maximum(found.counts / 400, 1e-9)).sum()), rel=1e-12)
    assert found.mean_confidence == pytest.approx(p.max(1).mean(), rel=1e-12)
    assert found.confidence_std == pytest.approx(p.max(1).std(ddof=1), rel=1e-9)


def test_the_debiased_ece_is_nearer_the_truth_than_the_plain_one() -> None:
    """Mean over 300 data sets; what the docstring says of the bias of each bin, in its standard error."""
    rng = np.random.default_rng(0)
    edges = equal_width_edges(10)
    for shift, worst in ((0.0, 0.25), (0.02, 0.3), (0.1, 0.3)):
        plain, better = [], []
        for _ in range(300):
            c = rng.uniform(0.5, 1.0, size=1000)
            table = Bins(edges).add(c, rng.random(1000) < c - shift)
            plain.append(table.ece)
            better.append(table.ece_debiased)
        errors = 5 * math.sqrt(0.5 * 0.36 / 3 / 200 / 5)  # five bins' standard errors, about 0.0055 each
        assert abs(np.mean(better) - shift) <= worst * errors
        assert abs(np.mean(better) - shift) < abs(np.mean(plain) - shift) or shift == 0.1


@pytest.mark.parametrize("view", ["top", "positive"])
def test_the_brier_score_is_the_sum_of_its_parts(view: str) -> None:
    rng = np.random.default_rng(2)
    p = rng.random(500)
    y = (rng.random(500) < p**1.5).astype(int)
    found = calibration_error(probabilities=p, labels=y, confidence=view, bins=8)  # type: ignore[arg-type]
    c, o = (p, y) if view == "positive" else (np.maximum(p, 1 - p), ((p > 0.5) == y).astype(int))
    assert found.brier == pytest.approx(((c - o) ** 2).mean(), rel=1e-12)
    assert_decomposed(found, c[:, None], o[:, None], 8)


def test_the_brier_score_of_several_classes_is_the_sum_of_its_parts() -> None:
    p, y = several()
    found = calibration_error(probabilities=p, labels=y)
    assert_decomposed(found, p, np.eye(4)[y], 15)


def assert_decomposed(found, p: np.ndarray, o: np.ndarray, bins: int) -> None:
    """Compare with Murphy's three terms, and the variance and covariance within bins (Stephenson et al. 2008)."""
    n = len(p)
    parts = np.zeros(4)
    for k in range(p.shape[1]):
        at = np.maximum(np.ceil(p[:, k] * bins).astype(int) - 1, 0)
        base = o[:, k].mean()
        parts[2] += base * (1 - base)
        for b in np.unique(at):
            f, e = p[at == b, k], o[at == b, k]
            parts[0] += len(f) / n * (f.mean() - e.mean()) ** 2
            parts[1] += len(f) / n * (e.mean() - base) ** 2
            parts[3] += ((f - f.mean()) ** 2 - 2 * (f - f.mean()) * (e - e.mean())).sum() / n
    mine = found.brier_reliability, found.brier_resolution, found.brier_uncertainty, found.brier_within
    assert mine == pytest.approx(parts, rel=1e-10, abs=1e-13)
    assert mine[0] - mine[1] + mine[2] + mine[3] == pytest.approx(found.brier, rel=1e-12)


def test_each_class_has_its_own_table() -> None:
    p, y = several(classes=6)
    p[:30] = [0.5, 0.5, 0, 0, 0, 0]  # exact zeros and ties
    p[30:60] = 1 / 6
    found = calibration_error(probabilities=p, labels=y, bins=7)
    naive = []
    for k in range(6):
        at = np.maximum(np.searchsorted(np.arange(8) / 7, p[:, k]) - 1, 0)
        naive.append(np.abs(np.bincount(at, p[:, k] - (y == k), minlength=7)).sum() / 400)
    assert found.class_ece is not None
    assert found.class_ece == pytest.approx(naive, rel=1e-11, abs=1e-15)
    assert found.classwise_ece == pytest.approx(np.mean(naive), rel=1e-11)
    assert found.class_counts is not None
    assert found.class_counts.tolist() == np.bincount(y, minlength=6).tolist()
    assert found.class_probabilities == pytest.approx(p.mean(0), rel=1e-11)
    top = p.argmax(1)
    assert found.class_predicted is not None
    assert found.class_predicted.tolist() == np.bincount(top, minlength=6).tolist()
    for k in range(6):
        here = top == k
        assert found.class_accuracies is not None
        assert found.class_confidences is not None
        assert found.class_accuracies[k] == pytest.approx((y == k)[here].mean(), rel=1e-12, nan_ok=True)
        assert found.class_confidences[k] == pytest.approx(p.max(1)[here].mean(), rel=1e-12, nan_ok=True)


def test_many_classes_get_their_table_only_when_asked() -> None:
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(60, 1200)) * 4, rng.integers(1200, size=60)
    found = calibration_error(logits=z, labels=y)
    assert found.class_ece is None
    assert math.isnan(found.classwise_ece)
    assert found.class_predicted is not None
    asked = calibration_error(logits=z, labels=y, classwise=True)
    assert asked.class_ece is not None
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    assert asked.class_probabilities == pytest.approx(p.mean(0), rel=1e-10)
    assert calibration_error(logits=z[:, :5], labels=y % 5, classwise=False).class_ece is None


# ------------------------------------------------------------------------------------------------ kinds


def test_several_labels_are_so_many_binary_tasks() -> None:
    rng = np.random.default_rng(3)
    z = rng.normal(size=(300, 4)) * 2
    y = (rng.random((300, 4)) < 1 / (1 + np.exp(-0.7 * z))).astype(int)
    found = calibration_error(logits=z, labels=y, kind="multilabel")
    flat = calibration_error(logits=z.reshape(-1), labels=y.reshape(-1), confidence="positive")
    for name in ("ece", "mce", "brier", "nll", "accuracy", "smooth_ece", "aurc"):
        assert getattr(found, name) == pytest.approx(getattr(flat, name), rel=1e-12)
    each = [calibration_error(logits=z[:, k], labels=y[:, k], confidence="positive") for k in range(4)]
    assert found.class_ece == pytest.approx([e.ece for e in each], rel=1e-11)
    assert found.class_counts is not None
    assert found.class_counts.tolist() == y.sum(0).tolist()
    assert (found.groups, found.samples, found.classes) == (300, 1200, 4)
    y[:, 2] = -1
    left = calibration_error(logits=z, labels=y, kind="multilabel", ignore_index=-1)
    assert left.samples == 900
    assert left.class_ece is not None
    assert left.class_ece[[0, 1, 3]] == pytest.approx(found.class_ece[[0, 1, 3]], rel=1e-11)


def test_a_binary_map_is_its_pixels() -> None:
    rng = np.random.default_rng(4)
    z = rng.normal(size=(20, 6, 7))
    y = (rng.random((20, 6, 7)) < 1 / (1 + np.exp(-z))).astype(int)
    found = calibration_error(logits=z[:, None], labels=y, kind="binary")
    assert found.ece == calibration_error(logits=z.reshape(-1), labels=y.reshape(-1)).ece
    assert found.groups == 20


def test_pairs_of_confidence_and_right_are_counted_as_such() -> None:
    p, y = several()
    pairs = calibration_error(probabilities=p.max(1), labels=(p.argmax(1) == y).astype(int), kind="top-label")
    whole = calibration_error(probabilities=p, labels=y)
    for name in ("ece", "mce", "accuracy", "aurc", "ks", "smooth_ece", "debiased_l2", "calibration_p_value"):
        assert getattr(pairs, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_the_accuracy_is_that_of_the_top_label_in_every_view() -> None:
    rng = np.random.default_rng(5)
    p = rng.random(300)
    y = (rng.random(300) < p).astype(int)
    a, b = (calibration_error(probabilities=p, labels=y, confidence=view) for view in ("top", "positive"))  # type: ignore[arg-type]
    assert a.accuracy == b.accuracy == np.mean((p > 0.5) == y)


@pytest.mark.parametrize("exact", [10_000, 0])
def test_the_risk_is_that_of_the_predicted_label_in_every_view(exact: int) -> None:
    rng = np.random.default_rng(5)
    p = np.round(rng.random((500, 3)), 2)  # ties, and some at a half
    y = (rng.random(p.shape) < p).astype(int)
    several = counted(p, y, kind="multilabel", exact=exact)
    one = counted(p.reshape(-1), y.reshape(-1), kind="binary", confidence="positive", exact=exact)
    top = counted(p.reshape(-1), y.reshape(-1), kind="binary", confidence="top", exact=exact)
    assert top.risk is not None
    for found in (several, one):
        assert found.risk is not None
        assert found.risk[-1] == pytest.approx(1 - found.accuracy, rel=1e-12)
        assert found.aurc == pytest.approx(top.aurc, abs=1e-12 if exact else 1e-3)
        assert found.excess_aurc == pytest.approx(top.excess_aurc, abs=1e-12 if exact else 1e-3)
        np.testing.assert_allclose(found.risk, top.risk, atol=1e-12 if exact else 0.02)


def counted(p: np.ndarray, y: np.ndarray, **settings: Any) -> Calibration:
    accumulator = CalibrationAccumulator(**settings)
    accumulator.update(probabilities=p, labels=y)
    return accumulator.compute()


def test_folded_atoms_keep_what_is_wrong() -> None:
    """Two labels at 0.3, one of them there; two at 0.7, one of them not: four at 0.7, two of them wrong."""
    folded = atoms(np.array([0.3, 0.3, 0.7, 0.7]), np.array([0, 1, 1, 0])).folded()
    assert folded.confidence == pytest.approx([0.7])
    assert (folded.counts.tolist(), folded.correct.tolist()) == ([4], [2])
    assert folded.wrong_sums == pytest.approx([1.4])
