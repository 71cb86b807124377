"""Thresholds of stability against torch.optim's own optimizers, run on quadratics until they grow or shrink."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import nn

from landscape import Hessian, Objective, Task, eigenpairs, stability_threshold, trace
from landscape.curvature.batch_sharpness import measure_batch_sharpness
from landscape.curvature.margin import measure_stability
from landscape.curvature.preconditioned import Preconditioned, Scaled
from landscape.errors import MeasurementError

OPTIM = torch.optim


class Quadratic(nn.Module):
    """L = w' H w / 2 over two tensors of weights, H given."""

    def __init__(self, hessian: torch.Tensor) -> None:
        super().__init__()
        n = len(hessian)
        self.first = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(n - 2, dtype=torch.float64))
        self.register_buffer("hessian", hessian)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = torch.cat([self.first, self.second])
        return 0.5 * (w @ self.hessian @ w) * x


def task_of(model: nn.Module, optimizer: Any = None) -> Task:
    x = torch.ones(4, 1, dtype=torch.float64)
    return Task(model, lambda out, _: out.mean(), (x, x), optimizer=optimizer)


def random_hessian(seed: int = 0, n: int = 5) -> torch.Tensor:
    """Return a matrix with eigenvalues from 0.3 to 1: no direction is so flat that it would shrink too slowly."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    return q @ torch.diag(torch.linspace(0.3, 1.0, n, dtype=torch.float64)) @ q.T


def primed(optimizer: OPTIM.Optimizer) -> OPTIM.Optimizer:
    """Fill the state as after many steps, with second moments that hardly move: alpha, beta_2 = 1 - 1e-9.

    The weights stay below 1e-4, so that 1,000 steps hardly add to the second moments. (AdaGrad's would: past 1e-2 they
    grow until the steps are stable again.)
    """
    g = torch.Generator().manual_seed(5)
    for group in optimizer.param_groups:
        for p in group["params"]:
            v = (0.5 + torch.rand(p.shape, generator=g, dtype=torch.float64)) ** 2
            zeros, step = torch.zeros_like(p), torch.tensor(1e12)
            state: dict[str, Any] = {"step": step}
            if isinstance(optimizer, OPTIM.Adam):
                state |= {"exp_avg": zeros, "exp_avg_sq": v.clone()}
                if group["amsgrad"]:
                    state["max_exp_avg_sq"] = 2 * v
            elif isinstance(optimizer, OPTIM.RMSprop):
                state |= {"square_avg": v + 0.04}
                state |= {"momentum_buffer": zeros} if group["momentum"] else {}
                state |= {"grad_avg": torch.full_like(p, 0.2)} if group["centered"] else {}
            elif isinstance(optimizer, OPTIM.Adagrad):
                state |= {"sum": 1e8 * v, "step": torch.tensor(1e6)}
            optimizer.state[p] = state
    return optimizer


def growth(model: Quadratic, optimizer: OPTIM.Optimizer, steps: int) -> float:
    """Return by what factor the weights have grown from 1e-6 after some steps of torch.optim (stopped at 1e-4)."""
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(1e-6 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    x = torch.ones(1, dtype=torch.float64)
    largest = 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
        largest = max(p.detach().abs().max().item() for p in model.parameters())
        if largest > 1e-4:
            break
    return largest / 1e-6


def groups(model: Quadratic, **second: Any) -> list[dict[str, Any]]:
    return [{"params": [model.first]}, {"params": [model.second], **second}]


SLOW = 1 - 1e-9  # of second moments
CASES: dict[str, Any] = {
    "gd": lambda m: OPTIM.SGD(m.parameters(), lr=0.1),
    "heavy ball": lambda m: OPTIM.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "dampening": lambda m: OPTIM.SGD(m.parameters(), lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": lambda m: OPTIM.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "nesterov, decay": lambda m: OPTIM.SGD(m.parameters(), lr=0.1, momentum=0.8, nesterov=True, weight_decay=2.0),
    "heavy ball, decay": lambda m: OPTIM.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=3.0),
    "rates": lambda m: OPTIM.SGD(groups(m, lr=0.02), lr=0.1, momentum=0.9),
    "rates, decay, dampening": lambda m: OPTIM.SGD(
        groups(m, lr=0.3, weight_decay=1.5, dampening=0.4), lr=0.1, momentum=0.9, weight_decay=0.2
    ),
    "adam": lambda m: primed(OPTIM.Adam(m.parameters(), lr=0.1, betas=(0.9, SLOW))),
    "adam, b1=0": lambda m: primed(OPTIM.Adam(m.parameters(), lr=0.1, betas=(0.0, SLOW))),
    "adam, big eps": lambda m: primed(OPTIM.Adam(m.parameters(), lr=0.1, betas=(0.9, SLOW), eps=0.7)),
    "amsgrad": lambda m: primed(OPTIM.Adam(m.parameters(), lr=0.1, betas=(0.9, SLOW), amsgrad=True)),
    "adam, decay": lambda m: primed(OPTIM.Adam(m.parameters(), lr=0.1, betas=(0.9, SLOW), weight_decay=20.0)),
    "adamw": lambda m: primed(OPTIM.AdamW(m.parameters(), lr=0.1, betas=(0.9, SLOW), weight_decay=3.0)),
    "adamw, groups": lambda m: primed(
        OPTIM.AdamW(groups(m, lr=0.03, weight_decay=0.0), lr=0.1, betas=(0.8, SLOW), weight_decay=4.0)
    ),
    "adagrad": lambda m: primed(OPTIM.Adagrad(m.parameters(), lr=1.0)),
    "adagrad, lr decay": lambda m: primed(OPTIM.Adagrad(m.parameters(), lr=1.0, lr_decay=1e-5, weight_decay=0.3)),
    "rmsprop": lambda m: primed(OPTIM.RMSprop(m.parameters(), lr=0.1, alpha=SLOW)),
    "rmsprop, momentum": lambda m: primed(OPTIM.RMSprop(m.parameters(), lr=0.1, alpha=SLOW, momentum=0.9)),
    "rmsprop, centered": lambda m: primed(
        OPTIM.RMSprop(m.parameters(), lr=0.1, alpha=SLOW, momentum=0.5, centered=True, weight_decay=1.0)
    ),
}


class TestDivergence:
    @pytest.mark.parametrize("case", CASES)
    def test_weights_shrink_one_percent_below_and_grow_one_percent_above(self, case):
        unit = random_hessian()

        def prepared(scale: float) -> tuple[Quadratic, OPTIM.Optimizer]:
            model = Quadratic(scale * unit)
            return model, CASES[case](model)

        def ratio(scale: float) -> float:
            model, optimizer = prepared(scale)
            found = stability_threshold(optimizer)
            assert found.defined
            if found.operator == "hessian":
                return scale / found.threshold  # the largest eigenvalue of `unit` is 1
            A = Preconditioned(task_of(model), optimizer)
            dense = A @ torch.eye(5, dtype=torch.float64)
            return float(torch.linalg.eigvalsh(dense)[-1]) / found.threshold

        def grown(wanted: float) -> float:
            scale = math.exp(brentq(lambda log: ratio(math.exp(log)) - wanted, -10, 20, xtol=1e-10))
            return growth(*prepared(scale), steps=1000)

        assert grown(0.99) < 0.1
        assert grown(1.01) > 10

    def test_a_ratio_of_the_measurement_is_the_same(self):
        model = Quadratic(3 * random_hessian())
        optimizer = CASES["adamw, groups"](model)
        A = Preconditioned(task_of(model), optimizer)
        exact = float(torch.linalg.eigvalsh(A @ torch.eye(5, dtype=torch.float64))[-1]) / A.threshold.threshold
        for kept in (optimizer, optimizer.state_dict()):
            found = measure_stability(task_of(model, kept))
            assert found.ratio == pytest.approx(exact, rel=1e-9)
            assert found.operator == "preconditioned"
            assert found.status == "complete"


class TestKnownAnswers:
    def test_closed_forms_at_a_tenth_and_nine_tenths(self):
        p = [nn.Parameter(torch.ones(2))]
        for optimizer, threshold, formula in (
            (OPTIM.SGD(p, lr=0.1), 20, "2 / lr"),
            (OPTIM.SGD(p, lr=0.1, momentum=0.9), 38, "2 (1 + b) / lr"),
            (OPTIM.SGD(p, lr=0.1, momentum=0.9, nesterov=True), 3.8 / 0.28, "2 (1 + b) / ((1 + 2 b) lr)"),
            (OPTIM.SGD(p, lr=0.1, momentum=0.9, dampening=0.9), 380, "2 (1 + b) / ((1 - dampening) lr)"),
            (OPTIM.SGD(p, lr=0.1, weight_decay=0.5), 19.5, "2 / lr - weight decay"),
            (OPTIM.SGD(p, lr=0.1, dampening=0.5), 20, "2 / lr"),
        ):
            found = stability_threshold(optimizer)
            assert found.threshold == pytest.approx(threshold, rel=1e-12)
            assert (found.operator, found.formula, found.lr, found.defined) == ("hessian", formula, 0.1, True)
            assert stability_threshold(optimizer.state_dict()) == found
        for kind in (OPTIM.Adam, OPTIM.AdamW):
            found = stability_threshold(kind(p, lr=0.01, betas=(0.9, 0.999)))
            assert found.threshold == pytest.approx(38 / 0.01, rel=1e-12)
            assert (found.operator, found.formula) == ("preconditioned", "2 (1 + b1) / ((1 - b1) lr)")
        assert stability_threshold(OPTIM.Adagrad(p, lr=0.1)).threshold == pytest.approx(20)
        decaying = OPTIM.Adagrad(p, lr=0.1, lr_decay=0.5)
        for rate in (0.1, 0.1, 0.1 / 1.5, 0.1 / 2):  # before the first step, and that of the last one behind each
            assert stability_threshold(decaying).threshold == pytest.approx(2 / rate)
            before = p[0].detach().clone()
            p[0].grad = torch.ones_like(p[0])
            decaying.step()
            root = decaying.state[p[0]]["sum"].sqrt() + 1e-10
            moved = (before - p[0].detach()) * root
            assert stability_threshold(decaying).threshold == pytest.approx(2 / float(moved[0]), rel=1e-5)
        assert stability_threshold(OPTIM.RMSprop(p, lr=0.1)).threshold == pytest.approx(20)
        assert stability_threshold(OPTIM.RMSprop(p, lr=0.1, momentum=0.9)).threshold == pytest.approx(38)
        assert stability_threshold({"lr": 0.1, "momentum": 0.9}).threshold == pytest.approx(38)

    def test_a_momentum_of_zero_has_no_nesterov_and_no_dampening(self):
        assert stability_threshold({"lr": 0.1, "nesterov": True, "dampening": 0.3, "momentum": 0.0}).threshold == 20

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda p: OPTIM.LBFGS(p, line_search_fn="strong_wolfe"), "not defined for L-BFGS"),
            (lambda p: OPTIM.NAdam(p), "not defined for NAdam"),
            (lambda p: OPTIM.SGD(p, lr=0.1, maximize=True), "maximize"),
            (lambda p: OPTIM.SGD(p, lr=0.1, momentum=1.0), "a momentum of 1 grows"),
            (lambda p: OPTIM.SGD(p, lr=0.1, momentum=0.9, dampening=1.0), "a dampening of 1"),
            (lambda p: OPTIM.SGD(p, lr=0.0), "the learning rate is 0, as at the end of a schedule; say at which"),
            (
                lambda p: [{"params": p, "lr": 0.0, "initial_lr": 0.3, "momentum": 0.0}],
                "whose own was 0.3; say at which rate to judge, as with --option stability.lr=0.3",
            ),
            (lambda p: OPTIM.SGD([{"params": p, "momentum": 0.5}], lr=0.1).param_groups * 2, ""),
        ],
    )
    def test_what_is_not_defined_says_so(self, make, said):
        found = stability_threshold(make([nn.Parameter(torch.ones(2))]))
        if said:
            assert math.isnan(found.threshold)
            assert not found.defined
            assert said in found.notes[0]
        else:
            assert found.threshold == pytest.approx(30)

    def test_groups_that_differ_in_momentum(self):
        found = stability_threshold([{"lr": 0.1, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.8}])
        assert not found.defined
        assert "the groups differ in momentum" in found.notes[0]

    def test_a_state_dict_is_recognized_by_its_settings(self):
        p = [nn.Parameter(torch.ones(2))]
        for kind in (OPTIM.SGD, OPTIM.Adam, OPTIM.AdamW, OPTIM.Adagrad, OPTIM.RMSprop, OPTIM.LBFGS):
            assert stability_threshold(kind(p, lr=0.1).state_dict()).optimizer == kind.__name__.lower()
        for kind in (OPTIM.NAdam, OPTIM.RAdam, OPTIM.Adamax, OPTIM.ASGD, OPTIM.Adadelta, OPTIM.Rprop):
            assert not stability_threshold(kind(p, lr=0.1).state_dict()).defined

    @pytest.mark.parametrize(
        ("kind", "more", "said"),
        [
            (
                OPTIM.SGD,
                {"trust_coefficient": 0.001, "eps": 1e-8},
                "trust_coefficient, eps beside .* torch's sgd",
            ),  # LARS
            (OPTIM.RMSprop, {"lr_in_momentum": True}, "lr_in_momentum beside .* torch's rmsprop"),  # timm's RMSpropTF
            (OPTIM.Adam, {"rectify": True}, "rectify beside .* torch's adam"),  # AdaBelief
        ],
    )
    def test_what_has_more_settings_than_torchs_is_not_taken_for_it(self, kind, more, said):
        state = kind([nn.Parameter(torch.ones(2))], lr=0.1).state_dict()
        known = stability_threshold(state)
        # Labels, and what schedulers keep in the groups, change no step.
        state["param_groups"][0].update(name="decay", initial_lr=0.3, max_momentum=0.9, lr_scale=0.5)
        assert stability_threshold(state) == known
        state["param_groups"][0].update(more)
        found = stability_threshold(state)
        assert not found.defined
        assert re.search(said, found.notes[0])
        assert stability_threshold(state, name=known.optimizer).threshold == known.threshold

    def test_a_subclass_with_a_step_of_its_own_is_not_taken_for_its_base(self):
        class Signs(OPTIM.SGD):
            def step(self, closure: Any = None) -> None:
                for group in self.param_groups:
                    for p in group["params"]:
                        p.data.add_(p.grad.sign(), alpha=-group["lr"])

        class Renamed(OPTIM.SGD):
            pass

        p = [nn.Parameter(torch.ones(2))]
        assert stability_threshold(Renamed(p, lr=0.1)).threshold == 20
        own = stability_threshold(Signs(p, lr=0.1))
        assert not own.defined
        assert "not defined for Signs: it has a step of its own beside that of torch's sgd" in own.notes[0]
        assert stability_threshold(Signs(p, lr=0.1), name="sgd").threshold == 20

    def test_what_steps_by_another_optimizer_is_not_taken_for_it(self):
        """Lookahead and its kin keep it under the name under which Accelerate's wrapper does."""

        class Lookahead(OPTIM.Optimizer):
            def __init__(self, optimizer: Any) -> None:
                self.optimizer, self.param_groups = optimizer, optimizer.param_groups
                self.state_dict = optimizer.state_dict

        inner = OPTIM.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
        around = Lookahead(inner)
        assert "not defined for Lookahead" in stability_threshold(around).notes[0]
        assert stability_threshold(around, name="sgd").threshold == 20
        del around.param_groups
        with pytest.raises(MeasurementError, match="Lookahead has no parameter groups: pass the optimizer"):
            stability_threshold(around)
        Lookahead.__name__ = "AcceleratedOptimizer"
        assert stability_threshold(Lookahead(inner)).threshold == 20

    def test_every_group_of_a_state_dict_says_what_it_is(self):
        p = [nn.Parameter(torch.ones(2)) for _ in range(2)]
        state = OPTIM.SGD([{"params": q} for q in p], lr=0.1).state_dict()
        assert stability_threshold(state).threshold == 20
        state["param_groups"][1]["trust_coefficient"] = 0.001
        assert "trust_coefficient beside" in stability_threshold(state).notes[0]
        # A learning rate alone is SGD's where somebody names it; torch's SGD saves more (Fromage saves no more).
        assert stability_threshold({"lr": 0.1}).threshold == 20
        assert not stability_threshold({"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}).defined

    def test_adam_and_adamw_of_an_older_torch_look_the_same(self):
        old = OPTIM.AdamW([nn.Parameter(torch.ones(2))], weight_decay=0.1).state_dict()
        del old["param_groups"][0]["decoupled_weight_decay"]
        assert "taken for Adam" in stability_threshold(old).notes[0]
        assert stability_threshold(old, name="adamw").notes == ()

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (3, "got int"),
            ({}, "no learning rate"),
            ({"param_groups": []}, "expected a torch optimizer"),
            ({"param_groups": [{"betas": (0.9, 0.99)}]}, "no learning rate 'lr'"),
        ],
    )
    def test_what_is_no_optimizer(self, given, said):
        with pytest.raises(MeasurementError, match=said):
            stability_threshold(given)
        with pytest.raises(MeasurementError, match="'lion' is not one of sgd"):
            stability_threshold({"lr": 0.1}, name="lion")
        with pytest.raises(MeasurementError, match="settings don't fit adam"):
            stability_threshold({"lr": 0.1}, name="adam")

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"lr": -0.1}, "lr=-0.1 of the optimizer must be a finite number of at least 0"),
            ({"lr": math.inf}, "lr=inf of the optimizer"),
            ({"lr": math.nan}, "lr=nan of the optimizer"),
            ({"lr": torch.tensor(-1.0)}, "lr=-1 of the optimizer"),
            ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay=-1 of the optimizer"),
            ({"lr": 0.1, "momentum": -0.9}, "momentum=-0.9 of the optimizer"),
            ({"lr": 0.1, "momentum": math.nan}, "momentum=nan of the optimizer"),
            ({"lr": 0.1, "momentum": 0.9, "dampening": 1.5}, "dampening=1.5 .* at least 0 and at most 1"),
            ({"lr": 0.1, "betas": (1.0, 0.999)}, r"betas\[0\]=1 .* at least 0 and below 1"),
            ({"lr": 0.1, "betas": (0.9, 1.2)}, r"betas\[1\]=1.2 of the optimizer"),
            ({"lr": 0.1, "betas": (0.9, math.nan)}, r"betas\[1\]=nan of the optimizer"),
        ],
    )
    def test_settings_that_no_optimizer_can_have(self, settings, said):
        name = "adam" if "betas" in settings else "sgd"
        for given in (settings, [settings, {**settings, "lr": 0.1}], {"param_groups": [settings], "state": {}}):
            with pytest.raises(MeasurementError, match=said):
                stability_threshold(given, name=name)

    def test_a_rate_that_a_live_optimizer_was_given_later_is_checked_too(self):
        optimizer = OPTIM.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
        optimizer.param_groups[0]["lr"] = math.nan
        with pytest.raises(MeasurementError, match="lr=nan of the optimizer"):
            stability_threshold(optimizer)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def labelled(n: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=g).double(), torch.randint(3, (n,), generator=g)


