"""A missing part of the second derivative is refused however small, and a kink is no missing part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import small_world
import torch
import torch.nn.functional as F
from torch import nn

from landscape import Hessian, Objective, Task, save_checkpoint
from landscape.probes.derivatives import _Differences, _unit, twice_differentiable


def net(activation: Callable[[], nn.Module] = nn.Tanh, outputs: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, outputs))


def data(n: int = 60, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1)), torch.arange(n) % classes


def zeroed(model: nn.Sequential) -> nn.Sequential:
    """Put every unit of the first layer exactly on its kink."""
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    return model


class Squared(nn.Module):
    """relu(x)^2: its second derivative jumps at 0, not its first."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) ** 2


class InFloat32(nn.Module):
    """A norm that computes in float32 whatever comes, as those of language models do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).type_as(x)


# ------------------------------------------------------------------------------------------------ what is missing


class Coupled(nn.Module):
    """w.w / 2 + size (a.w)(b.w) with a.w detached: the product is v, differences of gradients v + size b (a.v)."""

    def __init__(self, size: float) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(8, generator=g, dtype=torch.float64))
        self.a, self.b = torch.randn(2, 8, generator=g, dtype=torch.float64)
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.w.square().sum() / 2 + self.size * (self.a @ self.w).detach() * (self.b @ self.w))


@pytest.mark.parametrize("size", [1.0, 0.1, 0.01, 0.001])
def test_the_missing_part_is_measured(size):
    model = Coupled(size)
    x = torch.ones(4, 1, dtype=torch.float64)
    check = twice_differentiable(Task(model, lambda outputs, _: outputs.mean(), (x, x)))
    v = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v /= v.norm()
    missing = size * model.b * (model.a @ v)
    assert check.level == "fail"
    # Differences 1e-9 apart and shorter: rounding is 1e-6 of the gradient, which is here about as large as the product.
    assert check.value == pytest.approx(float(missing.norm() / max(v.norm(), (v + missing).norm())), rel=1e-2)


def policy_gradient(scale: float, model: nn.Module) -> Task:
    """The last output is a baseline: subtracted from the rewards without being differentiated, and fitted to them."""

    def loss(outputs: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        taken = F.log_softmax(outputs[:, :3], 1).gather(1, (reward.long() % 3)[:, None])[:, 0]
        baseline = outputs[:, 3]
        advantage = (reward - scale * baseline).detach()
        return (0.5 * (reward - baseline) ** 2 - advantage * taken).mean()

    x, reward = data(classes=5)
    return Task(model, loss, (x, reward.to(x)))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize(("scale", "about"), [(2.5, 0.09), (0.3, 0.01), (0.03, 0.001)])
def test_a_detached_baseline_is_refused_however_small_its_part(activation, scale, about):
    check = twice_differentiable(policy_gradient(scale, net(activation, outputs=4)))
    assert check.level == "fail"
    assert about / 2 < check.value < 2 * about
    assert "a part of the loss's second derivative is missing" in check.message
    assert "--only eigenvalues_by_differences" in check.message


@pytest.mark.parametrize(("size", "level"), [(0.0, "pass"), (0.01, "fail")])
def test_of_a_batch_that_takes_long_a_part_is_compared(size, level, monkeypatch):
    seen = []

    class Seen(Coupled):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    x = torch.ones(60, 1, dtype=torch.float64)
    task = Task(Seen(size), lambda outputs, _: outputs.mean(), (x, x))
    monkeypatch.setattr("landscape.probes.derivatives.PASS", 0.0)
    check = twice_differentiable(task)
    assert check.level == level
    assert check.message.endswith("(on 2 samples: one pass over more takes long)")
    assert seen[-6:] == [2] * 6
    whole = twice_differentiable(Task(Seen(size), lambda outputs, _: outputs.mean(), [(x, x)], rebatch=False))
    assert whole.level == level
    assert "samples" not in whole.message  # they can't be cut, and it is not said that they were
    seen.clear()
    monkeypatch.setattr("landscape.probes.derivatives.PASS", 1e9)
    assert twice_differentiable(task).level == level
    assert 2 not in seen


def test_a_loss_that_cannot_be_measured_is_the_checks_message():
    check = twice_differentiable(Task(net(), lambda outputs, _: outputs.sum(), data()))
    assert check.level == "fail"
    assert "sums over the samples of a batch" in check.message


def test_a_missing_part_is_found_beside_kinks_at_the_weights():
    assert twice_differentiable(policy_gradient(0.3, zeroed(net(nn.ReLU, outputs=4)))).level == "fail"
    assert twice_differentiable(policy_gradient(0.0, zeroed(net(nn.ReLU, outputs=4)))).level == "warn"


def focal(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    each = F.cross_entropy(outputs, target, reduction="none")
    return ((1 - torch.exp(-each)).square().detach() * each).mean()


def test_detached_weights_of_a_loss_are_refused():
    assert twice_differentiable(Task(net(nn.ReLU), focal, data())).level == "fail"


def test_a_policy_with_a_detached_baseline_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.py").write_text(
        "from landscape import task\nimport test_derivatives\n\n\n@task\ndef policy():\n"
        "    return test_derivatives.policy_gradient(2.5, test_derivatives.net(outputs=4))\n"
    )
    save_checkpoint("policy.pt", net(outputs=4), task="policy.py:policy")
    said = small_world.landscape("probe", "policy.pt", "--only", "performance,trace")
    assert "not measured: trace: a part of the loss's second derivative is missing" in said.output
    checked = small_world.landscape("check", "policy.py:policy")
    assert "a part of the loss's second derivative is missing" in " ".join(checked.output.split())
    (shown,) = small_world.results("policy.pt", "--only", "eigenvalues_by_differences", "--force")
    assert len(shown["curvature"]["eigenvalues"]) == 5


class Forgetful(torch.autograd.Function):
    """w.w / 2, with a backward that leaves its own dependence on w out."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
        ctx.w = w.detach().clone()
        return w.square().sum() / 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * ctx.w


