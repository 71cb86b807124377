"""Did Lanczos miss an eigenvalue? A test with few products and a stated error probability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
import scipy.special

from ..results import Check
from .krylov import Basis, Probe, Ritz, Subspace

#: Chance that a missed eigenvalue passes the audit (chosen by us).
ERROR_PROBABILITY = 0.01


@dataclass(frozen=True)
class Audit:
    """How an audit went: `clear` (nothing missed beyond `level`), `found` (something was), or `undecided`.

    `chance` is the probability that a missed eigenvalue would have stayed unseen (0: excluded for certain), and
    `reached` the level beyond which that probability is below `ERROR_PROBABILITY`.
    """

    verdict: Literal["clear", "found", "undecided"]
    end: int
    level: float
    chance: float
    reached: float
    products: int

    def check(self, name: str) -> Check:
        """Return this outcome as a check of the result; its value is the chance of an oversight."""
        side = "above" if self.end > 0 else "below"
        if self.verdict == "clear":
            text = f"no eigenvalue {side} {self.level:.6g} was missed (chance of an oversight {self.chance:.0e})"
            return Check(name, "pass", text, self.chance, ERROR_PROBABILITY)
        near, far = self.level, self.reached
        text = (
            f"no eigenvalue {side} {far:.6g} was missed, but one between {near:.6g} and {far:.6g} may have been; "
            "choose another k, loosen tol, or raise memory"
        )
        return Check(name, "warn", text, self.chance, ERROR_PROBABILITY)


def audit(space: Subspace, ritz: Ritz, end: int, level: float, budget: int) -> tuple[Audit, Probe]:
    """Test whether A has more eigenvalues beyond `level` than the subspace shows (end +1: above, -1: below).

    Residuals cannot tell: a Krylov space of one vector holds one vector of each eigenspace. Split A by the
    subspace V and its complement. Inertia is additive over the Schur complement (Haynsworth 1968,
    doi:10.1016/0024-3795(68)90050-5): A has as many eigenvalues beyond the level as V^T A V has, exactly if
    S = Q A Q + P^T gain(level) P (on the complement of V, P the pending vectors) has none. S is probed by Lanczos
    from a fresh random vector r, which costs one product a step. A Ritz value of S beyond the level proves that
    something is missing. If none shows up, let u be an eigenvector of S with eigenvalue mu beyond the level: with
    p_i the orthonormal polynomials of the probe, (r.u)^2 <= 1 / sum_i p_i(mu)^2 <= 1 / sum_i p_i(level)^2, while
    r.u for a uniform r in N dimensions follows (r.u)^2 ~ Beta(1/2, (N-1)/2). So the chance that u hides is that
    Beta's distribution function at the bound; the probe stops when it falls below `ERROR_PROBABILITY`. This holds
    whenever the probe stops, since the bound holds at every step. For isolated eigenvalues it takes 3 to 10 products.
    Rounding errors are left out of this reasoning: they can only make u easier to see.

    Spends at least one and at most `budget` products. The probe is returned for `Subspace.absorb`.
    """
    free = space.n - len(space)
    gain = ritz.gain(level)
    lift = space.tensor(gain)
    probe, alphas, betas, columns, across = Basis(space.n, space.dtype, space.device), [], [], [], []
    unit, _, _ = space.orthogonalize(space.random(), space.basis, product=False)
    beta, verdict, chance = 0.0, "undecided", 1.0
    while unit is not None and len(probe) < budget:
        probe.append(unit)
        product = space.multiply(unit)
        if len(space.pending):
            product = product + space.pending.combine(lift @ space.pending.dot(unit))
        unit, c, beta = space.orthogonalize(product, space.basis, probe)
        across.append(c[: len(space)])
        columns.append(c[len(space) :])
        alphas.append(end * c[-1])
        betas.append(beta)
        top = scipy.linalg.eigvalsh_tridiagonal(alphas, betas[:-1])[-1]
        chance = hiding_chance(alphas, betas, end * level, free) if top < end * level else 1.0
        if top >= end * level or chance <= ERROR_PROBABILITY:
            verdict = "found" if top >= end * level else "clear"
            break
    within = np.diag(betas[:-1], -1)
    for i, column in enumerate(columns):
        within[: i + 1, i] = column
    reached = end * _reached(alphas, betas, end * level, free) if verdict == "undecided" else level
    record = Audit(verdict, end, level, chance, reached, len(probe))
    return record, Probe(probe, np.stack(across, axis=1), within, gain, unit, beta)


def hiding_chance(alphas: list[float], betas: list[float], level: float, dimension: int) -> float:
    """Return how likely a random start hides an eigenvector beyond `level` from the Lanczos run that it began.

    `alphas` (m,) and `betas` (m,) are the recurrence's coefficients, the last beta leading to the vector not yet
    multiplied; `level` lies above every Ritz value; `dimension` is that of the space the start was drawn from.
    """
    before, now, total = 0.0, 1.0, 1.0
    for i, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        if beta == 0:
            return 0.0  # an invariant subspace: what lies outside has no part in the start at all
        before, now = now, ((level - alpha) * now - (betas[i - 1] * before if i else 0.0)) / beta
        total += now * now
        if total > 1e200:
            return 0.0
    return float(scipy.special.betainc(0.5, max(dimension - 1, 1) / 2, 1 / total))


def _reached(alphas: list[float], betas: list[float], level: float, dimension: int) -> float:
    ritz = scipy.linalg.eigvalsh_tridiagonal(alphas, betas[:-1])
    low = max(level, float(ritz[-1]))
    width = max(float(ritz[-1] - ritz[0]), betas[-1], abs(low), np.finfo(float).tiny)

    def hides(x: float) -> bool:
        return hiding_chance(alphas, betas, x, dimension) > ERROR_PROBABILITY

    step = width
    while hides(low + step):
        step *= 2
        if step > 1e12 * width:
            return float(np.inf)
    inner = 0.0
    for _ in range(20):  # to a millionth of the step: a reported level needs no more
        middle = (inner + step) / 2
        inner, step = (middle, step) if hides(low + middle) else (inner, middle)
    return low + step
