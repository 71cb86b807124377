"""How the units of two states correlate on the task's data, where one layer hands them to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import MeasurementError
from ..objective import Objective
from .axes import Axis, Product, atoms, factored, resolve
from .check import State, put
from .matching import Correlations
from .rules import name_of
from .units import Units, single_steps

#: Rows (samples, pixels, tokens) of a batch that count in each place, evenly spaced (chosen by us: memory).
ROWS = 16384
#: Units in one place beyond which their (n, n) correlations are not kept (chosen by us: half a gigabyte).
WIDEST = 8192

#: (parameter, "entering" or "leaving"): what a layer reads, or gives.
Site = tuple[str, str]


def correlations(
    objective: Objective, units: Units, a: State, b: State, update: Callable[[], object]
) -> list[Correlations]:
    """Return the correlations of a's units with b's where weights read them; where none does, where one gives them.

    Li et al. 2016 (arXiv:1511.07543), Jordan et al. 2023 (arXiv:2211.08403, section 2): Pearson's, over samples and
    places. A unit that never changes correlates with none. Costs two passes; memory for the (n, n) sums of each place.

    Raises MeasurementError where the states take different ways through the model, or activations are not finite.
    """
    sums: dict[Site, _Sums] = {}
    with objective.measuring(), single_steps():
        for i in range(len(objective)):
            sides = []
            for state in (a, b):
                put(objective, state)
                with Reading(objective, units) as reading:
                    objective.value(i)
                sides.append(reading.found)
            if [(s, x.shape) for s, _, x in sides[0]] != [(s, x.shape) for s, _, x in sides[1]]:
                raise MeasurementError(
                    "the two states take different ways through the model on the same batch: their activations can't "
                    "be matched; match their weights"
                )
            for (site, axis, x), (_, _, y) in zip(*sides, strict=True):
                sums.setdefault(site, _Sums.empty(axis)).add(x, y)
            update()
    objective.passes += 2
    for (name, way), s in sums.items():
        if not s.finite:
            raise MeasurementError(
                f"activations {way} {name!r} are not finite, or too large to be multiplied, at one of the states (has "
                "it diverged?): match the weights"
            )
    read = {x for (_, way), s in sums.items() if way == "entering" for x in atoms(s.axis)}
    return [
        Correlations(s.axis, s.correlation())
        for (_, way), s in sums.items()
        if way == "entering" or not {x for x in atoms(s.axis) if x in units.names} <= read
    ]


@dataclass
class _Sums:
    axis: Axis
    n: int
    of_a: np.ndarray | float
    of_b: np.ndarray | float
    squares_a: np.ndarray | float
    squares_b: np.ndarray | float
    products: np.ndarray | float

    @classmethod
    def empty(cls, axis: Axis) -> _Sums:
        return cls(axis, 0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        u, v = x.cpu().double().numpy(), y.cpu().double().numpy()
        self.n += len(u)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for in the end
            self.of_a, self.of_b = self.of_a + u.sum(0), self.of_b + v.sum(0)
            self.squares_a, self.squares_b = self.squares_a + (u**2).sum(0), self.squares_b + (v**2).sum(0)
            self.products = self.products + u.T @ v

    @property
    def finite(self) -> bool:
        # Squares bound all other sums.
        return bool(np.isfinite(self.squares_a).all() and np.isfinite(self.squares_b).all())

    def correlation(self) -> np.ndarray:
        mean_a, mean_b = np.asarray(self.of_a) / self.n, np.asarray(self.of_b) / self.n
        sides = []
        for squares, mean in ((self.squares_a, mean_a), (self.squares_b, mean_b)):
            variance = np.asarray(squares) / self.n - mean**2
            # Below the rounding of the difference a unit is constant.
            sides.append(np.where(variance > 1e-12 * np.asarray(squares) / self.n, variance, np.inf))
        covariance = np.asarray(self.products) / self.n - np.outer(mean_a, mean_b)
        return covariance / np.sqrt(np.outer(*sides))


class Reading(TorchDispatchMode):
    """Keeps what enters and leaves each product with a parameter: (site, axis of the units, (rows, units))."""

    def __init__(self, objective: Objective, units: Units) -> None:
        super().__init__()
        self.units = units
        self.found: list[tuple[Site, Axis, torch.Tensor]] = []
        self._held: Mapping[int, tuple[str, torch.Tensor]] = {
            t.untyped_storage().data_ptr(): (n, t)
            for n, t in objective.held().items()
            if n in units.axes and t.ndim > 1
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = name_of(func)
        if name in ("mm", "addmm"):
            self._product(args[-2], args[-1], made)
        elif name in ("convolution", "_convolution"):
            self._convolution(args[0], args[1], args[6], args[8], made)
        return made

    def _weight(self, t: torch.Tensor) -> tuple[str, torch.Tensor] | None:
        return self._held.get(t.untyped_storage().data_ptr()) if t.layout == torch.strided else None

    def _product(self, x: torch.Tensor, w: torch.Tensor, out: torch.Tensor) -> None:
        found = self._weight(w)
        if found is None or found[1].numel() != w.numel() or found[1].ndim != 2:
            return
        name, own = found
        axes = self.units.axes[name]
        if w.shape == own.shape and w.stride() == own.stride():
            entering, leaving = axes
        elif w.shape == own.shape[::-1] and w.stride() == own.stride()[::-1]:
            leaving, entering = axes
        else:
            return
        self._keep((name, "entering"), entering, x)
        self._keep((name, "leaving"), leaving, out)

    def _convolution(self, x: torch.Tensor, w: torch.Tensor, transposed: bool, groups: int, out: torch.Tensor) -> None:
        found = self._weight(w)
        if found is None or found[1].shape != w.shape:
            return
        name, axes = found[0], self.units.axes[found[0]]
        first, second = axes[:2]
        if groups > 1:
            outer = factored(first, groups)
            if outer is None:
                return
            second = Product((outer[0], second))
        entering, leaving = (first, second) if transposed else (second, first)
        self._keep((name, "entering"), entering, x.movedim(1, -1))
        self._keep((name, "leaving"), leaving, out.movedim(1, -1))

    def _keep(self, site: Site, axis: Axis, t: torch.Tensor) -> None:
        """Keep (rows, units); pixels that a flattened dimension holds beside its channels are rows of their own."""
        axis = resolve(axis)
        if not any(x in self.units.names for x in atoms(axis)):
            return
        if isinstance(axis, Product):
            chosen = [any(x in self.units.names for x in atoms(f)) for f in axis.factors]
            t = t.reshape(-1, *(f.size for f in axis.factors))
            t = t.movedim([1 + i for i, c in enumerate(chosen) if c], list(range(-sum(chosen), 0)))
            axis = resolve(Product(tuple(f for f, c in zip(axis.factors, chosen, strict=True) if c)))
        rows = t.reshape(-1, axis.size)
        if axis.size <= WIDEST:
            step = -(-len(rows) // ROWS)
            self.found.append((site, axis, rows[::step].detach().clone()))
