"""What counts as a symmetric operator, what it is called, and what is wrong with a product of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import MeasurementError
from ..results import Check


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


def check_vector(v: Any, n: int) -> None:
    """Raise TypeError for what is no tensor, MeasurementError for one that no operator (n, n) can be multiplied by."""
    if not isinstance(v, Tensor):
        raise TypeError(f"A @ v needs a torch.Tensor, got {type(v).__name__}; for NumPy use A.to_scipy()")
    if v.ndim not in (1, 2) or v.shape[0] != n:
        raise MeasurementError(
            f"a vector of shape {tuple(v.shape)} doesn't fit the operator of shape {(n, n)}; "
            f"expected ({n},) or ({n}, k)"
        )


def origin_of(A: Any) -> tuple[str, str]:
    """Return what an operator is called and the split of the data it is taken over ("": none)."""
    if isinstance(A, Tensor):
        return "matrix", ""
    return getattr(A, "title", type(A).__name__), getattr(A, "split", "")


def account_of(A: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return how an operator's products were made, as a setting of the result, and what it has to remark."""
    how = getattr(A, "how", "")
    return ({"strategy": how} if how else {}), tuple(getattr(A, "notes", ()))


def symmetry_check(asymmetry: float, dtype: torch.dtype, bad: float, remains: str) -> Check:
    """Judge how far u.Av and v.Au differ, as a share of ||A||: a check that fails beyond `bad`.

    `remains` says what the result still is without symmetry. It warns from sqrt(eps) on (chosen by us).
    """
    limit = math.sqrt(torch.finfo(dtype).eps)
    if asymmetry <= limit:
        return Check("symmetry", "pass", "u.Av and v.Au agree", asymmetry, limit)
    text = (
        f"the operator is not symmetric: u.Av and v.Au differ by {asymmetry:.1e} of its norm; {remains} (a Hessian is "
        "symmetric, unless its products are inexact or a backward in the model is not differentiated in full: custom "
        "function, no_grad, NumPy inside)"
    )
    return Check("symmetry", "fail" if asymmetry > bad else "warn", text, asymmetry, limit)


def not_finite(product: Tensor, number: int, locate: Callable[[Tensor], str] | None) -> MeasurementError:
    """Return the error for product `number`, A v (n,), whose entries or whose norm are not finite.

    `locate` names the parameters in which they are not, where the operator can.
    """
    bad = int((~torch.isfinite(product)).sum())
    if bad:
        where = f", in {locate(product)}" if locate is not None else ""
        return MeasurementError(
            f"product {number} is not finite (NaN or inf in {bad} of {len(product)} entries{where}): the loss or its "
            "derivatives overflow here or do not exist (a square root at 0); look at the loss at these weights, or use "
            "float64"
        )
    return MeasurementError(
        f"product {number} overflows {str(product.dtype).removeprefix('torch.')} (its norm is not finite); "
        "use float64 or rescale the loss"
    )
