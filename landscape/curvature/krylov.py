"""The subspace behind `eigenpairs`: orthonormal vectors on the device, their projected matrix on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .chain import Chain
from .operands import not_finite

#: A block of basis vectors is allocated at once, of at most this many bytes and rows (chosen by us).
_BLOCK_BYTES, _BLOCK_ROWS = 1 << 26, 64
#: Sums over n are taken in pieces of this length on a CPU: over 25M float32 numbers they err by 1e-3 else, by 3e-6 so.
_PIECE = 1 << 18
#: Rounding errors of a Ritz vector's residual, in units of eps ||A|| (measured: 2 to 5 in float32).
_ROUNDING = 4.0
#: A remainder under this many rounding errors of ||A|| is no new direction: an invariant subspace was found.
_BREAKDOWN = 32.0


class Basis:
    """Row vectors (j, n) on one device, stored in blocks, so that growing never copies what is there."""

    def __init__(self, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.dtype, self.device = n, dtype, device
        self._rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // max(1, n * dtype.itemsize)))
        self._blocks: list[Tensor] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, i: int) -> Tensor:
        return self._blocks[i // self._rows][i % self._rows]

    def append(self, vector: Tensor) -> None:
        if self._count == len(self._blocks) * self._rows:
            self._blocks.append(torch.empty(self._rows, self.n, dtype=self.dtype, device=self.device))
        self._count += 1
        self[self._count - 1].copy_(vector)

    def pop(self, i: int) -> Tensor:
        """Return row `i` and put the last row in its place."""
        taken = self[i].clone()
        self[i].copy_(self[self._count - 1])
        self._count -= 1
        return taken

    def dot(self, x: Tensor) -> Tensor:
        """Return the inner product of every row with `x` (n,), as (j,) on the device."""
        parts = [_inner(block, x) for block in self._filled()]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def combine(self, weights: Tensor) -> Tensor:
        """Return sum_i weights[i] row_i: (n,) for weights (j,), (n, k) for weights (j, k)."""
        total, start = weights.new_zeros((self.n, *weights.shape[1:])), 0
        for block in self._filled():
            total += block.T @ weights[start : start + len(block)]
            start += len(block)
        return total

    def compress(self, weights: Tensor) -> None:
        """Replace the j rows by the l <= j combinations of the columns of `weights` (j, l), in place."""
        filled, keep = self._filled(), weights.shape[1]
        width = max(1, _BLOCK_BYTES // (8 * max(1, self._count)))
        for start in range(0, self.n, width):
            piece = slice(start, min(start + width, self.n))
            mixed = weights.T @ torch.cat([block[:, piece] for block in filled])
            for i in range(keep):
                self[i][piece] = mixed[i]
        self._count = keep
        del self._blocks[-(-keep // self._rows) :]

    def _filled(self) -> list[Tensor]:
        full, rest = divmod(self._count, self._rows)
        return self._blocks[:full] + ([self._blocks[full][:rest]] if rest else [])


@dataclass(frozen=True)
class Ritz:
    """Ritz pairs of a subspace: `values` (j,) ascending, `weights` (j, j) in columns over the basis.

    `coupling` (p, j) is how far A carries each Ritz vector onto each pending vector, `outside` (j,) its norm,
    and `residuals` (j,) the full ||A v - lambda v||, with what the projected matrix lacks of symmetry and what the
    rounding of v itself adds (`rounding`).
    """

    values: np.ndarray
    weights: np.ndarray
    coupling: np.ndarray
    outside: np.ndarray
    residuals: np.ndarray
    rounding: float

    @property
    def scale(self) -> float:
        """|lambda_1|: the largest magnitude among the Ritz values, a lower bound of ||A||."""
        return float(np.abs(self.values).max(initial=0.0))

    def gain(self, level: float) -> np.ndarray:
        """Return C (level - H)^-1 C^T (p, p): what the subspace adds to the operator outside, at `level`."""
        return (self.coupling / (level - self.values)) @ self.coupling.T


class Subspace:
    """A V = V H + P C with [V, P] orthonormal: every vector of V (j, n) was multiplied, P (p, n) is pending.

    One pending vector makes this Lanczos (H tridiagonal), several make it band Lanczos (Ruhe 1979,
    doi:10.1090/S0025-5718-1979-0521282-9), and after `restart` it is thick-restart Lanczos (Wu and Simon 2000,
    doi:10.1137/S0895479898334605): H is kept whole, so that all of them are the same few lines. H's column is
    what was measured, its row what symmetry predicts; their difference measures how symmetric A is. `chain` is the
    recurrence from the first vector for as long as nothing else came in between.
    Orthogonalization is classical Gram-Schmidt against everything, twice, with one transfer to the host for
    each product; H and C are float64 on the host.
    """

    def __init__(
        self,
        multiply: Callable[[Tensor], Tensor],
        n: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int,
        locate: Callable[[Tensor], str] | None = None,
    ) -> None:
        self.n, self.dtype, self.device = n, dtype, device
        self._multiply = multiply
        self._locate = locate
        # The CPU's generator, so that every device starts from the same vectors.
        self._generator = torch.Generator().manual_seed(seed)
        self.products = 0
        self.norm = 0.0
        self.asymmetry = 0.0
        self.basis = Basis(n, dtype, device)
        self.pending = Basis(n, dtype, device)
        self.projected = np.zeros((0, 0))
        self.coupling = np.zeros((0, 0))
        self.chain = Chain(n, share=0.0)

    def __len__(self) -> int:
        return len(self.basis)

    def random(self) -> Tensor:
        """Return a vector (n,) of independent standard normal numbers: its direction is uniform."""
        return torch.randn(self.n, generator=self._generator, dtype=self.dtype, device="cpu").to(self.device)

    def multiply(self, vector: Tensor) -> Tensor:
        """Return A @ vector, counted; what is not finite is found at the transfer that follows anyway."""
        self.products += 1
        return self._multiply(vector)

    def begin(self, vector: Tensor, share: float) -> None:
        """Make `vector` the first one; `share` of its unit vector is uniformly random (see `Chain`)."""
        self.inject(vector)
        # Two dimensions are too few for the reasoning about a start that is random in part.
        self.chain = Chain(self.n, share if self.n > 2 else float(share >= 1))

    def inject(self, vector: Tensor | None = None) -> None:
        """Make `vector` (a random one by default) pending, orthogonal to all there is.

        A vector that lies in the subspace already gives way to a random one.
        """
        self.chain.growing = False
        unit = None
        while unit is None:
            unit, _, _ = self.orthogonalize(
                self.random() if vector is None else vector, self.basis, self.pending, product=False
            )
            vector = None
        self.pending.append(unit)
        self.coupling = np.vstack([self.coupling, np.zeros((1, len(self)))])

    def expand(self, i: int) -> None:
        """Multiply pending vector `i`: it joins the basis, and what is new in its product becomes pending."""
        q, row = self.pending.pop(i), self.coupling[i].copy()
        self.coupling[i] = self.coupling[-1]
        self.coupling = self.coupling[:-1]
        j = len(self)
        self.basis.append(q)
        unit, c, beta = self.orthogonalize(self.multiply(q), self.basis, self.pending)
        self.projected = np.block([[self.projected, c[:j, None]], [row[None, :], c[j : j + 1, None]]])
        self.coupling = np.hstack([self.coupling, c[j + 1 :, None]])
        if unit is not None:
            self.pending.append(unit)
            self.coupling = np.vstack([self.coupling, beta * np.eye(1, j + 1, j)])
        self._compare(c[:j], row)
        if self.chain.growing:
            # At a breakdown what was dropped as rounding may have been as large as this.
            floor = _BREAKDOWN * torch.finfo(self.dtype).eps * self.norm
            self.chain.append(float(c[j]), beta if unit is not None else floor)
            self.chain.growing = unit is not None

    def absorb(self, probe: Probe) -> None:
        """Join the vectors that a probe has multiplied to the basis: not one product is spent twice."""
        self.chain.growing = False
        m, p = len(probe.basis), len(self.pending)
        along = np.stack([_host(probe.basis.dot(self.pending[i])) for i in range(p)]) if p else np.zeros((0, m))
        lifted = probe.gain @ along
        self.projected = np.block(
            [
                [self.projected, probe.across],
                [along.T @ self.coupling, probe.within - along.T @ lifted],
            ]
        )
        self._compare(probe.across, self.coupling.T @ along)
        old, self.pending = self.pending, Basis(self.n, self.dtype, self.device)
        coupling, self.coupling = np.hstack([self.coupling, -lifted]), np.zeros((0, len(self) + m))
        for i in range(m):
            self.basis.append(probe.basis[i])
        if probe.following is not None:
            self.pending.append(probe.following)
            self.coupling = np.vstack([self.coupling, probe.beta * np.eye(1, len(self), len(self) - 1)])
        # What the probe left of each pending vector; a part along the other pending vectors goes to their rows.
        for i in range(p):
            unit, c, size = self.orthogonalize(old[i], self.basis, self.pending, product=False)
            self.coupling += c[len(self) :, None] * coupling[i]
            if unit is not None:
                self.pending.append(unit)
                self.coupling = np.vstack([self.coupling, size * coupling[i]])

    def ritz(self) -> Ritz:
        """Return the Ritz pairs of the basis (float64 on the host, O(j^3); j is at most about 1,000)."""
        values, weights = np.linalg.eigh((self.projected + self.projected.T) / 2)
        coupling = self.coupling @ weights
        outside = np.linalg.norm(coupling, axis=0)
        inside = np.linalg.norm(self.projected @ weights - weights * values, axis=0)
        rounding = _ROUNDING * torch.finfo(self.dtype).eps * np.abs(values).max(initial=0.0)
        return Ritz(values, weights, coupling, outside, np.sqrt(outside**2 + inside**2 + rounding**2), float(rounding))

    def restart(self, weights: np.ndarray) -> None:
        """Keep only the Ritz vectors `weights` (j, l) and the pending vectors: no information on them is lost."""
        self.chain.growing = False
        self.basis.compress(self.tensor(weights))
        self.projected = weights.T @ self.projected @ weights
        self.coupling = self.coupling @ weights

    def orthogonalize(self, x: Tensor, *groups: Basis, product: bool = True) -> tuple[Tensor | None, np.ndarray, float]:
        """Split `x` into its part in the groups' span (coefficients) and beta times a unit vector outside.

        The unit vector is None where x has nothing outside but rounding errors; `x` itself is never written.
        """
        first = _dots(groups, x)
        rest = x - _combine(groups, first)
        norms = [_norms(x), _norms(rest)]
        second = _dots(groups, rest)
        rest -= _combine(groups, second)
        norms.append(_norms(rest))
        host = _host(torch.cat([first + second, *norms]))
        coefficients, sums = host[: len(first)], host[len(first) :].reshape(3, -1)
        with np.errstate(over="ignore", invalid="ignore"):
            size, before, after = np.sqrt((sums**2).sum(axis=1))
        if not np.isfinite(host).all():
            raise not_finite(x, self.products, self._locate)
        if product:
            self.norm = max(self.norm, float(size))
        eps = torch.finfo(self.dtype).eps
        if after <= _BREAKDOWN * eps * (self.norm if product else size) or self._full(groups):
            return None, coefficients, 0.0
        unit = rest / after
        # Twice is enough unless the remainder is near rounding: then once more, until it stands still.
        while after < 0.5 * before:
            again = _dots(groups, unit)
            unit = unit - _combine(groups, again)
            left = float(np.linalg.norm(_host(_norms(unit))))
            if left < 0.1:
                return None, coefficients, 0.0
            coefficients = coefficients + after * _host(again)
            before, after = after, after * left
            unit = unit / left
        return unit, coefficients, float(after)

    def tensor(self, values: np.ndarray) -> Tensor:
        """Return `values` on the device in the operator's dtype."""
        return torch.from_numpy(values).to(self.dtype).to(self.device)

    def _full(self, groups: tuple[Basis, ...]) -> bool:
        return sum(map(len, groups)) >= self.n

    def _compare(self, measured: np.ndarray, predicted: np.ndarray) -> None:
        if measured.size and self.norm > 0:
            self.asymmetry = max(self.asymmetry, float(np.abs(measured - predicted).max()) / self.norm)


