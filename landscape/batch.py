"""What can be done to a batch, whatever containers it is made of: walked, placed, cut, joined, told from another."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from . import sequences, sparse


def as_tensor(value: Any) -> torch.Tensor:
    """Return a tensor as it is, and other numbers as one on the CPU, whatever torch.set_default_device says."""
    return value if isinstance(value, torch.Tensor) else torch.as_tensor(value, device="cpu")


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor], made: dict[int, Any] | None = None) -> Any:
    """Return `batch` with every tensor changed, in containers of the same kind; what else it holds is kept.

    `made` are the copies of objects around it, by the id of each, to which an object inside may lead back.
    """
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if _is_numbers(batch):
        return change(as_tensor(batch))
    if is_object(batch):
        return _map_object(batch, change, {} if made is None else made)
    return _map_parts(batch, lambda part: map_tensors(part, change, made))


def _is_numbers(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.dtype.kind in "fiub"


def is_object(part: Any) -> bool:
    """Whether this is a batch class of somebody's own, which moves itself; PyTorch Geometric has such ones."""
    if isinstance(part, torch.Tensor | np.ndarray | Mapping | list | tuple | type) or dataclasses.is_dataclass(part):
        return False
    return callable(getattr(part, "to", None))


def _map_object(batch: Any, change: Callable[[torch.Tensor], torch.Tensor], made: dict[int, Any]) -> Any:
    """Return a copy of such an object with every tensor changed that it holds, in containers too."""
    if id(batch) in made:
        return made[id(batch)]
    other = made[id(batch)] = copy.copy(batch)
    if _is_geometric(batch):
        return other.apply(change)
    for name, value in _attributes(batch).items():
        object.__setattr__(other, name, map_tensors(value, change, made))
    return other


def _is_geometric(batch: Any) -> bool:
    return callable(getattr(batch, "to_dict", None)) and callable(getattr(batch, "apply", None))


def _attributes(batch: Any) -> dict[str, Any]:
    slots = (n for kind in type(batch).__mro__ for n in _names(getattr(kind, "__slots__", ())))
    return {n: getattr(batch, n) for n in slots if hasattr(batch, n)} | dict(getattr(batch, "__dict__", {}))


def _names(slots: Any) -> list[str]:
    return [n for n in ([slots] if isinstance(slots, str) else slots) if n not in ("__dict__", "__weakref__")]


def parts_of(batch: Any) -> list[Any]:
    """Return what a container holds, in order; nothing where it is none."""
    if isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, list | tuple):
        return list(batch)
    if is_object(batch):
        held: dict[str, Any] = batch.to_dict() if _is_geometric(batch) else _attributes(batch)
        return list(held.values())
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return [getattr(batch, f.name) for f in dataclasses.fields(batch)]
    return []


def _map_parts(batch: Any, change: Callable[[Any], Any]) -> Any:
    """Return a container of the same kind with each part changed; the batch itself where it is no container."""
    if isinstance(batch, Mapping):
        return mapping_like(batch, {k: change(v) for k, v in batch.items()})
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
            own = map_tensors(part, lambda t: t.clone() if t.is_inference() else t)
            return own.to(in_precision(own.data.dtype, dtype)).to(device)  # its sizes stay on the host
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
    if _is_geometric(batch):
        return map_tensors(batch, change)
    other = map_tensors(batch, lambda t: t)
    moved = other.to(device)
    return map_tensors(other if moved is None else moved, change)


