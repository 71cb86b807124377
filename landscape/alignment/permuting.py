"""Permute the units of one state of a model so that they fit another's, without changing what it computes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from tqdm import tqdm

from ..errors import MeasurementError, ObjectiveError, OutOfMemory, TaskError
from ..objective import Objective
from ..parameters import trainable, unwrap
from ..results import Check, Cost
from ..surface.states import State, check_finite, holding, read_state
from ..tasks import Task
from .activations import correlations
from .aligned import Alignment
from .axes import Atom
from .check import differences, permuted, verified
from .matching import Term, Weights, match
from .units import Permutations, Units, find_units

Method = Literal["weights", "activations"]


def align(
    task: Task,
    a: Any,
    b: Any,
    *,
    method: Method = "weights",
    split: str = "train",
    seed: int = 0,
    progress: bool = False,
) -> Alignment:
    """Permute the hidden units of b so that they fit a's; b's function stays what it is.

    Two trainings from different seeds find the same units in different orders, and the straight path between them then
    crosses a barrier that is one of names only (Entezari et al. 2022, arXiv:2110.06296). Which units may change places
    is found from what the model computes on a batch, not from its architecture: channels through convolutions (grouped
    and depthwise ones, too), normalization layers with their running statistics, residual streams, concatenations,
    flattened pixels, gates of recurrent layers, heads of attention and channels within all heads alike. What an
    operation isn't known to leave alone stays where it is, and is told. Then the groups found are permuted at random at
    weights near b without equal units, each alone on a batch and all together on every one; a group that changes
    outputs or loss is dropped, and told. b with its units in their new places is held against b in the end.

    Args:
        task: a Task; its model says what the states must fit, its data are what functions are compared on.
        a, b: state_dicts, modules, Checkpoints or paths of checkpoint files and folders.
        method: "weights" makes ||a - b'|| small, by coordinate descent over the groups (Ainsworth et al. 2023,
            arXiv:2209.04836, section 3.2; the default, as there: it needs no data), "activations" pairs units that
            correlate on the data (Li et al. 2016, arXiv:1511.07543; Ainsworth et al., section 3.1).
        split: "train" or "test": the data for both the comparison and the activations.
        seed: of the order in which groups take turns, and of the permutations that are tried.
        progress: bars on stderr.

    Returns an Alignment; its `weights` can be saved, loaded and given to `interpolate(task, a, found.weights)`.
    Buffers that hold a number for each unit go along. With BatchNorm interpolate with batchnorm="recompute" (the
    default there): between aligned ends variances collapse, and statistics that are recomputed at each point undo that
    (REPAIR, Jordan et al. 2023, arXiv:2211.08403); without BatchNorm nothing undoes it.

    Units whose activations go into no linear layer or convolution and come out of none, or that are too many for their
    correlations (8,192), stay where they are with method="activations", and are told.

    Costs about 6 passes over the draw and 2 over a batch for each group, in float64 where the task allows it, 2 more
    over the draw for activations; for each turn of a group of n units O(n^3) for the assignment (1 s for some 2,000
    units) and O(n) operations a weight that it holds. Holds both states in float64 on the host.

    Raises CheckpointError for a state that doesn't fit the model, MeasurementError for one that is not finite, an
    unknown method, and where b permuted is not b on some batch; ObjectiveError where the loss can't be measured at b.
    """
    if not isinstance(task, Task):
        raise TypeError(f"align needs a landscape.Task, got {type(task).__name__}")
    if method not in get_args(Method):
        raise MeasurementError(f"method={method!r} is neither 'weights' nor 'activations'")
    model = unwrap(task.model)
    states = [read_state(given, model, i) for i, given in enumerate((a, b), start=1)]
    for state in states:
        check_finite(state, tuple(trainable(model)))
    return align_states(task, *states, method=method, split=split, seed=seed, progress=progress)


def align_states(task: Task, a: State, b: State, *, method: Method, split: str, seed: int, progress: bool) -> Alignment:
    """See `align`, for states that were read."""
    begun = time.perf_counter()
    model = unwrap(task.model)
    ready = task.replace(batchnorm="batch" if task.batchnorm == "batch" else "eval")
    with holding(model, b), _precise(ready, split) as objective:
        bar = tqdm(desc="alignment", unit="step", leave=False, disable=not progress)
        with bar:
            units, limit = find_units(objective, list(b.weights))
            units, dropped, tried = verified(objective, units, b.weights, limit, seed, bar.update)
            terms = _terms(objective, units, a, b, method, bar.update)
            found, solved = match(terms, list(units.names), seed, bar.update)
            (kept,) = differences(objective, units, b.weights, [found], bar.update) if found else (0.0,)
        if not kept <= limit:
            raise MeasurementError(
                f"b with its units permuted gives other outputs than b on the {split} data (by {kept:.2g} of the "
                f"largest, where rounding explains {limit:.2g}): the order of some units means something there; "
                "nothing was aligned"
            )
        passes, notes = objective.passes, objective.notes
    weights = {n: t.detach().clone() for n, t in b.weights.items()} | permuted(units, b.weights, found)
    groups = list(units.names)
    compared = {x for term in terms for x in term.atoms()}
    unmatched = [n for g, n in units.names.items() if g not in compared]
    names = tuple(trainable(model))
    return Alignment(
        units=np.array([g.size for g in groups], dtype=int),
        moved=np.array([_moved(found, g) for g in groups], dtype=int),
        distance_before=_distance(a.weights, b.weights, names),
        distance=_distance(a.weights, weights, names),
        names=tuple(units.names.values()),
        method=method,
        states=(a.label, b.label),
        dropped=dropped,
        seed=seed,
        weights=weights,
        permutations={n: found.get(g, np.arange(g.size)) for g, n in units.names.items()},
        settings={"assignments": solved, "split": split},
        checks=_checks(units, dropped, tried, kept, limit),
        warnings=(
            *(f"{n}: permuting these units changes outputs; they stay as they are" for n in dropped),
            *(f"{n}: no {method} were found to match these units by; they stay as they are" for n in unmatched),
        ),
        notes=tuple(dict.fromkeys((*notes, *a.notes, *b.notes))),
        cost=Cost(passes=passes, seconds=time.perf_counter() - begun),
    )


@contextlib.contextmanager
def _precise(task: Task, split: str) -> Iterator[Objective]:
    """Enter an objective in float64, where rounding is told from all else; in the task's precision where that fails."""
    with contextlib.ExitStack() as stack:
        try:
            objective = stack.enter_context(Objective(task.replace(dtype=torch.float64), split))
        except OutOfMemory:
            raise
        except (TaskError, ObjectiveError, TypeError, RuntimeError):
            objective = stack.enter_context(Objective(task, split))
        yield objective


