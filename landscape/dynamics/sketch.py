"""A seeded random projection of a model's weights, for models of which three more copies don't fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..widest import wide, widest

#: Numbers in the sketch of a tensor (chosen by us): the error below, and 1.5 MB a tensor for three float64 sketches.
WIDTH = 1 << 16
#: Length of the pool of random signs that rows take theirs from, at offsets of their own (chosen by us).
_POOL = 1 << 22


class Sketch:
    """S x for each tensor x: rows of 65,536 numbers, with random signs and turned at random, added up in float64.

    ||S x||^2 is unbiased for ||x||^2, with a standard deviation of about sqrt(2 / width) of it (Charikar, Chen and
    Farach-Colton 2004, doi:10.1016/S0304-3975(03)00400-6, whose hash of each place is one of each row here), so that a
    norm errs by 1 / sqrt(2 width) = 0.28%. The turns keep what repeats from row to row (one column of a matrix) from
    falling into one place. Linear: the sketch of a difference is the difference of sketches, and float64 keeps updates
    that are a millionth of the weights. A tensor of at most 65,536 numbers is kept as it is. Signs and turns are drawn
    once, on the CPU, with `seed`; tensors that were sketched before keep theirs (`since`: that sketch, and the place
    there of each of these tensors, None for new ones), so that sketches of then and of now can be compared.
    """

    RELATIVE_ERROR = 1 / math.sqrt(2 * WIDTH)

    def __init__(
        self, tensors: Sequence[Tensor], seed: int = 0, since: tuple[Sketch, Sequence[int | None]] | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._rows: list[list[tuple[int, int]]] = []
        for t in tensors:
            rows = -(-t.numel() // WIDTH) if t.numel() > WIDTH else 0
            offsets = torch.randint(0, _POOL - WIDTH, (rows,), generator=generator, device="cpu").tolist()
            turns = torch.randint(0, WIDTH, (rows,), generator=generator, device="cpu").tolist()
            self._rows.append(list(zip(offsets, turns, strict=True)))
        before, places = since if since is not None else (None, ())
        for i, place in enumerate(places):
            if before is not None and place is not None and len(before._rows[place]) == len(self._rows[i]):
                self._rows[i] = before._rows[place]
        if before is not None and len(before._signs):
            self._signs = before._signs
            return
        signs = torch.randint(
            0, 2, (_POOL if any(self._rows) else 0,), generator=generator, dtype=torch.int8, device="cpu"
        )
        self._signs = (2 * signs - 1).to(tensors[0].device)

    def of(self, i: int, flat: Tensor) -> Tensor:
        """Return the sketch of tensor `i`, given as a vector, in float64."""
        if not self._rows[i]:
            return wide(flat)
        total = torch.zeros(WIDTH, dtype=widest(flat.device), device=flat.device)
        for start, (offset, turn) in zip(range(0, len(flat), WIDTH), self._rows[i], strict=True):
            row = flat[start : start + WIDTH]
            row = row * self._signs[offset : offset + len(row)]
            straight = min(len(row), WIDTH - turn)
            total[turn : turn + straight] += row[:straight]
            total[: len(row) - straight] += row[straight:]
        return total
