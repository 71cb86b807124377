"""What each prediction of a block says: confidence, right or wrong, Brier score and likelihood, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from . import compiled
from .checked import sum_tolerance
from .inputs import Predictions
from .sweep import Finder, Likely, largest, least, sweep, widened

View = Literal["top", "positive"]
# Rows in a block: a few columns of them fit a core's own cache, and torch does not split so few among threads, whose
# waiting for each other would cost more than it gains. More of single scores, for which calls cost as much as counting.
# On an accelerator class scores, to bound the memory.
_ROWS, _SINGLE_ROWS, _DEVICE_SCORES = 1 << 15, (1 << 17) - 1, 1 << 26
# exp(x) of a row's largest logit and its square neither overflow nor vanish in float64, summed over any number of
# classes.
_SAFE = 300.0


@dataclass(frozen=True)
class Scored:
    """Of each row of a block, (r,): its confidence (float32 where it came so), and 1 where it came true, else 0.

    `right` says whether the top label is right, 0 or 1: as `correct`, unless the confidence is that of class 1. `low`
    and `high` are the least and largest score (on a CPU `low` stands for several rows, where none is masked), `sums`
    those of probabilities over classes (else None). `brier` sums over the classes ((p - y)^2 for a single score), `nll`
    is in nats, inf for a probability of exactly 0, `own` is that of the label; float64, or None where not asked for.
    `predicted` is the top class of several.
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
    scores, n = predictions.scores, len(predictions.truth)
    step = _SINGLE_ROWS if scores.ndim == 1 else _ROWS
    if scores.device.type != "cpu":
        step = max(1, _DEVICE_SCORES // (scores.shape[1] if scores.ndim == 2 else 1))
    if n <= step:
        yield predictions
        return
    step = -(-n // -(-n // step))  # blocks of one size
    for start in range(0, n, step):
        yield predictions.select(slice(start, start + step))


def score(
    block: Predictions,
    view: View,
    scores: bool = True,
    share: float | None = None,
    keep: torch.Tensor | None = None,
    with_kernel: bool = False,
) -> Scored:
    """Score one block: the first class wins a tie, a binary score at its threshold counts as class 0.

    Without `scores`, Brier score and NLL are left out. With `share`, the classes with at least this probability are
    listed, in the rows that `keep` marks (None: all). Labels must be in range; faulty scores give faulty numbers.
    `with_kernel` takes `compiled.load()` where it fits: several classes' logits of at most 32 bits on a CPU.
    """
    if block.binary:
        return _score_single(widened(block.scores), block, view, scores)
    on_cpu = block.scores.device.type == "cpu"
    fits = with_kernel and on_cpu and block.kind == "logits" and block.scores.dtype != torch.float64
    kernel = compiled.load() if fits else None
    return _score_several(block, scores, share, keep, not on_cpu or kernel is not None, kernel)


def sound(scored: Scored, block: Predictions) -> bool:
    """Say whether every score is what it should be (waits for the device)."""
    if scored.low is scored.high and block.kind == "probabilities" and _plainly_within_unit(scored.low):
        return True
    low, high = least(scored.low), largest(scored.high)
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
    return least(scored.low) >= 0 and largest(scored.high) <= 1


def _plainly_within_unit(x: torch.Tensor) -> bool:
    """Say whether float32 numbers lie in [0, 1], in one pass; False for -0.0 and wherever this can't be told."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    # Positive floats rise with their bits; negative ones and NaN have larger ones.
    return bool(x.numpy().view(np.uint32).max() <= np.float32(1).view(np.uint32))


def in_range(labels: torch.Tensor, classes: int) -> bool:
    """Say whether every label is one of the classes (waits for the device)."""
    if classes == 2 and labels.device.type == "cpu":
        return int(np.bitwise_or.reduce(labels.numpy())) in (0, 1)  # one pass instead of two
    return least(labels) >= 0 and largest(labels) < classes


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
    sure = p if logits else x
    if not own:
        sure = torch.sigmoid(wide.abs()) if logits else torch.maximum(p, 1 - p)
    if not scores:
        return Scored(sure, correct, right, x, x)
    if logits:
        nll = torch.logaddexp((1 - 2 * y) * wide, torch.zeros((), dtype=torch.float64, device=x.device))
    else:
        nll = -torch.where(y.bool(), p, 1 - p).log_() + 0.0  # no -0.0
    return Scored(sure, correct, right, x, x, brier=(p - y).square_(), nll=nll)


def _score_several(
    block: Predictions,
    scores: bool,
    share: float | None,
    keep: torch.Tensor | None,
    shifted: bool,
    kernel: compiled.Kernel | None = None,
) -> Scored:
    """Score rows of several classes; `shifted` takes each row's largest logit off first, as a `kernel` does.

    On a CPU that pass is saved where float64 has the range to do without, which is looked at afterwards: a logit far
    below the largest vanishes either way.
    """
    y, logits = block.truth, block.kind == "logits"
    finder = None if share is None else Finder(share, keep, block.classes, y.device)
    swept = sweep(block.scores, logits, scores, finder, keep is not None, shifted, kernel)

    def of_class(k: torch.Tensor) -> torch.Tensor:
        return block.scores.gather(1, k[:, None])[:, 0].double()

    high = of_class(swept.top)
    if logits and not shifted and not (least(high) > -_SAFE and largest(high) < _SAFE):
        return _score_several(block, scores, share, keep, shifted=True)
    low, total, squares = swept.low, swept.total, swept.squares
    hit = (swept.top == y).long()
    likely = None if finder is None else finder.likely()
    sure, sums = (high, total) if not logits else (total.reciprocal() if shifted else high.exp() / total, None)
    if squares is None and finder is None:
        return Scored(sure, hit, hit, low, high, sums, predicted=swept.top)
    own = of_class(y)
    if logits:
        own = own - high if shifted else own
        nll = total.log() - own
        chance = own.exp_().div_(total)
    else:
        chance = own
        nll = -own.log() + 0.0  # no -0.0
    if squares is None:
        return Scored(sure, hit, hit, low, high, sums, own=chance, predicted=swept.top, likely=likely)
    squares = squares.div_(total).div_(total) if logits else squares
    # sum_k (p_k - [k = y])^2
    brier = squares.sub_(chance, alpha=2).add_(1).clamp_min_(0)
    return Scored(sure, hit, hit, low, high, sums, brier, nll, chance, swept.top, likely)
