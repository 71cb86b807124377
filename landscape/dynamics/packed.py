"""Small models on a CPU: their tensors side by side in memory of our own, and the sums of squares of all at once.

A training step of half a millisecond feels every call: each kind of them costs 3 to 10 microseconds there, because the
training has driven it out of the processor's caches. So there is one copy by torch, one kind of product by NumPy, and
the rest is plain Python. Measured behind a backward pass, in microseconds, and again at once: np.errstate 16 and 2,
np.matmul of the runs 34 and 5, np.vecdot of them 18 and 4; ten steps later a copy by torch costs 25, a second one 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context
from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .norms import LEAST, MOST, RUN

#: Looked up in torch's own module, of two thousand names, each costs a cache miss.
_FLOAT32, _STRIDED = torch.float32, torch.strided
#: Up to this many numbers (with what the last run of each tensor leaves empty) tensors are packed: 2 MB a copy, which a
#: processor's caches hold (chosen by us).
SMALL = 1 << 19


class Buffer:
    """One copy of a set of tensors: `numbers` (runs, RUN) in float32, and the same memory as torch sees it."""

    __slots__ = ("numbers", "views")

    def __init__(self, shapes: Sequence[torch.Size], slices: Sequence[slice]) -> None:
        memory = torch.zeros(slices[-1].stop, RUN, device="cpu")
        self.numbers = memory.numpy()
        self.views = [memory[s].view(-1)[: shape.numel()].view(shape) for s, shape in zip(slices, shapes, strict=True)]


class Packed:
    """How a set of float32 tensors on a CPU is laid out: each begins a run of 1,024 numbers, zeros fill its last one.

    Its arithmetic belongs into `quietly`, entered once: a training that diverges has norms that are inf and NaN.

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
        self._products = np.empty(start, np.float32)
        #: Calls a function without NumPy's warnings of overflows and invalid values.
        self.quietly = _quietly()

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
        """Copy tensors of these shapes that require no gradient."""
        torch._foreach_copy_(buffer.views, tensors)

    def products(self, a: Buffer, b: Buffer) -> list[float]:
        """Return a . b of each run."""
        return _dots(a.numbers, b.numbers, self._products).tolist()

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
        """Return the norms; None where the tensors can't be packed."""
        if not self.takes(tensors):
            return None
        self._packed.read(self._buffer, list(tensors))
        return self.copied()

    def takes(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether none of them is missing, sparse, of another precision or part of a graph."""
        for t in tensors:
            if t is None or t.dtype is not _FLOAT32 or t.layout is not _STRIDED or t.requires_grad:
                return False
        return True

    @property
    def views(self) -> list[Tensor]:
        """Where tensors that it takes are copied to, for `copied`."""
        return self._buffer.views

    def copied(self) -> tuple[float, ...]:
        """Return the norms of what was copied into `views`."""
        return self._packed.quietly(self._packed.norms, self._buffer)


def _quietly() -> Callable[..., Any]:
    """Return a function that calls another one without NumPy's warnings of overflows and invalid values.

    NumPy 2 keeps what it warns of in a context variable: a context in which that is set already is entered in a tenth
    of the time that np.errstate takes. It can be entered once at a time, so each user takes one of its own.
    """
    if not hasattr(np, "vecdot"):  # before NumPy 2
        return np.errstate(over="ignore", invalid="ignore")(lambda f, *given: f(*given))
    context = Context()
    context.run(np.seterr, over="ignore", invalid="ignore")
    return context.run


def _matmul_dots(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    np.matmul(a[:, None, :], b[:, :, None], out=out[:, None, None])
    return out


#: (a, b, out): the product of each row of a with that of b, (rows,) in float32; np.vecdot came with NumPy 2.
_dots: Callable[..., np.ndarray] = getattr(np, "vecdot", _matmul_dots)


def _square64(numbers: np.ndarray) -> float:
    return float(np.vdot(wide := numbers.astype(np.float64), wide))
