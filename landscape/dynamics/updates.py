"""What a step changed: the size of updates, their direction, and how far the weights have come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..batch import as_tensor
from ..errors import MeasurementError
from ..widest import wide, widest
from .norms import joint_norm, tensor_norms
from .packed import Packed
from .sketch import Sketch

#: Copies tensors into others: (into, tensors).
Copy = Callable[[list[Tensor], list[Tensor]], object]
#: Up to this many numbers the weights are laid side by side in one vector, which takes a third of the time on small
#: nets (62 against 162 microseconds for 26,122 parameters) and five copies instead of three (both chosen by us).
FLAT = 1 << 22


@dataclass(frozen=True)
class Step:
    """One step's update, all float64 tensors on the parameters' device.

    `updates` (k,) are ||theta_t - theta_(t-1)|| of each tensor, `weights` (k,) its ||theta_t||; `distance` is
    ||theta_t - theta_0|| over all of them, and `cosine` that of this update and the last one (NaN for the first).
    """

    updates: Tensor
    weights: Tensor
    distance: Tensor
    cosine: Tensor

    @property
    def update(self) -> Tensor:
        """The norm of the whole update."""
        return joint_norm(self.updates)

    @property
    def ratio(self) -> Tensor:
        """||update|| / ||theta|| over all tensors."""
        return self.update / joint_norm(self.weights)


class Updates:
    """Measures what changed in `parameters` between one call of `step()` and the next; the first call counts from here.

    Holds the weights before the step, at the start, and the last update: three copies, or five of up to 4 million
    numbers. Above `memory` bytes it holds sketches of them instead (see `sketch.py`): `relative_error` is then the
    standard error of every update norm and of the distance, as a share (0.28% by default), and the cosine's is about
    `relative_error` times the square root of two; tensors of up to 65,536 numbers, and the norms of the weights, stay
    exact. No host synchronization; a parameter set that changes is for the caller to notice, who then makes another one
    with `since`.

    Args:
        parameters: the tensors to follow, on one device.
        memory: bytes to hold at most; None holds copies whatever they take.
        seed: of the sketch.
        reduce: of sharded tensors: turns squares (m, k) of this process's parts of the tensors into those of the whole
            (see `sharded.py`); `parameters` are then the parts.
        singly: every `step()` comes behind a `begin()` of its own, so that there is no cosine: a small model on a CPU
            then holds three copies, not five.
        since: what measured before the set changed, and of each of these parameters its place there, None for one that
            is new: the distance of those that were there goes on from their own start, a new one's counts from here.
            What was measured by sketches stays so, because they tell no start. It can't be used any more.

    Raises MeasurementError for no parameters, or ones on several devices.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        memory: int | None = None,
        seed: int = 0,
        reduce: Callable[[Tensor], Tensor] | None = None,
        singly: bool = False,
        since: tuple[Updates, Sequence[int | None]] | None = None,
    ) -> None:
        # A complex number counts as its two parts.
        self.parameters = tuple(torch.view_as_real(p.detach()) if p.is_complex() else p for p in parameters)
        self._shapes = [p.shape for p in self.parameters]
        devices = {p.device for p in self.parameters}
        if len(devices) != 1:
            where = " and ".join(sorted(map(str, devices))) or "nowhere: there are none"
            raise MeasurementError(f"updates are measured on one device, these parameters lie on {where}")
        count = sum(p.numel() for p in self.parameters)
        before, places = since if since is not None else (None, ())
        starts: dict[int, Tensor] = {}
        sketch: Sketch | None = None
        if before is not None:
            there = [(i, place) for i, place in enumerate(places) if place is not None]
            same = [(i, place) for i, place in there if before._shapes[place] == self.parameters[i].shape]
            starts, sketch = {i: before._held.start(place) for i, place in same}, before._held.sketch
            del before._held  # all else that it holds, before as much is taken again
        size = sum(p.numel() * max(p.element_size(), 4) for p in self.parameters)
        self.exact = (memory is None or 3 * size <= memory) and (before is None or before.exact)
        self._held: _Held
        alike = reduce is None and len({p.dtype for p in self.parameters}) == 1
        if alike and self.exact and Packed.fits(self.parameters):
            self._held = _OnHost(self.parameters, singly)
        elif alike and self.exact and count <= FLAT:
            self._held = _Flat(self.parameters)
        else:
            if not self.exact:
                sketch = Sketch(self.parameters, seed, None if sketch is None else (sketch, places))
            self._held = _Each(self.parameters, sketch, reduce)
        for i, start in starts.items():
            self._held.set_start(i, start, sketched=before is not None and not before.exact)
        self.relative_error = 0.0 if self.exact else Sketch.RELATIVE_ERROR
        self._first = True

    def begin(self, copy: Copy = torch._foreach_copy_) -> None:
        """Take the weights of this moment as those before the coming step, where steps went by without a call.

        The next update's cosine is then unknown (NaN): the one before it was not measured. Of a small model on a CPU
        `copy(into, tensors)` is called to copy them, at once or at any time before the step.
        """
        self._held.begin(copy)
        self._first = True

    def step(self) -> Step:
        """Return what changed since the last call."""
        updates, weights, distance, cosine = self._changed()
        if isinstance(self._held, _OnHost):
            updates, weights = updates[1:], weights[1:]
        return Step(*(wide(as_tensor(v)) for v in (updates, weights, distance, cosine)))

    def rows(self) -> tuple[Any, Any, Any]:
        """Return what changed since the last call as rows: (1 + k,) norms of updates, (1 + k,) of weights, the whole
        first in each, and (ratio, distance, cosine). Floats of a small model on a CPU, tensors elsewhere.
        """
        updates, weights, distance, cosine = self._changed()
        if isinstance(self._held, _OnHost):
            return updates, weights, (updates[0] / weights[0] if weights[0] else nan, distance, cosine)
        update, weight = joint_norm(updates), joint_norm(weights)
        three = torch.stack([update / weight, distance, cosine])
        return torch.cat([update[None], updates]), torch.cat([weight[None], weights]), three

    def _changed(self) -> tuple[Any, Any, Any, Any]:
        updates, weights, distance, along, before = self._held.step()
        first, self._first = self._first, False
        if isinstance(self._held, _OnHost):
            scale = updates[0] * before
            return updates, weights, distance, nan if first or not scale else along / scale
        cosine = along / (joint_norm(updates) * before)
        return updates, weights, distance, torch.full_like(cosine, torch.nan) if first else cosine


