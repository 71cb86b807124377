"""In which form data come: tensors of all samples, single samples, or batches; told from their structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .batch import stays_whole
from .errors import TaskError


def is_columns(data: Any) -> bool:
    """Say whether `data` is (X, y) or {name: tensor}: arrays whose rows belong together, not batches.

    Raises TaskError where a sparse tensor among them may be the adjacency matrix of a graph.
    """
    if isinstance(data, Mapping):
        values: Sequence[Any] = list(data.values())
    elif isinstance(data, tuple):
        values = data
    else:
        return False
    if not values or not all(isinstance(v, torch.Tensor | np.ndarray) and v.ndim > 0 for v in values):
        return False
    if why := stays_whole(data):
        kind = "mapping" if isinstance(data, Mapping) else "tuple"
        raise TaskError(
            f"expected tensors whose rows are samples, got a {kind} with {why}: give a list of batches, [batch] where "
            f"this {kind} is the only one"
        )
    return True


def is_samples(data: Any) -> bool:
    """Say whether a list holds single samples, not batches: a batch holds no number without a dimension."""
    if not isinstance(data, list) or not data:
        return False
    first = data[0]
    values = list(first.values()) if isinstance(first, Mapping) else first
    if not isinstance(values, list | tuple):
        return False
    return any(isinstance(v, int | float) or (isinstance(v, torch.Tensor) and v.ndim == 0) for v in values)
