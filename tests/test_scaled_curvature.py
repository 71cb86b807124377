"""Curvature scaled by the filters' norms: against the dense matrix, and under real rescalings of ReLU layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Hessian, Task
from landscape.curvature.scaled import filter_scaled, measure_scaled_curvature
from landscape.errors import MeasurementError


def net(factor: float = 1.0) -> nn.Sequential:
    """A ReLU net whose function does not depend on the factor (biases of the first layer scale with it)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in model[0].parameters():
            p.mul_(factor)
        model[3].weight.div_(factor)
    return model


def task(factor: float = 1.0) -> Task:
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(40, 2, 3, generator=g).double(), torch.randint(3, (40,), generator=g)
    return Task(net(factor), nn.CrossEntropyLoss(), (x, y), batch_size=16)


def dense(A) -> np.ndarray:
    return (A @ torch.eye(A.shape[0], dtype=torch.float64)).numpy()


def scales(model: nn.Sequential) -> np.ndarray:
    """Return each weight's filter norm by a loop over filters; 0 for biases."""
    found = []
    for p in model.parameters():
        s = torch.zeros_like(p)
        if p.ndim > 1:
            for i in range(len(p)):
                s[i] = p[i].detach().square().sum().sqrt()
        found.append(s.detach().reshape(-1))
    return torch.cat(found).numpy()


def test_the_operator_is_the_dense_matrix_scaled_on_both_sides():
    t = task()
    s = scales(t.model)
    H = Hessian(t)
    assert dense(filter_scaled(H)) == pytest.approx(s[:, None] * dense(H) * s, rel=1e-10, abs=1e-12)


def test_filters_of_transposed_layers_lie_along_their_outputs():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose1d(2, 3, 2, bias=False), nn.Flatten(), nn.Linear(12, 1, bias=False)).double()
    x = torch.randn(5, 2, 3).double()
    found = filter_scaled(Hessian(Task(model, nn.MSELoss(), (x, torch.zeros(5, 1).double())))).scale[:12].view(2, 3, 2)
    assert torch.allclose(found, model[0].weight.detach().norm(dim=(0, 2)).view(1, 3, 1).expand(2, 3, 2))


def test_the_numbers_are_those_of_the_dense_matrices():
    t = task()
    found = measure_scaled_curvature(t, draws=400, tol=1e-8)
    H = Hessian(t)
    values = dict(zip(found.names, zip(found.values, found.stderr, strict=True), strict=True))
    for suffix, A in (("", H), ("_filter", filter_scaled(H))):
        matrix = dense(A)
        assert values[f"lambda_max{suffix}"][0] == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-9)
        for name, exact in (("trace", np.trace(matrix)), ("frobenius", np.linalg.norm(matrix))):
            value, stderr = values[f"{name}{suffix}"]
            assert abs(value - exact) <= 4 * stderr
            assert 0 < stderr < 0.2 * exact
    assert found.status == "complete"
    assert found.products > 800
    assert found.summary()["trace_filter"]["rescaling_changes_it"] is False


def test_the_mark_says_whether_a_rescaling_of_relu_layers_changes_it():
    before, after = (measure_scaled_curvature(task(factor), draws=8, tol=1e-8) for factor in (1.0, 5.0))
    for name, one, other, mark in zip(before.names, before.values, after.values, before.rescaling, strict=True):
        assert (abs(other / one - 1) > 0.05) == mark, name
        if not mark:
            assert other == pytest.approx(one, rel=1e-7)


@pytest.mark.parametrize(("scaling", "count"), [("both", 6), ("filter", 3), ("none", 3)])
def test_which_are_measured(scaling, count):
    found = measure_scaled_curvature(task(), scaling=scaling, draws=2)
    assert len(found.names) == count
    assert found.rescaling.tolist() == [True] * 3 * (scaling != "filter") + [False] * 3 * (scaling != "none")


def test_bad_input():
    with pytest.raises(MeasurementError, match="scaling='layer' is not one of both, filter, none"):
        measure_scaled_curvature(task(), scaling="layer")  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="draws=1"):
        measure_scaled_curvature(task(), draws=1)
    model = nn.Sequential(nn.BatchNorm1d(3)).double()
    x = torch.randn(5, 3).double()
    with pytest.raises(MeasurementError, match="no parameter has filters"):
        filter_scaled(Hessian(Task(model, nn.MSELoss(), (x, x))))
