"""Which of several states are connected: the barrier of the path between each two of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from ..alignment.permuting import Method
from ..counted import counted
from ..errors import MeasurementError
from ..parameters import trainable, unwrap
from ..results import Check, Cost
from ..tasks import Task
from .curve import RATE, STEPS
from .path import POINTS, Curve, Statistics, check_apart, interpolate
from .routes import Connectivity, Path
from .states import State, check_finite, read_state

Pair = tuple[int, int]


def connectivity(
    task: Task,
    *states: Any,
    points: int = POINTS,
    curve: Curve = "linear",
    batchnorm: Statistics = "recompute",
    splits: Sequence[str] = ("train",),
    align: Method | None = None,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    names: Sequence[str] | None = None,
    interrupted: Callable[[Connectivity], object] | None = None,
    progress: bool = False,
) -> Connectivity:
    """Measure the barrier between each two of several states, by `interpolate`.

    Args:
        task: a Task; its model says what the states must fit, and its own weights don't matter.
        states: two or more: state_dicts, modules, Checkpoints or paths of checkpoint files and folders.
        points, curve, batchnorm, splits, align, steps, rate, seed: of each path, as in `interpolate`. With `align` the
            later state of a pair is permuted to fit the earlier one.
        names: what the states are called; by default their files, or "state 1" and so on.
        interrupted: is given what there is where an error, or Ctrl-C, ends the measurement behind its first pair.
        progress: bars on stderr.

    Returns a Connectivity. Costs n (n - 1) / 2 paths for n states (see `interpolate`). Raises what `interpolate`
    raises, two states that are identical among it.
    """
    if not isinstance(task, Task):
        raise TypeError(f"connectivity needs a landscape.Task, got {type(task).__name__}")
    if len(states) < 2:
        raise MeasurementError(
            f"connectivity needs at least two states, got {len(states)}: connectivity(task, a, b, c)"
        )
    if names is not None and len(names) != len(states):
        raise MeasurementError(f"names={list(names)!r} are {len(names)}, expected one for each of {len(states)} states")
    begun = time.perf_counter()
    how: dict[str, Any] = {
        "points": points,
        "curve": curve,
        "batchnorm": batchnorm,
        "splits": splits,
        "align": align,
        "steps": steps,
        "rate": rate,
        "seed": seed,
    }
    pairs = list(itertools.combinations(range(len(states)), 2))
    read = _read(task, states)
    called = tuple(s.label for s in read) if names is None else tuple(names)
    found: dict[Pair, Path] = {}
    try:
        for i, j in tqdm(pairs, desc="pairs", leave=False, disable=not progress):
            found[i, j] = interpolate(task, read[i], read[j], accuracy=False, progress=progress, **how)
    except BaseException:
        if found and interrupted is not None:
            interrupted(joined(found, called))
        raise
    whole = joined(found, called)
    return replace(whole, cost=replace(whole.cost, seconds=time.perf_counter() - begun))


def _read(task: Task, states: Sequence[Any]) -> list[State]:
    """Read and check all of them: what is wrong with one is said before anything is measured."""
    model = unwrap(task.model)
    read = [read_state(given, model, i + 1) for i, given in enumerate(states)]
    for state in read:
        check_finite(state, tuple(trainable(model)))
    for i, j in itertools.combinations(range(len(read)), 2):
        check_apart(read[i], read[j], i + 1, j + 1)
    return read


def joined(found: Mapping[Pair, Path], names: Sequence[str]) -> Connectivity:
    """Return the Connectivity of states of these names from the paths between pairs of them; NaN for those without."""
    first, states = next(iter(found.values())), len(names)
    own_loss = np.full((len(first.splits), states), np.nan)
    for (i, j), path in found.items():
        own_loss[:, [i, j]] = path.own_loss

    def matrix(value: Callable[[Path], Any]) -> np.ndarray:
        table = np.full((*np.shape(value(first)), states, states), np.nan)
        table[..., range(states), range(states)] = 0.0
        for (i, j), path in found.items():
            table[..., i, j] = table[..., j, i] = value(path)
        return table

    pairs = states * (states - 1) // 2
    aligned = first.unaligned_barrier is not None
    settings = {k: v for k, v in first.settings.items() if k == "points"}
    return Connectivity(
        barrier=matrix(lambda p: p.barrier[:, 0]),
        barrier_stderr=matrix(lambda p: p.barrier_stderr[:, 0]),
        instability=matrix(lambda p: p.instability[:, 0]),
        distance=matrix(lambda p: p.distance[0]),
        own_loss=own_loss,
        unaligned_barrier=matrix(lambda p: np.asarray(p.unaligned_barrier)[:, 0]) if aligned else None,
        unaligned_barrier_stderr=matrix(lambda p: np.asarray(p.unaligned_barrier_stderr)[:, 0]) if aligned else None,
        samples=first.samples,
        splits=first.splits,
        states=tuple(names),
        curve=first.curve,
        align=first.align,
        batchnorm=first.batchnorm,
        settings=settings,
        status="complete" if len(found) == pairs else "partial",
        checks=_checks(found, names),
        warnings=tuple(dict.fromkeys(w for p in found.values() for w in p.warnings)),
        notes=(*_permuted(found), *dict.fromkeys(n for p in found.values() for n in p.notes if n not in p.permuted())),
        cost=Cost(
            passes=sum(p.cost.passes for p in found.values()), seconds=sum(p.cost.seconds for p in found.values())
        ),
    )


def _permuted(found: Mapping[Pair, Path]) -> tuple[str, ...]:
    """Say once for all pairs how many units changed places; nothing where there was no alignment."""
    moved = [int(np.sum(p.moved)) for p in found.values() if p.moved is not None]
    if not moved:
        return ()
    first = next(iter(found.values()))
    shown = f"{min(moved)} to {max(moved)}" if min(moved) < max(moved) else f"{moved[0]}"
    units = counted(int(np.sum(np.asarray(first.units))), "unit")
    return (
        f"of each pair the later one was permuted to fit the earlier one: {shown} of {units} changed places, by "
        f"{first.align}; it computes what it did before",
    )


def _checks(found: Mapping[Pair, Path], names: Sequence[str]) -> tuple[Check, ...]:
    """Return the paths' checks: what some of them do not pass is said of each of those, else once for all."""
    by_name: dict[str, list[tuple[str, Check]]] = {}
    for (i, j), path in found.items():
        for check in path.checks:
            by_name.setdefault(check.name, []).append((f"{names[i]} to {names[j]}", check))
    made = []
    for checks in by_name.values():
        loud = [replace(c, message=f"{where}: {c.message}") for where, c in checks if c.level != "pass"]
        same = len({c.message for _, c in checks}) == 1
        where, first = max(checks, key=lambda pair: np.nan_to_num(pair[1].value, nan=-np.inf))
        quiet = first if same else replace(first, message=f"on all paths; the most on {where}: {first.message}")
        made += loud or ([quiet] if len(checks) > 1 else [checks[0][1]])
    return tuple(made)
