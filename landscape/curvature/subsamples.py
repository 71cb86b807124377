"""Disjoint random parts of a task's draw, each a task of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..batch import join, pick, slice_batch
from ..errors import MeasurementError
from ..parameters import unwrap
from ..session import batchnorm_layers
from ..tasks import Task

#: Fewest units (samples or batches) for parts of 1 / 16 and 1 / 4, and for parts of 1 / 4 and 1 / 2 (chosen by us).
FEWEST = {4: 64, 2: 8}


class Subsamples:
    """The units of one draw in random order: samples, or whole batches where they must stay as they are.

    Whole batches stay with `rebatch=False`, where BatchNorm takes each batch's own statistics, where random numbers
    are drawn batch by batch, and where the number of samples of a batch is not known or its rows may be none.
    """

    def __init__(self, task: Task, split: str, seed: int) -> None:
        self.task, self.split, self.draw = task, split, task.draw(split)
        self._sizes = [1 if s is None else s for s in self.draw.sizes]
        own_statistics = task.batchnorm == "batch" and bool(batchnorm_layers(unwrap(task.model)))
        known = not self.draw.whole and all(s is not None for s in self.draw.sizes)
        self.whole_batches = not (task.rebatch and known) or own_statistics or task.rng == "fixed"
        count = len(self._sizes) if self.whole_batches else self.draw.samples
        self._order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
        self.ratio = next((r for r, least in FEWEST.items() if count >= least), 0)
        if not self.ratio:
            plural = "" if count == 1 else "es" if self.whole_batches else "s"
            unit = f"batch{plural}, which must stay whole" if self.whole_batches else f"sample{plural}"
            raise MeasurementError(
                f"the draw holds {count} {unit}: how numbers move with the data takes {min(FEWEST.values())} at least; "
                "draw more samples" + (" or smaller batches" if self.whole_batches else "")
            )
        self._joined = None if self.whole_batches else self._join()

    def parts(self, count: int) -> Iterator[tuple[Task, int]]:
        """Yield `count` disjoint parts that hold all units together, as (task, samples).

        The parts of a smaller count are unions of consecutive parts of a larger one that it divides.
        """
        edges = [round(i * len(self._order) / count) for i in range(count + 1)]
        for a, b in itertools.pairwise(edges):
            units = self._order[a:b].sort().values
            batches = self._batches(units)
            samples = sum(self._sizes[i] for i in units.tolist()) if self.whole_batches else len(units)
            yield self.task.replace(**{self.split: _Batches(batches), "max_samples": None}), samples

    def _batches(self, units: torch.Tensor) -> list[Any]:
        if self.whole_batches:
            return [self.draw.batches[i] for i in units.tolist()]
        if self._joined is not None:
            part, size = pick(self._joined, units, self.draw.samples), max(self._sizes)
            return [slice_batch(part, a, min(a + size, len(units)), len(units)) for a in range(0, len(units), size)]
        found, start = [], 0
        for batch, size in zip(self.draw.batches, self._sizes, strict=True):
            inside = units[(units >= start) & (units < start + size)] - start
            if len(inside):
                found.append(pick(batch, inside, size))
            start += size
        return found

    def _join(self) -> Any:
        try:
            return join(self.draw.batches, self._sizes)
        except ValueError:  # samples of different shapes: each part then takes its own out of every batch
            return None


class _Batches:
    """Batches as an iterable that is no list, whose members could be taken for single samples."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)