class _Held(Protocol):
    #: What copies are turned into, where there is no memory for them.
    sketch: Sketch | None

    def begin(self, copy: Copy) -> None: ...

    def step(self) -> tuple[Any, Any, Any, Any, Any]:
        """Return (norms of the updates, of the weights, distance, update . last update, norm of the last update)."""
        ...

    def start(self, i: int) -> Tensor:
        """Return where tensor `i` started: a vector, or the sketch of one."""
        ...

    def set_start(self, i: int, start: Tensor, *, sketched: bool) -> None:
        """Count the distance of tensor `i` from there: a vector, or its sketch by this sketch's own signs."""
        ...


class _OnHost:
    """All weights of a small model on a CPU, packed. Its norms are floats, the whole first."""

    sketch: Sketch | None = None

    def __init__(self, parameters: Sequence[Tensor], singly: bool) -> None:
        self._parameters = list(parameters)
        self._find()
        self._packed = packed = Packed(parameters)
        self._follows, self._singly, self._begun = False, singly, True
        self._now, self._before, self._start = (packed.buffer() for _ in range(3))
        # The update takes the place of the weights before it, where neither is asked for again: of what a step touches
        # little is in the processor's caches, and each copy of 26,000 numbers costs 5 microseconds.
        self._delta, self._last = (self._before,) * 2 if singly else (packed.buffer(), packed.buffer())
        packed.read(self._before, self._numbers)
        np.copyto(self._start.numbers, self._before.numbers)
        self._size = 0.0

    def _find(self) -> None:
        # What these tensors hold, without their graph: a context without one costs more than the copy.
        self._numbers = [p.detach() for p in self._parameters]
        self._places = [p.data_ptr() for p in self._parameters]

    def _weights(self) -> list[Tensor]:
        if [p.data_ptr() for p in self._parameters] != self._places:  # other memory was put into p.data
            self._find()
        return self._numbers

    def begin(self, copy: Copy) -> None:
        copy(self._before.views, self._weights())
        self._follows, self._begun = False, True

    def step(self) -> tuple[tuple[float, ...], tuple[float, ...], float, float, float]:
        if not self._begun:
            raise MeasurementError("updates that are measured singly need a begin() before each step()")
        self._packed.read(self._now, self._weights())
        updates, weights, away, along = self._packed.quietly(self._compare)
        if self._singly:
            self._begun = False
        else:
            self._now, self._before = self._before, self._now
            self._delta, self._last = self._last, self._delta
            self._follows = True
        size, self._size = self._size, updates[0]
        return updates, weights, away, along, size

    def _compare(self) -> tuple[tuple[float, ...], tuple[float, ...], float, float]:
        packed, now, before, delta = self._packed, self._now, self._before, self._delta
        np.subtract(now.numbers, before.numbers, out=delta.numbers)
        along = packed.dot(delta, self._last) if self._follows else nan  # no update before this one was measured
        updates, weights = packed.norms(delta), packed.norms(now)
        # Into memory that is filled anew before it is read again: fewer copies stay in the processor's caches.
        np.subtract(now.numbers, self._start.numbers, out=before.numbers)
        return updates, weights, sqrt(packed.dot(before, before)), along

    def start(self, i: int) -> Tensor:
        return self._start.views[i].reshape(-1)

    def set_start(self, i: int, start: Tensor, *, sketched: bool) -> None:
        self._start.views[i].copy_(start.view_as(self._start.views[i]))


