"""A task file: what `landscape` needs to know about your training, for handwritten digits and a small network.

Train it, and probe where it ended up:

    python digits_task.py digits.pt
    landscape probe digits.pt --task digits_task.py:digits --report digits.html
"""

from __future__ import annotations

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

from landscape import Task, task


def network(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


@task
def digits(hidden: int = 32) -> Task:
    """Only a function marked with @task is ever called; its arguments are what `--set hidden=64` sets."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return Task(
        model=network(hidden),  # untrained: the checkpoint's weights are put in
        loss=nn.CrossEntropyLoss(),
        train=(x[:-360], y[:-360]),
        test=(x[-360:], y[-360:]),  # held out: for calibration and the generalization gap
        name="digits",
    )


def train(epochs: int = 30) -> nn.Module:
    """The training as you already have it; nothing here knows about landscapes."""
    torch.manual_seed(0)
    setup = digits()
    model, (x, y) = setup.model, setup.train
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return model


if __name__ == "__main__":
    torch.save(train().state_dict(), sys.argv[1] if len(sys.argv) > 1 else "digits.pt")
