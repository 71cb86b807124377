"""Measuring a model in training leaves the hooks that train it, or is refused where torch would drop them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.errors import ObjectiveError

Calls = list[str]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(12, 4, generator=g), torch.randint(0, 3, (12,), generator=g)


def node(p: nn.Parameter) -> Any:
    return torch.autograd.graph.get_gradient_edge(p).node


def behind(model: nn.Module, calls: Calls) -> Any:
    nodes = [node(p) for p in model.parameters()]
    for n in nodes:
        n.register_hook(lambda *_: calls.append("behind"))
    return nodes


def before(model: nn.Module, calls: Calls) -> Any:
    nodes = [node(p) for p in model.parameters()]
    for n in nodes:
        n.register_prehook(lambda *_: calls.append("before"))
    return nodes


def several(model: nn.Module, calls: Calls) -> Any:
    return torch.autograd.graph.register_multi_grad_hook(
        tuple(model.parameters()), lambda *_: calls.append("several"), mode="all"
    )


def on_parameters(model: nn.Module, calls: Calls) -> Any:
    for p in model.parameters():
        p.register_hook(lambda _: calls.append("gradient"))
        p.register_post_accumulate_grad_hook(lambda _: calls.append("accumulated"))


Put = Callable[[nn.Module, Calls], Any]
LOST: list[Put] = [behind, before, several]


def trains(model: nn.Module) -> None:
    x, y = data()
    F.cross_entropy(model(x), y).backward()


def measured(model: nn.Module, dtype: torch.dtype | None) -> None:
    with ls.Hessian(ls.Task(model, F.cross_entropy, data(), dtype=dtype)) as H:
        ls.eigenpairs(H, k=1)


@pytest.mark.parametrize("put", [*LOST, on_parameters])
def test_hooks_stay_and_see_nothing_of_a_measurement(put: Put) -> None:
    model, calls = net(), Calls()
    kept = put(model, calls)
    trains(model)
    once = list(calls)
    measured(model, None)
    if put is on_parameters:  # torch keeps these in any precision
        measured(model, torch.float64)
    assert calls == once
    trains(model)
    assert calls == 2 * once
    del kept


@pytest.mark.parametrize("put", LOST)
def test_another_precision_is_refused_where_it_would_cut_them_off(put: Put) -> None:
    model, calls = net(), Calls()
    kept = put(model, calls)
    trains(model)
    once = list(calls)
    with pytest.raises(ObjectiveError, match=r"\(0.weight\) have hooks on what accumulates .* in float64 on cpu where"):
        measured(model, torch.float64)
    trains(model)
    assert calls == 2 * once
    del kept


def stepping(model: nn.Module) -> list[Any]:
    """Let each parameter take its step in the backward pass, as torch.distributed.optim does it."""
    nodes = []
    for p in model.parameters():
        own = torch.optim.SGD([p], lr=0.1)

        def step(*_: Any, own: torch.optim.Optimizer = own) -> None:
            own.step()
            own.zero_grad()

        nodes.append(node(p))
        nodes[-1].register_hook(step)
    return nodes


def test_an_optimizer_in_the_backward_pass_goes_on() -> None:
    model, twin = net(), net()
    kept = [stepping(m) for m in (model, twin)]
    for m in (model, twin):
        trains(m)
    with pytest.raises(ObjectiveError, match="an optimizer that steps in the backward pass"):
        measured(model, torch.float64)
    measured(model, None)
    for m in (model, twin):
        trains(m)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), net().parameters(), strict=True))
    del kept


def test_a_graph_that_is_still_there_is_no_hook() -> None:
    model = net()
    x, y = data()
    loss = F.cross_entropy(model(x), y)
    measured(model, torch.float64)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


class PerSample:
    """Hooks that give each parameter the gradients of its samples, as libraries for private training have them: one
    backward pass for each forward pass, of which they keep count.
    """

    def __init__(self, model: nn.Sequential):
        self.found: Calls = []
        for layer in (model[0], model[2]):
            layer.inputs, layer.weight.pending = [], 0
            layer.register_forward_hook(self.forward)
            layer.register_full_backward_hook(self.backward)

    def forward(self, layer: Any, args: Any, _: Any) -> None:
        if layer.training and torch.is_grad_enabled():
            layer.inputs.append(args[0].detach())
            layer.weight.pending += 1

    def backward(self, layer: Any, _: Any, grads: Any) -> None:
        layer.inputs.pop()
        layer.weight.pending -= 1
        self.found.append("all" if not layer.weight.pending and not layer.inputs else "some")


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_backward_hooks_of_modules_are_set_aside_and_find_what_they_left(mode):
    model, (x, y) = net(), data()
    hooks = PerSample(model)
    with ls.Hessian(ls.Task(model, nn.CrossEntropyLoss(), (x, y), mode=mode)) as A:
        found = A @ torch.eye(A.shape[0])
        assert any("backward hooks of 2 modules (0 first)" in note for note in A.objective.notes)
    assert hooks.found == []
    with ls.Hessian(ls.Task(net(), nn.CrossEntropyLoss(), (x, y))) as A:
        torch.testing.assert_close(found, A @ torch.eye(A.shape[0]))
    F.cross_entropy(model(x.requires_grad_()), y).backward()
    assert hooks.found == ["all", "all"]
