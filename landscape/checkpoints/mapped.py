"""Weights of a file that stay on disk until they are read: for many checkpoints at once, a part of each at a time."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from .checksums import check_entries
from .contents import Contents, take_apart
from .files import read_safetensors

#: What a file that can't be mapped raises inside torch.load: another reader says what is wrong with it.
_UNFIT = (CheckpointError, pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, OSError)
#: Bytes of each tensor that are compared before its place is believed (chosen by us).
_PROOF = 64


def map_file(path: Path, model: nn.Module | None = None) -> Contents | None:
    """Return the parts of a torch file with its tensors mapped from disk, read only where they are looked at.

    Of `model`, see `take_apart`.

    None for what can't be mapped so: a file from before the zip format, strangers beside the weights, a folder, and
    anything missing (`read_checkpoint` reads it whole, or says what is wrong). Costs a pass over the file for its
    checksums, once, and then its index, not its weights; they stay mapped as long as a tensor of them lives. Raises
    CheckpointError where an entry does not fit its checksum.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    check_entries(path)
    try:
        return take_apart(_load(path, mmap=True, map_location="cpu"), model=model)
    except _UNFIT:
        return None


@dataclass(frozen=True)
class Places:
    """Where tensors lie in one file, so that parts of them are read without opening it as a checkpoint again."""

    path: str
    stamp: tuple[int, int, int]
    offsets: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]

    def current(self) -> bool:
        """Whether the file is still the one that was looked at."""
        try:
            return self.stamp == _stamp(self.path)
        except OSError:
            return False

    def read(self, parts: Sequence[tuple[int, int, int, torch.Tensor]]) -> None:
        """Read (tensor's number, from, to, where to) for each part: elements of the flat tensor into a vector."""
        with open(self.path, "rb", buffering=0) as file:
            for number, start, stop, out in parts:
                dtype = self.dtypes[number]
                target = out if out.dtype == dtype else torch.empty(stop - start, dtype=dtype, device="cpu")
                flat: Any = target.view(torch.uint8).numpy()
                raw = memoryview(flat)
                file.seek(self.offsets[number] + start * dtype.itemsize)
                while raw:
                    taken = file.readinto(raw)
                    if not taken:
                        raise CheckpointError(f"{self.path} became shorter while it was read")
                    raw = raw[taken:]
                if target is not out:
                    out.copy_(target)


Choose = Callable[[Mapping[str, torch.Tensor]], Sequence[torch.Tensor]]


def locate(path: Path, choose: Choose) -> Places | None:
    """Return where the tensors that `choose` takes from a file's weights lie in it; torch's zip format and safetensors.

    None where that can't be told, or where the bytes found there are not the tensors': a folder, an older format, a
    tensor that is not stored in one row. Costs the file's index twice, and 64 bytes of each tensor.
    """
    try:
        stamp = _stamp(str(path))
        value, known = _from_safetensors(path) if path.suffix == ".safetensors" else _from_torch(path)
        chosen = choose(take_apart(value).weights)
        offsets = [known[t.data_ptr()] for t in chosen]
    except _UNFIT:
        return None
    with open(path, "rb") as file:
        for t, offset in zip(chosen, offsets, strict=True):
            head = t.detach().reshape(-1)[: max(1, _PROOF // t.element_size())].view(torch.uint8)
            file.seek(offset)
            if not t.is_contiguous() or file.read(head.numel()) != head.numpy().tobytes():
                return None
    return Places(str(path), stamp, tuple(offsets), tuple(t.dtype for t in chosen))


def _from_torch(path: Path) -> tuple[Any, dict[int, int]]:
    """Return what a file holds, mapped, and the place in the file of each tensor by its address."""
    value = _load(path, mmap=True, map_location="cpu")
    # Loaded onto "meta" nothing is read, and each storage says where in the file it lies.
    shadow = _load(path, map_location="meta")
    known = {}
    for real, there in zip(_tensors(value), _tensors(shadow), strict=True):
        start = getattr(there.untyped_storage(), "_checkpoint_offset", None)
        if start is not None:
            known[real.data_ptr()] = start + there.storage_offset() * there.element_size()
    return value, known


def _from_safetensors(path: Path) -> tuple[Any, dict[int, int]]:
    value = read_safetensors(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return value, {t.data_ptr(): 8 + length + header[name]["data_offsets"][0] for name, t in value.items()}


def _load(path: Path, **how: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remarks on other people's files: what matters is said in the notes
        return torch.load(path, weights_only=True, **how)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in an object from a file, in the order in which it is stored."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _stamp(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size
