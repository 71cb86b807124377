"""What counts as a symmetric operator, and what it is called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import MeasurementError


def dimension_of(A: Any) -> tuple[int, torch.dtype, torch.device]:
    """Return (n, dtype, device) of a symmetric operator; TypeError or MeasurementError if it is none."""
    for name in ("shape", "dtype", "device"):
        if not hasattr(A, name):
            raise TypeError(
                f"expected a symmetric operator with shape, dtype, device and A @ v; {type(A).__name__} has no {name}"
            )
    shape, dtype = tuple(A.shape), A.dtype
    if len(shape) != 2 or shape[0] != shape[1]:
        raise MeasurementError(f"expected a square operator (n, n), got shape {shape}; pass a symmetric one")
    if shape[0] == 0:
        raise MeasurementError("the operator has no parameters (shape (0, 0)); select at least one")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected an operator in float32 or float64, got {dtype}; convert the model first")
    return int(shape[0]), dtype, torch.device(A.device)


def origin_of(A: Any) -> tuple[str, str]:
    """Return what an operator is called and the split of the data it is taken over ("": none)."""
    if isinstance(A, Tensor):
        return "matrix", ""
    return getattr(A, "title", type(A).__name__), getattr(A, "split", "")


def account_of(A: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return how an operator's products were made, as a setting of the result, and what it has to remark."""
    how = getattr(A, "how", "")
    return ({"strategy": how} if how else {}), tuple(getattr(A, "notes", ()))
