"""One fixed draw of the data, from every form in which people have them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from .augmentation import random_sample
from .batch import as_tensor, batch_size_of, fingerprint, mapping_like, pick, slice_batch, stays_whole
from .counted import counted
from .errors import TaskError
from .forms import form_of, holds_a_number
from .seeding import seeded


@dataclass(frozen=True)
class Draw:
    """The batches of one draw, on the host: taken once, never changed.

    `available` is the size of the whole split, None where that is not known. `fingerprint` is a SHA-256 over
    every tensor's type, shape and bytes, and every string and number, in order. `whole` says why the batches can't be
    cut into samples, "" where nothing in them speaks against it.
    """

    batches: tuple[Any, ...]
    sizes: tuple[int | None, ...]
    available: int | None
    seed: int
    notes: tuple[str, ...]
    fingerprint: str
    whole: str = ""

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
            _refuse_single(data, batches, split)
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
    samples = sum(1 if s is None else s for s in sizes)
    whole = next((why for b in batches if (why := stays_whole(b))), "")
    # Batches of unknown size count as one each, which is no sign that samples were left out where all were asked for.
    asked = max_samples if None in sizes else samples
    fewer = asked is not None and available is not None and max(asked, samples) < available
    if whole and rebatch and (fewer or (max_samples is not None and samples > max_samples)):
        notes.insert(0, f"the {split} batches are taken whole: one holds {whole}")
    if fewer:
        notes.insert(0, f"{samples} of {available} {split} samples, drawn with seed {seed}")
    return Draw(tuple(batches), sizes, available, seed, tuple(notes), fingerprint(batches), whole)


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
    form = form_of(data, f"the {split} data")
    if form == "loader":
        return _take_loader(data, split, max_samples, generator, rebatch, notes)
    if form == "stream":
        loader = DataLoader(data, batch_size=batch_size)
        return _walk(loader, split, max_samples, rebatch, notes), None
    if form == "columns":
        return _take_columns(data, split, max_samples, batch_size, generator)
    if form == "samples":
        n = len(data)
        chosen = _subset(n, max_samples, generator)
        dataset = data if chosen is None else Subset(data, chosen)
        return list(DataLoader(dataset, batch_size=batch_size)), n
    if form == "list":
        return _take_list(list(data), max_samples, generator, rebatch)
    return _walk(data, split, max_samples, rebatch, notes), None


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
    held = len(loader.dataset) if map_style else None  # type: ignore[arg-type]
    if held == 0:
        raise TaskError(f"the {split} data are empty: the DataLoader's dataset has no samples")
    plain = isinstance(loader.sampler, SequentialSampler | RandomSampler) and loader.batch_size is not None
    # Of one pass; a sampler of the user's own may leave samples out, as one half of a split does.
    n = held
    if map_style and not plain:
        n = len(loader.sampler) if loader.batch_size is not None and isinstance(loader.sampler, Sized) else None
    again = map_style and loader.batch_size is not None and getattr(loader.sampler, "replacement", False)
    if max_samples is None or (n is not None and max_samples >= n):
        batches = list(loader)
        given = sum(batch_size_of(b) or 0 for b in batches)
        if loader.drop_last and n is not None and batches and given < n:
            notes.append(f"the {split} loader drops its last {counted(n - given, 'sample')} (drop_last=True)")
        n = given if map_style and n is None else n
    elif n is not None and plain and rebatch:
        # Not the first samples of the loader: many data sets are stored sorted by class.
        chosen = _subset(n, max_samples, generator)
        subset = Subset(loader.dataset, chosen or [])
        return list(DataLoader(subset, batch_size=loader.batch_size, collate_fn=loader.collate_fn)), n
    else:
        batches = _walk(loader, split, max_samples, rebatch, notes)
    name = type(loader.sampler).__name__ if loader.batch_size is not None else type(loader.batch_sampler).__name__
    if again:
        notes.append(
            f"the {split} loader's {name} draws with replacement: all numbers are means over its draws, in which a "
            "sample may come several times, or not at all"
        )
        return batches, None
    if not plain and n is not None and held is not None and n != held:
        notes.append(f"the {split} loader's {name} gives {n} of its data set's {held} samples")
    return batches, n


def _refuse_single(data: Any, batches: list[Any], split: str) -> None:
    """Refuse pairs of a sample and its label where batches are expected: each would count as many as it has numbers."""
    loader = isinstance(data, DataLoader)
    if (loader and data.batch_sampler is not None) or form_of(data) not in ("loader", "batches"):
        return
    first = batches[0] if batches else None
    if isinstance(first, tuple | list) and len(first) == 2 and holds_a_number(first[1:]):
        raise TaskError(
            f"the {split} data give single samples (the label is a number without a dimension), where "
            f"{'batch_size=None' if loader else 'an iterable'} means batches: give the data set itself, or "
            "DataLoader(dataset, batch_size=...)"
        )


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
        columns = pick(columns, torch.tensor(chosen, device="cpu"), n)
        n_taken = len(chosen)
    else:
        n_taken = n
    batches = []
    for start in range(0, n_taken, batch_size):
        part = slice_batch(columns, start, min(start + batch_size, n_taken), n_taken)
        batches.append(mapping_like(data, part) if isinstance(data, Mapping) else tuple(part.values()))
    return batches, n


def _take_list(
    batches: list[Any], max_samples: int | None, generator: torch.Generator, rebatch: bool
) -> tuple[list[Any], int | None]:
    sizes = [batch_size_of(b) for b in batches]
    total = sum(s for s in sizes if s is not None) if None not in sizes else None
    if max_samples is None or (total is not None and max_samples >= total):
        return batches, total
    if total is not None and rebatch and not any(map(stays_whole, batches)):
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
            cut = rebatch and not stays_whole(batch)
            if not cut and batches:
                break
            if cut:
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


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "(no message)")
