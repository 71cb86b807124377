"""In which form data come (tensors of all samples, single samples, batches), told from their structure or refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .batch import batch_size_of, is_object, parts_of, stays_whole
from .errors import TaskError
from .sparse import is_sparse

#: "columns" are tensors of all samples, "samples" is whatever gives single ones by their index, "stream" one after the
#: other; "list" and "batches" are finished batches, of known number or not.
Form = Literal["loader", "stream", "columns", "samples", "list", "batches"]


def form_of(data: Any, what: str = "the data") -> Form:
    """Return the form of what a Task takes as its data.

    A tuple or mapping of tensors holds all samples; a list holds batches, or samples where one of an item's entries is
    a single number, which no batch is. Raises TaskError with the ways out where a list or tuple could be read in two
    ways, where a sparse tensor's rows may be nodes, and for what is no data.
    """
    if isinstance(data, DataLoader):
        return "loader"
    if isinstance(data, IterableDataset):
        return "stream"
    if _is_columns(data, what):
        return "columns"
    if isinstance(data, Mapping):
        raise TaskError(
            f"{what} are a mapping whose values are not tensors of one length; give a list of batches, a Dataset or a "
            "DataLoader"
        )
    if isinstance(data, list | tuple):
        return _form_of_list(data, what)
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str)
    if isinstance(data, Dataset) or indexed:
        return "samples"
    if isinstance(data, Iterable) and not isinstance(data, str):
        return "batches"
    raise TaskError(
        f"{what} are a {type(data).__name__}; give a DataLoader, a Dataset, an iterable or list of batches, or tensors "
        "(X, y)"
    )


def _is_columns(data: Any, what: str) -> bool:
    if isinstance(data, Mapping):
        values: Sequence[Any] = list(data.values())
    elif isinstance(data, tuple):
        values = data
    else:
        return False
    if not values or not all(isinstance(v, torch.Tensor | np.ndarray) and v.ndim > 0 for v in values):
        return False
    if why := stays_whole(data):
        kind = "mapping" if isinstance(data, Mapping) else "tuple"
        raise TaskError(
            f"{what}: expected tensors whose rows are samples, got a {kind} with {why}: give a list of batches, "
            f"[batch] where this {kind} is the only one"
        )
    return True


# ------------------------------------------------------------------------------------------- lists


def _form_of_list(items: Sequence[Any], what: str) -> Literal["samples", "list"]:
    """Return what the items of a list are.

    Items of different shapes can't be put together to a batch, so that they are batches, and so are those whose entries
    agree on a number of rows and are more than rows of numbers. Vectors alone may as well be one sample's.
    """
    if not items or _stands_alone(items[0]):
        return "list"
    if holds_a_number(items[0]):
        return "samples"  # of which there may be many: one is enough to tell
    held = [list(_arrays(i)) for i in items]
    if len(items) < 2 or not any(held):  # of nothing but text the task's own forward has to know
        return "list"
    kinds = {tuple((a.ndim, a.dtype) for a in arrays) for arrays in held}
    shapes = {tuple(a.shape for a in arrays) for arrays in held}
    bare = any(isinstance(i, torch.Tensor | np.ndarray) for i in items)
    if len(kinds) > 1:
        if bare or (len(items) == 2 and not all(isinstance(i, Mapping) for i in items)):
            _refuse(items, held, what, "is each a batch, or all samples' values of one entry?")
    elif any(map(_lists_rows, items)):
        return "list"
    elif all(a.ndim < 2 for arrays in held for a in arrays):
        _refuse(items, held, what, "is each a batch of numbers, or one sample?")
    elif len(shapes) == 1 and bare:
        _refuse(items, held, what, "is each a batch, one sample, or all samples' values of one entry?")
    elif len(shapes) == 1 and (batch_size_of(items[0]) is None or any(a.ndim == 0 for a in held[0])):
        _refuse(items, held, what, "is each a batch whose entries count different things, or one sample?")
    return "list"


def _stands_alone(item: Any) -> bool:
    """Whether an item is a batch for sure, since torch puts none together of several such."""
    if isinstance(item, torch.Tensor):
        return is_sparse(item)
    return is_object(item) or isinstance(item, PackedSequence) or any(map(_stands_alone, parts_of(item)))


def holds_a_number(item: Any) -> bool:
    """Whether an item is one sample for sure: a batch holds no number without a dimension."""
    return any(map(_is_number, parts_of(item))) or (isinstance(item, torch.Tensor) and item.ndim == 0)


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.ndim == 0
    return isinstance(value, int | float | np.number | np.bool_)


def _arrays(item: Any) -> Iterator[torch.Tensor | np.ndarray]:
    """Yield the tensors and arrays of an item, and the lists of numbers as what a collate function makes of them."""
    if isinstance(item, torch.Tensor | np.ndarray):
        yield item
    elif isinstance(item, list | tuple) and item and all(map(_is_number, item)):
        yield np.asarray([float(v) for v in item])
    else:
        for part in parts_of(item):
            yield from _arrays(part)


def _lists_rows(item: Any) -> bool:
    """Whether an item holds a list of as many texts or mappings as its tensors have rows: one for each sample."""
    rows = {len(v) for v in parts_of(item) if isinstance(v, torch.Tensor | np.ndarray) and v.ndim}
    return any(
        isinstance(v, list | tuple) and {len(v)} == rows and all(isinstance(x, str | Mapping) for x in v)
        for v in parts_of(item)
    )


def _refuse(items: Sequence[Any], held: Sequence[Sequence[Any]], what: str, question: str) -> None:
    kind = "tuple" if isinstance(items, tuple) else "list"
    shapes = [" and ".join(str(tuple(a.shape)) for a in arrays[:3]) or "no tensor" for arrays in held]
    each = f"that each hold {shapes[0]}" if len(set(shapes)) == 1 else f"that hold {shapes[0]}, then {shapes[1]}"
    raise TaskError(
        f"{what}: expected a list of batches or of samples, got a {kind} of {len(items)} items {each}: {question} Say "
        "which: DataLoader(data, batch_size=None) for batches, DataLoader(data, batch_size=...) for samples, a tuple "
        f"of tensors (X, y) for the entries of all samples, [data] where the {kind} is one batch"
    )
