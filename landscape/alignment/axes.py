"""Axes of tensors as sets of units: what may change places along a dimension, and what does so together elsewhere.

Each dimension of each tensor has an `Axis`: an `Atom` of units that are permuted together wherever it appears, a
`Product` of axes (a dimension that was or will be viewed as several, outermost first: channels x height x width) or a
`Sum` of axes behind each other (a concatenation, or a dimension that is cut). An operation that needs two dimensions
in the same order unifies their axes; one that needs an order of its own fixes them. Everything here only ever takes
freedom away, so that the order in which operations are looked at doesn't matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


class Atom:
    """Units whose order is free, unless `fixed`; once `bound`, it is another axis."""

    __slots__ = ("bound", "fixed", "size")

    def __init__(self, size: int, fixed: bool = False) -> None:
        self.size = size
        self.fixed = fixed
        self.bound: Axis | None = None


@dataclass(frozen=True, eq=False)
class Product:
    """Axes inside each other, outermost first; its units are in row-major order."""

    factors: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return math.prod(f.size for f in self.factors)


@dataclass(frozen=True, eq=False)
class Sum:
    """Axes behind each other."""

    parts: tuple[Axis, ...]

    @property
    def size(self) -> int:
        return sum(p.size for p in self.parts)


Axis = Atom | Product | Sum


def resolve(axis: Axis) -> Axis:
    """Return what an axis is by now: no bound atoms, no nested products or sums, nothing of size 1 in a product."""
    if isinstance(axis, Atom):
        if axis.bound is None:
            return axis
        axis.bound = resolve(axis.bound)
        return axis.bound
    if isinstance(axis, Product):
        flat: list[Axis] = []
        for factor in map(resolve, axis.factors):
            flat += factor.factors if isinstance(factor, Product) else [factor] if factor.size != 1 else []
        return flat[0] if len(flat) == 1 else Product(tuple(flat))
    parts: list[Axis] = []
    for part in map(resolve, axis.parts):
        parts += part.parts if isinstance(part, Sum) else [part] if part.size else []
    return parts[0] if len(parts) == 1 else Sum(tuple(parts))


def atoms(axis: Axis) -> Iterator[Atom]:
    """Yield the atoms of an axis, from left to right, repeated ones as often as they appear."""
    axis = resolve(axis)
    if isinstance(axis, Atom):
        yield axis
        return
    for part in axis.factors if isinstance(axis, Product) else axis.parts:
        yield from atoms(part)


def fix(*axes: Axis) -> None:
    """Let no unit of these axes change its place."""
    for axis in axes:
        for atom in atoms(axis):
            atom.fixed = True


def unify(a: Axis, b: Axis) -> None:
    """Let two axes of the same size be one: where their structures don't fit into each other, both are fixed."""
    a, b = resolve(a), resolve(b)
    if a is b or (a.size == b.size and a.size <= 1):
        return
    if a.size != b.size:
        fix(a, b)
    elif isinstance(a, Atom):
        if a.fixed:
            fix(b)
        a.bound = b
    elif isinstance(b, Atom):
        unify(b, a)
    elif isinstance(a, Product) and isinstance(b, Product):
        _unify_factors(a, b)
    else:
        _unify_parts(a, b)


def _unify_factors(a: Product, b: Product) -> None:
    left, right = [list(reversed(x.factors)) for x in (a, b)]
    while left and right:
        x, y = _next(left), _next(right)
        if x.size > y.size:
            x = _halved(x, y.size, left)
        elif y.size > x.size:
            y = _halved(y, x.size, right)
        if x is None or y is None:
            fix(a, b)
            return
        unify(x, y)


def _next(stack: list[Axis]) -> Axis:
    """Take the next factor off; an atom may have become a product meanwhile."""
    axis = resolve(stack.pop())
    if isinstance(axis, Product):
        stack.extend(reversed(axis.factors))
        axis = stack.pop()
    return axis


def _halved(axis: Axis, outer: int, rest: list[Axis]) -> Axis | None:
    found = factored(axis, outer)
    if found is None:
        return None
    rest.append(found[1])
    return found[0]


def _unify_parts(a: Axis, b: Axis) -> None:
    """Unify two axes at least one of which is a sum, cut at each other's ends."""
    left, right = a, b
    while True:
        x, y = _first(left), _first(right)
        size = min(x.size, y.size)
        if size == left.size:  # both are at their last part
            unify(left, right)
            return
        first, second = cut(left, size), cut(right, size)
        if first is None or second is None:
            fix(a, b)
            return
        unify(first[0], second[0])
        left, right = resolve(first[1]), resolve(second[1])


def _first(axis: Axis) -> Axis:
    return axis.parts[0] if isinstance(axis, Sum) else axis


