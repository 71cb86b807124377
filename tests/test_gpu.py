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
    open_archive,
    plane,
    random_direction,
    sharpness,
    trace,
)
from landscape.curvature.batch_sharpness import measure_batch_sharpness
from landscape.curvature.coherence import measure_coherence
from landscape.curvature.second_opinion import measure_reference
from landscape.probes import GradientNorms, LearningRate, Recorder, Updates

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


def test_the_recorder_waits_for_nothing_in_a_step_and_says_what_the_cpu_says(tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).double().to(device)
        model.unused = nn.Parameter(torch.zeros(2, dtype=torch.float64, device=device))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        g = torch.Generator().manual_seed(1)
        batches = [
            (torch.randn(16, 6, generator=g).double(), torch.randint(0, 3, (16,), generator=g)) for _ in range(6)
        ]
        batches = [(x.to(device), y.to(device)) for x, y in batches]
        path = tmp_path / device / "run.h5"
        with Recorder(path, model, optimizer, probes=[GradientNorms(), Updates(), LearningRate()]) as rec:
            for i, (x, y) in enumerate(batches):
                if device == "cuda" and i == 2:  # what is made once is made
                    torch.cuda.synchronize()
                    torch.cuda.set_sync_debug_mode("error")
                loss = nn.functional.cross_entropy(model(x), y)
                rec.log(loss=loss, part=0.5)
                optimizer.zero_grad()
                loss.backward()
                rec.clip_grad_norm_(1.0)
                optimizer.step()
            torch.cuda.set_sync_debug_mode("default")
        found.append(open_archive(path).history)
    for name in ("loss", "gradient_norm", "gradient_norm_before", "clip", "update_norm", "weight_norm", "update"):
        np.testing.assert_allclose(found[1][name].values, found[0][name].values, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_the_recorder_unscales_and_counts_skipped_steps(tmp_path, fused):
    torch.manual_seed(0)
    model = nn.Linear(6, 3).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    expected = []
    with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms()]) as rec:
        for i in range(4):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 6, device="cuda")).square().mean()).backward()
            if i == 1:
                model.weight.grad[0, 0] = torch.inf
            else:
                expected.append(float(model.weight.grad.double().norm()) / scaler.get_scale())
            scaler.step(optimizer)
            scaler.update()
        rec.log(done=1)
    h = open_archive(tmp_path / "run.h5").history
    assert h["skipped"].column("steps").sum() == 1
    norms = h["gradient_norm"].column("weight")
    np.testing.assert_allclose(norms[np.isfinite(norms)], expected, rtol=1e-5)
