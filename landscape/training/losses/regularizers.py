"""Penalties on weights, and smoothness of predictions around the inputs: losses that look at the model itself.

Call `loss.bind(model)` first; in a weighted sum, `bind` reaches every term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...errors import TrainingError
from ..inputs import LOGITS_AND_INPUTS, WEIGHTS
from ..loss import WeightsLoss
from ..registries import losses

_ALL = ("True: biases and scales of normalizations, too", "PyTorch's weight_decay takes all")


class _Penalty(WeightsLoss):
    def __init__(self, biases: bool = True) -> None:
        super().__init__()
        self.biases = biases

    def _weights(self) -> list[nn.Parameter]:
        chosen = [p for p in self.model.parameters() if p.requires_grad and (self.biases or p.ndim > 1)]
        if not chosen:
            raise TrainingError("the model has no trainable weights to penalize")
        return chosen


@losses.register(
    "l1",
    kind="regularization",
    takes=WEIGHTS,
    source="Tibshirani 1996, Regression Shrinkage and Selection via the Lasso, doi:10.1111/j.2517-6161.1996.tb02080.x",
    about={"biases": _ALL},
)
class L1(_Penalty):
    """Sum of the absolute weights."""

    def forward(self, outputs: Any = None, target: Any = None) -> torch.Tensor:
        return torch.stack([w.abs().sum() for w in self._weights()]).sum()


@losses.register(
    "l2",
    kind="regularization",
    takes=WEIGHTS,
    source="Hoerl and Kennard 1970, Ridge Regression, doi:10.1080/00401706.1970.10488634; 1/2, so that lambda*l2 is "
    "weight_decay=lambda of torch.optim.SGD",
    about={"biases": _ALL},
)
class L2(_Penalty):
    """Half the sum of the squared weights."""

    def forward(self, outputs: Any = None, target: Any = None) -> torch.Tensor:
        return torch.stack([w.square().sum() for w in self._weights()]).sum() / 2


@losses.register(
    "elastic_net",
    kind="regularization",
    takes=WEIGHTS,
    source="Zou and Hastie 2005, Regularization and Variable Selection via the Elastic Net, "
    "doi:10.1111/j.1467-9868.2005.00503.x",
    about={"ratio": ("share of the absolute weights", "scikit-learn's default: 0.5"), "biases": _ALL},
)
class ElasticNet(_Penalty):
    """Ratio times the sum of absolute weights plus (1 - ratio) times half the sum of squared ones."""

    def __init__(self, ratio: float = 0.5, biases: bool = True) -> None:
        super().__init__(biases)
        if not 0 <= ratio <= 1:
            raise TrainingError(f"ratio={ratio} must lie in [0, 1]")
        self.ratio = ratio

    def forward(self, outputs: Any = None, target: Any = None) -> torch.Tensor:
        each = [self.ratio * w.abs().sum() + (1 - self.ratio) / 2 * w.square().sum() for w in self._weights()]
        return torch.stack(each).sum()


@losses.register(
    "norm_loss",
    kind="regularization",
    takes=WEIGHTS,
    source="Georgiou et al. 2021, Norm Loss: An efficient yet effective regularization method for deep neural "
    "networks, arXiv:2103.06583 (from memory)",
)
class NormLoss(WeightsLoss):
    """Sum over all filters (rows of a matrix, output channels of a convolution) of (1 - norm)^2."""

    def forward(self, outputs: Any = None, target: Any = None) -> torch.Tensor:
        layers = [p.flatten(1) for p in self.model.parameters() if p.requires_grad and p.ndim > 1]
        if not layers:
            raise TrainingError("norm_loss looks at matrices and convolutions, and the model has none to train")
        # 1e-12 under the root, chosen by us: a filter of zeros has no direction to grow in, and stays finite.
        norms = [(w.square().sum(1) + 1e-12).sqrt() for w in layers]
        return torch.stack([(1 - n).square().sum() for n in norms]).sum()


@losses.register(
    "vat",
    kind="regularization",
    takes=LOGITS_AND_INPUTS,
    rebatch=False,
    source="Miyato et al. 2018, Virtual Adversarial Training, arXiv:1704.03976",
    about={
        "epsilon": (
            "length of the perturbation of each sample",
            "the paper's for SVHN without augmentation: 2.5 (from memory)",
        ),
        "xi": ("length of the probe of the power iteration", "the paper's: 1e-6; 1e-3 here, for float32", "(0, inf)"),
        "iterations": ("of the power iteration", "the paper's: 1", "[1, inf)"),
        "seed": ("of the first direction, so that the loss is the same twice", "chosen by us"),
    },
)
class VirtualAdversarial(WeightsLoss):
    """Divergence of the predictions at inputs moved in the direction that changes them most."""

    rebatch = False

    def __init__(self, epsilon: float = 2.5, xi: float = 1e-3, iterations: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.epsilon, self.xi, self.iterations, self.seed = epsilon, xi, iterations, seed

    def forward(self, outputs: tuple[torch.Tensor, torch.Tensor], target: Any = None) -> torch.Tensor:
        LOGITS_AND_INPUTS.check(outputs, target, "vat")
        logits, inputs = outputs
        # Both the predictions and the direction are held fixed, as in the paper.
        return self.divergence(inputs + self.epsilon * self.direction(logits, inputs), logits)

    def frozen(self, outputs: Any, target: Any) -> Callable[[], torch.Tensor]:
        logits, inputs = outputs
        moved = inputs + self.epsilon * self.direction(logits, inputs)
        return lambda: self.divergence(moved, logits)

    def divergence(self, moved: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the mean KL of the predictions at moved inputs from those that the logits give, held fixed."""
        log_p = F.log_softmax(logits.detach(), 1)
        return (log_p.exp() * (log_p - F.log_softmax(self.model(moved), 1))).sum(1).mean()

    def direction(self, logits: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the most sensitive direction at each input, of length 1, by the power method; no gradient."""
        generator = torch.Generator().manual_seed(self.seed)
        x = inputs.detach()
        d = _unit(torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device))
        for _ in range(self.iterations):
            with torch.enable_grad():
                d.requires_grad_()
                (slope,) = torch.autograd.grad(self.divergence(x + self.xi * d, logits), d)
            d = _unit(slope.detach())
        return d.detach()


def _unit(d: torch.Tensor) -> torch.Tensor:
    # Scaled by its largest entry first: the slope of a tiny divergence squares to 0 in float32.
    largest = d.abs().flatten(1).amax(1).clamp(min=torch.finfo(d.dtype).tiny).reshape(-1, *[1] * (d.ndim - 1))
    d = d / largest
    norm = d.square().flatten(1).sum(1).sqrt().clamp(min=1e-12).reshape(-1, *[1] * (d.ndim - 1))
    return d / norm
