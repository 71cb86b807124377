"""Confidence bins: exact counts and float64 sums that add up over batches, and what follows from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import MeasurementError


def equal_width_edges(bins: int) -> np.ndarray:
    """Return the edges i/bins of `bins` equal-width bins, (bins + 1,).

    Divided one by one: linspace's 3 * 0.2 is 0.6000000000000001, which moves a confidence of 0.6 to another bin.
    """
    return np.arange(bins + 1) / bins


def equal_mass_edges(confidence: np.ndarray, bins: int) -> np.ndarray:
    """Return edges that give each of at most `bins` bins (lo, hi] the same share of the samples, ties together.

    Each edge is the confidence of the last sample of its bin. Where one confidence fills several bins, they
    become one: fewer edges come back. Cost: one sort.
    """
    ordered = np.sort(confidence)
    last = np.ceil(np.arange(1, bins) * len(ordered) / bins).astype(np.int64) - 1
    inner = np.unique(ordered[np.maximum(last, 0)])
    inner = inner[(inner > 0) & (inner < ordered[-1])]
    return np.concatenate([[0.0], inner, [1.0]])


def right_closed(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence, (n,) int64: intervals (lo, hi], with 0 in the first bin."""
    return np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)


class Bins:
    """Sufficient statistics of (confidence, correct) pairs in bins; memory O(bins) however many samples come.

    `add` takes a batch, `add_cells` samples that were counted already. Counts are int64 and exact, sums float64. With c
    the confidence and y in {0, 1} whether it was right, each bin keeps n_b, sum y, sum c, sum (c - y)^2 (what an
    interval needs) and sum c (1 - c) (what the labels of a calibrated model would vary by). Samples with a negative
    index lie in no bin but count in `samples`.
    """

    def __init__(self, edges: np.ndarray) -> None:
        self.edges = np.asarray(edges, dtype=np.float64)
        size = len(self.edges) - 1
        self.counts = np.zeros(size, dtype=np.int64)
        self.correct = np.zeros(size, dtype=np.int64)
        self.confidence_sums = np.zeros(size)
        self.squared_errors = np.zeros(size)
        self.label_variances = np.zeros(size)
        self.outside = 0

    def __len__(self) -> int:
        return len(self.counts)

    def add(self, confidence: np.ndarray, correct: np.ndarray, index: np.ndarray | None = None) -> Bins:
        """Add samples: `confidence` (n,) in [0, 1], `correct` (n,) bool; `index` overrides the default (lo, hi]."""
        confidence = np.asarray(confidence, dtype=np.float64)
        correct = np.asarray(correct, dtype=bool)
        index = right_closed(confidence, self.edges) if index is None else index
        if index.size and index.min() < 0:
            inside = index >= 0
            self.outside += int(np.count_nonzero(~inside))
            confidence, correct, index = confidence[inside], correct[inside], index[inside]

        def summed(values: np.ndarray) -> np.ndarray:
            return np.bincount(index, values, minlength=len(self))

        self.counts += np.bincount(index, minlength=len(self))
        self.correct += np.bincount(index[correct], minlength=len(self))
        self.confidence_sums += summed(confidence)
        self.squared_errors += summed((confidence - correct) ** 2)
        self.label_variances += summed(confidence * (1 - confidence))
        return self

    def add_cells(self, bin_of: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> Bins:
        """Add samples counted in cells that no edge cuts: the bin of each, (m,) rising; counts and summed confidences.

        `counts` and `sums` (m, 2) are of the wrong and of the right ones. The squares take a cell's samples at their
        mean: cells within 1/256 of the distance to 1 make the variances too small by less than 1e-4 of themselves.
        """

        def summed(values: np.ndarray) -> np.ndarray:
            return np.bincount(bin_of, values, minlength=len(self))

        self.counts += summed(counts.sum(axis=1)).astype(np.int64)  # float64 holds them exactly, up to 2**53
        self.correct += summed(counts[:, 1]).astype(np.int64)
        self.confidence_sums += summed(sums.sum(axis=1))
        mean = np.divide(sums, counts, out=np.zeros(sums.shape), where=counts > 0)
        self.squared_errors += summed((counts * (mean - [0, 1]) ** 2).sum(axis=1))
        self.label_variances += summed((counts * mean * (1 - mean)).sum(axis=1))
        return self

    @property
    def samples(self) -> int:
        """Samples seen, those outside every bin included."""
        return int(self.counts.sum()) + self.outside

    @property
    def confidences(self) -> np.ndarray:
        """Mean confidence of each bin, (bins,); NaN where it is empty."""
        return self._mean(self.confidence_sums)

    @property
    def accuracies(self) -> np.ndarray:
        """Share of right labels in each bin, (bins,); NaN where it is empty."""
        return self._mean(self.correct)

    def _mean(self, sums: np.ndarray) -> np.ndarray:
        return np.divide(sums, self.counts, out=np.full(len(self), np.nan), where=self.counts > 0)

    @property
    def signed_errors(self) -> np.ndarray:
        """Mean over ALL samples of (confidence - correct) within each bin, (bins,); 0 where it is empty."""
        return (self.confidence_sums - self.correct) / self.samples

    @property
    def ece(self) -> float:
        """Expected calibration error, sum_b n_b/N |conf_b - acc_b| (share; Naeini et al. 2015, Guo et al. 2017)."""
        return float(np.abs(self.signed_errors).sum())

    @property
    def ece_l2(self) -> float:
        """Root mean square calibration error, sqrt(sum_b n_b/N (conf_b - acc_b)^2), as it is (biased upward; share)."""
        filled = self.counts > 0
        return float(np.sqrt((self.signed_errors[filled] ** 2 / (self.counts[filled] / self.samples)).sum()))

    @property
    def ece_debiased(self) -> float:
        """ECE less its sampling bias, sum_b |D_b| - sqrt(2/pi) s_b exp(-D_b^2 / (2 s_b^2)), floored at 0 (share).

        D_b is the bin's signed error and s_b its standard error. |D_b| of a bin without a fault is sqrt(2/pi) s_b on
        average; that falls off as the fault grows. No estimate is unbiased for both (Cai and Low 2011,
        doi:10.1214/10-AOS849): this one (chosen by us) is off by -0.27 to 0.23 s_b in each bin, where the plain one is
        by 0 to 0.8 and the normal debiasing of Kumar et al. 2019 (arXiv:1909.10155) by -0.07 to 0.47.
        """
        filled = self.counts > 0
        error = self.signed_errors[filled]
        variance = np.maximum(self.squared_errors[filled] / self.samples - error**2, 0.0) / self.samples
        seen = variance > 0
        bias = np.sqrt(2 / np.pi * variance[seen]) * np.exp(-(error[seen] ** 2) / (2 * variance[seen]))
        return max(0.0, float(np.abs(error).sum() - bias.sum()))

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap |conf_b - acc_b| of a bin that is not empty (share)."""
        return float(np.nanmax(np.abs(self.confidences - self.accuracies), initial=0.0))

    @property
    def debiased_l2(self) -> float:
        """Squared L2 calibration error without its sampling bias, floored at 0 (share^2).

        sum_b n_b/N [(conf_b - acc_b)^2 - acc_b (1 - acc_b)/(n_b - 1)]; a bin with one sample says nothing and
        adds 0 (Kumar, Liang and Ma 2019, "Verified uncertainty calibration", section 5, arXiv:1909.10155).
        """
        enough = self.counts >= 2
        n = self.counts[enough]
        acc = self.correct[enough] / n
        gap = self.confidence_sums[enough] / n - acc
        return max(0.0, float(np.sum(n / self.samples * (gap**2 - acc * (1 - acc) / (n - 1)))))


def checked_bins(bins: Any, mass: Any) -> tuple[int, np.ndarray | None]:
    """Return the number of bins and their edges (None: equal-mass ones, not known yet)."""
    if mass not in ("width", "equal"):
        raise MeasurementError(f"mass={mass!r} is not one of 'width', 'equal'")
    if isinstance(bins, Sequence | np.ndarray) and not isinstance(bins, str):
        edges = np.asarray(bins, dtype=np.float64)
        if mass == "equal":
            raise MeasurementError('mass="equal" finds its own edges: give bins= as a number')
        if edges.ndim != 1 or len(edges) < 2 or edges[0] != 0 or edges[-1] != 1 or not (np.diff(edges) > 0).all():
            raise MeasurementError("edges of bins must rise from 0 to 1, e.g. bins=[0, 0.5, 0.9, 1]")
        return len(edges) - 1, edges
    if isinstance(bins, bool) or not isinstance(bins, int | np.integer):
        raise TypeError(f"bins must be an integer or edges, got {type(bins).__name__}")
    if bins < 1:
        raise MeasurementError(f"bins={bins} must be at least 1")
    return int(bins), equal_width_edges(int(bins)) if mass == "width" else None
