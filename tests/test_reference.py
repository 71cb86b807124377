"""Second opinions: PyHessian and ARPACK on any task, in our result's form, each with what it really reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from untouched import State, messy
from untouched import data as sample

from landscape import GaussNewton, Hessian, Task, trace
from landscape.curvature.reference import (
    arpack_eigenpairs,
    pyhessian_density,
    pyhessian_eigenpairs,
    pyhessian_trace,
)
from landscape.errors import MeasurementError, ObjectiveError


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def labelled(n: int = 30, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return 2 * torch.randn(n, 4, generator=g).to(dtype), torch.randint(3, (n,), generator=g)


def dense(task: Task, loss=F.cross_entropy) -> np.ndarray:
    """Return the Hessian of a whole-set mean by torch.autograd.functional, in float64."""
    model = task.model
    shapes = {k: (v.shape, v.numel()) for k, v in model.named_parameters()}
    x, y = task.train

    def flat(w: torch.Tensor) -> torch.Tensor:
        parts = w.split([n for _, n in shapes.values()])
        given = {k: p.view(s) for (k, (s, _)), p in zip(shapes.items(), parts, strict=True)}
        return loss(torch.func.functional_call(model, given, (x,)), y)

    w = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.autograd.functional.hessian(flat, w).numpy()  # type: ignore[union-attr]


def by_magnitude(values: np.ndarray) -> np.ndarray:
    return values[np.argsort(-np.abs(values))]


class Odd(nn.Module):
    """A dict input, a tied layer, a frozen one, and a parameter that the loss doesn't use or is linear in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))
        self.shift = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(torch.tanh(self.again(self.frozen(torch.tanh(self.first(x))))))}


def odd() -> Task:
    x, y = labelled(17)
    batches = [{"x": x[a:b], "labels": y[a:b]} for a, b in ((0, 3), (3, 11), (11, 17))]

    def forward(model, batch):
        return model(batch["x"]), (batch["labels"], model.shift)

    def loss(outputs, target):
        weight = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
        return F.cross_entropy(outputs["logits"], target[0], weight) + 0.1 * target[1], weight[target[0]].sum()

    return Task(Odd().double(), loss, batches, forward=forward)


class TestPyHessian:
    def test_it_finds_the_eigenvalues_of_the_dense_hessian(self):
        task = Task(net(), nn.CrossEntropyLoss(), labelled(), batch_size=7)
        found = pyhessian_eigenpairs(task, 3, tol=1e-6, max_iterations=2000)
        exact = by_magnitude(np.linalg.eigvalsh(dense(task)))[:3]
        # Two similar iterates at 1e-6 leave errors of about 1e-5; PyHessian adds 1e-6 to every norm.
        assert found.values == pytest.approx(exact, rel=1e-3)
        assert next(c for c in found.checks if c.name == "product").level == "pass"
        assert found.which == "magnitude"

    def test_residuals_are_the_true_ones(self):
        task = Task(net(), nn.CrossEntropyLoss(), labelled())
        found = pyhessian_eigenpairs(task, 4)
        H, V = dense(task), found.vectors.numpy()
        assert np.linalg.norm(V, axis=0) == pytest.approx(np.ones(4))
        assert found.residuals == pytest.approx(np.linalg.norm(H @ V - V * found.values, axis=0), rel=1e-9)
        # Its own rule stops too early: the residuals say so, where PyHessian says nothing.
        assert not found.converged.all()
        assert found.status == "partial"
        assert "residuals exceed tol" in found.warnings[0]

    def test_any_task_works_and_batches_count_by_their_own_denominators(self):
        task = odd()
        H = Hessian(task)
        matrix = (H @ torch.eye(H.shape[0], dtype=torch.float64)).numpy()
        found = pyhessian_eigenpairs(task, 2, tol=1e-7, max_iterations=3000)
        assert found.values == pytest.approx(by_magnitude(np.linalg.eigvalsh(matrix))[:2], rel=1e-3)
        assert found.checks[1].name == "product"
        assert found.checks[1].value < 1e-12

    def test_a_part_of_the_parameters(self):
        task = Task(net(), nn.CrossEntropyLoss(), labelled())
        found = pyhessian_eigenpairs(Hessian(task, "2"), 1, tol=1e-7, max_iterations=3000)
        assert found.parameters == 21
        assert found.values[0] == pytest.approx(np.linalg.eigvalsh(dense(task)[30:, 30:])[-1], rel=1e-4)

    def test_trace(self):
        task = Task(net(), nn.CrossEntropyLoss(), labelled())
        found = pyhessian_trace(task, draws=200, tol=0.0)
        assert len(found.samples) == found.products == 200
        assert abs(found.value - np.trace(dense(task))) <= 4 * found.stderr

    def test_trace_by_the_name_of_the_method(self):
        task = Task(net(), nn.CrossEntropyLoss(), labelled())
        found = trace(Hessian(task), "pyhessian", draws=12, seed=3)
        assert (found.method, len(found.samples)) == ("pyhessian", 12)
        assert (found.samples == pyhessian_trace(task, 12, 0.0, 3).samples).all()
        with pytest.raises(MeasurementError, match="stops at no precision"):
            trace(Hessian(task), "pyhessian", precision=0.1)

    def test_a_tasks_own_mode_stays(self):
        """PyHessian puts models into eval mode; this one has another loss there."""

        class Doubled(nn.Sequential):
            def forward(self, x):
                return (2 if self.training else 1) * super().forward(x)

        model = Doubled(*net())
        task = Task(model, nn.CrossEntropyLoss(), labelled(), mode="train")
        found = pyhessian_eigenpairs(task, 1)
        assert next(c for c in found.checks if c.name == "product").value < 1e-12

    def test_its_density_says_that_it_cannot_run(self):
        with pytest.raises(MeasurementError, match=r"calls torch\.eig, which torch .* no longer has"):
            pyhessian_density(Task(net(), nn.CrossEntropyLoss(), labelled()))

    def test_its_density_where_torch_has_what_it_calls(self, monkeypatch):
        """As with the torch of 2021: eigenvalues as (real, imaginary), eigenvectors in columns."""

        def eig(T, eigenvectors):
            values, vectors = torch.linalg.eigh(T)
            return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

        monkeypatch.setattr(torch, "eig", eig)
        task = Task(net(), nn.CrossEntropyLoss(), labelled())
        values, weights = pyhessian_density(task, steps=51, draws=20)
        assert values.shape == weights.shape == (20, 51)
        assert weights.sum(axis=1) == pytest.approx(np.ones(20))
        # n times the quadrature of x is Hutchinson's estimate of the trace, from each draw.
        traces = 51 * (values * weights).sum(axis=1)
        assert abs(traces.mean() - np.trace(dense(task))) <= 4 * traces.std(ddof=1) / np.sqrt(20)

    @pytest.mark.parametrize("measure", [pyhessian_eigenpairs, pyhessian_trace])
    def test_everything_is_as_it_was(self, measure):
        model = messy()
        x, y = sample(60, torch.float32)
        task = Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=16)
        before, default = State(model), torch.get_default_dtype()
        with Hessian(task) as A:
            measure(A, 2)
            assert all(p.grad is None for p in A.objective.parameters)
        before.unchanged()
        assert torch.get_default_dtype() is default

    def test_hooks_of_the_users_do_not_fire(self):
        """An optimizer that steps in the backward pass must not: PyHessian calls backward()."""
        model, fired = net(), []
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(fired.append)
        pyhessian_eigenpairs(Task(model, nn.CrossEntropyLoss(), labelled()), 1)
        assert not fired

    def test_what_it_cannot_do(self):
        task = Task(net(), nn.CrossEntropyLoss(), labelled())
        with pytest.raises(MeasurementError, match='not Gauss-Newton; use method="arpack"'):
            pyhessian_eigenpairs(GaussNewton(task), 1)  # type: ignore[arg-type]
        with pytest.raises(MeasurementError, match="k=52 must be from 1 to the 51"):
            pyhessian_eigenpairs(task, 52)

    def test_no_second_derivative_is_refused_in_our_words(self):
        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, grad):
                return grad

        task = Task(net(), lambda z, y: F.cross_entropy(Once.apply(z), y), labelled())
        with pytest.raises(ObjectiveError, match="differentiable only once"):
            pyhessian_eigenpairs(task, 1)


