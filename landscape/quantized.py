"""Whether a model is quantized, or trained for it: told by its layers and tensors, without importing a library."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def observers(model: nn.Module) -> int:
    """Return how many layers observe the ranges of what they quantize, which changes them at each call."""
    return sum(_switched_on(m, "observer_enabled") for m in model.modules())


def fake_quantizers(model: nn.Module) -> int:
    """Return how many layers round what they pass on, and let its gradient straight through."""
    return sum(_switched_on(m, "fake_quant_enabled") for m in model.modules())


def is_packed(model: nn.Module) -> bool:
    """Return whether a model's weights are packed: quantized after training, they are no parameters any more."""
    packed = ("torch.ao.", "torchao.")
    return not list(model.parameters()) and any(type(m).__module__.startswith(packed) for m in model.modules())


def quantized_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters whose numbers take a byte or less, themselves or inside a tensor class of its own."""
    return {name: p for name, p in model.named_parameters() if _holds_bytes(p)}


def _holds_bytes(t: torch.Tensor) -> bool:
    if is_traceable_wrapper_subclass(t):  # its own dtype is that of what it stands for
        inner = [i for name in t.__tensor_flatten__()[0] if isinstance(i := getattr(t, name), torch.Tensor)]
        return any(_holds_bytes(i) or not (i.is_floating_point() or i.is_complex()) for i in inner)
    return t.dtype.itemsize == 1 and t.dtype != torch.bool


def _switched_on(module: nn.Module, name: str) -> bool:
    on = getattr(module, name, None)
    return isinstance(on, torch.Tensor) and hasattr(module, "fake_quant_enabled") and bool(on.any())