def trained(model: nn.Module, optimizer: OPTIM.Optimizer, steps: int = 7) -> None:
    x, y = labelled()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


class TestDenominators:
    @pytest.mark.parametrize(
        ("make", "moment"),
        [
            (lambda p: OPTIM.Adam(p, lr=0.1, eps=1e-3), "exp_avg"),
            (lambda p: OPTIM.Adam(p, lr=0.1, amsgrad=True), "exp_avg"),
            (lambda p: OPTIM.AdamW(p, lr=0.1, weight_decay=0.0), "exp_avg"),
            (lambda p: OPTIM.Adagrad(p, lr=0.1, lr_decay=0.3), None),
            (lambda p: OPTIM.RMSprop(p, lr=0.1), None),
            (lambda p: OPTIM.RMSprop(p, lr=0.1, centered=True, eps=1e-2), None),
        ],
    )
    def test_they_are_those_that_the_last_step_divided_by(self, make, moment):
        """Weights move by lr / (1 - b1^t) * moment / D: solved for D after a real step of torch.optim."""
        model = net()
        optimizer = make(model.parameters())
        trained(model, optimizer, 6)
        before = [p.detach().clone() for p in model.parameters()]
        trained(model, optimizer, 1)
        A = Preconditioned(Task(model, nn.CrossEntropyLoss(), labelled()), optimizer)
        parts = (A.scale**-2).split([p.numel() for p in model.parameters()])
        for p, old, d in zip(model.parameters(), before, parts, strict=True):
            assert p.grad is not None
            moved = p.grad if moment is None else optimizer.state[p][moment] / (1 - 0.9**7)
            rate = 0.1 / (1 + 6 * 0.3) if isinstance(optimizer, OPTIM.Adagrad) else 0.1
            assert (rate * moved / (old - p)).detach().reshape(-1).numpy() == pytest.approx(d.numpy(), rel=1e-6)

    def test_the_operator_is_symmetric_and_every_tool_takes_it(self):
        model = net()
        optimizer = OPTIM.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        trained(model, optimizer)
        H = Hessian(Task(model, nn.CrossEntropyLoss(), labelled()))
        A = Preconditioned(H, optimizer)
        eye = torch.eye(A.shape[0], dtype=torch.float64)
        dense, hessian = (A @ eye).numpy(), (H @ eye).numpy()
        s = A.scale.numpy()
        assert dense == pytest.approx(s[:, None] * hessian * s + 1.9 * 0.1 / 0.1 * np.eye(len(s)), rel=1e-12)
        assert A.products == A.shape[0]
        found = eigenpairs(A, 2, tol=1e-8)
        assert found.values == pytest.approx(np.linalg.eigvalsh(dense)[::-1][:2], rel=1e-9)
        assert found.operator == "preconditioned Hessian"
        assert abs(trace(A, draws=200).value - np.trace(dense)) <= 4 * trace(A, draws=200).stderr
        assert A.to_scipy() @ np.ones(len(s)) == pytest.approx(dense.sum(axis=1))
        assert A.names == H.names

    def test_what_never_stepped_has_none_whatever_its_state_holds(self):
        """AdaGrad's sums are there, and 0, from the start: divided by eps, a curvature of .3 would be 3e9."""
        x, y = labelled()
        model = net()
        adagrad = OPTIM.Adagrad(model.parameters(), lr=0.1)
        task = Task(model, nn.CrossEntropyLoss(), (x, y))
        with pytest.raises(MeasurementError, match="it has made no step"):
            Preconditioned(task, adagrad)
        F.cross_entropy(model[2](model[0](x).detach()), y).backward()
        adagrad.step()
        A = Preconditioned(task, adagrad)
        assert "does not move 0.weight, 0.bias" in A.notes[-1]
        assert not A.scale[:30].any()
        # A fused step that is skipped for an infinite gradient leaves a state of 0 steps.
        fused = OPTIM.Adam(model.parameters(), lr=0.1, fused=True)
        fused.found_inf = torch.tensor(1.0)
        F.cross_entropy(model(x), y).backward()
        fused.step()
        with pytest.raises(MeasurementError, match="it has made no step"):
            Preconditioned(task, fused)

    def test_a_state_that_its_settings_ask_more_of_is_refused(self):
        model = net()
        optimizer = OPTIM.Adam(model.parameters(), lr=0.1)
        trained(model, optimizer, 1)
        state = optimizer.state_dict()
        state["param_groups"][0]["amsgrad"] = True
        task = Task(model, nn.CrossEntropyLoss(), labelled())
        with pytest.raises(MeasurementError, match="state 0 lacks 'max_exp_avg_sq'"):
            Preconditioned(task, state)
        centered = OPTIM.RMSprop(model.parameters(), lr=0.1, centered=True)
        trained(model, centered, 1)
        centered.state[model[0].weight]["grad_avg"].fill_(100.0)
        with pytest.raises(MeasurementError, match=r"divides 0\.weight by NaN"):
            Preconditioned(task, centered)


