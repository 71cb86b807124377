"""The eigenvalue density of a symmetric operator by stochastic Lanczos quadrature, with a band over the draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import stdtrit

from ..errors import MeasurementError
from ..results import Check
from .estimates import SpectralDensity
from .kernels import KERNELS, WIDTH, Kernel, Smoothing, smooth
from .moments import rooted
from .operands import origin_of
from .probing import BLOCK, Probing, check_draws, precision_check, probing, standard_error
from .quadrature import Tridiagonal, tridiagonalize

#: Bytes that the bases of the runs side by side may take (chosen by us: as for the basis of `eigenpairs`).
DEFAULT_MEMORY = 1 << 30
#: The band's confidence, and the share of the eigenvalues that a quarter fewer steps may move (chosen by us).
CONFIDENCE, MOVED = 0.95, 0.05
#: Fewer draws than this are said to have rough standard errors (chosen by us, from the coverage in the docstring).
FEW = 8


def spectral_density(
    A: Any,
    steps: int = 64,
    draws: int = 8,
    kernel: Kernel = "gaussian",
    *,
    seed: int = 0,
    precision: float | None = None,
    width: float | None = None,
    max_draws: int | None = None,
    memory: int | None = None,
    progress: bool = False,
) -> SpectralDensity:
    """Estimate the density of the eigenvalues of a symmetric operator, with trace, norm and negative share from it.

    Lanczos from a random vector of signs gives a Gauss rule (nodes and weights) of that vector's spectral measure,
    whose mean over the vectors is the share of eigenvalues at each place; the rules are smoothed with a Gaussian. Full
    reorthogonalization, so that no ghost copies appear; a breakdown (an invariant subspace) makes a rule exact.
    Sources: Golub and Welsch 1969, doi:10.1090/S0025-5718-69-99647-1; Ubaru, Chen and Saad 2017,
    doi:10.1137/16M1104974; Ghorbani, Krishnan and Xiao 2019, arXiv:1901.10159.

    Kernels (`kernels.py` has the numbers):
      "gaussian": sigma a share `width` of the range, the grid in steps of sigma / 4 (ours);
      "pyhessian": variance 1e-5 max(1, range), 10,000 points: PyHessian's `density` and its plot, as they are; where
        the range is beyond about 1,000 peaks fall between the points, and the check "grid" says so;
      "papyan": sigma = 2 / ((steps - 1) sqrt(8 ln 3)) on the spectrum mapped to [-1, 1] (arXiv:1811.07062).

    Args:
        A: symmetric operator with `shape` (n, n), `dtype`, `device` and `A @ V` for V (n, b); or a dense tensor.
        steps: of Lanczos for each draw (default 64: chosen by us; the literature takes 80 to 128 with fewer draws). The
            outermost eigenvalues come out exactly, the bulk with a resolution of about range / steps.
        draws: random vectors, at least 2 (default 8: chosen by us); with `precision`, the fewest.
        kernel: "gaussian", "pyhessian" or "papyan".
        seed: of the vectors; the same ones as `trace` draws, so that the trace is Hutchinson's.
        precision: go on until the density's standard error, integrated over the grid, is at most this share of the
            eigenvalues; None takes exactly `draws`.
        width: of the kernel "gaussian" (default 0.005 of the range: chosen by us).
        max_draws: with `precision`, the most to take (default 1,000).
        memory: bytes for the bases of the draws that run side by side (default 1 GiB); one draw runs in any case.
        progress: show products and the time left on stderr.

    Returns:
        `SpectralDensity`: grid, density, standard error and band over the draws, the rules, and trace, Frobenius norm
        and negative share with standard errors, in float64. The check "steps" compares with the rules that a quarter
        fewer steps give. Status "partial" if `precision` was not reached.

    The standard errors are over the draws: a 95% interval takes Student's t for draws - 1 degrees (the band does; 3.2
    for 4 draws), not 2. A draw sees an eigenvalue of its own as a chi-squared of one degree, so that where few
    eigenvalues rule, and the draws that miss them agree, even that says too much. Of 250 runs each on spectra of rank 4
    and 14, of one outlier over a bulk, of a bulk and of a geometric decay (n = 300, 20 steps) it held the truth in
    84 to 94% (trace), 87 to 94% (norm) and 80 to 95% (negative share) with 4 draws, in 86 to 96%, 89 to 95% and 86 to
    96% with 8; 2 standard errors of 4 draws in 70 to 85%. With fewer than 8 draws a note says so.

    Raises:
        MeasurementError: a setting out of range, a product that is not finite.

    Costs steps * draws products, those of several draws in one block; holds steps * n numbers for each of them.
    """
    most = check_draws(draws, precision, max_draws, of="the eigenvalues")
    shape = _check_settings(steps, kernel, width)
    goal = -math.inf if precision is None else precision
    runs: list[Tridiagonal] = []
    with probing(A, seed, most=steps * most, title="density", progress=progress) as vectors:
        side = _side_by_side(vectors, steps, memory)
        while True:
            aim = draws if len(runs) < draws else most
            starts = vectors.signs(min(side, aim - len(runs)))
            runs += [run.matrix for run in tridiagonalize(vectors.multiply, starts, min(steps, vectors.n))]
            if len(runs) < draws:
                continue
            nodes, weights = _rules(runs, None)
            smoothing = KERNELS[kernel](nodes, steps, shape)
            curves = smooth(nodes, weights, smoothing)
            stderr = curves.std(axis=0, ddof=1) / math.sqrt(len(runs))
            reached = float(stderr.sum() * smoothing.step)
            vectors.show(reached)
            if reached <= goal or len(runs) >= most:
                break
        cost, n, (made, notes), symmetry = vectors.cost(), vectors.n, vectors.account(), vectors.symmetry()
    density = curves.mean(axis=0)
    operator, split = origin_of(A)
    checks = [_steps_check(runs, density, smoothing), _grid_check(smoothing), *symmetry]
    if precision is not None:
        checks.append(precision_check(reached, precision, len(runs), of="the density"))
    frobenius, frobenius_stderr = rooted(n * (weights * np.nan_to_num(nodes) ** 2).sum(axis=1))
    traces = n * (weights * np.nan_to_num(nodes)).sum(axis=1)
    negative, negative_stderr = _negative(nodes, weights)
    late = tuple(c.message for c in checks if c.level != "pass")
    return SpectralDensity(
        status="partial" if checks[-1].name == "precision" and checks[-1].level == "warn" else "complete",
        cost=cost,
        settings={
            "steps": steps,
            "draws": draws,
            "width": shape,
            "seed": seed,
            "precision": precision,
            "max_draws": most,
            **made,
        },
        checks=tuple(checks),
        notes=(*notes, *_few(len(runs))),
        warnings=late,
        grid=smoothing.grid,
        density=density,
        stderr=stderr,
        band=_band(density, stderr, len(runs)),
        nodes=nodes,
        weights=weights,
        sigma=smoothing.sigma,
        trace=float(traces.mean()),
        trace_stderr=standard_error(traces),
        frobenius=frobenius,
        frobenius_stderr=frobenius_stderr,
        negative=negative,
        negative_stderr=negative_stderr,
        largest=float(np.nanmax(nodes)),
        smallest=float(np.nanmin(nodes)),
        products=cost.products,
        parameters=n,
        kernel=kernel,
        confidence=CONFIDENCE,
        operator=operator,
        split=split,
    )


def _check_settings(steps: int, kernel: str, width: float | None) -> float:
    """Return the width of our kernel, after looking at the settings that only a density has."""
    if steps < 1:
        raise MeasurementError(f"steps={steps} gives no quadrature; take at least 1, and some dozens for a density")
    if kernel not in KERNELS:
        raise MeasurementError(f"kernel {kernel!r} is unknown; there is {', '.join(KERNELS)}")
    if width is None:
        return WIDTH
    if kernel != "gaussian":
        raise MeasurementError(f"width={width} is for kernel='gaussian'; {kernel!r} sets its own")
    if not (width > 0 and math.isfinite(width)):
        raise MeasurementError(f"width={width} must be a positive share of the range, for instance {WIDTH}")
    return width


def _side_by_side(vectors: Probing, steps: int, memory: int | None) -> int:
    """Return how many draws run side by side within the memory."""
    budget = DEFAULT_MEMORY if memory is None else memory
    return max(1, min(BLOCK, budget // (min(steps, vectors.n) * vectors.n * vectors.dtype.itemsize)))


def _rules(runs: list[Tridiagonal], steps: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights (draws, m) of all runs, filled up with NaN nodes of weight 0."""
    rules = [run.rule(steps) for run in runs]
    m = max(len(nodes) for nodes, _ in rules)
    nodes, weights = np.full((len(runs), m), np.nan), np.zeros((len(runs), m))
    for i, (theta, w) in enumerate(rules):
        nodes[i, : len(theta)], weights[i, : len(w)] = theta, w
    return nodes, weights


