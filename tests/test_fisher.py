"""The Fisher operators against sums of outer products of gradients, term by term, by plain autograd in float64."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import Fisher, GaussNewton, Task
from landscape.errors import LandscapeError, MeasurementError

# float64 sums of a few hundred terms in another order.
EXACT = 1e-10


def model(inputs: int = 5, outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def inputs(n: int = 23) -> torch.Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(2)).double()


def labels(n: int = 23) -> torch.Tensor:
    return torch.randint(3, (n,), generator=torch.Generator().manual_seed(3))


def batches(x: torch.Tensor, y: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split([9, 13, 1]), y.split([9, 13, 1]), strict=True))


def matrix(operator) -> torch.Tensor:
    with operator as a:
        return a @ torch.eye(a.shape[0], dtype=a.dtype)


def outer_products(net: nn.Module, losses, weights: torch.Tensor) -> torch.Tensor:
    """Return sum_r w_r g_r g_r^T / sum_r w_r from the scalar loss of each term."""
    total = 0.0
    for loss, w in zip(losses, weights, strict=True):
        g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)])
        total = total + w * torch.outer(g, g)
    return total / weights.sum()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a - b).abs().max() <= EXACT * b.abs().max())


class TestEmpirical:
    def test_cross_entropy_in_unequal_batches(self):
        net, x, y = model(), inputs(), labels()
        expected = outer_products(net, F.cross_entropy(net(x), y, reduction="none"), torch.ones(23))
        assert close(matrix(Fisher(Task(net, nn.CrossEntropyLoss(), batches(x, y)), kind="empirical")), expected)

    def test_class_weights_and_ignored_labels_count_as_in_the_loss(self):
        net, x, y = model(), inputs(), labels()
        y[::4] = -7
        w = torch.tensor([1.0, 5.0, 0.2]).double()
        kept = y != -7
        losses = F.cross_entropy(net(x[kept]), y[kept], reduction="none")
        expected = outer_products(net, losses, w[y[kept]])
        loss = functools.partial(F.cross_entropy, weight=w, ignore_index=-7)
        assert close(matrix(Fisher(Task(net, loss, batches(x, y)), kind="empirical")), expected)

    def test_a_batch_without_a_label_that_counts(self):
        net, x, y = model(), inputs(), labels()
        y[:9] = -100
        losses = F.cross_entropy(net(x[9:]), y[9:], reduction="none")
        expected = outer_products(net, losses, torch.ones(14))
        assert close(matrix(Fisher(Task(net, F.cross_entropy, batches(x, y)), kind="empirical")), expected)

    def test_each_token_is_a_term(self):
        net, x = model(), inputs(24).view(6, 4, 5)
        y = labels(24).view(6, 4)

        def forward(m, batch):
            return m(batch[0]).movedim(-1, 1), batch[1]

        losses = F.cross_entropy(net(x).flatten(0, 1), y.flatten(), reduction="none")
        expected = outer_products(net, losses, torch.ones(24))
        task = Task(net, nn.CrossEntropyLoss(), (x, y), forward=forward, batch_size=4)
        assert close(matrix(Fisher(task, kind="empirical")), expected)

    @pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
    def test_each_element_is_a_term(self, loss):
        net, x = model(), inputs()
        y = torch.rand(23, 3, generator=torch.Generator().manual_seed(0)).double()
        plain = type(loss)(reduction="none")
        expected = outer_products(net, plain(net(x), y).flatten(), torch.ones(69))
        assert close(matrix(Fisher(Task(net, loss, batches(x, y)), kind="empirical")), expected)

    def test_class_probabilities_as_targets(self):
        net, x = model(), inputs()
        y = torch.rand(23, 3, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
        expected = outer_products(net, F.cross_entropy(net(x), y, reduction="none"), torch.ones(23))
        assert close(matrix(Fisher(Task(net, nn.CrossEntropyLoss(), batches(x, y)), kind="empirical")), expected)


LOSSES = {
    "cross entropy": (nn.CrossEntropyLoss(), labels()),
    "squared error": (nn.MSELoss(), torch.randn(23, 3, generator=torch.Generator().manual_seed(4)).double()),
    "binary": (nn.BCEWithLogitsLoss(), torch.rand(23, 3, generator=torch.Generator().manual_seed(4)).double().round()),
}


class TestExpectation:
    @pytest.mark.parametrize("name", LOSSES)
    def test_type_2_is_the_expectation_of_the_drawn_one(self, name):
        """Over many draws every entry is within five of its own standard errors; the Gauss-Newton matrix is exact."""
        loss, y = LOSSES[name]
        task = Task(model(), loss, batches(inputs(), y))
        exact = matrix(Fisher(task))
        assert close(exact, matrix(GaussNewton(task)))
        drawn = torch.stack([matrix(Fisher(task, kind="monte-carlo", draws=50, seed=s)) for s in range(40)])
        error = drawn.std(0) / 40**0.5
        assert ((drawn.mean(0) - exact).abs() <= 5 * error + 1e-14).all()
        assert error.max() < 0.05 * exact.abs().max()  # else the line above would say nothing

    def test_draws_are_fixed_by_the_seed(self):
        task = Task(model(), nn.CrossEntropyLoss(), batches(inputs(), labels()))
        first, again, other = (matrix(Fisher(task, kind="monte-carlo", seed=s)) for s in (0, 0, 1))
        assert close(again, first)
        assert not close(other, first)

    @pytest.mark.parametrize("kind", ["type-2", "monte-carlo", "empirical"])
    def test_symmetric_and_positive(self, kind):
        f = matrix(Fisher(Task(model(), nn.CrossEntropyLoss(), batches(inputs(), labels())), kind=kind))
        assert close(f, f.T)
        assert torch.linalg.eigvalsh(f).min() >= -EXACT * f.abs().max()

    def test_a_selection_of_parameters_is_a_block(self):
        task = Task(model(), nn.CrossEntropyLoss(), batches(inputs(), labels()))
        whole, part = (matrix(Fisher(task, p, kind="empirical")) for p in (None, "2"))
        assert close(part, whole[-15:, -15:])


class TestBadInput:
    @pytest.mark.parametrize(
        ("loss", "message"),
        [
            (nn.CrossEntropyLoss(label_smoothing=0.1), "with label smoothing is no likelihood"),
            (nn.MultiMarginLoss(), "MultiMarginLoss is no likelihood that Fisher knows .*: use GaussNewton"),
            (lambda z, y: F.cross_entropy(z, y), "<lambda> is no likelihood"),
        ],
    )
    def test_losses_that_are_no_likelihood(self, loss, message):
        with pytest.raises(MeasurementError, match=message):
            matrix(Fisher(Task(model(), loss, (inputs(), labels()))))

    def test_weights_of_elements(self):
        task = Task(model(), nn.BCEWithLogitsLoss(pos_weight=torch.ones(3).double()), (inputs(), inputs()[:, :3] * 0))
        with pytest.raises(MeasurementError, match="weights of its elements"):
            matrix(Fisher(task))

    def test_a_task_whose_outputs_nobody_knows(self):
        task = Task(model(), batch_loss=lambda m, b: m(b[0]).mean(), train=(inputs(), labels()))
        with pytest.raises(MeasurementError, match="use Hessian"):
            matrix(Fisher(task))

    @pytest.mark.parametrize("wrong", [{"kind": "true"}, {"kind": "monte-carlo", "draws": 0}])
    def test_settings(self, wrong):
        with pytest.raises(LandscapeError, match=r"unknown; choose from type-2|draws=0"):
            Fisher(Task(model(), nn.CrossEntropyLoss(), (inputs(), labels())), **wrong)
