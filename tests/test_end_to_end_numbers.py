"""From a task to the numbers, through the public names: against dense autograd, closed forms and PyHessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import GaussNewton, Hessian, Task, eigenpairs, line, random_direction, trace


def small() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)).double()


def ragged() -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Return 30 samples, some of them to be ignored, and the same cut into batches of 3, 4, 2, 6, 14 and 1."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(30, 6, generator=g).double()
    y = torch.randint(4, (30,), generator=g)
    y[::5] = -100
    sizes = (3, 4, 2, 6, 14, 1)
    return x, y, list(zip(x.split(sizes), y.split(sizes), strict=True))


def dense(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor, loss: nn.Module) -> np.ndarray:
    """Return all eigenvalues of the Hessian, largest first, from autograd over one flat vector."""
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def of(vector: torch.Tensor) -> torch.Tensor:
        w1, b1, w2, b2 = (v.view(s) for v, s in zip(vector.split([s.numel() for s in shapes]), shapes, strict=True))
        return loss(F.linear(torch.tanh(F.linear(x, w1, b1)), w2, b2), y)

    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(of, flat)).flip(0).numpy()


class TestEigenvalues:
    def test_float64_with_unequal_batches_class_weights_and_ignored_labels_to_1e_8(self):
        model, (x, y, batches) = small(), ragged()
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 0.3, 2.0]).double())
        expected = dense(model, x, y, loss)
        found = eigenpairs(Hessian(Task(model, loss, batches)), k=6, which="both", tol=1e-10)
        assert np.abs(found.values - expected[:6]).max() <= 1e-8 * expected[0]
        assert np.abs(found.smallest - expected[::-1][:6]).max() <= 1e-8 * expected[0]
        assert found.converged.all()
        assert found.smallest_converged.all()

    def test_float32_to_1e_4_of_the_largest_at_a_tolerance_of_1e_3(self):
        model, (x, y, batches) = small(), ragged()
        expected = dense(model, x, y, nn.CrossEntropyLoss())
        task = Task(model, nn.CrossEntropyLoss(), batches, dtype=torch.float32)
        found = eigenpairs(Hessian(task), k=5, tol=1e-3)
        assert np.abs(found.values - expected[:5]).max() <= 1e-4 * expected[0]

    def test_softmax_regression_finds_every_copy(self):
        """At W = 0 the largest eigenvalue is lambda_max(X'X/n)/K, K - 1 times."""
        x, _, _ = ragged()
        y = torch.randint(6, (30,), generator=torch.Generator().manual_seed(0))
        model = nn.Linear(6, 6, bias=False).double()
        nn.init.zeros_(model.weight)
        found = eigenpairs(Hessian(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=7)), k=6, tol=1e-8)
        top = torch.linalg.eigvalsh(x.T @ x / 30)[-1].item() / 6
        assert found.values[:5] == pytest.approx([top] * 5, rel=1e-7)
        assert found.values[5] < 0.99 * top

    def test_a_relu_rescaling_changes_the_eigenvalue_but_not_the_filter_normalized_slice(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 4, bias=False)).double()
        x, _, _ = ragged()
        y = torch.randint(4, (30,), generator=torch.Generator().manual_seed(0))
        task = Task(model, nn.CrossEntropyLoss(), (x, y))
        top, slices = [], []
        for _ in range(2):
            top.append(eigenpairs(Hessian(task), k=1, tol=1e-6).values[0])
            slices.append(line(task, random_direction(task, seed=1), np.linspace(-1, 1, 9)).loss)
            with torch.no_grad():
                model[0].weight.mul_(5)
                model[2].weight.div_(5)
        assert slices[0] == pytest.approx(slices[1], rel=1e-9)
        assert top[1] > 2 * top[0]

    # PyHessian keeps .grad with its graph (backward(create_graph=True)), of which torch warns.
    @pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
    def test_pyhessian_finds_the_same_where_it_weighs_the_same(self):
        pyhessian = pytest.importorskip("pyhessian")
        model = small().float()
        g = torch.Generator().manual_seed(4)
        x, y = torch.randn(32, 6, generator=g), torch.randint(4, (32,), generator=g)
        batches = list(zip(x.split(16), y.split(16), strict=True))
        other = pyhessian.hessian(model.eval(), nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
        theirs, _ = other.eigenvalues(maxIter=500, tol=1e-6, top_n=2)
        ours = eigenpairs(Hessian(Task(model, nn.CrossEntropyLoss(), batches)), k=2, which="magnitude", tol=1e-4)
        # Its power iteration stops when two iterates agree to 1e-6: its own error is some hundred times that.
        assert ours.values == pytest.approx(theirs, rel=1e-3)


class TestTrace:
    def test_holds_the_dense_trace_within_its_standard_error(self):
        model, (x, y, batches) = small(), ragged()
        expected = dense(model, x, y, nn.CrossEntropyLoss()).sum()
        found = trace(Hessian(Task(model, nn.CrossEntropyLoss(), batches)), draws=400, seed=1)
        assert abs(found.value - expected) <= 4 * found.stderr
        assert found.stderr < 0.1 * expected


def test_gauss_newton_has_no_negative_eigenvalue():
    _, _, batches = ragged()
    found = eigenpairs(GaussNewton(Task(small(), nn.CrossEntropyLoss(), batches)), k=3, which="both", tol=1e-8)
    assert found.values[0] > 0
    assert found.smallest[0] >= -1e-10 * found.values[0]
