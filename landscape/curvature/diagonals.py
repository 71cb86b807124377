"""The diagonal of a symmetric operator, from products with random vectors, by parameter tensor."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..parameters import trainable
from .estimates import DiagonalEstimate
from .operands import origin_of
from .probing import blocks, check_draws, precision_check, probing, standard_error

#: Least, quarter, middle, three quarters and largest entry of each parameter tensor.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
#: torch.quantile takes at most 16M numbers; a larger tensor's inner quantiles are those of every k-th entry.
_MOST_SORTED = 1 << 24


def diagonal(
    A: Any,
    draws: int = 32,
    seed: int = 0,
    precision: float | None = None,
    *,
    max_draws: int | None = None,
    progress: bool = False,
) -> DiagonalEstimate:
    """Estimate the diagonal of a symmetric operator: the mean of v * Av over random vectors v of signs.

    Unbiased for every entry; the variance of one draw is the sum of squares of the other entries of A's row, so that a
    diagonal matrix is exact from any draw. Source: Bekas, Kokiopoulou and Saad 2007, doi:10.1016/j.apnum.2007.01.003
    (for signs their quotient is this mean). Each draw's sum over a parameter tensor is an estimate of that block's
    trace, whose standard error follows from the draws' own sums.

    Args:
        A: symmetric operator with `shape` (n, n), `dtype`, `device` and `A @ V` for V (n, b); or a dense tensor.
        draws: products to spend, at least 2 (default 32: as for the trace; chosen by us); with `precision`, the fewest.
        seed: of the vectors; the same ones as `trace` draws, so that the diagonal's sum is that trace.
        precision: go on until the norm of the entries' standard errors is at most this share of the diagonal's norm;
            None takes exactly `draws`.
        max_draws: with `precision`, the most to take (default 1,000).
        progress: show the products and the relative standard error on stderr.

    Returns:
        `DiagonalEstimate`: sums, their standard errors and quantiles by parameter tensor (one, "", for an operator
        that has no names), and the diagonal and its standard errors (n,) in float64 on A's device beside them. Status
        "partial" if `precision` was not reached.

    Raises:
        MeasurementError: draws or precision out of range, a product that is not finite.

    Holds two vectors (n,) in float64 and a block of products.
    """
    most = check_draws(draws, precision, max_draws, of="the diagonal")
    goal = -math.inf if precision is None else precision
    names, sizes = _layers(A)
    with probing(A, seed, most=most, title="diagonal", progress=progress) as vectors:
        mean = torch.zeros(vectors.n, dtype=torch.float64, device=vectors.device)
        squares, sums, count = torch.zeros_like(mean), np.zeros((0, len(sizes))), 0
        relative = math.inf
        for size in blocks(draws, most, vectors.width):
            signs = vectors.signs(size)
            for entries in (signs * vectors.multiply(signs)).T:
                # Welford's update: the sum of squares itself would lose the digits of a small spread.
                count += 1
                away = entries.double() - mean
                mean += away / count
                squares += away * (entries - mean)
                sums = np.vstack([sums, [float(part.sum(dtype=torch.float64)) for part in entries.split(sizes)]])
            relative = _relative(mean, squares, count)
            vectors.show(relative)
            if count >= draws and relative <= goal:
                break
        cost = vectors.cost()
    stderr = (squares / (count * (count - 1))).clamp(min=0).sqrt()
    checks = ()
    if precision is not None:
        checks = (precision_check(relative, precision, cost.products, of="the diagonal"),)
    late = tuple(c.message for c in checks if c.level == "warn")
    operator, split = origin_of(A)
    return DiagonalEstimate(
        status="partial" if late else "complete",
        cost=cost,
        settings={"draws": draws, "seed": seed, "precision": precision, "max_draws": most, "operator": operator},
        checks=checks,
        warnings=late,
        sums=sums.mean(axis=0),
        sums_stderr=sums.std(axis=0, ddof=1) / math.sqrt(count),
        sizes=np.array(sizes),
        quantiles=np.stack([_quantiles(part) for part in mean.split(sizes)]),
        noise=np.array([float(part.square().mean().sqrt()) for part in stderr.split(sizes)]),
        relative_error=relative,
        trace=float(sums.sum(axis=1).mean()),
        trace_stderr=standard_error(sums.sum(axis=1)),
        products=cost.products,
        names=names,
        split=split,
        diagonal=mean,
        stderr=stderr,
    )


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


def _relative(mean: Tensor, squares: Tensor, count: int) -> float:
    if count < 2:
        return math.inf
    noise, size = math.sqrt(max(float(squares.sum()), 0.0) / (count * (count - 1))), float(mean.norm())
    return noise / size if size else (math.inf if noise else 0.0)


def _quantiles(part: Tensor) -> np.ndarray:
    inner = part[:: -(-part.numel() // _MOST_SORTED)]
    at = torch.tensor(QUANTILES[1:-1], dtype=part.dtype, device=part.device)
    found = torch.cat([part.min()[None], torch.quantile(inner, at), part.max()[None]])
    return found.cpu().numpy()
