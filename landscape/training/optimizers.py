"""The optimizers: torch.optim's with defaults, sources and thresholds, and sharpness-aware ones around them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import TrainingError
from .recipe import Recipe
from .registries import optimizers
from .sam import SAM

_LR = ("learning rate", "PyTorch's default")
_DECAY = ("lambda of lambda/2 ||w||^2, whose gradient lambda w is added", "PyTorch's default")
_BETAS = ("decay of the means of gradients and of their squares", "the paper's, and PyTorch's default")
_EPS = ("added to the root, outside of it", "PyTorch's default")
_MOMENTUM = ("share of the last step that is kept", "Goyal et al. 2017, arXiv:1706.02677: 0.9")
_POLYAK = (
    "Polyak 1964, Some methods of speeding up the convergence of iteration methods, doi:10.1016/0041-5553(64)90137-5"
)
_SGD = "Robbins and Monro 1951, A Stochastic Approximation Method, doi:10.1214/aoms/1177729586"
_PLAIN = "2 / lr"
_HEAVY = "2 (1 + b) / ((1 - dampening) lr)"
_NESTEROV = "2 (1 + b) / ((1 + 2 b) lr)"
_ADAM = "2 (1 + b1) / ((1 - b1) lr)"


@optimizers.register(
    "gd",
    source="Cauchy 1847, Methode generale pour la resolution des systemes d'equations simultanees",
    about={"lr": _LR, "weight_decay": _DECAY},
    torch="torch.optim.SGD",
    threshold=_PLAIN,
    operator="hessian",
    full_batch=True,
)
def gd(params: Iterable[Any], lr: float = 1e-3, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """Gradient descent: steps along the gradient of the whole training set."""
    return torch.optim.SGD(params, lr=lr, weight_decay=weight_decay)


@optimizers.register(
    "sgd",
    source=_SGD,
    about={
        "lr": _LR,
        "momentum": ("share of the last step that is kept", "PyTorch's default"),
        "dampening": ("share of the gradient that momentum leaves out", "PyTorch's default"),
        "weight_decay": _DECAY,
        "nesterov": ("True: the gradient at the point looked ahead to", "PyTorch's default"),
    },
    torch="torch.optim.SGD",
    threshold=f"{_PLAIN}; with momentum b {_HEAVY}; Nesterov {_NESTEROV}",
    operator="hessian",
)
def sgd(
    params: Iterable[Any],
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent, with momentum on request."""
    return torch.optim.SGD(
        params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
    )


@optimizers.register(
    "momentum",
    source=_POLYAK,
    about={"lr": _LR, "momentum": _MOMENTUM, "weight_decay": _DECAY},
    torch="torch.optim.SGD",
    threshold="2 (1 + b) / lr",
    operator="hessian",
)
def momentum(
    params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Heavy ball: velocity = b velocity + gradient, step = -lr velocity."""
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay)


@optimizers.register(
    "nesterov",
    source="Nesterov 1983, A method of solving a convex programming problem with convergence rate O(1/k^2); in the "
    "form of Sutskever et al. 2013, PMLR 28: the gradient at theta - lr b velocity",
    about={"lr": _LR, "momentum": _MOMENTUM, "weight_decay": _DECAY},
    torch="torch.optim.SGD",
    threshold=_NESTEROV,
    operator="hessian",
)
def nesterov(
    params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Nesterov's momentum: the gradient is taken where the velocity leads."""
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True)


optimizers.register(
    "adagrad",
    source="Duchi, Hazan and Singer 2011, Adaptive Subgradient Methods, JMLR 12",
    about={
        "lr": _LR,
        "lr_decay": ("of the learning rate, lr / (1 + (step - 1) lr_decay)", "PyTorch's default"),
        "weight_decay": _DECAY,
        "initial_accumulator_value": ("sum of squares to start from", "PyTorch's default"),
        "eps": _EPS,
    },
    torch="torch.optim.Adagrad",
    threshold=_PLAIN,
    operator="preconditioned",
    doc="Steps over the root of the sum of squared gradients.",
)(torch.optim.Adagrad)

optimizers.register(
    "rmsprop",
    source="Tieleman and Hinton 2012, Coursera lecture 6.5, rmsprop",
    about={
        "lr": _LR,
        "alpha": ("decay of the mean of squares", "PyTorch's default (the lecture: 0.9)"),
        "eps": _EPS,
        "weight_decay": _DECAY,
        "momentum": ("share of the last step that is kept", "PyTorch's default"),
        "centered": ("True: over the standard deviation of the gradient", "PyTorch's default"),
    },
    torch="torch.optim.RMSprop",
    threshold=f"{_PLAIN}; with momentum b 2 (1 + b) / lr",
    operator="preconditioned",
    doc="Steps over the root of the mean of recent squared gradients.",
)(torch.optim.RMSprop)

