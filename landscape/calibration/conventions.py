"""Other people's expected calibration error, to the last bit: their dtypes, their bins, their order of summation.

Nothing else here computes this way: each function repeats the arithmetic of one implementation (in the precision that
its users have), so that a number can be laid beside one in a paper. `scores.py` holds our own definition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MeasurementError
from .inputs import Predictions


@dataclass(frozen=True)
class Foreign:
    """What another implementation makes of the predictions.

    `ece` and `mce` as it gives them; `confidence` (n,) float64, `correct` (n,) and `index` (n,) as it bins them
    (-1: in no bin); `edges` of its bins, (bins + 1,).
    """

    ece: float
    mce: float
    confidence: np.ndarray
    correct: np.ndarray
    index: np.ndarray
    edges: np.ndarray


def torchmetrics(predictions: Predictions, bins: int) -> Foreign:
    """torchmetrics 1.9: `multiclass_calibration_error` and `binary_calibration_error`, norm "l1" and "max".

    Intervals [lo, hi) with torch.linspace edges; a confidence of 1 falls in an extra bin behind the last. All sums
    and counts are in the precision of the confidences: float32 for several classes, whatever came in; the input's
    own for a binary task, whose confidence is that of class 1. Logits pass through softmax or sigmoid always (there:
    only when one lies outside [0, 1]). On a GPU its scatter sums have no fixed order: equality is with its CPU.
    """
    import torch

    scores, labels = _tensors(predictions)
    if predictions.binary:
        confidence = scores.sigmoid() if predictions.kind == "logits" else scores
        correct = labels
    else:
        p = torch.softmax(scores, dim=1) if predictions.kind == "logits" else scores
        top, winner = p.max(dim=1)
        confidence, correct = top.float(), winner.eq(labels).float()
    edges = torch.linspace(0, 1, bins + 1, dtype=confidence.dtype, device="cpu")
    index = torch.bucketize(confidence, edges, right=True) - 1
    hits = correct.to(confidence.dtype)

    def summed(values: torch.Tensor) -> torch.Tensor:
        return torch.zeros(bins + 1, dtype=confidence.dtype, device="cpu").scatter_add_(0, index, values)

    counts = summed(torch.ones_like(confidence))
    # Its empty bins are 0/0, made 0.
    gap = torch.abs(torch.nan_to_num(summed(hits) / counts) - torch.nan_to_num(summed(confidence) / counts))
    ece = torch.sum(gap * (counts / counts.sum()))
    place = index.numpy()
    shown = edges.double().numpy()
    if (place == bins).any():
        shown = np.append(shown, 1.0)
    return Foreign(float(ece), float(gap.max()), _double(confidence), _bool(correct), place, shown)


def netcal(predictions: Predictions, bins: int) -> Foreign:
    """netcal 1.4: `netcal.metrics.ECE(bins).measure` and `MCE`.

    Intervals [lo, hi), the last closed. It counts with float64 edges, and takes the means of a bin with edges in the
    precision of the probabilities: below float64 a confidence on an edge may count in one bin and enter the mean of
    its neighbour (our reliability table shows the bins of the means). Probabilities are clipped to [eps, 1 - eps] of
    their own precision first (which can make ties; the first class wins), sums are float64. For a binary task, given
    as (n,) or (n, 2), the confidence is that of class 1. Labels with at most two values make it take the task for
    binary: with more than two classes it raises then, and so do we. netcal takes no logits: they pass through softmax
    or sigmoid in their own precision.
    """
    values = _probabilities(predictions)
    labels = predictions.labels
    eps = np.finfo(values.dtype).eps
    values = np.clip(values, eps, 1.0 - eps)
    if len(np.unique(labels)) <= 2:
        if values.ndim == 2 and values.shape[1] > 2:
            raise MeasurementError(
                f"netcal takes labels with at most two values for a binary task, and refuses {values.shape[1]} classes "
                "then; use another convention, or labels of three classes or more"
            )
        confidence = values if values.ndim == 1 else values[:, 1]
        correct = labels
    else:
        confidence, correct = values.max(axis=1), values.argmax(axis=1) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    # Clipping has taken 0 and 1 away: every confidence lies inside the outer edges.
    counts = np.bincount(np.searchsorted(edges, confidence, side="right") - 1, minlength=bins).astype(np.float64)
    index = np.searchsorted(edges.astype(values.dtype), confidence, side="right") - 1
    entered = np.bincount(index, minlength=bins)

    def mean(of: np.ndarray) -> np.ndarray:
        sums = np.bincount(index, of, minlength=bins)
        return np.divide(sums, entered, out=np.zeros(bins), where=(entered > 0) & (counts > 0))

    gap = np.abs(mean(correct) - mean(confidence))
    ece = np.sum(gap * (counts / np.sum(counts)))
    return Foreign(float(ece), float(gap.max()), _double(confidence), _bool(correct), index, edges)


def guo(predictions: Predictions, bins: int) -> Foreign:
    """Guo et al. 2017 (arXiv:1706.04599) as published with the paper (temperature_scaling's ECE loss).

    Intervals (lo, hi] with float32 edges, so that a confidence of exactly 0 is in no bin and yet counted in N; means
    in the precision of the confidences, accuracies and shares in float32, the sum in float32. For a binary task,
    which that code doesn't have, the confidence is that of class 1.
    """
    import torch

    scores, labels = _tensors(predictions)
    if predictions.binary:
        confidence = scores.sigmoid() if predictions.kind == "logits" else scores
        correct = labels.eq(1)
    else:
        p = torch.softmax(scores, dim=1) if predictions.kind == "logits" else scores
        confidence, winner = torch.max(p, 1)
        correct = winner.eq(labels)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float32, device="cpu").double().numpy()
    index = np.full(len(confidence), -1, dtype=np.int64)
    ece = torch.zeros(1, dtype=torch.float32, device="cpu")
    worst = 0.0
    for b in range(bins):
        inside = confidence.gt(edges[b].item()) & confidence.le(edges[b + 1].item())
        share = inside.float().mean()
        if share.item() > 0:
            gap = torch.abs(confidence[inside].mean() - correct[inside].float().mean())
            ece += gap * share
            worst = max(worst, float(gap))
            index[inside.numpy()] = b
    return Foreign(float(ece), worst, _double(confidence), _bool(correct), index, edges)


CONVENTIONS: dict[str, Callable[[Predictions, int], Foreign]] = {
    "torchmetrics": torchmetrics,
    "netcal": netcal,
    "guo": guo,
}


def _tensors(predictions: Predictions) -> tuple[Any, Any]:
    """Return values and labels as CPU tensors in the precision they came in."""
    import torch

    values = torch.from_numpy(np.require(predictions.values, requirements=["W"]))
    return values.to(getattr(torch, predictions.dtype)), torch.from_numpy(predictions.labels)


def _probabilities(predictions: Predictions) -> np.ndarray:
    """Return probabilities as an array; NumPy has no bfloat16, which is float32 here."""
    if predictions.kind == "probabilities":
        return predictions.values
    import torch

    scores = torch.from_numpy(np.require(predictions.values, requirements=["W"]))
    return (scores.sigmoid() if predictions.binary else scores.softmax(dim=1)).numpy()


def _double(confidence: Any) -> np.ndarray:
    if isinstance(confidence, np.ndarray):
        return confidence.astype(np.float64)
    return confidence.double().numpy()


def _bool(correct: Any) -> np.ndarray:
    return np.asarray(correct).astype(bool)
