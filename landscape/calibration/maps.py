"""What a recalibration does to scores: four maps, the same arithmetic for NumPy arrays and torch tensors.

Every function takes scores with the classes last, (..., classes), or, for a binary task, scores of class 1 of any
shape; and parameters that lie where the scores lie, in their precision.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

import numpy as np

Method = Literal["temperature", "vector", "isotonic", "histogram"]
METHODS: tuple[Method, ...] = ("temperature", "vector", "isotonic", "histogram")
#: Methods that move logits; the others map probabilities.
ON_LOGITS = ("temperature", "vector")
#: The parameters of each method, as they are stored.
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "vector": ("weights", "biases"),
    "isotonic": ("knots", "levels", "owners"),
    "histogram": ("knots", "levels", "owners"),
}


def library_of(scores: Any) -> ModuleType:
    """Return the module (numpy or torch) whose functions these scores are for."""
    torch = sys.modules.get("torch")  # whoever holds a tensor has imported it
    return torch if torch is not None and isinstance(scores, torch.Tensor) else np


def mapped(
    scores: Any,
    method: str,
    parameters: Mapping[str, Any],
    *,
    binary: bool,
    given: str,
    wanted: str,
) -> Any:
    """Return recalibrated scores; `given` and `wanted` are "logits" or "probabilities".

    Logits of one class against the rest that come from probabilities are their logarithms (for a binary task their
    log odds): any constant added to a row would give the same probabilities.
    """
    on = "logits" if method in ON_LOGITS else "probabilities"
    x = converted(scores, given, on, binary=binary)
    if method == "temperature":
        x = x / parameters["temperature"]
    elif method == "vector":
        x = x * parameters["weights"] + parameters["biases"]
    else:
        x = _levels(x, method, parameters, binary=binary)
    return converted(x, on, wanted, binary=binary)


def converted(scores: Any, given: str, wanted: str, *, binary: bool) -> Any:
    """Return logits as probabilities or the other way; the scores themselves where they are what is wanted."""
    if given == wanted:
        return scores
    xp = library_of(scores)
    if wanted == "logits":
        return xp.log(scores) - xp.log1p(-scores) if binary else xp.log(scores)
    if binary:
        # exp of a negative number only: no overflow.
        small = xp.exp(-abs(scores))
        return xp.where(scores >= 0, 1 / (1 + small), small / (1 + small))
    p = xp.exp(scores - xp.amax(scores, axis=-1, keepdims=True))
    return p / xp.sum(p, axis=-1, keepdims=True)


def _levels(p: Any, method: str, parameters: Mapping[str, Any], *, binary: bool) -> Any:
    """Return each class's probability through its own map of levels at knots, then normalized over the classes."""
    xp = library_of(p)
    look_up = _interpolated if method == "isotonic" else _stepped
    knots, levels, owners = (parameters[name] for name in PARAMETERS[method])
    if binary:
        return look_up(xp, p, knots, levels)
    each = xp.moveaxis(p, -1, 0)
    each = np.ascontiguousarray(each) if xp is np else each.contiguous()
    columns = [look_up(xp, each[k], knots[owners == k], levels[owners == k]) for k in range(len(each))]
    raw = xp.stack(columns, -1)
    return raw / xp.sum(raw, axis=-1, keepdims=True)


def _stepped(xp: ModuleType, p: Any, knots: Any, levels: Any) -> Any:
    """Return levels[b] for p in (knots[b - 1], knots[b]]."""
    place = xp.searchsorted(knots, p, side="left")
    return levels[xp.clip(place, 0, len(knots) - 1)]


def _interpolated(xp: ModuleType, p: Any, knots: Any, levels: Any) -> Any:
    """Return the line through (knots, levels) at p, constant beyond its ends."""
    if len(knots) == 1:
        return p * 0 + levels[0]
    right = xp.clip(xp.searchsorted(knots, p, side="left"), 1, len(knots) - 1)
    x0, x1 = knots[right - 1], knots[right]
    y0, y1 = levels[right - 1], levels[right]
    return y0 + (y1 - y0) * xp.clip((p - x0) / (x1 - x0), 0.0, 1.0)
