"""The trace of a symmetric operator, estimated from its products with random vectors, with a standard error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import MeasurementError
from .deflation import DEFLATED, FEWEST, further
from .probing import (
    Probing,
    blocks,
    check_draws,
    inner,
    probing,
    relative_error,
    standard_error,
)
from .reference import pyhessian_trace
from .spectrum import TraceEstimate

METHODS = ("hutchinson", *DEFLATED, "pyhessian")


def trace(
    A: Any,
    method: str = "hutchinson",
    draws: int = 32,
    *,
    seed: int = 0,
    precision: float | None = None,
    max_draws: int | None = None,
    progress: bool = False,
) -> TraceEstimate:
    """Estimate the trace of a symmetric operator from its products with random vectors of signs.

    "hutchinson": the mean of v.Av. Unbiased; the variance of one draw is twice the squared Frobenius norm of A without
    its diagonal, so a diagonal matrix gives the exact trace from any draw. Source: Hutchinson 1990,
    doi:10.1080/03610919008812866 (signs have the smallest variance among vectors of independent entries).
    "hutch++" and "xtrace": the same for what is left of A outside a random sketch of its range, whose trace is taken
    exactly (`deflation.py`). Both unbiased; for a spectrum that decays their error falls as 1 / products instead of
    1 / sqrt(products), and a rank below a third (hutch++) or half (xtrace) of the products gives the exact trace.
    With 30 products for the Hessian of a trained network (226 parameters) the root mean square errors were 10%, 1.1%
    and 0.45% of the trace. For few products, or a flat spectrum, Hutchinson's way is as good and holds no vectors.
    Sources: Meyer, Musco, Musco and Woodruff 2021, doi:10.1137/1.9781611976496.16; Epperly, Tropp and Webber 2024,
    doi:10.1137/23M1548323.

    Args:
        A: symmetric operator with `shape` (n, n), `dtype`, `device` and `A @ V` for V (n, b); or a dense tensor.
        method: "hutchinson", "hutch++" or "xtrace"; "pyhessian" asks the PyHessian package for a second opinion
            (Hessians only, and no precision: `landscape.curvature.reference`).
        draws: products to spend: at least 2, 6 for "hutch++" and 4 for "xtrace" (default 32: Hutchinson's standard
            error is then about 0.18 of one draw's spread; chosen by us). With `precision`, the fewest to take.
        seed: of the vectors, drawn on the CPU, so that all devices see the same; more draws continue the sequence.
        precision: go on until the standard error is at most this share of |trace|; None takes exactly `draws`.
        max_draws: with `precision`, the most to take (default 1,000).
        progress: show the products and the relative standard error on stderr.

    Returns:
        `TraceEstimate`: the mean, its standard error (the sample deviation over the square root of the samples; for
        "xtrace" a jackknife's; NaN never) and the samples, in float64: an estimate from each vector ("xtrace": each
        leaving its own vector out of the sketch; "hutch++": each with the same exact part). Status "partial" if
        `precision` was not reached.

    Raises:
        MeasurementError: unknown method, draws or precision out of range, a product that is not finite.

    "hutch++" holds 4/3 and "xtrace" 2 vectors of A's size for each product, on the device. A precision reached early
    by luck is reported as reached: with few samples the standard error is itself uncertain (by 1 / sqrt(2 (samples -
    1)) of its value): an interval takes Student's t for samples - 1 degrees, not 2. XTrace's standard error is a
    jackknife's, which is too large rather than too small (`deflation.py`). At 95%, 300 runs on each of seven spectra
    with 16, 32 and 64 products, the interval held the truth in 96 to 100% for XTrace, whose standard error was 1.1 to
    3.3 times the true one, and in 88 to 96% for Hutch++.
    """
    if method not in METHODS:
        raise MeasurementError(f"trace method {method!r} is unknown; there is {', '.join(METHODS)}")
    most = check_draws(draws, precision, max_draws, least=FEWEST.get(method, 2))
    if method == "pyhessian":
        if precision is not None:
            raise MeasurementError("method='pyhessian' stops at no precision: leave it out, or use another method")
        return pyhessian_trace(A, draws, 0.0, seed, progress=progress)
    goal = -math.inf if precision is None else precision
    with probing(A, seed, most=most, title="trace", progress=progress) as vectors:
        run = _deflated if method in DEFLATED else _hutchinson
        samples, stderr = run(vectors, method, draws, most, goal)
        value = float(samples.mean())
        fields = vectors.outcome(draws, precision, most, relative_error(value, stderr), of="the trace")
    return TraceEstimate(
        **fields,
        value=value,
        stderr=stderr,
        samples=samples,
        method=method,
    )


def _hutchinson(vectors: Probing, _: str, draws: int, most: int, goal: float) -> tuple[np.ndarray, float]:
    samples, error = np.zeros(0), math.nan
    for size in blocks(draws, most, vectors.width):
        if len(samples) >= draws and _reached(vectors, samples, error) <= goal:
            break
        signs = vectors.signs(size)
        samples = np.concatenate([samples, inner(signs, vectors.multiply(signs))])
        error = standard_error(samples)
        _reached(vectors, samples, error)
    return samples, error


def _deflated(vectors: Probing, method: str, draws: int, most: int, goal: float) -> tuple[np.ndarray, float]:
    state, target = DEFLATED[method](vectors), draws
    while True:
        samples = state.extend(target)
        error = state.standard_error(samples)
        if _reached(vectors, samples, error) <= goal or target >= most:
            return samples, error
        target = further(target, most, FEWEST[method])


def _reached(vectors: Probing, samples: np.ndarray, error: float) -> float:
    """Return the relative standard error, and show it."""
    relative = relative_error(float(samples.mean()), error)
    vectors.show(relative)
    return relative
