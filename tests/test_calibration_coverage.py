"""Do the 95% intervals hold the truth in 95% of the data sets? Also where the truth is (near) zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from landscape.calibration.accumulator import CalibrationAccumulator
from landscape.calibration.bins import Bins, equal_width_edges, right_closed
from landscape.calibration.intervals import debiased_l2_interval, ece_interval, mean_interval
from landscape.calibration.scores import calibration_error

BINS = 15
EDGES = equal_width_edges(BINS)
FINE = (np.arange(400_000) + 0.5) / 400_000
Curve = Callable[[np.ndarray], np.ndarray]


def _odd(c: np.ndarray) -> np.ndarray:
    return np.where(np.floor(c * BINS) % 2 == 0, 1.0, -1.0)


# Quantile functions of the confidences, and the accuracy that each confidence truly has.
CONFIDENCES: dict[str, Curve] = {
    "skewed": lambda u: 1 - 0.7 * u**2.5,
    "uniform": lambda u: 0.1 + 0.899 * u,
    "sure": lambda u: 1 - 1e-6 - 0.6 * u**12,
}
FAULTS: dict[str, Curve] = {
    "calibrated": lambda c: c,
    "slight": lambda c: np.clip(c - 0.02, 0, 1),
    "strong": lambda c: np.clip(c - 0.1, 0, 1),
    "temperature 2": lambda c: 1 / (1 + np.sqrt((1 - c) / np.maximum(c, 1e-12))),
    "under": lambda c: c + 0.3 * (1 - c),
    "local": lambda c: np.where((c > 0.8) & (c < 0.9), c - 0.15, c),
    "oscillating": lambda c: np.clip(c + 0.05 * _odd(c), 0, 1),
    "within bins": lambda c: np.clip(c + 0.1 * np.sin(2 * np.pi * c * BINS), 0, 1),
}


def truth(confidence: Curve, accuracy: Curve) -> tuple[float, float, float, float]:
    """Return the population's ECE and squared L2 error at these bins, Brier score and NLL, by a fine midpoint rule."""
    c = confidence(FINE)
    a = accuracy(c)
    at = right_closed(c, EDGES)
    gaps, share = np.bincount(at, c - a, minlength=BINS) / len(c), np.bincount(at, minlength=BINS) / len(c)
    squared = (gaps[share > 0] ** 2 / share[share > 0]).sum()
    brier = (a * (1 - c) ** 2 + (1 - a) * c**2).mean()
    return (
        float(np.abs(gaps).sum()),
        float(squared),
        float(brier),
        float(-(a * np.log(c) + (1 - a) * np.log1p(-c)).mean()),
    )


def draw(rng: np.random.Generator, n: int, confidence: Curve, accuracy: Curve) -> tuple[np.ndarray, np.ndarray]:
    c = confidence(rng.random(n))
    return c, rng.random(n) < accuracy(c)


def scores_interval(x: np.ndarray) -> np.ndarray:
    return mean_interval(np.array([x.sum(), (x**2).sum(), (x**3).sum()]), len(x))[1]


def held(bounds: np.ndarray, value: float) -> bool:
    return bool(bounds[0] <= value + 1e-12 and value <= bounds[1])


@pytest.mark.slow
@pytest.mark.parametrize("n", [500, 5000])
def test_the_intervals_cover_in_every_regime(n: int) -> None:
    """24 regimes, 500 data sets each for ECE and squared L2, 2,000 for Brier score and NLL; conservative is allowed.

    The Monte-Carlo standard error at 93% is 1.1% of 500 data sets and 0.6% of 2,000. The seeds are fixed, so that the
    shares asked for are held without slack: 92% of the ECE's intervals, 93% of the others.
    """
    rows = []
    for sure, confidence in CONFIDENCES.items():
        for fault, accuracy in FAULTS.items():
            rng = np.random.default_rng([n, len(rows)])
            ece, squared, brier, nll = truth(confidence, accuracy)
            inside, widths = np.zeros(4), []
            for trial in range(2000):
                c, y = draw(rng, n, confidence, accuracy)
                inside[2] += held(scores_interval((c - y) ** 2), brier)
                inside[3] += held(scores_interval(-np.log(np.where(y, c, 1 - c))), nll)
                if trial < 500:
                    table = Bins(EDGES).add(c, y)
                    widths.append(ece_interval(table))
                    inside[0] += held(widths[-1], ece)
                    inside[1] += held(debiased_l2_interval(table), squared)
            rows.append((sure, fault, ece, *(inside / [500, 500, 2000, 2000]), *np.mean(widths, axis=0)))
    print(f"\nn={n:<5} confidence fault           ECE     covered: ECE    L2   Brier   NLL   mean interval of the ECE")
    for row in rows:
        print("{:>17} {:14} {:.4f}          {:.3f} {:.3f} {:.3f} {:.3f}   [{:.4f}, {:.4f}]".format(*row))
    found = np.array([row[3:7] for row in rows])
    assert found[:, 0].min() >= 0.92
    assert found[:, 1].min() >= 0.93
    assert found[:, 2].min() >= 0.93
    assert found[:, 3].min() >= 0.93
    # Not vacuous: strong overconfidence is seen as such, and its interval is no wider than its size.
    strong = [row for row in rows if row[1] == "strong"]
    assert all(row[8] - row[7] < row[2] for row in strong) or n == 500
    assert all(row[7] > 0.2 * row[2] for row in strong)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0.0, 0.03, 0.1])
