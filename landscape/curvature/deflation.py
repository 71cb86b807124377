"""Hutch++, XTrace and XDiag: a random sketch takes the large eigenvalues out; only a small rest is estimated."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .probing import Probing, standard_error

#: Fewest products: two of everything that a spread is taken over, and a sketch.
FEWEST = {"hutch++": 6, "xtrace": 4, "xdiag": 4}
#: A test vector is needed for the range of the sketch when its leverage is 1 to this tolerance (chosen by us).
_ESSENTIAL = 1e-6
#: Groups of test vectors that XTrace's jackknife leaves out at most.
_GROUPS = 24


class HutchPlusPlus:
    """Hutch++ (Meyer, Musco, Musco and Woodruff 2021, doi:10.1137/1.9781611976496.16), which can be continued.

    A third of the products sketches the range, Q = orth(A S); a third gives tr(Q^T A Q) exactly; a third estimates
    the trace of (I - QQ^T) A (I - QQ^T) by Hutchinson's way. Each sample is the exact part plus one draw of the rest:
    their mean is the estimate. A continued run makes the sketch larger and corrects the products of the earlier draws
    by those with the new columns of Q, so that none is spent twice. Holds Q, A Q, the draws and their products:
    4/3 n numbers for each product spent.
    """

    def __init__(self, probing: Probing) -> None:
        self._probing = probing
        empty = torch.empty(probing.n, 0, dtype=probing.dtype, device=probing.device)
        self._range, self._image, self._rest, self._products = empty, empty, empty, empty

    def extend(self, products: int) -> np.ndarray:
        """Spend this many products in all (earlier ones included) and return the samples (draws,), in float64."""
        probing = self._probing
        target = products // 3
        fresh = min(target, probing.n) - self._range.shape[1]
        if fresh > 0:
            new = _orthonormal(probing.multiply(probing.signs(fresh)), self._range)
            image = probing.multiply(new)
            along = new.T @ self._rest
            self._rest, self._products = self._rest - new @ along, self._products - image @ along
            self._range = torch.cat([self._range, new], dim=1)
            self._image = torch.cat([self._image, image], dim=1)
        draws = products - probing.products
        rest = probing.signs(draws)
        rest = rest - self._range @ (self._range.T @ rest)
        self._rest = torch.cat([self._rest, rest], dim=1)
        self._products = torch.cat([self._products, probing.multiply(rest)], dim=1)
        exact = float((self._range * self._image).sum(dtype=torch.float64))
        return exact + _column_sums(self._rest * self._products)

    def standard_error(self, samples: np.ndarray) -> float:
        """Return the standard error of the mean of `samples`, those of the last `extend`."""
        return standard_error(samples)


class _Exchangeable:
    """Test vectors W (n, k), their products A W, an orthonormal basis Q of those, and A Q: what XTrace and XDiag hold.

    Half of the products are A W, half A Q. `only` (k, k) holds in column i the direction s_i within Q that vector i
    alone spans, so that Q (I - s_i s_i^T) Q^T projects on the sketch of all vectors but the i-th.
    """

    def __init__(self, probing: Probing, draw: Callable[[int], Tensor]) -> None:
        empty = torch.empty(probing.n, 0, dtype=probing.dtype, device=probing.device)
        self.vectors, self.products, self.range, self.image = empty, empty, empty, empty
        self.only = np.zeros((0, 0))
        self._probing, self._draw = probing, draw

    @property
    def whole(self) -> bool:
        """Whether the sketch is the whole space, so that nothing is left to estimate."""
        return self.range.shape[1] == self._probing.n

    def extend(self, products: int) -> None:
        """Spend this many products in all, earlier ones included."""
        probing = self._probing
        fresh = min(products // 2, probing.n) - self.vectors.shape[1]
        if fresh <= 0:
            return
        vectors = self._draw(fresh)
        image = probing.multiply(vectors)
        new = _orthonormal(image, self.range)
        self.vectors = torch.cat([self.vectors, vectors], dim=1)
        self.products = torch.cat([self.products, image], dim=1)
        self.range = torch.cat([self.range, new], dim=1)
        self.image = torch.cat([self.image, probing.multiply(new)], dim=1)
        self.only = _only_through(_host(self.range.T @ self.products), float(torch.finfo(probing.dtype).eps))


class XTrace:
    """XTrace (Epperly, Tropp and Webber 2024, doi:10.1137/23M1548323), which can be continued.

    Every test vector serves twice: in the sketch Q_i of all the others, and as the draw of what Q_i leaves. The
    estimates (one for each vector) are exchangeable; their mean is the estimate. As published, the vectors have no
    preferred axis (normal numbers, not signs), and what is left of each is scaled to the length that it has in
    expectation. Holds 2 n numbers for each product spent.
    """

    def __init__(self, probing: Probing) -> None:
        self._sketch = _Exchangeable(probing, probing.normal)
        self._reduced: _Reduced | None = None

    def extend(self, products: int) -> np.ndarray:
        """Spend this many products in all (earlier ones included) and return the estimates (draws,), in float64."""
        sketch = self._sketch
        sketch.extend(products)
        within, n = _host(sketch.range.T @ sketch.image), len(sketch.range)
        if sketch.whole:
            self._reduced = None
            return np.full(max(n, 2), np.trace(within))
        self._reduced = _Reduced(
            n,
            float(torch.finfo(sketch.range.dtype).eps),
            within,
            _host(sketch.range.T @ sketch.vectors),
            _host(sketch.image.T @ sketch.vectors),
            _host(sketch.range.T @ sketch.products),
            _column_sums(sketch.vectors * sketch.products),
            _column_sums(sketch.vectors.square()),
        )
        return self._reduced.estimates(sketch.only)

    def standard_error(self, samples: np.ndarray) -> float:
        """Return the jackknife's standard error of the mean of `samples`, those of the last `extend`.

        The paper's error, the spread of the estimates over sqrt(k), takes them for independent; but each shares all
        but one vector of its sketch with every other. The jackknife forms the whole estimate anew without each vector
        (without each of 24 groups of them, where there are more: chosen by us, a singular value decomposition each):
        by Efron and Stein 1981, doi:10.1214/aos/1176345462, its variance is on average no less than that of the
        estimate from the vectors that remain.
        """
        if self._reduced is None:
            return 0.0
        count = len(samples)
        groups = np.array_split(np.arange(count), min(count, _GROUPS))
        left = np.array([self._reduced.without(g).estimates().mean() for g in groups])
        return math.sqrt((len(left) - 1) * float(left.var()))


@dataclass(frozen=True)
class _Reduced:
    """All that XTrace's estimates need, in the coordinates of Q: k test vectors w_i in columns, n parameters.

    `within` = Q^T A Q, `along` = Q^T W, `carried` = (A Q)^T W, `triangle` = Q^T A W; `quadratic` holds w_i.A w_i and
    `squares` w_i.w_i.
    """

    n: int
    eps: float
    within: np.ndarray
    along: np.ndarray
    carried: np.ndarray
    triangle: np.ndarray
    quadratic: np.ndarray
    squares: np.ndarray

    def estimates(self, only: np.ndarray | None = None) -> np.ndarray:
        """Return the estimate of each vector (k,); `only` is `_only_through` of the triangle, if it is known."""
        if only is None:
            only = _only_through(self.triangle, self.eps)
        # x_i = (I - s_i s_i^T) Q^T w_i: what the sketch without vector i sees of it.
        x = self.along - only * (only * self.along).sum(axis=0)
        sketched = np.trace(self.within) - (only * (self.within @ only)).sum(axis=0)
        rest = self.quadratic - 2 * (x * self.carried).sum(axis=0) + (x * (self.within @ x)).sum(axis=0)
        lengths = self.squares - (x * x).sum(axis=0)
        free = self.n - len(x) + (only * only).sum(axis=0)
        return sketched + rest * free / lengths

    def without(self, vectors: np.ndarray) -> _Reduced:
        """Return the same of all other vectors: their sketch lies within this one's range."""
        kept = np.setdiff1d(np.arange(len(self.squares)), vectors)
        basis = np.linalg.qr(self.triangle[:, kept])[0]
        return _Reduced(
            self.n,
            self.eps,
            basis.T @ self.within @ basis,
            basis.T @ self.along[:, kept],
            basis.T @ self.carried[:, kept],
            basis.T @ self.triangle[:, kept],
            self.quadratic[kept],
            self.squares[kept],
        )


