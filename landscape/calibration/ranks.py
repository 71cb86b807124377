"""Plain data between devices and processes."""

from __future__ import annotations

from typing import Any

import torch


def gather_states(state: Any, group: Any) -> list[Any]:
    """Return the states of all ranks of a torch.distributed group, in their order, on the CPU: the same on every rank.

    Cost: one all_gather_object.
    """
    import torch.distributed as dist

    states: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(states, moved(state, torch.device("cpu")), group=group)
    return states


def moved(value: Any, device: torch.device) -> Any:
    """Return plain data with its tensors on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    return type(value)(moved(v, device) for v in value) if isinstance(value, list | tuple) else value
