"""The search for eigenpairs: expand until the residuals are small, audit, and go on if something was missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..results import Check
from .audit import ERROR_PROBABILITY, Audit, audit
from .krylov import Ritz, Subspace

Which = Literal["largest", "smallest", "both", "magnitude"]

#: Products that an audit may cost, at least; else as many as the search before it (chosen by us).
LEAST_AUDIT = 20


@dataclass(frozen=True)
class Wanted:
    """Which Ritz values are asked for, and beyond which levels nothing may be missing."""

    which: Which
    k: int
    given: int | None

    @property
    def k_smallest(self) -> int:
        if self.which != "both":
            return 0
        return self.k if self.given is None else self.given

    @property
    def count(self) -> int:
        return self.k + self.k_smallest

    def ranking(self, values: np.ndarray) -> list[np.ndarray]:
        """Return for each list asked for the indices of all Ritz values (ascending), most wanted first."""
        up = np.arange(len(values))
        if self.which == "magnitude":
            return [np.argsort(-np.abs(values), kind="stable")]
        return {"largest": [up[::-1]], "smallest": [up], "both": [up[::-1], up]}[self.which]

    def pick(self, values: np.ndarray) -> list[np.ndarray]:
        counts = (self.k, self.k_smallest)
        return [order[:count] for order, count in zip(self.ranking(values), counts, strict=False)]

    def keep(self, values: np.ndarray, size: int) -> np.ndarray:
        """Return the indices of `size` Ritz values to go on with: the wanted ones and those next to them."""
        counts, chosen, extra = (self.k, self.k_smallest), np.zeros(0, int), 0
        while len(chosen) < min(size, len(values)):
            lists = [order[: count + extra] for order, count in zip(self.ranking(values), counts, strict=False)]
            chosen, extra = np.unique(np.concatenate(lists)), extra + 1
        return chosen

    def levels(self, values: np.ndarray, margin: float) -> dict[int, float]:
        """Return end -> level: +1 nothing may be missing above it, -1 below it."""
        picked = self.pick(values)
        last = float(values[picked[0][-1]])
        if self.which == "magnitude":
            return {1: abs(last) + margin, -1: -abs(last) - margin}
        if self.which == "smallest":
            return {-1: last - margin}
        return {1: last + margin} | ({-1: float(values[picked[1][-1]]) - margin} if len(picked) > 1 else {})


@dataclass
class Search:
    """One Lanczos run: expand until the residuals are small, audit each end, go on if something was missing."""

    space: Subspace
    wanted: Wanted
    tol: float
    limit: int
    rows: int
    verify: bool
    bar: Any
    audits: dict[int, Audit] = field(default_factory=dict)
    #: (products, share of |lambda_1|) when the worst residual was largest.
    peak: tuple[int, float] = (0, 0.0)

    def solve(self) -> None:
        space = self.space
        while True:
            ritz, done = self.converge()
            budget = min(max(LEAST_AUDIT, space.products), self.limit - space.products)
            # The audit's reasoning needs symmetry: without it there is nothing to conclude.
            if not (done and self.verify and space.asymmetry <= self.tol and budget > 0 and len(space) < space.n):
                return
            open_ends = self.open_ends(ritz)
            if not open_ends:
                return
            if self.rows < space.n and len(space) + min(budget, LEAST_AUDIT // 2) > self.rows:
                ritz = self.restart(ritz, self.wanted.count + (self.rows - self.wanted.count) // 4)
            end, level = open_ends[0]
            self.audits[end], probe = audit(space, ritz, end, level, min(budget, self.rows - len(space)))
            space.absorb(probe)

    def converge(self) -> tuple[Ritz, bool]:
        """Expand until the wanted pairs have converged; False if the products ran out before."""
        space, test_at = self.space, 0
        while True:
            size, row = len(space), 0
            spent = space.products >= self.limit
            # The dense eigenproblem tells nothing before there are as many Ritz values as pairs are wanted.
            due = size >= self.wanted.count and space.products >= test_at
            if size and (due or size == space.n or spent or len(space.pending) > 1):
                ritz = space.ritz()
                self.show(ritz)
                lacking = self.lacking(ritz)
                if lacking is None or size == space.n:
                    return ritz, True
                if spent:
                    return ritz, False
                if len(lacking):
                    row = int(np.argmax(lacking))
                test_at = space.products + 1 + size // 32  # the dense eigenproblem stays a small part of the work
            if size >= self.rows < space.n:
                self.restart(space.ritz(), self.wanted.count + (self.rows - self.wanted.count) // 2)
            if not len(space.pending):
                space.inject()
            space.expand(row)

    def lacking(self, ritz: Ritz) -> np.ndarray | None:
        """Return how much each pending vector (p,) is needed; None when all wanted pairs are there, within tol.

        What counts is the residual that further products can lower, not what asymmetry and rounding add to it.
        """
        if len(ritz.values) < max(self.wanted.k, self.wanted.k_smallest):
            return np.linalg.norm(ritz.coupling, axis=1)
        pairs = np.concatenate(self.wanted.pick(ritz.values))
        late = pairs[ritz.outside[pairs] > self.tol * ritz.scale]
        return np.abs(ritz.coupling[:, late]).max(axis=1) if len(late) else None

    def open_ends(self, ritz: Ritz) -> list[tuple[int, float]]:
        """Return (end, level) for each end that no audit has closed yet.

        The level lies one to two tolerances beyond the last wanted value, as far as may be from being a Ritz value.
        """
        closed = {end for end, record in self.audits.items() if record.verdict != "found"}
        margin = self.tol * ritz.scale or np.finfo(float).tiny
        found = []
        choices = [self.wanted.levels(ritz.values, share * margin) for share in (1, 1.25, 1.5, 1.75, 2)]
        for end in choices[0]:
            if end not in closed:
                reach = [_reach(ritz, end, levels[end]) for levels in choices]
                found.append((end, choices[int(np.argmin(reach))][end]))
        return found

    def restart(self, ritz: Ritz, size: int) -> Ritz:
        self.space.restart(ritz.weights[:, self.wanted.keep(ritz.values, size)])
        return self.space.ritz()

    def show(self, ritz: Ritz) -> None:
        """Show on the progress bar how far the worst wanted pair has come, and about how many products are left.

        The residual of the worst pair falls about geometrically: the rate since it began to fall tells the rest.
        """
        pairs = np.concatenate(self.wanted.pick(ritz.values))
        worst = ritz.outside[pairs].max(initial=0.0) / (ritz.scale or 1.0)
        self.bar.set_postfix_str(f"residual {worst:.1e}, to reach {self.tol:.0e}", refresh=False)
        done, highest = self.space.products, max(self.peak[1], worst)
        if len(pairs) == self.wanted.count and worst >= self.peak[1]:
            self.peak = (done, highest)
        elif self.tol < worst < self.peak[1]:
            rate = math.log(self.peak[1] / worst) / (done - self.peak[0])
            self.bar.total = min(self.limit, done + math.ceil(math.log(worst / self.tol) / rate))

    def checks(self) -> list[Check]:
        """Return what is known about missed eigenvalues at each end."""
        if not self.verify:
            return [Check("multiplicity", "warn", "missed and repeated eigenvalues were not looked for (verify=False)")]
        whole = len(self.space) == self.space.n
        checks = []
        for end in self.wanted.levels(self.space.ritz().values, 0.0):
            name, record = {1: "multiplicity", -1: "multiplicity_smallest"}[end], self.audits.get(end)
            if whole:
                checks.append(Check(name, "pass", "the basis spans the whole space", 0.0, ERROR_PROBABILITY))
            elif record is None or record.verdict == "found":
                text = "missed and repeated eigenvalues are not ruled out: raise max_products"
                checks.append(Check(name, "warn", text, 1.0, ERROR_PROBABILITY))
            else:
                checks.append(record.check(name))
        return checks


def _reach(ritz: Ritz, end: int, level: float) -> float:
    """Return how far the subspace pushes the operator outside towards the level (see `audit`)."""
    if (ritz.values == level).any():
        return math.inf
    return float((end * np.linalg.eigvalsh(ritz.gain(level))).max(initial=0.0))
