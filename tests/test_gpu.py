"""The same numbers on a GPU as on the CPU, by the same code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from untouched import State, data, messy

from landscape import (
    FiniteDifferences,
    Hessian,
    Objective,
    Preconditioned,
    Task,
    eigenpairs,
    plane,
    random_direction,
    sharpness,
    trace,
)
from landscape.curvature.batch_sharpness import measure_batch_sharpness
from landscape.curvature.coherence import measure_coherence
from landscape.curvature.second_opinion import measure_reference

pytestmark = pytest.mark.gpu


def both(dtype: torch.dtype = torch.float64) -> list[Task]:
    return [
        Task(messy(), nn.CrossEntropyLoss(), data(60), data(61), batch_size=16, device=d, dtype=dtype)
        for d in ("cpu", "cuda")
    ]


def test_loss_and_gradient():
    found = []
    for task in both():
        with Objective(task) as objective:
            found.append((objective.evaluate(accuracy=True, stderr=True), [g.cpu() for g in objective.gradient()]))
    assert found[0][0].loss == pytest.approx(found[1][0].loss, rel=1e-12)
    assert found[0][0].accuracy == found[1][0].accuracy
    for a, b in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_eigenvalues():
    a, b = (eigenpairs(Hessian(task), k=4, which="both", tol=1e-8) for task in both())
    assert np.allclose(a.values, b.values, rtol=1e-7)
    assert np.allclose(a.smallest, b.smallest, rtol=1e-6)
    assert b.vectors.device.type == "cuda"


def test_float32_agrees_with_float64():
    exact, rough = both()[0], both(torch.float32)[1]
    a, b = eigenpairs(Hessian(exact), k=3, tol=1e-8), eigenpairs(Hessian(rough), k=3, tol=1e-3)
    assert np.abs(a.values - b.values).max() <= 1e-4 * a.values[0]


def test_random_numbers_do_not_depend_on_the_device():
    cpu, cuda = both()
    for name, value in random_direction(cpu, seed=3).items():
        assert torch.allclose(value.cpu(), random_direction(cuda, seed=3)[name].cpu(), rtol=1e-12)
    a, b = (trace(Hessian(task), draws=3, seed=1) for task in (cpu, cuda))
    assert np.allclose(a.samples, b.samples, rtol=1e-9)


def test_surface_and_sharpness():
    axis = np.linspace(-1, 1, 5)
    a, b = (plane(task, alphas=axis, betas=axis) for task in both())
    assert np.allclose(a.loss, b.loss, rtol=1e-9)
    c, d = (sharpness(task, "sam", steps=5) for task in both())
    assert np.allclose(c.values, d.values, rtol=1e-6)


def test_a_model_on_the_cpu_stays_there():
    task = both()[1]
    before = State(task.model)
    with Objective(task) as objective:
        assert objective.parameters[0].is_cuda
        objective.gradient()
    before.unchanged()


def test_second_opinions():
    a, b = (measure_reference(task, draws=8) for task in both())
    assert {c.level for c in b.checks if "trace" not in c.name} == {"pass"}
    assert np.allclose(a.ours[:2], b.ours[:2], rtol=1e-5)


def test_preconditioned_operators_and_finite_differences():
    found = []
    for task in both():
        optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.01)
        optimizer.step()  # from the gradients that the model holds
        A = Preconditioned(task, optimizer.state_dict())
        v = torch.ones(A.shape[0], dtype=torch.float64)
        differences = FiniteDifferences(task) @ v
        found.append([(A @ v).cpu(), differences.cpu()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_coherence_and_batch_sharpness():
    a, b = (measure_coherence(task, batch=16) for task in both())
    assert (a.sigma, a.eigenvalue) == pytest.approx((b.sigma, b.eigenvalue), rel=1e-8)
    a, b = (measure_batch_sharpness(task, batch=16) for task in both())
    assert a.value == pytest.approx(b.value, rel=1e-8)