class Kinked(nn.Module):
    """w.w / 2 (its half frozen with `forgets`) and a ReLU that switches 3e-7 from the weights, along the check's v."""

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        v = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.w = nn.Parameter(torch.arange(5.0, dtype=torch.float64))
        self.register_buffer("v", v / v.norm())
        self.register_buffer("switch", self.v @ self.w.detach() + 3e-7)
        self.forgets = forgets

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        smooth = Forgetful.apply(self.w) if self.forgets else self.w.square().sum() / 2
        return x * (smooth + torch.relu(self.v @ self.w - self.switch))


@pytest.mark.parametrize(("forgets", "level"), [(False, "pass"), (True, "fail")])
def test_a_kink_next_to_the_weights_is_told_from_a_missing_derivative(forgets, level):
    x = torch.ones(4, 1, dtype=torch.float64)
    check = twice_differentiable(Task(Kinked(forgets), lambda outputs, _: outputs.mean(), (x, x)))
    assert check.level == level, check.message


# ---------------------------------------------------------------------------------------------- what is not missing


@pytest.mark.parametrize(
    "activation", [nn.Tanh, nn.GELU, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Hardswish, nn.ReLU6], ids=lambda a: a.__name__
)
def test_activations_pass(activation):
    check = twice_differentiable(Task(net(activation), nn.CrossEntropyLoss(), data()))
    assert check.level == "pass"
    assert check.value < 1e-6


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ELU, Squared], ids=lambda a: a.__name__)
def test_units_exactly_on_their_kink_are_accepted_and_it_is_said(activation):
    check = twice_differentiable(Task(zeroed(net(activation)), nn.CrossEntropyLoss(), data()))
    assert check.level == "warn"
    assert "at the weights, where the gradient has a kink" in check.message
    assert "beside them they agree to" in check.message


def test_inputs_of_zeros_and_maxima_that_tie_are_accepted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    x = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    x[:, :, :4] = 0
    assert twice_differentiable(Task(model, nn.CrossEntropyLoss(), (x, torch.arange(20) % 3))).level == "pass"
    model[0] = nn.Conv2d(1, 4, 3)
    nn.init.zeros_(model[0].bias)  # every unit that sees zeros alone is on its kink, and all of them tie
    assert twice_differentiable(Task(model, nn.CrossEntropyLoss(), (x, torch.arange(20) % 3))).level == "warn"


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(), nn.MSELoss()], ids=str)
@pytest.mark.parametrize("fitted", [False, True])
def test_losses_with_kinks_are_accepted_also_where_every_residual_sits_on_one(loss, fitted):
    model = net(outputs=1).double()
    x = data()[0].double()
    target = model(x).detach() if fitted else torch.randn(60, 1, generator=torch.Generator().manual_seed(5)).double()
    check = twice_differentiable(Task(model, loss, (x, target)))
    assert check.level == ("warn" if fitted and isinstance(loss, nn.L1Loss) else "pass"), check.message


