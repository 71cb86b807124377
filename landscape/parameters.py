"""Parameters of a model: which are measured, their names, and one flat vector of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.utils.parametrize
from torch import nn

from .counted import counted
from .errors import ObjectiveError
from .quantized import is_packed, quantized_weights

# Layers whose weight holds its filters (output units) along dimension 1, by class name: the lazy variants and
# Transformers' Conv1D need no import this way.
_FILTERS_ON_DIM_1 = {
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "Conv1D",
}


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, DataParallel and torch.compile, however they are stacked."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def inside_ddp(model: nn.Module) -> bool:
    """Whether this is a DistributedDataParallel, or one inside torch.compile or DataParallel."""
    while not isinstance(model, nn.parallel.DistributedDataParallel):
        inner = model.module if isinstance(model, nn.DataParallel) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return False
        model = inner
    return True


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are measured, by name: frozen ones are left out, tied ones come once.

    Raises ObjectiveError when there is none, or one without a shape yet (a lazy module), and for a quantized model of
    which nothing was frozen: what is left of it (biases, norms) is not what was trained.
    """
    lazy = next((name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)), None)
    if lazy is not None:
        raise ObjectiveError(f"the parameter {lazy} has no shape yet: run the model on one batch, or load its weights")
    chosen = {
        name: p for name, p in model.named_parameters() if p.requires_grad and p.is_floating_point() and p.numel()
    }
    if not chosen:
        total = sum(1 for _ in model.parameters())
        unreal = next((name for name, p in model.named_parameters() if p.requires_grad and p.is_complex()), None)
        if unreal is not None:
            raise ObjectiveError(
                f"the parameters that require a gradient are complex ({unreal} first): only real ones are measured; "
                "hold them as torch.view_as_real has them"
            )
        raise ObjectiveError(f"none of the model's {total} parameters requires a gradient: {_way_out(model)}")
    fixed = quantized_weights(model)
    if fixed and all(p.requires_grad for n, p in model.named_parameters() if p.is_floating_point() and n not in fixed):
        raise ObjectiveError(
            f"{_are_quantized(fixed)}, and nothing can be differentiated or moved but the "
            f"{counted(len(chosen), 'tensor')} beside them ({next(iter(chosen))} first): {_UNQUANTIZED}. To measure "
            "what is trained beside them, such as an adapter, freeze what is not: requires_grad_(False)"
        )
    return chosen


def held_quantized(model: nn.Module) -> str:
    """Return what is left out of every measurement of a model with quantized weights, "" where it has none."""
    fixed = quantized_weights(model)
    return f"{_are_quantized(fixed)}: they are held fixed, and what is trained beside them is measured" if fixed else ""


def _are_quantized(fixed: dict[str, nn.Parameter]) -> str:
    kind = type(next(iter(fixed.values()))).__name__
    return f"{counted(len(fixed), 'weight is', 'weights are')} quantized ({next(iter(fixed))}, {kind}, first)"


_UNQUANTIZED = (
    "measure the model that was quantized; this one's calibration comes from its logits (landscape calibrate, or "
    "calibration_error)"
)


def _way_out(model: nn.Module) -> str:
    if is_packed(model):
        return (
            "its weights are packed (quantized after training), and nothing can be differentiated or moved: "
            + _UNQUANTIZED
        )
    if any(getattr(m, "peft_config", None) for m in model.modules()):
        return "an adapter (PEFT) is read for training with PeftModel.from_pretrained(..., is_trainable=True)"
    if fixed := quantized_weights(model):
        return f"{_are_quantized(fixed)}, and nothing can be differentiated or moved: {_UNQUANTIZED}"
    return "set requires_grad on those to measure"


def owners(model: nn.Module) -> dict[str, nn.Module]:
    """Return for each parameter name the module that holds it."""
    return {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        for name in module._parameters
    }


def filter_dim(module: nn.Module | None, name: str) -> int:
    """Return the dimension along which the filters of a weight lie: 1 for ConvTranspose and Conv1D, else 0."""
    del name
    return 1 if type(module).__name__ in _FILTERS_ON_DIM_1 else 0


def is_scale(module: nn.Module | None, name: str, weight: torch.Tensor) -> bool:
    """Say whether a tensor scales the outputs of a layer, one number each, whatever its number of dimensions.

    All with at most one dimension (biases among them), weight_norm's g, and scales that are shaped to broadcast, such
    as ConvNeXt's (channels, 1, 1). The weight of a layer with a single input is none.
    """
    if weight.ndim <= 1:
        return True
    if weight.numel() != len(weight):
        return False
    leaf = name.rpartition(".")[2]
    if leaf == "weight_g":
        return True
    if isinstance(module, nn.utils.parametrize.ParametrizationList):
        return leaf == "original0" and any(type(m).__name__ == "_WeightNorm" for m in module)
    own = leaf == "weight" and "Conv" in type(module).__name__
    return weight.ndim > 2 and not own


def flatten(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return one vector (n,) of all the tensors' elements in order (a copy)."""
    return torch.cat([t.reshape(-1) for t in tensors])


def unflatten(vector: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Cut a vector (n,) into tensors shaped like `like` (views)."""
    sizes = [t.numel() for t in like]
    if vector.ndim != 1 or vector.numel() != sum(sizes):
        raise ValueError(f"a vector of shape {tuple(vector.shape)} doesn't fill {sum(sizes)} parameters")
    return [part.view_as(t) for part, t in zip(vector.split(sizes), like, strict=True)]
