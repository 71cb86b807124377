"""One pass over the scores of several classes: each row's top, and the sums that its probabilities are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .compiled import Kernel
from .exponentials import exponentiate

# Class scores whose float64 copy is held at a time on a CPU: 512 KiB, which stays in a core's own cache (measured: the
# best of 16,384 to 262,144, with 1,000 classes).
_CACHED = 1 << 16
# Those that the kernel gets at a time, as its calls cost microseconds: 4 MiB of 16-bit ones in float32.
_CALLED = 1 << 20
# Limits of rows this close to each other leave few to be looked at again when all are held against the least (chosen by
# us).
_ALIKE = 100.0


@dataclass(frozen=True)
class Likely:
    """The classes that have more than a share of the probability in a row: class and probability, (m,) each.

    `mass` (C,) sums each class's probability over the rows, the unlikely ones too.
    """

    classes: torch.Tensor
    probability: torch.Tensor
    mass: torch.Tensor


@dataclass(frozen=True)
class Swept:
    """Of each row, (n,): its first largest class `top`, and sums in float64.

    `low` (n,) is the least score, or fewer numbers that each stand for several rows; `total` sums the exponentials of
    logits (less the largest one, if `shifted`), or the probabilities; `squares` sums their squares (None: not asked
    for).
    """

    top: torch.Tensor
    low: torch.Tensor
    total: torch.Tensor
    squares: torch.Tensor | None


def sweep(
    scores: torch.Tensor,
    logits: bool,
    squares: bool,
    finder: Finder | None,
    each: bool,
    shifted: bool,
    kernel: Kernel | None = None,
) -> Swept:
    """Go through scores (n, C) once, of any float dtype; exponentials and sums are float64.

    `each` gives every row its own `low`; `finder` is shown every row. On a CPU in parts that fit its cache. Cost, in ns
    a score on one thread of an AMD Zen 4: 1.4, of which the exponential takes 0.8, reading and the top 0.2, widening
    0.17, the sum 0.13, `low` 0.1; `squares` 0.13 more, and a finder 1.5. With a `kernel`, for shifted logits on a CPU
    of at most 32 bits, 0.7 in all, `squares` 0.1 more, and a finder 0.3.
    """
    if kernel is not None:
        return _sweep_compiled(scores, squares, finder, kernel)
    if scores.device.type == "cpu":
        return _sweep_cached(scores, logits, squares, finder, each, shifted)
    x = widened(scores)
    top, odds = x.argmax(dim=1), x.double()
    if logits:
        odds = (odds - odds.gather(1, top[:, None]) if shifted else odds).exp()
    total = odds.sum(dim=1)
    if finder is not None:
        finder.add(odds, total if logits else torch.ones_like(total), 0)
    return Swept(top, x.amin(dim=1), total, torch.linalg.vector_norm(odds, dim=1).square() if squares else None)


def _sweep_cached(
    scores: torch.Tensor, logits: bool, squares: bool, finder: Finder | None, each: bool, shifted: bool
) -> Swept:
    n, classes = scores.shape
    step = max(1, _CACHED // classes)
    room, ones = np.empty((min(step, n), classes)), np.ones(classes)
    top, total = np.empty(n, dtype=np.int64), np.empty(n)
    squared, low = np.empty(n if squares else 0), []
    # What over- or underflows shows in `low` and the total, and is dealt with there.
    with np.errstate(all="ignore"):
        for start in range(0, n, step):
            part = slice(start, min(start + step, n))
            # NumPy finds the first of the largest five times as fast as torch.
            x, odds = widened(scores[part]).numpy(), room[: part.stop - start]
            x.argmax(axis=1, out=top[part])
            low.append(x.min(axis=1) if each else x.min(keepdims=True)[0])
            np.copyto(odds, x)
            if logits:
                if shifted:
                    odds -= np.take_along_axis(odds, top[part, None], axis=1)
                exponentiate(odds)
            _dots(odds, ones, total[part])
            if squares:
                _dots(odds, odds, squared[part])
            if finder is not None:
                share_of = total[part] if logits else np.ones(len(odds))
                finder.add(torch.from_numpy(odds), torch.from_numpy(share_of), start)
    lows = torch.from_numpy(np.concatenate(low))
    return Swept(torch.from_numpy(top), lows, torch.from_numpy(total), torch.from_numpy(squared) if squares else None)


def _sweep_compiled(scores: torch.Tensor, squares: bool, finder: Finder | None, kernel: Kernel) -> Swept:
    n, classes = scores.shape
    step = max(1, _CALLED // classes)
    top, total = np.empty(n, dtype=np.int64), np.empty(n)
    squared, low = np.empty(n) if squares else None, np.empty(n, dtype=np.float32)
    for start in range(0, n, step):
        part = slice(start, min(start + step, n))
        x = widened(scores[part]).numpy()
        to = (x, top[part], low[part], total[part], None if squared is None else squared[part])
        if finder is None:
            kernel(*to)
        else:
            finder.add_by(kernel, *to, start)
    of = None if squared is None else torch.from_numpy(squared)
    return Swept(torch.from_numpy(top), torch.from_numpy(low), torch.from_numpy(total), of)


def _dots(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Write the scalar product of each row of a (r, C) with that of b, or with b (C,) itself, to out (r,)."""
    if hasattr(np, "vecdot"):  # from NumPy 2 on: as fast as a matrix product, but on one thread
        np.vecdot(a, b, out=out)
    else:
        np.einsum("...i,...i->...", a, b, out=out)


