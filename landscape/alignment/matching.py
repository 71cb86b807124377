"""Which of b's units is which of a's: coordinate descent over groups, one linear assignment problem at a time.

Ainsworth et al. 2023 (arXiv:2209.04836, section 3.2): every group's best permutation, given all others, maximizes
sum_i C[i, p(i)], and is found exactly; groups take turns until none gains. The sum that grows is that of the terms'
similarities, so that it never ends below where it started.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from .axes import Atom, Axis, Product, atoms, order, places, resolve
from .units import Permutations

#: Turns of all groups (Ainsworth et al.'s code stops after 100 too; a handful is the rule).
SWEEPS = 100
#: Gains below this share of the terms' norms are rounding.
GAIN = 1e-12


class Term(Protocol):
    """Part of the similarity of a and the permuted b."""

    @property
    def scale(self) -> float: ...

    def atoms(self) -> set[Atom]: ...

    def value(self, permutations: Permutations) -> float: ...

    def costs(self, atom: Atom, permutations: Permutations, settled: set[Atom]) -> list[tuple[np.ndarray, bool]]: ...


@dataclass(frozen=True)
class Weights:
    """<a, permuted b> of one parameter; `axes` of its dimensions, both in float64 on the CPU."""

    axes: Sequence[Axis]
    a: torch.Tensor
    b: torch.Tensor

    @property
    def scale(self) -> float:
        return float(self.a.norm() * self.b.norm())

    def atoms(self) -> set[Atom]:
        return {x for axis in self.axes for x in atoms(axis)}

    def _permuted(self, permutations: Permutations, but: int = -1, atom: Atom | None = None) -> torch.Tensor:
        b = self.b
        for dim, axis in enumerate(self.axes):
            chosen = {k: v for k, v in permutations.items() if k is not atom} if dim == but else permutations
            if any(x in chosen for x in atoms(axis)):
                b = b.index_select(dim, torch.from_numpy(order(axis, chosen)))
        return b

    def value(self, permutations: Permutations) -> float:
        return float((self.a * self._permuted(permutations)).sum())

    def costs(self, atom: Atom, permutations: Permutations, settled: set[Atom]) -> list[tuple[np.ndarray, bool]]:
        """Return (C, anchored) for each time that the atom appears; not anchored where another one's order is open.

        Dimensions whose order is open are replaced by their norms, which no order changes.
        """
        found = []
        for dim, axis in enumerate(self.axes):
            for index in places(axis, atom):
                b = self._permuted(permutations, dim, atom)
                loose = [d for d, other in enumerate(self.axes) if d != dim and not set(atoms(other)) <= settled]
                within = not companions(axis, atom) <= settled
                sides = []
                for t in (self.a, b):
                    picked = t.index_select(dim, torch.from_numpy(index.reshape(-1))).movedim(dim, 0)
                    rows = picked.reshape(*index.shape, *picked.shape[1:])
                    reduced = [2 + d - (d > dim) for d in loose] + ([1] if within else [])
                    if reduced:
                        rows = rows.square().sum(reduced, keepdim=True).sqrt()
                    sides.append(rows.reshape(atom.size, -1))
                found.append(((sides[0] @ sides[1].T).numpy(), not loose and not within))
        return found


@dataclass(frozen=True)
class Correlations:
    """Sum of the correlations of a's units with the permuted b's in one place of the model; `matrix` (units, units)."""

    axis: Axis
    matrix: np.ndarray

    @property
    def scale(self) -> float:
        return float(len(self.matrix))

    def atoms(self) -> set[Atom]:
        return set(atoms(self.axis))

    def value(self, permutations: Permutations) -> float:
        return float(self.matrix[np.arange(len(self.matrix)), order(self.axis, permutations)].sum())

    def costs(self, atom: Atom, permutations: Permutations, settled: set[Atom]) -> list[tuple[np.ndarray, bool]]:
        found = []
        others = order(self.axis, {k: v for k, v in permutations.items() if k is not atom})
        anchored = companions(self.axis, atom) <= settled
        for index in places(self.axis, atom):
            cost = np.zeros((atom.size, atom.size))
            if anchored:
                for column in index.T:
                    cost += self.matrix[np.ix_(column, others[column])]
            else:
                for column in index.T:
                    for other in index.T:
                        cost += self.matrix[np.ix_(column, other)] ** 2
            found.append((cost, anchored))
        return found


def companions(axis: Axis, atom: Atom) -> set[Atom]:
    """Return the atoms whose order decides what lies within each unit of this one, in one dimension."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return set()
    parts = axis.factors if isinstance(axis, Product) else axis.parts
    inside = [i for i, part in enumerate(parts) if atom in set(atoms(part))]
    found: set[Atom] = set()
    for i in inside:
        found |= companions(parts[i], atom)
        if isinstance(axis, Product):
            found |= {x for j, part in enumerate(parts) if j != i for x in atoms(part)}
    return found


def match(
    terms: Sequence[Term], groups: Sequence[Atom], seed: int = 0, update: Callable[[], object] = lambda: None
) -> tuple[Permutations, int]:
    """Return the permutation of each group, b'[k] = b[p[k]], and the number of assignment problems solved.

    Starts twice and keeps the better end: from b as it is, with the groups in an order drawn from the seed (Ainsworth
    et al.), and from a start of its own, in which a group is placed as soon as what it touches is (inputs first): that
    finds back what was only permuted. Each problem costs O(n^3) for a group of n units, and its matrix O(n) times the
    weights that the group holds.
    """
    by_group = {g: [t for t in terms if g in t.atoms()] for g in groups}
    held = [g for g in groups if by_group[g]]
    settled = {x for t in terms for x in t.atoms() if x not in set(held)}
    scale = sum(t.scale for t in terms) or 1.0
    generator = np.random.default_rng(seed)
    solved = 0

    def improve(start: Permutations) -> Permutations:
        nonlocal solved
        now = dict(start)
        everything, open_ = set(held) | settled, set(held)
        for _ in range(SWEEPS):
            if not open_:
                break
            for i in generator.permutation(len(held)):
                group = held[i]
                if group not in open_:
                    continue
                open_.discard(group)
                other = _assigned(by_group[group], group, now, everything)
                solved += 1
                update()
                new = now | {group: other}
                gain = sum(t.value(new) - t.value(now) for t in by_group[group])
                if gain > GAIN * scale:
                    now = new
                    open_ |= {x for t in by_group[group] for x in t.atoms() if x in by_group} - {group}
        return now

    start = {g: np.arange(g.size) for g in held}
    placed, known = dict(start), set(settled)
    for group in held:
        placed[group] = _assigned(by_group[group], group, placed, known)
        known.add(group)
        solved += 1
        update()
    ends = [improve(start), improve(placed)]
    best = max(ends, key=lambda p: sum(t.value(p) for t in terms))
    return {g: p for g, p in best.items() if not np.array_equal(p, np.arange(g.size))}, solved


def _assigned(terms: Sequence[Term], group: Atom, now: Permutations, settled: set[Atom]) -> np.ndarray:
    costs = [c for t in terms for c in t.costs(group, now, settled)]
    anchored = [c for c, sure in costs if sure]
    cost = sum(anchored or [c for c, _ in costs], np.zeros((group.size, group.size)))
    return linear_sum_assignment(cost, maximize=True)[1]
