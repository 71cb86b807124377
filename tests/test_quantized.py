"""Quantized models: what can't be measured is refused with the line that helps, and the line helps."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao import quantization

from landscape import Hessian, Objective, Task, eigenpairs
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


class _Bytes(torch.Tensor):
    """Stands for a float tensor, and holds bytes and a scale, as the tensors of quantizing libraries do."""

    @staticmethod
    def __new__(cls, held: torch.Tensor, scale: float):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=torch.float32)

    def __init__(self, held: torch.Tensor, scale: float):
        self.held, self.scale = held, scale

    def __tensor_flatten__(self):
        return ["held"], self.scale

    @staticmethod
    def __tensor_unflatten__(inner, scale, outer_size, outer_stride):
        return _Bytes(inner["held"], scale)

    def plain(self) -> torch.Tensor:
        return self.held * self.scale

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return cls(args[0].held, args[0].scale)
        return function(*(a.plain() if isinstance(a, cls) else a for a in args), **(kwargs or {}))


class _Int8(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight * 0.01, self.bias)


def _weight_only(kind: str, *, bias: bool = True) -> nn.Module:
    net = _net() if kind == "wrapped" else nn.Sequential(_Int8(5, 8), nn.ReLU(), _Int8(8, 3))
    for layer in (net[0], net[2]):
        held = (layer.weight.detach() * 100).to(torch.int8)
        layer.weight = nn.Parameter(_Bytes(held, 0.01) if kind == "wrapped" else held, requires_grad=False)
        if not bias:
            layer.bias = None
    return net


@pytest.mark.parametrize("kind", ["wrapped", "as it is"])
def test_quantized_weights_are_refused_or_said_to_be_held_fixed(kind):
    """Else the curvature of the biases alone would pass for the model's."""
    with pytest.raises(ObjectiveError, match=r"^2 weights are quantized \(0.weight, .*the model that was quantized"):
        evaluate_checkpoint(_task(_weight_only(kind)))
    with pytest.raises(ObjectiveError, match=r"none of .* requires a gradient: 2 weights are quantized"):
        evaluate_checkpoint(_task(_weight_only(kind, bias=False)))
    chosen = _weight_only(kind)
    chosen[0].bias.requires_grad_(False)  # what is trained was chosen: an adapter, a head
    with Objective(_task(chosen)) as objective:
        assert objective.names == ("2.bias",)
        assert any("2 weights are quantized" in note and "held fixed" in note for note in objective.notes)
