"""Batch sharpness and SGD coherence: closed forms, and the divergence of SGD on quadratics that they foretell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import GaussNewton, Task
from landscape.curvature.batch_sharpness import measure_batch_sharpness
from landscape.curvature.coherence import compare, measure_coherence
from landscape.errors import MeasurementError

SGD = torch.optim.SGD


def linear(x: torch.Tensor, **settings) -> Task:
    """Half the squared error of a linear model: H_i = x_i x_i^T."""
    torch.manual_seed(0)
    model = nn.Linear(x.shape[1], 1, bias=False).double()
    return Task(model, lambda z, y: (0.5 * (z - y) ** 2).mean(), (x, torch.zeros(len(x), 1).double()), **settings)


class Weights(nn.Module):
    """Outputs that are the weights themselves, for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(1.0, 5.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w.expand(len(x), 4)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def labelled(n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return 2 * torch.randn(n, 4, generator=g).double(), torch.randint(3, (n,), generator=g)


class TestBatchSharpness:
    def test_it_is_the_ratio_of_the_means_over_batches(self):
        model, (x, y) = net(), labelled(35)
        found = measure_batch_sharpness(Task(model, nn.CrossEntropyLoss(), (x, y)), batch=7)
        order = torch.randperm(35, generator=torch.Generator().manual_seed(0))
        top, bottom = [], []
        for part in order.split(7):
            loss = F.cross_entropy(model(x[part]), y[part])
            g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(loss, model.parameters(), create_graph=True)])
            h = torch.autograd.grad(g, model.parameters(), grad_outputs=g.detach())
            top.append(float(g.detach() @ torch.cat([t.reshape(-1) for t in h])))
            bottom.append(float(g.detach() @ g.detach()))
        assert found.value == pytest.approx(np.mean(top) / np.mean(bottom), rel=1e-10)
        assert (found.batches, found.batch) == (5, 7)
        residuals = np.array(top) - found.value * np.array(bottom)
        assert found.stderr == pytest.approx(residuals.std(ddof=0) / math.sqrt(4) / np.mean(bottom), rel=1e-10)

    def test_one_direction_has_one_curvature(self):
        found = measure_batch_sharpness(linear(torch.full((12, 1), 3.0).double()), batch=4, lr=0.1)
        assert found.value == pytest.approx(9)
        assert found.stderr == pytest.approx(0, abs=1e-12)
        assert found.threshold == pytest.approx(20)

    def test_above_the_threshold_a_step_raises_the_loss_of_its_own_batch_on_average(self):
        """On a quadratic exactly: L_B after the step is L_B - lr |g|^2 + lr^2 g.H g / 2."""
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(3)).double()
        task = linear(x)
        found = measure_batch_sharpness(task, batch=5)
        for factor, sign in ((0.99, -1), (1.01, 1)):
            lr, change = factor * 2 / found.value, 0.0
            order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
            for part in order.split(5):
                model = linear(x).model
                optimizer = SGD(model.parameters(), lr=lr)
                before = 0.5 * model(x[part]).square().mean()
                before.backward()
                optimizer.step()
                change += float((0.5 * model(x[part]).square().mean() - before).detach())
            assert change * sign > 0

    def test_a_smaller_last_batch_is_left_out(self):
        x, y = labelled(31)
        found = measure_batch_sharpness(Task(net(), nn.CrossEntropyLoss(), (x, y)), batch=10)
        assert found.batches == 3

    def test_the_threshold_is_that_of_plain_sgd(self):
        model = net()
        task = Task(model, nn.CrossEntropyLoss(), labelled())
        assert math.isnan(measure_batch_sharpness(task).threshold)
        plain = task.replace(optimizer=SGD(model.parameters(), lr=0.1))
        assert measure_batch_sharpness(plain).threshold == pytest.approx(20)
        heavy = task.replace(optimizer=SGD(model.parameters(), lr=0.1, momentum=0.9))
        found = measure_batch_sharpness(heavy)
        assert math.isnan(found.threshold)
        assert "sgd steps otherwise" in found.notes[-1]
        assert found.summary()["batch_sharpness"]["threshold"] is None

    def test_bad_input(self):
        with pytest.raises(MeasurementError, match="batch=0"):
            measure_batch_sharpness(linear(torch.ones(3, 2).double()), batch=0)
        flat = linear(torch.ones(3, 2).double())
        nn.init.zeros_(flat.model.weight)
        with pytest.raises(MeasurementError, match="every batch's gradient is 0"):
            measure_batch_sharpness(flat)


