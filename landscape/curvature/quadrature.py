"""Gauss quadrature of an operator's spectrum: Lanczos runs from several start vectors, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from .krylov import Basis

#: A remainder under this many rounding errors of ||A|| is no new direction: an invariant subspace was found.
_BREAKDOWN = 32.0


@dataclass
class Tridiagonal:
    """What a Lanczos run knows of A: `alphas` (m,) on the diagonal, `betas` (m - 1,) beside it, float64 on the host.

    `invariant` says that the run ended in an invariant subspace: the matrix then holds all that its start sees of A.
    """

    alphas: list[float] = field(default_factory=list)
    betas: list[float] = field(default_factory=list)
    invariant: bool = False

    def rule(self, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the nodes (m,) and weights (m,) of the Gauss rule, of its first `steps` steps if given.

        Nodes are the matrix's eigenvalues, weights the squares of its eigenvectors' first components (Golub and
        Welsch 1969, doi:10.1090/S0025-5718-69-99647-1). The weights sum to 1; the rule is exact for polynomials up to
        degree 2m - 1, and for every function where the run ended in an invariant subspace.
        """
        m = min(steps or len(self.alphas), len(self.alphas))
        if m == 1:
            return np.array(self.alphas[:1]), np.ones(1)
        nodes, vectors = scipy.linalg.eigh_tridiagonal(np.array(self.alphas[:m]), np.array(self.betas[: m - 1]))
        weights = vectors[0] ** 2
        return nodes, weights / weights.sum()


class LanczosRun:
    """One run: its `basis` (m, n) on the device, the vector to multiply next, and the `matrix` so far."""

    def __init__(self, start: Tensor) -> None:
        self.basis = Basis(len(start), start.dtype, start.device)
        self.matrix = Tridiagonal()
        self.unit = start / torch.linalg.vector_norm(start)
        self._norm = 0.0

    def advance(self, product: Tensor, last: bool) -> bool:
        """Take A times `unit` in; return whether the run goes on, with `unit` the next vector to multiply."""
        self.basis.append(self.unit)
        along = self.basis.dot(product)
        rest = product - self.basis.combine(along)
        # Twice: after the first time rounding errors of the size of eps ||A v|| are left along the basis.
        again = self.basis.dot(rest)
        rest -= self.basis.combine(again)
        sizes = [torch.linalg.vector_norm(x, dtype=torch.float64) for x in (product, rest)]
        alpha, size, beta = torch.stack([(along[-1] + again[-1]).double(), *sizes]).tolist()
        self._norm = max(self._norm, size)
        small = beta <= _BREAKDOWN * torch.finfo(product.dtype).eps * self._norm
        self.matrix.alphas.append(alpha)
        self.matrix.invariant = small or len(self.basis) == self.basis.n
        if last or self.matrix.invariant:
            return False
        self.matrix.betas.append(beta)
        self.unit = rest / beta
        return True


def tridiagonalize(multiply: Callable[[Tensor], Tensor], starts: Tensor, steps: int) -> list[LanczosRun]:
    """Run `steps` of Lanczos from each column of `starts` (n, b), side by side: one block product (n, b) a step.

    Full reorthogonalization, twice at every step, on the device. A run ends early where it finds an invariant
    subspace (what is left of a product is rounding errors), and its column leaves the block. Holds b * steps vectors
    (n,). Source: Parlett, The Symmetric Eigenvalue Problem, 1998, doi:10.1137/1.9781611971163, chapter 13.
    """
    runs = [LanczosRun(start) for start in starts.T]
    going = runs
    for step in range(steps):
        products = multiply(torch.stack([run.unit for run in going], dim=1))
        last = step + 1 == steps
        going = [run for run, product in zip(going, products.T, strict=True) if run.advance(product, last)]
        if not going:
            break
    return runs
