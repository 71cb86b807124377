"""The batches that an objective passes over: cut, joined, shuffled anew or shared out, with what is known of each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .batch import batch_size_of, join, pick, slice_batch
from .reduction import pieces

Place = tuple[int, ...]
#: Sets apart the seeds of parts; prime, and more than a draw has batches.
_PART = 1_000_003


class Loaded:
    """Batches of an objective's samples, and what is found out about them on the way.

    Args:
        batches: on the device, or where `Objective` brings each there for its pass.
        places: where each stands in the draw: the number of the draw's batch, and of the part of it, and of the part
            of that, which orders them and seeds their random numbers; by default they are the draw's batches.
        total: of how many batches these are a part; by default of these.
    """

    def __init__(self, batches: list[Any], places: Sequence[Place] | None = None, total: int | None = None) -> None:
        self.batches = batches
        self.places: list[Place] = [(i,) for i in range(len(batches))] if places is None else list(places)
        #: The denominators of the batches' means that the data fix, None where they aren't known yet.
        self.weights: list[float | None] = [None] * len(batches)
        #: Labels of batches none of which is to be ignored, as the forward gives them, by the batch's place here.
        self.plain: dict[int, Any] = {}
        self._total = total

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def total(self) -> int:
        """Of how many batches these are a part."""
        return len(self) if self._total is None else self._total

    @property
    def sizes(self) -> list[int | None]:
        """Samples of each batch, None where they can't be told."""
        return [batch_size_of(b) for b in self.batches]

    @property
    def largest(self) -> int:
        """Samples of the largest batch."""
        return max((size or 1 for size in self.sizes), default=0)

    def halve(self) -> bool:
        """Cut every batch in two, in place; False, and nothing done, where there is nothing to be cut."""
        sizes = self.sizes
        if None in sizes or max(s or 0 for s in sizes) < 2:
            return False
        parts = [
            (slice_batch(batch, a, b, size or 1), (*place, part))
            for batch, size, place in zip(self.batches, sizes, self.places, strict=True)
            for part, (a, b) in enumerate(pieces(size or 1, 2))
        ]
        self.batches, self.places = [batch for batch, _ in parts], [place for _, place in parts]
        self.weights, self.plain = [None] * len(parts), {}
        self._total = None if self._total is None else 2 * self._total
        return True

    def number(self, i: int) -> int:
        """Return a seed for batch i: the number of a whole one in the draw; for parts, others than their whole's."""
        place = self.places[i]
        return place[0] + sum((part + 1) * _PART**level for level, part in enumerate(place[1:], start=1)) % 2**31

    def joined(self, count: int) -> Loaded | None:
        """Return every `count` successive batches as one; None where they don't fit together, or into the memory."""
        known = [size for size in self.sizes if size is not None]
        if len(known) < len(self):
            return None
        starts = range(0, len(known), count)
        try:
            return Loaded([join(self.batches[a : a + count], known[a : a + count]) for a in starts])
        except (ValueError, RuntimeError):
            return None

    def share(self, place: int, of: int, *, cut: bool, even: bool) -> Loaded:
        """Return those of every `of` successive batches that fall to this place.

        Where batches are left over, or there are fewer than places, those are cut into a piece for each place, if they
        may be `cut`; left over ones only if the shares are to be `even`, so that all else gets whole batches.
        """
        whole = len(self) // of * of
        if not cut or None in self.sizes or (whole and not even):
            whole = len(self)
        found = [(self.batches[i], self.places[i]) for i in range(place, whole, of)]
        for batch, stands in zip(self.batches[whole:], self.places[whole:], strict=True):
            size = batch_size_of(batch) or 1
            runs = pieces(size, of)
            if place < len(runs):
                found.append((slice_batch(batch, *runs[place], size), (*stands, place)))
        total = whole + (len(self) - whole) * of
        return Loaded([batch for batch, _ in found], [stands for _, stands in found], total)


def regrouped(batches: list[Any], sizes: Sequence[int | None], size: int, seed: int) -> list[Any]:
    """Return the samples of these batches, shuffled, in batches of this size; these ones where that can't be done."""
    known = [s for s in sizes if s is not None]
    if len(known) < len(batches):
        return batches
    total = sum(known)
    # Shuffled: data are often stored by class, and a batch of one class is another loss.
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed), device="cpu")
    return list(_cut(batches, known, order, total, size))


def _cut(batches: list[Any], sizes: list[int], order: torch.Tensor, total: int, wanted: int) -> Iterator[Any]:
    with contextlib.suppress(ValueError):  # batches that can't be joined are only cut
        batches, sizes = [pick(join(batches, sizes), order, total)], [total]
    for batch, size in zip(batches, sizes, strict=True):
        for a in range(0, size, wanted):
            yield slice_batch(batch, a, min(a + wanted, size), size)
