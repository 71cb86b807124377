"""A loss made of a function and its settings, and one that looks at a model's weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from .inputs import Takes


class NamedLoss(nn.Module):
    """`function(outputs, target, **settings)` as a module: a mean with its settings in `settings`.

    The settings are read at every call, so that a schedule may drive them (`loss.settings["gamma"] = 1.5`). Outputs
    and targets are compared with what the loss takes; raises ObjectiveError where they don't fit.
    """

    def __init__(
        self, name: str, function: Callable[..., Any], settings: Mapping[str, Any], takes: Takes | None, rebatch: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.settings = dict(settings)
        #: False where the loss couples the samples of a batch: `Task(..., rebatch=False)`.
        self.rebatch = rebatch
        self._function = function
        self._takes = takes

    def forward(self, outputs: Any, target: Any = None) -> Any:
        if self._takes is not None:
            self._takes.check(outputs, target, self.name)
        return self._function(outputs, target, **self.settings)

    def extra_repr(self) -> str:
        return ", ".join([self.name, *(f"{k}={v!r}" for k, v in self.settings.items())])


class WeightsLoss(nn.Module):
    """Base of losses that look at the weights of a model: `bind(model)` first, then call them like any other.

    The model is no submodule of the loss: its parameters are not the loss's own.
    """

    rebatch = True

    def __init__(self) -> None:
        super().__init__()
        self._models: list[nn.Module] = []

    def bind(self, model: nn.Module) -> WeightsLoss:
        """Look at this model from now on; return the loss itself."""
        if not isinstance(model, nn.Module):
            raise TrainingError(f"bind takes the torch.nn.Module that is trained, got {type(model).__name__}")
        self._models[:] = [model]
        return self

    def frozen(self, outputs: Any, target: Any) -> Callable[[], torch.Tensor]:
        """Return the loss as a function of the weights alone, with what its gradient holds fixed held fixed."""
        return lambda: self(outputs, target)

    @property
    def model(self) -> nn.Module:
        """The model that was bound. Raises TrainingError where none was."""
        if not self._models:
            raise TrainingError(
                f"{type(self).__name__} looks at the weights of a model and has none: call loss.bind(model)"
            )
        return self._models[0]


def bind(loss: Any, model: nn.Module) -> Any:
    """Bind every part of a loss that looks at a model's weights to this model; return the loss."""
    if isinstance(loss, nn.Module):
        for part in loss.modules():
            if isinstance(part, WeightsLoss):
                part.bind(model)
    return loss


def safe_sqrt(x: torch.Tensor) -> torch.Tensor:
    """Return the square root, 0 with the subgradient 0 where x <= 0: sqrt's own derivative there is infinite."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))
