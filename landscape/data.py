"""One fixed draw of the data, from every form in which people have them; and what can be done to a batch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import random
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset

from .augmentation import random_sample
from .errors import TaskError


@dataclass(frozen=True)
class Draw:
    """The batches of one draw, on the host: taken once, never changed.

    `available` is the size of the whole split, None where that is not known. `fingerprint` is a SHA-256 over
    every tensor's type, shape and bytes, and every string and number, in order.
    """

    batches: tuple[Any, ...]
    sizes: tuple[int | None, ...]
    available: int | None
    seed: int
    notes: tuple[str, ...]
    fingerprint: str

    @property
    def samples(self) -> int:
        """Number of samples; batches of unknown size count as one."""
        return sum(1 if s is None else s for s in self.sizes)


class Replay:
    """A one-shot iterator that remembers what it gave, so that it can be walked again."""

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._seen: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        yield from self._seen
        for item in self._source:
            self._seen.append(item)
            yield item


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch, NumPy and random inside; put all their states back on every way out."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    states = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)


def seed_all(seed: int) -> None:
    """Seed every generator that a model or a data set may use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def draw_batches(
    data: Any,
    *,
    split: str,
    max_samples: int | None,
    seed: int,
    batch_size: int,
    rebatch: bool,
) -> Draw:
    """Draw `max_samples` samples of `data` (all when None) with the seed, in batches, once.

    Sets of known size are sampled without replacement; loaders with a sampler of their own, and plain
    iterables, are walked from their beginning (said in the notes). With `rebatch=False` only whole batches are
    taken. The caller's generators are as before afterwards.
    """
    notes: list[str] = []
    with torch.inference_mode(False), seeded(seed), _loader_generator(data, seed):
        try:
            batches, available = _take(data, split, max_samples, seed, batch_size, rebatch, notes)
            if batches and (i := random_sample(data)) is not None:
                notes.append(
                    f"the {split} data are random (augmentation?): sample {i} differs when it is read again; all "
                    "numbers are of one draw of them"
                )
        except TaskError:
            raise
        except Exception as error:
            raise TaskError(
                f"the {split} data failed while being read: {type(error).__name__}: {first_line(error)}"
            ) from error
    if not batches:
        raise TaskError(f"the {split} data are empty: no batch came out of {type(data).__name__}")
    sizes = tuple(batch_size_of(b) for b in batches)
    if any(s == 0 for s in sizes):
        keep = [i for i, s in enumerate(sizes) if s != 0]
        if not keep:
            raise TaskError(f"the {split} data are empty: every batch has 0 samples")
        batches = [batches[i] for i in keep]
        sizes = tuple(sizes[i] for i in keep)
    draw = Draw(tuple(batches), sizes, available, seed, tuple(notes), fingerprint(batches))
    if available is not None and draw.samples < available:
        said = f"{draw.samples} of {available} {split} samples, drawn with seed {seed}"
        draw = Draw(draw.batches, sizes, available, seed, (said, *notes), draw.fingerprint)
    return draw


def _take(
    data: Any,
    split: str,
    max_samples: int | None,
    seed: int,
    batch_size: int,
    rebatch: bool,
    notes: list[str],
) -> tuple[list[Any], int | None]:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(data, DataLoader):
        return _take_loader(data, split, max_samples, generator, rebatch, notes)
    if isinstance(data, IterableDataset):
        loader = DataLoader(data, batch_size=batch_size)
        return _walk(loader, split, max_samples, rebatch, notes), None
    if is_columns(data):
        return _take_columns(data, split, max_samples, batch_size, generator)
    indexed = hasattr(data, "__getitem__") and not isinstance(data, list | tuple | Mapping)
    if indexed or isinstance(data, Dataset) or is_samples(data):
        n = len(data)  # type: ignore[arg-type]
        chosen = _subset(n, max_samples, generator)
        dataset = data if chosen is None else Subset(data, chosen)  # type: ignore[arg-type]
        return list(DataLoader(dataset, batch_size=batch_size)), n  # type: ignore[arg-type]
    if isinstance(data, Mapping):
        raise TaskError(
            f"the {split} data are a mapping whose values are not tensors of one length; "
            "give a list of batches, a Dataset or a DataLoader"
        )
    if isinstance(data, list | tuple):
        return _take_list(list(data), max_samples, generator, rebatch)
    if isinstance(data, Iterable):
        return _walk(data, split, max_samples, rebatch, notes), None
    raise TaskError(
        f"the {split} data are a {type(data).__name__}; give a DataLoader, a Dataset, an iterable or list of "
        "batches, or tensors (X, y)"
    )


