"""A surface from scattered points: cubic radial functions, their leave-one-out errors, and where they may be wrong.

No torch here. Positions are (n, 2) and best scaled to [-1, 1]; values are on the scale on which errors count.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import linalg
from scipy.spatial.distance import cdist

#: The neighbour whose distance is the width over which the local size of errors is averaged (chosen by us, on 33
#: full grids: of the 2nd, 3rd and 6th, the 5 nearest alone and fixed widths, it needs the fewest points).
NEIGHBOR = 2
#: Rows of positions worked on at a time, so that a fine grid needs no large matrix.
BLOCK = 4096
#: Positions among which the next points are chosen, at most (chosen by us: nearly all of a 51 x 51 grid).
CANDIDATES = 2500


@dataclass(frozen=True)
class Survey:
    """Positions (m, 2), and how far off an interpolant may be there: by the local roughness times the distance.

    `power` is the square of the power function of r^3 (the variance of the Gaussian process that it is the mean of),
    `roughness` the root mean square of the neighbours' leave-one-out errors in units of their own power functions.
    """

    at: np.ndarray
    roughness: np.ndarray
    power: np.ndarray

    @property
    def deviation(self) -> np.ndarray:
        """The typical error at each position, in the unit of the values."""
        return self.roughness * np.sqrt(self.power)


class Interpolant:
    """The cubic radial basis function r^3 with a linear trend, through every point given.

    Source: Duchon 1977, doi:10.1007/BFb0086566, for the spline; Rippa 1999, doi:10.1023/A:1018975909870, for the
    closed form of its leave-one-out errors. Of thin plates, Matern kernels with fitted lengths, r^3 and r^5, r^3
    needed the fewest points on full grids, and it has no length to fit.

    `left_out` (n,) are the leave-one-out errors: value minus what the other points alone would give there. Costs one
    inverse of an (n + 3) matrix. The positions must differ, and not all lie on one straight line.
    """

    def __init__(self, positions: np.ndarray, values: np.ndarray) -> None:
        n = len(positions)
        system = np.zeros((n + 3, n + 3))
        system[:n, :n] = _cubic(cdist(positions, positions, "sqeuclidean"))
        system[:n, n:] = _trend(positions)
        system[n:, :n] = system[:n, n:].T
        self.positions = positions
        self._inverse = linalg.inv(system, check_finite=False)
        self._coefficients = self._inverse[:, :n] @ values
        diagonal = np.diag(self._inverse)[:n]
        self.left_out = self._coefficients[:n] / diagonal
        # What the leave-one-out error would be for values of one common roughness: its square is |1 / diagonal|.
        self._surprise = self.left_out**2 * np.abs(diagonal)

    def __call__(self, at: np.ndarray) -> np.ndarray:
        """Return the values at positions (m, 2)."""
        parts = ((part, cdist(part, self.positions, "sqeuclidean")) for part in _parts(at))
        return np.concatenate([_basis(part, squares) @ self._coefficients for part, squares in parts])

    def survey(self, at: np.ndarray) -> Survey:
        """Return how far off the values at positions (m, 2) may typically be."""
        found = []
        for part in _parts(at):
            squares = cdist(part, self.positions, "sqeuclidean")
            found.append((self._roughness(squares), self._power(_basis(part, squares))))
        roughness, power = (np.concatenate(column) for column in zip(*found, strict=True))
        return Survey(at, roughness, power)

    def spread_out(self, survey: Survey, number: int) -> list[int]:
        """Return which `number` of the positions surveyed to evaluate next: where the deviation is largest.

        After each choice the power function is what it will be with that point, so that the choices keep apart.
        Positions that would add nothing are not chosen.
        """
        # Of a fine grid only the worst positions are candidates: those left out lie beside them.
        kept = np.argsort(-survey.deviation, kind="stable")[:CANDIDATES]
        at, roughness, power = survey.at[kept], survey.roughness[kept], survey.power[kept]
        basis = _basis(at, cdist(at, self.positions, "sqeuclidean"))
        least = 1e-12 * max(float(power.max(initial=0.0)), np.finfo(float).tiny)
        chosen: list[int] = []
        columns = np.empty((number, len(at)))
        while len(chosen) < min(number, len(at)):
            best = int(np.argmax(roughness * np.sqrt(power)))
            if power[best] <= least:
                best = int(np.argmax(power))  # no roughness was seen anywhere: the widest gap
                if power[best] <= least:
                    break
            column = _cubic(cdist(at, at[best : best + 1], "sqeuclidean"))[:, 0]
            column -= basis @ (self._inverse @ basis[best])
            column -= columns[: len(chosen)].T @ columns[: len(chosen), best]
            column /= np.sqrt(power[best])
            columns[len(chosen)] = column
            chosen.append(best)
            power = np.maximum(power - column**2, 0.0)
            power[best] = 0.0
        return [int(kept[k]) for k in chosen]

    def _power(self, basis: np.ndarray) -> np.ndarray:
        return np.abs(np.einsum("ij,ij->i", basis @ self._inverse, basis))

    def _roughness(self, squares: np.ndarray) -> np.ndarray:
        nearest = min(NEIGHBOR, squares.shape[1] - 1)
        widths = np.partition(squares, nearest, axis=1)[:, nearest, None]
        weights = np.exp(-0.5 * squares / widths)
        # One point's worth of the overall mean, so that a neighbourhood without surprises is not trusted blindly.
        return np.sqrt((weights @ self._surprise + self._surprise.mean()) / (weights.sum(axis=1) + 1))


def _basis(at: np.ndarray, squares: np.ndarray) -> np.ndarray:
    return np.concatenate([_cubic(squares), _trend(at)], axis=1)


def _cubic(squares: np.ndarray) -> np.ndarray:
    return squares * np.sqrt(squares)


def _trend(positions: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(positions)), positions])


def _parts(at: np.ndarray) -> list[np.ndarray]:
    return [at[i : i + BLOCK] for i in range(0, max(len(at), 1), BLOCK)]
