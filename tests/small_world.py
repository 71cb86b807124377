"""A folder as a user has it: a task file, checkpoints that fit and don't, and the command line run inside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from landscape import results as registry
from landscape import save_checkpoint
from landscape.cli.main import main

#: 67 parameters, 200 samples: every measurement takes milliseconds.
TASKS = '''
import torch
from torch import nn
from landscape import Task, task


def net(hidden=8):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def data(n=200):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


@task
def tiny(hidden: int = 8, samples=None):
    """A small classifier."""
    x, y = data()
    return Task(net(hidden), nn.CrossEntropyLoss(), (x, y), (x[:60], y[:60]), max_samples=samples, name="tiny")


@task
def regression():
    x, y = data()
    return Task(net(), nn.MSELoss(), (x, nn.functional.one_hot(y, 3).float()))


@task
def own_loss():
    def batch_loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])
    return Task(net(), train=data(), batch_loss=batch_loss)


def unmarked():
    return tiny()


@task
def broken():
    raise RuntimeError("the disk with the images is not mounted")


@task
def weightless():
    def masked(outputs, target):
        keep = target > 0
        return nn.functional.cross_entropy(outputs, target, reduction="none")[keep].sum() / keep.sum()
    return Task(net(), masked, data())


@task
def empty():
    return Task(net(), nn.CrossEntropyLoss(), [])


@task
def no_data():
    return Task(net(), nn.CrossEntropyLoss())


@task
def noisy():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)
    return Task(nn.Sequential(*net(), Noise()), nn.CrossEntropyLoss(), data())


@task
def once():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 2 * x.detach() * grad  # its own derivative forgets x

    class Layer(nn.Module):
        def forward(self, x):
            return Square.apply(x)
    return Task(nn.Sequential(*net(), Layer()), nn.CrossEntropyLoss(), data())
'''

#: A measurement of somebody's own, registered by the task file beside it.
MEASURES = '''
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from landscape import GaussNewton, Objective, Option, Result, array, measurement, task
from tasks import tiny as _tiny, own_loss as _own_loss


@dataclass(frozen=True, kw_only=True)
class Largest(Result, kind="largest_weight"):
    value: float = array(units="", stderr="error", doc="largest |weight|")
    error: float = array(doc="none: it is exact")
    bad: float = array(doc="not a number")
    each: np.ndarray = array("tensor", doc="of each tensor")


@measurement(
    "largest_weight", default=False, options={"scale": Option(1.0, "a factor")}, preset={"quick": {"scale": 2.0}}
)
def largest(task, *, seed=0, progress=False, scale=1.0) -> Largest:
    """The largest weight of the model."""
    with Objective(task) as objective:
        each = [scale * float(p.detach().abs().max()) for p in objective.parameters]
    return Largest(value=max(each), error=0.25, bad=float("nan"), each=np.array(each))


@measurement("stopped", default=False, order=90)
def stopped(task, *, seed=0, progress=False) -> Largest:
    """Waits to be stopped."""
    number = os.environ.get("SIGNAL_MYSELF")
    if number:
        os.kill(os.getpid(), int(number))
    Path("waiting").touch()
    time.sleep(60)
    raise AssertionError("nobody stopped it")


@measurement("gauss_newton", default=False)
def gauss_newton(task, *, seed=0, progress=False) -> Largest:
    """One Gauss-Newton product."""
    A = GaussNewton(task)
    v = torch.ones(A.shape[0]) / A.shape[0] ** 0.5
    return Largest(value=float(v @ (A @ v)), error=0.0, bad=0.0, each=np.zeros(1))


@measurement("crash", default=False, order=95)
def crash(task, *, seed=0, progress=False) -> Largest:
    """Has a bug."""
    raise ZeroDivisionError("by\\nzero")


@task
def tiny():
    return _tiny()


@task
def own_loss():
    return _own_loss()
'''


def train(seed: int, hidden: int = 8, steps: int = 60) -> nn.Module:
    """Return a net of `TASKS` after a few steps; other seeds end in other weights."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def enter(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go into a folder; measurements and kinds of Results that its task files register are forgotten afterwards."""
    monkeypatch.chdir(folder)
    registry.measurements()  # the built-in ones stay registered when the copies go
    monkeypatch.setattr(registry, "_MEASUREMENTS", dict(registry._MEASUREMENTS))
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))


def build(folder: Path) -> None:
    """Fill the folder; it must be the current one, because a checkpoint names its task from there."""
    (folder / "tasks.py").write_text(TASKS)
    (folder / "measures.py").write_text(MEASURES)
    model = train(0)
    save_checkpoint("tiny.pt", model, task="tasks.py:tiny", step=60, epoch=3, lr=0.5, schedule="constant")
    save_checkpoint("other.pt", train(7), task="tasks.py:tiny", step=60, lr=0.5, schedule="cosine")
    save_checkpoint("mine.pt", model, task="measures.py:tiny")
    torch.save(model.state_dict(), "plain.pt")


def landscape(*arguments: Any) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="landscape")


def done(*arguments: Any) -> str:
    """Run the command line, expect success, and return what it prints on stdout."""
    result = landscape(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def results(*arguments: Any) -> list[dict[str, Any]]:
    """Run `landscape probe --json` and return its results."""
    shown = json.loads(done("probe", *arguments, "--json"))
    assert shown["schema"] == 1
    return shown["results"]
