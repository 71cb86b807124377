"""The Frobenius norm of a symmetric operator, from products with random vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from .estimates import NormEstimate
from .probing import blocks, check_draws, probing, relative_error, standard_error


def frobenius_norm(
    A: Any,
    draws: int = 32,
    *,
    seed: int = 0,
    precision: float | None = None,
    max_draws: int | None = None,
    progress: bool = False,
) -> NormEstimate:
    """Estimate ||A||_F = sqrt(tr A^2), the square root of the mean of ||A v||^2 over random vectors v of signs.

    The mean of squares is Hutchinson's estimate for A^2 (1990, doi:10.1080/03610919008812866) and unbiased. Its root is
    low by about stderr^2 / (2 value), well within the standard error. A spectrum with one large eigenvalue has the
    largest spread: one draw's ||A v||^2 then deviates by up to 1.4 times its mean.

    Args:
        A: symmetric operator with `shape` (n, n), `dtype`, `device` and `A @ V` for V (n, b); or a dense tensor.
        draws: products to spend, at least 2 (default 32: as for the trace; chosen by us); with `precision`, the fewest.
        seed: of the vectors; the same ones as `trace` draws.
        precision: go on until the standard error is at most this share of the norm; None takes exactly `draws`.
        max_draws: with `precision`, the most to take (default 1,000).
        progress: show the products and the relative standard error on stderr.

    Returns:
        `NormEstimate`: the norm, its standard error (delta method: that of the mean square over twice the norm) and
        ||A v||^2 of each draw, in float64. Status "partial" if `precision` was not reached.

    Raises:
        MeasurementError: draws or precision out of range, a product that is not finite.
    """
    most, samples = check_draws(draws, precision, max_draws, of="the norm"), np.zeros(0)
    goal = -math.inf if precision is None else precision
    with probing(A, seed, most=most, title="norm", progress=progress) as vectors:
        for size in blocks(draws, most, vectors.width):
            products = vectors.multiply(vectors.signs(size))
            norms = torch.linalg.vector_norm(products, dim=0, dtype=torch.float64).cpu().numpy()
            samples = np.concatenate([samples, norms**2])
            value, stderr = rooted(samples)
            vectors.show(relative_error(value, stderr))
            if len(samples) >= draws and relative_error(value, stderr) <= goal:
                break
        value, stderr = rooted(samples)
        fields = vectors.outcome(draws, precision, most, relative_error(value, stderr), of="the norm")
    return NormEstimate(
        **fields,
        value=value,
        stderr=stderr,
        samples=samples,
        method="hutchinson",
    )


def rooted(samples: np.ndarray) -> tuple[float, float]:
    """Return (square root of the mean, its standard error by the delta method) of estimates of a square."""
    value = math.sqrt(max(float(samples.mean()), 0.0))
    return value, standard_error(samples) / (2 * value) if value else 0.0