@dataclass(frozen=True)
class Probe:
    """A Krylov chain in the orthogonal complement of a subspace, for `Subspace.absorb`.

    `basis` (m, n) was multiplied; `across` (j, m) is V^T A R, `within` (m, m) the projection of the probed operator
    P_V A P_V + P gain P^T, and `following` the next vector of the chain with its `beta` (None: invariant).
    """

    basis: Basis
    across: np.ndarray
    within: np.ndarray
    gain: np.ndarray
    following: Tensor | None
    beta: float


def _inner(block: Tensor, x: Tensor) -> Tensor:
    if x.device.type != "cpu" or len(x) <= _PIECE:
        return block @ x
    pairs = zip(block.split(_PIECE, dim=1), x.split(_PIECE), strict=True)
    return torch.stack([b @ piece for b, piece in pairs]).sum(dim=0)


def _dots(groups: tuple[Basis, ...], x: Tensor) -> Tensor:
    return torch.cat([group.dot(x) for group in groups])


def _combine(groups: tuple[Basis, ...], weights: Tensor) -> Tensor:
    parts = weights.split([len(group) for group in groups])
    total = groups[0].combine(parts[0])
    for group, part in zip(groups[1:], parts[1:], strict=True):
        if len(group):
            total += group.combine(part)
    return total


def _norms(x: Tensor) -> Tensor:
    return torch.stack(torch._foreach_norm(x.split(_PIECE)))


def _host(x: Tensor) -> np.ndarray:
    return x.cpu().numpy().astype(np.float64)
