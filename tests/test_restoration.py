"""Every registered measurement leaves the caller's model, gradients, RNG state and flags as they were."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from untouched import State, data, messy

from landscape import Objective, Task, measurements
from landscape.errors import LandscapeError

# Quantiles ask for a task of their own, and for no loss: see below.
NAMES = [name for name in measurements() if name != "quantile_coverage"]


def quick(name: str) -> dict:
    """Return the quick preset, cut down to the smallest that still does everything."""
    registered = measurements()[name]
    small = {"k": 2, "k_smallest": 1, "grid": 3, "points": 3, "draws": 2, "steps": 2, "bins": 3}
    settings = registered.settings("quick")
    return {**settings, **{k: v for k, v in small.items() if k in settings}}


def task_of(model: nn.Module, loss: Callable) -> Task:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # for what is measured against its learning rate
    return Task(model, loss, data(60), data(61), batch_size=16, optimizer=optimizer)


class Bomb:
    """A loss that works until its n-th call, and fails from there on; -1 never fails."""

    def __init__(self, at: int, error: type[BaseException]):
        self.calls, self.at, self.error = 0, at, error

    def __call__(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if 0 <= self.at <= self.calls:
            raise self.error("stop")
        return F.cross_entropy(outputs, target)


@pytest.mark.parametrize("name", NAMES)
def test_after_a_measurement(name):
    model = messy()
    task = task_of(model, nn.CrossEntropyLoss())
    before = State(model)
    result = measurements()[name].run(task, seed=0, progress=False, **quick(name))
    before.unchanged()
    assert result.status == "complete"
    assert result.variables()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("name", NAMES)
def test_after_an_exception_in_its_middle(name, error):
    counting = Bomb(-1, error)
    run = measurements()[name].run
    run(task_of(messy(), counting), seed=0, progress=False, **quick(name))
    assert counting.calls > 2, "this measurement never calls the loss: the test below would show nothing"
    model = messy()
    # How many calls there are hangs on what is timed on the way, and trials of other ways pass over a failure.
    loss = Bomb(max(2, 2 * counting.calls // 3), error)
    task = task_of(model, loss)
    before = State(model)
    with pytest.raises((LandscapeError, KeyboardInterrupt)):
        run(task, seed=0, progress=False, **quick(name))
    assert loss.calls >= loss.at
    before.unchanged()


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_after_a_measurement_of_quantiles_and_an_exception_in_its_middle(error):
    model = messy()
    calls = [0]

    def forward(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        calls[0] += 1
        if error is not None and calls[0] == 3:
            raise error("stop")
        return model(batch[0])[:, :3], batch[1].double()

    task = Task(model, None, data(60), data(61), batch_size=16, forward=forward)
    before = State(model)
    run = measurements()["quantile_coverage"].run
    raising = contextlib.nullcontext() if error is None else pytest.raises((LandscapeError, KeyboardInterrupt))
    with raising:
        run(task, seed=0, progress=False, levels="0.1+0.5+0.9")
    assert calls[0] == 3 if error else calls[0] > 3
    before.unchanged()


def test_a_graph_that_was_made_before_still_goes_backward():
    model = messy().eval()
    x, y = data(8)
    x = x.to(next(model.parameters()).dtype)
    expected = torch.autograd.grad(
        F.cross_entropy(model(x), y), [p for p in model.parameters() if p.requires_grad], allow_unused=True
    )
    loss = F.cross_entropy(model(x), y)
    measurements()["eigenvalues"].run(task_of(model, nn.CrossEntropyLoss()), seed=0, **quick("eigenvalues"))
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("rng", ["refuse", "fixed"])
def test_a_device_that_was_not_used_yet_keeps_the_callers_seed_for_its_first_use(monkeypatch, rng):
    kept: list[int] = []  # what torch holds until the device is used first: the last one counts
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", kept.append)
    torch.manual_seed(11)
    task = Task(nn.Linear(5, 3), nn.CrossEntropyLoss(), data(60), device="cpu", rng=rng)
    with Objective(task) as objective:
        objective.gradient()
    assert len(kept) > 1, "nothing was seeded: this shows nothing"
    assert kept[-1] == 11