def tensors_of(batch: Any, within: frozenset[int] = frozenset()) -> list[torch.Tensor]:
    """Return every tensor of a batch (or of a model's outputs), in order; `within` are the ids of objects around it."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    if _is_numbers(batch):
        return [as_tensor(batch)]
    if id(batch) in within:
        return []
    inside = within | {id(batch)} if is_object(batch) else within
    return [t for part in parts_of(batch) for t in tensors_of(part, inside)]


def bytes_of(batch: Any) -> int:
    """Return the bytes that the tensors of a batch take."""
    return sum(sparse.bytes_of(t) for t in tensors_of(batch))


def batch_size_of(batch: Any) -> int | None:
    """Return the number of samples: the first dimension that all tensors share, None where they don't.

    Of a detector's batch, whose pictures have dicts of boxes and labels, it is the number of these. A packed sequence
    counts by its sequences. What a batch class of the user's own holds is not looked at: what its
    rows are is its own affair.
    """
    sizes = _sizes(batch)
    return _listed(batch, sizes) or (sizes.pop() if len(sizes) == 1 else None)


def _listed(batch: Any, sizes: set[int]) -> int:
    """Return how many samples a batch lists one by one: among its parts is a list of dicts (a detector's targets).

    0 where it does not, where another part has not as many, or where all tensors have as many rows themselves: then
    these are the samples, and the dicts say something else.
    """
    parts = [p for p in parts_of(batch) if isinstance(p, list | tuple | torch.Tensor | np.ndarray)]
    counts = {len(p) for p in parts if _are_dicts(p)}
    if len(counts) != 1 or sizes == counts:
        return 0
    (count,) = counts
    return count if all(getattr(p, "ndim", 1) > 0 and len(p) == count for p in parts) else 0


def _are_dicts(part: Any) -> bool:
    plain = isinstance(part, list | tuple) and not hasattr(part, "_fields")
    return plain and len(part) > 0 and all(isinstance(v, Mapping) for v in part)


def _sizes(batch: Any) -> set[int]:
    if isinstance(batch, torch.Tensor) or _is_numbers(batch):
        return {len(batch)} if batch.ndim > 0 else set()
    if isinstance(batch, PackedSequence):
        return {sequences.count(batch)}
    if is_object(batch):
        return set()
    return {size for part in parts_of(batch) for size in _sizes(part)}


def slice_batch(batch: Any, start: int, stop: int, size: int) -> Any:
    """Return the samples start..stop of a batch (or of a model's outputs) that holds `size` samples."""
    return pick(batch, slice(start, stop), size)


def pick(batch: Any, index: slice | torch.Tensor, size: int) -> Any:
    """Return the samples of a batch (or of a model's outputs) at `index`; what has not `size` rows is kept.

    So is a sparse tensor whose rows may be something else, and an object of somebody's own class: a batch that
    `stays_whole` is for nobody to cut.
    """

    listed = _listed(batch, _sizes(batch)) == size
    # The targets of such a batch by themselves.
    rows = _are_dicts(batch) and len(batch) == size and _sizes(batch) != {size}

    def numbers() -> torch.Tensor:
        return index if isinstance(index, torch.Tensor) else torch.arange(size, device="cpu")[index]

    def is_rows(part: Any) -> bool:
        if part is batch:
            return rows or (not listed and _is_rows(part, size))
        return len(part) == size if listed else _is_rows(part, size)

    def cut(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            if part.ndim == 0 or len(part) != size:
                return part
            if sparse.is_sparse(part):
                return part if stays_whole(batch) else sparse.rows(part, numbers())
            return part[index.to(part.device) if isinstance(index, torch.Tensor) else index]
        if isinstance(part, np.ndarray):
            rows = index.numpy() if isinstance(index, torch.Tensor) else index
            return part[rows] if part.ndim > 0 and len(part) == size else part
        if isinstance(part, PackedSequence):
            return sequences.chosen(part, numbers()) if sequences.count(part) == size else part
        if isinstance(part, list | tuple) and not hasattr(part, "_fields") and is_rows(part):
            return part[index] if isinstance(index, slice) else type(part)(part[i] for i in index.tolist())
        return _map_parts(part, cut)

    return cut(batch)


def stays_whole(batch: Any) -> str:
    """Say why a batch can't be cut into samples, whatever the loss is; "" where nothing speaks against it."""
    tensors = tensors_of(batch)
    for t in tensors:
        if sparse.is_sparse(t) and not sparse.rows_are_samples(t, len(tensors) - 1):
            return f"a sparse tensor {tuple(t.shape)}, whose rows may be the nodes of one graph"
    own = _object_in(batch)
    return f"a {own}, of whose rows only its own code knows what they are" if own else ""


def _object_in(batch: Any) -> str:
    """Return the name of the first class of somebody's own in a batch, "" where there is none."""
    if is_object(batch):
        return type(batch).__name__
    return next((name for part in parts_of(batch) if (name := _object_in(part))), "")


def join(batches: Sequence[Any], sizes: Sequence[int], *, within: bool = False) -> Any:
    """Return one batch of all these batches' samples; ValueError where they don't fit (lengths that differ, say).

    `within` a batch that lists its samples one by one every list is one of samples.
    """
    first = batches[0]
    pairs = list(zip(batches, sizes, strict=True))
    listed = within or all(_listed(b, _sizes(b)) == n for b, n in pairs)
    if isinstance(first, torch.Tensor):
        if not all(isinstance(t, torch.Tensor) and t.shape[:1] == (n,) for t, n in pairs):
            raise ValueError("one of these batches holds something else than a row for each sample")
        if len({(t.dtype, t.device, t.layout, t.shape[1:]) for t in batches}) > 1:
            raise ValueError("the samples of these batches have different shapes")
        return sparse.joined(batches) if sparse.is_sparse(first) else torch.cat(list(batches))
    if isinstance(first, Mapping) and all(type(b) is type(first) and b.keys() == first.keys() for b in batches):
        return mapping_like(first, {k: join([b[k] for b in batches], sizes, within=listed) for k in first})
    if isinstance(first, PackedSequence):
        if any(type(b) is not type(first) or sequences.count(b) != n for b, n in pairs):
            raise ValueError("packed sequences beside something else can't be joined")
        return sequences.joined(batches)
    if isinstance(first, list | tuple) and all(type(b) is type(first) for b in batches):
        if not hasattr(first, "_fields") and all(
            len(b) == n if within else not listed and _is_rows(b, n) for b, n in pairs
        ):
            return type(first)(row for b in batches for row in b)
        if len({len(b) for b in batches}) == 1:
            found = [join(column, sizes, within=listed) for column in zip(*batches, strict=True)]
            return type(first)(*found) if hasattr(first, "_fields") else type(first)(found)
    if isinstance(first, str | int | float | None) and all(type(b) is type(first) and b == first for b in batches):
        return first
    raise ValueError(f"batches of {type(first).__name__} can't be joined")


def _is_rows(batch: Any, size: int) -> bool:
    """Whether a list holds one thing (a string, a number) for each of `size` samples."""
    return len(batch) == size and not any(isinstance(v, torch.Tensor | Mapping) for v in batch)


def raw(t: torch.Tensor) -> Any:
    """Return the bytes of a dense tensor's numbers, in order; of a whole data set on the host without a copy."""
    flat = t.detach().to("cpu").resolve_conj().resolve_neg().reshape(-1)
    # One of a single element counts as contiguous whatever its stride is.
    flat = flat.contiguous() if flat.numel() > 1 else flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def fingerprint(batches: Iterable[Any]) -> str:
    """Return a SHA-256 over every tensor's dtype, shape and bytes, and every string and number, in order."""
    digest = hashlib.sha256()

    def add(part: Any, within: frozenset[int] = frozenset()) -> None:
        if isinstance(part, torch.Tensor) or _is_numbers(part):
            t = as_tensor(part).detach()
            digest.update(f"{t.dtype}{tuple(t.shape)}".encode())
            if sparse.is_sparse(t):
                digest.update(str(t.layout).encode())
                add(sparse.content(t.to("cpu")))
                return
            digest.update(raw(t))
        elif isinstance(part, str | bytes | int | float | complex):
            digest.update(repr(part).encode())
        elif id(part) not in within:
            for inner in parts_of(part):
                add(inner, within | {id(part)} if is_object(part) else within)

    for batch in batches:
        add(batch)
    return digest.hexdigest()
