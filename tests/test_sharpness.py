"""Sharpness against closed forms on quadratics, and its behaviour under a rescaling of ReLU layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from landscape import Objective, Task, sharpness
from landscape.curvature.sharpness import KINDS, measure_sharpness
from landscape.errors import MeasurementError


def regression(n: int = 40) -> tuple[Task, torch.Tensor, torch.Tensor]:
    """Return a quadratic task with its Hessian and gradient at the weights."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=g).double() * torch.tensor([3.0, 1.0, 1.0, 0.5])
    y = torch.randn(n, 1, generator=g).double()
    torch.manual_seed(1)
    model = nn.Linear(4, 1, bias=False).double()
    hessian = 2 * x.T @ x / n
    gradient = (2 * x.T @ (x @ model.weight.detach().T - y) / n)[:, 0]
    return Task(model, nn.MSELoss(), (x, y)), hessian, gradient


def trust_region(hessian: np.ndarray, gradient: np.ndarray, rho: float) -> float:
    """Return max over ||e|| <= rho of g.e + e'He/2: e = (mu - H)^-1 g with ||e|| = rho and mu > lambda_max."""
    values, vectors = np.linalg.eigh(hessian)
    c = vectors.T @ gradient
    mu = brentq(lambda m: np.linalg.norm(c / (m - values)) - rho, values[-1] + 1e-9, values[-1] + 1e6)
    e = c / (mu - values)
    return float(c @ e + 0.5 * (values * e * e).sum())


def rescalable() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()


def labelled(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=g).double(), torch.randint(3, (n,), generator=g)


class TestClosedForms:
    @pytest.mark.parametrize("rho", [0.05, 0.5, 5.0])
    def test_worst_case_of_a_quadratic_is_the_trust_region_maximum(self, rho):
        task, hessian, gradient = regression()
        found = sharpness(task, "sam", rho=rho, batch=1000, steps=300)
        assert found.values[0] == pytest.approx(trust_region(hessian.numpy(), gradient.numpy(), rho), rel=1e-6)

    def test_adaptive_is_that_of_the_scaled_quadratic(self):
        task, hessian, gradient = regression()
        d = task.model.weight.detach().abs()[0]
        expected = trust_region((d[:, None] * hessian * d).numpy(), (d * gradient).numpy(), 0.5)
        assert sharpness(task, "adaptive", rho=0.5, batch=1000, steps=300).values[0] == pytest.approx(
            expected, rel=1e-6
        )

    def test_average_of_a_quadratic_is_half_the_trace(self):
        task, hessian, _ = regression()
        found = sharpness(task, "average", rho=0.1, draws=400)
        assert abs(found.values[0] - 0.005 * hessian.trace().item()) <= 4 * found.stderr[0]
        assert found.stderr[0] < 0.2 * found.values[0]

    def test_m_sharpness_is_the_mean_of_the_batches_own_worst_cases(self):
        task, _, _ = regression(40)
        with Objective(task, regroup=20) as objective:
            batches = [objective.batch(i) for i in range(len(objective))]
        assert torch.equal(torch.cat([x for x, _ in batches]).sort(0).values, task.train[0].sort(0).values)
        expected = []
        for x, y in batches:
            h = 2 * x.T @ x / 20
            g = (2 * x.T @ (x @ task.model.weight.detach().T - y) / 20)[:, 0]
            expected.append(trust_region(h.numpy(), g.numpy(), 0.3))
        found = sharpness(task, "sam", rho=0.3, batch=20, steps=300)
        assert found.values[0] == pytest.approx(np.mean(expected), rel=1e-6)
        assert found.stderr[0] == pytest.approx(np.std(expected, ddof=1) / np.sqrt(2), rel=1e-6)

    def test_at_a_stationary_point_the_worst_case_is_half_rho_squared_lambda_max(self):
        x = torch.diag(torch.tensor([3.0, 1.0, 1.0])).double()
        model = nn.Linear(3, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        task = Task(model, nn.MSELoss(), (x, torch.zeros(3, 1).double()))
        found = sharpness(task, "sam", rho=0.2, batch=100, steps=100)
        assert found.values[0] == pytest.approx(0.5 * 0.04 * 2 * 9 / 3, rel=1e-8)


class TestRescaling:
    @pytest.mark.parametrize("kind", list(KINDS))
    def test_the_mark_says_whether_a_rescaling_of_relu_layers_changes_it(self, kind):
        values = []
        for factor in (1.0, 10.0):
            model = rescalable()
            with torch.no_grad():
                model[0].weight.mul_(factor)
                model[2].weight.div_(factor)
            found = sharpness(Task(model, nn.CrossEntropyLoss(), labelled()), kind, rho=0.05)
            values.append(found.values[0])
        changed = abs(values[1] / values[0] - 1) > 0.05
        assert changed == bool(found.rescaling[0])


class TestUse:
    def test_the_measurement_gives_all_kinds_with_seeds_that_repeat(self):
        task = Task(rescalable(), nn.CrossEntropyLoss(), labelled())
        a, b, c = (measure_sharpness(task, steps=3, draws=5, batch=16, seed=s) for s in (0, 0, 1))
        assert a.names == tuple(KINDS)
        assert (a.values == b.values).all()
        assert (a.stderr == b.stderr).all()
        assert a.values[2] != c.values[2]
        assert set(a.summary()["sam"]) >= {"value", "stderr", "rho"}
        assert (a.values[:2] > 0).all()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [({"kind": "flat"}, "not one of sam"), ({"rho": -1.0}, "positive"), ({"steps": 0}, "steps=0")],
    )
    def test_bad_arguments(self, arguments, said):
        with pytest.raises(MeasurementError, match=said):
            sharpness(Task(rescalable(), nn.CrossEntropyLoss(), labelled()), **arguments)


class TestBatches:
    def test_the_loaders_batches_and_the_order_of_the_samples_do_not_matter(self):
        """Both depend on how somebody trained, or stored the data; the size of m-sharpness's batches is ours."""
        x, y = labelled(96)
        order = y.argsort()
        found = [
            sharpness(Task(rescalable(), nn.CrossEntropyLoss(), data), "sam", rho=0.5, batch=32)
            for data in ((x, y), list(zip(x.split(7), y.split(7), strict=True)))
        ]
        assert found[0].values[0] == pytest.approx(found[1].values[0], rel=1e-10)
        assert found[1].settings["batch"] == 32
        assert found[1].warnings == ()
        by_class = sharpness(
            Task(rescalable(), nn.CrossEntropyLoss(), (x[order], y[order])), "sam", rho=0.5, batch=32
        ).values[0]
        pure = [(x[order][i : i + 32], y[order][i : i + 32]) for i in range(0, 96, 32)]
        kept = sharpness(Task(rescalable(), nn.CrossEntropyLoss(), pure, rebatch=False), "sam", rho=0.5, batch=32)
        # Batches of one class rise much more than mixed ones, whose values differ by how they were mixed.
        assert abs(by_class - found[0].values[0]) < 0.2 * abs(kept.values[0] - found[0].values[0])

    def test_batches_that_must_stay_whole_are_said(self):
        x, y = labelled(96)
        task = Task(rescalable(), nn.CrossEntropyLoss(), (x, y), batch_size=24, rebatch=False)
        found = sharpness(task, "sam", batch=32)
        assert found.settings["batch"] == 24
        assert "batches of at most 24 samples, not 32" in found.warnings[0]
        assert sharpness(task, "average", batch=32).warnings == ()