optimizers.register(
    "adam",
    source="Kingma and Ba 2015, Adam: A Method for Stochastic Optimization, arXiv:1412.6980",
    about={
        "lr": ("learning rate", "the paper's, and PyTorch's default"),
        "betas": _BETAS,
        "eps": ("added to the root, outside of it", "the paper's, and PyTorch's default"),
        "weight_decay": _DECAY,
        "amsgrad": (
            "True: the largest mean of squares so far (Reddi et al. 2018, arXiv:1904.09237)",
            "PyTorch's default",
        ),
    },
    torch="torch.optim.Adam",
    threshold=_ADAM,
    operator="preconditioned",
    doc="Momentum over the root of the mean of squares, both corrected for their start at 0.",
)(torch.optim.Adam)

optimizers.register(
    "adamw",
    source="Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, arXiv:1711.05101",
    about={
        "lr": ("learning rate", "Adam's, and PyTorch's default"),
        "betas": _BETAS,
        "eps": ("added to the root, outside of it", "Adam's, and PyTorch's default"),
        "weight_decay": ("weights shrink by lr weight_decay a step, apart from the gradient", "PyTorch's default"),
        "amsgrad": ("True: the largest mean of squares so far", "PyTorch's default"),
    },
    torch="torch.optim.AdamW",
    threshold=_ADAM,
    operator="preconditioned",
    doc="Adam with weight decay apart from the gradient.",
)(torch.optim.AdamW)


@optimizers.register(
    "lbfgs",
    source="Liu and Nocedal 1989, On the limited memory BFGS method, doi:10.1007/BF01589116",
    about={
        "lr": _LR,
        "max_iter": ("iterations in each call of step", "PyTorch's default"),
        "history_size": ("pairs of steps and gradient changes kept", "PyTorch's default"),
        "line_search": ("strong_wolfe, or None for steps of lr", "chosen by us: without one it diverges easily"),
        "tolerance_grad": ("largest gradient entry at which it stops", "PyTorch's default"),
        "tolerance_change": ("change of the loss or the weights at which it stops", "PyTorch's default"),
    },
    torch="torch.optim.LBFGS",
    threshold="",
    operator="",
    full_batch=True,
    closure=True,
)
def lbfgs(
    params: Sequence[Any],
    lr: float = 1.0,
    max_iter: int = 20,
    history_size: int = 100,
    line_search: str | None = "strong_wolfe",
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
) -> torch.optim.Optimizer:
    """Limited-memory BFGS on full batches; `step` takes a closure, and no threshold of stability is defined."""
    if line_search not in (None, "strong_wolfe"):  # torch says so at the first step only
        raise TrainingError(f"there is no line search {line_search!r}; expected 'strong_wolfe' or None")
    return torch.optim.LBFGS(
        params,
        lr=lr,
        max_iter=max_iter,
        history_size=history_size,
        line_search_fn=line_search,
        tolerance_grad=tolerance_grad,
        tolerance_change=tolerance_change,
    )


_BASE = ("the optimizer that steps, with its settings", "Foret et al. 2021: SGD with momentum 0.9")


@optimizers.register(
    "sam",
    source="Foret et al. 2021, Sharpness-Aware Minimization, arXiv:2010.01412",
    about={
        "base": _BASE,
        "rho": ("how far it climbs, ||e||", "Foret et al. 2021: theirs for CIFAR", "[0, inf)"),
    },
    threshold="|g| (sqrt(1 + 4 rho T / |g|) - 1) / (2 rho), T the base's and |g| the gradient's norm",
    operator="hessian",
    closure=True,
    base="base",
)
def sam(params: nn.Module | Iterable[Any], base: Any = "sgd(momentum=0.9)", rho: float = 0.05) -> torch.optim.Optimizer:
    """Sharpness-aware minimization: the base steps along the gradient at w + rho g / ||g||; two gradients a step."""
    return SAM(params, _steps_at_once(base, "sam"), rho)


@optimizers.register(
    "asam",
    source="Kwon et al. 2021, ASAM: Adaptive Sharpness-Aware Minimization, arXiv:2102.11600",
    about={
        "base": _BASE,
        "rho": ("how far it climbs, ||e / T||", "Kwon et al. 2021: theirs for CIFAR-10", "[0, inf)"),
        "eta": ("added to |w| in T = |w| + eta on weights; T = 1 elsewhere", "Kwon et al. 2021", "[0, inf)"),
    },
    threshold="",
    operator="",
    closure=True,
    base="base",
)
def asam(
    params: nn.Module | Iterable[Any], base: Any = "sgd(momentum=0.9)", rho: float = 0.5, eta: float = 0.01
) -> torch.optim.Optimizer:
    """SAM whose ascent counts in units of each weight's size, so that a rescaling of layers changes it little."""
    return SAM(params, _steps_at_once(base, "asam"), rho, adaptive=True, eta=eta)


def _steps_at_once(base: Recipe, name: str) -> Recipe:
    if base.closure:
        raise TrainingError(
            f"{name} can't be built around {base.name}, which asks for gradients by itself; take one that steps once "
            "for each gradient, such as sgd or adam"
        )
    return base