def test_residuals_where_hubers_loss_changes_its_curvature_are_accepted():
    model = net(outputs=1).double()
    x = data()[0].double()
    check = twice_differentiable(Task(model, nn.HuberLoss(), (x, model(x).detach() + 1)))
    assert check.level == "warn"


def test_a_detached_maximum_that_changes_nothing_is_accepted():
    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        top = outputs.max(1, keepdim=True).values.detach()
        return ((outputs - top).exp().sum(1).log() + top[:, 0] - outputs.gather(1, target[:, None])[:, 0]).mean()

    assert twice_differentiable(Task(net(nn.ReLU), loss, data())).level == "pass"


@pytest.mark.parametrize("seed", range(5))
def test_layers_that_compute_in_float32_within_a_float64_model_are_accepted(seed):
    model = net(seed=seed)
    model.insert(1, InFloat32())
    assert twice_differentiable(Task(model, nn.CrossEntropyLoss(), data())).level != "fail"


def test_a_product_that_is_small_beside_the_gradient_is_compared_over_a_longer_step():
    model = net(outputs=1).double()
    x = data()[0].double()

    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return outputs.mean() * 1e-9 + 1.0 * model[4].bias.sum()

    task = Task(model, loss, (x, x))
    with Objective(task) as objective:
        gradient = torch.cat([g.reshape(-1) for g in objective.gradient()])
        v = torch.ones_like(gradient) / len(gradient) ** 0.5
        assert (Hessian(objective) @ v).norm() < 1e-8 * gradient.norm()
    assert twice_differentiable(task).level == "pass"


def test_a_piecewise_linear_loss_is_said_to_be_one():
    x = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    check = twice_differentiable(Task(nn.Linear(3, 1).double(), nn.L1Loss(), (x, x[:, :1])))
    assert check.level == "warn"
    assert "piecewise linear" in check.message


def test_weights_are_as_before():
    model = zeroed(net(nn.ReLU))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    twice_differentiable(Task(model, nn.CrossEntropyLoss(), data()))
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])


def test_steps_keep_numbers_and_nothing_as_large_as_the_model():
    # The gradient jumps at the weights, so that every step of the ladder is taken.
    model, (x, y) = zeroed(net(nn.ReLU)), data()
    with Objective(Task(model, nn.CrossEntropyLoss(), (x, y), dtype=torch.float64)) as objective:
        found = _Differences(objective, _unit(objective, 0))
    assert len(found.steps) + len(found.coarse) > 4
    large = [name for name, value in vars(found).items() if isinstance(value, torch.Tensor)]
    assert large == ["product"]
    assert all(isinstance(number, float) for step in found.steps for number in vars(step).values())


def test_shares_are_told_as_people_write_them():
    check = twice_differentiable(Task(zeroed(net(nn.ReLU)), nn.CrossEntropyLoss(), data()))
    assert "differ by 100% of their size" in check.message


class _Rounded(torch.autograd.Function):
    """Rounds to eighths, and passes the gradient straight through."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


class _Sine(torch.autograd.Function):
    """A right gradient that is not differentiated itself."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x.sin()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] * ctx.x.cos()


@pytest.mark.parametrize(
    ("quantized", "slope"),
    [
        (_Rounded.apply, False),
        (lambda w: w + ((8 * w).round() / 8 - w).detach(), False),
        (lambda w: torch.fake_quantize_per_tensor_affine(w, 0.125, 0, -128, 127), False),
        (_Sine.apply, True),
    ],
    ids=["function", "detach", "torch", "right gradient"],
)
def test_a_gradient_passed_straight_through_is_told_from_one_that_is_not_differentiated(quantized, slope):
    class Layer(nn.Linear):
        def forward(self, input):
            return nn.functional.linear(input, quantized(self.weight), self.bias)

    torch.manual_seed(0)
    x, y = torch.randn(64, 5), torch.randint(0, 3, (64,))
    net = nn.Sequential(Layer(5, 8), nn.Tanh(), Layer(8, 3))
    found = twice_differentiable(Task(net, nn.CrossEntropyLoss(), train=(x, y)))
    assert found.level == "fail"
    for text in ("not the loss's slope either", "disable_fake_quant", "no curvature of the loss"):
        assert (text in found.message) != slope