def _terms(objective: Objective, units: Units, a: State, b: State, method: Method, update: Any) -> Sequence[Term]:
    if method == "activations":
        return correlations(objective, units, a.weights, b.weights, update)
    parameters = {n: id(p) for n, p in objective.model.named_parameters(remove_duplicate=False)}
    once = {i: n for n, i in reversed(list(parameters.items()))}  # tied ones count once
    return [
        Weights(units.axes[n], *(s.weights[n].detach().cpu().double() for s in (a, b)))
        for n in once.values()
        if n in units.axes and b.weights[n].is_floating_point() and _holds(units, n)
    ]


def _holds(units: Units, name: str) -> bool:
    return name in units.touched(dict.fromkeys(units.names, np.zeros(0)))


def _moved(found: Permutations, group: Atom) -> int:
    return int((found[group] != np.arange(group.size)).sum()) if group in found else 0


def _distance(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], names: Sequence[str]) -> float:
    return math.sqrt(sum(float((b[n].cpu().double() - a[n].cpu().double()).square().sum()) for n in names))


def _checks(units: Units, dropped: Sequence[str], tried: float, kept: float, limit: float) -> tuple[Check, ...]:
    text = f"outputs and loss of b change by {kept:.2g} of the largest when its units are permuted: rounding"
    made = [Check("function", "pass", text, kept, limit)]
    if not units.names:
        made.append(Check("groups", "warn", "no units were found that may change places", 0.0))
    elif dropped:
        made.append(
            Check("groups", "warn", f"{len(dropped)} of {len(dropped) + len(units.names)} groups changed outputs")
        )
    else:
        text = f"random permutations of all {len(units.names)} groups change outputs and loss by {tried:.2g}: rounding"
        made.append(Check("groups", "pass", text, tried, limit))
    if units.unknown:
        text = f"no symmetry is known of {', '.join(units.unknown[:8])}: units that go through stay as they are"
        made.append(Check("operations", "pass", text, float(len(units.unknown))))
    return tuple(made)
