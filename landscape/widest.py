"""The widest precision that a device has: float64, but where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

#: Kinds of devices without float64, in which sums, means and norms are taken everywhere else.
WITHOUT_FLOAT64 = {"mps"}


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def wide(tensor: Tensor) -> Tensor:
    """Return the tensor in the widest precision of its device."""
    return tensor.to(widest(tensor.device))


def with_float64(tensor: Tensor) -> Tensor:
    """Return the tensor where float64 is to be had: on the host, if its device has none."""
    return tensor.cpu() if tensor.device.type in WITHOUT_FLOAT64 else tensor