def _take_loader(
    loader: DataLoader[Any],
    split: str,
    max_samples: int | None,
    generator: torch.Generator,
    rebatch: bool,
    notes: list[str],
) -> tuple[list[Any], int | None]:
    # Without a batch sampler the items of the data set are batches already: how many samples they hold nobody says.
    map_style = not isinstance(loader.dataset, IterableDataset) and loader.batch_sampler is not None
    n = len(loader.dataset) if map_style else None  # type: ignore[arg-type]
    if n == 0:
        raise TaskError(f"the {split} data are empty: the DataLoader's dataset has no samples")
    if max_samples is None or (n is not None and max_samples >= n):
        batches = list(loader)
        if loader.drop_last and batches and n is not None:
            dropped = n - sum(batch_size_of(b) or 0 for b in batches)
            if dropped > 0:
                notes.append(f"the {split} loader drops its last {dropped} samples (drop_last=True)")
        return batches, n
    plain = isinstance(loader.sampler, SequentialSampler | RandomSampler) and loader.batch_size is not None
    if n is not None and plain and rebatch:
        # Not the first samples of the loader: many data sets are stored sorted by class.
        chosen = _subset(n, max_samples, generator)
        subset = Subset(loader.dataset, chosen or [])
        return list(DataLoader(subset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)), n
    return _walk(loader, split, max_samples, rebatch, notes), n


def _take_columns(
    data: Any, split: str, max_samples: int | None, batch_size: int, generator: torch.Generator
) -> tuple[list[Any], int]:
    columns = {k: as_tensor(v) for k, v in (data.items() if isinstance(data, Mapping) else enumerate(data))}
    lengths = {len(v) for v in columns.values()}
    if len(lengths) != 1:
        shapes = ", ".join(str(tuple(v.shape)) for v in columns.values())
        raise TaskError(f"the {split} tensors have different lengths: {shapes}; their first dimension must agree")
    n = lengths.pop()
    chosen = _subset(n, max_samples, generator)
    if chosen is not None:
        index = torch.tensor(chosen, device="cpu")
        columns = {k: v[index.to(v.device)] for k, v in columns.items()}
        n_taken = len(chosen)
    else:
        n_taken = n
    batches = []
    for start in range(0, n_taken, batch_size):
        part = {k: v[start : start + batch_size] for k, v in columns.items()}
        batches.append(mapping_like(data, part) if isinstance(data, Mapping) else tuple(part.values()))
    return batches, n


def _take_list(
    batches: list[Any], max_samples: int | None, generator: torch.Generator, rebatch: bool
) -> tuple[list[Any], int | None]:
    sizes = [batch_size_of(b) for b in batches]
    total = sum(s for s in sizes if s is not None) if None not in sizes else None
    if max_samples is None or (total is not None and max_samples >= total):
        return batches, total
    if total is not None and rebatch:
        return _take_from_each(batches, [s for s in sizes if s is not None], max_samples, generator), total
    taken: list[int] = []
    room = max_samples
    for i in torch.randperm(len(batches), generator=generator, device="cpu").tolist():
        size = sizes[i] or 1
        if size <= room or not taken:
            taken.append(i)
            room -= size
    return [batches[i] for i in sorted(taken)], total


def _take_from_each(batches: list[Any], sizes: list[int], max_samples: int, generator: torch.Generator) -> list[Any]:
    """Draw single samples out of all batches: whole batches may each hold one class."""
    chosen = torch.tensor(_subset(sum(sizes), max_samples, generator), device="cpu")
    found, start = [], 0
    for batch, size in zip(batches, sizes, strict=True):
        inside = chosen[(chosen >= start) & (chosen < start + size)] - start
        if len(inside):
            found.append(pick(batch, inside, size))
        start += size
    return found


def _walk(source: Iterable[Any], split: str, max_samples: int | None, rebatch: bool, notes: list[str]) -> list[Any]:
    batches: list[Any] = []
    room = max_samples
    for batch in source:
        size = batch_size_of(batch)
        if room is not None and size is not None and size > room:
            if not rebatch and batches:
                break
            if rebatch:
                batch, size = slice_batch(batch, 0, room, size), room
        batches.append(batch)
        if room is not None:
            room -= size or 1
            if room <= 0:
                notes.append(f"the first {max_samples} {split} samples that the data gave, in their own order")
                break
    return batches