class XDiag:
    """XDiag (Epperly, Tropp and Webber 2024, doi:10.1137/23M1548323): the same for the diagonal; it can be continued.

    The estimate of vector i is diag(Q_i Q_i^T A), exactly, plus w_i * (I - Q_i Q_i^T) A w_i. The vectors are of signs,
    so that the paper's division by their squares is by 1. Holds 2 n numbers for each product spent.
    """

    def __init__(self, probing: Probing) -> None:
        self._sketch = _Exchangeable(probing, probing.signs)

    def extend(self, products: int) -> Iterator[Tensor]:
        """Spend this many products in all (earlier ones included) and return the estimates, each (n,), one by one."""
        sketch = self._sketch
        sketch.extend(products)
        return self._estimates()

    def _estimates(self) -> Iterator[Tensor]:
        sketch = self._sketch
        exact = (sketch.range * sketch.image).sum(dim=1)
        if sketch.whole:
            yield from [exact] * max(len(exact), 2)
            return
        seen = sketch.range.T @ sketch.products
        for i, vector in enumerate(sketch.vectors.T):
            s = torch.from_numpy(sketch.only[:, i]).to(vector)
            direction = sketch.range @ s
            # A w_i lies in the range of Q, so that Q s_i s_i^T Q^T A w_i is all that Q_i leaves of it.
            yield exact - direction * (sketch.image @ s) + vector * direction * (s @ seen[:, i])


