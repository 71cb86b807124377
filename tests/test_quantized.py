"""Quantized models: what can't be measured is refused with the line that helps, and the line helps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao import quantization

from landscape import Hessian, Task, eigenpairs
from landscape.errors import ObjectiveError
from landscape.evaluation import evaluate_checkpoint
from landscape.probes.derivatives import twice_differentiable

pytestmark = pytest.mark.filterwarnings("ignore")


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def _task(net: nn.Module) -> Task:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(64, 5, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    return Task(net, nn.CrossEntropyLoss(), train=(x, y))


def test_observers_that_change_at_each_call_are_named_and_can_be_stopped():
    net, plain = _net().train(), _net()
    net.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(net, inplace=True)
    net(torch.randn(16, 5))
    with pytest.raises(ObjectiveError, match=r"observe the ranges.*apply\(torch.ao.quantization.disable_observer\)"):
        evaluate_checkpoint(_task(copy.deepcopy(net)))
    net.apply(quantization.disable_observer)
    assert torch.isfinite(torch.as_tensor(evaluate_checkpoint(_task(net)).loss)).all()
    check = twice_differentiable(_task(net))
    assert check.level == "fail"
    assert "let its gradient straight through" in check.message
    net.apply(quantization.disable_fake_quant)
    assert twice_differentiable(_task(net)).level != "fail"
    values = []
    for one in (net, plain):
        with Hessian(_task(one)) as operator:
            values.append(torch.as_tensor(eigenpairs(operator, k=1).values))
    torch.testing.assert_close(*values, rtol=1e-4, atol=0)


def test_weights_packed_after_training_are_refused_with_what_can_be_measured():
    packed = quantization.quantize_dynamic(_net(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ObjectiveError, match=r"its weights are packed.*landscape calibrate"):
        evaluate_checkpoint(_task(packed))
