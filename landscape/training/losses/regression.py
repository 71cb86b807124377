"""Losses of regression: means over the elements of (outputs - targets)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import ObjectiveError, TrainingError
from ..inputs import QUANTILES, TIMED_VALUES, VALUES
from ..loss import safe_sqrt
from ..registries import losses

losses.register(
    "mse",
    kind="regression",
    takes=VALUES,
    source="Gauss 1809, Theoria motus corporum coelestium",
    about={},
    torch="torch.nn.MSELoss",
    doc="Mean squared error.",
)(nn.MSELoss)

losses.register(
    "mae",
    kind="regression",
    takes=VALUES,
    source="Laplace 1774, Memoire sur la probabilite des causes (from memory)",
    about={},
    torch="torch.nn.L1Loss",
    doc="Mean absolute error.",
)(nn.L1Loss)

losses.register(
    "huber",
    kind="regression",
    takes=VALUES,
    source="Huber 1964, Robust Estimation of a Location Parameter, doi:10.1214/aoms/1177703732",
    about={"delta": ("the error from which it grows linearly", "PyTorch's default", "(0, inf)")},
    torch="torch.nn.HuberLoss",
    doc="Squared for small errors, linear beyond delta.",
)(nn.HuberLoss)

losses.register(
    "smooth_l1",
    kind="regression",
    takes=VALUES,
    source="Girshick 2015, Fast R-CNN, arXiv:1504.08083",
    about={"beta": ("the error from which it grows linearly", "PyTorch's default, and Fast R-CNN's", "[0, inf)")},
    torch="torch.nn.SmoothL1Loss",
    doc="Huber's loss over its delta: the slope far out is 1.",
)(nn.SmoothL1Loss)


def _pseudo_huber(error: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    # delta^2 (sqrt(1 + s^2) - 1) with s = error / delta, written without the difference that cancels for small s.
    s = error / delta
    return delta * error * s / (1 + (1 + s * s).sqrt())


@losses.register(
    "pseudo_huber",
    kind="regression",
    takes=VALUES,
    source="Charbonnier et al. 1997, Deterministic edge-preserving regularization, doi:10.1109/83.551699; the name is "
    "Hartley and Zisserman's, Multiple View Geometry, appendix 6 (from memory)",
    about={"delta": ("the error around which it turns linear", "PyTorch's default of the Huber loss", "(0, inf)")},
)
def pseudo_huber(outputs: torch.Tensor, target: torch.Tensor, delta: float = 1.0) -> torch.Tensor:
    """Smooth Huber loss, delta^2 (sqrt(1 + (error / delta)^2) - 1)."""
    error = outputs - target
    return _pseudo_huber(error, error.new_tensor(delta)).mean()


@losses.register(
    "pinball",
    kind="regression",
    takes=QUANTILES,
    source="Koenker and Bassett 1978, Regression Quantiles, doi:10.2307/1913643",
    about={"levels": ("level of each quantile of the outputs, in their order", "chosen by us: median and 80%")},
)
def pinball(
    outputs: torch.Tensor, target: torch.Tensor, levels: float | Sequence[float] = (0.1, 0.5, 0.9)
) -> torch.Tensor:
    """Pinball (quantile) loss, max(q e, (q - 1) e) of the error e = target - quantile, mean over levels and targets."""
    level = torch.atleast_1d(outputs.new_tensor(levels))
    if not bool(((level > 0) & (level < 1)).all()):
        raise TrainingError(f"pinball: levels={levels!r} must lie within (0, 1), one for each quantile")
    if outputs.shape[-1] != len(level):
        raise ObjectiveError(
            f"pinball has {len(level)} levels, and outputs of shape {tuple(outputs.shape)} hold {outputs.shape[-1]} "
            "quantiles for each target; give levels=[...], one for each"
        )
    error = target.unsqueeze(-1) - outputs
    return torch.maximum(level * error, (level - 1) * error).mean()


@losses.register(
    "scheduled_pseudo_huber",
    kind="regression",
    takes=TIMED_VALUES,
    source="Khrapov et al. 2024, Improving Diffusion Models's Data-Corruption Resistance using Scheduled Pseudo-Huber "
    "Loss, arXiv:2403.16728 (the schedule from memory)",
    about={"delta": ("delta at time 1; 1 at time 0, exponential between", "chosen by us", "(0, inf)")},
)
def scheduled_pseudo_huber(
    outputs: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor, delta: float = 0.1
) -> torch.Tensor:
    """Pseudo-Huber loss whose delta falls with each sample's diffusion time t in [0, 1], delta^t."""
    values, time = outputs
    error = values - target
    scale = torch.exp(math.log(delta) * time).reshape(-1, *[1] * (error.ndim - 1))
    return _pseudo_huber(error, scale).mean()


@losses.register("log_cosh", kind="regression", takes=VALUES, source="Green 1990, doi:10.1109/42.52985 (from memory)")
def log_cosh(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of log cosh of the errors."""
    error = outputs - target
    return (error + F.softplus(-2 * error) - math.log(2)).mean()


@losses.register(
    "rmse",
    kind="regression",
    takes=VALUES,
    source="the square root of mse",
    rebatch=False,
)
def rmse(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Root of the mean squared error of the batch; its subgradient at 0 is 0."""
    return safe_sqrt(F.mse_loss(outputs, target))