class _Flat:
    """All weights in one vector, in the precision that they are summed in."""

    sketch: Sketch | None = None

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        kind = torch.promote_types(parameters[0].dtype, torch.float32)
        sizes = [p.numel() for p in parameters]
        self._now, self._before, self._start, self._delta, self._last = (
            torch.zeros(sum(sizes), dtype=kind, device=parameters[0].device) for _ in range(5)
        )
        self._sizes = sizes
        self._read(self._before)
        self._start.copy_(self._before)
        self._size = torch.zeros((), dtype=widest(self._now.device), device=self._now.device)

    def _read(self, into: Tensor) -> None:
        parts = [p.detach().reshape(-1) for p in self._parameters]
        torch.cat(parts, out=into) if parts[0].dtype == into.dtype else into.copy_(torch.cat(parts))

    def begin(self, copy: Copy) -> None:
        self._read(self._before)

    def step(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        self._read(self._now)
        torch.sub(self._now, self._before, out=self._delta)
        norms = tensor_norms([*self._delta.split(self._sizes), *self._now.split(self._sizes)])
        updates, weights = norms[: len(self._sizes)], norms[len(self._sizes) :]
        distance = tensor_norms([self._now - self._start])[0]
        along = wide(torch.dot(self._delta, self._last))
        self._now, self._before = self._before, self._now
        self._delta, self._last = self._last, self._delta
        before, self._size = self._size, joint_norm(updates)
        return updates, weights, distance, along, before

    def start(self, i: int) -> Tensor:
        return self._start.split(self._sizes)[i]

    def set_start(self, i: int, start: Tensor, *, sketched: bool) -> None:
        self.start(i).copy_(start)


class _Each:
    """Tensor by tensor: copies, or sketches of them."""

    def __init__(
        self, parameters: Sequence[Tensor], sketch: Sketch | None, reduce: Callable[[Tensor], Tensor] | None
    ) -> None:
        self._parameters = parameters
        self.sketch, self._reduce = sketch, reduce
        self._before = [self._of(i) for i in range(len(parameters))]
        self._start = [t.clone() for t in self._before]
        self._last = [torch.zeros_like(t) for t in self._before]
        self._size = torch.zeros((), dtype=widest(parameters[0].device), device=parameters[0].device)

    def _of(self, i: int) -> Tensor:
        p = self._parameters[i].detach().reshape(-1)
        if self.sketch is not None:
            return self.sketch.of(i, p)
        return p.to(torch.promote_types(p.dtype, torch.float32), copy=True)

    def begin(self, copy: Copy) -> None:
        for i in range(len(self._parameters)):
            self._before[i] = self._of(i)

    def step(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        updates, away, along = [], [], []
        for i in range(len(self._parameters)):
            now = self._of(i)
            delta = now - self._before[i]
            # One tensor at a time: nothing of the whole model's size is made on the way.
            updates.append(tensor_norms([delta])[0])
            away.append(tensor_norms([now - self._start[i]])[0])
            along.append(wide(torch.dot(delta, self._last[i])))
            self._before[i], self._last[i] = now, delta
        norms = torch.stack([torch.stack(updates), tensor_norms(self._parameters), torch.stack(away)])
        dots = torch.stack(along)
        if self._reduce is not None:
            *squares, dots = self._reduce(torch.cat([norms.square(), dots[None]]))
            norms = torch.stack(squares).sqrt()
        sizes, weights, distance = norms[0], norms[1], joint_norm(norms[2])
        before, self._size = self._size, joint_norm(sizes)
        return sizes, weights, distance, dots.sum(), before

    def start(self, i: int) -> Tensor:
        return self._start[i]

    def set_start(self, i: int, start: Tensor, *, sketched: bool) -> None:
        known = start if sketched or self.sketch is None else self.sketch.of(i, start)
        self._start[i] = known.to(self._start[i])
