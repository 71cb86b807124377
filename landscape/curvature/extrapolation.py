"""Bias and spread of a number measured on samples, from its values on disjoint parts of them. No torch here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import fdtri

#: Exponents of the laws by which a bias may fall with the samples n (chosen by us, between the two cases of theory).
#: 1: second-order perturbation of an isolated eigenvalue, and every smooth function of means. 1/2: the edge of a bulk
#: (Marchenko and Pastur 1967, doi:10.1070/SM1967v001n04ABEH001994), where lambda_max lies 2 sqrt(p / n) too high.
LAWS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: A law that the parts contradict with this probability of error is left out; of the others' estimates the range is
#: taken, widened by so many standard deviations of each (chosen by us, with trials on small networks).
REJECT, WIDEN = 0.05, 2.0
#: Of every interval (chosen by us: the usual one).
CONFIDENCE = 0.95
#: A bias is resolved when its range is within the sampling error, or within this share of the scale (chosen by us).
RESOLVED = 0.05


@dataclass(frozen=True)
class Parts:
    """Values (parts, number) of q numbers on disjoint parts of `n` samples.

    `fine` (r^2, q) on the smallest parts, in order, `middle` (r, q) on r of those together, `whole` (q,) on all. So
    means over a level see every sample once, and what is linear in the data cancels in their differences.
    """

    n: int
    fine: np.ndarray
    middle: np.ndarray
    whole: np.ndarray

    @property
    def ratio(self) -> int:
        return len(self.middle)

    @property
    def variances(self) -> tuple[np.ndarray, np.ndarray]:
        """Variance of a single sample's share, n var(value on n), from the fine and from the middle parts (q,)."""
        r = self.ratio
        return self.fine.var(axis=0, ddof=1) * self.n / r**2, self.middle.var(axis=0, ddof=1) * self.n / r

    def bias(self, population: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (bias, half its range, whether any law fits) of the value on n samples against `population`, (q,).

        The mean over parts of n / L samples is target + c (L / n)^g under the law g; c follows from the two
        differences between the three levels by weighted least squares. Their noise is of second order: it is taken
        from the spread of the r differences (mean of r fine parts - middle part), and falls as the difference itself.
        """
        r, found = self.ratio, []
        each = self.fine.reshape(r, r, -1).mean(axis=1) - self.middle
        noise = each.std(axis=0, ddof=1) + np.finfo(float).eps * np.abs(self.whole) + np.finfo(float).tiny
        steps = np.stack([each.mean(axis=0), self.middle.mean(axis=0) - self.whole])
        sd = np.stack([noise / math.sqrt(r), noise / r])
        limit = float(fdtri(1, r - 1, 1 - REJECT))
        for g in LAWS:
            shape = np.array([r ** (2 * g) - r**g, r**g - 1])[:, None]
            weight = shape / sd**2
            precision = (weight * shape).sum(axis=0)
            c = (weight * steps).sum(axis=0) / precision
            misfit = (((steps - c * shape) / sd) ** 2).sum(axis=0)
            left = 1 - (self.n / population) ** g
            found.append((c * left, left / np.sqrt(precision), misfit <= limit))
        c, deviation, fits = (np.stack(x) for x in zip(*found, strict=True))
        some = np.atleast_1d(fits.any(axis=0))
        kept = fits | ~some  # where no law fits, the range of all of them is still the best guess
        low = np.where(kept, c - WIDEN * deviation, math.inf).min(axis=0)
        high = np.where(kept, c + WIDEN * deviation, -math.inf).max(axis=0)
        return (low + high) / 2, (high - low) / 2, some


def spread(stages: Sequence[Parts], population: float) -> np.ndarray:
    """Return the standard error (q,) of the last stage's value for drawing other samples.

    The variances of the stages are averaged, so that a run that stops when its error looks small is not led on by one
    small variance; of the fine and the middle parts' the larger is taken, since eigenvalues that cross on small parts
    vary less there than they do on large ones. The last factor is the correction for a finite population.
    """
    fine, middle = (np.mean(v, axis=0) for v in zip(*(stage.variances for stage in stages), strict=True))
    n = stages[-1].n
    return np.sqrt(np.maximum(fine, middle) / n * (1 - n / population))
