"""Trials: two ways of making the same products, compared by what they give and by the time they take."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..clock import cpu_clock
from ..objective import Objective
from .graphs import Tensors

#: Another way of multiplying must agree to this share with the plain one, and be faster by this factor (chosen by us).
AGREEMENT: Mapping[torch.dtype, float] = {torch.float32: 1e-3, torch.float64: 1e-8}
GAIN = 1.15


def findings(objective: Objective) -> dict[Any, Any]:
    """Return what trials found out on this draw, on this device and in this precision; to be added to.

    Kept with the task, until one of its arguments is changed: who measures every thousand steps of a training run tries
    once.
    """
    key = (objective.split, objective.fingerprint, objective.device, objective.dtype)
    return objective.task._findings.setdefault(key, {})


def probe_vector(parameters: Tensors) -> list[torch.Tensor]:
    """Return the vector that trials multiply, as one column over the parameters: the same at every trial."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, *p.shape, generator=generator, dtype=p.dtype, device="cpu").to(p.device) for p in parameters]


def by_columns(multiply: Callable[..., Tensors], V: Tensors, *, free: bool = False) -> list[Any]:
    """Return the products with each column, stacked along dimension 0; `free` frees the graph with the last one."""
    k = len(V[0])
    each = [multiply([v[c] for v in V], **({"last": c == k - 1} if free else {})) for c in range(k)]
    if k == 1:
        return [t.unsqueeze(0) for t in each[0]]
    return [torch.stack(parts) for parts in zip(*each, strict=True)]


def timed(
    call: Callable[[], Tensors], device: torch.device, times: int = 2, enough: float = math.inf
) -> tuple[Tensors, float]:
    """Return the result and the least time of `times`: a busy machine delays now the one, now the other.

    A call that takes longer than `enough` seconds is not repeated.
    """
    result, least = [], float("inf")
    clock = cpu_clock(device)
    for _ in range(times):
        start = clock()
        result = call()
        least = min(least, clock() - start)
        if least > enough:
            break
    return result, least


def quiet(call: Callable[[], Any]) -> Any:
    """Run without the remarks that torch's transforms make about themselves (operations run one by one: time tells)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def agree(a: Tensors, b: Tensors, share: Mapping[torch.dtype, float] = AGREEMENT) -> bool:
    """Say whether two products are the same to this share of the first, in the norm of the worst tensor."""
    scale = max(float(x.norm()) for x in a)
    apart = max(float((x - y).norm()) for x, y in zip(a, b, strict=True))
    return apart <= share.get(a[0].dtype, max(share.values())) * scale
