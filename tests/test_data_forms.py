"""The data of a task in every form that people have: drawn, cut into batches, and refused where it is unclear."""

from __future__ import annotations

import random
from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from untouched import data, net

from landscape import Objective, Task
from landscape.errors import TaskError

Pair = namedtuple("Pair", ["x", "y"])


class Rows(Dataset):
    def __init__(self, n: int = 23):
        self.x, self.y = data(n)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int):
        return self.x[i], self.y[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*data(), strict=True)


class TestFormsOfData:
    @pytest.mark.parametrize(
        "form",
        [
            lambda x, y: (x, y),
            lambda x, y: (x.numpy(), y.numpy()),
            lambda x, y: TensorDataset(x, y),
            lambda x, y: [(a, int(b)) for a, b in zip(x, y, strict=True)],
            lambda x, y: list(zip(x, y, strict=True)),
            lambda x, y: Rows(),
            lambda x, y: Stream(),
            lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4),
            lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True),
            lambda x, y: DataLoader(Stream(), batch_size=4),
            lambda x, y: [(x[:5], y[:5]), (x[5:], y[5:])],
            lambda x, y: [[x[:5], y[:5]], [x[5:], y[5:]]],
            lambda x, y: [Pair(x[:5], y[:5]), Pair(x[5:], y[5:])],
            lambda x, y: iter([(x[:5], y[:5]), (x[5:], y[5:])]),
            lambda x, y: ((a, b) for a, b in [(x[:5], y[:5]), (x[5:], y[5:])]),
        ],
    )
    def test_each_gives_the_same_mean(self, form):
        model, (x, y) = net(), data()
        with Objective(Task(model, nn.CrossEntropyLoss(), form(x, y))) as objective:
            assert objective.samples == 23
            loss = objective.evaluate().loss
        assert loss == pytest.approx(F.cross_entropy(model.eval()(x), y).item(), rel=1e-12)

    def test_a_mapping_of_columns_and_dict_batches(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(5, 3).double()

            def forward(self, x, y):
                return self.lin(x)

        x, y = data()
        losses = []
        for form in ({"x": x, "y": y}, [{"x": x[:5], "y": y[:5]}, {"x": x[5:], "y": y[5:]}]):
            torch.manual_seed(0)
            task = Task(Net(), lambda o, b: F.cross_entropy(o, b["y"]), form)
            with Objective(task) as objective:
                found = objective.evaluate(accuracy=True)
            assert 0 <= found.accuracy <= 1
            losses.append(found.loss)
        assert losses[0] == pytest.approx(losses[1], rel=1e-13)

    def test_a_generator_is_drawn_once_and_kept(self):
        task = Task(net(), nn.CrossEntropyLoss(), ((a, b) for a, b in [data(8), data(9)]))
        first = task.draw("train")
        assert task.draw("train") is first
        assert task.draw("train", seed=5).samples == 17

    @pytest.mark.parametrize("form", ["columns", "loader", "dataset", "list"])
    def test_a_subset_is_drawn_with_the_seed_without_replacement(self, form):
        x = torch.arange(100).double()[:, None].expand(100, 5).contiguous()
        y = (torch.arange(100) * 3 // 100).long()
        source = {
            "columns": (x, y),
            "loader": DataLoader(TensorDataset(x, y), batch_size=8),
            "dataset": TensorDataset(x, y),
            "list": list(zip(x.split(8), y.split(8), strict=True)),
        }[form]
        task = Task(net(), nn.CrossEntropyLoss(), source, max_samples=30)

        def rows(draw):
            return torch.cat([b[0][:, 0] for b in draw.batches]).tolist()

        a, b, c = (rows(task.draw("train", seed=s)) for s in (0, 0, 1))
        assert a == b != c
        assert len(set(a)) == 30
        # Not the first 30: those of a data set stored by class would all be of class 0.
        assert max(a) > 60
        assert "30 of 100 train samples, drawn with seed 0" in task.draw("train").notes

    def test_a_sampler_of_the_users_own_is_followed(self):
        sampler = WeightedRandomSampler([1.0] * 3 + [0.0] * 20, 10)
        task = Task(net(), nn.CrossEntropyLoss(), DataLoader(TensorDataset(*data()), sampler=sampler, batch_size=5),
                    max_samples=7)  # fmt: skip
        draw = task.draw("train")
        assert draw.samples == 7
        allowed = {row.item() for row in data()[0][:3, 0]}
        assert {row.item() for b in draw.batches for row in b[0][:, 0]} <= allowed
        assert "in their own order" in draw.notes[0]

    def test_what_a_sampler_leaves_out_or_repeats_is_said(self):
        dataset = TensorDataset(*data(50))

        def drawn(max_samples=None, **settings):
            loader = DataLoader(dataset, **settings)
            draw = Task(net(), nn.CrossEntropyLoss(), loader, max_samples=max_samples).draw("train")
            return draw.samples, draw.available, draw.notes

        half = SubsetRandomSampler(range(20))
        gives = "the train loader's SubsetRandomSampler gives 20 of its data set's 50 samples"
        assert drawn(batch_size=8, sampler=half) == (20, 20, (gives,))
        few = drawn(10, batch_size=8, sampler=half)
        assert (few[:2], few[2][-1]) == ((10, 20), gives)
        dropped = drawn(batch_size=8, sampler=half, drop_last=True)
        assert "drops its last 4 samples" in dropped[2][1]
        assert drawn(batch_sampler=[[0, 1, 2], [3, 4]])[:2] == (5, 5)
        again = drawn(batch_size=8, sampler=WeightedRandomSampler([1.0] * 50, 50))
        assert again[:2] == (50, None)  # no split of 50 samples: draws from a source without end
        assert "WeightedRandomSampler draws with replacement" in again[2][0]
        assert drawn(batch_size=8, shuffle=True) == (50, 50, ())

    def test_single_samples_are_not_taken_for_batches_of_their_numbers(self):
        dataset = TensorDataset(*data(20))
        with pytest.raises(
            TaskError, match=r"give single samples .* where batch_size=None means batches: give the data"
        ):
            Task(net(), nn.CrossEntropyLoss(), DataLoader(dataset, batch_size=None)).draw("train")
        with pytest.raises(TaskError, match="where an iterable means batches"):
            Task(net(), nn.CrossEntropyLoss(), (sample for sample in dataset)).draw("train")
        batches = DataLoader(list(zip(*(t.split(8) for t in data(20)), strict=True)), batch_size=None)
        assert Task(net(), nn.CrossEntropyLoss(), batches).draw("train").samples == 20

    def test_batches_stay_whole_without_rebatching(self):
        batches = [(torch.randn(6, 5).double(), torch.randint(3, (6,))) for _ in range(5)]
        task = Task(net(), nn.CrossEntropyLoss(), batches, max_samples=15, rebatch=False)
        assert task.draw("train").sizes == (6, 6)

    def test_the_fingerprint_follows_the_data(self):
        x, y = data()
        prints = [
            Task(net(), None, d).draw("train").fingerprint for d in ((x, y), (x, y), (x + 1e-9, y), (x, y.flip(0)))
        ]
        assert prints[0] == prints[1]
        assert len(set(prints)) == 3

    def test_shuffling_and_augmentation_are_drawn_once(self):
        class Noisy(Rows):
            def __getitem__(self, i):
                return self.x[i] + torch.randn(5).double() * random.random() * np.random.rand(), self.y[i]

        loader = DataLoader(Noisy(), batch_size=5, shuffle=True)
        losses = []
        for _ in range(2):
            torch.manual_seed(random.randrange(1000))
            with Objective(Task(net(), nn.CrossEntropyLoss(), loader)) as objective:
                losses += [objective.evaluate().loss, objective.evaluate().loss]
        assert len(set(losses)) == 1

    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            ([], "empty"),
            ((torch.zeros(0, 5), torch.zeros(0).long()), "empty"),
            (iter([]), "empty"),
            (DataLoader(TensorDataset(torch.zeros(0, 5), torch.zeros(0)), batch_size=2), "empty"),
            ((torch.zeros(4, 5), torch.zeros(3).long()), "different lengths"),
            (7, "give a DataLoader"),
            ({"x": 1}, "mapping"),
        ],
    )
    def test_bad_data_are_one_line(self, bad, said):
        with pytest.raises(TaskError, match=said) as error:
            Task(net(), nn.CrossEntropyLoss(), bad).draw("train")
        assert "\n" not in str(error.value)

    def test_a_dataset_that_fails_is_named(self):
        class Broken(Rows):
            def __getitem__(self, i):
                raise OSError("no such image")

        with pytest.raises(TaskError, match=r"train data failed while being read: OSError: no such image"):
            Task(net(), nn.CrossEntropyLoss(), Broken()).draw("train")

    def test_a_label_outside_the_classes_is_told_with_what_there_may_be(self):
        x, y = torch.randn(6, 3, 2, 2), torch.full((6, 2, 2), 255)
        y[:, 0, 0] = torch.tensor([0, 4, 1, 2, 3, 0])
        loss = nn.CrossEntropyLoss(ignore_index=255)
        said = r"labels of 4 classes run from 0 to 3, these from 0 to 4 \(but for 255"
        with pytest.raises(TaskError, match=said):
            Objective(Task(nn.Conv2d(3, 4, 1), loss, (x, y))).__enter__()

    def test_a_split_that_is_not_there(self):
        with pytest.raises(TaskError, match=r"has no 'test' data \(it has: train\)"):
            Objective(Task(net(), nn.CrossEntropyLoss(), data()), "test")
