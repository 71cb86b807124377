"""A task file for sweeps, small enough that a cell takes milliseconds, and what a user would have written by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from landscape import losses

#: 67 parameters, 200 samples. `dropped` draws random numbers in its model, `augmented` in its data.
TASKS = """
import os
import signal
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from landscape import Task, losses, task


def data(n=200):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def net(hidden=8, *more):
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), *more, nn.Linear(hidden, 3))


@losses.register("mine")
def mine(outputs, target, *, power=2.0):
    "The user's own: cross entropy to a power."
    return nn.functional.cross_entropy(outputs, target, reduction="none").pow(power).mean()


@task
def tiny(hidden: int = 8):
    x, y = data()
    return Task(net(hidden), nn.CrossEntropyLoss(), (x, y), (x[:60], y[:60]), name="tiny")


@task
def dropped():
    x, y = data()
    return Task(net(8, nn.Dropout(0.2)), nn.CrossEntropyLoss(), (x, y), (x[:60], y[:60]))


class Shaken(Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, i):
        x, y = data()
        return x[i] + 0.1 * torch.randn(4), y[i]


@task
def augmented():
    x, y = data()
    loader = DataLoader(Shaken(), batch_size=50, shuffle=True)
    return Task(net(8, nn.Dropout(0.2)), nn.CrossEntropyLoss(), loader, (x[:60], y[:60]))


@task
def regression():
    x, y = data()
    return Task(net(), nn.MSELoss(), (x, nn.functional.one_hot(y, 3).float()), (x[:60], torch.zeros(60, 3)))


@task
def own_loss():
    def batch_loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])
    return Task(net(), train=data(), batch_loss=batch_loss)


@task
def derived():
    "A loss on the derivative of what the model gives, which needs autograd when it is only evaluated, too."
    def batch_loss(model, batch):
        x = batch[0].detach().clone().requires_grad_(True)
        slope, = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return (slope - x).square().mean()
    x, y = data()
    return Task(net(), batch_loss=batch_loss, train=(x, y), test=(x[:60], y[:60]))


@task
def fixed():
    torch.manual_seed(1)
    x, y = data()
    return Task(net(), nn.CrossEntropyLoss(), (x, y))


class Deadly(nn.Module):
    "Ends its process at a step, as the system does when memory runs out, where a file says so."

    def __init__(self, at, times):
        super().__init__()
        self.at, self.times, self.passes = at, times, 0

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.passes += 1
            if self.passes == self.at and len([f for f in os.listdir() if f.startswith("death")]) < self.times:
                open(f"death{time.time_ns()}", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return x


@task
def deadly(at: int = 0, times: int = 1):
    x, y = data()
    return Task(net(8, Deadly(at, times)), nn.CrossEntropyLoss(), (x, y))


class Failing(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.at, self.passes = at, 0

    def forward(self, x):
        self.passes += 1
        if self.passes == self.at and not os.path.exists("mended"):
            raise OSError("the disk with the images is gone")
        return x


@task
def failing(at: int = 0):
    x, y = data()
    return Task(net(8, Failing(at)), nn.CrossEntropyLoss(), (x, y))


class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.01)
        return x


@task
def slow():
    x, y = data()
    return Task(net(8, Slow(), nn.Dropout(0.2)), nn.CrossEntropyLoss(), (x, y), (x[:60], y[:60]))
"""


def build(folder: Path) -> None:
    """Write the task file; a loss that the file of another test registered in this process is forgotten."""
    (folder / "tasks.py").write_text(TASKS)
    for registered in (losses._entries, losses._origins):
        registered.pop("mine", None)


def start(folder: Path, *arguments: Any) -> subprocess.Popen[str]:
    """Start `landscape sweep` as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", "landscape.cli", "sweep", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def cells_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every cell's cell.json by its folder's name."""
    return {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.glob("*/cell.json"))}
