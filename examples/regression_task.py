"""Regression on data made on the spot: noisy values of a smooth function, a few of them far off.

Which loss minds the outliers? Sweep over them, and compare where the trainings end:

    landscape sweep regression_task.py --loss "mse,mae,huber(delta=0.5),log_cosh" --lr 0.02 --seeds 3 --epochs 40
    landscape report runs/*/run.h5 -o regression.html
"""

from __future__ import annotations

import math

import torch
from torch import nn

from landscape import Task, task


def samples(n: int, seed: int, outliers: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points x (n, 2) in the square and values y (n, 1); a share of the values is 3 off, up or down."""
    g = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(n, 2, generator=g) - 1
    y = torch.sin(math.pi * x[:, :1]) * x[:, 1:] + 0.05 * torch.randn(n, 1, generator=g)
    off = 3.0 * torch.randn(n, 1, generator=g).sign()
    return x, torch.where(torch.rand(n, 1, generator=g) < outliers, y + off, y)


@task
def surface(width: int = 32, outliers: float = 0.05) -> Task:
    """Outliers are in the training data alone, so that the test loss says how far they led the fit astray."""
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    train, test = samples(1000, seed=1, outliers=outliers), samples(500, seed=2)
    return Task(model, nn.MSELoss(), train, test, name="noisy surface", batch_size=50)
