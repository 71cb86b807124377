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


def generators(group: Atom, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a random cycle through all units of a group, and a swap of two that are neighbors in it.

    Every permutation is a product of these two: what neither changes, none does.
    """
    sequence = np.random.default_rng(seed).permutation(group.size)
    cycle, swap = np.arange(group.size), np.arange(group.size)
    cycle[sequence] = np.roll(sequence, 1)
    swap[sequence[:2]] = sequence[1::-1]
    return cycle, swap


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


def differences(
    objective: Objective,
    units: Units,
    state: State,
    trials: Sequence[Permutations],
    update: Callable[[], object],
    batches: int | None = None,
) -> list[float]:
    """Return for each of these permutations of a state the largest difference of an output or the loss that it makes.

    As a share of the tensor's largest value, over the first `batches` (None for all); infinite where shapes or holes
    differ. Costs one pass and one for each trial.
    """
    count = len(objective) if batches is None else batches
    worst = [0.0] * len(trials)
    put(objective, state)
    with objective.measuring():
        for i in range(count):
            before = _given(objective, i)
            for k, permutations in enumerate(trials):
                other = permuted(units, state, permutations)
                put(objective, other)
                worst[k] = max(worst[k], _largest(before, _given(objective, i)))
                put(objective, {n: state[n] for n in other})
                update()
    objective.passes += (1 + len(trials)) * count / len(objective)
    return worst


def _given(objective: Objective, i: int) -> list[torch.Tensor]:
    parts = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in given_by(objective, i)]
    return [t.detach().double() for t in parts if t.is_floating_point()]


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
    """Return the groups whose permutations change nothing, the names of the others, the largest difference.

    At weights near the state in which no two units are alike (where they give no finite outputs: at the state itself):
    each group alone on the first batch, by permutations that generate all others, then all together on every batch.
    Costs two passes of a batch for each group, and two of the draw; more where other batches show more.
    """
    parameters = {n for n, _ in objective.model.named_parameters(remove_duplicate=False)}
    probe = generic(state, parameters, seed)
    put(objective, probe)
    with objective.measuring():
        if not all(bool(torch.isfinite(t).all()) for t in _given(objective, 0)):
            probe = dict(state)

    def largest(trials: Sequence[Permutations], batches: int | None = None) -> list[float]:
        return differences(objective, units, probe, trials, update, batches)

    pairs = {g: generators(g, seed) for g in units.names}
    alone = largest([{g: p} for g, pair in pairs.items() for p in pair], batches=1)
    wrong = [g for g, *changes in zip(pairs, alone[::2], alone[1::2], strict=True) if not max(changes) <= limit]
    dropped = [units.names[g] for g in wrong]
    units = units.without(*wrong)
    while units.names:
        together = {g: pairs[g][0] for g in units.names}
        (change,) = largest([together])
        if change <= limit:
            return units, tuple(dropped), change
        alone = largest([{g: p} for g, p in together.items()])
        wrong = [g for g, one in zip(together, alone, strict=True) if not one <= limit]
        wrong = wrong or list(together)  # together they change what none changes alone
        dropped += [units.names[g] for g in wrong]
        units = units.without(*wrong)
    return units, tuple(dropped), 0.0
