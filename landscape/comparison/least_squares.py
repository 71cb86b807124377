"""Least squares whose errors may be alike within a cluster: intervals that hold for a handful of clusters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

#: Singular values below this share of the largest count as zero (chosen by us: designs hold 0, 1 and small shares).
_RANK = 1e-9


@dataclass(frozen=True)
class Contrasts:
    """Linear combinations of a fit's coefficients: values, standard errors, degrees of freedom, each (k,)."""

    value: np.ndarray
    stderr: np.ndarray
    df: np.ndarray

    def half_width(self) -> np.ndarray:
        """Return Student's half-widths of two-sided 95% intervals, (k,); NaN without degrees of freedom."""
        known = np.isfinite(self.df) & (self.df > 0)
        return np.where(known, stdtrit(np.where(known, self.df, 1.0), 0.975), np.nan) * self.stderr


class Clustered:
    """Ordinary least squares on a design X (n, p) of full rank, with errors that are alike within clusters.

    `clusters` (n,) numbers what is independent of each other, from 0; `blocks` takes each cluster's own mean out of
    X and of y first (a coefficient for every cluster, absorbed). Standard errors are CR2, unbiased where the errors
    are independent with one variance, and the degrees of freedom are those of Bell and McCaffrey (2002, Survey
    Methodology 28:169): right for few and unequal clusters (Pustejovsky and Tipton 2018,
    doi:10.1080/07350015.2016.1247004). Where every cluster holds the same design, the interval is that of Student's
    paired t test over clusters; where each cluster is a single row and X has two groups, the standard error is Welch's.

    Raises ValueError for a design that is not of full rank. Cost: O(n p^2 + sum over clusters of their size cubed).
    """

    def __init__(self, design: np.ndarray, clusters: np.ndarray, *, blocks: bool = False) -> None:
        X = np.asarray(design, dtype=np.float64)
        self.members = [np.flatnonzero(clusters == c) for c in range(int(np.max(clusters)) + 1)]
        self.blocks = blocks
        X = self._without_means(X)
        q, triangle = np.linalg.qr(X)
        if X.shape[1] and rank(X) < X.shape[1]:
            raise ValueError(f"the design has rank {rank(X)}, expected {X.shape[1]}: drop columns that repeat others")
        self.q, self.inverse = q, np.linalg.inv(triangle)
        self.roots = [_inverse_root(np.eye(len(m)) - q[m] @ q[m].T) for m in self.members]

    def _without_means(self, values: np.ndarray) -> np.ndarray:
        if not self.blocks:
            return values
        values = values.copy()
        for m in self.members:
            values[m] -= values[m].mean(axis=0)
        return values

    def contrasts(self, y: np.ndarray, weights: np.ndarray) -> Contrasts:
        """Return the combinations `weights` (k, p) of the coefficients for the responses y (n,)."""
        y = self._without_means(np.asarray(y, dtype=np.float64))
        fitted = self.q.T @ y
        residual = y - self.q @ fitted
        w = self.inverse.T @ np.asarray(weights, dtype=np.float64).T  # (p, k): a contrast is w' q' y
        # b[c] (rows of the cluster, k): what the residuals of a cluster are weighed by.
        b = [root @ (self.q[m] @ w) for m, root in zip(self.members, self.roots, strict=True)]
        parts = np.array([bc.T @ residual[m] for bc, m in zip(b, self.members, strict=True)])  # (clusters, k)
        variance = np.sum(parts**2, axis=0)
        first, second = np.array([self._moments([bc[:, k] for bc in b]) for k in range(w.shape[1])]).T
        # A cluster that the fit takes up whole (the only run of a cell) shows no error of its own: the others stand
        # for it, so that the estimate is unbiased again where the errors have one variance.
        with np.errstate(divide="ignore", invalid="ignore"):
            stderr = np.sqrt(variance * np.sum(w**2, axis=0) / first)
            df = first**2 / second
        return Contrasts(w.T @ fitted, stderr, np.where(first > 0, df, np.nan))

    def _moments(self, b: list[np.ndarray]) -> tuple[float, float]:
        """Return mean and half the variance of the variance estimate, if the errors were normal of variance 1.

        The estimate is e' G G' e with G = (I - H) diag(b): its mean is the trace, and half its variance the squared
        norm, of G'G = diag(|b_c|^2) - U U' with U_c = Q_c' b_c. Satterthwaite's degrees of freedom follow.
        """
        own = np.array([float(bc @ bc) for bc in b])
        U = np.array([self.q[m].T @ bc for bc, m in zip(b, self.members, strict=True)])
        spread = np.sum(U**2, axis=1)
        first = float(np.sum(own - spread))
        second = float(np.sum(own**2) - 2 * np.sum(own * spread) + np.sum((U.T @ U) ** 2))
        # A design that fits every row exactly leaves no error to learn from, up to rounding.
        return (first, second) if first > 1e-9 * float(np.sum(own)) and second > 0 else (0.0, 0.0)


def rank(design: np.ndarray) -> int:
    """Return the number of columns that don't repeat the others."""
    if design.size == 0:
        return 0
    s = np.linalg.svd(design, compute_uv=False)
    return int(np.sum(s > _RANK * s[0])) if s[0] > 0 else 0


def _inverse_root(matrix: np.ndarray) -> np.ndarray:
    """Return the symmetric inverse square root; directions that the fit takes up whole (0) stay 0."""
    values, vectors = np.linalg.eigh(matrix)
    scale = np.where(values > 1e-8, 1 / np.sqrt(np.maximum(values, 1e-8)), 0.0)
    return (vectors * scale) @ vectors.T
