"""Whether data change from read to read: augmentation is said, whatever draws it, and nothing else is called so."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from landscape import Objective, Task


class Images(Dataset):
    """(image, label) with something done to each image when it is read."""

    def __init__(self, change=lambda x: x, form=lambda x, y: (x, y)):
        self.x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
        self.change, self.form = change, form

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return self.form(self.change(self.x[i]), int(i % 2))


def notes(data) -> list[str]:
    torch.manual_seed(0)  # the model alone: the draw has a seed of its own
    task = Task(nn.Linear(3, 2), nn.CrossEntropyLoss(), data)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    with Objective(task) as objective:
        found = [n for n in objective.notes if "augmentation" in n]
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1], before[2]) == (random.getstate(), np.random.get_state()[1].tolist())
    return found


def flipped(x):
    return x.flip(-1) if torch.rand(()) < 0.5 else x


CHANGES = {
    "torch": lambda x: x + torch.randn(3),
    "numpy": lambda x: x + float(np.random.rand()),
    "python": lambda x: x * random.random(),
    "flip": flipped,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: d,
        lambda d: DataLoader(d, batch_size=7, shuffle=True),
        lambda d: Subset(d, range(3, 20)),
    ],
    ids=["data set", "loader", "subset"],
)
def test_data_that_change_are_said_to(change, wrap):
    (note,) = notes(wrap(Images(change)))
    assert note.startswith("the train data are random")


@pytest.mark.parametrize(
    "data",
    [
        Images(),
        Images(lambda x: torch.where(x > 0, x, torch.nan).nan_to_num(nan=0.0)),
        DataLoader(Images(), batch_size=4, shuffle=True),
        DataLoader(TensorDataset(torch.randn(9, 3), torch.zeros(9, dtype=torch.long)), batch_size=4),
        [(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))],
        (torch.randn(4, 3), torch.zeros(4, dtype=torch.long)),
    ],
    ids=["data set", "masked", "shuffled", "tensors", "batches", "columns"],
)
def test_data_that_stay_are_not(data):
    assert notes(data) == []


def test_values_that_are_no_number_are_equal_to_themselves():
    from landscape.augmentation import random_sample

    kept = Images(
        lambda x: torch.where(x > 0, x, torch.nan), lambda x, y: {"x": x, "y": x.numpy(), "id": "a", "z": float("nan")}
    )
    assert random_sample(kept) is None
    assert random_sample(Images(flipped, lambda x, y: {"x": [x], "y": y})) is not None
    assert random_sample(Images(lambda x: x, lambda x, y: (x, object()))) is None
