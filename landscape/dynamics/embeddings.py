"""The effective rank of a layer's output: how many directions its features use."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import MeasurementError
from ..widest import with_float64

#: Added to each share of the spectrum, as in the paper, so that a zero has a logarithm.
EPSILON = 1e-7


def effective_rank(features: Tensor) -> Tensor:
    """Return exp(-sum_i p_i log p_i) with p_i = s_i / ||s||_1 + 1e-7 over the singular values s of `features` (n, d).

    RankMe, Garrido et al. 2023 (arXiv:2210.02885, equation 1): the identity of size 8 gives 8, a matrix of rank one
    gives 1. Further dimensions, such as positions, count as samples. In float64, on the features' device, a scalar;
    no gradient. Costs the singular values of the matrix, min(n, d)^2 max(n, d) operations.

    Raises MeasurementError for features of fewer than two dimensions, without elements or that are not finite.
    """
    if features.ndim < 2 or not features.numel():
        raise MeasurementError(f"features of shape {tuple(features.shape)} have no rank; expected (n, d)")
    matrix = with_float64(features.detach().reshape(-1, features.shape[-1])).double()
    if not torch.isfinite(matrix).all():
        raise MeasurementError("the features hold NaN or inf: their rank is not defined")
    s = torch.linalg.svdvals(matrix)
    if not s.any():
        return s[0]  # zero
    p = s / torch.linalg.vector_norm(s, 1) + EPSILON
    return torch.exp(-(p * p.log()).sum())
