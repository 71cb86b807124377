"""How far a Ritz value is from its eigenvalue: an estimate on the way, and a bound once the audit has spoken."""

from __future__ import annotations

import numpy as np

from .krylov import Ritz

#: Widths that are tried for a bound, as shares of |lambda_1|: powers of two from rounding to everything.
_WIDTHS = 2.0 ** np.arange(-53, 2)
#: Share of the tolerance that the estimate of a value's error may take, since it is none of the proofs: what the audit
#: finds missing costs more than it saves (chosen by us: of 1, .3, .1 and .03 the fewest products on spectra of nets).
SAFETY = 0.3


def estimated_errors(ritz: Ritz, picked: np.ndarray) -> np.ndarray:
    """Return how far each picked Ritz value (i,) probably is from its eigenvalue: min(residual, residual^2 / gap).

    The gap reaches to the nearest Ritz value that is not picked. (Kato-Temple: Parlett 1998,
    doi:10.1137/1.9781611971163, theorem 11.7.1; with the gap to the true spectrum it is a bound. Ritz values stand in
    for that here, and the pairs may be the wrong ones: neither is a proof, see `proven`.)
    """
    residuals = ritz.outside[picked]
    rest = np.delete(ritz.values, picked)
    if not len(rest):
        return residuals
    gaps = np.abs(ritz.values[picked, None] - rest).min(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.fmin(residuals, residuals**2 / gaps)


def proven(ritz: Ritz, level: float, end: int, chosen: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Return for each chosen Ritz value whether its eigenvalue lies within `width` beyond it, as bools.

    To be read so that end = +1; -1 is the same for -A. What is known: A has no more eigenvalues above `level` than the
    subspace shows (the audit). So S(level) = Q A Q + P^T gain(level) P has none above it (`audit`), and for any
    l >= level S(l) has none above level + max(0, the largest eigenvalue of gain(l) - gain(level)). If that is at most
    l, A has no more eigenvalues above l than the subspace shows: the i-th is at most l = theta_i + width. This is the
    residual's square over the distance to the level, for an isolated value. Below the level the level itself
    bounds it. From below theta_i itself does, always (Cauchy's interlacing), but for rounding.
    """
    values = ritz.values[chosen]
    at = values + end * np.broadcast_to(width, (len(chosen),))
    shift = end * (_gains(ritz, at) - _gains(ritz, np.array([level])))
    known = np.isfinite(shift).all(axis=(1, 2))
    worst = np.zeros(len(at))
    if shift.shape[1]:
        worst[known] = np.linalg.eigvalsh(shift[known])[:, -1].clip(min=0.0)
    room = end * (at - level)
    return (end * (at - level) >= 0) & ((end * (level - values) >= 0) | (known & (worst <= room)))


def value_bounds(ritz: Ritz, level: float, end: int, chosen: np.ndarray) -> np.ndarray:
    """Return how far the eigenvalue of each chosen Ritz value may be from it (see `proven`), to a factor of two.

    The values' own rounding errors are added. Infinite where nothing is known.
    """
    inside = end * (level - ritz.values[chosen])
    bounds = np.where(inside >= 0, inside, np.inf)
    widths = _WIDTHS[:, None] * (ritz.scale or np.finfo(float).tiny) * np.ones(len(chosen))
    tried = np.broadcast_to(chosen, widths.shape).ravel()
    holds = proven(ritz, level, end, tried, widths.ravel()).reshape(widths.shape)
    bounds = np.minimum(bounds, np.where(holds, widths, np.inf).min(axis=0))
    # The host's eigenvalues err by about this much beside: in float64 it is no less than the products' rounding.
    return bounds + ritz.rounding + len(ritz.values) * np.finfo(float).eps * ritz.scale


def _gains(ritz: Ritz, levels: np.ndarray) -> np.ndarray:
    """Return `Ritz.gain` at each level as (level, p, p); not finite at a Ritz value."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        weights = 1.0 / (levels[:, None] - ritz.values)
        return np.einsum("pj,lj,qj->lpq", ritz.coupling, weights, ritz.coupling)