def test_intervals_of_groups_cover_where_those_of_samples_do_not(offset: float) -> None:
    """60 images of 50 pixels, right or wrong together: 300 data sets, Monte-Carlo standard error 1.6% at 92%."""
    rng = np.random.default_rng(7)
    names = ("ece_interval", "debiased_l2_interval", "brier_interval", "nll_interval")
    inside, alone = np.zeros(4), np.zeros(4)
    accuracy: Curve = lambda c: np.clip(c - offset, 0.01, 0.99)  # noqa: E731
    fine = 0.3 + 0.69 * FINE
    gap = fine - accuracy(fine)
    at = right_closed(fine, EDGES)
    sums, share = np.bincount(at, gap, minlength=BINS) / len(fine), np.bincount(at, minlength=BINS) / len(fine)
    a = accuracy(fine)
    truths = (
        np.abs(sums).sum(),
        (sums[share > 0] ** 2 / share[share > 0]).sum(),
        (a * (1 - fine) ** 2 + (1 - a) * fine**2).mean(),
        -(a * np.log(fine) + (1 - a) * np.log1p(-fine)).mean(),
    )
    groups = np.repeat(np.arange(60), 50)
    for seed in range(300):
        c = 0.3 + 0.69 * rng.random(3000)
        # A copula: pixels of an image share half of what decides whether they are right.
        shared = np.repeat(rng.standard_normal(60), 50)
        level = (shared + rng.standard_normal(3000)) / np.sqrt(2)
        y = (_normal_cdf(level) < accuracy(c)).astype(int)
        for counter, given in ((inside, {"groups": groups}), (alone, {})):
            accumulator = CalibrationAccumulator(kind="top-label")
            found = accumulator.update(probabilities=c, labels=y, **given).compute(seed=seed)
            counter += [held(getattr(found, name), t) for name, t in zip(names, truths, strict=True)]
    print(f"\noffset {offset}: grouped {inside / 300}, taken as independent {alone / 300}")
    assert (inside >= 0.92 * 300).all()
    assert (alone < 0.8 * 300).all()


def _normal_cdf(x: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return ndtr(x)


@pytest.mark.slow
@pytest.mark.parametrize("n", [500, 2000])
@pytest.mark.parametrize("fault", ["calibrated", "slight", "strong"])
def test_the_intervals_that_users_see_cover(fault: str, n: int) -> None:
    """The same through `calibration_error`, from class probabilities: 200 data sets, at least 93%."""
    confidence, accuracy = CONFIDENCES["skewed"], FAULTS[fault]
    rng = np.random.default_rng(n)
    ece, squared, _, _ = truth(confidence, accuracy)
    inside, width = np.zeros(2), 0.0
    for seed in range(200):
        c, y = draw(rng, n, confidence, accuracy)
        found = _through_users_eyes(c, y, seed)
        assert found.debiased_l2_interval is not None
        inside += [held(found.ece_interval, ece), held(found.debiased_l2_interval, squared)]
        width += float(np.diff(found.ece_interval)[0]) / 200
    print(f"n={n} {fault}: covered {inside / 200}, mean width {width:.4f}")
    assert (inside >= 186).all()


def _through_users_eyes(c: np.ndarray, y: np.ndarray, seed: int):
    """Spread what the top class leaves over nine others, so that it stays on top down to a confidence of 0.1."""
    p = np.repeat((1 - c)[:, None] / 9, 10, axis=1)
    p[:, 0] = c
    labels = np.where(y, 0, 1 + np.arange(len(c)) % 9)
    return calibration_error(probabilities=p, labels=labels, seed=seed)


def test_the_intervals_cover_where_a_percentile_bootstrap_does_not() -> None:
    """A calibrated model, n = 1,000: the plug-in's percentile bootstrap lies above 0 always, ours hold it."""
    rng = np.random.default_rng(0)
    ours, theirs = np.zeros(2), 0
    for seed in range(60):
        c, y = draw(rng, 1000, CONFIDENCES["skewed"], FAULTS["calibrated"])
        table = Bins(EDGES).add(c, y)
        ours += [ece_interval(table)[0] <= 0.0, debiased_l2_interval(table)[0] <= 0.0]
        found = calibration_error(
            probabilities=c, labels=y.astype(int), kind="top-label", interval="percentile", seed=seed
        )
        theirs += found.ece_interval[0] <= 0.0
    assert (ours >= 54).all()  # binomial(60, 0.95) is below with 3%; 0.975 is expected
    assert theirs == 0


@pytest.mark.parametrize("size", [1, 2])
def test_few_groups_of_calibrated_predictions_are_seldom_called_uncalibrated(size: int) -> None:
    """5% of 150 data sets, and three times their Monte-Carlo standard error of 1.8%."""
    alarms = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        confidence = 0.5 + 0.5 / (1 + np.exp(-1.5 * rng.standard_normal(40 * size) - 0.5))
        correct = (rng.random(40 * size) < confidence).astype(int)
        groups = np.repeat(np.arange(40), size)
        found = calibration_error(probabilities=confidence, labels=correct, kind="top-label", groups=groups)
        alarms += found.calibration_p_value < 0.05
    assert alarms / 150 <= 0.05 + 3 * 0.018
