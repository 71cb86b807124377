"""Hold what was found against the model itself: permuted units must leave outputs and loss as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from ..objective import Objective
from .axes import Atom
from .units import Permutations, Units, given_by

State = Mapping[str, torch.Tensor]
#: Share of a tensor's root mean square by which generic weights differ from it (chosen by us).
NOISE = 0.1


def generic(state: State, parameters: set[str], seed: int) -> dict[str, torch.Tensor]:
    """Return a state near this one in which no two units are alike by chance, as those of fresh scales and biases are.

    Buffers only grow: variances must stay above zero.
    """
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, value in state.items():
        if not value.is_floating_point():
            made[name] = value
            continue
        t = value.detach().cpu().double()
        size = NOISE * (float(t.square().mean().sqrt()) or 1.0) if t.numel() else 0.0
        if name in parameters:
            made[name] = t + size * torch.randn(t.shape, generator=generator, dtype=t.dtype, device="cpu")
        else:
            made[name] = t + size * torch.rand(t.shape, generator=generator, dtype=t.dtype, device="cpu")
    return made


def shuffled(groups: Sequence[Atom], seed: int) -> Permutations:
    """Return a random permutation of each group."""
    generator = np.random.default_rng(seed)
    return {g: generator.permutation(g.size) for g in groups}


def put(objective: Objective, state: State) -> None:
    """Write a state into an entered objective's model."""
    with objective.writing() as live:
        for name, value in state.items():
            if name in live:
                live[name].copy_(value)


def permuted(units: Units, state: State, permutations: Permutations) -> dict[str, torch.Tensor]:
    """Return the tensors of a state that permutations change, permuted."""
    names = [n for n in units.touched(permutations) if n in state]
    return {n: units.permuted(n, state[n], permutations) for n in names}


def difference(
    objective: Objective, units: Units, state: State, permutations: Permutations, update: Callable[[], object]
) -> list[float]:
    """Return for each batch the largest difference of an output or the loss that permuting a state makes.

    As a share of the tensor's largest value; infinite where shapes or holes differ. Costs two passes.
    """
    other = permuted(units, state, permutations)
    own = {n: state[n] for n in other}
    put(objective, state)
    found = []
    with objective.measuring():
        for i in range(len(objective)):
            sides = []
            for now in (own, other):
                put(objective, now)
                sides.append(_given(objective, i))
            put(objective, own)
            found.append(_largest(*sides))
            update()
    objective.passes += 2
    return found


def _given(objective: Objective, i: int) -> list[torch.Tensor]:
    return [t.detach().double() for t in given_by(objective, i) if t.is_floating_point()]


def _largest(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    if [t.shape for t in a] != [t.shape for t in b]:
        return math.inf
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        if not x.numel():
            continue
        if not torch.equal(torch.isfinite(x), torch.isfinite(y)):
            return math.inf
        x, y = (torch.nan_to_num(t, 0.0, 0.0, 0.0) for t in (x, y))
        scale = float(x.abs().max())
        worst = max(worst, float((x - y).abs().max()) / (scale or 1.0))
    return worst


def verified(
    objective: Objective, units: Units, state: State, limit: float, seed: int, update: Callable[[], object]
) -> tuple[Units, tuple[str, ...], float]:
    """Return the groups whose random permutations change nothing, the names of the others, the largest difference.

    At weights near the state in which no two units are alike (where they give no finite outputs: at the state itself)
    and on every batch. Costs two passes, and two for each group where one fails.
    """
    parameters = {n for n, _ in objective.model.named_parameters(remove_duplicate=False)}
    probe = generic(state, parameters, seed)
    put(objective, probe)
    with objective.measuring():
        if not all(bool(torch.isfinite(t).all()) for t in _given(objective, 0)):
            probe = dict(state)
    dropped: list[str] = []
    while units.names:
        largest = max(difference(objective, units, probe, shuffled(list(units.names), seed), update))
        if largest <= limit:
            return units, tuple(dropped), largest
        wrong = [
            g for g in units.names if not max(difference(objective, units, probe, shuffled([g], seed), update)) <= limit
        ]
        wrong = wrong or list(units.names)  # together they change what none changes alone
        dropped += [units.names[g] for g in wrong]
        units = units.without(*wrong)
    return units, tuple(dropped), 0.0
