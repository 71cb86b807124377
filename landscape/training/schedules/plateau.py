"""The schedule that looks at a metric: lower when it stops improving."""

from __future__ import annotations

import math
from typing import Any

from ...errors import TrainingError
from ..registries import schedules
from ..schedule import Progress, Schedule


@schedules.register(
    "plateau",
    source="He et al. 2016, arXiv:1512.03385 (by hand); the rule and its defaults are PyTorch's ReduceLROnPlateau",
    about={
        "factor": ("at each reduction", "PyTorch's default"),
        "patience": ("observations without improvement that are waited for", "PyTorch's default", "[0, inf)"),
        "threshold": ("relative change that counts as an improvement", "PyTorch's default"),
        "cooldown": ("observations after a reduction that are not counted", "PyTorch's default", "[0, inf)"),
        "lowest": ("factor that it never falls below", "PyTorch's default: 0", "[0, inf)"),
        "mode": ("min: lower is better; max: higher is", "PyTorch's default"),
    },
    torch="torch.optim.lr_scheduler.ReduceLROnPlateau",
)
class Plateau(Schedule):
    """Multiplied by a factor when a metric stops improving; tell it with `observe(metric)`."""

    stateful = True

    def __init__(
        self,
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        lowest: float = 0.0,
        mode: str = "min",
    ) -> None:
        if mode not in ("min", "max"):
            raise TrainingError(f"mode={mode!r} is not one of min, max")
        if not 0 < factor < 1:
            raise TrainingError(f"factor={factor} must lie in (0, 1): at a plateau the value falls")
        self.factor, self.patience, self.threshold = factor, patience, threshold
        self.cooldown, self.lowest, self.mode = cooldown, lowest, mode
        self._current = 1.0
        self._best = math.inf if mode == "min" else -math.inf
        self._waited = 0
        self._cooling = 0

    def value(self, progress: Progress) -> float:
        return self._current

    def observe(self, metric: float) -> float:
        """Take one value of the metric, usually once an epoch, and return the factor from now on."""
        metric = float(metric)
        if self._better(metric):
            self._best, self._waited = metric, 0
        else:
            self._waited += 1  # a NaN is no improvement
        if self._cooling > 0:
            self._cooling -= 1
            self._waited = 0
        if self._waited > self.patience:
            self._current = max(self._current * self.factor, self.lowest)
            self._cooling, self._waited = self.cooldown, 0
        return self._current

    def _better(self, metric: float) -> bool:
        if self.mode == "min":
            return metric < self._best * (1 - self.threshold)
        return metric > self._best * (1 + self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"current": self._current, "best": self._best, "waited": self._waited, "cooling": self._cooling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self._current, self._best = float(state["current"]), float(state["best"])
        self._waited, self._cooling = int(state["waited"]), int(state["cooling"])
