"""What a model writes down in its forward pass: buffers that the next pass would read, and parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class Buffers:
    """The buffers of a model, put back before each forward pass where an earlier one changed them, and attributes that
    were None, or not there, made so again.

    Else the loss at some weights would depend on where it was evaluated before (spectral_norm's power iteration in
    train mode, codebooks that follow their batches, what is computed from the weights once and kept). Running
    statistics of normalization layers have a policy of their own, and no pass reads what another one made of them.
    """

    def __init__(self, model: nn.Module) -> None:
        own = {id(b) for m in model.modules() if isinstance(m, _NormBase) for b in m._buffers.values()}
        self._held = [
            _Held(f"{prefix}.{key}" if prefix else key, module, key, b, b.clone(), b._version)
            for prefix, module in model.named_modules()
            for key, b in module._buffers.items()
            if b is not None and id(b) not in own
        ]
        #: For each module its name, its attributes that hold something, and all of them.
        self._first = [
            (f"{prefix}." if prefix else "", vars(m), {k for k, v in vars(m).items() if v is not None}, set(vars(m)))
            for prefix, m in model.named_modules()
        ]
        #: Attributes that a pass fills, by name: where they stand, and whether they stood there as None.
        self._filled: dict[str, tuple[dict[str, Any], str, bool]] = {}
        #: Names of those that a pass has changed so far.
        self.changed: dict[str, None] = {}
        self._theirs = False

    def notice(self) -> None:
        """Compare all of them with what they were: a write to `.data` leaves no other trace."""
        for held in self._held:
            if not _equal(held.module._buffers.get(held.key), held.first):
                self.changed[held.name] = None
        for prefix, attributes, known, names in self._first:
            for key, value in attributes.items():
                if key not in known and not isinstance(value, bool | int | float | complex | str | None):
                    self.changed[prefix + key] = None
                    self._filled[prefix + key] = (attributes, key, key in names)

    def expect(self, changed: Collection[str]) -> None:
        """Take over the names of what an earlier look at the same model found changed."""
        self.changed.update(dict.fromkeys(changed))
        held = {h.name for h in self._held}
        for prefix, attributes, known, names in self._first:
            for name in (n for n in changed if n.rpartition(".")[0] == prefix.rstrip(".") and n not in held):
                if (key := name.rpartition(".")[2]) not in known:
                    self._filled[name] = (attributes, key, key in names)

    def reset(self) -> None:
        """Put those back that have changed: by new copies, since a graph may hold what was written."""
        if self._theirs:
            return
        for attributes, key, there in self._filled.values():
            if there:
                attributes[key] = None
            else:
                attributes.pop(key, None)
        for held in self._held:
            now = held.module._buffers.get(held.key)
            if now is not held.tensor or held.tensor._version != held.version:
                self.changed[held.name] = None
            if held.name in self.changed:
                held.tensor = held.module._buffers[held.key] = held.first.clone()
                held.version = held.tensor._version

    def keep(self) -> None:
        """Let what the buffers hold now be what each pass starts from: somebody has written other values to them."""
        for held in self._held:
            held.tensor = held.module._buffers[held.key]  # type: ignore[assignment]
            held.first, held.version = held.tensor.clone(), held.tensor._version

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Leave the buffers alone inside: torch.func has put its own in their place."""
        before, self._theirs = self._theirs, True
        try:
            yield
        finally:
            self._theirs = before

    @property
    def note(self) -> str:
        """What a reader of the numbers should know, "" for nothing."""
        if not self.changed:
            return ""
        names = list(self.changed)
        return (
            f"the forward pass changes {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}: each pass starts from "
            "the checkpoint's own"
        )


@dataclass
class _Held:
    name: str
    module: nn.Module
    key: str
    tensor: torch.Tensor
    first: torch.Tensor
    version: int


def written(model: nn.Module, names: Sequence[str], now: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> str:
    """Say which parameters the forward pass writes to; "" for none.

    `max_norm` of an embedding is known: after a training its rows lie at that length, and are written to as soon as
    they are moved outward.
    """
    limited = {
        f"{prefix}.weight" if prefix else "weight"
        for prefix, m in model.named_modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None
    }
    found = [n for n, a, b in zip(names, now, before, strict=True) if n in limited or not torch.equal(a, b)]
    if not found:
        return ""
    return (
        f"the forward pass writes to {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}"
        f"{' (max_norm)' if limited & set(found) else ''}: losses hold that, derivatives don't: they are those at what "
        "it leaves, as if nothing were written"
    )


def _equal(a: torch.Tensor | None, b: torch.Tensor) -> bool:
    if a is None or a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.layout != torch.strided:
        return True
    return bool(((a == b) | ((a != a) & (b != b))).all())
