"""What each prediction of a block says: confidence, right or wrong, Brier score and likelihood, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .inputs import Form, Kind, Predictions, sum_tolerance

View = Literal["top", "positive"]
# Class scores in a block: their float64 copy and its exponentials stay in a core's own cache (measured: 64 rows of
# 1,000 classes are 1.6 times as fast as 1,024); on an accelerator a block bounds the memory, 1 GiB.
_CPU_BLOCK, _DEVICE_BLOCK = 1 << 16, 1 << 26
# exp(x) and its square neither overflow nor vanish in float64, summed over any number of classes.
_SAFE = 300.0


@dataclass(frozen=True)
class Scored:
    """Of each row of a block, (r,): its confidence (float32 where it came so) and whether it came true, and the rest.

    `right` says whether the top label is right: the same as `correct`, unless the confidence is that of class 1.
    `faulty` marks rows that `inputs.verify` would refuse, `inside` those of logits that could be probabilities.
    `brier` sums over the classes ((p - y)^2 for a single score), `nll` is in nats, inf for a probability of exactly 0;
    both float64 or None. `odds` (r, C) are proportional to the probabilities, their sums `total`; None for one score.
    """

    confidence: torch.Tensor
    correct: torch.Tensor
    right: torch.Tensor
    faulty: torch.Tensor
    inside: torch.Tensor
    brier: torch.Tensor | None = None
    nll: torch.Tensor | None = None
    predicted: torch.Tensor | None = None
    odds: torch.Tensor | None = None
    total: torch.Tensor | None = None


def blocks(predictions: Predictions) -> Iterator[Predictions]:
    """Give the predictions in blocks of rows that fit the cache."""
    scores = predictions.scores
    size = _CPU_BLOCK if scores.device.type == "cpu" else _DEVICE_BLOCK
    step = max(1, size // (scores.shape[1] if scores.ndim == 2 else 1))
    for start in range(0, len(predictions.truth), step):
        yield predictions.select(slice(start, start + step))


def score(block: Predictions, view: View, scores: bool = True) -> Scored:
    """Score one block: the first class wins a tie, a binary score at its threshold counts as class 0.

    Labels out of range are marked as faulty and read as class 0. NLL and Brier score are left out without `scores`.
    """
    x = block.scores
    if x.dtype not in (torch.float32, torch.float64):
        x = x.float()
    classes = 2 if block.binary else x.shape[1]
    astray = (block.truth < 0) | (block.truth >= classes)
    y = block.truth.masked_fill(astray, 0)
    if block.binary:
        return _score_single(x, y, astray, block.kind, block.form, view, scores)
    return _score_several(x, y, astray, block.kind, sum_tolerance(block.dtype), scores)


def _score_single(
    x: torch.Tensor, y: torch.Tensor, astray: torch.Tensor, kind: Kind, form: Form, view: View, scores: bool
) -> Scored:
    positive = y.bool()
    logits = kind == "logits"
    inside = (x >= 0) & (x <= 1)
    faulty = astray | (~torch.isfinite(x) if logits else ~inside)
    own = view == "positive" or form == "top-label"
    if own and not logits and not scores:
        # In its own precision, which is exact: half the memory traffic.
        return Scored(x, positive, positive if form == "top-label" else (x > 0.5) == positive, faulty, inside)
    wide = x.double()
    p = torch.sigmoid(wide) if logits else wide
    sure = p if own else torch.sigmoid(wide.abs()) if logits else torch.maximum(p, 1 - p)
    right = positive if form == "top-label" else (x > (0.0 if logits else 0.5)) == positive
    correct = positive if own else right
    if not scores:
        return Scored(sure, correct, right, faulty, inside)
    if logits:
        signed = torch.where(positive, -wide, wide)
        nll = torch.logaddexp(signed, torch.zeros((), dtype=torch.float64, device=x.device))
    else:
        nll = -torch.where(positive, p, 1 - p).log_() + 0.0  # no -0.0
    return Scored(sure, correct, right, faulty, inside, brier=(p - y).square_(), nll=nll)


def _score_several(
    x: torch.Tensor, y: torch.Tensor, astray: torch.Tensor, kind: Kind, tolerance: float, scores: bool
) -> Scored:
    top, low = _extremes(x)
    high = x.gather(1, top[:, None])[:, 0].double()
    own = x.gather(1, y[:, None])[:, 0].double()
    low = low.double()
    inside = (low >= 0) & (high <= 1)
    odds = x.double()
    if kind == "logits":
        faulty = astray | ~(torch.isfinite(low) & torch.isfinite(high))
        # Without the usual shift by the row's largest logit a pass is saved, where float64 has the range for it.
        if x.device.type != "cpu" or not (float(low.min()) > -_SAFE and float(high.max()) < _SAFE):
            odds = odds.sub_(high[:, None]) if odds is not x else odds - high[:, None]
            own = own - high
            high = torch.zeros_like(high)
        odds = odds.exp_() if odds is not x else odds.exp()
        total = odds.sum(dim=1)
        sure = high.exp() / total
        chance = own.exp() / total
        nll = total.log() - own
    else:
        total = odds.sum(dim=1)
        faulty = astray | ~(inside & ((total - 1).abs() <= tolerance))
        sure, chance = high, own
        nll = -own.log() + 0.0  # no -0.0
        total = torch.ones_like(total)
    hit = top == y
    if not scores:
        return Scored(sure, hit, hit, faulty, inside, predicted=top, odds=odds, total=total)
    squares = torch.linalg.vector_norm(odds, dim=1).div_(total).square_()
    # sum_k (p_k - [k = y])^2
    brier = squares.sub_(chance, alpha=2).add_(1).clamp_min_(0)
    return Scored(sure, hit, hit, faulty, inside, brier, nll, top, odds, total)


def _extremes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first largest class of each row and its least score; NaN where a row has one."""
    if x.device.type == "cpu":
        # NumPy finds the first of the largest five times as fast as torch here, and the least twice as fast.
        rows = x.numpy()
        return torch.from_numpy(np.argmax(rows, axis=1)), torch.from_numpy(np.min(rows, axis=1))
    return x.argmax(dim=1), x.amin(dim=1)