def factored(axis: Axis, outer: int) -> tuple[Axis, Axis] | None:
    """Return the axis as (outer of this size, inner); None where its structure doesn't allow it."""
    axis = resolve(axis)
    if outer == 1:
        return Product(()), axis
    if axis.size == outer:
        return axis, Product(())
    if axis.size % outer:
        return None
    inner = axis.size // outer
    if isinstance(axis, Atom):
        pair = Atom(outer, axis.fixed), Atom(inner, axis.fixed)
        axis.bound = Product(pair)
        return pair
    if isinstance(axis, Product):
        taken, before = 1, 0
        while before < len(axis.factors) and outer % (taken * axis.factors[before].size) == 0:
            taken *= axis.factors[before].size
            before += 1
        head, tail = axis.factors[:before], axis.factors[before:]
        if taken == outer:
            return Product(head), Product(tail)
        pair = factored(tail[0], outer // taken) if tail[0].size % (outer // taken) == 0 else None
        return (Product((*head, pair[0])), Product((pair[1], *tail[1:]))) if pair else None
    if any(part.size % inner for part in axis.parts):
        return None
    found = [factored(part, part.size // inner) for part in axis.parts]
    if any(pair is None for pair in found):
        return None
    pairs = [pair for pair in found if pair is not None]
    for _, other in pairs[1:]:
        unify(pairs[0][1], other)
    return Sum(tuple(o for o, _ in pairs)), pairs[0][1]


def cut(axis: Axis, size: int) -> tuple[Axis, Axis] | None:
    """Return the axis as (its first `size` units, the others); None where its structure doesn't allow it."""
    axis = resolve(axis)
    if size == 0:
        return Sum(()), axis
    if size == axis.size:
        return axis, Sum(())
    if isinstance(axis, Atom):
        pair = Atom(size, axis.fixed), Atom(axis.size - size, axis.fixed)
        axis.bound = Sum(pair)
        return pair
    if isinstance(axis, Product):
        inner = axis.size // axis.factors[0].size
        pair = cut(axis.factors[0], size // inner) if size % inner == 0 else None
        if pair is None:
            return None
        rest = axis.factors[1:]
        return Product((pair[0], *rest)), Product((pair[1], *rest))
    before, i = 0, 0
    while before + axis.parts[i].size <= size:
        before += axis.parts[i].size
        i += 1
    if before == size:
        return Sum(axis.parts[:i]), Sum(axis.parts[i:])
    pair = cut(axis.parts[i], size - before)
    return (Sum((*axis.parts[:i], pair[0])), Sum((pair[1], *axis.parts[i + 1 :]))) if pair else None


def regrouped(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """Return the axes of dimensions of these sizes into which dimensions with `axes` are viewed, row-major.

    Where the new dimensions don't fit into the old ones, all are fixed.
    """
    stack: list[Axis] = []
    for axis in reversed(axes):
        flat = resolve(axis)
        stack += reversed(flat.factors) if isinstance(flat, Product) else [flat] if flat.size != 1 else []
    made: list[Axis] = []
    for size in sizes:
        held: list[Axis] = []
        missing = size
        while missing > 1:
            axis = _next(stack)
            if axis.size > missing:
                axis = _halved(axis, missing, stack)
            if axis is None or missing % axis.size:
                fix(*axes)
                return [Atom(s, fixed=True) for s in sizes]
            held.append(axis)
            missing //= axis.size
        made.append(Product(tuple(held)))
    return made


# ------------------------------------------------------------------------------------------------- permutations


def order(axis: Axis, permutations: dict[Atom, np.ndarray]) -> np.ndarray:
    """Return (size,) the place in the old order of each place in the new one, where atoms without one stay.

    tensor.index_select(dim, order) permutes a dimension with this axis.
    """
    axis = resolve(axis)
    if isinstance(axis, Atom):
        found = permutations.get(axis)
        return np.arange(axis.size) if found is None else found
    if isinstance(axis, Product):
        made = np.zeros(1, dtype=np.int64)
        for factor in axis.factors:
            made = (made[:, None] * factor.size + order(factor, permutations)[None]).reshape(-1)
        return made
    starts = np.cumsum([0, *(p.size for p in axis.parts)])
    return np.concatenate([s + order(p, permutations) for s, p in zip(starts[:-1], axis.parts, strict=True)])


def places(axis: Axis, atom: Atom) -> list[np.ndarray]:
    """Return for each time that an atom appears in an axis the places (atom.size, m) of each of its units."""
    return _places(resolve(axis), atom, np.arange(axis.size))


def _places(axis: Axis, atom: Atom, positions: np.ndarray) -> list[np.ndarray]:
    axis = resolve(axis)
    if isinstance(axis, Atom):
        return [positions.reshape(atom.size, -1)] if axis is atom else []
    found: list[np.ndarray] = []
    trailing = positions.shape[1:]
    if isinstance(axis, Sum):
        start = 0
        for part in axis.parts:
            found += _places(part, atom, positions[start : start + part.size])
            start += part.size
        return found
    shaped = positions.reshape(*(f.size for f in axis.factors), *trailing)
    for i, factor in enumerate(axis.factors):
        found += _places(factor, atom, np.moveaxis(shaped, i, 0))
    return found
