"""The search for eigenpairs: expand until each is close enough, audit, and go on if something was missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..results import Check
from .audit import Audit, audit, beyond
from .bounds import SAFETY, estimated_errors, proven, value_bounds
from .chain import ERROR_PROBABILITY
from .krylov import Ritz, Subspace

Which = Literal["largest", "smallest", "both", "magnitude"]
Stop = Literal["residual", "value"]

#: Products that an audit may cost, at least; else as many as the search before it. To go on with the run until it
#: proves its own values may cost twice that at least: they serve the values as well (chosen by us).
LEAST_AUDIT = 20
#: Share of the start that is random, from which on the run is its own proof (chosen by us; a warm start has 0.995).
MOSTLY = 0.9
#: How far beyond the last wanted value nothing may be missing, in tolerances, the farthest last (chosen by us: a value
#: that is to be proven to the tolerance leaves no more than one).
MARGINS: dict[Stop, tuple[float, ...]] = {"residual": (1, 1.25, 1.5, 1.75, 2), "value": (0.7, 0.8, 0.9, 1)}


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

    def ends(self, values: np.ndarray) -> list[np.ndarray]:
        """Return for each list asked for the end (+1 or -1) that each picked value belongs to."""
        picked = self.pick(values)
        if self.which == "magnitude":
            return [np.where(values[picked[0]] > 0, 1, -1)]
        sides = {"largest": (1,), "smallest": (-1,), "both": (1, -1)}[self.which]
        return [np.full(len(chosen), side) for chosen, side in zip(picked, sides, strict=True)]

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
    """One Lanczos run: expand until every pair is close enough, audit each end, go on if something was missing.

    Close enough: the residual is within the tolerance (`stop` "residual"), or the value's own error ("value").
    """

    space: Subspace
    wanted: Wanted
    tol: float
    limit: int
    rows: int
    verify: bool
    bar: Any
    stop: Stop = "residual"
    audits: dict[int, Audit] = field(default_factory=dict)
    #: (products, share of |lambda_1|) when the worst error was largest.
    peak: tuple[int, float] = (0, 0.0)
    #: Products that were spent when the pairs were close enough and only a proof was lacking.
    ready: int | None = None

    def solve(self) -> None:
        space = self.space
        while True:
            ritz, done = self.converge()
            # The audit's reasoning needs symmetry: without it there is nothing to conclude.
            if not (done and self.verify and space.asymmetry <= self.tol and len(space) < space.n):
                return
            self.read_chain(ritz)
            budget = min(max(LEAST_AUDIT, space.products), self.limit - space.products)
            open_ends = self.open_ends(ritz)
            if not open_ends or budget <= 0:
                return
            if self.rows < space.n and len(space) + min(budget, LEAST_AUDIT // 2) > self.rows:
                ritz = self.restart(ritz, self.wanted.count + (self.rows - self.wanted.count) // 4)
            end, level = open_ends[0]
            self.audits[end], probe = audit(space, ritz, end, level, min(budget, self.rows - len(space)))
            space.absorb(probe)

    def converge(self) -> tuple[Ritz, bool]:
        """Expand until the wanted pairs are close enough; False if the products ran out before."""
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
        """Return how much each pending vector (p,) is needed; None when all is there that further products can give.

        What counts is the residual that further products can lower, not what asymmetry and rounding add to it.
        """
        if len(ritz.values) < max(self.wanted.k, self.wanted.k_smallest):
            return np.linalg.norm(ritz.coupling, axis=1)
        pairs = np.concatenate(self.wanted.pick(ritz.values))
        late = pairs[self.errors(ritz, pairs) > self.tol * ritz.scale]
        if len(late):
            self.ready = None
            return np.abs(ritz.coupling[:, late]).max(axis=1)
        self.ready = self.space.products if self.ready is None else self.ready
        return np.linalg.norm(ritz.coupling, axis=1) if self.unread_chain(ritz) else None

    def errors(self, ritz: Ritz, pairs: np.ndarray) -> np.ndarray:
        """Return what is held against the tolerance, for these Ritz pairs."""
        if self.stop == "residual":
            return ritz.outside[pairs]
        errors, width = estimated_errors(ritz, pairs) / SAFETY, self.tol * ritz.scale
        for end, record in self.audits.items():
            if record.verdict == "clear":
                # Where the level is known, a bound decides: the estimate may say less than can be proven, or more.
                ours = np.concatenate(self.wanted.ends(ritz.values)) == end
                holds = proven(ritz, record.level, end, pairs[ours], width)
                errors[ours] = np.where(holds, np.minimum(errors[ours], width), np.maximum(errors[ours], 2 * width))
        return errors

    # ------------------------------------------------------------------------------------ what is proven, and how

    def farthest(self, ritz: Ritz) -> dict[int, float]:
        """Return end -> the farthest level beyond which the absence of eigenvalues is proof enough."""
        margin = self.tol * ritz.scale or np.finfo(float).tiny
        return self.wanted.levels(ritz.values, MARGINS[self.stop][-1] * margin)

    def by_chain(self, ritz: Ritz) -> dict[int, float]:
        """Return end -> level where the run itself can prove, from its random start, that nothing was missed.

        An end has no wanted value beyond the level there: k = 1, or all of them within the tolerance. A copy that the
        run can't see would be a copy of these, and change none of the values. Elsewhere copies do change them: `audit`.
        """
        chain, levels = self.space.chain, self.farthest(ritz)
        if chain.share <= 0:
            return {}
        return {e: x for e, x in levels.items() if e not in self.closed() and not beyond(ritz.values, x, e)}

    def unread_chain(self, ritz: Ritz) -> bool:
        """Return whether to go on with the run until its own start proves an end: the cheapest proof there is."""
        space = self.space
        if not self.verify or space.asymmetry > self.tol or not space.chain.growing or self.ready is None:
            return False
        if space.chain.share < MOSTLY:  # a small random part takes longer than a fresh vector (measured)
            return False
        if space.products - self.ready >= max(2 * LEAST_AUDIT, self.ready):
            return False
        return any(space.chain.chance(x, end) > ERROR_PROBABILITY for end, x in self.by_chain(ritz).items())

    def read_chain(self, ritz: Ritz) -> None:
        """Close the ends that the run has proven by itself; leave the others to the audit."""
        for end in [e for e, r in self.audits.items() if r.verdict != "found"]:
            record = self.audits[end]
            if beyond(ritz.values, record.level, end) > record.beyond:
                del self.audits[end]  # more values came up than there can be: the audit was unlucky
        chain = self.space.chain
        for end, level in self.by_chain(ritz).items():
            chance = chain.chance(level, end)
            if chance <= ERROR_PROBABILITY:
                last = self.wanted.levels(ritz.values, 0.0)[end]
                level = end * min(end * level, end * chain.reached(last, end))
                self.audits[end] = Audit("clear", end, level, chain.chance(level, end), level, 0)
            elif chain.growing and chain.share >= MOSTLY:  # it has had its share of products
                reached = chain.reached(level, end)
                self.audits[end] = Audit("undecided", end, level, chance, reached, 0)

    def closed(self) -> set[int]:
        return {end for end, record in self.audits.items() if record.verdict != "found"}

    def open_ends(self, ritz: Ritz) -> list[tuple[int, float]]:
        """Return (end, level) for each end that nothing has closed yet.

        The level lies beyond the last wanted value by one of the margins, as far as may be from being a Ritz value.
        """
        margin = self.tol * ritz.scale or np.finfo(float).tiny
        found = []
        choices = [self.wanted.levels(ritz.values, share * margin) for share in MARGINS[self.stop]]
        for end in choices[0]:
            if end not in self.closed():
                reach = [_reach(ritz, end, levels[end]) for levels in choices]
                found.append((end, choices[int(np.argmin(reach))][end]))
        return found

    def bounds(self, ritz: Ritz) -> list[np.ndarray]:
        """Return, for each list of wanted pairs, how far each eigenvalue may be from its value.

        NaN where no audit of its end is clear.
        """
        found = []
        for chosen, ends in zip(self.wanted.pick(ritz.values), self.wanted.ends(ritz.values), strict=True):
            bounds = ritz.residuals[chosen] if len(self.space) == self.space.n else np.full(len(chosen), np.nan)
            for end, record in self.audits.items():
                # How far the run itself got is as good as the level aimed at; an audit's level is tied to its gain.
                level = record.level if record.verdict == "clear" else record.reached
                if record.verdict == "clear" or (record.verdict == "undecided" and not record.products):
                    ours = ends == end
                    bounds[ours] = value_bounds(ritz, level, end, chosen[ours])
            found.append(bounds)
        return found

    def restart(self, ritz: Ritz, size: int) -> Ritz:
        self.space.restart(ritz.weights[:, self.wanted.keep(ritz.values, size)])
        return self.space.ritz()

    def show(self, ritz: Ritz) -> None:
        """Show on the progress bar how far the worst wanted pair has come, and about how many products are left.

        The error of the worst pair falls about geometrically: the rate since it began to fall tells the rest.
        """
        pairs = np.concatenate(self.wanted.pick(ritz.values))
        worst = self.errors(ritz, pairs).max(initial=0.0) / (ritz.scale or 1.0)
        what = {"residual": "residual", "value": "error"}[self.stop]
        self.bar.set_postfix_str(f"{what} {worst:.1e}, to reach {self.tol:.0e}", refresh=False)
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
                symmetric = self.space.asymmetry <= self.tol
                advice = "raise max_products" if symmetric else "the audit needs a symmetric operator"
                text = f"missed and repeated eigenvalues are not ruled out: {advice}"
                checks.append(Check(name, "warn", text, 1.0, ERROR_PROBABILITY))
            else:
                checks.append(record.check(name))
        return checks


def _reach(ritz: Ritz, end: int, level: float) -> float:
    """Return how far the subspace pushes the operator outside towards the level (see `audit`)."""
    if (ritz.values == level).any():
        return math.inf
    return float((end * np.linalg.eigvalsh(ritz.gain(level))).max(initial=0.0))
