"""Norms of tensors that are sharded over processes (DTensor: FSDP2, tensor parallelism), in one all-reduce a mesh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .norms import tensor_norms


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor, a part of which lies here."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """Return the part of a tensor that lies on this process; partial sums are summed up first (a collective)."""
    if not is_sharded(tensor):
        return tensor
    if any(p.is_partial() for p in tensor.placements):
        from torch.distributed.tensor import Replicate

        tensor = tensor.redistribute(placements=[Replicate() if p.is_partial() else p for p in tensor.placements])
    return tensor.to_local()


def sharded_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of each whole tensor (k,) in float64; every process of their meshes must call this.

    As `tensor_norms`, which this equals where nothing is sharded. The local squares of all tensors go through one
    all-reduce for each mesh and set of sharded dimensions; what is replicated is counted once.
    """
    return whole(tensors)(tensor_norms([local(t) for t in tensors]).square()[None])[0].sqrt()


def whole(tensors: Sequence[Any]) -> Callable[[Tensor], Tensor]:
    """Return the function that turns squares (m, k) of this process's parts of `tensors` into those of the whole."""
    groups: dict[tuple[int, tuple[int, ...]], tuple[Any, list[int]]] = {}
    for i, t in enumerate(tensors):
        if is_sharded(t):
            dims = tuple(d for d, p in enumerate(t.placements) if p.is_shard())
            if dims:
                groups.setdefault((id(t.device_mesh), dims), (t.device_mesh, []))[1].append(i)

    def reduce(squares: Tensor) -> Tensor:
        squares = squares.clone()
        for (_, dims), (mesh, places) in groups.items():
            part = squares[:, places].contiguous()
            for dim in dims:
                torch.distributed.all_reduce(part, group=mesh.get_group(dim))
            squares[:, places] = part
        return squares

    return reduce
