"""The training batches of each epoch, in an order that seed and epoch alone decide: every cell sees the same one.

The permutation of epoch e is drawn from (seed, e), never from a generator that models or losses use too. Cells with
other batch sizes cut the same permutation; a resumed run takes it up at any batch without reading those before.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, TensorDataset
from torch.utils.data import default_collate as collate

from landscape.batch import as_tensor, batch_size_of, bytes_of, mapping_like, pick, stays_whole, to_device
from landscape.data import draw_batches
from landscape.errors import TrainingError
from landscape.forms import form_of

from .grid import FULL

#: Tensors up to this size live on the device for the whole training (chosen by us: a fraction of any GPU's memory).
_RESIDENT = 1 << 30


class Batches:
    """The batches of a task's training data.

    Args:
        data: what `Task(train=...)` takes.
        batch_size: samples; "full" for all of them; None for the size that the data come in (`default` where they
            come without one).
        seed: of the order.
        device, dtype: where the batches are put, and what their floats become; small tensors stay there throughout.
        drop_single: leave out a last batch of one sample, which BatchNorm can't train on.

    Attributes: `size` (samples of a batch; None: batches come as they are), `samples` (None where unknown), `per_epoch`
    (batches), `notes`.

    Raises TrainingError for a batch size that the data can't be cut to, or that exceeds them.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int | str | None = None,
        *,
        seed: int = 0,
        default: int = 256,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        drop_single: bool = False,
    ) -> None:
        if data is None:
            raise TrainingError("the task has no train data: give Task(..., train=...)")
        self.seed = seed
        self.device, self.dtype = torch.device(device), dtype
        self.notes: tuple[str, ...] = ()
        self._loader: DataLoader[Any] | None = None
        self._columns: Any = None
        self._dataset: Any = None
        self._finished: Sequence[Any] | None = None
        self._drop_last = False
        self._take(data, batch_size, default)
        self._resident = False
        if self._columns is not None:
            self._columns = _as_tensors(self._columns)
            self._resident = bytes_of(self._columns) <= _RESIDENT
            if self._resident:
                self._columns = to_device(self._columns, self.device, dtype)
        self.samples: int | None = self._count()
        self.size: int | None = self._size(batch_size, default)
        self.per_epoch = self._per_epoch(drop_single)

    # ------------------------------------------------------------------------------------------- what there is

    def _take(self, data: Any, batch_size: int | str | None, default: int) -> None:
        form = form_of(data, "the train data")
        if form == "loader":
            own_batches = data.batch_sampler is None or type(data.batch_sampler).__name__ != "BatchSampler"
            if not isinstance(data.dataset, IterableDataset) and not own_batches:
                self._loader, self._drop_last = data, bool(data.drop_last)
                self._dataset = data.dataset
                plain = isinstance(data.sampler, SequentialSampler | RandomSampler) and data.collate_fn is collate
                if plain:
                    self._columns = _columns_of(data.dataset)
                return
        elif form == "stream":
            size = batch_size if isinstance(batch_size, int) else default
            self._finish(data, size, "a stream of samples")
            return
        elif form == "columns":
            self._columns = data
            return
        elif form == "samples":
            self._columns = _columns_of(data)
            self._dataset = data if self._columns is None else None
            return
        if batch_size is not None:
            raise TrainingError(
                f"batch_size={batch_size} can't be had: the task's train data come as finished batches "
                f"({type(data).__name__}); leave --batch-size out, or give the task a Dataset or tensors (X, y)"
            )
        self._finish(data, default, "finished batches")

    def _finish(self, data: Any, size: int, what: str) -> None:
        draw = draw_batches(data, split="train", max_samples=None, seed=self.seed, batch_size=size, rebatch=False)
        self._finished = draw.batches
        self.notes = (f"the train data come as {what}: they were read once, and their order is that of the batches",)

    def _count(self) -> int | None:
        if self._columns is not None:
            lengths = {len(c) for c in _values(self._columns)}
            if len(lengths) != 1:
                raise TrainingError(f"the train tensors have different lengths: {sorted(lengths)}")
            return lengths.pop()
        if self._dataset is not None:
            sampler = self._loader.sampler if self._loader is not None else None
            return len(sampler) if sampler is not None else len(self._dataset)  # type: ignore[arg-type]
        sizes = [batch_size_of(b) for b in self._finished or ()]
        return None if None in sizes else sum(s for s in sizes if s is not None)

    def _size(self, batch_size: int | str | None, default: int) -> int | None:
        if self._finished is not None:
            return None
        n = self.samples
        assert n is not None
        if not n:
            raise TrainingError("the train data are empty")
        if batch_size == FULL:
            return n
        own = self._loader.batch_size if self._loader is not None else None
        size = int(batch_size) if batch_size is not None else (own or default)
        if batch_size is not None and size > n:
            raise TrainingError(f"batch_size={size} exceeds the {n} training samples; lower it, or say 'full'")
        return min(size, n)

    def _per_epoch(self, drop_single: bool) -> int:
        if self._finished is not None:
            return len(self._finished)
        assert self.samples is not None
        assert self.size is not None
        left = self.samples % self.size
        if left and (self._drop_last or (drop_single and left == 1)) and self.samples > self.size:
            if not self._drop_last:
                self.notes += ("the last batch of one sample is left out: BatchNorm can't train on it",)
            return self.samples // self.size
        return math.ceil(self.samples / self.size)

    # ------------------------------------------------------------------------------------------- an epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch (from 0) on the device, from batch `start` on."""
        for batch in self._host(epoch, start):
            yield batch if self._resident else to_device(batch, self.device, self.dtype)

    def _host(self, epoch: int, start: int) -> Iterator[Any]:
        if self._finished is not None:
            order = _permutation(len(self._finished), self.seed, epoch)
            yield from (self._finished[i] for i in order[start:].tolist())
            return
        assert self.size is not None
        order = self._order(epoch)
        if self.size == self.samples:
            order = order.sort().values  # all at once: an order would only move the last bits
        # A sampler whose length changes is told from the number of batches, by whoever trains.
        count = self.per_epoch if len(order) == self.samples else math.ceil(len(order) / self.size)
        parts = [order[i * self.size : (i + 1) * self.size] for i in range(start, count)]
        if self._columns is not None:
            yield from self._cut(parts)
        elif parts:
            yield from self._read(parts, epoch)

    def fingerprint(self) -> str:
        """Return a SHA-256 of the first epoch's order: trainings that share it see the same samples one by one."""
        order = self._order(0) if self._finished is None else _permutation(len(self._finished), self.seed, 0)
        return hashlib.sha256(order.to(torch.int64).numpy().tobytes()).hexdigest()

    def _order(self, epoch: int) -> torch.Tensor:
        assert self.samples is not None
        sampler = self._loader.sampler if self._loader is not None else None
        if sampler is None or isinstance(sampler, SequentialSampler | RandomSampler):
            return _permutation(self.samples, self.seed, epoch)
        return _sampled(sampler, self.seed, epoch)

    def _cut(self, parts: Sequence[torch.Tensor]) -> Iterator[Any]:
        assert self.samples is not None
        device = _values(self._columns)[0].device
        for part in parts:
            yield pick(self._columns, part.to(device), self.samples)

    def _read(self, parts: Sequence[torch.Tensor], epoch: int) -> Iterator[Any]:
        own = self._loader
        settings: dict[str, Any] = {}
        if own is not None:
            settings = {
                "collate_fn": own.collate_fn,
                "num_workers": own.num_workers,
                "pin_memory": own.pin_memory,
                "multiprocessing_context": own.multiprocessing_context,
                "prefetch_factor": own.prefetch_factor,
            }
        indices = [part.tolist() for part in parts]
        # The generator keeps the loader from drawing its base seed out of the one that the model uses.
        generator = torch.Generator().manual_seed(_mixed(self.seed, epoch))
        dataset = _SeededItems(self._dataset, self.seed, epoch)
        yield from DataLoader(dataset, batch_sampler=indices, generator=generator, **settings)


