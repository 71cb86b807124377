"""Eigenpairs of a symmetric operator by Lanczos on the operator's own device, each with its residual."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..batch import as_tensor
from ..errors import MeasurementError
from ..results import Check, Cost
from .krylov import Ritz, Subspace
from .operands import account_of, dimension_of, origin_of, symmetry_check
from .reference import arpack_eigenpairs, pyhessian_eigenpairs
from .search import Search, Stop, Wanted, Which
from .spectrum import Eigenpairs

Method = Literal["lanczos", "arpack", "pyhessian"]

#: Default budget of the basis in bytes, with SPARE vectors beyond the wanted ones at least; FEWEST is what a memory
#: set by hand must leave (all chosen by us).
DEFAULT_MEMORY, SPARE, FEWEST = 1 << 30, 20, 4
#: Longest basis: beyond it the host's dense eigenproblem would cost more than a restart does (chosen by us).
LONGEST = 1000
#: How many times as long as the given part the random part of a warm start is (chosen by us). Of 100 block matrices in
#: which an eigenvalue of another block has overtaken the k-th (n = 800, tol 1e-2, no audit; k = 1, 2, 5), 0.1
#: missed it in 100, 100 and 76, with 10 in 8, 11 and 36, a random start in 2, 4 and 35 (10, audited: 1, 0 and 0). Along
#: a training of an MLP these took 5.2, 5.8 and 8.1 products for k = 1, 7.3, 8.5 and 10.6 for 2, 11.8, 13.4 and 13.8 for
#: 5.
RANDOM_PART = 10.0


def eigenpairs(
    A: Any,
    k: int = 10,
    which: Which = "largest",
    tol: float = 1e-3,
    start: Any = None,
    seed: int = 0,
    *,
    random_part: float = RANDOM_PART,
    stop: Stop = "residual",
    k_smallest: int | None = None,
    max_products: int | None = None,
    memory: int | None = None,
    verify: bool = True,
    method: Method = "lanczos",
    progress: bool = False,
) -> Eigenpairs:
    """Compute eigenpairs at one or both ends of a symmetric operator, with residuals and a check for missed ones.

    Lanczos with full reorthogonalization; a restart keeps the Ritz vectors when the basis outgrows its memory; a
    breakdown (an invariant subspace was found) goes on with a fresh random vector. A pair has converged when its
    residual ||A v - lambda v|| <= tol * |lambda_1|, lambda_1 the eigenvalue of largest magnitude seen. Then each end
    asked for is audited: the run goes on until, with 99% confidence, no eigenvalue beyond lambda_k + 2 tol |lambda_1|
    is missing, repeated ones included; or until that has cost as many products as the run before it (at least 20). For
    k = 1 the run's own random start proves it (`chain.py`), at no cost or a product or two; beyond that, where a copy
    that the run can't see would change the values, a fresh random vector does (`audit.py`). The checks "multiplicity"
    (for the largest) and "multiplicity_smallest" say how it went, and `bounds` how far each eigenvalue may be from its
    value. An operator that is not symmetric is found out, and not audited.

    Args:
        A: symmetric operator with `shape` (n, n), `dtype` (float32 or float64), `device` and `A @ v` for v (n,), for
            instance `Hessian(task)` or a dense tensor. It sets the dtype and the device of all vectors.
        k: number of eigenpairs (default 10: chosen by us).
        which: "largest" or "smallest" algebraically, "both" (k largest and `k_smallest` smallest), or "magnitude"
            (PyHessian's order). The pair most wanted comes first.
        tol: residual allowed, as a share of |lambda_1|. An isolated eigenvalue's own error is about tol^2 (the
            default 1e-3 is PyHessian's, whose tolerance is on the change of the value).
        start: where to start: a vector (n,), taken as it is, or a subspace (n, j) such as earlier eigenvectors, of
            which the sum is taken plus a random vector. None: random.
        random_part: length of that random vector, of a subspace's sum 1 (default 10, see above). Without the audit it
            decides whether an eigenvalue that has overtaken the given ones is seen: with 10 about as surely as from a
            random start, which is not always; with 0.1, which saves more products, hardly ever.
        stop: "residual" as above; "value": a pair has converged when its eigenvalue is proven to lie within
            tol |lambda_1| of the value (estimated, where the audit is left out), and nothing beyond lambda_k + tol
            |lambda_1| may be missing. A value's error is about its residual's square, so that this needs fewer products
            without the audit (20 for 22 on a trained MLP), and as many with it; residuals and vectors are cruder.
        seed: of every random vector; they are drawn on the CPU, so that all devices see the same.
        k_smallest: number of smallest eigenpairs with which="both"; k if not given.
        max_products: products to spend at most, audit included (default 1,000 + 50 for each pair: chosen by us).
        memory: bytes for the basis (default 1 GiB, or 20 vectors more than the pairs wanted, if that is more).
        verify: audit the ends; without it the residuals alone are reported, and the check says so.
        method: "lanczos" is this one; "arpack" and "pyhessian" ask scipy's ARPACK or the PyHessian package for a second
            opinion, and return what they find in the same form, with true residuals; see `reference.py`. PyHessian
            finds eigenvalues by magnitude: give which="magnitude". They take no start, memory or max_products.
        progress: show products, the worst residual and about how many products are left, on stderr.

    Returns:
        `Eigenpairs`: values, residuals and convergence as float64 arrays, vectors (n, k) on A's device, of unit norm
        and with the largest component positive. Status "partial" if a pair has not converged.

    Raises:
        MeasurementError: k or tol out of range, a start that does not fit, a product that is not finite.
        TypeError: A is not an operator of real floating-point numbers.

    Costs one product a step (13 to 20 for the 5 largest of a trained network's Hessian, 3 to 8 more for the audit, for
    k = 1 about 10 in all), and
    4 n j operations for the orthogonalization at step j. Sources: Parlett, The Symmetric Eigenvalue Problem, 1998,
    doi:10.1137/1.9781611971163, chapter 13; Wu and Simon 2000, doi:10.1137/S0895479898334605, for the restart.
    """
    if method != "lanczos":
        given = {"start": start, "memory": memory, "max_products": max_products}
        given["stop"] = None if stop == "residual" else stop
        return _second_opinion(A, k, which, tol, seed, k_smallest, method, progress, given)
    began = time.perf_counter()
    n, dtype, device = dimension_of(A)
    wanted = Wanted(which, k, k_smallest)
    _check_settings(wanted, n, tol, dtype, max_products, stop)
    if not (random_part >= 0 and math.isfinite(random_part)):
        raise MeasurementError(f"random_part={random_part} must be a length from 0 on, for instance {RANDOM_PART:g}")
    rows = _rows(memory, wanted, n, dtype)
    limit = max_products if max_products is not None else 1000 + 50 * wanted.count
    passes = _passes(A)
    bar = tqdm(disable=not progress, file=sys.stderr, leave=False, desc="eigenpairs", unit="product")
    # An operator that prepares a model for each product prepares it once for all of them.
    with A if hasattr(A, "__enter__") else nullcontext(), bar:
        space = Subspace(_multiplier(A, n, dtype, bar), n, dtype, device, seed, getattr(A, "locate", None))
        space.begin(*_start_vector(start, space, random_part))
        search = Search(space, wanted, tol, limit, rows, verify, bar, stop)
        search.solve()
        strategy, remarks = account_of(A)  # before the operator lets go of its graphs
    operator, split = origin_of(A)
    ritz = space.ritz()
    first, second = (*wanted.pick(ritz.values), np.zeros(0, int))[:2]
    bounds, bounds_second = (*search.bounds(ritz), np.zeros(0))[:2]
    pairs = np.concatenate([first, second])
    errors = ritz.residuals[pairs] if stop == "residual" else search.errors(ritz, pairs)
    close = errors <= tol * ritz.scale
    complete = bool(close.all())
    others = np.delete(ritz.values, [*first, *second]) if verify else np.zeros(0)
    checks = (
        _convergence(errors / (ritz.scale or 1.0), stop, tol, space, limit),
        symmetry_check(space.asymmetry, dtype, tol, "the eigenvalues are those of its symmetric part"),
        *search.checks(),
    )
    return Eigenpairs(
        status="complete" if complete else "partial",
        cost=Cost(space.products, _passes(A) - passes, time.perf_counter() - began),
        settings={
            "k": int(k),
            "k_smallest": int(wanted.k_smallest),
            "tol": tol,
            "stop": stop,
            "seed": seed,
            "max_products": limit,
            "basis": rows,
            "verify": verify,
            "start": "random" if start is None else f"given, {tuple(as_tensor(start).shape)}",
            "random_part": random_part if start is not None and as_tensor(start).ndim == 2 else None,
            **strategy,
        },
        checks=checks,
        warnings=tuple(c.message for c in checks if c.level == "fail" or (c.level == "warn" and verify)),
        notes=(*remarks, *_unresolved(ritz, pairs, np.append(bounds, bounds_second))),
        values=ritz.values[first],
        residuals=ritz.residuals[first],
        converged=close[: len(first)],
        bounds=bounds,
        smallest=ritz.values[second],
        smallest_residuals=ritz.residuals[second],
        smallest_converged=close[len(first) :],
        smallest_bounds=bounds_second,
        complement=float(others.max()) if len(others) else math.nan,
        complement_smallest=float(others.min()) if len(others) else math.nan,
        products=space.products,
        parameters=n,
        operator=operator,
        which=which,
        stop=stop,
        split=split,
        vectors=_vectors(space, ritz, first),
        smallest_vectors=_vectors(space, ritz, second),
    )


def _second_opinion(
    A: Any,
    k: int,
    which: Which,
    tol: float,
    seed: int,
    k_smallest: int | None,
    method: Method,
    progress: bool,
    unusable: dict[str, Any],
) -> Eigenpairs:
    if method not in get_args(Method):
        raise MeasurementError(f"method={method!r} is unknown; choose from {', '.join(get_args(Method))}")
    extra = next((name for name, value in unusable.items() if value is not None), None)
    if extra is not None:
        raise MeasurementError(f"method={method!r} takes no {extra}: leave it out, or use method='lanczos'")
    if method == "arpack":
        return arpack_eigenpairs(A, k, which, tol, seed, k_smallest=k_smallest, progress=progress)
    if which != "magnitude":
        raise MeasurementError(f"PyHessian finds eigenvalues by magnitude, not which={which!r}: give which='magnitude'")
    return pyhessian_eigenpairs(A, k, tol, seed, progress=progress)


def _convergence(errors: np.ndarray, stop: Stop, tol: float, space: Subspace, limit: int) -> Check:
    """Judge the pairs' errors, as shares of |lambda_1|: residuals, or the values' own."""
    worst, late = float(errors.max()), int((errors > tol).sum())
    if late:
        advice = "the products are too inaccurate for this tol: raise it"
        if space.asymmetry > tol:
            advice = "the operator is not symmetric, and no more products mend that"
        elif space.products >= limit:
            advice = "raise max_products"
        text = f"{late} of {len(errors)} eigenpairs have not converged after {space.products} products: {advice}"
        return Check("convergence", "warn", text, worst, tol)
    what = {"residual": "residual", "value": "eigenvalue's own error"}[stop]
    return Check("convergence", "pass", f"every {what} is within tol", worst, tol)


def _unresolved(ritz: Ritz, pairs: np.ndarray, bounds: np.ndarray) -> tuple[str, ...]:
    """Name the values that are smaller than their own error: tol is relative to |lambda_1|, and they may be zero."""
    if ritz.scale == 0:
        return ("every product is 0, and so are all eigenvalues: the operator is the zero matrix",)
    sizes, errors = np.abs(ritz.values[pairs]), np.where(np.isfinite(bounds), bounds, ritz.residuals[pairs])
    small = sizes <= errors
    if not small.any():
        return ()
    which = "all eigenvalues" if small.all() else f"{small.sum()} of {len(small)} eigenvalues"
    text = f"{which}, up to {sizes[small].max():.3g} in magnitude, are no larger than their own error"
    if (errors[small] <= 2 * ritz.rounding).all():
        return (f"{text}: they are 0 to the rounding of the products",)
    return (f"{text}: tol is a share of |lambda_1|; lower it to resolve them",)


def _vectors(space: Subspace, ritz: Ritz, chosen: np.ndarray) -> Tensor:
    found = space.basis.combine(space.tensor(ritz.weights[:, chosen]))
    largest = found.abs().argmax(dim=0, keepdim=True)
    return found * torch.where(found.gather(0, largest) < 0, -1, 1)


def _passes(A: Any) -> float:
    return float(getattr(A, "passes", 0.0))


def _multiplier(A: Any, n: int, dtype: torch.dtype, bar: Any) -> Callable[[Tensor], Tensor]:
    def multiply(vector: Tensor) -> Tensor:
        product = (A @ vector).detach()
        if product.shape != (n,) or product.dtype != dtype or product.device != vector.device:
            raise MeasurementError(
                f"expected A @ v of shape ({n},) in {dtype} on {vector.device}, got {tuple(product.shape)} in "
                f"{product.dtype} on {product.device}; an operator's products must match its shape, dtype and device"
            )
        bar.update()
        return product

    return multiply


def _check_settings(
    wanted: Wanted, n: int, tol: float, dtype: torch.dtype, max_products: int | None, stop: Stop
) -> None:
    if wanted.which not in get_args(Which):
        raise MeasurementError(f"which={wanted.which!r} is unknown; choose from {', '.join(get_args(Which))}")
    if stop not in get_args(Stop):
        raise MeasurementError(f"stop={stop!r} is unknown; choose from {', '.join(get_args(Stop))}")
    if wanted.given is not None and wanted.which != "both":
        raise MeasurementError(f"k_smallest={wanted.given} needs which='both', got which={wanted.which!r}")
    for name, k in (("k", wanted.k), ("k_smallest", wanted.k_smallest)):
        if not isinstance(k, Integral):
            raise TypeError(f"{name} must be an integer, got {type(k).__name__}")
        if k < 1 and not (name == "k_smallest" and wanted.given is None):
            raise MeasurementError(f"{name}={k} is no number of eigenpairs; ask for at least 1")
        if k > n:
            raise MeasurementError(
                f"{name}={k} exceeds the {n} parameters selected; lower {name} or select more parameters."
            )
    finest = 10 * torch.finfo(dtype).eps
    if not tol > 0 or not math.isfinite(tol):
        raise MeasurementError(f"tol={tol} must be a positive share of |lambda_1|, for instance 1e-3")
    if tol < finest:
        raise MeasurementError(
            f"tol={tol:g} is finer than {dtype} resolves (about {finest:.1g} of |lambda_1|); raise tol"
            + (" or use float64" if dtype == torch.float32 else "")
        )
    if max_products is not None and max_products < min(n, wanted.count):
        raise MeasurementError(
            f"max_products={max_products} cannot give {wanted.count} pairs; each needs a product at least"
        )


def _rows(memory: int | None, wanted: Wanted, n: int, dtype: torch.dtype) -> int:
    """Return how many basis vectors the memory holds."""
    row = n * dtype.itemsize
    if memory is None:
        return min(n, LONGEST, max(DEFAULT_MEMORY // row, wanted.count + SPARE))
    least = min(n, wanted.count + FEWEST)
    if memory // row < least:
        raise MeasurementError(
            f"memory={memory} holds {memory // row} vectors of {n} numbers; {wanted.count} pairs need {least}, "
            f"{least * row} bytes: raise memory or lower k"
        )
    return min(n, LONGEST, memory // row)


def _start_vector(start: Any, space: Subspace, random_part: float) -> tuple[Tensor, float]:
    """Return the vector (n,) to begin with, and which share of its unit vector is uniformly random (see `Chain`)."""
    if start is None:
        return space.random(), 1.0
    given = as_tensor(start).detach()
    if given.ndim not in (1, 2) or given.shape[0] != space.n or 0 in given.shape:
        raise MeasurementError(
            f"start has shape {tuple(given.shape)}; expected a vector ({space.n},) or a subspace ({space.n}, j)"
        )
    given = given.to(space.device, space.dtype)
    if not torch.isfinite(given).all():
        raise MeasurementError("start is not finite; pass a finite vector or leave it out")
    sizes = torch.linalg.vector_norm(given, dim=0)
    if (sizes == 0).any():
        raise MeasurementError("start is zero, or has a zero column; pass a vector with a direction or leave it out")
    if given.ndim == 1:
        return given / sizes, 0.0
    noise = space.random()
    total = (given / sizes).sum(dim=1) / math.sqrt(given.shape[1])
    mixed = total + random_part / torch.linalg.vector_norm(noise) * noise
    return mixed, random_part / float(torch.linalg.vector_norm(mixed))
