"""Small models on a CPU: their tensors side by side in memory of our own, and the sums of squares of all at once.

A training step of half a millisecond feels every call: each kind of them costs 3 to 10 microseconds there, because the
training has driven it out of the processor's caches. So there is one copy by torch, one product by NumPy, and the rest
is plain Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .norms import LEAST, MOST, RUN

#: Up to this many numbers (with what the last run of each tensor leaves empty) tensors are packed: 2 MB a copy, which a
#: processor's caches hold (chosen by us).
SMALL = 1 << 19


class Buffer:
    """One copy of a set of tensors: `numbers` (runs, RUN) in float32, and the same memory as torch sees it."""

    __slots__ = ("columns", "numbers", "rows", "views")

    def __init__(self, shapes: Sequence[torch.Size], slices: Sequence[slice]) -> None:
        memory = torch.zeros(slices[-1].stop, RUN, device="cpu")
        self.numbers = memory.numpy()
        #: For a product of each run with itself or another: (runs, 1, RUN) and (runs, RUN, 1).
        self.rows, self.columns = self.numbers[:, None, :], self.numbers[:, :, None]
        self.views = [memory[s].view(-1)[: shape.numel()].view(shape) for s, shape in zip(slices, shapes, strict=True)]


class Packed:
    """How a set of float32 tensors on a CPU is laid out: each begins a run of 1,024 numbers, zeros fill its last one.

    Its arithmetic belongs into np.errstate, entered once: a training that diverges has norms that are inf and NaN.

    Raises ValueError for no tensors.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            raise ValueError("no tensors to lay side by side")
        self._shapes = [t.shape for t in tensors]
        self.slices: list[slice] = []
        start = 0
        for shape in self._shapes:
            self.slices.append(slice(start, start + max(-(-shape.numel() // RUN), 1)))
            start = self.slices[-1].stop
        self._products = np.empty((start, 1, 1), np.float32)

    @staticmethod
    def fits(tensors: Sequence[Tensor]) -> bool:
        """Whether these are few enough numbers, all float32, whole, dense and on a CPU."""
        alike = all(
            type(t) in (Tensor, nn.Parameter)
            and t.dtype is torch.float32
            and t.device.type == "cpu"
            and t.layout is torch.strided
            for t in tensors
        )
        return alike and 0 < sum(max(-(-t.numel() // RUN), 1) for t in tensors) <= SMALL // RUN

    def buffer(self) -> Buffer:
        """Return memory for one copy, all zeros."""
        return Buffer(self._shapes, self.slices)

    def read(self, buffer: Buffer, tensors: list[Any]) -> None:
        """Copy tensors of these shapes that require no gradient, or inside torch.no_grad."""
        torch._foreach_copy_(buffer.views, tensors)

    def products(self, a: Buffer, b: Buffer) -> list[float]:
        """Return a . b of each run."""
        return np.matmul(a.rows, b.columns, out=self._products).ravel().tolist()

    def norms(self, buffer: Buffer) -> tuple[float, ...]:
        """Return (1 + k): the joint norm and each tensor's, to 5e-7."""
        squares = self.products(buffer, buffer)
        found = [0.0]
        for part in self.slices:
            square = sum(squares[part])
            if not LEAST < square < MOST:
                square = _square64(buffer.numbers[part])
            found.append(square)
        found[0] = sum(found)
        return tuple(map(sqrt, found))

    def dot(self, a: Buffer, b: Buffer) -> float:
        """Return a . b over all numbers."""
        found = sum(self.products(a, b))
        if LEAST < abs(found) < MOST:
            return found
        return float(np.vdot(a.numbers.astype(np.float64), b.numbers.astype(np.float64)))


class PackedNorms:
    """Norms of tensors of the same shapes again and again, in memory of their own: (1 + k), the joint norm first."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._packed = Packed(tensors)
        self._buffer = self._packed.buffer()

    def __call__(self, tensors: Sequence[Tensor | None]) -> tuple[float, ...] | None:
        """Return the norms; None where a tensor is missing, sparse, of another precision or part of a graph."""
        for t in tensors:
            if t is None or t.dtype is not torch.float32 or t.layout is not torch.strided or t.requires_grad:
                return None
        self._packed.read(self._buffer, list(tensors))
        with np.errstate(over="ignore", invalid="ignore"):  # of a training that diverges
            return self._packed.norms(self._buffer)


def _square64(numbers: np.ndarray) -> float:
    return float(np.vdot(wide := numbers.astype(np.float64), wide))