class TestArpack:
    @pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
    def test_it_finds_the_eigenvalues_of_the_dense_hessian(self, which):
        task = Task(net(), nn.CrossEntropyLoss(), labelled(), batch_size=7)
        found = arpack_eigenpairs(Hessian(task), 3, which, 1e-8, k_smallest=2 if which == "both" else None)
        exact = np.linalg.eigvalsh(dense(task))
        first = {"smallest": exact[:3], "magnitude": by_magnitude(exact)[:3]}.get(which, exact[::-1][:3])
        assert found.values == pytest.approx(first, rel=1e-6, abs=1e-9)
        assert found.converged.all()
        assert found.status == "complete"
        if which == "both":
            assert found.smallest == pytest.approx(exact[:2], rel=1e-6, abs=1e-9)

    def test_any_symmetric_matrix_and_float32(self):
        A = torch.diag(torch.arange(40.0) - 5)
        found = arpack_eigenpairs(A, 2, "both", 1e-4, k_smallest=1)
        assert found.values == pytest.approx([34, 33], rel=1e-4)
        assert found.smallest == pytest.approx([-5], rel=1e-4)
        assert found.vectors.dtype == torch.float32
        assert found.operator == "matrix"

    def test_what_it_cannot_do(self):
        with pytest.raises(MeasurementError, match="at most n - 1 = 4 eigenpairs, 5 were asked for"):
            arpack_eigenpairs(torch.eye(5), 5)
        with pytest.raises(MeasurementError, match=r"ARPACK fails .* \(.*zero\): use method='lanczos'"):
            arpack_eigenpairs(torch.zeros(8, 8), 2)

    def test_no_convergence_is_said(self):
        A = torch.diag(torch.linspace(1, 1.001, 400, dtype=torch.float64))
        with pytest.raises(MeasurementError, match="converged to none of 3 eigenpairs in 1 restarts"):
            arpack_eigenpairs(A, 3, tol=1e-10, max_restarts=1)
        A = torch.diag(torch.cat([torch.linspace(1, 1.001, 399), torch.tensor([9.0])]).double())
        found = arpack_eigenpairs(A, 3, tol=1e-10, max_restarts=1)
        assert found.status == "partial"
        assert found.values == pytest.approx([9.0])
        assert "converged to 1 of 3" in " ".join(found.warnings)

    def test_a_product_that_is_not_finite(self):
        with pytest.raises(MeasurementError, match="product 1 is not finite"):
            arpack_eigenpairs(torch.full((5, 5), torch.nan), 1)