class TestMatching:
    def test_state_goes_by_identity_by_name_and_by_order(self, tmp_path):
        from landscape import load_checkpoint, save_checkpoint

        model = net()
        split = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1}]
        split.append({"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0})
        optimizer = OPTIM.AdamW(split, lr=0.01)
        trained(model, optimizer)
        task = Task(model, nn.CrossEntropyLoss(), labelled())
        live = Preconditioned(task, optimizer)
        save_checkpoint(tmp_path / "a.pt", model, optimizer=optimizer)
        named = Preconditioned(task, load_checkpoint(tmp_path / "a.pt", task).optimizer)
        assert torch.equal(live.scale, named.scale)
        assert torch.equal(live.diagonal, named.diagonal)
        # Without names the shapes tell weights from biases, each in the model's order.
        dealt = Preconditioned(task, optimizer.state_dict())
        assert torch.equal(live.scale, dealt.scale)
        assert torch.equal(live.diagonal, dealt.diagonal)
        plain = OPTIM.AdamW(model.parameters(), lr=0.01)
        trained(model, plain)
        assert torch.equal(Preconditioned(task, plain).scale, Preconditioned(task, plain.state_dict()).scale)
        by_name = plain.state_dict()
        names = [n for n, _ in model.named_parameters()]
        by_name["state"] = {names[k]: v for k, v in by_name["state"].items()}
        by_name["param_groups"][0]["params"] = names[::-1]  # as torch.distributed.checkpoint keeps it, in any order
        assert torch.equal(Preconditioned(task, plain).scale, Preconditioned(task, by_name).scale)
        wrapped = OPTIM.AdamW([("module." + n, p) for n, p in model.named_parameters()], lr=0.01)
        trained(model, wrapped)
        assert torch.equal(Preconditioned(task, wrapped).scale, Preconditioned(task, wrapped.state_dict()).scale)

    def test_an_order_that_the_shapes_do_not_tell_is_refused(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        task = Task(model, nn.CrossEntropyLoss(), labelled())
        first, second = list(model[2].parameters()), [*model[0].parameters(), *model[4].parameters()]
        optimizer = OPTIM.AdamW([{"params": first, "lr": 0.1}, {"params": second}])
        trained(model, optimizer)
        with pytest.raises(MeasurementError, match=r"no order, or more than one, fits the shapes; save it with"):
            Preconditioned(task, optimizer.state_dict())
        backwards = OPTIM.Adam(list(model.parameters())[::-1])
        trained(model, backwards)
        with pytest.raises(MeasurementError, match="no order, or more than one"):
            Preconditioned(task, backwards.state_dict())
        assert Preconditioned(task, backwards).scale.all()
        sgd = OPTIM.SGD([{"params": first, "lr": 0.1}, {"params": second}], lr=0.2)
        with pytest.raises(MeasurementError, match="no order, or more than one"):
            Preconditioned(task, sgd.state_dict())

    def test_weights_that_the_optimizer_does_not_hold_do_not_move(self):
        model = net()
        optimizer = OPTIM.SGD(model[2].parameters(), lr=0.1)
        task = Task(model, nn.CrossEntropyLoss(), labelled(), optimizer=optimizer)
        found = measure_stability(task, tol=1e-8)
        head = eigenpairs(Hessian(task, "2"), 1, tol=1e-8)
        assert found.eigenvalue == pytest.approx(head.values[0], rel=1e-9)
        assert found.operator == "preconditioned"
        assert (found.threshold, found.ratio) == (20, found.eigenvalue / 20)

    def test_a_weight_without_a_gradient_has_no_state(self):
        model = net()
        model[0].bias.requires_grad_(False)
        optimizer = OPTIM.Adam(model.parameters())
        trained(model, optimizer)
        model[0].bias.requires_grad_(True)
        A = Preconditioned(Task(model, nn.CrossEntropyLoss(), labelled()), optimizer)
        assert "does not move 0.bias" in A.notes[-1]
        assert not A.scale[24:30].any()
        assert A.scale[:24].all()

    def test_what_does_not_fit_is_refused_in_a_line(self):
        model = net()
        task = Task(model, nn.CrossEntropyLoss(), labelled())
        with pytest.raises(MeasurementError, match=r"no denominators for 0\.weight and the others"):
            Preconditioned(task, OPTIM.Adam(model.parameters()))
        with pytest.raises(MeasurementError, match="holds none of the model's"):
            Preconditioned(task, OPTIM.SGD(net().parameters(), lr=0.1))
        with pytest.raises(MeasurementError, match="holds 2 parameters, the model 4 "):
            Preconditioned(task, OPTIM.SGD(model[0].parameters(), lr=0.1).state_dict())
        with pytest.raises(MeasurementError, match="not defined for L-BFGS"):
            Preconditioned(task, OPTIM.LBFGS(model.parameters()))
        zero = OPTIM.Adam(model.parameters(), eps=0.0)
        trained(model, zero)
        zero.state[model[0].bias]["exp_avg_sq"][2] = 0
        with pytest.raises(MeasurementError, match=r"divides 0\.bias by 0"):
            Preconditioned(task, zero)

    def test_a_scale_of_another_shape(self):
        with pytest.raises(MeasurementError, match=r"scale has shape \(4,\); expected \(3,\)"):
            Scaled(torch.eye(3), torch.ones(4))
        with pytest.raises(MeasurementError, match="diagonal is not finite"):
            Scaled(torch.eye(3), torch.ones(3), torch.tensor([1.0, math.inf, 0.0]))


class TestMeasurement:
    def test_plain_gradient_descent_by_its_learning_rate(self):
        task = Task(net(), nn.CrossEntropyLoss(), labelled())
        found = measure_stability(task, lr=0.5, tol=1e-8)
        assert found.threshold == 4
        assert found.ratio == pytest.approx(eigenpairs(Hessian(task), 1, tol=1e-8).values[0] / 4, rel=1e-9)
        assert found.summary()["operator"] == "hessian"

    def test_another_learning_rate_than_the_optimizers(self):
        model = net()
        task = Task(model, nn.CrossEntropyLoss(), labelled(), optimizer=OPTIM.SGD(model.parameters(), 0.1, 0.9))
        assert measure_stability(task).threshold == pytest.approx(38)
        assert measure_stability(task, lr=0.2).threshold == pytest.approx(19)
        with pytest.raises(MeasurementError, match=r"lr=-1\.0 must be"):
            measure_stability(task, lr=-1.0)

    def test_no_optimizer_says_what_to_give(self):
        with pytest.raises(MeasurementError, match="no optimizer is known"):
            measure_stability(Task(net(), nn.CrossEntropyLoss(), labelled()))
        task = Task(net(), nn.CrossEntropyLoss(), labelled(), optimizer=OPTIM.LBFGS(net().parameters()))
        with pytest.raises(MeasurementError, match="threshold is not defined for L-BFGS"):
            measure_stability(task)


class TestSeveralOptimizers:
    """A GAN's, or Muon's and AdamW's: the one that steps the model that is measured."""

    def parts(self):
        torch.manual_seed(0)
        make = {"g": nn.Linear(3, 2, dtype=torch.float64), "d": nn.Linear(2, 1, dtype=torch.float64)}
        model = nn.ModuleDict(make)
        rates = {"g": 0.1, "d": 0.4}
        return model, {n: OPTIM.SGD(model[n].parameters(), lr=rates[n]) for n in "gd"}

    def task(self, model: nn.Module, optimizers: Any) -> Task:
        x, y = torch.randn(8, model.in_features, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
        return Task(model, lambda out, y: (out - y).square().mean(), (x, y), optimizer=optimizers)

    @pytest.mark.parametrize("how", ["live", "list", "named states", "states by order"])
    def test_the_one_that_steps_the_model_is_judged(self, how):
        model, optimizers = self.parts()
        if "states" in how:
            optimizers = {n: o.state_dict() for n, o in optimizers.items()}
            if "order" in how:  # whose count tells it from the other's
                optimizers["g"]["param_groups"][0]["params"] = [0, 1, 2]
            else:
                for n, o in optimizers.items():
                    names = ["weight", "bias"] if n == "d" else ["g.weight", "g.bias"]
                    o["param_groups"][0]["param_names"] = names
        found = measure_stability(self.task(model["d"], [*optimizers.values()] if how == "list" else optimizers))
        assert found.threshold == pytest.approx(2 / 0.4)
        assert measure_batch_sharpness(self.task(model["d"], optimizers)).threshold == pytest.approx(2 / 0.4)

    def test_where_several_step_it_they_are_named_and_one_can_be_chosen(self):
        model, optimizers = self.parts()
        x = torch.randn(8, 3, dtype=torch.float64)

        class Both(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.parts = model

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.parts["d"](self.parts["g"](x).tanh())

        task = Task(Both(), lambda out, y: (out - y).square().mean(), (x, x[:, :1]), optimizer=optimizers)
        told = r"'g' \(2 of 4 tensors\) and 'd' \(2 of 4 tensors\) step parameters of this model; .*stability.which=g"
        with pytest.raises(MeasurementError, match=told):
            measure_stability(task)
        with pytest.raises(MeasurementError, match="no optimizer is called which='x'; there is 'g', 'd'"):
            measure_stability(task, which="x")
        assert measure_batch_sharpness(task).notes[-1].endswith("optimizers g, d is meant: give lr=...")
        for name, lr, rows in (("g", 0.1, slice(8)), ("d", 0.4, slice(8, None))):
            found = measure_stability(task, which=name, tol=1e-8)
            with Objective(task) as objective:
                H = Hessian(objective)
                dense = H @ torch.eye(H.shape[0], dtype=torch.float64)
            own = torch.linalg.eigvalsh(dense[rows, rows])[-1]
            assert found.threshold == pytest.approx(2 / lr)
            assert found.eigenvalue == pytest.approx(float(own), rel=1e-6)

    def test_none_that_fits_and_a_name_where_there_is_one_alone(self):
        model, optimizers = self.parts()
        task = self.task(nn.Linear(2, 1, dtype=torch.float64), optimizers)
        with pytest.raises(MeasurementError, match="none of the optimizers 'g', 'd' is known to step this model's"):
            measure_stability(task)
        with pytest.raises(MeasurementError, match="there is a single optimizer, without a name"):
            measure_stability(self.task(model["d"], optimizers["d"]), which="d")


class TestBatchNorm:
    """A training step sees batch statistics: a bias in front of BatchNorm never moves the loss there."""

    def trained(self) -> tuple[nn.Module, OPTIM.Optimizer, tuple[torch.Tensor, torch.Tensor]]:
        x, y = labelled()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(x.shape[1], 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
        optimizer = OPTIM.Adam(model.parameters(), 1e-2)
        for _ in range(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return model, optimizer, (x, y)

    def test_the_margin_is_measured_as_the_steps_saw_the_loss(self):
        model, optimizer, data = self.trained()
        task = Task(model, nn.CrossEntropyLoss(), data, optimizer=optimizer)
        found = measure_stability(task, tol=1e-8)
        asked = measure_stability(task.replace(batchnorm="batch"), tol=1e-8)
        with Objective(task) as running:
            frozen = measure_stability(running, tol=1e-8)
        assert found.eigenvalue == pytest.approx(asked.eigenvalue, rel=1e-9)
        assert frozen.eigenvalue > 100 * found.eigenvalue  # what the first layer's bias would add
        assert any("batch statistics" in note for note in found.notes)
        assert not any("as the training steps" in note for note in asked.notes)

    def test_batch_sharpness_is_that_of_batches_with_their_own_statistics(self):
        model, _, (x, y) = self.trained()
        found = measure_batch_sharpness(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=7), batch=10, lr=0.1)
        model.train()
        bent, sizes = [], []
        for a in range(0, len(x) - len(x) % 10, 10):
            loss = F.cross_entropy(model(x[a : a + 10]), y[a : a + 10])
            g = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
            slope = sum((t * t.detach()).sum() for t in g)
            hv = torch.autograd.grad(slope, list(model.parameters()))
            bent.append(sum(float((h * t).sum().detach()) for h, t in zip(hv, g, strict=True)))
            sizes.append(sum(float((t * t).sum().detach()) for t in g))
        assert found.value == pytest.approx(sum(bent) / sum(sizes), rel=1e-9)
        assert any("batch statistics" in note for note in found.notes)


class TestProbe:
    def test_the_checkpoints_own_optimizer_is_measured_against(self, tmp_path, monkeypatch):
        import small_world

        from landscape import load_task, open_archive, save_checkpoint

        monkeypatch.chdir(tmp_path)
        small_world.build(tmp_path)
        model = small_world.train(0)
        x, y = load_task("tasks.py:tiny").train
        optimizer = OPTIM.Adam(model.parameters(), lr=0.003)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        save_checkpoint("adam.pt", model, task="tasks.py:tiny", optimizer=optimizer)
        (shown,) = small_world.results("adam.pt", "--only", "stability", "--seed", 3)
        found = shown["stability"]
        assert found["threshold"] == pytest.approx(38 / 0.003)
        assert found["optimizer"] == "adam"
        A = Preconditioned(Task(model, nn.CrossEntropyLoss(), (x, y), dtype=torch.float64), optimizer)
        exact = float(torch.linalg.eigvalsh(A @ torch.eye(A.shape[0], dtype=torch.float64))[-1])
        assert found["ratio"] == pytest.approx(exact / A.threshold.threshold, rel=1e-4)
        (kept,) = open_archive("adam.landscape.h5").select("stability")
        assert kept.result.ratio == found["ratio"]  # type: ignore[attr-defined]
        assert "no optimizer is known" in small_world.landscape("probe", "other.pt", "--only", "stability").output
        options = ("--force", "--option", "stability.lr=0.5")
        (shown,) = small_world.results("other.pt", "--only", "stability", *options)
        assert shown["stability"]["threshold"] == 4


def half(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Half the squared error, summed over outputs, as the literature on the edge of stability has it."""
    return 0.5 * (outputs - target).square().sum(dim=1).mean()


EDGE: dict[str, Any] = {
    "gd": (lambda p: OPTIM.SGD(p, lr=0.4), 1200),
    "nesterov": (lambda p: OPTIM.SGD(p, lr=0.2, momentum=0.9, nesterov=True), 800),
    "adam": (lambda p: OPTIM.Adam(p, lr=2e-3), 1800),
    "adagrad": (lambda p: OPTIM.Adagrad(p, lr=2e-2), 900),
    "rmsprop": (lambda p: OPTIM.RMSprop(p, lr=2e-4), 1200),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", EDGE)
def test_nets_trained_on_the_whole_set_end_at_the_edge_of_stability(case):
    """Cohen et al. 2021 and 2022: the sharpness rises until it hovers at the threshold. A wrong threshold, operator or
    denominator would put the ratio elsewhere. Seen from 0.95 to 1.1; single measurements swing by about 0.1.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:300] / 16, dtype=torch.float32)
    x, y = x - x.mean(0), F.one_hot(torch.tensor(labels[:300]), 10).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10))
    make, steps = EDGE[case]
    optimizer = make(model.parameters())
    task = Task(model, half, (x, y), optimizer=optimizer, batch_size=300)
    ratios = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        half(model(x), y).backward()
        optimizer.step()
        if step > steps - 250 and step % 50 == 0:
            ratios.append(measure_stability(task).ratio)
    assert len(ratios) == 5
    assert 0.85 < np.mean(ratios) < 1.15
