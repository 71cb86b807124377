"""The same numbers on a GPU as on the CPU, by the same code; test_pretend.py runs this file where there is no GPU."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from untouched import State, data, messy

from landscape import (
    CalibrationAccumulator,
    FiniteDifferences,
    Fisher,
    GaussNewton,
    Hessian,
    Objective,
    Preconditioned,
    Task,
    calibration_error,
    eigenpairs,
    open_archive,
    plane,
    random_direction,
    sharpness,
    spectral_density,
    trace,
    trajectory,
    widest,
)
from landscape.curvature.batch_sharpness import measure_batch_sharpness
from landscape.curvature.coherence import measure_coherence
from landscape.curvature.second_opinion import measure_reference
from landscape.errors import MeasurementError
from landscape.probes import (
    CalibrationProbe,
    Embeddings,
    GradientNoise,
    GradientNorms,
    LearningRate,
    LossTerms,
    Recorder,
    Updates,
    every,
)

pytestmark = pytest.mark.gpu


pretended = sys.modules.get("pretend_device")
DEVICE = "cuda" if pretended is None else pretended.NAME


def both(dtype: torch.dtype = torch.float64) -> list[Task]:
    # torch gives a CPU's parameters no memory of a device that isn't its own: there the model has to be there before.
    return [
        Task(
            messy() if pretended is None else messy().to(d),
            *(nn.CrossEntropyLoss(), data(60), data(61)),
            batch_size=16,
            device=d,
            dtype=dtype,
        )
        for d in ("cpu", DEVICE)
    ]


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Make it an error to wait for the device."""
    if pretended is not None:
        pretended.refuse_waiting(True)
    else:
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if pretended is not None:
            pretended.refuse_waiting(False)
        else:
            torch.cuda.set_sync_debug_mode("default")


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
    assert b.vectors.device.type == DEVICE


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


@pytest.mark.skipif(pretended is not None, reason="a CPU's parameters cannot be moved to a pretended device")
def test_a_model_on_the_cpu_stays_there():
    task = both()[1]
    before = State(task.model)
    with Objective(task) as objective:
        assert objective.parameters[0].is_cuda
        objective.gradient()
    before.unchanged()


@pytest.mark.skipif(pretended is not None, reason="the pretended device draws no numbers of its own")
def test_a_measurement_on_the_cpu_leaves_the_seed_of_a_device_that_is_used_later():
    code = """
import sys, torch
from torch import nn
from landscape import Objective, Task
torch.manual_seed(11)
if sys.argv[1] == "measured":
    x, y = torch.ones(8, 5), torch.zeros(8, dtype=torch.long)
    with Objective(Task(nn.Linear(5, 3), nn.CrossEntropyLoss(), (x, y), device="cpu")) as objective:
        objective.gradient()
assert not torch.cuda.is_initialized()
print(torch.rand(3, device="cuda").tolist())
"""
    commands = [[sys.executable, "-c", code, how] for how in ("bare", "measured")]
    bare, measured = (subprocess.run(c, capture_output=True, text=True) for c in commands)
    assert bare.stdout, bare.stderr
    assert measured.stdout == bare.stdout, measured.stderr


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
    for device in ("cpu", DEVICE):
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
                # What is made once is made in the first steps.
                with no_waiting() if device != "cpu" and i >= 2 else contextlib.nullcontext():
                    loss = nn.functional.cross_entropy(model(x), y)
                    rec.log(loss=loss, part=0.5)
                    optimizer.zero_grad()
                    loss.backward()
                    rec.clip_grad_norm_(1.0)
                    optimizer.step()
        found.append(open_archive(path).history)
    for name in ("loss", "gradient_norm", "gradient_norm_before", "clip", "update_norm", "weight_norm", "update"):
        np.testing.assert_allclose(found[1][name].values, found[0][name].values, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_the_recorder_unscales_and_counts_skipped_steps(tmp_path, fused):
    torch.manual_seed(0)
    model = nn.Linear(6, 3).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
    expected = []
    with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms()]) as rec:
        for i in range(4):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(2, 6, device=DEVICE)).square().mean()).backward()
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


def test_the_recorders_other_probes_wait_for_nothing(tmp_path):
    found = []
    for device in ("cpu", DEVICE):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3)).double().to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        g = torch.Generator().manual_seed(1)
        draws = [(torch.randn(16, 6, generator=g).double(), torch.randint(0, 3, (16,), generator=g)) for _ in range(16)]
        parts = [(x.to(device), y.to(device)) for x, y in draws]
        probes = [LearningRate(), LossTerms(every(steps=2)), CalibrationProbe(), GradientNoise(16)]
        with Recorder(tmp_path / f"{device}.h5", model, optimizer, probes=probes) as rec:
            for i in range(8):
                with no_waiting() if device != "cpu" and i >= 4 else contextlib.nullcontext():
                    optimizer.zero_grad()
                    for x, y in parts[2 * i : 2 * i + 2]:
                        outputs = model(x)
                        loss, decay = nn.functional.cross_entropy(outputs, y), model[0].weight.square().sum()
                        rec.log(loss=loss + decay, cross_entropy=loss, decay=decay)
                        ((loss + decay) / 2).backward()
                        rec.observe(outputs, y)
                    optimizer.step()
            rec.end_epoch()
        found.append(open_archive(tmp_path / f"{device}.h5").history)
    for name in (
        "loss",
        "calibration",
        "learning_rate",
        "term_gradient_norm",
        "term_cosine",
        "noise_scale",
    ):
        np.testing.assert_allclose(found[1][name].values, found[0][name].values, rtol=1e-6, atol=1e-12)


