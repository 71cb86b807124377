"""Which rows of a block count and which are at fault: told at once, or marked for later where looking means waiting."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from .inputs import Predictions
from .scoring import Scored, View, faulty, in_range, score, sound


@dataclass(frozen=True)
class Sifted:
    """A block without what `ignore_index` marks, scored.

    `fine` says that no row is at fault (`scored` is None where a label is out of range). Where faults are put off,
    `keep` marks the rows that count, (r,) bool, `lost` those at fault, and all are scored.
    """

    part: Predictions
    scored: Scored | None
    fine: bool
    keep: torch.Tensor | None = None
    lost: torch.Tensor | None = None


def sift(
    part: Predictions,
    view: View,
    *,
    ignore_index: int | None,
    deferred: bool,
    scores: bool,
    share: float | None,
    with_kernel: bool = False,
) -> Sifted | None:
    """Score a block (as `scoring.score` does) and find its faults; None where nothing counts.

    With `deferred`, nothing waits for the device.
    """
    classes = 2 if part.binary else part.classes
    if deferred:
        keep = torch.ones_like(part.truth, dtype=torch.bool)
        if ignore_index is not None:
            keep = part.truth != ignore_index
        there = (part.truth >= 0) & (part.truth < classes)
        keep, lost = keep & there, keep & ~there
        part = dataclasses.replace(part, truth=part.truth.where(keep, 0))
        scored = score(part, view, scores, share, keep, with_kernel)
        bad = faulty(scored, part)
        return Sifted(part, scored, True, keep & ~bad, lost | (keep & bad))
    if ignore_index is not None:
        counted = part.truth != ignore_index
        part = part if bool(counted.all()) else part.select(counted.nonzero().reshape(-1))
    if not len(part.truth):
        return None
    if not in_range(part.truth, classes):
        return Sifted(part, None, False)
    scored = score(part, view, scores, share, with_kernel=with_kernel)
    return Sifted(part, scored, sound(scored, part))
