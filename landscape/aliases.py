"""Tensors of a model that lie in the memory of its parameters: they have to move when a parameter gets other memory."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from .errors import ObjectiveError

#: What torch itself keeps in a module's attributes; parameters and buffers are looked at apart.
_TORCHS = frozenset(vars(nn.Module()))
#: Containers in containers that are looked into.
_DEPTH = 3


@dataclass(frozen=True)
class _Range:
    """The bytes [start, stop) of a storage that a tensor reaches."""

    storage: int
    start: int
    stop: int

    def meets(self, other: _Range) -> bool:
        return self.storage == other.storage and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True)
class _Alias:
    """A tensor that lies inside the memory of parameter `of`, `offset` elements behind its start."""

    tensor: torch.Tensor
    of: nn.Parameter
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def moved(self) -> torch.Tensor:
        """Return the same view of what the parameter holds now; with its way back to it, where it had one."""
        graph = self.tensor.requires_grad and not self.tensor.is_leaf
        whole = self.of if graph else self.of.data
        if torch.empty(self.size, device="meta").stride() == self.stride and whole.is_contiguous():
            return whole.reshape(-1).narrow(0, self.offset, self.size.numel()).view(self.size)
        return whole.as_strided(self.size, self.stride, self.offset + self.of.data.storage_offset())


def refuse_shared_memory(model: nn.Module) -> None:
    """Raise ObjectiveError for two Parameters that lie in the same memory, one of them trainable.

    A step moves both at once, and each gets the other's gradient too: no derivative in one of them says that.
    """
    ranges = [(name, p, r) for name, p in model.named_parameters() if (r := _range(p.data)) is not None]
    ranges.sort(key=lambda found: (found[2].storage, found[2].start))
    for storage in {r.storage for *_, r in ranges}:
        together = [found for found in ranges if found[2].storage == storage]
        for (a, p, first), (b, q, second) in combinations(together, 2):
            if first.meets(second) and _elements_meet(p.data, q.data) and (p.requires_grad or q.requires_grad):
                raise ObjectiveError(
                    f"the parameters {a} and {b} lie in the same memory but are two Parameters, so that whatever moves "
                    "one moves the other, and no derivative knows: make them one (the module's attribute = the other's "
                    "Parameter, not its .data), or give them memory of their own"
                )


def held_fixed(model: nn.Module) -> tuple[str, ...]:
    """Return the names of tensors that share memory with parameters in ways that can't be followed."""
    return tuple(name for name, _, _, aliases in _find(model) if any(a is None for a in aliases.values()))


@contextlib.contextmanager
def following(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Yield a function that lets the views of parameters in the model's attributes and buffers follow them.

    To be called when the parameters have got other memory, in the same layout. On every way out the attributes are as
    before.
    """
    found = _find(model)

    def follow() -> None:
        for _, place, key, aliases in found:
            place[key] = _replaced(place[key], aliases)

    # Places are remembered as they are found: tensors in them may have been replaced by copies in the meantime.
    kept = [(place, key, place[key]) for _, place, key, _ in found]

    def restored() -> None:
        for place, key, value in kept:
            place[key] = value

    def moved() -> None:
        restored()
        with torch.enable_grad():
            follow()

    try:
        yield moved
    finally:
        restored()


def _find(model: nn.Module) -> list[tuple[str, dict[str, Any], str, dict[int, _Alias | None]]]:
    """Return (name, where it is held, key, aliases by the tensors' ids) of every attribute that holds an alias.

    None instead of an alias that can't be followed: it reaches over several parameters, or has another dtype.
    """
    parameters = {id(p): p for p in model.parameters()}
    ranges = [(p, r) for p in parameters.values() if (r := _range(p.data)) is not None]
    storages = {r.storage for _, r in ranges}
    found = []
    for prefix, module in model.named_modules():
        attributes = {k: v for k, v in vars(module).items() if k not in _TORCHS}
        for place, held in ((module._buffers, dict(module._buffers)), (vars(module), attributes)):
            for key, value in held.items():
                aliases: dict[int, _Alias | None] = {}
                for t in _tensors(value):
                    r = _range(t) if id(t) not in parameters else None
                    if r is not None and r.storage in storages:
                        near = [(p, q) for p, q in ranges if q.meets(r)]
                        if near:
                            aliases[id(t)] = _alias(t, r, near)
                if aliases:
                    found.append((f"{prefix}.{key}" if prefix else key, place, key, aliases))
    return found


def _alias(t: torch.Tensor, r: _Range, near: list[tuple[nn.Parameter, _Range]]) -> _Alias | None:
    (p, q), *others = near
    inside = q.start <= r.start and r.stop <= q.stop
    # A copy keeps the strides of a parameter that fills its range, and of no other.
    dense = (q.stop - q.start) == p.numel() * p.element_size()
    if others or not inside or not dense or t.dtype != p.dtype:
        return None
    return _Alias(t, p, int(t.storage_offset()) - int(p.data.storage_offset()), t.shape, t.stride())


def _range(t: torch.Tensor) -> _Range | None:
    if t.layout != torch.strided or t.is_meta or not t.numel() or nn.parameter.is_lazy(t):
        return None
    try:
        storage, size = t.untyped_storage().data_ptr(), t.element_size()
    except (RuntimeError, NotImplementedError):  # a tensor class without memory of its own
        return None
    reach = sum((n - 1) * int(s) for n, s in zip(t.shape, t.stride(), strict=True)) + 1
    start = int(t.storage_offset()) * size
    return _Range(storage, start, start + reach * size) if storage else None


def _elements_meet(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors whose ranges meet have an element in common: columns of one matrix need not."""
    if all(t.numel() * t.element_size() == (r.stop - r.start if (r := _range(t)) else 0) for t in (a, b)):
        return True
    if a.element_size() != b.element_size():
        return True
    of_a, of_b = (
        torch.arange(t.untyped_storage().nbytes() // t.element_size(), device="cpu")
        .as_strided(t.shape, t.stride(), t.storage_offset())
        .reshape(-1)
        for t in (a, b)
    )
    return bool(torch.isin(of_a, of_b).any())


def _tensors(value: Any, depth: int = _DEPTH) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict | list | tuple) and depth:
        parts = value.values() if isinstance(value, dict) else value
        return [t for part in parts for t in _tensors(part, depth - 1)]
    return []


def _replaced(value: Any, aliases: dict[int, _Alias | None], depth: int = _DEPTH) -> Any:
    if isinstance(value, torch.Tensor):
        alias = aliases.get(id(value))
        return value if alias is None else alias.moved()
    if not isinstance(value, dict | list | tuple) or not depth:
        return value
    if isinstance(value, dict):
        other = copy.copy(value)
        other.update({k: _replaced(v, aliases, depth - 1) for k, v in value.items()})
        return other
    parts = [_replaced(v, aliases, depth - 1) for v in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
