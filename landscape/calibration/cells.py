"""Fine cells of confidence that no bin's edge cuts: where samples are counted, on their device."""

from __future__ import annotations

import numpy as np
import torch

# Significant bits that cells keep of what the confidence lacks to 1, and octaves of it: cells are at most 1/512 wide,
# and within 1/256 of the distance to 1, down to 2**-24, which is as far as float32 goes (chosen by us: 6,145 cells,
# whose sums stay in a core's own cache).
_BITS = 8
_OCTAVES = 24
_SHIFT = 23 - _BITS
_ONE = 127 << _BITS  # what 1.0 becomes
#: Cells before the bins' edges cut some of them: 24 octaves of 1 - c, and c = 0.
FINE = (_OCTAVES << _BITS) + 1
_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


class Cells:
    """A partition of [0, 1] finer than the bins with these edges, (lo, hi], 0 in the first; `bin_of` (cells,) int64.

    A cell is found from the leading bits of 1 - c, and one comparison where an edge lies: exact for every edge, in
    float32 and in float64, and five times as fast as a search among the edges.
    """

    def __init__(self, edges: np.ndarray, device: torch.device) -> None:
        self.edges = np.asarray(edges, dtype=np.float64)
        self.device = device
        self._tables: dict[torch.dtype, tuple[torch.Tensor, list[torch.Tensor]]] = {}
        # The fine cell of each inner edge, and how many edges lie in fine cells below each.
        self._inner = _ONE - _fine(torch.from_numpy(self.edges[1:-1].copy())).numpy().astype(np.int64)
        self._inner = np.minimum(self._inner, FINE - 1)
        self._below = np.searchsorted(self._inner, np.arange(FINE), side="left")
        parts = 1 + np.bincount(self._inner, minlength=FINE)
        within = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        self.bin_of = np.repeat(self._below, parts) + within

    def __len__(self) -> int:
        return len(self.bin_of)

    def upper_ends(self) -> np.ndarray:
        """Return the largest confidence of each cell, (cells,) float64, found by bisection over the bits of floats."""
        low = np.zeros(len(self), dtype=np.int64)
        high = np.full(len(self), np.float64(1.0).view(np.int64))
        none = torch.zeros(len(self), dtype=torch.int64, device=self.device)
        while (low < high).any():
            middle = high - (high - low) // 2
            at = self.keys(torch.from_numpy(middle.view(np.float64)).to(self.device), none).cpu().numpy() >> 1
            inside = at <= np.arange(len(self))
            low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
        return low.view(np.float64)

    def keys(self, confidence: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
        """Return 2 * cell + correct, (n,) int64, for confidences (n,) in [0, 1], float32 or float64; correct 0 or 1."""
        bits = confidence.view(_WHOLE[confidence.dtype])
        fine = _fine(confidence)
        start, splits = self._table(confidence.dtype)
        keys = start.index_select(0, fine)
        for split in splits:
            # Its sign bit, spread: -1 where the confidence lies above the edge, else 0.
            above = split.index_select(0, fine).sub_(bits).bitwise_right_shift_(8 * bits.element_size() - 1)
            keys.sub_(above, alpha=2)
        return keys.long().add_(correct)

    def _table(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return 2 * the first cell of each fine cell, and the bits of the edges inside it (of inf, without one)."""
        if dtype not in self._tables:
            whole = _WHOLE[dtype]
            most = int(np.bincount(self._inner).max()) if len(self._inner) else 0
            splits = np.full((most, FINE), np.inf)
            rank = np.arange(len(self._inner)) - np.searchsorted(self._inner, self._inner)
            splits[rank, self._inner] = _floor(self.edges[1:-1], dtype).double().numpy()
            start = torch.from_numpy(2 * (np.arange(FINE) + self._below)).to(whole)
            bits = [torch.from_numpy(s).to(dtype).view(whole) for s in splits]
            self._tables[dtype] = _by_bits(start).to(self.device), [_by_bits(b).to(self.device) for b in bits]
        return self._tables[dtype]


def _floor(edges: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Return the largest numbers of this dtype that are not above the edges: c > edge says the same of both."""
    found = torch.from_numpy(np.array(edges, dtype=np.float64)).to(dtype)
    above = found.double().numpy() > edges
    found[torch.from_numpy(above)] = torch.nextafter(found, torch.tensor(-1.0, dtype=dtype))[torch.from_numpy(above)]
    return found


def _fine(confidence: torch.Tensor) -> torch.Tensor:
    """Return the leading bits of 1 - c as a number that never rises with c, (n,) int32: _ONE at 0, and 0 at 1.

    The bits of a positive float, read as an integer, rise with it. float64 is rounded to float32 first, which keeps
    the order.
    """
    lacking = 1 - confidence.float()
    return lacking.view(torch.int32).bitwise_right_shift_(_SHIFT)


def _by_bits(table: torch.Tensor) -> torch.Tensor:
    """Return a table over fine cells, confidence rising, as one over the leading bits of 1 - c.

    Bits below those of 2**-24 are those of 0 alone: the last cell.
    """
    low = _ONE - FINE + 1
    return torch.cat([table[-1:].expand(low), table.flip(0)])