class _SeededItems(Dataset[Any]):
    """A data set whose random augmentation of a sample depends on seed, epoch and sample alone.

    Whatever the batch size, the number of reading processes and the place from which a run is resumed. The generators
    are put back, so that a model's dropout doesn't depend on what the data draw. Costs about 40 us a sample.
    """

    def __init__(self, dataset: Any, seed: int, epoch: int) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()
        own = _mixed(self.seed, self.epoch, index)
        torch.default_generator.manual_seed(own)  # torch.manual_seed would seed the GPUs, too
        np.random.seed(own % 2**32)
        random.seed(own)
        try:
            return self.dataset[index]
        finally:
            torch.set_rng_state(states[0])
            np.random.set_state(states[1])
            random.setstate(states[2])


def _mixed(*numbers: int) -> int:
    """Return 63 bits that depend on all of these numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _permutation(n: int, seed: int, epoch: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(_mixed(seed, epoch)), device="cpu")


def _sampled(sampler: Any, seed: int, epoch: int) -> torch.Tensor:
    """Return the indices that a sampler of the user's own gives in this epoch."""
    own = _mixed(seed, epoch)
    if callable(getattr(sampler, "set_epoch", None)):
        sampler.set_epoch(epoch)
    generator = getattr(sampler, "generator", None)
    before = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(own)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(own)
        return torch.tensor(list(sampler), dtype=torch.int64, device="cpu")
    finally:
        torch.set_rng_state(before)


def _values(columns: Any) -> list[Any]:
    return list(columns.values()) if isinstance(columns, Mapping) else list(columns)


def _as_tensors(columns: Any) -> Any:
    if isinstance(columns, Mapping):
        return mapping_like(columns, {k: as_tensor(v) for k, v in columns.items()})
    return tuple(as_tensor(v) for v in columns)


def _columns_of(data: Any) -> tuple[torch.Tensor, ...] | None:
    """Return the tensors of a TensorDataset that may be cut as they are.

    Its rows are samples by its own word, but those of what may be a graph's matrix are read one by one.
    """
    return data.tensors if type(data) is TensorDataset and not stays_whole(data.tensors) else None
