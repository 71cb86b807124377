"""Second opinions on a spectrum: the published PyHessian package, and ARPACK through scipy, in our result's form."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..errors import MeasurementError
from ..objective import Objective
from ..parameters import flatten, unflatten
from ..results import Check, Cost
from ..seeding import seeded
from ..tasks import Task
from .operands import account_of, dimension_of, not_finite, origin_of
from .operators import Hessian
from .search import Wanted, Which
from .spectrum import Eigenpairs, TraceEstimate

#: Restarts of ARPACK, each of up to `basis` products, before it gives up (chosen by us; scipy's own is 10 n).
MOST_RESTARTS = 100


def pyhessian_eigenpairs(
    A: Hessian | Task | Objective,
    k: int = 10,
    tol: float = 1e-3,
    seed: int = 0,
    *,
    max_iterations: int = 100,
    progress: bool = False,
) -> Eigenpairs:
    """Return the k eigenpairs of largest magnitude as PyHessian's `eigenvalues` gives them, with true residuals.

    Power iteration with deflation (Yao et al. 2020, "PyHessian", arXiv:1912.07145): it stops when two successive
    Rayleigh quotients differ by less than `tol` relative to the first, which bounds no error. So each vector is
    multiplied once more by our own operator, and `converged` has the meaning that it has in `eigenpairs`: a residual
    of at most tol * |lambda_1|. Measured errors of the values are around 1e-3 at the default tol.

    PyHessian wants loss(model(x), y), one device and eval mode; here it is handed a stand-in whose output is the
    task's own mean loss of a batch, and whose batches count by their means' own denominators (the same as PyHessian's
    numbers of samples where the loss is a plain mean). Any Task works, in its own mode and precision, with frozen,
    tied, selected and unused parameters, and is left as it was.

    Args:
        A: a Hessian, or what one is made of.
        k, tol, seed: as in `eigenpairs`; `tol` and `max_iterations` (100) are PyHessian's own defaults.
        max_iterations: of the power iteration for each eigenvalue.
        progress: show the products on stderr.

    Costs up to `max_iterations` products for each pair, 1 more for its residual and 1 that compares the two products.
    Raises MeasurementError for an operator that is not a Hessian, k out of range, or numbers that are not finite.
    """
    began = time.perf_counter()
    A = _hessian(A)
    _check_k(k, A.shape[0])
    with _pyhessian(A, seed, progress) as run:
        agreement = run.compare_products()
        values, vectors = run.package.eigenvalues(maxIter=max_iterations, tol=tol, top_n=k)
        order = np.argsort(-np.abs(np.array(values, dtype=float)), kind="stable")
        found = torch.stack([flatten(vectors[i]).detach() for i in order], dim=1)
        return _eigenpairs(
            A,
            [(np.array(values, dtype=float)[order], found)],
            tol,
            which="magnitude",
            products=run.products,
            passes=run.passes,
            began=began,
            settings={"method": "pyhessian", "k": k, "tol": tol, "seed": seed, "max_iterations": max_iterations},
            checks=(
                agreement,
                Check("multiplicity", "warn", "not audited: PyHessian does not look for eigenvalues that it missed"),
            ),
        )


def arpack_eigenpairs(
    A: Any,
    k: int = 10,
    which: Which = "largest",
    tol: float = 1e-3,
    seed: int = 0,
    *,
    k_smallest: int | None = None,
    max_restarts: int = MOST_RESTARTS,
    progress: bool = False,
) -> Eigenpairs:
    """Return eigenpairs as ARPACK finds them (scipy.sparse.linalg.eigsh), with residuals by one more product each.

    Implicitly restarted Lanczos (Lehoucq, Sorensen and Yang 1998, doi:10.1137/1.9780898719628), on the CPU: each
    product copies its vector to the host and back. ARPACK stops when every residual is below tol * |its eigenvalue|,
    a stricter rule than `eigenpairs` has for the small ones; it runs once for each end, and a single Krylov space may
    miss copies of a repeated eigenvalue.

    Args: as in `eigenpairs`; `A` is any symmetric operator or dense tensor. `max_restarts`: restarts before it gives
    up (100, chosen by us; scipy allows 10 n).
    Raises MeasurementError where k >= n (ARPACK finds at most n - 1 pairs), or where nothing converged.
    """
    from scipy.sparse import linalg

    began = time.perf_counter()
    n, dtype, device = dimension_of(A)
    wanted = Wanted(which, k, k_smallest if which == "both" else None)
    for count in (wanted.k, wanted.k_smallest):
        _check_k(max(count, 1), n)
        if count >= n:
            raise MeasurementError(f"ARPACK finds at most n - 1 = {n - 1} eigenpairs, {count} were asked for; lower k")
    kind = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    start = (
        torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu")
        .numpy()
        .astype(kind)
    )
    passes = float(getattr(A, "passes", 0.0))
    products, late, found = 0, False, []
    bar = tqdm(disable=not progress, file=sys.stderr, leave=False, desc="ARPACK", unit="product")

    def multiply(x: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        bar.update()
        y = (A @ torch.as_tensor(x, dtype=dtype, device="cpu").reshape(n).to(device)).detach()
        if not bool(torch.isfinite(y).all()):
            raise not_finite(y, products, getattr(A, "locate", None))
        return y.cpu().numpy()

    # Their signatures are lost on type checkers: __new__ picks a subclass, and tol is taken for an int.
    make: Any = linalg.LinearOperator
    eigsh: Any = linalg.eigsh
    operator = make((n, n), matvec=multiply, dtype=kind)
    ends = {"largest": [("LA", -1)], "smallest": [("SA", 1)], "both": [("LA", -1), ("SA", 1)], "magnitude": [("LM", 0)]}
    with A if hasattr(A, "__enter__") else nullcontext(), bar:
        for (end, sign), count in zip(ends[which], (wanted.k, wanted.k_smallest), strict=False):
            try:
                values, vectors = eigsh(operator, k=count, which=end, tol=tol, v0=start, maxiter=max_restarts)
            except linalg.ArpackNoConvergence as error:
                values, vectors, late = error.eigenvalues, error.eigenvectors, True
                if not len(values):
                    raise MeasurementError(
                        f"ARPACK converged to none of {count} eigenpairs in {max_restarts} restarts ({products} "
                        "products); raise tol or max_restarts"
                    ) from None
            except linalg.ArpackError as error:  # no search at all: an operator that is 0, for one
                text = str(error).rstrip(".")
                raise MeasurementError(f"ARPACK fails on this operator ({text}): use method='lanczos'") from None
            order = np.argsort(sign * values if sign else -np.abs(values), kind="stable")
            found.append((values[order], torch.from_numpy(np.ascontiguousarray(vectors[:, order])).to(device, dtype)))
        checks = [Check("multiplicity", "warn", "not audited: ARPACK may miss copies of a repeated eigenvalue")]
        if late:
            got = sum(len(values) for values, _ in found)
            text = f"ARPACK converged to {got} of {wanted.count} eigenpairs in {max_restarts} restarts"
            checks.append(Check("restarts", "fail", text))
        return _eigenpairs(
            A,
            found,
            tol,
            which=which,
            products=products,
            passes=passes,
            began=began,
            settings={"method": "arpack", "k": k, "k_smallest": wanted.k_smallest, "tol": tol, "seed": seed},
            checks=checks,
        )


def pyhessian_trace(
    A: Hessian | Task | Objective,
    draws: int = 100,
    tol: float = 1e-3,
    seed: int = 0,
    *,
    progress: bool = False,
) -> TraceEstimate:
    """Return the trace as PyHessian's `trace` estimates it: Hutchinson's, over at most `draws` vectors of signs.

    It stops as soon as the mean moves by less than `tol` of itself from one draw to the next, which bounds no error
    (and stops at once where the trace is below zero: PyHessian divides by it without its sign). The standard error
    here is that of its draws as if their number had been fixed. Arguments, cost and errors as in
    `pyhessian_eigenpairs`; `draws` (100) and `tol` are PyHessian's own defaults.
    """
    began = time.perf_counter()
    A = _hessian(A)
    if draws < 1:
        raise MeasurementError(f"draws={draws} must be at least 1")
    with _pyhessian(A, seed, progress) as run:
        agreement = run.compare_products()
        samples = np.array(run.package.trace(maxIter=draws, tol=tol), dtype=float)
        spent = A.passes - run.passes
    if not np.isfinite(samples).all():
        raise MeasurementError("PyHessian's trace is not finite: the loss or its derivatives overflow here")
    return TraceEstimate(
        cost=Cost(len(samples) + 2, spent, time.perf_counter() - began),
        settings={"draws": draws, "tol": tol, "seed": seed, "operator": A.title},
        checks=(agreement,),
        warnings=(agreement.message,) if agreement.level == "fail" else (),
        value=float(samples.mean()),
        stderr=float(samples.std(ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else math.nan,
        samples=samples,
        products=len(samples),
        method="pyhessian",
        split=A.split,
    )


def pyhessian_density(
    A: Hessian | Task | Objective, steps: int = 100, draws: int = 1, seed: int = 0, *, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return (values, weights), (draws, steps) each, of PyHessian's `density`: the nodes of its Lanczos quadrature.

    PyHessian calls torch.eig, which torch 1.13 was the last to have: with the torch of today it cannot run, and
    MeasurementError says so before anything is computed. `spectral_density(A, kernel="pyhessian")` is the same
    quadrature and smoothing, with a Lanczos of our own. Defaults are PyHessian's (iter, n_v).
    """
    try:
        torch.eig(torch.eye(1, device="cpu"), eigenvectors=True)  # type: ignore[attr-defined, operator]
    except (RuntimeError, AttributeError):
        raise MeasurementError(
            f"PyHessian's density cannot run: it calls torch.eig, which torch {torch.__version__} no longer has; use "
            'spectral_density(A, kernel="pyhessian")'
        ) from None
    A = _hessian(A)
    with _pyhessian(A, seed, progress) as run:
        values, weights = run.package.density(iter=steps, n_v=draws)
    return np.array(values, dtype=float), np.array(weights, dtype=float)


