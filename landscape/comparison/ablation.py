"""What each setting of a sweep does: main effects and pairwise interactions over seeds, each with its interval.

Begin with `ablate`. A setting that was varied is a factor, its values are levels; a run is a row.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .least_squares import Clustered, rank

#: Below so many seeds an effect is shown without an interval, and nothing is claimed (chosen by us: with two, the
#: factor before the standard error is 12.7, and the standard error itself rests on one difference).
FEWEST_SEEDS = 3
#: Degrees of freedom below which no interval is given, for designs where few seeds carry an effect (chosen by us).
LEAST_FREEDOM = 1.5


@dataclass(frozen=True)
class Effect:
    """One effect: a level against the first one of its factor, or how far that difference changes with a second factor.

    `factors` has one name, or two for an interaction; `levels` are (first, other) of each. `value` is in the units of
    the response (its logarithm where that was analyzed), `low` and `high` bound it at 95%, NaN where there are too few
    seeds to say; `df` are the degrees of freedom behind them.
    """

    factors: tuple[str, ...]
    levels: tuple[tuple[str, str], ...]
    value: float
    low: float
    high: float
    df: float

    @property
    def claimed(self) -> bool:
        """True where there is an interval that doesn't hold 0."""
        return bool(self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Ablation:
    """Every effect that these runs can tell apart; `left_out` says which they can't, and why.

    `paired`: the effects are differences within seeds, because seeds are shared across the settings. `independent` is
    the number of seeds (of runs, where they have none) behind the intervals.
    """

    effects: tuple[Effect, ...]
    runs: int
    independent: int
    paired: bool
    balanced: bool
    left_out: tuple[str, ...] = ()

    @property
    def main(self) -> tuple[Effect, ...]:
        """The main effects."""
        return tuple(e for e in self.effects if len(e.factors) == 1)

    @property
    def interactions(self) -> tuple[Effect, ...]:
        """The pairwise interactions."""
        return tuple(e for e in self.effects if len(e.factors) == 2)


@dataclass(frozen=True)
class _Term:
    factors: tuple[str, ...]
    columns: np.ndarray  # (n, number of contrasts)


def ablate(
    y: np.ndarray,
    factors: Mapping[str, Sequence[str]],
    seeds: Sequence[Hashable] | None = None,
    *,
    interactions: bool = True,
) -> Ablation:
    """Return the main effects and pairwise interactions of `factors` on `y`, with 95% intervals over seeds.

    `y` (n,) is one number of each run; NaN leaves the run out. `factors` maps each setting to its value in each run,
    as text; `seeds` names each run's seed, None: every run is independent of the others.

    A main effect is the difference of two levels, averaged with equal weights over the levels of the other factors;
    an interaction is the difference of such differences. Both are estimated by least squares, on a design with the
    terms that these runs can tell apart (a factor that changes together with another one, or an interaction with
    missing cells, is named in `left_out`; three-way interactions count as noise). Where seeds are shared across
    settings the comparison is within seeds, and the standard error is over seeds: in a full grid this is the paired
    t test, with one degree of freedom fewer than seeds. See `least_squares.Clustered` for the unbalanced ones. The
    same seed under two settings is only as much the same as the training makes it; where it means nothing, pairing
    costs degrees of freedom and no bias.

    Intervals are not corrected for the number of effects. Raises ValueError for lists of different lengths.
    """
    y = np.asarray(y, dtype=np.float64)
    for name, values in [*factors.items(), *([("seeds", seeds)] if seeds is not None else [])]:
        if len(values) != len(y):
            raise ValueError(f"{name!r} has {len(values)} values for {len(y)} runs: give one for each run")
    kept = np.isfinite(y)
    known = np.flatnonzero(kept).tolist()
    y = y[kept]
    varied = {n: [str(v[i]) for i in known] for n, v in factors.items()}
    varied = {n: v for n, v in varied.items() if len(set(v)) > 1}
    names = [seeds[i] for i in known] if seeds is not None else list(range(len(known)))
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    clusters = np.array([order[name] for name in names], dtype=int)
    if not varied:
        return Ablation((), len(y), len(order), False, False)
    levels = {n: list(dict.fromkeys(v)) for n, v in varied.items()}
    terms, left_out = _estimable(varied, levels, interactions)
    balanced = _balanced({n: v for n, v in varied.items() if any(t.factors == (n,) for t in terms)}, clusters)
    if not terms:
        return Ablation((), len(y), len(order), False, balanced, tuple(left_out))
    columns = np.concatenate([t.columns for t in terms], axis=1)
    dummies = np.eye(len(order))[clusters]
    shared = len(order) < len(y)
    paired = shared and rank(np.hstack([dummies, columns])) == len(order) + columns.shape[1]
    design = columns if paired else np.hstack([np.ones((len(y), 1)), columns])
    fit = Clustered(design, clusters, blocks=paired)
    weights, effects = [], []
    at = 0 if paired else 1
    for term in terms:
        for pairs, row in _contrasts(term, levels):
            weights.append(np.concatenate([np.zeros(at), row, np.zeros(design.shape[1] - at - len(row))]))
            effects.append((term.factors, pairs))
        at += term.columns.shape[1]
    found = fit.contrasts(y, np.array(weights))
    half = found.half_width()
    half[(found.df < LEAST_FREEDOM) | np.isnan(found.df)] = np.nan
    # A seed with a single run says nothing about differences within seeds.
    independent = int(np.sum(np.bincount(clusters) > 1)) if paired else len(order)
    if independent < FEWEST_SEEDS:
        half[:] = np.nan
    told = tuple(
        Effect(f, pairs, float(v), float(v - h), float(v + h), float(df))
        for (f, pairs), v, h, df in zip(effects, found.value, half, found.df, strict=True)
    )
    return Ablation(told, len(y), independent, paired, balanced, tuple(left_out))


def _estimable(
    varied: Mapping[str, list[str]], levels: Mapping[str, list[str]], interactions: bool
) -> tuple[list[_Term], list[str]]:
    """Return the terms that the runs can tell apart, main effects first, and what was left out and why."""
    n = len(next(iter(varied.values())))
    coded = {name: _coded(values, levels[name]) for name, values in varied.items()}
    so_far, terms, left_out = np.ones((n, 1)), [], []
    wanted = [(name,) for name in varied]
    if interactions:
        wanted += list(itertools.combinations(varied, 2))
    kept: set[str] = set()
    for factors in wanted:
        if len(factors) == 2 and not kept.issuperset(factors):
            continue
        parts = [coded[f] for f in factors]
        columns = parts[0] if len(parts) == 1 else np.einsum("ni,nj->nij", *parts).reshape(n, -1)
        more = np.hstack([so_far, columns])
        # At least one run must be left over for the errors, or every effect would look exact.
        if rank(more) < more.shape[1] or more.shape[1] >= n:
            left_out.append(_why_not(factors, varied, more.shape[1] >= n))
            continue
        so_far = more
        kept.update(factors)
        terms.append(_Term(factors, columns))
    return terms, left_out


def _why_not(factors: tuple[str, ...], varied: Mapping[str, list[str]], full: bool) -> str:
    if full:
        return f"{' × '.join(factors)}: too few runs for so many settings"
    if len(factors) == 2:
        return f"{' × '.join(factors)}: some combinations have no run"
    (name,) = factors
    for other, values in varied.items():
        if other != name and len(set(zip(values, varied[name], strict=True))) == len(set(values)):
            return f"{name}: it changes only together with {other}, so that the two can't be told apart"
    return f"{name}: it changes only together with the other settings"


def _coded(values: Sequence[str], levels: Sequence[str]) -> np.ndarray:
    """Return sum-to-zero columns (n, levels - 1): with them every other term is averaged with equal weights."""
    k = len(levels)
    code = np.vstack([-np.ones(k - 1), np.eye(k - 1)])
    return code[[levels.index(v) for v in values]]


def _contrasts(
    term: _Term, levels: Mapping[str, list[str]]
) -> Iterator[tuple[tuple[tuple[str, str], ...], np.ndarray]]:
    """Yield (level pairs, weights over the term's columns) of each level against the first."""
    codes = [np.vstack([-np.ones(len(levels[f]) - 1), np.eye(len(levels[f]) - 1)]) for f in term.factors]
    for chosen in itertools.product(*(range(1, len(levels[f])) for f in term.factors)):
        row = np.ones(1)
        for code, level in zip(codes, chosen, strict=True):
            row = np.outer(row, code[level] - code[0]).ravel()
        pairs = tuple((levels[f][0], levels[f][level]) for f, level in zip(term.factors, chosen, strict=True))
        yield pairs, row


def _balanced(varied: Mapping[str, list[str]], clusters: np.ndarray) -> bool:
    """Whether every seed holds every combination of the levels once."""
    if not varied:
        return False
    cells = list(zip(*varied.values(), strict=True))
    every = int(np.prod([len(set(v)) for v in varied.values()]))
    seen = set(zip(clusters.tolist(), cells, strict=True))
    return len(seen) == len(cells) == every * len(set(clusters.tolist()))
