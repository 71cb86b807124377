"""Calibration without bins: the smooth calibration error, a smoothed reliability curve, and the KS error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.fft import dct, idct
from scipy.optimize import brentq

from .totals import Atoms

# Points of the grid that the kernel is applied on (chosen by us: a bandwidth of 0.002, that of a calibrated model with
# 100 million samples, is 33 points wide; a run takes milliseconds).
_GRID = 1 << 14
# Bandwidth below which the grid shows nothing more (chosen by us).
_FINEST = 1e-6
# Points at which the curve is given (chosen by us: a percent apart).
_SHOWN = 101
# Samples within a bandwidth below which the curve is not given (chosen by us).
_FEWEST = 5.0


@dataclass(frozen=True)
class Smooth:
    """The smooth ECE and its bandwidth; the curve at `confidence` (m,): `accuracy` (NaN without samples), `density`."""

    ece: float
    bandwidth: float
    confidence: np.ndarray
    accuracy: np.ndarray
    density: np.ndarray


def smooth_ece(atoms: Atoms) -> Smooth:
    """Return smECE, the smooth calibration error at its own bandwidth (share).

    smECE_s = integral over t of |mean_i (y_i - c_i) K_s(t, c_i)|, with the Gaussian kernel of bandwidth s reflected
    at 0 and 1, and smECE its value at the s where smECE_s = s: the smaller the error, the finer the resolution that
    samples allow. It falls as s grows, so that there is one such s; Brent's method finds it to 1e-9. The reflected
    Gaussian is the heat kernel of [0, 1], so that a cosine transform applies it on a grid (16,384 points; samples
    are divided between the two next to them).

    Source: Blasiok and Nakkiran 2023, "Smooth ECE: principled reliability diagrams via kernel smoothing",
    arXiv:2309.12236, section 4 (relplot is their code). Cost: O(samples + grid), some 2 ms beside the samples.
    """
    n = atoms.samples
    residual = _transform(atoms.confidence, (atoms.correct - atoms.counts * atoms.confidence) / n)

    def excess(width: float) -> float:
        return float(np.abs(_smoothed(residual, width)).mean()) - width

    # The error is 1 at most, and below the bandwidth at 2 even after rounding.
    width = _FINEST if excess(_FINEST) <= 0 else float(np.asarray(brentq(excess, _FINEST, 2.0, xtol=1e-9)))
    error = float(np.abs(_smoothed(residual, width)).mean())
    density = np.maximum(_smoothed(_transform(atoms.confidence, atoms.counts / n), width), 0.0)
    shown = np.linspace(0.0, 1.0, _SHOWN)
    centers = (np.arange(_GRID) + 0.5) / _GRID
    enough = np.interp(shown, centers, density)
    gap = np.interp(shown, centers, _smoothed(residual, width))
    seen = enough * n * width >= _FEWEST
    # t + E[(y - c) K] / E[K]: the kernel moves the mean confidence away from t as well, which cancels here.
    curve = shown + np.divide(gap, enough, out=np.full(_SHOWN, np.nan), where=seen)
    return Smooth(error, width, shown, np.clip(curve, 0.0, 1.0), enough)


def _transform(at: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Return the cosine transform of point masses, each divided between the two grid points next to it."""
    place = np.clip(at * _GRID - 0.5, 0, _GRID - 1)
    left = np.minimum(place.astype(np.int64), _GRID - 2)
    share = place - left
    grid = np.bincount(left, mass * (1 - share), minlength=_GRID)
    grid += np.bincount(left + 1, mass * share, minlength=_GRID)
    return np.asarray(dct(grid, type=2))


def _smoothed(transformed: np.ndarray, width: float) -> np.ndarray:
    """Return the density on the grid after smoothing with the reflected Gaussian of this bandwidth."""
    damped = np.zeros(_GRID)
    # The rest would be below exp(-745), the least number that float64 holds.
    some = min(_GRID, int(38.6 / (np.pi * width)) + 1)
    damped[:some] = transformed[:some] * np.exp(-0.5 * (np.pi * np.arange(some) * width) ** 2)
    return _GRID * np.asarray(idct(damped, type=2))


def ks_error(atoms: Atoms) -> tuple[float, float]:
    """Return the Kolmogorov-Smirnov calibration error (share), and how much larger it could be inside cells.

    The largest gap between summed confidence and summed right answers over all samples with a confidence up to some
    value: max_t |sum_{c_i <= t} (c_i - y_i)| / n (Gupta et al. 2021, "Calibration of neural networks using splines",
    arXiv:2006.12800, equation 7). Exact where the atoms are.
    """
    n = atoms.samples
    gaps = np.cumsum(atoms.counts * atoms.confidence - atoms.correct)
    error = float(np.abs(gaps).max()) / n
    if atoms.exact:
        return error, 0.0
    before = np.abs(np.concatenate([[0.0], gaps[:-1]]))
    # In the worst order inside a cell all wrong ones come first, or all right ones.
    right = atoms.correct - (atoms.counts * atoms.confidence - atoms.wrong_sums)
    return error, max(0.0, float((before + np.maximum(atoms.wrong_sums, right)).max()) / n - error)
