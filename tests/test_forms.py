"""In which form data come: told where it is certain, refused with the ways out where a list could be two things."""

from __future__ import annotations

import dataclasses
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from landscape import Objective, Task
from landscape.errors import TaskError
from landscape.forms import form_of
from landscape.probes.sweep.batches import Batches

Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass
class Rows:
    x: torch.Tensor
    y: torch.Tensor


class Numbered(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return torch.full((3,), float(i)), i % 2


class Stream(IterableDataset):
    def __iter__(self):
        yield from (Numbered()[i] for i in range(6))


class Moving:
    def __init__(self, x):
        self.x = x

    def to(self, device):
        return Moving(self.x.to(device))


def t(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def ints(*shape):
    return torch.zeros(shape, dtype=torch.int64)


# ------------------------------------------------------------------------------------------- what is certain

CERTAIN = {
    "tensors": ((t(6, 3), ints(6)), "columns"),
    "arrays": ((np.ones((6, 3)), np.zeros(6)), "columns"),
    "a mapping of tensors": ({"x": t(6, 3), "y": ints(6)}, "columns"),
    "a loader": (DataLoader(Numbered()), "loader"),
    "a data set": (Numbered(), "samples"),
    "a tensor data set": (TensorDataset(t(6, 3)), "samples"),
    "a stream": (Stream(), "stream"),
    "an iterator": (iter([(t(2, 3), ints(2))] * 2), "batches"),
    "samples with a number": ([(t(3), 0), (t(3), 1)], "samples"),
    "samples with a scalar": ([(t(3, 8, 8), torch.tensor(0))] * 2, "samples"),
    "samples with NumPy's number": ([(t(3), np.int64(0)), (t(3), np.int64(1))], "samples"),
    "samples in dicts": ([{"x": t(3), "y": 0}, {"x": t(3), "y": 1}], "samples"),
    "samples in dataclasses": ([Rows(t(3), torch.tensor(0))] * 2, "samples"),
    "a tuple of samples": (((t(3), 0), (t(3), 1)), "samples"),
    "numbers": ([torch.tensor(1.0), torch.tensor(2.0)], "samples"),
    "equal batches": ([(t(4, 3), ints(4))] * 3, "list"),
    "as many batches as rows": ([(t(4, 3), ints(4))] * 4, "list"),
    "batches and a smaller one": ([(t(4, 3), ints(4)), (t(2, 3), ints(2))], "list"),
    "lists as batches": ([[t(4, 3), ints(4)], [t(4, 3), ints(4)]], "list"),
    "named tuples": ([Pair(t(4, 3), ints(4))] * 2, "list"),
    "dataclasses": ([Rows(t(4, 3), ints(4))] * 2, "list"),
    "dicts": ([{"x": t(4, 3), "y": ints(4)}] * 2, "list"),
    "dicts with an entry more": ([{"x": t(4, 3), "y": ints(4)}, {"x": t(4, 3), "m": t(4, 1), "y": ints(4)}], "list"),
    "token batches": ([{"input_ids": ints(2, 5), "labels": ints(2, 5)}] * 2, "list"),
    "ids alone, a smaller batch last": ([ints(4, 5), ints(4, 5), ints(2, 5)], "list"),
    "texts and their labels": ([{"text": ["a", "b"], "y": ints(2)}] * 2, "list"),
    "pictures and a dict for each": ([(t(2, 3, 4, 4), [{"boxes": t(5, 4)}, {"boxes": t(5, 4)}])] * 2, "list"),
    "one batch": ([(t(5), t(5))], "list"),
    "one batch that is a tensor": ([t(5)], "list"),
    "graphs of several sizes": ([(t(7, 3), ints(2, 9)), (t(5, 3), ints(2, 4))], "list"),
    "a sparse matrix in each": ([(t(4, 4).to_sparse(), t(4, 3), ints(4), 4)] * 2, "list"),
    "packed sequences": ([(pack_sequence([t(3, 2), t(1, 2)]), ints(2))] * 2, "list"),
    "objects that move": ([Moving(t(3))] * 2, "list"),
    "nothing": ([], "list"),
}


@pytest.mark.parametrize("name", list(CERTAIN))
def test_what_is_certain_is_told(name):
    data, expected = CERTAIN[name]
    assert form_of(data) == expected


# ------------------------------------------------------------------------------------------- what is not

X, Y = torch.arange(24.0).view(8, 3), torch.arange(8) % 2

AMBIGUOUS = {
    "all samples' tensors in a list": ([X, Y], "2 items that hold (8, 3), then (8,): is each a batch, or all samples'"),
    "two tensors alike": ([X, X], "2 items that each hold (8, 3): is each a batch, one sample, or all samples'"),
    "tensors of one shape": ([t(28, 28)] * 10, "10 items that each hold (28, 28): is each a batch, one sample, or"),
    "arrays of one shape": ([np.ones((28, 28))] * 10, "10 items that each hold (28, 28)"),
    "vectors": ([t(5), t(5), t(5)], "3 items that each hold (5,): is each a batch of numbers, or one sample?"),
    "vectors of two lengths": ([ints(5), ints(3)], "2 items that hold (5,), then (3,): is each a batch of numbers"),
    "pairs of vectors": ([(t(5), t(5))] * 4, "4 items that each hold (5,) and (5,): is each a batch of numbers, or"),
    "vectors and one-hot labels": ([(t(5), t(3))] * 4, "4 items that each hold (5,) and (3,)"),
    "tokens of each text": (
        [{"input_ids": ints(7), "labels": ints(7)}, {"input_ids": ints(5), "labels": ints(5)}],
        "(7,)",
    ),
    "tokens in lists": ([{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 2, "each hold (3,) and (3,)"),
    "pictures and one-hot labels": ([(t(3, 8, 8), t(10))] * 4, "(3, 8, 8) and (10,): is each a batch whose entries"),
    "pictures and a nested label": ([(t(3, 8, 8), {"y": torch.tensor(1)})] * 4, "(3, 8, 8) and (): is each a batch"),
    "inputs in a dict, labels": (({"a": X, "b": X}, Y), "a tuple of 2 items that hold (8, 3) and (8, 3), then (8,)"),
    "inputs in a pair, labels": (((X, X), Y), "a tuple of 2 items that hold (8, 3) and (8, 3), then (8,)"),
    "inputs of each sample, labels of each": ([[t(2, 3), t(2, 3)], [ints(2), ints(2)]], "(2, 3) and (2, 3), then (2,)"),
}


@pytest.mark.parametrize("name", list(AMBIGUOUS))
def test_what_could_be_two_things_is_refused_with_the_ways_out(name):
    data, said = AMBIGUOUS[name]
    with pytest.raises(TaskError) as refused:
        Task(nn.Linear(3, 2), None, train=data).draw("train")
    text = str(refused.value)
    assert text.startswith("the train data: expected a list of batches or of samples, got a ")
    assert said in text
    for way in ("batch_size=None) for batches", "batch_size=...) for samples", "(X, y)", "[data]"):
        assert way in text
    assert "\n" not in text


@pytest.mark.parametrize("name", list(AMBIGUOUS))
def test_a_sweep_refuses_the_same(name):
    with pytest.raises(TaskError, match="expected a list of batches or of samples"):
        Batches(AMBIGUOUS[name][0], None)


ITEMS = [(x, F.one_hot(y, 3).float()) for x, y in zip(X, Y, strict=True)]


class TestWaysOut:
    """What the refusal names works: the mean is that of the reading that was chosen."""

    def measured(self, data, model, batch_shape):
        shapes = []

        def forward(model, batch):
            shapes.append(tuple(batch[0].shape))
            return model(batch[0]), batch[1]

        with Objective(Task(model, nn.MSELoss(), data, forward=forward)) as objective:
            loss = objective.evaluate().loss
        assert set(shapes) == {batch_shape}
        return loss

    def test_a_list_of_vectors_as_samples_or_as_batches(self):
        torch.manual_seed(0)
        model = nn.Linear(3, 3)
        x, y = (torch.stack(c) for c in zip(*ITEMS, strict=True))
        expected = F.mse_loss(model(x), y).item()
        as_samples = self.measured(DataLoader(ITEMS, batch_size=4), model, (4, 3))
        as_batches = self.measured(DataLoader(ITEMS, batch_size=None), model, (3,))
        assert as_samples == pytest.approx(expected, rel=1e-6)
        assert as_batches == pytest.approx(expected, rel=1e-6)  # of equal weight here: a row of numbers each

    def test_the_tensors_of_all_samples_in_a_tuple_or_as_one_batch(self):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        expected = F.cross_entropy(model(X), Y).item()
        for data in ((X, Y), [[X, Y]], [({"a": X}, Y)]):
            own = (lambda model, b: (model(b[0]["a"]), b[1])) if isinstance(data[0][0], dict) else None
            with Objective(Task(model, nn.CrossEntropyLoss(), data, forward=own)) as objective:
                assert objective.samples == 8
                assert objective.evaluate().loss == pytest.approx(expected, rel=1e-6)

    def test_a_sweep_takes_them(self):
        assert [x.shape for x, _ in Batches(DataLoader(ITEMS, batch_size=4), None).epoch(0)] == [(4, 3)] * 2
        assert [x.shape for x, _ in Batches(DataLoader(ITEMS, batch_size=None), None).epoch(0)] == [(3,)] * 8


@pytest.mark.parametrize("data", [3, "data.csv", object()])
def test_what_is_no_data_is_named(data):
    with pytest.raises(TaskError, match=rf"the train data are a {type(data).__name__}; give a DataLoader"):
        form_of(data, "the train data")


def test_a_mapping_of_anything_else_is_refused():
    with pytest.raises(TaskError, match="a mapping whose values are not tensors"):
        form_of({"x": t(3, 2), "y": [1, 2, 3]})
