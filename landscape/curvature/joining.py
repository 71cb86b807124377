"""Batches so small that the calls take the time, and not the numbers: how many of them to make one of, by trial."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..errors import LandscapeError
from ..objective import Objective
from .graphs import BatchGraph, Tensors
from .trials import GAIN, agree, by_columns, probe_vector, timed

#: What the calls may still take of a product through joined batches: larger ones gain no more than that (chosen by us).
CALLS = 0.05
#: A trial costs a few products of two batches. Batches that take longer than this, in seconds, are tried only where
#: there are so many that the trial is cheap beside one product of the whole draw (chosen by us).
QUICK, MANY = 0.02, 8
#: A product of at least this many seconds is timed once (chosen by us: what disturbs a machine lasts less).
LONG = 0.002
#: The same sum in another order: product and weight must agree to this share (chosen by us, 100 times the rounding).
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-11}


def batches_to_join(objective: Objective, graph: Callable[[int], BatchGraph], parameters: Tensors) -> int:
    """Return how many successive batches to make one of, 1 for none.

    `graph(i)` builds the graph of batch i of the objective as it is at the time. From the time of two batches and of
    the same two as one follows what the calls take, and so how many batches must come together for that to be small;
    one such group then has to show the product of its batches, and to be faster by GAIN. Costs two graphs and two
    products of two batches, and of a group where that looks worth while; products of less than `LONG` twice.
    """
    if objective.join_batches(2) is None:
        return 1
    trial, count = _Trial(objective, graph, parameters), len(objective)
    try:
        apart = trial.apart(2)
        if apart.seconds > 2 * QUICK and count < MANY:
            return 1
        together = trial.together(2)
        calls = apart.seconds - together.seconds
        numbers = apart.seconds / 2 - calls
        wanted = math.ceil(calls * (1 - CALLS) / (CALLS * numbers)) if numbers > 0 else count
        wanted = max(1, min(wanted, count))
        if wanted * (calls + numbers) < GAIN * (calls + wanted * numbers):
            return 1
        if wanted > 2:
            apart, together = trial.apart(wanted), trial.together(wanted)
    except (RuntimeError, LandscapeError):  # out of memory too: the batches are left as they are
        return 1
    share = ROUNDING.get(objective.dtype, ROUNDING[torch.float32])
    if not any(bool(t.any()) for t in apart.sums):  # of nothing but zeros, it would be the same whatever the loss does
        return 1
    same = agree(apart.sums, together.sums, ROUNDING) and abs(together.weight - apart.weight) <= share * apart.weight
    return wanted if same and together.seconds * GAIN < apart.seconds else 1


class _Product(NamedTuple):
    """sum_i w_i A_i v, sum_i w_i, and the time it took."""

    sums: Tensors
    weight: float
    seconds: float


class _Trial:
    """The product of an objective's first batches with one vector, and its time: batch by batch, or as one batch."""

    def __init__(self, objective: Objective, graph: Callable[[int], BatchGraph], parameters: Tensors) -> None:
        self._objective = objective
        self._graph = graph
        self._v = probe_vector(parameters)
        self._share = 1 / len(objective)
        self._alone: list[BatchGraph] = []

    def apart(self, count: int) -> _Product:
        """Return the product of the first `count` batches."""
        while len(self._alone) < count:
            self._alone.append(self._graph(len(self._alone)))
            self._objective.passes += 3 * self._share
        return self._multiplied(self._alone[:count], count)

    def together(self, count: int) -> _Product:
        """Return the same of these batches made one."""
        with self._objective.using(self._objective.join_batches(count)):
            graph = self._graph(0)
        self._objective.passes += 3 * count * self._share
        return self._multiplied([graph], count)

    def _multiplied(self, graphs: list[BatchGraph], count: int) -> _Product:
        def product() -> list[Any]:
            self._objective.passes += 6 * count * self._share
            sums = [torch.zeros_like(t) for t in self._v]
            for g in graphs:
                if g.weight > 0:
                    torch._foreach_add_(sums, by_columns(g.product, self._v), alpha=g.weight)
            return sums

        found, seconds = timed(product, self._objective.device, enough=LONG)
        return _Product(found, sum(g.weight for g in graphs), seconds)
