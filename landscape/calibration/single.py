"""Scores of single predictions, one by one: what paired comparisons are made from."""

from __future__ import annotations

import numpy as np
import torch

from .inputs import Predictions
from .samples import Samples
from .scoring import blocks, score


def score_samples(predictions: Predictions) -> Samples:
    """Return each prediction's confidence, correctness, Brier score, NLL and top label, (n,) each, in float64.

    As `calibration_error` has them: the first class wins a tie, a binary score at its threshold counts as class 0.
    Cost: one pass over the scores.
    """
    parts = []
    for block in blocks(predictions):
        found = score(block, "top")
        predicted = found.predicted
        if predicted is None:  # one score a row: right means the label, wrong means the other one
            predicted = torch.where(found.correct.bool(), block.truth, 1 - block.truth)
        columns = (found.confidence.double(), found.correct.bool(), found.brier, found.nll, predicted)
        parts.append([np.asarray(x.cpu()) for x in columns if x is not None])
    return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))
