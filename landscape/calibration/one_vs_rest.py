"""Maps of one class's probability at a time, each class against the rest: isotonic regression, histogram binning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .inputs import Predictions
from .maps import converted

#: Bins of a histogram's map (10: Zadrozny and Elkan 2001, section 3).
HISTOGRAM_BINS = 10


@dataclass(frozen=True)
class LevelsFit:
    """Levels at knots, (knots,), the class that each belongs to, and how many predictions made them."""

    knots: np.ndarray
    levels: np.ndarray
    owners: np.ndarray


def fit_isotonic(predictions: Predictions) -> LevelsFit:
    """Fit, for each class k, the non-decreasing map of p_k to 1[y = k] with the least squared error.

    scikit-learn's pool-adjacent-violators, with straight lines between its steps; for several classes each against
    the rest, then normalized (Zadrozny and Elkan 2002, doi:10.1145/775047.775151). Levels stay within 1/(n + 2) of 0
    and 1, n the predictions of the fit: what never happened in n of them is given Laplace's probability of happening
    next, so that the NLL is finite (chosen by us). The order of a single class's probabilities is kept, ties aside;
    which class comes first may change. Cost: one sort for each class.
    """
    from sklearn.isotonic import IsotonicRegression

    floor = _floor(predictions)
    parts = []
    for p, hit in _columns(predictions):
        fit = IsotonicRegression(y_min=floor, y_max=1 - floor, out_of_bounds="clip").fit(p, hit)
        parts.append((np.asarray(fit.X_thresholds_), np.asarray(fit.y_thresholds_)))
    return _joined(parts)


def fit_histogram(predictions: Predictions, bins: int = HISTOGRAM_BINS) -> LevelsFit:
    """Fit, for each class k, the share of 1[y = k] in each of `bins` bins of p_k with equal counts.

    Zadrozny and Elkan 2001 ("Obtaining calibrated probability estimates from decision trees and naive Bayesian
    classifiers", ICML); for several classes each against the rest, then normalized. Ties stay together, so that there
    may be fewer bins. Levels stay within 1/(n + 2) of 0 and 1, as for `fit_isotonic`. Cost: one sort for each class.
    """
    floor = _floor(predictions)
    parts = []
    for p, hit in _columns(predictions):
        knots = _equal_counts(p, bins)
        place = np.searchsorted(knots, p, side="left")
        share = np.bincount(place, hit, len(knots)) / np.bincount(place, minlength=len(knots))
        parts.append((knots, np.clip(share, floor, 1 - floor)))
    return _joined(parts)


def _equal_counts(p: np.ndarray, bins: int) -> np.ndarray:
    """Return the upper ends of at most `bins` bins with equal counts, none empty, the last 1.

    They lie halfway to the next larger value, so that a probability that comes out with another last digit (another
    device, another precision) stays in its bin.
    """
    ordered = np.sort(p)
    last = ordered[np.ceil(np.arange(1, bins) * len(p) / bins).astype(np.int64) - 1]
    above = np.searchsorted(ordered, last, side="right")
    inside = above < len(p)
    middle = (last[inside] + ordered[above[inside]]) / 2
    return np.append(np.unique(middle), 1.0)


def _columns(predictions: Predictions) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give (probability, 1.0 where it is the label) of each class, (n,) each; of class 1 alone for a binary task."""
    values = predictions.values.astype(np.float64)
    p = converted(values, predictions.kind, "probabilities", binary=predictions.binary)
    if predictions.binary:
        yield p, (predictions.labels == 1).astype(np.float64)
        return
    for k in range(predictions.classes):
        yield np.ascontiguousarray(p[:, k]), (predictions.labels == k).astype(np.float64)


def _floor(predictions: Predictions) -> float:
    return 1 / (len(predictions.labels) + 2)


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> LevelsFit:
    return LevelsFit(
        knots=np.concatenate([knots for knots, _ in parts]).astype(np.float64),
        levels=np.concatenate([levels for _, levels in parts]).astype(np.float64),
        owners=np.repeat(np.arange(len(parts)), [len(knots) for knots, _ in parts]),
    )