class TestCoherence:
    def test_identical_rank_one_matrices_give_their_number(self):
        found = measure_coherence(linear(torch.ones(7, 3).double()))
        assert found.sigma == pytest.approx(7)
        assert found.eigenvalue == pytest.approx(3)
        assert found.largest == pytest.approx(np.full(7, 3.0))

    def test_orthogonal_ones_give_one(self):
        found = measure_coherence(linear(2 * torch.eye(6).double()))
        assert found.sigma == pytest.approx(1)
        assert found.eigenvalue == pytest.approx(4 / 6)

    def test_five_identities_of_size_four_give_ten(self):
        x = torch.zeros(5, 1).double()
        task = Task(Weights(), lambda z, y: (0.5 * z.square().sum(dim=1)).mean(), (x, x))
        assert measure_coherence(task).sigma == pytest.approx(10)

    def test_it_is_that_of_the_dense_matrices(self):
        model, (x, y) = net(), labelled(9)
        found = measure_coherence(Task(model, nn.CrossEntropyLoss(), (x, y)))
        eye = torch.eye(51, dtype=torch.float64)
        each = [GaussNewton(Task(model, nn.CrossEntropyLoss(), (x[i : i + 1], y[i : i + 1]))) @ eye for i in range(9)]
        norms = np.array([[math.sqrt(abs(float((a * b.T).sum()))) for a in each] for b in each])
        largest = np.array([float(torch.linalg.eigvalsh(h)[-1]) for h in each])
        assert sorted(found.largest) == pytest.approx(sorted(largest), rel=1e-8)
        assert found.sigma == pytest.approx(np.linalg.eigvalsh(norms)[-1] / largest.max(), rel=1e-7)
        mean = sum(each) / 9
        assert found.eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(mean)[-1]), rel=1e-8)

    def test_class_weights_scale_the_matrices(self):
        model, (x, y) = net(), labelled(12)
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 0.5]).double())
        found = measure_coherence(Task(model, loss, (x, y)))
        A = GaussNewton(Task(model, loss, (x, y))) @ torch.eye(51, dtype=torch.float64)
        assert found.eigenvalue == pytest.approx(float(torch.linalg.eigvalsh(A)[-1]), rel=1e-8)

    def test_the_standard_error_is_that_of_samples_drawn_anew(self):
        """Rank-one matrices of random directions: the jackknife's error beside the spread over 40 data sets."""

        def drawn(seed: int):
            g = torch.Generator().manual_seed(seed)
            x = nn.functional.normalize(torch.randn(64, 5, generator=g).double() * torch.tensor([3.0, 1, 1, 1, 1]))
            return measure_coherence(linear(x))

        found = [drawn(seed) for seed in range(40)]
        spread = np.std([f.sigma for f in found], ddof=1)
        # The jackknife of 16 groups errs by 1/sqrt(30) = 18%, the spread of 40 by 11%.
        assert np.mean([f.stderr for f in found]) == pytest.approx(spread, rel=0.4)
        assert math.isnan(measure_coherence(linear(torch.eye(3).double())).stderr)

    def test_batchnorm_is_said_to_run_on_its_running_statistics(self):
        model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double()
        found = measure_coherence(Task(model, nn.CrossEntropyLoss(), labelled()))
        assert "running statistics" in found.notes[-1]
        assert not any("running statistics" in note for note in measure_coherence(linear(torch.eye(3).double())).notes)

    def test_fewer_samples_than_there_are_are_scaled_up(self):
        found = measure_coherence(linear(torch.ones(40, 3).double()), samples=10, batch=4, lr=0.1)
        assert (found.samples, found.population) == (10, 40)
        assert found.sigma == pytest.approx(10)
        assert found.threshold == pytest.approx(2 / 0.1)  # 40 / sqrt(40 / 4 - 1) is more
        # Orthogonal ones, where sigma decides: 1 of these 10, 4 of all, as far as these tell.
        found = measure_coherence(linear(torch.eye(40).double()), samples=10, batch=1, lr=0.1)
        assert found.sigma == pytest.approx(1)
        assert found.threshold == pytest.approx(4 / math.sqrt(40 - 1) / 0.1)

    def test_the_standard_error_is_the_jackknifes(self):
        """Five samples, left out one by one: sqrt((g - 1) / g sum (s_i - mean)^2) for s = sigma / n, times n."""
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(2)).double()
        shares = [measure_coherence(linear(x[[j for j in range(5) if j != i]])).sigma / 4 for i in range(5)]
        expected = 5 * math.sqrt(4 / 5 * sum((s - np.mean(shares)) ** 2 for s in shares))
        assert measure_coherence(linear(x)).stderr == pytest.approx(expected, rel=1e-9)


