"""What the confidence is worth for leaving predictions out: the risk-coverage curve and the area under it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import digamma

from .totals import Atoms

# Points of the curve that are given (chosen by us: a percent of coverage apart).
_SHOWN = 100


@dataclass(frozen=True)
class Selective:
    """AURC and its excess (share), how far the order inside cells could move them, and the curve, (100,) each."""

    aurc: float
    excess: float
    slack: float
    coverage: np.ndarray
    risk: np.ndarray


def risk_coverage(atoms: Atoms) -> Selective:
    """Return the risk-coverage curve, the area under it, and its excess over a perfect order.

    AURC is the mean over k = 1 .. n of the error rate among the k samples of highest confidence (Geifman, Uziel and
    El-Yaniv 2019, "Bias-reduced uncertainty estimation", arXiv:1805.08206, section 2); the excess is above that of an
    order with every error last (theirs is to first order: ours is exact). Samples of one confidence count in random
    order: the expectation over it, in closed form. Cost: O(atoms).
    """
    counts, wrong = atoms.counts[::-1], (atoms.counts - atoms.correct)[::-1]
    n, errors = int(counts.sum()), int(wrong.sum())
    area = _area(counts, wrong)
    best = (errors - (n - errors) * (_harmonic(n) - _harmonic(n - errors))) / n
    slack = 0.0
    if not atoms.exact:
        # Inside each cell all right ones first, or all wrong ones.
        right = counts - wrong
        sides = [
            _area(np.stack(pair, axis=1).reshape(-1), np.stack(bad, axis=1).reshape(-1))
            for pair, bad in (((right, wrong), (0 * right, wrong)), ((wrong, right), (wrong, 0 * right)))
        ]
        slack = max(area - sides[0], sides[1] - area)
    kept = np.ceil(np.arange(1, _SHOWN + 1) * n / _SHOWN).astype(np.int64)
    last = np.cumsum(counts)
    at = np.searchsorted(last, kept)
    before, missed = last[at] - counts[at], np.cumsum(wrong)[at] - wrong[at]
    risk = (missed + (kept - before) * wrong[at] / counts[at]) / kept
    return Selective(area, area - float(best), float(slack), kept / n, risk)


def _area(counts: np.ndarray, wrong: np.ndarray) -> float:
    """Return the mean over k of the expected error rate among the first k, groups of ties in their order."""
    filled = counts > 0
    counts, wrong = counts[filled].astype(np.float64), wrong[filled].astype(np.float64)
    last, missed = np.cumsum(counts), np.cumsum(wrong)
    before, missed = last - counts, missed - wrong
    rate = wrong / counts
    # sum over r = 1 .. m of (missed + r rate) / (before + r)
    parts = wrong + (missed - before * rate) * (_harmonic(last) - _harmonic(before))
    return float(parts.sum() / counts.sum())


def _harmonic(n: np.ndarray | int) -> np.ndarray:
    """Return 1 + 1/2 + ... + 1/n, up to a constant."""
    return digamma(np.asarray(n, dtype=np.float64) + 1.0)
