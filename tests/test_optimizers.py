"""Optimizers by name: PyTorch's own, with PyTorch's defaults, their thresholds, and the traps of teaching material."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import nn

from landscape import optimizers
from landscape.errors import TrainingError

CLASSES = {
    "gd": torch.optim.SGD,
    "sgd": torch.optim.SGD,
    "momentum": torch.optim.SGD,
    "nesterov": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "lbfgs": torch.optim.LBFGS,
}
#: Built around one of PyTorch's; see test_sam.py.
AROUND = ("sam", "asam")


def steps(recipe, curvature: float, count: int = 300, start: float = 1.0) -> float:
    """Return |w| after so many steps on curvature / 2 w^2."""
    w = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = recipe([w])
    for _ in range(count):
        w.grad = curvature * w.detach()
        optimizer.step()
    return abs(float(w.detach()))


def one_step(recipe, w: float, grad: float) -> float:
    p = nn.Parameter(torch.tensor([w], dtype=torch.float64))
    optimizer = recipe([p])
    p.grad = torch.tensor([grad], dtype=torch.float64)
    optimizer.step()
    return float(p.detach())


def test_no_other_is_there():
    assert {*optimizers.names()} == {*CLASSES, *AROUND}


@pytest.mark.parametrize("name", CLASSES)
def test_each_is_pytorchs_own_with_what_it_says(name):
    recipe, entry = optimizers.get(name), optimizers.entry(name)
    made = recipe([nn.Parameter(torch.zeros(1))])
    assert type(made) is CLASSES[name]
    assert entry.torch == f"torch.optim.{CLASSES[name].__name__}"
    assert entry.source
    assert entry.doc.endswith(".")
    theirs = inspect.signature(CLASSES[name]).parameters
    for option, o in entry.options.items():
        assert o.doc
        assert o.source
        if "PyTorch's default" in o.source:
            assert o.default == theirs[option].default, option
    for setting, value in recipe.settings.items():
        shown = {"line_search": "line_search_fn"}.get(setting, setting)
        assert made.param_groups[0][shown] == value or shown == "initial_accumulator_value"


def test_strings_make_what_they_say():
    made = optimizers.build("sgd(lr=0.1, momentum=0.9, nesterov=True)")([nn.Parameter(torch.zeros(1))])
    group = made.param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.1, 0.9, True)
    assert optimizers.build("adam(betas=(0.5, 0.9))").settings["betas"] == (0.5, 0.9)
    assert repr(optimizers.build("gd(0.5)")) == "gd(lr=0.5, weight_decay=0.0)"


@pytest.mark.parametrize(
    ("text", "limit"),
    [("gd(lr=0.1)", 20), ("momentum(lr=0.1)", 38), ("nesterov(lr=0.1)", 13.5714285714), ("adam(lr=0.1)", 380)],
)
def test_thresholds(text, limit):
    assert optimizers.build(text).threshold().threshold == pytest.approx(limit)


@pytest.mark.parametrize("text", ["gd(lr=0.1)", "momentum(lr=0.1)", "nesterov(lr=0.1)", "gd(lr=0.1, weight_decay=3)"])
def test_steps_shrink_below_the_threshold_and_grow_above(text):
    recipe = optimizers.build(text)
    limit = recipe.threshold().threshold
    assert steps(recipe, 0.97 * limit) < 0.1
    assert steps(recipe, 1.03 * limit) > 10


@pytest.mark.parametrize("name", CLASSES)
def test_the_registry_states_the_threshold_that_is_computed(name):
    entry, found = optimizers.entry(name), optimizers.get(name).threshold()
    assert entry.operator == found.operator
    assert entry.threshold.split(";")[0] == found.formula
    assert math.isnan(found.threshold) == (name == "lbfgs")


def test_full_batches_are_marked():
    assert {n for n, e in optimizers.entries().items() if e.full_batch} == {"gd", "lbfgs"}
    assert optimizers.get("lbfgs").full_batch


def test_lbfgs_solves_a_quadratic_in_one_call():
    w = nn.Parameter(torch.tensor([3.0, -2.0], dtype=torch.float64))
    optimizer = optimizers.get("lbfgs")([w])

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (torch.tensor([1.0, 30.0], dtype=torch.float64) * w.square()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    # It stops once the loss changes by less than 1e-9, half the smaller curvature times w^2.
    assert float(w.detach().norm()) < math.sqrt(2e-9)


# ------------------------------------------------------------------------------- traps of the teaching material


@pytest.mark.parametrize("lr", [1e-1, 1e-3, 1e-5])
def test_nesterov_looks_ahead_by_lr_times_momentum(lr):
    """Looking ahead to theta - b v while stepping by lr v diverges for curvatures above 1 + 1/b, at any lr."""
    b, curvature = 0.9, 2.2  # 1 + 1/b = 2.11
    theta, v = 1.0, 0.0
    for _ in range(3000):
        v = b * v + curvature * (theta - b * v)
        theta -= lr * v
    assert not abs(theta) < 1e6
    assert steps(optimizers.get("nesterov", lr=lr, momentum=b), curvature, 3000) < 1

    theta, v = 1.0, 0.0  # the right form, by hand
    for _ in range(20):
        v = b * v + curvature * (theta - lr * b * v)
        theta -= lr * v
    # torch's parameters are the point looked ahead to: theta - lr b v.
    assert steps(optimizers.get("nesterov", lr=lr, momentum=b), curvature, 20) == pytest.approx(abs(theta - lr * b * v))


def test_eps_stands_outside_the_root():
    grad, eps, lr = 0.3, 0.5, 0.1
    assert one_step(optimizers.get("adagrad", lr=lr, eps=eps), 0.0, grad) == pytest.approx(-lr * grad / (grad + eps))
    root = math.sqrt(0.01 * grad**2)
    assert one_step(optimizers.get("rmsprop", lr=lr, eps=eps), 0.0, grad) == pytest.approx(-lr * grad / (root + eps))
    inside = -lr * grad / math.sqrt(grad**2 + eps)
    assert one_step(optimizers.get("adagrad", lr=lr, eps=eps), 0.0, grad) != pytest.approx(inside, rel=0.01)


def test_weight_decay_is_half_lambda_of_the_squared_norm():
    w, decay, lr = 2.0, 0.3, 0.1
    assert one_step(optimizers.get("sgd", lr=lr, weight_decay=decay), w, 0.0) == pytest.approx(w - lr * decay * w)


def test_adamw_decays_apart_from_the_gradient():
    w, decay, lr = 2.0, 0.3, 0.1
    moved = one_step(optimizers.get("adamw", lr=lr, weight_decay=decay), w, 1e3)
    assert moved == pytest.approx(w * (1 - lr * decay) - lr, rel=1e-6)
    coupled = one_step(optimizers.get("adam", lr=lr, weight_decay=decay), w, 1e3)
    assert coupled == pytest.approx(w - lr, rel=1e-6)


# ----------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sgdd", "there is no optimizer 'sgdd'; did you mean sgd"),
        ("sgd(beta=0.9)", r"sgd has no parameter 'beta'; it has lr=0.001, momentum=0.0"),
        ("sgd(lr=-1)", "sgd can't be made: Invalid learning rate: -1"),
        ("sgd(nesterov=True)", "sgd can't be made: Nesterov momentum requires a momentum"),
        ("lbfgs(line_search='armijo')", "there is no line search 'armijo'"),
    ],
)
def test_bad_settings_are_a_line(text, message):
    with pytest.raises(TrainingError, match=message):
        optimizers.build(text)


def test_no_parameters_are_a_line():
    with pytest.raises(TrainingError, match="sgd can't be made: optimizer got an empty parameter list"):
        optimizers.get("sgd")([])


def test_an_optimizer_of_ones_own():
    @optimizers.register("signs_of_a_test", source="mine", about={"lr": "step"})
    class Signs(torch.optim.Optimizer):
        """Steps by the sign of the gradient."""

        def __init__(self, params, lr: float = 0.5) -> None:
            super().__init__(params, {"lr": lr})

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.sub_(group["lr"] * p.grad.sign())

    try:
        assert one_step(optimizers.build("signs_of_a_test(lr=0.25)"), 1.0, 7.0) == 0.75
        assert not optimizers.get("signs_of_a_test").threshold().defined
        assert optimizers.entry("signs_of_a_test").doc == "Steps by the sign of the gradient."
    finally:
        del optimizers._entries["signs_of_a_test"]