#: Beyond Hutchinson's way: what each method is called, and the state that spends its products.
DEFLATED: dict[str, Callable[[Probing], HutchPlusPlus | XTrace]] = {"hutch++": HutchPlusPlus, "xtrace": XTrace}


def further(products: int, most: int, fewest: int) -> int:
    """Return how many products to spend next: half as many again, `most` at the most.

    The error of these estimates falls at least as fast as 1 / sqrt(products), mostly as 1 / products.
    """
    return min(most, products + max(products // 2, fewest))


def _orthonormal(vectors: Tensor, basis: Tensor) -> Tensor:
    """Return an orthonormal basis (n, k) of what `vectors` have outside an orthonormal `basis`.

    Twice, since the first projection leaves rounding errors that the normalization makes large. Where the vectors
    have no more directions, those left over are arbitrary ones outside: harmless, the estimates hold for any Q.
    """
    for _ in range(2):
        vectors = torch.linalg.qr(vectors - basis @ (basis.T @ vectors)).Q
    return vectors


def _only_through(triangle: np.ndarray, eps: float) -> np.ndarray:
    """Return in column i the direction s_i of the sketch's range that only test vector i spans (0: there is none).

    `triangle` (k, k) holds A's products with the test vectors in the coordinates of Q. s_i is orthogonal to every
    column but the i-th: column i of the inverse's transpose, normalized. Where the sketch found the whole range of A
    (the columns are dependent), leaving one out changes nothing.
    """
    left, sizes, right = np.linalg.svd(triangle)
    kept = sizes > len(sizes) * eps * sizes.max(initial=0.0)
    left, sizes, right = left[:, kept], sizes[kept], right[kept]
    needed = (right**2).sum(axis=0) > 1 - max(_ESSENTIAL, math.sqrt(eps))
    directions = (left / sizes) @ right
    norms = np.linalg.norm(directions, axis=0)
    return np.where(needed, directions / np.where(norms > 0, norms, 1.0), 0.0)


def _column_sums(x: Tensor) -> np.ndarray:
    return x.sum(dim=0, dtype=torch.float64).cpu().numpy()


def _host(x: Tensor) -> np.ndarray:
    return x.cpu().numpy().astype(np.float64)
