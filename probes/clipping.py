"""Clipping of gradients, seen from the recorder: norms before it, what it multiplied by, norms after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.batch import as_tensor
from landscape.dynamics.norms import clip_coefficient

from .attachment import Attachment
from .gradients import Clip, GradientNorms, scaled, versions
from .probe import Followed, Run
from .timing import Timed


class Clipping:
    """Tells the `GradientNorms` among the probes, and `Run.clipped`, of each clipping of the coming step."""

    def __init__(self, run: Run, probes: Sequence[Timed], attached: Mapping[str, Attachment]) -> None:
        self._run, self._attached = run, attached
        self._probes = [t for t in probes if isinstance(t.probe, GradientNorms)]

    def before(self, f: Followed) -> Any:
        """Return the norms of the gradients that are about to be clipped; None where no probe wants them."""
        return _norms(f) if self._interested(f) else None

    def after(self, f: Followed, before: Any, total: Tensor | None, limit: float) -> None:
        """Take note of a clipping that was done: by norm, of this total norm before it, or by value (`total` None)."""
        coefficient = None if total is None else self._coefficient(f, total, limit)
        if before is not None:
            self._tell(f, lambda: (before, coefficient, limit, versions([p.grad for p in f.parameters])))

    def done(self, f: Followed, total: Tensor, limit: float) -> None:
        """Take note of a clipping by norm of which no more is known: the norms before are those after it, divided."""
        coefficient = self._coefficient(f, total, limit)

        def clip() -> tuple[Any, Any, float, tuple[Any, ...]]:
            # Of what was clipped to nothing no norm can be told.
            factor = 1 / coefficient if isinstance(coefficient, Tensor) or coefficient else math.nan
            return scaled(_norms(f), factor), coefficient, limit, versions([p.grad for p in f.parameters])

        self._tell(f, clip)

    def coming(self, f: Followed, limit: float, *, by_norm: bool) -> None:
        """Take note of a clipping that somebody is about to do."""

        def clip() -> tuple[Any, Any, float, tuple[Any, ...]]:
            before = _norms(f)
            coefficient = self._coefficient(f, as_tensor(before[0]), limit) if by_norm else None
            # No gradient has these versions: the norms after are measured, whatever the clipping did.
            return before, coefficient, limit, ()

        self._tell(f, clip)

    def _coefficient(self, f: Followed, total: Any, limit: float) -> Any:
        """Note what clipping to this norm multiplies the gradients by: a number on the host, else a tensor."""
        whole = total.full_tensor() if hasattr(total, "full_tensor") else total
        found = clip_coefficient(whole.detach(), limit)
        coefficient = float(found) if f.on_host else found
        self._run.clipped[f.name] = (self._attached[f.name].number, coefficient)
        return coefficient

    def _interested(self, f: Followed) -> list[Timed]:
        return [t for t in self._probes if t.due(self._attached[f.name].number)]

    def _tell(self, f: Followed, clip: Callable[[], tuple[Any, Any, float, tuple[Any, ...]]]) -> None:
        for timed in self._interested(f):
            timed.call(lambda probe: probe.clip(self._run, f, Clip(self._attached[f.name].number, *clip())))


def _norms(f: Followed) -> Any:
    with torch.no_grad():
        return f.norms([p.grad for p in f.parameters])
