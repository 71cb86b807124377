"""Batches of packed sequences, and of classes that move themselves: every tensor is seen, placed and measured."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence, unpack_sequence
from torch.utils.data import DataLoader

from landscape import GaussNewton, Hessian, Objective, Task, eigenpairs, sampling_error, trace
from landscape.batch import batch_size_of, bytes_of, fingerprint, join, map_tensors, pick, stays_whole, tensors_of
from landscape.batch import to_device as place
from landscape.errors import MeasurementError
from landscape.probes.inspection import inspect_task

LENGTHS = (3, 7, 1, 5, 5, 2, 6, 4)
CLOSE = 1e-10
HOST, ELSEWHERE = torch.device("cpu"), torch.device("meta")


def sequences(dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, generator=g).to(dtype) for n in LENGTHS], torch.arange(len(LENGTHS)) % 3


def packed(dtype: torch.dtype = torch.float64) -> tuple[PackedSequence, torch.Tensor]:
    found, y = sequences(dtype)
    return pack_sequence(found, enforce_sorted=False), y


class Recurrent(nn.Module):
    """Classifies each sequence by the last hidden state."""

    def __init__(self, kind: type[nn.Module] = nn.GRU):
        super().__init__()
        torch.manual_seed(1)
        self.net, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        hidden = self.net(x)[1]
        return self.head((hidden[0] if isinstance(hidden, tuple) else hidden)[-1])


def one_by_one(model: Recurrent) -> torch.Tensor:
    """Return the logits of each sequence, run alone and never packed."""
    return torch.cat([model(s[None]) for s in sequences(next(model.parameters()).dtype)[0]])


def task(data, model: nn.Module | None = None, **settings) -> Task:
    return Task(model or Recurrent().double(), nn.CrossEntropyLoss(), data, data, **settings)


class TestPackedNumbers:
    @pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
    def test_loss_and_gradient_are_those_of_each_sequence_alone(self, kind):
        model = Recurrent(kind).double()
        logits, y = one_by_one(model), packed()[1]
        expected = F.cross_entropy(logits, y)
        slopes = torch.autograd.grad(expected, list(model.parameters()))
        with Objective(task([packed()], model)) as objective:
            found = objective.evaluate(accuracy=True, stderr=True)
            assert objective.samples == len(LENGTHS)
            for a, b in zip(objective.gradient(), slopes, strict=True):
                assert torch.allclose(a, b, rtol=0, atol=CLOSE)
        assert found.loss == pytest.approx(expected.item(), rel=CLOSE)
        assert found.accuracy == (logits.argmax(1) == y).double().mean().item()
        assert found.stderr == pytest.approx(F.cross_entropy(logits, y, reduction="none").std().item() / 8**0.5)

    def test_the_hessian_is_the_dense_one(self):
        model, y = Recurrent().double(), packed()[1]
        names = [n for n, _ in model.named_parameters()]
        shapes = [p.shape for p in model.parameters()]

        def loss(flat):
            parts = flat.split([s.numel() for s in shapes])
            state = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
            logits = [torch.func.functional_call(model, state, (s[None],)) for s in sequences()[0]]
            return F.cross_entropy(torch.cat(logits), y)

        flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        dense = torch.autograd.functional.hessian(loss, flat)
        with Hessian(task([packed()], model)) as h:
            made = h @ torch.eye(len(flat), dtype=torch.float64)
        assert torch.allclose(made, dense, rtol=0, atol=CLOSE)
        found = eigenpairs(Hessian(task([packed()], model)), k=2, tol=1e-8)
        assert found.values == pytest.approx(torch.linalg.eigvalsh(dense).flip(0)[:2].numpy(), rel=1e-8)

    def test_float32_batches_are_measured_in_float64(self):
        made = task([packed(torch.float32)], Recurrent(), dtype=torch.float64)
        with Objective(made) as objective:
            x, _ = objective.batch(0)
            assert isinstance(x, PackedSequence)
            assert x.data.dtype == torch.float64
            assert x.batch_sizes.dtype == x.sorted_indices.dtype == torch.int64
            loss = objective.evaluate().loss
        wide = Recurrent().double()
        logits = torch.cat([wide(s.double()[None]) for s in sequences(torch.float32)[0]])
        assert loss == pytest.approx(F.cross_entropy(logits, packed()[1]).item(), rel=CLOSE)

    @pytest.mark.parametrize("regroup", [1, 3])
    def test_sequences_are_regrouped(self, regroup):
        found, y = sequences()
        two = [(pack_sequence(found[a:b], enforce_sorted=False), y[a:b]) for a, b in ((0, 5), (5, 8))]
        model = Recurrent().double()
        with Objective(task(two, model), regroup=regroup) as objective:
            assert objective.largest == regroup
            assert len(objective) == -(-8 // regroup)
            expected = F.cross_entropy(one_by_one(model), y).item()
            assert objective.evaluate().loss == pytest.approx(expected, rel=CLOSE)

    def test_a_smaller_draw_takes_whole_sequences(self):
        model = Recurrent().double()
        made = task([packed()], model, max_samples=4)
        ((x, y),) = made.draw("train").batches
        each = F.cross_entropy(one_by_one(model), packed()[1], reduction="none")
        taken = [next(i for i, t in enumerate(sequences()[0]) if torch.equal(s, t)) for s in unpack_sequence(x)]
        assert len(set(taken)) == 4
        assert y.tolist() == [i % 3 for i in taken]
        with Objective(made) as objective:
            assert objective.evaluate().loss == pytest.approx(each[taken].mean().item(), rel=CLOSE)

    def test_parts_of_the_draw_are_sequences(self):
        assert sampling_error(task([packed()]), "trace").samples == 8

    def test_padded_and_packed_inside_the_forward_are_the_same(self):
        found, y = sequences()
        lengths, padded = torch.tensor(LENGTHS), pad_sequence(found, batch_first=True)

        def forward(model, batch):
            x, n, target = batch
            return model(nn.utils.rnn.pack_padded_sequence(x, n.cpu(), batch_first=True, enforce_sorted=False)), target

        model = Recurrent().double()
        a = trace(Hessian(task([(padded, lengths, y)], model, forward=forward)), draws=4)
        b = trace(Hessian(task([packed()], model)), draws=4)
        assert a.value == pytest.approx(b.value, rel=CLOSE)

    def test_gauss_newton_goes_through_packed_outputs(self):
        class Tagger(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(1)
                self.net, self.head = nn.GRU(3, 4), nn.Linear(4, 3)

            def forward(self, x):
                steps = self.net(x)[0]
                return steps._replace(data=self.head(steps.data))

        model, x = Tagger().double(), packed()[0]
        tags = x._replace(data=torch.arange(len(x.data)) % 3)

        def mean(outputs, target):
            return F.cross_entropy(outputs.data, target.data), len(target.data)

        products = []
        flat = Task(
            model,
            nn.CrossEntropyLoss(),
            [(x, tags)],
            forward=lambda model, batch: (model(batch[0]).data, batch[1].data),
        )
        for made in (Task(model, mean, [(x, tags)]), flat):
            with GaussNewton(made) as g:
                products.append(g @ torch.eye(g.shape[0], dtype=torch.float64))
        assert products[0].abs().max() > 0
        assert torch.allclose(*products, rtol=0, atol=CLOSE)


class TestPackedHandling:
    def test_every_tensor_is_seen(self):
        x, y = packed()
        assert [id(t) for t in tensors_of({"in": (x,), "y": y})] == [id(t) for t in (*x, y)]
        assert bytes_of(x) == sum(t.numel() * t.element_size() for t in x)
        assert batch_size_of((x, y)) == batch_size_of(x) == len(LENGTHS)
        assert batch_size_of((x, torch.arange(2))) is None
        already = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])  # without indices of an order
        assert [t.shape[0] for t in tensors_of(already)] == [4, 3]
        assert map_tensors(already, torch.clone).sorted_indices is None

    def test_a_copy_shares_nothing(self):
        x, _ = packed()
        other = map_tensors(x, torch.clone)
        assert isinstance(other, PackedSequence)
        assert all(torch.equal(a, b) and a is not b for a, b in zip(other, x, strict=True))

    def test_sizes_stay_on_the_host(self):
        x, y = place(packed(), ELSEWHERE, torch.float32)
        assert {t.device.type for t in (x.data, x.sorted_indices, x.unsorted_indices, y)} == {"meta"}
        assert x.batch_sizes.device == HOST
        assert x.data.dtype == torch.float32

    def test_what_was_made_in_inference_mode_can_be_differentiated(self):
        with torch.inference_mode():
            batch = packed()
        with Objective(task([batch])) as objective:
            assert all(bool(g.isfinite().all()) for g in objective.gradient())

    @pytest.mark.parametrize("index", [torch.tensor([6, 0, 2]), slice(2, 7)])
    def test_sequences_are_picked_in_their_own_order(self, index):
        x, y = pick(packed(), index, 8)
        wanted = list(range(8))[index] if isinstance(index, slice) else index.tolist()
        for found, i in zip(unpack_sequence(x), wanted, strict=True):
            assert torch.equal(found, sequences()[0][i])
        assert torch.equal(y, packed()[1][index])

    def test_packs_are_joined(self):
        x, _ = packed()
        halves = [pick(x, slice(0, 3), 8), pick(x, slice(3, 8), 8)]
        for found, s in zip(unpack_sequence(join(halves, [3, 5])), sequences()[0], strict=True):
            assert torch.equal(found, s)
        with pytest.raises(ValueError, match="different shapes"):
            join([halves[0], halves[1]._replace(data=halves[1].data[:, :2])], [3, 5])
        with pytest.raises(ValueError, match="can't be joined"):
            join([halves[0], halves[1]], [3, 4])

    def test_the_fingerprint_follows_values_lengths_and_order(self):
        found, _ = sequences()
        x = pack_sequence(found, enforce_sorted=False)
        other = found[0].clone()
        other[0, 0] += 1e-15
        changes = [
            [other, *found[1:]],
            [found[0][:2], *found[1:]],
            [found[1], found[0], *found[2:]],
        ]
        prints = {fingerprint([pack_sequence(c, enforce_sorted=False)]) for c in changes}
        assert len(prints | {fingerprint([x])}) == 4
        assert fingerprint([pack_sequence(found, enforce_sorted=False)]) == fingerprint([x])


# ------------------------------------------------------------------------------------------- classes that move


class Molecule:
    """A batch class of somebody's own: tensors in attributes and containers, moved in place by itself."""

    def __init__(self, x, y, edges):
        self.x, self.held, self.name = x, {"edges": [edges], "y": y}, "caffeine"

    def to(self, device):
        self.x = self.x.to(device)
        self.held["edges"] = [e.to(device) for e in self.held["edges"]]
        self.held["y"] = self.held["y"].to(device)
        return self


