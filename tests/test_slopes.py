"""The loss's own slope beside its gradient's: close where curvature is large, no alarm where a loss stands still."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import Task
from landscape.curvature.slopes import dot, own_slope
from landscape.objective import Objective


def compared(model, loss, data, dtype, scale=1.0):
    """Return the slopes along the gradient, whose own is given `scale` times too large."""
    with Objective(Task(model, loss, train=data, dtype=dtype), "train") as objective:
        checkpoint = objective.evaluate(stderr=True)
        gradient = [g.clone() for g in objective.gradient()]
        return own_slope(objective, gradient, scale * dot(gradient, gradient), checkpoint)


@pytest.mark.parametrize(("scale", "wrong"), [(1.0, False), (1.1, True)])
def test_curvature_hides_no_wrong_gradient(scale, wrong):
    # A hundredth of ||theta|| from the minimum of a parabola the slope changes by more than itself over four steps.
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    x = torch.eye(6, dtype=torch.float64)
    found = compared(model, nn.MSELoss(), (x, 1.01 * (x @ model.weight.detach().T)), torch.float64, scale)
    assert found.wrong == wrong
    # The central difference of a parabola is exact: what is left is rounding.
    assert found.seen == pytest.approx(found.expected / scale, rel=1e-9)


@pytest.mark.parametrize("size", [12.0, 16.0, 17.5, 30.0])
def test_a_likelihood_that_stands_still_in_float32_is_no_wrong_gradient(size):
    # -log p is a multiple of float32's epsilon near p = 1, and 0 at last, while its gradient 1 - p is not.
    torch.manual_seed(0)
    model = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(size * torch.eye(3))
    x = torch.eye(3).repeat(4, 1)
    assert not compared(model, F.cross_entropy, (x, torch.arange(3).repeat(4)), torch.float32).wrong
    assert not compared(model, F.cross_entropy, (x, torch.arange(3).repeat(4)), torch.float64).wrong


def test_a_kink_beside_the_checkpoint_is_within_the_limit():
    # |w| beside its kink: the loss bends within a step on one side only.
    model = nn.Linear(1, 1, bias=False).double()
    for at in (0.3, 0.9, 1.3):
        with torch.no_grad():
            model.weight.fill_(1.0)
        kink = 1 - at * 2e-3
        found = compared(
            model,
            lambda out, y, kink=kink: (out - kink).abs().mean() + 0 * y.mean(),
            (torch.ones(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)),
            torch.float64,
        )
        assert not found.wrong