def _band(density: np.ndarray, stderr: np.ndarray, draws: int) -> np.ndarray:
    """Return the interval (g, 2) of the mean, symmetric on the logarithm (delta method) with Student's t."""
    t = float(stdtrit(draws - 1, (1 + CONFIDENCE) / 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        factor = np.exp(np.minimum(t * np.where(density > 0, stderr / density, 0.0), 50.0))
    return np.stack([density / factor, density * factor], axis=1)


def _few(draws: int) -> tuple[str, ...]:
    """Say what standard errors over few draws are worth."""
    if draws >= FEW:
        return ()
    t = float(stdtrit(draws - 1, (1 + CONFIDENCE) / 2))
    return (
        f"{draws} random vectors make rough standard errors: a 95% interval of trace, norm and negative share takes "
        f"{t:.2g} of them, and with few large eigenvalues even that holds the truth too rarely; take {FEW} or more",
    )


def _negative(nodes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the share of sum |lambda| that is below zero, and its standard error (ratio of means, delta method)."""
    sizes = weights * np.abs(np.nan_to_num(nodes))
    whole, below = sizes.sum(axis=1), np.where(nodes < 0, sizes, 0.0).sum(axis=1)
    if whole.mean() == 0:
        return 0.0, 0.0
    share = float(below.mean() / whole.mean())
    return share, standard_error(below - share * whole) / float(whole.mean())


def _steps_check(runs: list[Tridiagonal], density: np.ndarray, smoothing: Smoothing) -> Check:
    """Compare with the rules of a quarter fewer steps, which are there already: how much would more steps change?"""
    longest = max(len(run.alphas) for run in runs)
    if all(run.invariant for run in runs):
        return Check("steps", "pass", "every draw's rule is exact: an invariant subspace was found", 0.0, MOVED)
    fewer = max(1, (3 * longest) // 4)
    shorter = smooth(*_rules(runs, fewer), smoothing).mean(axis=0)
    moved = float(np.abs(density - shorter).sum() * smoothing.step / 2)
    text = f"{fewer} instead of {longest} steps move {moved:.1%} of the eigenvalues"
    if moved <= MOVED:
        return Check("steps", "pass", text, moved, MOVED)
    return Check("steps", "warn", f"{text}: raise steps, or take a wider kernel", moved, MOVED)


def _grid_check(smoothing: Smoothing) -> Check:
    share = smoothing.step / smoothing.sigma
    if share <= 1:
        return Check("grid", "pass", f"the grid's step is {share:.2g} of the kernel's width", share, 1.0)
    text = f"the grid's step is {share:.2g} of the kernel's width: peaks fall between its points; take another kernel"
    return Check("grid", "warn", text, share, 1.0)
