"""How far two runs' calibration, Brier score, NLL and accuracy differ: in pairs where they share their samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from .paired import Binned, Difference, ece_difference, independent_difference, mean_difference

#: What is compared: the name, and the array of single scores that its mean is taken of (the ECE has none).
COMPARED = {"ece": "", "brier": "brier", "nll": "nll", "accuracy": "correct"}
_Z = 1.959964  # normal quantile of a two-sided 95% interval


def same_samples(first: Any, second: Any) -> bool:
    """Whether two SampleScores are of the same predictions in the same order, by the fingerprint of their data."""
    return bool(
        first.fingerprint
        and first.fingerprint == second.fingerprint
        and int(first.predictions) == int(second.predictions)
        and len(first.confidence) == len(second.confidence)
    )


def compare_samples(first: Any, second: Any, *, seed: int = 0) -> dict[str, Difference]:
    """Return second minus first of each score in COMPARED, from the SampleScores of two runs, with 95% intervals.

    Paired where `same_samples`, else as of independent samples (and each Difference says so). The ECE is that of our
    own convention at the first run's number of bins. Of more than 100,000 predictions, those that are kept are
    compared.
    """
    paired = same_samples(first, second)
    bins = int(first.bins)
    found = {"ece": ece_difference(_binned(first, bins), _binned(second, bins), paired=paired, seed=seed)}
    for name, column in COMPARED.items():
        if column:
            a, b = (np.asarray(getattr(s, column), dtype=np.float64) for s in (first, second))
            if paired:
                found[name] = mean_difference(a, b, first.group)
            else:
                sides = (_mean(a, first.group), _mean(b, second.group))
                found[name] = independent_difference(*sides, samples=min(len(a), len(b)))
    return found


def compare_summaries(first: Any, second: Any) -> dict[str, Difference]:
    """Return second minus first of each score in COMPARED, from two Calibrations alone, as of independent samples."""
    found = {}
    for name in COMPARED:
        sides = []
        for c in (first, second):
            value = float(getattr(c, name))
            if name == "ece":
                low, high = (float(x) for x in c.ece_interval)
            else:
                half = _Z * float(getattr(c, f"{name}_stderr"))
                low, high = value - half, value + half
            sides.append((value, low, high))
        found[name] = independent_difference(*sides, samples=min(int(first.samples), int(second.samples)))
    return found


def _binned(scores: Any, bins: int) -> Binned:
    confidence = np.asarray(scores.confidence, dtype=np.float64)
    edges = np.arange(bins + 1) / bins
    index = np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)
    return Binned(confidence, np.asarray(scores.correct) != 0, index, bins, scores.group)


def _mean(values: np.ndarray, groups: np.ndarray | None) -> tuple[float, float, float]:
    found = mean_difference(np.zeros(len(values)), values, groups)
    return found.value, found.low, found.high
