"""Products from differences of gradients: as exact as they say, where there is a second derivative to compare with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from untouched import State, messy
from untouched import data as sample

from landscape import Hessian, Task, eigenpairs
from landscape.curvature.finite_differences import FiniteDifferences
from landscape.errors import MeasurementError, ObjectiveError
from landscape.probes.derivatives import twice_differentiable


def net(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def task(dtype: torch.dtype = torch.float64, loss=None) -> Task:
    g = torch.Generator().manual_seed(1)
    x, y = 2 * torch.randn(30, 4, generator=g).to(dtype), torch.randint(3, (30,), generator=g)
    return Task(net(dtype), loss or nn.CrossEntropyLoss(), (x, y), batch_size=7)


def vectors(n: int, dtype: torch.dtype, k: int = 12) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


class OnlyOnce(torch.autograd.Function):
    """tanh, whose backward can't be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 - torch.tanh(x) ** 2)


class Once(nn.Module):
    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[2](OnlyOnce.apply(self.inner[0](x)))


class TestExactness:
    @pytest.mark.parametrize("order", [2, 4])
    @pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-8), (torch.float32, 3e-3)])
    def test_the_error_that_is_reported_holds(self, dtype, allowed, order):
        """Allowed: eps^(2/3), with a factor of 100 for sums over samples. The estimate may be too small by 3 for
        other vectors than the first: they are random alike.
        """
        A = FiniteDifferences(task(dtype), order=order)
        V = vectors(A.shape[0], dtype)
        found, exact = (A @ V).double(), Hessian(task()) @ V.double()
        errors = ((found - exact).norm(dim=0) / exact.norm(dim=0)).numpy()
        assert 0 < A.error < allowed
        assert errors.max() < 3 * A.error
        assert A.check().level == "pass"
        assert A.check().value == A.error

    def test_a_quadratic_has_no_truncation(self):
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        model = nn.Linear(4, 1, bias=False).double()
        A = FiniteDifferences(Task(model, nn.MSELoss(), (x, x[:, :1])), step=1.0)
        assert (A @ torch.eye(4, dtype=torch.float64)).numpy() == pytest.approx((2 * x.T @ x / 20).numpy(), rel=1e-12)

    def test_a_step_of_ones_own_is_taken_and_judged(self):
        coarse, fine = (FiniteDifferences(task(), step=s) for s in (1.0, 1e-4))
        for A in (coarse, fine):
            A @ vectors(A.shape[0], torch.float64, 1)
        assert (coarse.step, fine.step) == (1.0, 1e-4)
        assert coarse.check().level == "warn"
        assert fine.error < 1e-6 < coarse.error
        assert "step 1, relative error" in coarse.notes[0]

    def test_a_part_of_the_parameters(self):
        V = vectors(21, torch.float64, 3)
        A, H = FiniteDifferences(task(), "2"), Hessian(task(), "2")
        assert (A @ V).numpy() == pytest.approx((H @ V).numpy(), rel=1e-6, abs=1e-8)


