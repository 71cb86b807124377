"""What the stochastic estimators share: random vectors of signs, products in blocks, and when to stop."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import MeasurementError
from ..results import Check, Cost
from .operands import account_of, dimension_of, not_finite, origin_of, symmetry_check

#: Vectors multiplied at once: an operator shares its forward pass among them (chosen by us), within this many bytes.
BLOCK, _BLOCK_BYTES = 8, 1 << 28
#: Products that a requested precision may take at most, if not said otherwise (chosen by us).
MOST_DRAWS = 1000
#: Asymmetry, as a share of ||A||_F, beyond which no estimate is to be believed (chosen by us).
ASYMMETRIC = 0.01


class Probing:
    """An operator that is multiplied by random vectors of signs; every product is counted and looked at.

    The signs are drawn on the CPU, one vector after another, so that all devices see the same ones and the sequence
    does not depend on the size of the blocks.
    """

    def __init__(self, A: Any, seed: int, bar: Any) -> None:
        self.n, self.dtype, self.device = dimension_of(A)
        self.products = 0
        self.width = max(1, min(BLOCK, _BLOCK_BYTES // (self.n * self.dtype.itemsize)))
        self._operator, self._bar, self._seed = A, bar, seed
        self._asymmetry: float | None = None
        self._lonely: tuple[Tensor, Tensor] | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._began, self._passes = time.perf_counter(), _passes(A)

    def signs(self, count: int) -> Tensor:
        """Return `count` vectors of independent signs, as (n, count)."""
        drawn = [
            torch.randint(0, 2, (self.n,), generator=self._generator, dtype=torch.int8, device="cpu")
            for _ in range(count)
        ]
        return (2 * torch.stack(drawn, dim=1) - 1).to(self.device, self.dtype)

    def normal(self, count: int) -> Tensor:
        """Return `count` vectors of independent standard normal numbers, as (n, count): no axis is preferred."""
        drawn = [torch.randn(self.n, generator=self._generator, dtype=self.dtype, device="cpu") for _ in range(count)]
        return torch.stack(drawn, dim=1).to(self.device)

    def multiply(self, vectors: Tensor) -> Tensor:
        """Return A @ vectors for (n, k), a block at a time."""
        found = [self._block(part) for part in vectors.split(self.width, dim=1)]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _block(self, vectors: Tensor) -> Tensor:
        products = (self._operator @ vectors).detach()
        # The sums too: a product of finite numbers may have a norm that the dtype doesn't hold.
        norms = torch.linalg.vector_norm(products, dim=0).cpu().numpy()
        if not np.isfinite(norms).all():
            first = int(np.argmin(np.isfinite(norms)))
            raise not_finite(products[:, first], self.products + first + 1, getattr(self._operator, "locate", None))
        if self._asymmetry is None:
            self._compare(vectors, products)
        self.products += vectors.shape[1]
        self._bar.update(vectors.shape[1])
        return products

    def _compare(self, vectors: Tensor, products: Tensor) -> None:
        """Take u.Av - v.Au of neighbors in the first block of several vectors, or of the first two blocks of one.

        For independent vectors of signs its mean square is ||A - A^T||_F^2, and that of ||A v|| is ||A||_F^2; others
        are measured by their length.
        """
        if self._lonely is not None:
            vectors, products = (torch.cat(pair, dim=1) for pair in zip(self._lonely, (vectors, products), strict=True))
        if vectors.shape[1] < 2:
            self._lonely = (vectors, products)
            return
        self._lonely = None
        apart = inner(vectors[:, :-1], products[:, 1:]) - inner(vectors[:, 1:], products[:, :-1])
        size = inner(products, products).mean() * inner(vectors, vectors).mean() / self.n
        self._asymmetry = math.sqrt((apart**2).mean() / size) if size > 0 else 0.0

    def symmetry(self) -> tuple[Check, ...]:
        """Return whether the operator is symmetric by its first products; nothing where there was one vector only."""
        if self._asymmetry is None:
            return ()
        return (symmetry_check(self._asymmetry, self.dtype, ASYMMETRIC, "estimates from its products may be off"),)

    def show(self, relative: float) -> None:
        """Show the relative standard error reached so far on the progress bar."""
        if math.isfinite(relative):
            self._bar.set_postfix_str(f"relative error {relative:.1e}", refresh=False)

    def account(self) -> tuple[dict[str, str], tuple[str, ...]]:
        """Return how the products were made, as a setting, and what the operator has to remark; see `account_of`."""
        return account_of(self._operator)

    def cost(self) -> Cost:
        """Return what was spent so far."""
        return Cost(self.products, _passes(self._operator) - self._passes, time.perf_counter() - self._began)

    def outcome(self, draws: int, precision: float | None, most: int, relative: float, *, of: str) -> dict[str, Any]:
        """Return the fields that every estimate from these products has, by name.

        `relative` is the relative standard error of what `of` names. The status is "partial" where it exceeds a
        `precision`.
        """
        cost, (made, notes), (operator, split) = self.cost(), self.account(), origin_of(self._operator)
        late = () if precision is None else (precision_check(relative, precision, cost.products, of=of),)
        checks = (*late, *self.symmetry())
        asked = {"draws": draws, "seed": self._seed, "precision": precision, "max_draws": most, "operator": operator}
        return {
            "status": "partial" if any(c.level == "warn" for c in late) else "complete",
            "cost": cost,
            "settings": asked | made,
            "checks": checks,
            "notes": notes,
            "warnings": tuple(c.message for c in checks if c.level != "pass"),
            "products": cost.products,
            "split": split,
        }


@contextmanager
def probing(A: Any, seed: int, *, most: int, title: str, progress: bool) -> Iterator[Probing]:
    """Prepare an operator once for all its products (at most `most`, shown on stderr with the time left)."""
    bar = tqdm(total=most, disable=not progress, file=sys.stderr, leave=False, desc=title, unit="product")
    dimension_of(A)
    with A if hasattr(A, "__enter__") else nullcontext(), bar:
        yield Probing(A, seed, bar)


def check_draws(
    draws: int, precision: float | None, max_draws: int | None, *, least: int = 2, of: str = "the trace"
) -> int:
    """Return the most products to spend, after looking at the settings that every estimator has."""
    if draws < least:
        what = "has no standard error" if least == 2 else "is too few for this method and its standard error"
        raise MeasurementError(f"draws={draws} {what}; take at least {least}")
    if precision is None:
        if max_draws is not None:
            raise MeasurementError(f"max_draws={max_draws} needs a precision to stop at; pass precision= too")
        return draws
    if not (precision > 0 and math.isfinite(precision)):
        raise MeasurementError(f"precision={precision} must be a positive share of {of}, for instance 0.05")
    most = max(MOST_DRAWS, draws) if max_draws is None else max_draws
    if most < draws:
        raise MeasurementError(f"max_draws={most} is below draws={draws}; raise one or lower the other")
    return most


def blocks(draws: int, most: int, width: int) -> Iterator[int]:
    """Yield sizes of at most `width` that end exactly at `draws` and at `most`."""
    done = 0
    for end in (draws, most):
        while done < end:
            step = min(width, end - done)
            done += step
            yield step


def standard_error(samples: np.ndarray) -> float:
    """Return the standard error of the mean of (draws,) samples; NaN for fewer than two."""
    return float(samples.std(ddof=1) / math.sqrt(len(samples))) if len(samples) > 1 else math.nan


def relative_error(value: float, stderr: float) -> float:
    """Return stderr / |value|; 0 where there is no error at all, inf where there is no value."""
    return stderr / abs(value) if value else (math.inf if stderr else 0.0)


def precision_check(relative: float, precision: float, products: int, *, of: str) -> Check:
    """Say whether the precision asked for was reached."""
    if relative <= precision:
        return Check("precision", "pass", f"standard error {relative:.2g} of {of}", relative, precision)
    text = f"the standard error is {relative:.2g} of {of} after {products} draws, not {precision:g}: raise max_draws"
    return Check("precision", "warn", text, relative, precision)


def inner(u: Tensor, v: Tensor) -> np.ndarray:
    """Return the inner products of the columns of two (n, k), summed in float64."""
    return (u * v).sum(dim=0, dtype=torch.float64).cpu().numpy()


def _passes(A: Any) -> float:
    return float(getattr(A, "passes", 0.0))