class Finder:
    """Collects the classes with at least `share` of the probability, part by part of a block's rows."""

    def __init__(self, share: float, keep: torch.Tensor | None, classes: int, device: torch.device) -> None:
        # A hair low, so that rounding misses none.
        self.share, self.keep = share * (1 - 1e-12), keep
        self.classes = classes
        self.mass = torch.zeros(classes, dtype=torch.float64, device=device)
        # Room that is used again: as much anew for each part is given back and mapped anew by the system, 50 us.
        self._marks = np.empty(0, dtype=bool)
        # Of each part: place in the flat block and number of what was found, and what each row's are shares of. What
        # is made of these waits for the last part: on a CPU a dozen calls on so few numbers cost as much as finding.
        self._parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def add(self, odds: torch.Tensor, total: torch.Tensor, start: int) -> None:
        """Add rows from `start` on: their exponentials or probabilities, (r, C), and what these are shares of, (r,)."""
        if self.keep is not None:
            kept = self.keep[start : start + len(odds)]
            odds, total = odds.where(kept[:, None], 0), total.where(kept, 1)
        self.mass += total.reciprocal() @ odds  # torch's product: NumPy's would start threads of its own
        if odds.device.type == "cpu":
            plain = odds.numpy().reshape(-1)
            above = self._above(plain, total.numpy() * self.share)
            places, found = torch.from_numpy(above), torch.from_numpy(plain[above])
        else:
            # At most 1 / share classes can have it: no need to wait for how many do.
            found, classes = odds.topk(min(int(1 / self.share) + 1, self.classes), dim=1)
            found = found.where(found > (total * self.share)[:, None], 0)
            places = classes + torch.arange(len(odds), device=odds.device)[:, None] * self.classes
            found, places = found.reshape(-1), places.reshape(-1)
        self._parts.append((places + start * self.classes, found, total))

    def add_by(
        self,
        kernel: Kernel,
        x: np.ndarray,
        top: np.ndarray,
        low: np.ndarray,
        total: np.ndarray,
        squared: np.ndarray | None,
        start: int,
    ) -> None:
        """Add rows from `start` on by a kernel, which fills the arrays of these logits meanwhile."""
        keep = None if self.keep is None else self.keep[start : start + len(x)].numpy()
        places, found = kernel.find(x, top, low, total, squared, self.share, keep, self.mass.numpy())
        column = torch.from_numpy(places) + start * self.classes
        self._parts.append((column, torch.from_numpy(found), torch.from_numpy(total)))

    def _above(self, odds: np.ndarray, limit: np.ndarray) -> np.ndarray:
        """Return the places of what exceeds the limit of its row, rising; odds (r * C,), limit (r,).

        NumPy compares and lists four times as fast as torch, and with one number four times as fast as with one a row.
        """
        if len(self._marks) < len(odds):
            self._marks = np.empty(len(odds), dtype=bool)
        marks = self._marks[: len(odds)]
        lowest, highest = np.fmin.reduce(limit), np.fmax.reduce(limit)
        if not highest <= _ALIKE * lowest:
            rows = len(limit)
            np.greater(odds.reshape(rows, -1), limit[:, None], out=marks.reshape(rows, -1))
            return np.flatnonzero(marks)
        flat = np.flatnonzero(np.greater(odds, lowest, out=marks))
        return flat[odds[flat] > limit[flat // self.classes]]

    def likely(self) -> Likely:
        """Return what was found in all the rows, which came in their order."""
        places, found, total = (torch.cat(column) for column in zip(*self._parts, strict=True))
        rows = places // self.classes
        return Likely(places - rows * self.classes, (found / total[rows]).clamp_max_(1), self.mass)


def least(x: torch.Tensor) -> float:
    """Return the least number, NaN where there is one (waits for the device)."""
    return float(x.numpy().min() if x.device.type == "cpu" else x.min())


def largest(x: torch.Tensor) -> float:
    """Return the largest number, NaN where there is one (waits for the device)."""
    return float(x.numpy().max() if x.device.type == "cpu" else x.max())


def widened(x: torch.Tensor) -> torch.Tensor:
    """Return 16-bit floats in float32, which holds them exactly."""
    return (x if x.dtype in (torch.float32, torch.float64) else x.float()).contiguous()
