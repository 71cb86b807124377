"""Steps that no loss term suffers from, where the gradients of several terms or tasks pull against each other."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from ..errors import MeasurementError
from ..widest import with_float64

#: Eigenvalues of a Gram matrix below this share of the largest count as 0 (chosen by us: what float64 leaves of them).
_NOTHING = 1e-12


def upgrad(jacobian: Tensor) -> Tensor:
    """Return UPGrad's direction (p,): the mean of the rows' projections onto the directions that raise no term.

    `jacobian` J (k, p) holds the gradients of k terms. Each row is projected onto the cone of the d with J d >= 0:
    along -d every term falls, or stays, in first order. The result is such a direction, and the rows' mean where no two
    of them conflict. Costs k^2 products of rows, and k small non-negative least squares on the CPU.

    Raises MeasurementError for gradients that aren't finite, or no matrix.
    Source: Quinton and Rey 2024, Jacobian Descent for Multi-Objective Optimization, arXiv:2406.16232.
    """
    gram = _gram(jacobian)
    values, vectors = np.linalg.eigh(gram)
    kept = values > _NOTHING * max(values[-1], 0.0)
    root = np.sqrt(values[kept])[:, None] * vectors[:, kept].T  # (rank, k), root^T root = gram
    if not kept.any():
        return torch.zeros_like(jacobian[0])
    # The projection of row i is J^T w, with w >= e_i of the least norm: w = e_i + s, s >= 0.
    weights = np.zeros(len(gram))
    for i in range(len(gram)):
        weights += nnls(root, -root[:, i])[0]
        weights[i] += 1.0
    return _combined(weights / len(gram), jacobian)


def conflict_free(jacobian: Tensor) -> Tensor:
    """Return ConFIG's direction (p,): at one angle to all rows, as long as the rows' projections onto it together.

    `jacobian` (k, p) holds the gradients of k terms; rows that are 0 have no direction and are left out. Where the rows
    depend on each other, the angles are equal in the least squares sense. Costs k^2 products of rows.

    Raises MeasurementError for gradients that aren't finite, or no matrix.
    Source: Liu, Chu and Thuerey 2024, ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks,
    arXiv:2408.11104.
    """
    gram = _gram(jacobian)
    norms = np.sqrt(np.diag(gram))
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = gram * np.outer(scale, scale)
    # pinv(U) 1 = U^T pinv(U U^T) 1 for the unit rows U, so that k x k numbers decide.
    own = scale * (np.linalg.pinv(cosines, rcond=_NOTHING, hermitian=True) @ (norms > 0))
    squared = float(own @ gram @ own)
    if squared <= 0:
        return torch.zeros_like(jacobian[0])
    return _combined(own * (gram @ own).sum() / squared, jacobian)


def _gram(jacobian: Tensor) -> np.ndarray:
    """Return the products of the rows (k, k) in float64."""
    if jacobian.ndim != 2 or not len(jacobian):
        raise MeasurementError(f"gradients of shape {tuple(jacobian.shape)}: expected a row for each term, (k, p)")
    rows = with_float64(jacobian.detach()).double()
    gram = (rows @ rows.T).cpu().numpy()
    if not np.isfinite(gram).all():
        raise MeasurementError("a gradient is not finite; look at the terms of the loss one by one")
    return gram


def _combined(weights: np.ndarray, jacobian: Tensor) -> Tensor:
    return torch.as_tensor(weights, dtype=jacobian.dtype, device=jacobian.device) @ jacobian