class Slotted:
    __slots__ = ("held", "x")

    def __init__(self, x, y, edges):
        self.x, self.held = x, {"edges": [edges], "y": y}

    def to(self, device):
        return Slotted(self.x.to(device), self.held["y"].to(device), self.held["edges"][0].to(device))


class Forgetful(Molecule):
    """Moves itself as a list is sorted: returns nothing."""

    def to(self, device):
        super().to(device)


class Atom:
    def __init__(self, molecule):
        self.molecule = molecule

    def to(self, device):
        return self


class Linked(Molecule):
    """What it holds leads back to it."""

    def __init__(self, x, y, edges):
        super().__init__(x, y, edges)
        self.first = Atom(self)


class Geometric:
    """As PyTorch Geometric's: `apply` on every tensor, `to_dict` of what is held."""

    def __init__(self, x, y, edges):
        self.__dict__["_store"] = {"x": x, "edges": edges, "y": y}

    def __copy__(self):
        return Geometric(**self._store)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__["_store"][name]

    def to_dict(self):
        return dict(self._store)

    def apply(self, change):
        for k, v in self._store.items():
            self._store[k] = change(v)
        return self

    def to(self, device):
        return self.apply(lambda t: t.to(device))


KINDS = (Molecule, Slotted, Forgetful, Linked, Geometric)