def second_moment_growth(each: list[np.ndarray], lr: float, batch: int) -> float:
    """Return by what factor the largest eigenmode of E[theta theta^T] grows a step, samples entering independently."""
    n, d = len(each), len(each[0])
    mean = sum(each) / n
    step = np.eye(d) - lr * mean
    noise = (n / batch - 1) / n**2 * lr**2
    moment = np.kron(step, step) + noise * sum(np.kron(h, h) for h in each)
    return float(np.abs(np.linalg.eigvals(moment)).max())


class TestDivergence:
    @pytest.mark.parametrize("batch", [1, 2, 5])
    @pytest.mark.parametrize("kind", ["random", "aligned", "orthogonal", "identical", "full rank"])
    def test_beyond_the_threshold_sgd_diverges_in_mean_square(self, kind, batch):
        g = np.random.default_rng(0)
        x = {
            "random": g.normal(size=(10, 3)),
            "aligned": g.normal(size=(10, 3)) * [5, 1, 1],
            "orthogonal": np.eye(10),
            "identical": np.ones((10, 2)),
            "full rank": g.normal(size=(10, 3, 3)),
        }[kind]
        factors = [torch.from_numpy(np.atleast_2d(a)) for a in x]
        each = [(f.T @ f).numpy() for f in factors]
        norms, largest, top = compare(factors)
        assert top == pytest.approx(np.linalg.eigvalsh(sum(each) / 10)[-1])
        sigma = np.linalg.eigvalsh(norms)[-1] / largest.max()
        limit = min(2, sigma / math.sqrt(10 / batch - 1))
        assert second_moment_growth(each, 1.01 * limit / top, batch) > 1

    def test_sgd_of_torch_does_so_too(self):
        x, lr = torch.eye(4).double(), 2.4
        found = measure_coherence(linear(x), batch=1, lr=lr)
        assert found.threshold == pytest.approx(1 / math.sqrt(3) / lr)
        assert found.eigenvalue == pytest.approx(0.25)
        assert found.eigenvalue > found.threshold
        model = linear(x).model
        optimizer = SGD(model.parameters(), lr=lr)
        g = torch.Generator().manual_seed(0)
        for _ in range(300):
            i = int(torch.randint(4, (1,), generator=g))
            optimizer.zero_grad()
            (0.5 * model(x[i : i + 1]).square().mean()).backward()
            optimizer.step()
        assert float(model.weight.detach().norm()) > 1e3


class TestBadInput:
    def test_a_loss_that_is_not_convex_in_the_outputs(self):
        x = torch.randn(5, 3).double()
        task = Task(nn.Linear(3, 2).double(), lambda z, y: torch.cos(z).sum(dim=1).mean(), (x, torch.zeros(5)))
        with pytest.raises(MeasurementError, match="not convex in the outputs"):
            measure_coherence(task)

    def test_samples_that_are_sure_of_their_label_are_no_sign_of_it(self):
        torch.manual_seed(0)
        x, y = 3 * torch.randn(24, 6), torch.arange(24) % 4
        model = nn.Linear(6, 4)
        with torch.no_grad():
            logits = 9 * nn.functional.one_hot(y, 4) + torch.randn(24, 4)
            model.weight.copy_(torch.linalg.lstsq(x, logits).solution.T)
            model.weight.mul_(4)
            model.bias.zero_()
        exact = measure_coherence(Task(model, nn.CrossEntropyLoss(), (x, y), dtype=torch.float64))
        found = measure_coherence(Task(model, nn.CrossEntropyLoss(), (x, y)))
        assert found.sigma == pytest.approx(exact.sigma, rel=1e-3)

    def test_many_outputs_and_batches_that_stay_whole(self):
        x = torch.randn(5, 3).double()
        with pytest.raises(MeasurementError, match="300 numbers; coherence takes up to 256"):
            measure_coherence(Task(nn.Linear(3, 300).double(), nn.MSELoss(), (x, torch.zeros(5, 300).double())))
        with pytest.raises(MeasurementError, match="needs single samples"):
            measure_coherence(linear(x, rebatch=False))
        with pytest.raises(MeasurementError, match="samples=0"):
            measure_coherence(linear(x), samples=0)