def _subset(n: int, max_samples: int | None, generator: torch.Generator) -> list[int] | None:
    if max_samples is None or max_samples >= n:
        return None
    return sorted(torch.randperm(n, generator=generator, device="cpu")[:max_samples].tolist())


def is_columns(data: Any) -> bool:
    """Say whether `data` is (X, y) or {name: tensor}: arrays whose rows belong together, not batches."""
    if isinstance(data, Mapping):
        values: Sequence[Any] = list(data.values())
    elif isinstance(data, tuple):
        values = data
    else:
        return False
    return bool(values) and all(isinstance(v, torch.Tensor | np.ndarray) and v.ndim > 0 for v in values)


def is_samples(data: Any) -> bool:
    """Say whether a list holds single samples, not batches: a batch holds no number without a dimension."""
    if not isinstance(data, list) or not data:
        return False
    first = data[0]
    values = list(first.values()) if isinstance(first, Mapping) else first
    if not isinstance(values, list | tuple):
        return False
    return any(isinstance(v, int | float) or (isinstance(v, torch.Tensor) and v.ndim == 0) for v in values)


@contextlib.contextmanager
def _loader_generator(data: Any, seed: int) -> Iterator[None]:
    """Seed the generators that a DataLoader carries with it, and put them back."""
    found = {}
    for owner in (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator):
            found[id(generator)] = (generator, generator.get_state())
    for generator, _ in found.values():
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in found.values():
            generator.set_state(state)


# ----------------------------------------------------------------------------------------------- a batch


def as_tensor(value: Any) -> torch.Tensor:
    """Return a tensor as it is, and other numbers as one on the CPU, whatever torch.set_default_device says."""
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return `batch` with every tensor changed, in containers of the same kind; what else it holds is kept."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "fiub":
        return change(as_tensor(batch))
    return _map_parts(batch, lambda part: map_tensors(part, change))


