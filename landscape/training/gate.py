"""The gate that every loss passes: exact gradients, finite at large scores, a mean over the samples, a paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from ..batch import map_tensors, tensors_of
from ..reduction import known_weight, split_value
from ..results import Check
from .inputs import CLASSES
from .loss import WeightsLoss
from .registries import LossEntry

#: The scores at which value and gradient must be finite in float32.
LARGE = 1e4
# Two float64 sums of a dozen terms agree to this (chosen by us: a thousand units in the last place).
_SAME = 1e-12


def examine(entry: LossEntry, *, seed: int = 0) -> tuple[Check, ...]:
    """Return the checks of one loss on its small example, in the settings `entry.trial`.

    "gradient" and "second derivative" compare autograd with finite differences in float64, "finite" looks at value and
    gradient in float32 at scores of +-1e4, "mean" compares a batch with its parts (a loss that couples samples is known
    to differ), "source" asks for a paper. A loss that says nothing of what it takes gets one check that warns.
    """
    source = Check("source", "pass" if entry.source else "warn", entry.source or "no paper is named")
    if entry.takes is None:
        return (Check("example", "warn", "it doesn't say what it takes, so it can't be tried"), source)
    torch_state = torch.random.get_rng_state()
    try:
        return (*_derivatives(entry, seed), _finite(entry, seed), _mean(entry, seed), source)
    finally:
        torch.random.set_rng_state(torch_state)


def _made(entry: LossEntry, seed: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module | None, Any, Any]:
    assert entry.takes is not None
    generator = torch.Generator().manual_seed(seed)
    outputs, target = (_cast(part, dtype) for part in entry.takes.example(generator))
    loss = entry.build(**entry.trial)
    if isinstance(loss, nn.Module):
        loss = loss.to(dtype)
    if not isinstance(loss, WeightsLoss):
        return loss, None, outputs, target
    torch.manual_seed(seed)
    model = nn.Linear(3, CLASSES, dtype=dtype)
    return loss.bind(model), model, outputs, target


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return map_tensors(value, lambda t: t.to(dtype) if t.is_floating_point() else t)


def _total(value: Any) -> torch.Tensor:
    return split_value(value)[0]


def _as_function(entry: LossEntry, seed: int) -> tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]:
    """Return the loss as a function of the tensors that it is differentiated by, and these."""
    loss, model, outputs, target = _made(entry, seed, torch.float64)
    if model is None:
        leaves = tuple(t.requires_grad_() for t in tensors_of(outputs))

        def value(*given: torch.Tensor) -> torch.Tensor:
            left = iter(given)
            return _total(loss(map_tensors(outputs, lambda _: next(left)), target))

        return value, leaves
    assert isinstance(loss, WeightsLoss)
    names = [n for n, _ in model.named_parameters()]
    frozen = loss.frozen(outputs, target)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> torch.Tensor:
            return frozen()

    holder = Holder()

    def of_weights(*given: torch.Tensor) -> torch.Tensor:
        swapped = {f"model.{n}": t for n, t in zip(names, given, strict=True)}
        return torch.func.functional_call(holder, swapped, ())

    return of_weights, tuple(p.detach().clone().requires_grad_() for p in model.parameters())


def _derivatives(entry: LossEntry, seed: int) -> tuple[Check, Check]:
    value, leaves = _as_function(entry, seed)
    first = _tried("gradient", lambda: gradcheck(value, leaves), "equals finite differences in float64")
    if not entry.second:
        return first, Check("second derivative", "warn", "there is none: no curvature can be measured with this loss")
    return first, _tried("second derivative", lambda: gradgradcheck(value, leaves), "equals finite differences, too")


def _tried(name: str, run: Callable[[], object], message: str) -> Check:
    try:
        run()
    except RuntimeError as error:
        return Check(name, "fail", str(error).strip().split("\n")[0])
    return Check(name, "pass", message)


def _finite(entry: LossEntry, seed: int) -> Check:
    for enlarge in (lambda t: LARGE * t, lambda t: LARGE * t.sign()):
        loss, model, outputs, target = _made(entry, seed, torch.float32)
        if model is not None:
            with torch.no_grad():
                for p in model.parameters():
                    p.copy_(enlarge(p))
        assert entry.takes is not None
        count = entry.takes.scores
        scores = tensors_of(outputs)[:count]
        outputs = map_tensors(outputs, lambda t, s=scores, e=enlarge: e(t) if any(t is x for x in s) else t)
        leaves = [*model.parameters()] if model is not None else [t.requires_grad_() for t in tensors_of(outputs)]
        value = _total(loss(outputs, target))
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
        if not bool(value.isfinite()):
            return Check("finite", "fail", f"the value at scores of +-1e4 in float32 is {float(value.detach())}")
        if not all(bool(s.isfinite().all()) for s in slopes if s is not None):
            return Check("finite", "fail", "the gradient at scores of +-1e4 in float32 is not finite")
    return Check("finite", "pass", "value and gradient are finite in float32 at scores of +-1e4")


def _mean(entry: LossEntry, seed: int) -> Check:
    if not entry.rebatch:
        return Check("mean", "pass", "a mean over the batch that couples its samples: Task(..., rebatch=False)")
    loss, _, outputs, target = _made(entry, seed, torch.float64)
    whole, size = float(_total(loss(outputs, target)).detach()), _size(outputs)
    cut = max(1, size // 3)  # unequal parts: equal ones would hide a sum
    total = weights = 0.0
    for part in (slice(0, cut), slice(cut, size)) if size > 1 else (slice(0, 1),):
        o, t = (map_tensors(value, lambda x, p=part: x[p]) for value in (outputs, target))
        mean, own, _ = split_value(loss(o, t))
        weight = float(own) if own is not None else known_weight(loss, o, t) or float(_size(o))
        total, weights = total + weight * float(mean.detach()), weights + weight
    gap = abs(whole - total / weights)
    if gap <= _SAME * max(1.0, abs(whole)):
        return Check("mean", "pass", "a batch's mean is that of its parts", gap, _SAME)
    return Check(
        "mean", "fail", f"a batch's value {whole:.6g} is not the mean of its parts, {total / weights:.6g}", gap
    )


def _size(outputs: Any) -> int:
    return next((len(t) for t in tensors_of(outputs)), 1)
