"""What a Lanczos run from a random start proves: the chance that it hides an eigenvector beyond a level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
import scipy.special

#: Chance that a missed eigenvalue stays unseen, above which nothing is called proven (chosen by us).
ERROR_PROBABILITY = 0.01


@dataclass
class Chain:
    """The three-term recurrence of one Lanczos run in `dimension` dimensions, from a start that is random in part.

    `alphas` and `betas` are its coefficients, the last beta leading to the vector not yet multiplied. The start's unit
    vector is a fixed part plus `share` times a vector drawn uniformly from the unit sphere (0: nothing random, and
    nothing is proven). `growing`: the next product still continues the recurrence.
    """

    dimension: int
    share: float = 1.0
    growing: bool = True
    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)

    def append(self, alpha: float, beta: float) -> None:
        self.alphas.append(alpha)
        self.betas.append(beta)

    def top(self, end: int) -> float:
        """Return the outermost Ritz value of the run (end +1: the largest, -1: the smallest)."""
        values = scipy.linalg.eigvalsh_tridiagonal(self.alphas, self.betas[:-1])
        return float(values[-1] if end > 0 else values[0])

    def chance(self, level: float, end: int) -> float:
        """Return how likely an eigenvector with an eigenvalue beyond `level` stays hidden from the run.

        See `hiding_chance`. 1 where `level` does not lie beyond every Ritz value, or nothing was multiplied yet.
        """
        if not self.alphas or self.share <= 0 or end * (level - self.top(end)) <= 0:
            return 1.0
        return hiding_chance([end * a for a in self.alphas], self.betas, end * level, self.dimension, self.share)

    def reached(self, level: float, end: int) -> float:
        """Return the level nearest to `level`, at it or beyond, beyond which the chance is `ERROR_PROBABILITY`.

        Infinite (with the sign of `end`) where there is none.
        """
        if not self.alphas or self.share <= 0:
            return end * np.inf
        alphas = [end * a for a in self.alphas]
        values = scipy.linalg.eigvalsh_tridiagonal(alphas, self.betas[:-1])
        low = max(end * level, float(values[-1]))
        width = max(float(values[-1] - values[0]), self.betas[-1], abs(low), np.finfo(float).tiny)

        def hides(x: float) -> bool:
            return hiding_chance(alphas, self.betas, x, self.dimension, self.share) > ERROR_PROBABILITY

        if low > values[-1] and not hides(low):
            return end * low
        step = width
        while hides(low + step):
            step *= 2
            if step > 1e12 * width:
                return end * float(np.inf)
        inner = 0.0
        for _ in range(40):  # to a width of 1e-12: finer than any level that is asked for
            middle = (inner + step) / 2
            inner, step = (middle, step) if hides(low + middle) else (inner, middle)
        return end * (low + step)


def hiding_chance(
    alphas: Sequence[float], betas: Sequence[float], level: float, dimension: int, share: float = 1.0
) -> float:
    """Return how likely a random start hides an eigenvector beyond `level` from the Lanczos run that it began.

    `alphas` (m,) and `betas` (m,) are the recurrence's coefficients, the last beta leading to the vector not yet
    multiplied; `level` lies above every Ritz value; `dimension` is that of the space the start was drawn from.

    Let u be a unit eigenvector with eigenvalue mu >= level, and s the start's unit vector. The run's vectors are
    p_i(A) s with orthonormal polynomials p_i, so that (s.u)^2 sum_i p_i(mu)^2 <= ||u||^2 = 1, and the sum grows beyond
    the largest Ritz value. A uniform s has (s.u)^2 ~ Beta(1/2, (dimension - 1)/2): the chance is that Beta's
    distribution function at the bound. With a fixed part beside a uniform one of size `share`, the chance is at most
    what the uniform part alone would give (the density of its component along u is symmetric and falls from zero on,
    from 3 dimensions on). Kuczynski and Wozniakowski 1992, doi:10.1137/0613066, have the same bound before the run.
    """
    before, now, total = 0.0, 1.0, 1.0
    for i, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        if beta == 0:
            return 0.0  # an invariant subspace: what lies outside has no part in the start at all
        before, now = now, ((level - alpha) * now - (betas[i - 1] * before if i else 0.0)) / beta
        total += now * now
        if total > 1e200:
            return 0.0
    return float(scipy.special.betainc(0.5, max(dimension - 1, 1) / 2, min(1.0, 1 / (total * share**2))))
