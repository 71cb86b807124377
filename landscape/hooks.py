"""What trains a model by hooks that torch drops where its parameters are measured in another precision, or elsewhere.

torch drops what accumulates a parameter's gradient, with all that hangs on it, when the parameter's data come in
another precision or on another device, for good and without a word: the next backward pass would wait for other
processes, not tell them, or take no step. Hooks on the parameters themselves stay: `session` sets them aside, and puts
them back.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from .batch import in_precision
from .errors import ObjectiveError
from .parameters import unwrap


def check_hooks(models: Iterable[Any], device: torch.device, dtype: torch.dtype) -> None:
    """Raise ObjectiveError where measuring these modules there would cut off the hooks that train them."""
    device = _with_index(device)
    moved = [
        (name, p)
        for model in models
        if isinstance(model, nn.Module)
        for name, p in unwrap(model).named_parameters()
        if p.requires_grad and (p.device != device or in_precision(p.dtype, dtype) != p.dtype)
    ]
    if not moved:
        return
    theirs = {id(p) for ddp in _distributed() for p in ddp.parameters()}
    for name, p in moved:
        if id(p) in theirs:
            raise ObjectiveError(f"a model inside DistributedDataParallel {_cut_off(p, device, dtype, 'DDP')}")
        if _hooked(p):
            raise ObjectiveError(
                f"a model whose parameters ({name}) have hooks on what accumulates their gradients, such as an "
                f"optimizer that steps in the backward pass, {_cut_off(p, device, dtype, 'what put them there')}"
            )


def _cut_off(p: nn.Parameter, device: torch.device, dtype: torch.dtype, whose: str) -> str:
    kind, own = (str(d).removeprefix("torch.") for d in (in_precision(p.dtype, dtype), p.dtype))
    return (
        f"can't be measured in {kind} on {device} where its weights are {own} on {p.device}: that would cut off the "
        f"hooks of {whose}. Measure a copy of it, Task(copy.deepcopy(model), ...), or its checkpoints"
    )


def _with_index(device: torch.device) -> torch.device:
    """Return the device as its tensors tell it: "cuda" is the current one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def _distributed() -> Iterator[nn.Module]:
    """Yield the living DistributedDataParallel modules: nothing in a module says that one of them holds it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        kind = nn.parallel.DistributedDataParallel
        yield from (o for o in gc.get_objects() if issubclass(type(o), kind))


def _hooked(p: nn.Parameter) -> bool:
    """Whether Python hooks hang on what accumulates this parameter's gradient, or count on it.

    Hooks of several gradients (torch.autograd.graph.register_multi_grad_hook) remember it, to know when all are there.
    """
    if any(getattr(hook, "__module__", "") == "torch.autograd.graph" for hook in (p._backward_hooks or {}).values()):
        return True
    if nn.parameter.is_lazy(p) or type(p.data) is not torch.Tensor or p.is_inference():
        return False
    with torch.inference_mode(False):
        node = torch.autograd.graph.get_gradient_edge(p).node
    # It doesn't list its hooks, but one that is added learns of those beside it.
    ours = [register(lambda *_: None) for register in (node.register_hook, node.register_prehook)]
    found = [len(hook.hooks_dict_ref() or ()) > 1 for hook in ours]
    for hook in ours:
        hook.remove()
    return any(found)
