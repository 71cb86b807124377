"""What each prediction of a block says: confidence, right or wrong, Brier score and likelihood, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from .inputs import Predictions, sum_tolerance

View = Literal["top", "positive"]
# Rows in a block: a few columns of them fit a core's own cache, and torch does not split so few among threads, whose
# waiting for each other would cost more than it gains. On an accelerator class scores, to bound the memory.
_ROWS, _DEVICE_SCORES = 1 << 15, 1 << 26
# Class scores whose float64 copy is held at a time on a CPU: 512 KiB, which stays in a core's own cache (measured: the
# best of 16,384 to 262,144, with 1,000 classes).
_CACHED = 1 << 16
# exp(x) and its square neither overflow nor vanish in float64, summed over any number of classes.
_SAFE = 300.0


@dataclass(frozen=True)
class Likely:
    """The classes that have more than a share of the probability: row, class and probability, (m,) each.

    `mass` (C,) sums each class's probability over the rows, the unlikely ones too.
    """

    rows: torch.Tensor
    classes: torch.Tensor
    probability: torch.Tensor
    mass: torch.Tensor


@dataclass(frozen=True)
class Scored:
    """Of each row of a block, (r,): its confidence (float32 where it came so), and 1 where it came true, else 0.

    `right` says whether the top label is right, 0 or 1: as `correct`, unless the confidence is that of class 1. `low`
    and `high` are the least and largest score, `sums` those of probabilities over classes (else None). `brier` sums
    over the classes ((p - y)^2 for a single score), `nll` is in nats, inf for a probability of exactly 0, `own` is
    that of the label; float64, or None where not asked for. `predicted` is the top class of several.
    """

    confidence: torch.Tensor
    correct: torch.Tensor
    right: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    sums: torch.Tensor | None = None
    brier: torch.Tensor | None = None
    nll: torch.Tensor | None = None
    own: torch.Tensor | None = None
    predicted: torch.Tensor | None = None
    likely: Likely | None = None


def blocks(predictions: Predictions) -> Iterator[Predictions]:
    """Give the predictions in blocks of rows."""
    scores = predictions.scores
    step = _ROWS
    if scores.device.type != "cpu":
        step = max(1, _DEVICE_SCORES // (scores.shape[1] if scores.ndim == 2 else 1))
    for start in range(0, len(predictions.truth), step):
        yield predictions.select(slice(start, start + step))


def score(
    block: Predictions,
    view: View,
    scores: bool = True,
    share: float | None = None,
    keep: torch.Tensor | None = None,
) -> Scored:
    """Score one block: the first class wins a tie, a binary score at its threshold counts as class 0.

    Without `scores`, Brier score and NLL are left out. With `share`, the classes with at least this probability are
    listed, in the rows that `keep` marks (None: all). Labels must be in range; faulty scores give faulty numbers.
    """
    if block.binary:
        return _score_single(_widened(block.scores), block, view, scores)
    return _score_several(block, scores, share, keep, shifted=block.scores.device.type != "cpu")


def sound(scored: Scored, block: Predictions) -> bool:
    """Say whether every score is what it should be (waits for the device)."""
    low, high = _least(scored.low), _largest(scored.high)
    if block.kind == "logits":
        return bool(np.isfinite(low) and np.isfinite(high))
    fits = scored.sums is None or bool(((scored.sums - 1).abs() <= sum_tolerance(block.dtype)).all())
    return low >= 0 and high <= 1 and fits  # False for NaN


def faulty(scored: Scored, block: Predictions) -> torch.Tensor:
    """Mark the rows with a score that is not what it should be, (r,) bool."""
    if block.kind == "logits":
        return ~(torch.isfinite(scored.low) & torch.isfinite(scored.high))
    fits = (scored.low >= 0) & (scored.high <= 1)
    return ~(fits if scored.sums is None else fits & ((scored.sums - 1).abs() <= sum_tolerance(block.dtype)))


def within_unit(scored: Scored) -> bool:
    """Say whether all scores lie in [0, 1], as probabilities would (waits for the device)."""
    return _least(scored.low) >= 0 and _largest(scored.high) <= 1


def in_range(labels: torch.Tensor, classes: int) -> bool:
    """Say whether every label is one of the classes (waits for the device)."""
    if classes == 2 and labels.device.type == "cpu":
        return int(np.bitwise_or.reduce(labels.numpy())) in (0, 1)  # one pass instead of two
    return _least(labels) >= 0 and _largest(labels) < classes


def _least(x: torch.Tensor) -> float:
    return float(x.numpy().min() if x.device.type == "cpu" else x.min())


def _largest(x: torch.Tensor) -> float:
    return float(x.numpy().max() if x.device.type == "cpu" else x.max())


def _score_single(x: torch.Tensor, block: Predictions, view: View, scores: bool) -> Scored:
    y, logits, pairs = block.truth, block.kind == "logits", block.form == "top-label"
    own = view == "positive" or pairs
    # One and the same tensor where they are the same: the accumulator counts it once.
    right = y if pairs else ((x > (0.0 if logits else 0.5)) == y.bool()).long()
    correct = y if own else right
    if own and not logits and not scores:
        return Scored(x, correct, right, x, x)  # in its own precision, which is exact: half the memory traffic
    wide = x.double()
    p = torch.sigmoid(wide) if logits else wide
    sure = p if own else torch.sigmoid(wide.abs()) if logits else torch.maximum(p, 1 - p)
    if not scores:
        return Scored(sure, correct, right, x, x)
    if logits:
        nll = torch.logaddexp((1 - 2 * y) * wide, torch.zeros((), dtype=torch.float64, device=x.device))
    else:
        nll = -torch.where(y.bool(), p, 1 - p).log_() + 0.0  # no -0.0
    return Scored(sure, correct, right, x, x, brier=(p - y).square_(), nll=nll)


def _score_several(
    block: Predictions, scores: bool, share: float | None, keep: torch.Tensor | None, shifted: bool
) -> Scored:
    """Score rows of several classes; `shifted` takes each row's largest logit off first.

    On a CPU that pass is saved where float64 has the range to do without, which is looked at afterwards.
    """
    y, logits = block.truth, block.kind == "logits"
    n, classes = block.scores.shape
    device = block.scores.device
    top = torch.empty(n, dtype=torch.int64, device=device)
    low, high, own, total = torch.empty(4, n, dtype=torch.float64, device=device)
    norms = torch.empty_like(total) if scores else None
    found = _Finder(share, keep, classes, device) if share is not None else None
    step = n if device.type != "cpu" else max(1, _CACHED // classes)
    room = torch.empty(min(step, n), classes, dtype=torch.float64, device=device)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        x = _widened(block.scores[part])
        top[part], low[part] = _extremes(x)
        high[part] = x.gather(1, top[part, None])[:, 0]
        own[part] = x.gather(1, y[part, None])[:, 0]
        odds = room[: part.stop - start].copy_(x)
        if logits:
            if shifted:
                odds.sub_(high[part, None])
            odds.exp_()
        torch.sum(odds, dim=1, out=total[part])
        if norms is not None:
            torch.linalg.vector_norm(odds, dim=1, out=norms[part])
        if found is not None:
            found.add(odds, total[part] if logits else torch.ones_like(total[part]), start)
    if logits and not shifted and not (_least(low) > -_SAFE and _largest(high) < _SAFE):
        return _score_several(block, scores, share, keep, shifted=True)
    hit = (top == y).long()
    likely = None if found is None else found.likely()
    sums = None
    if logits:
        own = own - high if shifted else own
        sure = total.reciprocal() if shifted else high.exp() / total
        nll = total.log() - own
        chance = own.exp_().div_(total)
    else:
        sure, chance, sums = high, own, total
        nll = -own.log() + 0.0  # no -0.0
    if norms is None:
        return Scored(sure, hit, hit, low, high, sums, own=chance, predicted=top, likely=likely)
    squares = (norms.div_(total) if logits else norms).square_()
    # sum_k (p_k - [k = y])^2
    brier = squares.sub_(chance, alpha=2).add_(1).clamp_min_(0)
    return Scored(sure, hit, hit, low, high, sums, brier, nll, chance, top, likely)


class _Finder:
    """Collects the classes with at least `share` of the probability, part by part of a block's rows."""

    def __init__(self, share: float, keep: torch.Tensor | None, classes: int, device: torch.device) -> None:
        # A hair low, so that rounding misses none.
        self.share, self.keep = share * (1 - 1e-12), keep
        self.classes = classes
        self.mass = torch.zeros(classes, dtype=torch.float64, device=device)
        self.parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, odds: torch.Tensor, total: torch.Tensor, start: int) -> None:
        if self.keep is not None:
            kept = self.keep[start : start + len(odds)]
            odds, total = odds.where(kept[:, None], 0), total.where(kept, 1)
        self.mass += total.reciprocal() @ odds
        limit = total * self.share
        if odds.device.type == "cpu":
            # NumPy compares and lists four times as fast as torch here.
            flat = torch.from_numpy(np.flatnonzero(odds.numpy() > limit.numpy()[:, None]))
            rows = flat // self.classes
            classes, found = flat - rows * self.classes, odds.view(-1)[flat]
        else:
            # At most 1 / share classes can have it: no need to wait for how many do.
            found, classes = odds.topk(min(int(1 / self.share) + 1, self.classes), dim=1)
            found = found.where(found > limit[:, None], 0).reshape(-1)
            rows = torch.arange(len(odds), device=odds.device).repeat_interleave(classes.shape[1])
            classes = classes.reshape(-1)
        self.parts.append((rows + start, classes, (found / total[rows]).clamp_max_(1)))

    def likely(self) -> Likely:
        rows, classes, probability = (torch.cat(column) for column in zip(*self.parts, strict=True))
        return Likely(rows, classes, probability, self.mass)


def _extremes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first largest class of each row and its least score; NaN where a row has one."""
    if x.device.type == "cpu":
        # NumPy finds the first of the largest five times as fast as torch here, and the least twice as fast.
        rows = x.numpy()
        return torch.from_numpy(np.argmax(rows, axis=1)), torch.from_numpy(np.min(rows, axis=1))
    return x.argmax(dim=1), x.amin(dim=1)


def _widened(x: torch.Tensor) -> torch.Tensor:
    """Return 16-bit floats in float32, which holds them exactly."""
    return (x if x.dtype in (torch.float32, torch.float64) else x.float()).contiguous()