class TestUse:
    def test_a_model_without_a_second_derivative(self):
        plain = task()
        once = Task(Once(plain.model), nn.CrossEntropyLoss(), plain.train)
        with pytest.raises(ObjectiveError, match="differentiable only once"):
            Hessian(once) @ torch.ones(51, dtype=torch.float64)
        found = eigenpairs(FiniteDifferences(once), 3, "both", tol=1e-5, k_smallest=1)
        exact = eigenpairs(Hessian(plain), 3, "both", tol=1e-8, k_smallest=1)
        assert found.values == pytest.approx(exact.values, rel=1e-6)
        assert found.smallest == pytest.approx(exact.smallest, rel=1e-4)
        assert found.operator == "Hessian by finite differences"
        assert next(c for c in found.checks if c.name == "symmetry").level == "pass"

    def test_it_is_measured_in_float32_too(self):
        found = eigenpairs(FiniteDifferences(task(torch.float32)), 2, tol=1e-2)
        exact = eigenpairs(Hessian(task()), 2)
        assert found.values == pytest.approx(exact.values, rel=1e-2)

    def test_everything_is_as_it_was(self):
        model = messy()
        x, y = sample(60, torch.float32)
        before = State(model)
        A = FiniteDifferences(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=16))
        with A:
            A @ vectors(A.shape[0], torch.float32, 2)
            live = zip(A.objective.parameters, A.objective.center, strict=True)
            assert all(torch.equal(p, c) for p, c in live)
        before.unchanged()

    def test_what_it_costs(self):
        A = FiniteDifferences(task())
        with A:
            A @ vectors(A.shape[0], torch.float64, 1)
            first = A.passes
            A @ vectors(A.shape[0], torch.float64, 3)
            assert A.passes - first == 3 * 2 * 3  # products, gradients each, forward passes each
        assert A.products == 4
        assert A.how.startswith("2 gradients a product")

    def test_zero_vectors_and_a_loss_without_curvature(self):
        A = FiniteDifferences(task())
        assert not (A @ torch.zeros(51, 2, dtype=torch.float64)).any()
        assert math.isnan(A.error)
        flat = Task(nn.Linear(4, 1).double(), lambda z, y: z.mean(), (torch.ones(5, 4).double(), torch.ones(5, 1)))
        # Gradients of at most 1, moved by 1e-8 at least: what is left is their rounding.
        assert np.abs((FiniteDifferences(flat) @ torch.ones(5, dtype=torch.float64)).numpy()).max() < 1e-7

    def test_bad_input(self):
        with pytest.raises(MeasurementError, match=r"step=-1\.0 must be"):
            FiniteDifferences(task(), step=-1.0)
        with pytest.raises(MeasurementError, match="order=3"):
            FiniteDifferences(task(), order=3)
        A = FiniteDifferences(task())
        with pytest.raises(MeasurementError, match=r"shape \(3,\) doesn't fit"):
            A @ torch.ones(3)
        with pytest.raises(TypeError, match="got list"):
            A @ [1.0]  # type: ignore[operator]

        def blows_up(z, y):
            return F.cross_entropy(z, y) + torch.relu(z.abs().max() - 1e6) ** 40

        with pytest.raises(MeasurementError, match="is not finite 1e\\+09 from the weights"):
            FiniteDifferences(task(loss=blows_up), step=1e9) @ torch.ones(51, dtype=torch.float64)


def test_recomputed_statistics_are_constants_to_every_derivative():
    """Else differences of gradients are no Hessian: each gradient holds the statistics, and they moved in between."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(40, 4).double(), torch.arange(40) % 3
    recomputed = Task(model, nn.CrossEntropyLoss(), (x, y), batchnorm="recompute")
    v = vectors(53, torch.float64, 3)
    product = Hessian(recomputed) @ v
    differences = FiniteDifferences(recomputed)
    torch.testing.assert_close(differences @ v, product, rtol=1e-6, atol=1e-8)
    assert twice_differentiable(recomputed).level == "pass"
    # The dense Hessian with the statistics of the whole draw as they are at the weights.
    fixed = {"1.running_mean": model[0](x).mean(0).detach(), "1.running_var": model[0](x).var(0).detach()}
    sizes = {name: p.shape for name, p in model.named_parameters()}

    def loss(flat):
        parts = flat.split([s.numel() for s in sizes.values()])
        weights = {name: p.view(s) for (name, s), p in zip(sizes.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model.eval(), weights | fixed, (x,)), y)

    dense = torch.autograd.functional.hessian(loss, torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    torch.testing.assert_close(dense @ v, product, rtol=1e-9, atol=1e-12)
    for operator in (Hessian(recomputed), differences):
        assert any("statistics for constants" in note for note in eigenpairs(operator, 1, tol=1e-2).notes)


class TestProbe:
    def test_the_command_line_measures_what_has_one_derivative_only(self, tmp_path, monkeypatch):
        import small_world

        from landscape import load_task, save_checkpoint

        monkeypatch.chdir(tmp_path)
        small_world.build(tmp_path)
        (tmp_path / "once.py").write_text(
            "import torch\n"
            "from torch import nn\n"
            "from landscape import task\n"
            "from tasks import tiny as _tiny\n"
            "from test_finite_differences import Once\n\n\n"
            "@task\n"
            "def tiny():\n"
            "    plain = _tiny()\n"
            "    return plain.replace(model=Once(plain.model))\n"
        )
        save_checkpoint("once.pt", Once(small_world.train(0)), task="once.py:tiny")
        refused = small_world.landscape("probe", "once.pt", "--only", "eigenvalues")
        assert "differentiable only once" in refused.output
        (shown,) = small_world.results("once.pt", "--only", "eigenvalues_by_differences", "--dtype", "float64")
        plain = load_task("tasks.py:tiny")
        plain.model.load_state_dict(small_world.train(0).state_dict())
        exact = eigenpairs(Hessian(plain.replace(dtype=torch.float64)), 5, tol=1e-6)
        # Residuals of 1e-2 leave errors of their square, over the gap to the next eigenvalue.
        assert shown["curvature"]["eigenvalues"] == pytest.approx(exact.values, rel=1e-2)
