"""A small training for the recorder's tests."""

from __future__ import annotations

import torch
from torch import nn

from landscape import Task


def small() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def steps(model, optimizer, n: int, rec=None, seed: int = 0) -> None:
    g = torch.Generator().manual_seed(seed)
    for _ in range(n):
        x, y = batch(6, g)
        loss = nn.functional.cross_entropy(model(x), y)
        if rec is not None:
            rec.log(loss=loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def task_of(model: nn.Module) -> Task:
    return Task(model, nn.CrossEntropyLoss(), batch(40, torch.Generator().manual_seed(3)))


def batch(n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs whose largest coordinate, seen through noise, is the label: to be learnt, but not perfectly."""
    x = torch.randn(n, 4, generator=g)
    return x, (x[:, :3] + 0.7 * torch.randn(n, 3, generator=g)).argmax(1)
