"""What phases act on: groups of layers that thaw, and examples in order of difficulty."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..batch import as_tensor
from ..errors import TrainingError


def unfreeze(groups: Sequence[nn.Module | Iterable[nn.Parameter]], count: float) -> int:
    """Let the last `count` groups train and freeze the others; return how many parameters train.

    Groups run from the input to the head: `[model.stem, model.body, model.head]`. Sets `requires_grad` alone; what a
    frozen layer did in an optimizer's state stays. Raises TrainingError for a count outside [0, groups].
    """
    if not 0 <= count <= len(groups):
        raise TrainingError(f"{count:g} groups can't train: there are {len(groups)}")
    trained = 0
    for i, group in enumerate(groups):
        live = i >= len(groups) - int(count)
        for p in group.parameters() if isinstance(group, nn.Module) else group:
            p.requires_grad_(live)
            trained += p.numel() if live else 0
    return trained


def easiest(difficulty: Any, share: float) -> torch.Tensor:
    """Return the indices of the easiest share of the examples (at least one), easiest first; ties keep their order.

    `difficulty` holds a number for each example, (n,). Raises TrainingError for a share outside (0, 1], and a
    difficulty that is NaN.
    """
    d = as_tensor(difficulty)
    if d.ndim != 1 or not len(d) or bool(d.isnan().any()):
        raise TrainingError(f"difficulty must hold one number for each example, none of them NaN; got {tuple(d.shape)}")
    if not 0 < share <= 1:
        raise TrainingError(f"share={share} must lie in (0, 1]")
    return d.argsort(stable=True)[: max(1, round(share * len(d)))]
