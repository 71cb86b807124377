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
_PLACE_BITS = 7 + _BITS  # which hold _ONE
_FLOAT_BITS = 31  # of a positive float32
#: Cells before the bins' edges cut some of them: 24 octaves of 1 - c, and c = 0.
FINE = (_OCTAVES << _BITS) + 1
_WHOLE = {torch.float32: torch.int32, torch.float64: torch.int64}


class Cells:
    """A partition of [0, 1] finer than the bins with these edges, (lo, hi], 0 in the first; `bin_of` (cells,) int64.

    A cell is found from the leading bits of 1 - c, and one comparison where an edge lies: exact for every edge, in
    float32 and in float64, and ten times as fast as a search among the edges.
    """

    def __init__(self, edges: np.ndarray, device: torch.device) -> None:
        self.edges = np.asarray(edges, dtype=np.float64)
        self.device = device
        self._tables: dict[torch.dtype, tuple[torch.Tensor, list[torch.Tensor]]] = {}
        self._carries: tuple[torch.Tensor, list[torch.Tensor]] | None = None
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
            at = self.keys(torch.from_numpy(middle.view(np.float64)).to(self.device), none).cpu().numpy()
            inside = at <= np.arange(len(self))
            low, high = np.where(inside, middle, low), np.where(inside, high, middle - 1)
        return low.view(np.float64)

    def keys(self, confidence: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
        """Return cell + cells * correct, (n,) int64, for confidences (n,) in [0, 1], float32 or float64, but no -0.0.

        `correct` is 0 or 1. Cost on a CPU: 2.2 ns for a float32 confidence, twice that for float64.
        """
        if self.device.type == "cpu" and confidence.dtype == torch.float32:
            return self._keys_by_carry(confidence.numpy(), correct.numpy())
        bits = confidence.view(_WHOLE[confidence.dtype])
        fine = _fine(confidence)
        start, splits = self._table(confidence.dtype)
        keys = start.index_select(0, fine)
        for split in splits:
            keys.sub_(_above(bits, split.index_select(0, fine)))
        return torch.add(keys, correct, alpha=len(self))

    def _keys_by_carry(self, confidence: np.ndarray, correct: np.ndarray) -> torch.Tensor:
        """As `keys`, with one look-up for all: adding a confidence's bits to its entry carries where it lies above.

        NumPy takes half of torch's time for whole numbers here; torch looks up by 32-bit places, which NumPy widens.
        """
        bits = confidence.view(np.int32)
        lacking = np.subtract(np.float32(1), confidence)
        place = lacking.view(np.int32)
        np.right_shift(place, _SHIFT, out=place)
        side = correct.astype(np.int32)
        np.left_shift(side, _PLACE_BITS, out=side)
        np.bitwise_or(place, side, out=side)
        entries, further = self.entries()
        keys = entries.index_select(0, torch.from_numpy(side))
        plain = keys.numpy()
        np.add(plain, bits, out=plain)
        np.right_shift(plain, _FLOAT_BITS, out=plain)
        for split in further:
            keys.sub_(_above(torch.from_numpy(bits), split.index_select(0, torch.from_numpy(place))))
        return keys

    def entries(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the entries of the look-up, by leading bits of 1 - c and, above them, right or wrong; further edges.

        An entry is cell + cells * correct, shifted beyond a float32's bits, and below it what the bits of an edge in
        the cell lack to a carry: where there is none, the bits of the largest number, which no confidence exceeds.
        """
        if self._carries is None:
            start, splits = self._table(torch.float32)
            most = (1 << _FLOAT_BITS) - 1
            lacks = most - splits[0].long() if splits else torch.zeros_like(start, dtype=torch.int64)
            entries = torch.zeros(2, 1 << _PLACE_BITS, dtype=torch.int64, device="cpu")
            for correct in (0, 1):
                entries[correct, : len(start)] = (start.long() + correct * len(self) << _FLOAT_BITS) + lacks
            self._carries = entries.reshape(-1), splits[1:]
        return self._carries

    def _table(self, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the first cell of each fine cell, and the bits of the edges inside it (of inf, without one)."""
        if dtype not in self._tables:
            whole = _WHOLE[dtype]
            most = int(np.bincount(self._inner).max()) if len(self._inner) else 0
            splits = np.full((most, FINE), np.inf)
            rank = np.arange(len(self._inner)) - np.searchsorted(self._inner, self._inner)
            splits[rank, self._inner] = _floor(self.edges[1:-1], dtype).double().numpy()
            start = torch.from_numpy(np.arange(FINE) + self._below).to(whole)
            bits = [torch.from_numpy(s).to(dtype).view(whole) for s in splits]
            self._tables[dtype] = _by_bits(start).to(self.device), [_by_bits(b).to(self.device) for b in bits]
        return self._tables[dtype]


def _above(bits: torch.Tensor, split: torch.Tensor) -> torch.Tensor:
    """Return -1 where a confidence's bits lie above those of an edge, else 0: the sign bit of the difference, spread.

    Overwrites `split`.
    """
    return split.sub_(bits).bitwise_right_shift_(8 * bits.element_size() - 1)


def _floor(edges: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Return the largest numbers of this dtype that are not above the edges: c > edge says the same of both."""
    found = torch.from_numpy(np.array(edges, dtype=np.float64)).to(dtype)
    above = found.double().numpy() > edges
    found[torch.from_numpy(above)] = torch.nextafter(found, torch.tensor(-1.0, dtype=dtype, device="cpu"))[
        torch.from_numpy(above)
    ]
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
