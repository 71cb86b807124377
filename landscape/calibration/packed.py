"""A count and a sum in one 64-bit number: half as many scatters, and sums without rounding."""

from __future__ import annotations

import numpy as np
import torch

from .cells import Cells
from .compiled import Kernel

# Bits of a sum's fraction, and bits below those of the count: a sum stays below 2**17.
_FRACTION, _COUNT = 30, 47
# Most confidences that fit at once.
_MOST = (1 << (_COUNT - _FRACTION)) - 1
# From here on a float32 is a multiple of 2**-30.
_LEAST = 2.0 ** (23 - _FRACTION)
_LEAST_BITS = int(np.float32(_LEAST).view(np.int32))
# Added to a confidence in float64, this leaves it in the lowest bits as a whole number of 2**-30, and a 1 at the
# count's place. What float64 puts above, its exponent, adds up too, and is divided out (modulo 2**17).
_EXPONENT = 52 - _FRACTION
_SHIFT = 2.0**_EXPONENT + 2.0 ** (_COUNT - _FRACTION)
_EACH = (1023 + _EXPONENT << 52 - _COUNT) + 1
_INVERSE = pow(_EACH, -1, 1 << 64 - _COUNT)
_COUNT_MASK, _SUM_MASK = (1 << 64 - _COUNT) - 1, (1 << _COUNT) - 1
_BASE = int(np.float64(2.0**_EXPONENT).view(np.int64))


class PackedSums:
    """Counts confidences, and sums them, by keys below `size`, on a CPU; until `take`, both lie in one table.

    One integer scatter takes 0.8 ns a sample, where an integer and a float64 one take 2, and 1.5 instead of 4.5 ns
    where many fall in one cell, which each has to wait for. Sums are exact.
    """

    def __init__(self, size: int) -> None:
        self.table = torch.zeros(size, dtype=torch.int64, device="cpu")
        self.held = 0

    def fits(self, confidence: torch.Tensor) -> bool:
        """Say whether these can be packed: at most 131,071 float32 numbers on a CPU, all at least 2**-7."""
        if confidence.dtype != torch.float32 or confidence.device.type != "cpu" or len(confidence) > _MOST:
            return False
        # Positive floats rise with their bits; those of -0.0 are negative.
        return int(confidence.numpy().view(np.int32).min()) >= _LEAST_BITS

    def room(self, samples: int) -> bool:
        """Say whether so many more fit before the next `take`."""
        return self.held + samples <= _MOST

    def add(self, keys: torch.Tensor, confidence: torch.Tensor) -> None:
        """Add confidences, which `fits` and `room` must have allowed."""
        self.table.scatter_add_(0, keys, confidence.double().add_(_SHIFT).view(torch.int64))
        self.held += len(keys)

    def add_compiled(self, kernel: Kernel, cells: Cells, confidence: torch.Tensor, correct: torch.Tensor) -> bool:
        """As `add`, from pairs instead of keys; False, with nothing added, where two edges lie too close for that.

        Confidences must lie in [0, 1] and `correct` be 0 or 1.
        """
        entries, further = cells.entries()
        if further:
            return False
        pairs = confidence.contiguous().numpy(), correct.contiguous().numpy()
        kernel.count(*pairs, entries.numpy(), _SHIFT, self.table.numpy())
        self.held += len(confidence)
        return True

    def take(self, counts: torch.Tensor, sums: torch.Tensor) -> None:
        """Move what was added to `counts` int64 and `sums` float64, (size,) each. Cost: 8 passes over the table."""
        if not self.held:
            return
        table = self.table.numpy()
        found = table >> _COUNT
        found *= _INVERSE
        found &= _COUNT_MASK
        counts.numpy()[:] += found
        # The whole number of 2**-30 as the lowest bits of a float64 again.
        table &= _SUM_MASK
        table |= _BASE
        sums.numpy()[:] += table.view(np.float64) - 2.0**_EXPONENT
        table[:] = 0
        self.held = 0