def molecule(kind, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(0)
    return kind(torch.randn(6, 3, generator=g).to(dtype), torch.arange(6) % 2, torch.tensor([[0, 1, 2], [3, 4, 5]]))


def labels(batch):
    return batch.y if isinstance(batch, Geometric) else batch.held["y"]


def edges(batch):
    return batch.edges if isinstance(batch, Geometric) else batch.held["edges"][0]


def forward(model, batch):
    a, b = edges(batch)
    return model(batch.x.index_add(0, a, batch.x[b])), labels(batch)


@pytest.mark.parametrize("kind", KINDS)
class TestObjects:
    def test_every_tensor_is_seen(self, kind):
        batch = molecule(kind)
        seen = {id(t) for t in tensors_of([{"graph": batch}])}
        assert seen == {id(batch.x), id(labels(batch)), id(edges(batch))}
        assert bytes_of(batch) == 6 * 3 * 8 + 6 * 8 + 6 * 8

    def test_placing_moves_every_tensor_of_a_copy(self, kind):
        batch = molecule(kind, torch.float32)
        before, held = fingerprint([batch]), (batch.x, labels(batch), edges(batch))
        moved = place(batch, ELSEWHERE, torch.float64)
        assert type(moved) is kind
        assert {t.device.type for t in tensors_of(moved)} == {"meta"}
        assert (moved.x.dtype, labels(moved).dtype, edges(moved).dtype) == (torch.float64, torch.int64, torch.int64)
        assert all(a is b for a, b in zip((batch.x, labels(batch), edges(batch)), held, strict=True))
        assert fingerprint([batch]) == before

    def test_the_fingerprint_follows_each_tensor(self, kind):
        prints = set()
        for change in (None, "x", "y", "edges"):
            batch = molecule(kind)
            {None: batch.x, "x": batch.x, "y": labels(batch), "edges": edges(batch)}[change].add_(change is not None)
            prints.add(fingerprint([batch]))
        assert len(prints) == 4

    def test_it_is_measured_as_its_tensors_in_a_dict(self, kind):
        torch.manual_seed(0)
        model, found = nn.Linear(3, 2).double(), []
        batch = molecule(kind)
        held = {"x": batch.x, "edges": edges(batch), "y": labels(batch)}

        def of_dict(model, b):
            return model(b["x"].index_add(0, b["edges"][0], b["x"][b["edges"][1]])), b["y"]

        for data, own in ((batch, forward), (held, of_dict)):
            with (
                Objective(Task(model, nn.CrossEntropyLoss(), [data], forward=own)) as objective,
                Hessian(objective) as h,
            ):
                found.append((objective.evaluate(accuracy=True), h @ torch.ones(8, dtype=torch.float64)))
        assert found[0][0] == dataclasses.replace(found[1][0], samples=1)
        assert torch.equal(found[0][1], found[1][1])

    def test_a_forward_may_write_into_it(self, kind):
        def writing(model, batch):
            batch.x.mul_(2.0)
            return forward(model, batch)

        batch = molecule(kind)
        before = fingerprint([batch])
        with Objective(Task(nn.Linear(3, 2).double(), nn.CrossEntropyLoss(), [batch], forward=writing)) as objective:
            assert objective.copies
            assert objective.evaluate().loss == objective.evaluate().loss
        assert fingerprint([batch]) == before

    def test_a_loader_of_them_that_is_taken_whole_is_not_said_to_be_a_part(self, kind):
        """They count as one sample each, whatever they hold: four here, for eight that were all taken."""
        loader = DataLoader(range(8), batch_size=2, collate_fn=lambda pair: molecule(kind))
        task = Task(nn.Linear(3, 2).double(), nn.CrossEntropyLoss(), loader, forward=forward)
        for limit in (None, 8, 1024):
            draw = task.replace(max_samples=limit).draw("train")
            assert (len(draw.batches), draw.notes) == (4, ())
        assert "of 8 train samples, drawn with seed 0" in task.replace(max_samples=3).draw("train").notes[0]

    def test_it_is_never_cut(self, kind):
        batch = molecule(kind)
        assert batch_size_of(batch) is None
        assert batch_size_of((batch, torch.arange(6))) == 6
        assert kind.__name__ in stays_whole((batch, torch.arange(6)))
        pair = [(molecule(kind), torch.arange(6) % 2)] * 2
        made = Task(
            nn.Linear(3, 2).double(),
            nn.CrossEntropyLoss(),
            pair,
            forward=lambda model, b: (model(b[0].x), b[1]),
            max_samples=4,
        )
        assert made.draw("train").sizes == (6,)
        assert f"taken whole: one holds a {kind.__name__}" in made.draw("train").notes[1]
        with Objective(made, regroup=2) as objective:
            assert objective.largest == 6
        with pytest.raises(MeasurementError, match="must stay whole"):
            sampling_error(made, "trace")


def test_what_leads_back_to_an_object_leads_to_its_copy():
    batch = molecule(Linked)
    copied = map_tensors(batch, torch.clone)
    assert copied is not batch
    assert copied.first is not batch.first
    assert copied.first.molecule is copied
    assert batch.first.molecule is batch


def test_a_loader_of_objects_is_not_said_to_leave_samples_out():
    loader = DataLoader([0, 1, 2], batch_size=3, collate_fn=lambda items: molecule(Molecule))
    draw = Task(nn.Linear(3, 2), None, loader, forward=forward).draw("train")
    assert (draw.samples, draw.available, draw.notes) == (1, 3, ())


def test_the_classes_of_transformers_keep_their_kind():
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_outputs import SequenceClassifierOutput

    ids = torch.tensor([[1, 2], [3, 4]])
    encoding = transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones(2, 2)})
    outputs = SequenceClassifierOutput(logits=torch.ones(2, 3), hidden_states=(torch.zeros(2, 4),))
    for held, count in ((encoding, 2), (outputs, 2)):
        assert len(tensors_of(held)) == count
        moved = place(held, ELSEWHERE, torch.float64)
        assert type(moved) is type(held)
        assert {t.device.type for t in tensors_of(moved)} == {"meta"}
        assert batch_size_of(held) == 2
        assert stays_whole(held) == ""
    assert encoding["input_ids"] is ids


TASKS = """
import torch
from torch import nn
from landscape import Task, task
import test_packed_batches as t


@task
def packed():
    return t.task([t.packed()])


@task
def molecule():
    return Task(nn.Linear(3, 2).double(), nn.CrossEntropyLoss(), [t.molecule(t.Molecule)], forward=t.forward)
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("packed", "(33, 3) float64, (7,) int64, (8,) int64, (8,) int64, (8,) int64"),
        ("molecule", "(6, 3) float64, (2, 3) int64, (6,) int64"),
    ],
)
def test_check_says_what_a_batch_holds(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text(TASKS)
    inspection = inspect_task(f"tasks.py:{name}")
    assert inspection.ok
    assert inspection.findings[1].message.endswith(f"a batch holds {said}")
