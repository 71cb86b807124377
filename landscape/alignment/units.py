"""Find the units of a model that may change places, by watching what one batch's loss is computed of.

No architecture is named anywhere: each of torch's operations that runs says what its tensors have in common
(`rules.py`), whatever Python calls it, so that there is nothing to write for a model and nothing that it must be
traceable by.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..batch import tensors_of
from ..labels import logits_of
from ..objective import Objective
from ..outputs import predicted
from .axes import Atom, Axis, atoms, fix, order, resolve, unify
from .rules import Axes, Call, fixed, free, name_of, rule_for, unknown

#: Operations that only look at a tensor in another shape: no unit is used by them yet.
_LOOKS = {"view", "t", "transpose", "permute", "slice", "split", "split_with_sizes", "select", "detach", "alias"}

Permutations = dict[Atom, np.ndarray]


@dataclass(frozen=True)
class Units:
    """What may change places: `axes` of each dimension of each tensor of the state, and the free atoms by their names.

    `names` are in the order in which the batch met them: the parameter and dimension that hold each one first.
    `unknown` are operations that no rule knows.
    """

    axes: Mapping[str, Axes]
    names: Mapping[Atom, str]
    unknown: tuple[str, ...]

    def without(self, *left_out: Atom) -> Units:
        return Units(self.axes, {a: n for a, n in self.names.items() if a not in left_out}, self.unknown)

    def touched(self, permutations: Permutations) -> list[str]:
        """Return the names of the tensors that these permutations change."""
        return [k for k, dims in self.axes.items() if any(a in permutations for d in dims for a in atoms(d))]

    def permuted(self, name: str, tensor: torch.Tensor, permutations: Permutations) -> torch.Tensor:
        """Return a tensor of the state with its units in their new places; others as they are."""
        for dim, axis in enumerate(self.axes[name]):
            if any(a in permutations for a in atoms(axis)):
                index = torch.from_numpy(order(axis, permutations)).to(tensor.device)
                tensor = tensor.index_select(dim, index)
        return tensor


class Watching(TorchDispatchMode):
    """Follows the axes of a state's tensors through everything that is computed inside."""

    def __init__(self, state: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.unknown: dict[str, None] = {}
        self.met: list[Axis] = []
        self.rounding = torch.finfo(torch.float64).eps
        self._axes: Any = WeakTensorKeyDictionary()
        self._state = {_place(t): t for t in state.values()}
        self._storages: dict[int, list[torch.Tensor]] = {}
        for t in state.values():
            self._storages.setdefault(t.untyped_storage().data_ptr(), []).append(t)
            if t not in self._axes:
                # Whole numbers index, or count: their order says something.
                self._axes[t] = free(t.shape) if t.is_floating_point() else fixed(t.shape)

    def axes(self, tensor: torch.Tensor) -> Axes:
        """Return the axes of a tensor; of one that came from elsewhere (data, constants) all are fixed."""
        found = self._axes.get(tensor)
        if found is None:
            # `.data` of a parameter is another tensor on its memory.
            own = self._state.get(_place(tensor))
            found = self._axes[own] if own is not None else fixed(tensor.shape)
            if own is None and tensor.layout == torch.strided:
                for t in self._storages.get(tensor.untyped_storage().data_ptr(), ()):
                    fix(*self._axes[t])
            self._axes[tensor] = found
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        outputs = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        if outputs:
            self._follow(func, args, kwargs or {}, outputs)
        return made

    def _follow(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], outputs: list[torch.Tensor]) -> None:
        name = name_of(func)
        named = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        named.update(zip((a.name for a in func._schema.arguments), args, strict=False))
        call = Call(name, named | dict(kwargs), outputs, self.axes)
        apply = rule_for(func)
        if apply is None:
            # A loss fixes its classes, and what is fixed anyway loses nothing.
            if "loss" not in name and any(
                not x.fixed and x.size > 1 for t in call.tensors for d in self.axes(t) for x in atoms(d)
            ):
                self.unknown[name] = None
            apply = unknown
        for tensor, axes in zip(outputs, apply(call), strict=True):
            if tensor.is_floating_point() and tensor.ndim:
                self.rounding = max(self.rounding, torch.finfo(tensor.dtype).eps)
            if tensor in self._axes:  # written in place
                for a, b in zip(self._axes[tensor], axes, strict=True):
                    unify(a, b)
            else:
                self._axes[tensor] = axes
            if name not in _LOOKS:
                self.met += axes


def _place(t: torch.Tensor) -> Any:
    if t.layout != torch.strided or not t.numel():
        return id(t)
    return t.data_ptr(), tuple(t.shape), t.stride(), t.dtype


def find_units(objective: Objective, names: Sequence[str]) -> tuple[Units, float]:
    """Find the units that may change places without changing outputs or loss, from the first batch of a draw.

    `names` are those of the state. Also returns the relative difference of outputs that rounding explains: half the
    digits of the least precise numbers on the way. Costs a forward pass of one batch, with some 20 microseconds of
    Python for each operation of it. Nothing is proven by it for other batches, on which a model may do something else:
    see `check.py`.
    """
    live = objective.held()
    state = {n: live[n] for n in names if n in live}
    with objective.measuring(), single_steps(), Watching(state) as watching:
        for t in given_by(objective, 0):
            fix(*watching.axes(t))
    axes = {name: [resolve(a) for a in watching.axes(t)] for name, t in state.items()}
    used = {a: None for axis in watching.met for a in atoms(axis) if not a.fixed and a.size > 1}
    found: dict[Atom, str] = {}
    for name, dims in axes.items():
        for dim, axis in enumerate(dims):
            for atom in atoms(axis):
                if atom in used:
                    found.setdefault(atom, f"{name}, dim {dim}" + (f" ({atom.size})" if atom is not axis else ""))
    return Units(axes, {a: found[a] for a in used if a in found}, tuple(watching.unknown)), math.sqrt(watching.rounding)


@contextlib.contextmanager
def single_steps() -> Iterator[None]:
    """Have recurrent layers compute step by step on a CPU: oneDNN's take all steps in one operation.

    By torch's internal switch: the public one sets TF32 on the way, and warns about it.
    """
    before = torch._C._get_mkldnn_enabled()  # pyright: ignore[reportAttributeAccessIssue]
    torch._C._set_mkldnn_enabled(False)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)  # pyright: ignore[reportAttributeAccessIssue]


def given_by(objective: Objective, i: int) -> list[torch.Tensor]:
    """Return every tensor that a batch gives: what the model returns, what the task makes of it, the loss.

    Of outputs that name their logits, those alone.
    """
    given: list[Any] = []
    handle = objective.model.register_forward_hook(lambda _module, _args, output: given.append(output))
    try:
        _, outputs, _, value = objective.value(i)
        if objective.task.predict is not None:
            given.append(predicted(objective, i)[0])
    finally:
        handle.remove()
    logits = [logits_of(one) for one in (*given, outputs)]
    named = [one if found is None else found for one, found in zip((*given, outputs), logits, strict=True)]
    return [t for one in (*named, value) for t in tensors_of(one)]
