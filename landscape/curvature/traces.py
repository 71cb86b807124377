"""The trace of a symmetric operator, estimated from its products with random vectors, with a standard error."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import MeasurementError
from ..results import Check, Cost
from .lanczos import dimension_of, origin_of
from .spectrum import TraceEstimate

METHODS = ("hutchinson",)
#: Draws that `precision` may take at most, if not said otherwise (chosen by us).
MOST_DRAWS = 1000
#: Vectors multiplied at once: an operator shares its forward pass among them (chosen by us), within this many bytes.
BLOCK, _BLOCK_BYTES = 8, 1 << 28


def trace(
    A: Any,
    method: str = "hutchinson",
    draws: int = 32,
    seed: int = 0,
    precision: float | None = None,
    *,
    max_draws: int | None = None,
    progress: bool = False,
) -> TraceEstimate:
    """Estimate the trace of a symmetric operator: the mean of v.Av over random vectors v of signs.

    Unbiased; the variance of one draw is twice the squared Frobenius norm of A without its diagonal, so a diagonal
    matrix gives the exact trace from any draw. Source: Hutchinson 1990, doi:10.1080/03610919008812866 (signs have the
    smallest variance among vectors of independent entries).

    Args:
        A: symmetric operator with `shape` (n, n), `dtype`, `device` and `A @ V` for V (n, b); or a dense tensor.
        method: "hutchinson".
        draws: number of random vectors, at least 2 (default 32: the standard error is then about 0.18 of one draw's
            spread; chosen by us). With `precision`, the fewest to take.
        seed: of the vectors, drawn on the CPU, so that all devices see the same; more draws continue the sequence.
        precision: go on until the standard error is at most this share of |trace|; None takes exactly `draws`.
        max_draws: with `precision`, the most to take (default 1,000).
        progress: show the draws and the relative standard error on stderr.

    Returns:
        `TraceEstimate`: the mean, its standard error (sample deviation over the square root of the draws, NaN never)
        and each draw's estimate, in float64. Status "partial" if `precision` was not reached.

    Raises:
        MeasurementError: unknown method, draws or precision out of range, a product that is not finite.

    Costs one product for each draw. A precision reached early by luck is reported as reached: with few draws the
    standard error is itself uncertain (by 1 / sqrt(2 (draws - 1)) of its value).
    """
    began = time.perf_counter()
    n, dtype, device = dimension_of(A)
    most = _checked(method, draws, precision, max_draws)
    generator = torch.Generator().manual_seed(seed)
    passes, samples = float(getattr(A, "passes", 0.0)), np.zeros(0)
    bar = tqdm(total=most, disable=not progress, file=sys.stderr, leave=False, desc="trace", unit="product")
    with A if hasattr(A, "__enter__") else nullcontext(), bar:
        for size in _blocks(draws, most, n * dtype.itemsize):
            if len(samples) >= draws and _error(samples) <= (precision or math.inf) * abs(samples.mean()):
                break
            # One vector after another, so that the sequence does not depend on the size of the blocks.
            signs = [torch.randint(0, 2, (n,), generator=generator, dtype=torch.int8) for _ in range(size)]
            block = (2 * torch.stack(signs, dim=1) - 1).to(device, dtype)
            products = (A @ block).detach()
            estimates = (block * products).sum(dim=0, dtype=torch.float64).cpu().numpy()
            if not np.isfinite(estimates).all():
                first = len(samples) + int(np.argmin(np.isfinite(estimates))) + 1
                raise MeasurementError(
                    f"product {first} is not finite: the loss or its derivatives overflow here; look at the loss at "
                    "these weights, or use float64"
                )
            samples = np.concatenate([samples, estimates])
            bar.update(size)
            if len(samples) > 1 and samples.mean() != 0:
                bar.set_postfix_str(f"relative error {_error(samples) / abs(samples.mean()):.1e}", refresh=False)
    value, stderr = float(samples.mean()), _error(samples)
    operator, split = origin_of(A)
    checks = () if precision is None else (_precision_check(value, stderr, precision, len(samples)),)
    late = tuple(c.message for c in checks if c.level == "warn")
    return TraceEstimate(
        status="partial" if late else "complete",
        cost=Cost(len(samples), float(getattr(A, "passes", 0.0)) - passes, time.perf_counter() - began),
        settings={
            "draws": draws,
            "seed": seed,
            "precision": precision,
            "max_draws": most,
            "operator": operator,
        },
        checks=checks,
        warnings=late,
        value=value,
        stderr=stderr,
        samples=samples,
        products=len(samples),
        method=method,
        split=split,
    )


def _checked(method: str, draws: int, precision: float | None, max_draws: int | None) -> int:
    """Return the most draws to take, after looking at every setting."""
    if method not in METHODS:
        raise MeasurementError(f"trace method {method!r} is unknown; there is {', '.join(METHODS)}")
    if draws < 2:
        raise MeasurementError(f"draws={draws} has no standard error; take at least 2")
    if precision is None:
        if max_draws is not None:
            raise MeasurementError(f"max_draws={max_draws} needs a precision to stop at; pass precision= too")
        return draws
    if not (precision > 0 and math.isfinite(precision)):
        raise MeasurementError(f"precision={precision} must be a positive share of the trace, for instance 0.05")
    most = max(MOST_DRAWS, draws) if max_draws is None else max_draws
    if most < draws:
        raise MeasurementError(f"max_draws={most} is below draws={draws}; raise one or lower the other")
    return most


def _blocks(draws: int, most: int, row: int) -> Iterator[int]:
    """Yield sizes that end exactly at `draws` and at `most`."""
    size, done = max(1, min(BLOCK, _BLOCK_BYTES // row)), 0
    for end in (draws, most):
        while done < end:
            step = min(size, end - done)
            done += step
            yield step


def _error(samples: np.ndarray) -> float:
    return float(samples.std(ddof=1) / math.sqrt(len(samples)))


def _precision_check(value: float, stderr: float, precision: float, draws: int) -> Check:
    relative = stderr / abs(value) if value else (math.inf if stderr else 0.0)
    if relative <= precision:
        return Check("precision", "pass", f"standard error {relative:.2g} of the trace", relative, precision)
    text = f"the standard error is {relative:.2g} of the trace after {draws} draws, not {precision:g}: raise max_draws"
    return Check("precision", "warn", text, relative, precision)
