"""Each prediction's own scores, kept so that runs can be compared on the samples that they share. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..results import Result, array

#: Predictions of one run whose own scores are archived: 17 bytes each (chosen by us: 1.7 MB at most, and an interval
#: that is narrower than any difference that matters).
KEPT = 100_000


@dataclass(frozen=True)
class Samples:
    """For each prediction, (n,): the top label's confidence, whether it is right, Brier score, NLL, the top label."""

    confidence: np.ndarray
    correct: np.ndarray
    brier: np.ndarray
    nll: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SampleScores(Result, kind="sample_scores", section="calibration"):
    """The scores of single predictions, for paired comparisons; of more than KEPT predictions evenly spaced ones.

    Two runs with the same `fingerprint` and number of `predictions` were measured on the same samples in the same
    order, and keep the same rows.
    """

    confidence: np.ndarray = array("sample", units="share", doc="probability of the top label")
    correct: np.ndarray = array("sample", doc="1 where the top label is right")
    brier: np.ndarray = array("sample", doc="squared error of the probabilities")
    nll: np.ndarray = array("sample", units="nats", doc="negative log likelihood")
    group: np.ndarray | None = array("sample", doc="number of what samples depend on each other", default=None)
    predictions: int = array(doc="predictions that these are taken from", default=0)
    bins: int = array(doc="bins of equal width that errors of calibration are compared at", default=15)
    fingerprint: str = ""
    split: str = ""

    def summary(self) -> dict[str, Any]:
        """Return nothing: these numbers are behind others."""
        return {}


def keep_samples(
    samples: Samples, *, bins: int, fingerprint: str, split: str, groups: np.ndarray | None = None
) -> SampleScores:
    """Return what is archived of these predictions; `groups` (n,) numbers what depends on each other."""
    n = len(samples.confidence)
    rows = np.arange(n) if n <= KEPT else np.arange(KEPT) * n // KEPT
    return SampleScores(
        confidence=samples.confidence[rows],
        correct=samples.correct[rows].astype(np.uint8),
        brier=samples.brier[rows].astype(np.float32),
        nll=samples.nll[rows].astype(np.float32),
        group=None if groups is None else np.asarray(groups)[rows].astype(np.int64),
        predictions=n,
        bins=bins,
        fingerprint=fingerprint,
        split=split,
        notes=(f"the scores of {KEPT:,} of {n:,} predictions are kept, evenly spaced",) if n > KEPT else (),
    )
