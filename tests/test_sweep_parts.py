"""What a sweep tries before it trains: whose fault a failure on the first batch is said to be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from landscape import Task
from landscape.errors import TrainingError
from landscape.probes.sweep.grid import Cell
from landscape.probes.sweep.parts import make_parts, try_loss


class Doubling(nn.Linear):
    """Changes in place what its own backward pass needs."""

    def forward(self, input: Tensor) -> Tensor:
        found = super().forward(input).exp()
        found.mul_(2)
        return found


def narrow(outputs: Tensor, target: Tensor) -> Tensor:
    return (outputs @ torch.ones(7)).mean()


def faulty(outputs: Tensor, target: Tensor) -> Tensor:
    return {}["a key that a typing mistake asks for"]


def tried(model: nn.Module, loss) -> None:
    x, y = torch.randn(12, 4), torch.zeros(12, dtype=torch.long)
    task = Task(model, loss, (x, y)) if not isinstance(loss, str) else Task(model, nn.CrossEntropyLoss(), (x, y))
    try_loss(make_parts(Cell(loss=loss if isinstance(loss, str) else "", batch_size=4, epochs=1), task))


def test_what_fits():
    tried(nn.Linear(4, 3), "focal")
    tried(nn.Linear(4, 3), nn.CrossEntropyLoss())


@pytest.mark.parametrize("loss", ["focal", nn.CrossEntropyLoss()], ids=["of the sweep", "of the task"])
def test_the_models_own_failure_is_not_the_losss(loss):
    with pytest.raises(
        TrainingError, match=r"^the model fails on the first batch: RuntimeError: mat1 and mat2"
    ) as caught:
        tried(nn.Linear(9, 3), loss)
    assert "doesn't fit" not in str(caught.value)


def test_a_loss_that_does_not_fit_is_told_by_its_name():
    with pytest.raises(
        TrainingError, match=r"^the task's loss narrow doesn't fit the task: RuntimeError: size mismatch"
    ):
        tried(nn.Linear(4, 3), narrow)


def test_a_backward_pass_that_fails_is_told_as_one():
    with pytest.raises(TrainingError, match=r"has no gradient through the model: RuntimeError: one of the variables"):
        tried(Doubling(4, 3), nn.CrossEntropyLoss())


def test_a_mistake_inside_a_loss_is_shown_whole():
    with pytest.raises(KeyError, match="typing mistake"):
        tried(nn.Linear(4, 3), faulty)


def test_buffers_and_the_mode_are_put_back_after_a_failure():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    with pytest.raises(TrainingError):
        tried(model, narrow)
    assert not model.training
    assert torch.equal(torch.as_tensor(model[0].running_mean), torch.zeros(4))
