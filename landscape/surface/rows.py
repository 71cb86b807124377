"""Checkpoints as rows theta_i - theta_final, read piece by piece: sums over them need little memory, however many."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.linalg import blas
from torch import nn

from ..checkpoints.fit import fit
from ..checkpoints.mapped import Places, locate
from ..errors import MeasurementError
from ..parameters import trainable
from .states import State, read_state

#: Bytes for the piece of every row that is held at a time (chosen by us: files are then opened once for each GiB of
#: all rows together, and the whole stays well below 4 GiB).
MEMORY = 1 << 30
#: Bytes of a piece that is in float64 at a time (chosen by us).
EXACT = 1 << 27


class Rows:
    """The rows theta_i - theta_final over a model's trainable parameters, in the order in which they are named.

    `states` is a sequence of states, an iterable that can be walked more than once, or a function that returns an
    iterator; each state is read anew on every pass, so that only one lies in memory. The last is theta_final. Of files
    of torch and safetensors each piece alone is read, from its place in the file; others are read whole for each.

    Attributes: `labels`, `steps`, `final` (the last State), `center` (its parameters, flat), `dtype` of the rows
    (float64 where any parameter is, else float32), `shape` (checkpoints, parameters).

    Raises TypeError for an iterator that can be walked only once, MeasurementError for fewer than two states, and what
    `read_state` raises.
    """

    def __init__(self, states: Any, model: nn.Module, memory: int = MEMORY) -> None:
        self._source = _repeatable(states)
        self._model = model
        chosen = trainable(model)
        self.names = tuple(chosen)
        self._sizes = [p.numel() for p in chosen.values()]
        labels, steps, epochs, notes = [], [], [], []
        final = None
        self._places: list[Places | None] = []
        for state in self.read():
            labels.append(state.label)
            steps.append(state.step)
            epochs.append(state.epoch)
            notes += [n for n in state.notes if n not in notes]
            final = state
        if final is None or len(labels) < 2:
            raise MeasurementError(f"a trajectory needs at least two checkpoints, got {len(labels)}")
        self.final = final
        self.labels = tuple(labels)
        self.notes = tuple(notes)
        self.steps = _increasing(steps) if _increasing(steps) is not None else _increasing(epochs)
        double = any(t.dtype == torch.float64 for t in final.chosen(self.names))
        self.dtype = torch.float64 if double else torch.float32
        self.shape = (len(labels), sum(self._sizes))
        self.center = self.flat(final)
        width = memory // (self.shape[0] * self.dtype.itemsize)
        if width < 1:
            raise MeasurementError(f"memory={memory} holds no piece of {self.shape[0]} rows: give more")
        self.width = min(width, self.shape[1])
        if self.pieces > 1:
            # A checkpoint's index takes longer to read than a piece of it: where its tensors lie is found out once.
            self._places = [self._located(given) for given in self._source()]

    def read(self) -> Iterator[State]:
        """Yield each state, read anew."""
        for i, given in enumerate(self._source()):
            yield read_state(given, self._model, i + 1)

    def flat(self, state: State, start: int = 0, stop: int | None = None, out: torch.Tensor | None = None) -> Any:
        """Return the parameters from `start` to `stop` of a state as one vector in the rows' dtype, on the CPU."""
        stop = self.shape[1] if stop is None else stop
        out = torch.empty(stop - start, dtype=self.dtype, device="cpu") if out is None else out
        for number, low, high, part in self._parts(start, stop, out):
            part.copy_(state.weights[self.names[number]].detach().reshape(-1)[low:high])
        return out

    def _parts(self, start: int, stop: int, out: torch.Tensor) -> Iterator[tuple[int, int, int, torch.Tensor]]:
        """Yield (parameter's number, from, to, its part of `out`) for what lies between start and stop."""
        at = 0
        for number, size in enumerate(self._sizes):
            low, high = max(start, at), min(stop, at + size)
            if low < high:
                yield number, low - at, high - at, out[low - start : high - start]
            at += size

    def _piece(self, i: int, given: Any, start: int, stop: int, out: torch.Tensor) -> None:
        """Fill `out` with a piece of state i: from its place in the file where that is known and still right."""
        places = self._places[i] if i < len(self._places) else None
        if places is not None and places.path == str(given) and places.current():
            places.read(list(self._parts(start, stop, out)))
        else:
            self.flat(read_state(given, self._model, i + 1), start, stop, out)

    def _located(self, given: Any) -> Places | None:
        if not isinstance(given, str | os.PathLike):
            return None

        def choose(weights: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
            fitted = fit(weights, self._model).weights
            return [fitted[n] for n in self.names]

        return locate(Path(given), choose)

    def gram(self, update: Callable[[], object] = lambda: None) -> np.ndarray:
        """Return the products of all rows (m, m), summed in float64 from differences in the rows' own dtype.

        Reads every file once, in `pieces` turns; m^2 n multiplications. Raises MeasurementError naming a state that is
        not finite.
        """
        m, n = self.shape
        multiply: Any = blas.dsyrk  # type: ignore[attr-defined]  # scipy makes its BLAS names when it is imported
        total = np.zeros((m, m), order="F")
        piece = torch.empty((m, self.width), dtype=self.dtype, device="cpu")
        exact = max(1, EXACT // (8 * m))
        for start in range(0, n, self.width):
            stop = min(start + self.width, n)
            block = piece[:, : stop - start]
            for i, given in enumerate(self._source()):
                self._piece(i, given, start, stop, block[i])
                update()
            block -= self.center[start:stop]
            for low in range(0, stop - start, exact):
                x = block[:, low : low + exact].double().numpy()
                total = multiply(1.0, x.T, beta=1.0, c=total, trans=1, lower=1, overwrite_c=1)
        self.check(np.diag(total))
        return np.tril(total) + np.tril(total, -1).T

    @property
    def pieces(self) -> int:
        """How many turns `gram` takes over the files."""
        return -(-self.shape[1] // self.width)

    def check(self, squares: np.ndarray) -> None:
        """Raise MeasurementError where the squared norm of a row is not finite."""
        wrong = np.flatnonzero(~np.isfinite(squares))
        if len(wrong):
            # A row is not finite where the last checkpoint isn't, too.
            at = len(squares) - 1 if not bool(torch.isfinite(self.center).all()) else int(wrong[0])
            raise MeasurementError(
                f"{self.labels[at]} holds weights that are not finite: leave it out (training diverged there)"
            )

    def named(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cut a vector over the parameters into tensors by name (views)."""
        parts = vector.split(self._sizes)
        return {n: part.view(self.final.weights[n].shape) for n, part in zip(self.names, parts, strict=True)}


def _repeatable(states: Any) -> Callable[[], Iterable[Any]]:
    if callable(states) and not isinstance(states, nn.Module):
        made: Any = states
        return made
    if isinstance(states, Sequence) and not isinstance(states, str):
        return lambda: states
    if isinstance(states, Iterator) or not isinstance(states, Iterable) or isinstance(states, str | nn.Module):
        raise TypeError(
            f"states is a {type(states).__name__}, which can't be walked twice: give a list of checkpoints (paths are "
            "read one at a time), or a function that returns an iterator"
        )
    return lambda: states


def _increasing(numbers: list[int | None]) -> np.ndarray | None:
    """Return these steps where every state has one and they increase."""
    known = [n for n in numbers if n is not None]
    if len(known) < len(numbers) or any(b <= a for a, b in itertools.pairwise(known)):
        return None
    return np.array(known)
