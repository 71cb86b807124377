"""One model whose parts lie in several entries, {"encoder": ..., "decoder": ...}: together, where they fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from ..errors import CheckpointError
from .fit import fit

V = TypeVar("V")


def fits(weights: Mapping[str, torch.Tensor], model: nn.Module) -> bool:
    """Whether these weights are the model's, under its names and in its shapes."""
    try:
        fit(weights, model)
    except CheckpointError:
        return False
    return True


def under_keys(parts: Mapping[str, Mapping[str, V]]) -> dict[str, V]:
    """Return {key.name: tensor} of all parts."""
    return {f"{key}.{name}": v for key, part in parts.items() for name, v in part.items()}


def side_by_side(parts: Mapping[str, Mapping[str, V]]) -> dict[str, V] | None:
    """Return {name: tensor} of all parts; None where two of them hold the same name."""
    counts = Counter(name for part in parts.values() for name in part)
    return None if max(counts.values(), default=0) > 1 else {n: v for part in parts.values() for n, v in part.items()}


def joined(
    parts: Mapping[str, Mapping[str, torch.Tensor]], model: nn.Module
) -> tuple[tuple[str, ...], bool, str] | None:
    """Return (keys, whether the keys become prefixes, what was done) of parts that together are the whole model.

    The names with their keys before them are tried, then as they are; of the entries all, then those whose key the
    model's own names begin with (a discriminator beside an autoencoder is none). None where nothing fits exactly.
    """
    own = {name.partition(".")[0] for name in model.state_dict()}
    wanted = {key: part for key, part in parts.items() if key.partition(".")[0] in own}
    for chosen in (dict(parts), wanted) if len(wanted) < len(parts) else (dict(parts),):
        if len(chosen) < 2:
            continue
        keys = tuple(chosen)
        if fits(under_keys(chosen), model):
            return keys, True, f"weights put together from {_and(keys)}, as the model's parts of these names"
        flat = side_by_side(chosen)
        if flat is not None and fits(flat, model):
            return keys, False, f"weights put together from {_and(keys)}, which hold each of the model's names once"
    return None


def _and(keys: tuple[str, ...]) -> str:
    shown = [repr(k) for k in keys]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"
