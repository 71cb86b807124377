"""An optimizer with its settings, before there are parameters to give it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..curvature.stability import stability_threshold
from ..curvature.thresholds import StabilityThreshold
from ..errors import TrainingError
from .expressions import Call


class Recipe:
    """`recipe(model.parameters())` is the optimizer; `settings` are all that it will have.

    `full_batch` says that its steps are meant for gradients (or closures) over all data, `closure` that `step` takes
    one, `base` is the recipe of the optimizer that it steps by, where it is built around one.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Any],
        full_batch: bool = False,
        closure: bool = False,
        base: str = "",
        /,
        **settings: Any,
    ) -> None:
        self.name = name
        self.base: Recipe | None = None
        if base:
            self.base = settings[base] = _recipe(settings[base], f"{base} of {name}")
        self.settings: Mapping[str, Any] = settings
        self.full_batch = full_batch or (self.base is not None and self.base.full_batch)
        self.closure = closure
        self._make = make
        self(
            [torch.nn.Parameter(torch.zeros(1, device="cpu"))]
        )  # settings that it can't have are refused now, not before training

    def __call__(self, parameters: Iterable[Any] | torch.nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of these parameters (or groups of them); one around a base takes the model, too.

        Raises TrainingError for settings or parameters that it can't have.
        """
        try:
            return self._make(parameters, **self.settings)
        except TrainingError:
            raise
        except (TypeError, ValueError) as error:
            raise TrainingError(f"{self.name} can't be made: {error}") from error

    def threshold(self, gradient_norm: float | None = None) -> StabilityThreshold:
        """Return the largest eigenvalue at which its full-batch steps on a quadratic don't grow, and of which operator.

        See `landscape.stability_threshold`, also for `gradient_norm`; not defined for L-BFGS and for optimizers that it
        doesn't know.
        """
        own = self([torch.nn.Parameter(torch.zeros(1, device="cpu"))])
        return stability_threshold(own, gradient_norm=gradient_norm)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"


def _recipe(value: Any, what: str) -> Recipe:
    """Return the recipe that a setting names."""
    from .registries import optimizers

    if isinstance(value, Recipe):
        return value
    if isinstance(value, Call):
        return optimizers.make(value)
    if isinstance(value, str):
        return optimizers.build(value)
    raise TrainingError(f"{what} is {value!r}; expected an optimizer with its settings, such as sgd(momentum=0.9)")
