"""Which of a model's parameters each optimizer moves, under which names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from landscape.errors import MeasurementError
from landscape.parameters import unwrap

from .probe import Followed

Optimizers = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]


def named_optimizers(optimizer: Any) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers by name, without what other libraries wrapped around them; one alone is called "".

    Raises TypeError for what is no optimizer, MeasurementError for none.
    """
    given = dict(optimizer) if isinstance(optimizer, Mapping) else {"": optimizer}
    if not given:
        raise MeasurementError("the recorder got no optimizer; pass the one that trains the model")
    found = {}
    for name, one in given.items():
        while type(one).__name__ == "AcceleratedOptimizer" or not isinstance(one, torch.optim.Optimizer):
            inner = getattr(one, "optimizer", None)
            if inner is None:
                raise TypeError(f"expected a torch.optim.Optimizer or {{name: optimizer}}, got {type(one).__name__}")
            one = inner
        found[str(name)] = one
    return found


def follow(model: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer]) -> tuple[Followed, ...]:
    """Return what each optimizer moves: the model's parameters in the model's order, then any others that it holds.

    Raises MeasurementError where an optimizer holds none of the model's parameters.
    """
    names = {id(p): plain_name(n) for n, p in unwrap(model).named_parameters()}
    order = {key: i for i, key in enumerate(names)}
    found = []
    for name, optimizer in optimizers.items():
        held = [
            (p, f"group {g}, {i}")
            for g, group in enumerate(optimizer.param_groups)
            for i, p in enumerate(group["params"])
        ]
        if not any(id(p) in names for p, _ in held):
            which = f"the optimizer {name!r}" if name else "the optimizer"
            raise MeasurementError(
                f"{which} holds {len(held)} parameters, none of them the model's: make it from this model's "
                "parameters, after the model was moved or wrapped"
            )
        held.sort(key=lambda item: order.get(id(item[0]), len(order)))
        labels = tuple(names.get(id(p), label) for p, label in held)
        suffix = f".{name}" if len(optimizers) > 1 else ""
        found.append(Followed(name, optimizer, labels, tuple(p for p, _ in held), suffix))
    return tuple(found)


def difference(old: Followed, new: Followed) -> str:
    """Return in words which parameters came and which went."""
    came = [n for n in new.names if n not in old.names]
    gone = [n for n in old.names if n not in new.names]
    told = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in ((came, "came"), (gone, "went"))
        if names
    ]
    return " and ".join(told or ["replaced"])


def plain_name(name: str) -> str:
    """Return a parameter's name without what wrappers inside a model put into it."""
    for part in ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        name = name.replace(part, "")
    return name
