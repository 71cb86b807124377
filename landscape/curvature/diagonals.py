"""The diagonal of a symmetric operator, from products with random vectors, by parameter tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import MeasurementError
from ..parameters import trainable
from .deflation import FEWEST, XDiag, further
from .estimates import DiagonalEstimate
from .probing import Probing, blocks, check_draws, probing, relative_error, standard_error

METHODS = ("hutchinson", "xdiag")
#: Least, quarter, middle, three quarters and largest entry of each parameter tensor.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: torch.quantile takes at most 16M numbers; a larger tensor's inner quantiles are those of every k-th entry.
_MOST_SORTED = 1 << 24


def diagonal(
    A: Any,
    method: str = "hutchinson",
    draws: int = 32,
    *,
    seed: int = 0,
    precision: float | None = None,
    max_draws: int | None = None,
    progress: bool = False,
) -> DiagonalEstimate:
    """Estimate the diagonal of a symmetric operator from its products with random vectors of signs.

    "hutchinson": the mean of v * Av. Unbiased for every entry; the variance of one draw is the sum of squares of the
    other entries of A's row, so that a diagonal matrix is exact from any draw. Source: Bekas, Kokiopoulou and Saad
    2007, doi:10.1016/j.apnum.2007.01.003 (for signs their quotient is this mean).
    "xdiag": the same for what is left of A outside a random sketch of its range (`deflation.py`), unbiased as well;
    for a few large eigenvalues much closer, since those are what fills the rows. A rank below half of the products
    gives the exact diagonal. Source: Epperly, Tropp and Webber 2024, doi:10.1137/23M1548323.
    Each draw's sum over a parameter tensor is an estimate of that block's trace, whose standard error follows from
    the draws' own sums.

    Args:
        A: symmetric operator with `shape` (n, n), `dtype`, `device` and `A @ V` for V (n, b); or a dense tensor.
        method: "hutchinson" or "xdiag".
        draws: products to spend, at least 2, and 4 for "xdiag" (default 32: as for the trace; chosen by us); with
            `precision`, the fewest.
        seed: of the vectors; with "hutchinson" the same ones as `trace` draws, so that the diagonal's sum is its value.
        precision: go on until the norm of the entries' standard errors is at most this share of the diagonal's norm;
            None takes exactly `draws`.
        max_draws: with `precision`, the most to take (default 1,000).
        progress: show the products and the relative standard error on stderr.

    Returns:
        `DiagonalEstimate`: sums, their standard errors and quantiles by parameter tensor (one, "", for an operator
        that has no names), and the diagonal and its standard errors (n,) in float64 on A's device beside them. Status
        "partial" if `precision` was not reached.

    Raises:
        MeasurementError: unknown method, draws or precision out of range, a product that is not finite.

    Holds two vectors (n,) in float64 and a block of products; "xdiag" two vectors more for each product. The spread of
    XDiag's estimates is a little small, since they share most of their sketch.
    """
    if method not in METHODS:
        raise MeasurementError(f"diagonal method {method!r} is unknown; there is {', '.join(METHODS)}")
    most = check_draws(draws, precision, max_draws, least=FEWEST.get(method, 2), of="the diagonal")
    goal = -math.inf if precision is None else precision
    names, sizes = _layers(A)
    with probing(A, seed, most=most, title="diagonal", progress=progress) as vectors:
        run = _exchangeable if method == "xdiag" else _hutchinson
        mean = run(vectors, sizes, draws, most, goal)
        relative = mean.relative
        fields = vectors.outcome(draws, precision, most, relative, of="the diagonal")
    sums, stderr = np.stack(mean.sums), mean.stderr
    return DiagonalEstimate(
        **fields,
        sums=sums.mean(axis=0),
        sums_stderr=sums.std(axis=0, ddof=1) / math.sqrt(len(sums)),
        sizes=np.array(sizes),
        quantiles=np.stack([_quantiles(part) for part in mean.value.split(sizes)]),
        noise=np.array([float(part.square().mean().sqrt()) for part in stderr.split(sizes)]),
        relative_error=relative,
        trace=float(sums.sum(axis=1).mean()),
        trace_stderr=standard_error(sums.sum(axis=1)),
        names=names,
        method=method,
        diagonal=mean.value,
        stderr=stderr,
    )


class _Mean:
    """The mean (n,) of estimates as they come, the standard errors of its entries, and each estimate's layer sums."""

    def __init__(self, n: int, sizes: list[int], device: torch.device) -> None:
        self.value = torch.zeros(n, dtype=torch.float64, device=device)
        self.sums: list[np.ndarray] = []
        self._squares, self._sizes = torch.zeros_like(self.value), sizes

    def add(self, entries: Tensor) -> None:
        """Take one estimate (n,) in."""
        # Welford's update: the sum of squares itself would lose the digits of a small spread.
        entries = entries.double()
        self.sums.append(torch.stack([part.sum() for part in entries.split(self._sizes)]).cpu().numpy())
        away = entries - self.value
        self.value += away / len(self.sums)
        self._squares += away * (entries - self.value)

    @property
    def stderr(self) -> Tensor:
        count = len(self.sums)
        return (self._squares / (count * (count - 1))).clamp(min=0).sqrt()

    @property
    def relative(self) -> float:
        """The norm of the standard errors over that of the mean."""
        noise, size = float(self.stderr.norm()), float(self.value.norm())
        return relative_error(size, noise)


def _hutchinson(vectors: Probing, sizes: list[int], draws: int, most: int, goal: float) -> _Mean:
    mean = _Mean(vectors.n, sizes, vectors.device)
    for size in blocks(draws, most, vectors.width):
        signs = vectors.signs(size)
        for entries in (signs * vectors.multiply(signs)).T:
            mean.add(entries)
        if len(mean.sums) >= draws:
            vectors.show(mean.relative)
            if mean.relative <= goal:
                break
    return mean


def _exchangeable(vectors: Probing, sizes: list[int], draws: int, most: int, goal: float) -> _Mean:
    state, target = XDiag(vectors), draws
    while True:
        mean = _Mean(vectors.n, sizes, vectors.device)
        for entries in state.extend(target):
            mean.add(entries)
        vectors.show(mean.relative)
        if mean.relative <= goal or target >= most:
            return mean
        target = further(target, most, FEWEST["xdiag"])


def _layers(A: Any) -> tuple[tuple[str, ...], list[int]]:
    """Return the names and sizes of the parameter tensors that an operator acts on; one without a name if it has none.

    An operator over parameters has `names` and the objective whose model they belong to.
    """
    names, n = tuple(getattr(A, "names", None) or ()), int(A.shape[0]) if hasattr(A, "shape") else 0
    model = getattr(getattr(A, "objective", None), "model", None)
    if model is not None and not isinstance(A, Tensor):
        every = trainable(model)
        sizes = [every[name].numel() for name in names if name in every]
        if sum(sizes) == n:
            return names, sizes
    return ("",), [n]


def _quantiles(part: Tensor) -> np.ndarray:
    inner = part[:: -(-part.numel() // _MOST_SORTED)]
    at = torch.tensor(QUANTILES[1:-1], dtype=part.dtype, device=part.device)
    found = torch.cat([part.min()[None], torch.quantile(inner, at), part.max()[None]])
    return found.cpu().numpy()
