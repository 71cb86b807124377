"""Where and in which precision a task is measured."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from .aliases import held_fixed
from .batch import to_device
from .counted import counted
from .errors import TaskError
from .parameters import held_quantized, trainable
from .session import have_backward_hooks
from .tasks import Task
from .widest import WITHOUT_FLOAT64


def place(task: Task, model: nn.Module) -> tuple[torch.device, torch.dtype, list[str]]:
    """Return (device, dtype, notes): the task's wish, else where and what the model is."""
    notes: list[str] = []
    floating = [p for p in model.parameters() if p.is_floating_point()]
    if not floating:
        trainable(model)
    devices = sorted({str(p.device) for p in model.parameters()})
    if task.device is not None:
        device = task.device
        if device.type == "cuda" and not torch.cuda.is_available():
            raise TaskError("device 'cuda' was asked for, but torch finds no CUDA device here; use device='cpu'")
        if device.type in WITHOUT_FLOAT64:
            raise TaskError(f"device '{device}' has no float64, in which sums are taken; use device='cpu'")
    elif len(devices) > 1:
        raise TaskError(f"the model is spread over {', '.join(devices)}; give Task(device=...) to measure it on one")
    else:
        device = torch.device(devices[0])
    if device.type in WITHOUT_FLOAT64:
        notes.append(f"measured on the CPU: the model's device '{device}' has no float64, in which sums are taken")
        device = torch.device("cpu")
    dtypes = {p.dtype for p in floating}
    dtype = task.dtype or (torch.float64 if torch.float64 in dtypes else torch.float32)
    changed = sorted(str(d).removeprefix("torch.") for d in dtypes if d != dtype)
    notes += [held for held in (held_complex(model), held_quantized(model)) if held]
    own = {id(p) for p in model.parameters()}
    theirs = task.loss.parameters() if isinstance(task.loss, nn.Module) else ()
    if any(p.requires_grad and id(p) not in own for p in theirs):
        notes.append("the loss has parameters of its own, which are held fixed")
    if hooked := have_backward_hooks(model):
        notes.append(
            f"the backward hooks of {counted(len(hooked), 'module')} ({hooked[0] or type(model).__name__} first) are "
            "set aside: derivatives are those of the loss, whatever the hooks make of them in training"
        )
    fixed = held_fixed(model)
    if fixed:
        notes.append(
            f"{', '.join(fixed[:3])} share memory with parameters in a way that can't be followed: they stay as they "
            "are where the weights are moved"
        )
    if changed:
        notes.append(f"{' and '.join(changed)} weights are measured in {str(dtype).removeprefix('torch.')}")
    return device, dtype, notes


def held_complex(model: nn.Module) -> str:
    """Return what is left out of every measurement of a model with complex parameters, "" where it has none."""
    found = {name: p.numel() for name, p in model.named_parameters() if p.is_complex() and p.requires_grad}
    if not found:
        return ""
    names = ", ".join([*found][:3]) + (", ..." if len(found) > 3 else "")
    real = sum(p.numel() for p in trainable(model).values())
    return (
        f"{counted(len(found), 'complex parameter is', 'complex parameters are')} held fixed ({names}: "
        f"{sum(found.values()):,} numbers of two parts, beside {real:,} real ones): curvature, sharpness, lines and "
        "planes are those of the real parameters alone; to have them measured, hold them as torch.view_as_real has them"
    )


def placed(loss: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Return a functools.partial with its tensors (class weights) on the device and in the precision measured in."""
    if not isinstance(loss, functools.partial):
        return loss
    inner = placed(loss.func, device, dtype)
    return functools.partial(inner, *to_device(loss.args, device, dtype), **to_device(loss.keywords, device, dtype))
