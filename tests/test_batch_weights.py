"""By what a batch counts: known for torch's losses, verified for others, and never guessed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from untouched import data, net

from landscape import Objective, Task
from landscape.errors import ObjectiveError


def summed(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, target, reduction="sum")


class TestWeightsAreNeverGuessed:
    @pytest.mark.parametrize(
        "loss",
        [
            lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 7.0, 0.1]).double()),
            lambda o, t: F.cross_entropy(o, t.masked_fill(torch.arange(len(t)) % 3 == 0, -100)),
            lambda o, t: F.cross_entropy(o, t) + o.std(),
        ],
    )
    def test_a_loss_that_is_no_plain_mean_is_refused(self, loss):
        with pytest.raises(ObjectiveError, match="can't say its weight"):
            Objective(Task(net(), loss, data(), batch_size=9)).__enter__()

    def test_a_sum_is_called_one(self):
        with pytest.raises(ObjectiveError, match=r"loss summed sums over the samples .* 9 of them.*: return its"):
            Objective(Task(net(), summed, data(), batch_size=9)).__enter__()

    @pytest.mark.parametrize(
        ("of", "said"),
        [
            (lambda r, _: r.mean(), ""),
            (lambda r, _: r.sum(dim=1).mean(), ""),
            (lambda r, _: r.sum(), r"over 8 seeds, the loss noisy is .* its parts sum up to that"),
            (lambda r, _: r.sum(dim=1).mean() + r.sum() / 50, r"over 8 seeds, .* no plain mean over samples"),
            (lambda r, keep: (r * keep).sum() / keep.sum(), r"over 8 seeds, .* no plain mean over samples"),
        ],
        ids=["mean", "sum over features", "sum", "with a sum", "masked"],
    )
    def test_losses_that_draw_their_own_numbers_are_compared_over_seeds(self, of, said):
        x = data()[0]
        keep = (torch.arange(9) < 2).double()[:, None]  # all in the first part

        def noisy(model, batch):
            noise = torch.randn_like(batch[0])
            return of((model(batch[0] + 0.1 * noise) - 1).square(), keep[: len(batch[0])])

        task = Task(net(), batch_loss=noisy, train=[(x[:9],), (x[9:18],)], rng="fixed")
        if said:
            with pytest.raises(ObjectiveError, match=said):
                Objective(task).__enter__()
            return
        with Objective(task) as objective:
            assert "verified: the first batch's mean is that of its parts, over 8 seeds" in objective.notes[-1]

    def test_a_batch_loss_is_verified_as_well(self):
        def masked(model, batch):
            x, y = batch
            return F.cross_entropy(model(x), y.masked_fill(x[:, 0] > 0.3, -100))

        with pytest.raises(ObjectiveError, match="the loss masked can't say its weight"):
            Objective(Task(net(), batch_loss=masked, train=data(), batch_size=9)).__enter__()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("own", [False, True], ids=["loss", "batch_loss"])
    @pytest.mark.parametrize(
        ("loss", "plain"),
        [
            (lambda o, t: F.cross_entropy(o, t), True),
            (lambda o, t: F.cross_entropy(o, t.masked_fill(torch.arange(len(t)) % 3 == 0, -100)), False),
            (lambda o, t: F.cross_entropy(o, t, weight=torch.tensor([1.0, 2.0, 2.0]).to(o)), False),
        ],
        ids=["mean", "masked", "classes"],
    )
    def test_values_that_are_alike_hide_no_weights(self, loss, plain, own, dtype):
        """An untrained head gives each sample the same loss: only gradients tell what a part weighs."""
        model, batches = net(dtype), data(dtype=dtype)
        nn.init.normal_(model[-1].weight, std=1e-6)
        nn.init.zeros_(model[-1].bias)
        made = {"batch_loss": lambda m, b: loss(m(b[0]), b[1])} if own else {"loss": loss}
        objective = Objective(Task(model, train=batches, batch_size=10, **made))
        if plain:
            with objective:
                assert "verified: each batch's mean is that of its parts" in objective.notes[-1]
            return
        with pytest.raises(ObjectiveError, match=r"can't say its weight: .*Return .mean, weight."):
            objective.__enter__()

    @pytest.mark.parametrize("plain", [True, False])
    def test_outputs_say_how_many_samples_a_batch_of_somebodys_own_class_has(self, plain):
        class Graphs:
            def __init__(self, x, y):
                self.x, self.y = x, y

            def to(self, device):
                return Graphs(self.x.to(device), self.y.to(device))

        def loss(o, t):
            return F.cross_entropy(o, t if plain else t.masked_fill(torch.arange(len(t)) % 3 == 0, -100))

        (x, y), model = data(), net()
        batches = [Graphs(x[:9], y[:9]), Graphs(x[9:], y[9:])]
        objective = Objective(Task(model, loss, batches, forward=lambda m, b: (m(b.x), b.y)))
        if not plain:
            with pytest.raises(ObjectiveError, match="can't say its weight"):
                objective.__enter__()
            return
        with objective:
            assert "verified: each batch's mean is that of its parts" in objective.notes[-1]
            assert objective.evaluate().loss == pytest.approx(loss(model.eval()(x), y).item(), rel=1e-12)

    def test_a_plain_mean_is_verified_and_said(self):
        with Objective(Task(net(), lambda o, t: F.cross_entropy(o, t), data(), batch_size=9)) as objective:
            assert any("verified: each batch's mean is that of its parts" in n for n in objective.notes)

    def test_a_loss_that_couples_samples_is_measured_as_it_is(self):
        def coupled(o, t):
            return F.cross_entropy(o, t) + o.std()

        model, (x, y) = net(), data()
        batches = [(x[:9], y[:9]), (x[9:], y[9:])]
        with Objective(Task(model, coupled, batches, rebatch=False)) as objective:
            loss = objective.evaluate().loss
        model.eval()
        expected = (9 * coupled(model(x[:9]), y[:9]) + 14 * coupled(model(x[9:]), y[9:])) / 23
        assert loss == pytest.approx(expected.item(), rel=1e-12)

    @pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(reduction="sum"), nn.MSELoss(reduction="none")])
    def test_a_torch_loss_with_another_reduction(self, loss):
        with pytest.raises(ObjectiveError, match=r'expected (reduction="mean"|its mean)'):
            Objective(Task(net(), loss, (data()[0], torch.zeros(23, 3).double()))).__enter__()

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (lambda o, t: 1.0, "is a float"),
            (lambda o, t: o, "has shape"),
            (lambda o, t: (o.mean(), 1, 2), "tuple of 3"),
            (lambda o, t: (o.mean(), torch.ones(3)), "weight of shape"),
            (lambda o, t: (o.mean(), -1.0), "weight -1"),
            (lambda o, t: {}, "no terms"),
        ],
    )
    def test_what_a_loss_may_return(self, value, said):
        with pytest.raises(ObjectiveError, match=said), Objective(Task(net(), value, data())) as objective:
            objective.evaluate()


class Reader(nn.Module):
    """Log probabilities with time first, as CTC takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.inner(x)[0]).log_softmax(2).transpose(0, 1)


