"""An optimizer with its settings, before there are parameters to give it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..curvature.stability import stability_threshold
from ..curvature.thresholds import StabilityThreshold
from ..errors import TrainingError


class Recipe:
    """`recipe(model.parameters())` is the optimizer; `settings` are all that it will have.

    `full_batch` says that its steps are meant for gradients (or closures) over all data.
    """

    def __init__(self, name: str, make: Callable[..., Any], full_batch: bool = False, **settings: Any) -> None:
        self.name = name
        self.settings: Mapping[str, Any] = settings
        self.full_batch = full_batch
        self._make = make
        self(
            [torch.nn.Parameter(torch.zeros(1, device="cpu"))]
        )  # settings that it can't have are refused now, not before training

    def __call__(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """Return the optimizer of these parameters (or groups of them).

        Raises TrainingError for settings or parameters that it can't have.
        """
        try:
            return self._make(parameters, **self.settings)
        except (TypeError, ValueError) as error:
            raise TrainingError(f"{self.name} can't be made: {error}") from error

    def threshold(self) -> StabilityThreshold:
        """Return the largest eigenvalue at which its full-batch steps on a quadratic don't grow, and of which operator.

        See `landscape.stability_threshold`; not defined for L-BFGS and for optimizers that it doesn't know.
        """
        return stability_threshold(self([torch.nn.Parameter(torch.zeros(1, device="cpu"))]))

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"
