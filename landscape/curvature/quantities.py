"""The numbers that a measurement returns, each with a name, its own error and the scale that errors are shares of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from ..errors import MeasurementError
from ..performance import Performance
from ..results import Result
from .extrapolation import CONFIDENCE
from .spectrum import Eigenpairs


@dataclass(frozen=True)
class Numbers:
    """q numbers by name: `values`, half-width `own` of the measurement's own error, and `scale`, all (q,).

    `random` says that the own error is a random one, independent of the samples, and not a bound.
    """

    names: tuple[str, ...]
    values: np.ndarray
    own: np.ndarray
    scale: np.ndarray
    random: bool = False

    def together(self, sampling: np.ndarray) -> np.ndarray:
        """Return the half-width (q,) of a sampling error of this half-width and the measurement's own one."""
        return np.hypot(sampling, self.own) if self.random else sampling + self.own


def numbers_of(found: Any) -> Numbers:
    """Return the numbers in what a measurement, or a function of a task, has returned.

    Eigenpairs: every eigenvalue, its residual as its own error, and |lambda_1| as the scale of all (as for `tol`).
    Performance: loss, accuracy and perplexity of each split, which are exact on their samples. Another Result: its
    `value` or `values`, with the standard error that belongs to it. A number, an array of one dimension or a mapping
    of names to numbers: as it is, without an error of its own.
    Raises MeasurementError for anything else, and for a number that is not finite.
    """
    numbers = _numbers(found)
    bad = [name for name, value in zip(numbers.names, numbers.values, strict=True) if not math.isfinite(value)]
    if bad:
        raise MeasurementError(f"{', '.join(bad)} is not finite on a part of the samples: nothing can be extrapolated")
    return numbers


def _numbers(found: Any) -> Numbers:
    if isinstance(found, Eigenpairs):
        values = np.concatenate([found.values, found.smallest])
        own = np.concatenate([found.residuals, found.smallest_residuals])
        names = [f"lambda_{i + 1}" for i in range(len(found.values))]
        names += ["lambda_n" + (f"-{i}" if i else "") for i in range(len(found.smallest))]
        return Numbers(tuple(names), values, own, np.full(len(values), np.abs(values).max()))
    if isinstance(found, Performance):
        each = {f"{split}_loss": found.loss[i] for i, split in enumerate(found.splits)}
        each |= {f"{split}_accuracy": found.accuracy[i] for i, split in enumerate(found.splits)}
        if found.perplexity is not None:
            each |= {f"{split}_perplexity": found.perplexity[i] for i, split in enumerate(found.splits)}
        return _numbers({name: value for name, value in each.items() if not math.isnan(value)})
    if isinstance(found, Result):
        variables = found.variables()
        name = next((n for n in ("value", "values") if n in variables and variables[n].data.ndim <= 1), None)
        if name is None:
            raise MeasurementError(
                f"a {type(found).__name__} has neither value nor values: pass a function of the task that returns the "
                "numbers you want to follow"
            )
        values = np.atleast_1d(variables[name].data).astype(float)
        stderr = variables.get(variables[name].stderr or "")
        own = np.zeros(len(values)) if stderr is None else np.atleast_1d(stderr.data).astype(float)
        names = tuple(getattr(found, "names", ())) or ((found.kind,) if len(values) == 1 else ())
        z = float(ndtri((1 + CONFIDENCE) / 2))
        return _plain(values, names, z * np.nan_to_num(own))
    if isinstance(found, Mapping):
        return _plain(np.array([float(v) for v in found.values()]), tuple(map(str, found)), None)
    if hasattr(found, "detach"):
        found = found.detach().cpu().numpy()
    try:
        values = np.asarray(found, dtype=float)
    except (TypeError, ValueError):
        values = np.zeros((0, 0))
    if values.ndim > 1 or values.size == 0:
        raise MeasurementError(
            f"the measurement returned a {type(found).__name__}; expected a Result, a number, an array (q,) or a "
            "mapping of names to numbers"
        )
    return _plain(np.atleast_1d(values), (), None)


def _plain(values: np.ndarray, names: tuple[str, ...], own: np.ndarray | None) -> Numbers:
    if len(names) != len(values):
        names = ("value",) if len(values) == 1 else tuple(f"value_{i + 1}" for i in range(len(values)))
    return Numbers(names, values, np.zeros(len(values)) if own is None else own, np.abs(values), own is not None)