class TestOutputsWhoseRowsAreNoSamples:
    """Cut by its 9 steps of time, CTC's loss fails; the model runs on parts of the batch instead."""

    @staticmethod
    def task(loss, size: int = 6) -> tuple[Task, dict[str, torch.Tensor]]:
        g = torch.Generator().manual_seed(0)
        n, steps = 16, 9
        whole = {
            "x": torch.randn(n, steps, 3, generator=g).double(),
            "y": torch.randint(1, 5, (n, 3), generator=g),
            "steps": torch.randint(7, steps + 1, (n,), generator=g),
            "labels": torch.randint(1, 4, (n,), generator=g),
        }
        batches = [{k: v[i : i + size] for k, v in whole.items()} for i in range(0, n, size)]
        torch.manual_seed(0)
        return Task(Reader().double(), loss, batches, forward=lambda m, b: (m(b["x"]), b)), whole

    def test_a_mean_over_samples_is_found_to_be_one(self):
        def loss(out, b):
            return F.ctc_loss(out, b["y"], b["steps"], b["labels"])

        task, whole = self.task(loss)
        with Objective(task) as objective:
            assert any("verified: each batch's mean is that of its parts" in note for note in objective.notes)
            found = objective.evaluate().loss
        with torch.no_grad():
            assert found == pytest.approx(float(loss(task.model(whole["x"]), whole)), rel=1e-12)

    def test_a_sum_is_not(self):
        task, _ = self.task(lambda out, b: F.ctc_loss(out, b["y"], b["steps"], b["labels"], reduction="sum"))
        with pytest.raises(ObjectiveError, match=r"sums over the samples of a batch .* 6 of them"):
            Objective(task).__enter__()
