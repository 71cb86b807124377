"""Whether a model is quantized, or trained for it: told by torch's own layers, without importing them."""

from __future__ import annotations

import torch
from torch import nn


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


def _switched_on(module: nn.Module, name: str) -> bool:
    on = getattr(module, name, None)
    return isinstance(on, torch.Tensor) and hasattr(module, "fake_quant_enabled") and bool(on.any())