# ------------------------------------------------------------------------------------ what PyHessian is handed


class _Batch:
    """One batch's number in the draw, in the place of PyHessian's inputs and targets."""

    def __init__(self, number: int, weight: float) -> None:
        self.number = number
        self.weight = weight

    def size(self, dim: int) -> float:
        """Return what PyHessian weighs the batch by, in the place of its number of samples."""
        del dim
        return self.weight

    def to(self, device: Any) -> _Batch:
        del device  # the objective has put the batch where the model is
        return self


class _Loss:
    """A batch's mean loss, whose `backward` leaves the gradient, with its graph, in the parameters' `.grad`."""

    def __init__(self, mean: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> None:
        self.mean = mean
        self.parameters = parameters

    def backward(self, create_graph: bool = False) -> None:
        # Tensor.backward would run hooks of the user's on the parameters: DDP's, those of an optimizer that steps in
        # the backward pass. The zeros let the loss hang on every parameter: PyHessian's autograd.grad refuses a
        # parameter that the loss, or its gradient, doesn't depend on.
        held = self.mean + sum(0.0 * p.square().sum() for p in self.parameters)
        gradient = torch.autograd.grad(held, self.parameters, create_graph=create_graph)
        for p, g in zip(self.parameters, gradient, strict=True):
            p.grad = g


@dataclass
class _Model:
    """What PyHessian takes for the model: the operator's parameters, and the batch's loss for an output."""

    objective: Objective
    chosen: Sequence[torch.nn.Parameter]
    tell: Callable[[], object]

    def eval(self) -> _Model:
        return self  # the task has its own mode

    def parameters(self) -> Sequence[torch.nn.Parameter]:
        return self.chosen

    def zero_grad(self) -> None:
        for p in self.chosen:
            p.grad = None

    def __call__(self, batch: _Batch) -> _Loss:
        if batch.number == 0:
            self.tell()
        return _Loss(self.objective.batch_loss(batch.number)[0], self.chosen)


class _Run:
    """PyHessian's object on a task, inside the prepared session; `products` counts what it multiplied."""

    def __init__(self, A: Hessian, progress: bool) -> None:
        from pyhessian import hessian

        objective = A.objective
        self.A = A
        self.products = 0
        self.passes = A.passes
        self.bar = tqdm(disable=not progress, file=sys.stderr, leave=False, desc="PyHessian", unit="product")
        live = dict(zip(objective.names, objective.parameters, strict=True))
        with objective.measuring():
            weights = [objective.batch_loss(i)[1] for i in range(len(objective))]
        objective.passes += 1
        batches = [_Batch(i, w) for i, w in enumerate(weights) if w > 0]
        model = _Model(objective, [live[name] for name in A.names], self._count)
        self.package: Any = hessian(
            model,
            lambda loss, target: loss,
            dataloader=[(b, b) for b in batches],
            cuda=objective.device.type == "cuda",
        )
        self.package.device = objective.device  # it knows "cuda" and "cpu" only

    def _count(self) -> None:
        self.products += 1
        self.A.objective.passes += 6
        self.bar.update()

    def compare_products(self, seed: int = 0) -> Check:
        """Multiply one random vector in both ways: sharper than any comparison of eigenvalues.

        Ours comes first, so that a model without a second derivative is refused in our words.
        """
        A = self.A
        vector = torch.randn(
            A.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu"
        )
        vector = (vector / vector.norm()).to(A.device, A.dtype)
        ours = (A @ vector).detach().double()
        _, parts = self.package.dataloader_hv_product(unflatten(vector, self.package.params))
        theirs = flatten(parts).detach().double()
        size = max(float(ours.norm()), float(theirs.norm()))
        error = float((ours - theirs).norm()) / size if size > 0 else 0.0
        # Two orders of summation of the same arithmetic; the share is of the product's own norm (chosen by us).
        limit = 1e-3 if A.dtype == torch.float32 else 1e-8
        text = f"a product by PyHessian and one of ours differ by {error:.1e} of their norm"
        return Check("product", "pass" if error <= limit else "fail", text, error, limit)


@contextmanager
def _pyhessian(A: Hessian, seed: int, progress: bool) -> Iterator[_Run]:
    """Prepare model, generators, default dtype and device as PyHessian needs them; put everything back."""
    with ExitStack() as stack:
        stack.enter_context(A)
        stack.enter_context(seeded(seed))
        stack.enter_context(_default_dtype(A.dtype))
        if A.device.type == "cuda":
            stack.enter_context(torch.cuda.device(A.device))
        run = _Run(A, progress)
        stack.callback(run.package.model.zero_grad)
        stack.enter_context(run.bar)
        yield run


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Let PyHessian's own tensors have the model's precision: it makes them in the default one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _hessian(A: Any) -> Hessian:
    if isinstance(A, Task | Objective):
        return Hessian(A)
    if not isinstance(A, Hessian):
        raise MeasurementError(
            f"PyHessian knows the Hessian of a task only, not {origin_of(A)[0]}; "
            'use method="arpack" for other operators'
        )
    return A


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise MeasurementError(f"k={k} must be from 1 to the {n} parameters selected")


def _eigenpairs(
    A: Any,
    found: Sequence[tuple[np.ndarray, torch.Tensor]],
    tol: float,
    *,
    which: Which,
    products: int,
    passes: float,
    began: float,
    settings: dict[str, Any],
    checks: Sequence[Check],
) -> Eigenpairs:
    """Return another program's pairs as ours: vectors of unit norm, residuals by our products, convergence by ours."""
    judged = [(values.astype(float), *_residuals(A, values, vectors)) for values, vectors in found]
    scale = max(float(np.abs(values).max()) for values, _, _ in judged)
    converged = [residuals <= tol * scale for _, residuals, _ in judged]
    count = sum(len(values) for values, _, _ in judged)
    late = count - sum(int(c.sum()) for c in converged)
    worst = max(float(residuals.max()) for _, residuals, _ in judged) / (scale or 1.0)
    text = f"{late} of {count} residuals exceed tol" if late else "every residual is within tol"
    checks = (Check("convergence", "warn" if late else "pass", text, worst, tol), *checks)
    empty = (np.zeros(0), np.zeros(0), torch.zeros(A.shape[0], 0, device=A.device, dtype=A.dtype))
    (first, second), (done, done_second) = (*judged, empty)[:2], (*converged, np.zeros(0, bool))[:2]
    operator, split = origin_of(A)
    made, notes = account_of(A)
    return Eigenpairs(
        status="partial" if late or any(c.level == "fail" for c in checks) else "complete",
        cost=Cost(products + count, float(getattr(A, "passes", 0.0)) - passes, time.perf_counter() - began),
        settings={**settings, **made},
        checks=checks,
        notes=notes,
        warnings=tuple(c.message for c in checks if c.level == "fail" or (c.name == "convergence" and late)),
        values=first[0],
        residuals=first[1],
        converged=done,
        smallest=second[0],
        smallest_residuals=second[1],
        smallest_converged=done_second,
        products=products + count,
        parameters=A.shape[0],
        operator=operator,
        which=which,
        split=split,
        vectors=first[2],
        smallest_vectors=second[2],
    )


def _residuals(A: Any, values: np.ndarray, vectors: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
    """Return ||A v - lambda v|| for each column, and the columns of unit norm; NaN for a column without a direction."""
    if not np.isfinite(values).all() or not bool(torch.isfinite(vectors).all()):
        raise MeasurementError("the eigenpairs are not finite: the loss or its derivatives overflow here")
    unit = vectors / torch.linalg.vector_norm(vectors, dim=0)
    residuals = []
    for j, value in enumerate(values.tolist()):
        column = unit[:, j]
        residuals.append(float(torch.linalg.vector_norm((A @ column).detach() - value * column)))
    return np.array(residuals), unit