@pytest.mark.skipif(pretended is None, reason="a device without float64 is pretended")
def test_a_training_is_recorded_on_a_device_without_float64(tmp_path, monkeypatch):
    assert pretended is not None
    monkeypatch.setattr(widest, "WITHOUT_FLOAT64", {DEVICE})
    found, written = [], []
    for device in ("cpu", DEVICE):
        pretended.refuse_float64(device == DEVICE)
        try:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)).to(device)
            task = Task(model, nn.CrossEntropyLoss(), data(60, torch.float32))
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            probes = [GradientNorms(), Updates(), LearningRate(), LossTerms(every(steps=2)), CalibrationProbe()]
            probes += [GradientNoise(15), Embeddings("1", when=every(steps=1))]
            x, y = (t.to(device) for t in task.train)
            with Recorder(tmp_path / f"{device}.h5", model, optimizer, task=task, probes=probes) as rec:
                for _ in range(4):
                    optimizer.zero_grad()
                    for part in (slice(0, 15), slice(15, 30)):
                        outputs, decay = model(x[part]), model[0].weight.square().sum()
                        loss = nn.functional.cross_entropy(outputs, y[part])
                        rec.log(loss=loss + decay, cross_entropy=loss, decay=decay)
                        ((loss + decay) / 2).backward()
                        rec.observe(outputs, y[part])
                    rec.clip_grad_norm_(1.0)
                    optimizer.step()
                rec.end_epoch()
        finally:
            pretended.refuse_float64(False)
        archive = open_archive(tmp_path / f"{device}.h5")
        found.append(archive.history)
        written.append([e.message for e in archive.history.events if e.kind == "probe_failed"])
    assert written == [[], []]
    names = ("loss", "gradient_norm", "gradient_norm_before", "clip", "update_norm", "weight_norm", "update")
    more = ("learning_rate", "term_gradient_norm", "term_cosine", "noise_scale", "calibration", "embedding_rank")
    for name in (*names, *more):
        a, b = (h[name].values for h in found)
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel", "top-label"])
def test_calibration_waits_for_nothing_behind_its_first_batch(kind):
    found = []
    for device in ("cpu", DEVICE):
        g = torch.Generator().manual_seed(0)
        counted = CalibrationAccumulator(kind=kind, ignore_index=None if kind == "top-label" else -1)
        for i in range(4):
            shape = (50, 4) if kind in ("multiclass", "multilabel") else (50,)
            scores = torch.randn(shape, generator=g)
            labels = torch.randint(
                4 if kind == "multiclass" else 2, shape[:1] if kind == "multiclass" else shape, generator=g
            )
            given = {"probabilities": scores.sigmoid()} if kind == "top-label" else {"logits": scores}
            given = {k: v.to(device) for k, v in {**given, "labels": labels}.items()}
            with no_waiting() if device != "cpu" and i else contextlib.nullcontext():
                counted.update(**given)
        found.append(counted.compute())
    a, b = found
    assert (a.ece, a.brier, a.nll) == pytest.approx((b.ece, b.brier, b.nll), rel=1e-12)


def test_a_faulty_batch_on_a_device_is_named_when_it_is_asked_for():
    counted = CalibrationAccumulator()
    logits = 4 * torch.eye(3, device=DEVICE)
    counted.update(logits=logits, labels=torch.arange(3, device=DEVICE))
    counted.update(logits=logits.where(logits < 4, torch.nan), labels=torch.arange(3, device=DEVICE))
    with pytest.raises(MeasurementError, match="row 0 of update 1"):
        counted.compute()


def test_densities_and_fishers():
    for make in (GaussNewton, Fisher):
        a, b = (make(task) @ torch.ones(make(task).shape[0], dtype=torch.float64) for task in both())
        assert torch.allclose(a, b.cpu(), rtol=1e-9, atol=1e-12)
    c, d = (spectral_density(Hessian(task), draws=3, steps=12, seed=2) for task in both())
    assert np.allclose(c.density, d.density, rtol=1e-6, atol=1e-9)


def test_a_walk_through_weights_on_the_device():
    found = []
    for task in both():
        weights = {k: v.detach().clone() for k, v in task.model.state_dict().items()}
        shrunk = [{"0.weight": weights["0.weight"] * a, "4.weight": weights["4.weight"] * a * a} for a in (1, 0.9, 0.7)]
        states = [weights | some for some in shrunk]
        found.append(trajectory(task, states))
    assert np.allclose(found[0].coordinates, found[1].coordinates, rtol=1e-6, atol=1e-9)


# Whoever lets tensors be made on a GPU by default has them made there within every call, ours too.
def test_a_default_device_changes_nothing(tmp_path):
    def measured(task: Task) -> list[float]:
        A = Hessian(task)
        found = eigenpairs(A, k=3, which="both", tol=1e-8)
        optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.01)
        optimizer.step()
        path = tmp_path / f"{torch.get_default_device().type}.h5"
        with Recorder(path, task.model, optimizer, probes=[GradientNorms(), Updates()]) as rec:
            rec.log(loss=1.0)
            optimizer.step()
        x, y = task.train
        return [
            *found.values,
            *trace(A, draws=3, seed=1).samples,
            *plane(task, alphas=np.linspace(-1, 1, 3), betas=np.linspace(-1, 1, 3)).loss.ravel(),
            *sharpness(task, "sam", steps=3).values,
            *eigenpairs(Preconditioned(task, optimizer.state_dict()), k=2, tol=1e-8).values,
            calibration_error(logits=x[:, :3], labels=y).ece,
            *open_archive(path).history["update_norm"].values.ravel(),
        ]

    plain, task = measured(both()[1]), both()[1]
    torch.set_default_device(DEVICE)
    try:
        found = measured(task)
    finally:
        torch.set_default_device(None)
    assert np.allclose(found, plain, rtol=1e-6)