def _map_parts(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return a container of the same kind with each part changed; the batch itself where it is no container."""
    if isinstance(batch, Mapping):
        return mapping_like(batch, {k: change(v) for k, v in batch.items()})
    if isinstance(batch, PackedSequence):
        return batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(change(v) for v in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(change(v) for v in batch)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        other = copy.copy(batch)
        for f in dataclasses.fields(batch):
            object.__setattr__(other, f.name, change(getattr(batch, f.name)))
        return other
    return batch


def mapping_like(batch: Mapping[Any, Any], parts: dict[Any, Any]) -> Mapping[Any, Any]:
    """Return these parts in a mapping of the batch's kind: user code may look for them as attributes."""
    if hasattr(batch, "to_tuple"):  # a Transformers ModelOutput
        return type(batch)(**parts)
    if isinstance(batch, UserDict):  # a Transformers BatchEncoding
        other = copy.copy(batch)
        other.data = parts
        return other
    return parts


def to_device(batch: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return `batch` on the device, its floating-point tensors in `dtype`, complex ones in the same precision."""

    def change(t: torch.Tensor) -> torch.Tensor:
        if t.is_inference():  # made under the caller's inference_mode: autograd would refuse it
            t = t.clone()
        return t.to(device, in_precision(t.dtype, dtype))

    def place(part: Any) -> Any:
        if isinstance(part, torch.Tensor | np.ndarray):
            return map_tensors(part, change)
        if isinstance(part, PackedSequence):
            return part.to(in_precision(part.data.dtype, dtype)).to(device)  # its sizes stay on the host
        if isinstance(part, Mapping | list | tuple) or not callable(getattr(part, "to", None)):
            return _map_parts(part, place)
        return _place_object(part, device, change)

    return place(batch)


def in_precision(kind: torch.dtype, dtype: torch.dtype) -> torch.dtype:
    """Return what a tensor of this kind becomes where floats are `dtype`: integers and booleans stay."""
    if kind.is_complex:
        return dtype.to_complex()
    return dtype if kind.is_floating_point else kind


def _place_object(batch: Any, device: torch.device, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a batch class of the user's own on the device; on a copy, since some move themselves in place."""
    other = copy.copy(batch)
    if hasattr(other, "to_dict") and callable(getattr(other, "apply", None)):  # PyTorch Geometric's way
        return other.apply(change)
    other = copy.copy(other.to(device))
    for name, value in list(getattr(other, "__dict__", {}).items()):
        if isinstance(value, torch.Tensor):
            setattr(other, name, change(value))
    return other


def tensors_of(batch: Any) -> list[torch.Tensor]:
    """Return every tensor of a batch (or of a model's outputs), in order."""
    found: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        found.append(t)
        return t

    map_tensors(batch, keep)
    return found


def batch_size_of(batch: Any) -> int | None:
    """Return the number of samples: the first dimension that all tensors share, None where they don't."""
    sizes = {len(t) for t in tensors_of(batch) if t.ndim > 0}
    return sizes.pop() if len(sizes) == 1 else None


def slice_batch(batch: Any, start: int, stop: int, size: int) -> Any:
    """Return the samples start..stop of a batch (or of a model's outputs) that holds `size` samples."""
    return pick(batch, slice(start, stop), size)


def pick(batch: Any, index: slice | torch.Tensor, size: int) -> Any:
    """Return the samples of a batch (or of a model's outputs) at `index`; what has not `size` rows is kept."""
    if isinstance(batch, torch.Tensor):
        rows = index.to(batch.device) if isinstance(index, torch.Tensor) else index
        return batch[rows] if batch.ndim > 0 and len(batch) == size else batch
    if isinstance(batch, np.ndarray):
        rows = index.numpy() if isinstance(index, torch.Tensor) else index
        return batch[rows] if batch.ndim > 0 and len(batch) == size else batch
    if isinstance(batch, list | tuple) and not hasattr(batch, "_fields") and _is_rows(batch, size):
        return batch[index] if isinstance(index, slice) else type(batch)(batch[i] for i in index.tolist())
    return _map_parts(batch, lambda part: pick(part, index, size))


def join(batches: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Return one batch of all these batches' samples; ValueError where they don't fit (lengths that differ, say)."""
    first = batches[0]
    if isinstance(first, torch.Tensor) and all(t.ndim > 0 and len(t) == n for t, n in zip(batches, sizes, strict=True)):
        if len({(t.dtype, t.device, t.shape[1:]) for t in batches}) > 1:
            raise ValueError("the samples of these batches have different shapes")
        return torch.cat(list(batches))
    if isinstance(first, Mapping) and all(type(b) is type(first) and b.keys() == first.keys() for b in batches):
        return mapping_like(first, {k: join([b[k] for b in batches], sizes) for k in first})
    if isinstance(first, list | tuple) and all(type(b) is type(first) for b in batches):
        if not hasattr(first, "_fields") and all(_is_rows(b, n) for b, n in zip(batches, sizes, strict=True)):
            return type(first)(row for b in batches for row in b)
        if len({len(b) for b in batches}) == 1 and not isinstance(first, PackedSequence):
            found = [join(column, sizes) for column in zip(*batches, strict=True)]
            return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    if first is None or (isinstance(first, str | int | float) and all(b == first for b in batches)):
        return first
    raise ValueError(f"batches of {type(first).__name__} can't be joined")


def _is_rows(batch: Any, size: int) -> bool:
    """Whether a list holds one thing (a string, a number) for each of `size` samples."""
    return len(batch) == size and not any(isinstance(v, torch.Tensor | Mapping) for v in batch)


def fingerprint(batches: Iterable[Any]) -> str:
    """Return a SHA-256 over every tensor's dtype, shape and bytes, and every string and number, in order."""
    digest = hashlib.sha256()

    def add(part: Any) -> Any:
        if isinstance(part, torch.Tensor | np.ndarray):
            for t in tensors_of(part):
                digest.update(f"{t.dtype}{tuple(t.shape)}".encode())
                # A clone, since a tensor of one element counts as contiguous whatever its stride is.
                flat = t.detach().to("cpu").resolve_conj().resolve_neg().reshape(-1)
                flat = flat.clone(memory_format=torch.contiguous_format)
                digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        elif isinstance(part, str | bytes | int | float | complex):
            digest.update(repr(part).encode())
        elif callable(getattr(part, "to", None)) and not isinstance(part, Mapping | list | tuple):
            add(part.to_dict() if callable(getattr(part, "to_dict", None)) else dict(getattr(part, "__dict__", {})))
        elif isinstance(part, PackedSequence):
            add(tuple(part))
        else:
            _map_parts(part, add)
        return part

    for batch in batches:
        add(batch)
    return digest.hexdigest()


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "(no message)")
