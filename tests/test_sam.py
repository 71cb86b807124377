"""Sharpness-aware steps against steps written by hand, in sweeps and own loops; the edge of stability on quadratics."""

from __future__ import annotations

import copy
import math
import re

import numpy as np
import pytest
import torch
from sweep_world import build
from test_sweep_cell import BARE, After, cell, same, weights
from torch import nn

from landscape import Task, load_task, open_archive, optimizers, stability_threshold
from landscape.curvature.margin import measure_stability
from landscape.errors import TrainingError
from landscape.probes import CurvatureProbe, Recorder, at
from landscape.probes.following import follow, sharpness_aware
from landscape.probes.sweep.batches import _mixed
from landscape.probes.sweep.cell import train_cell
from landscape.probes.sweep.estimate import _kind
from landscape.probes.sweep.how import How
from landscape.probes.sweep.range_test import range_test
from landscape.training.sam import SAM


def data(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def net(*more: nn.Module, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), *more, nn.Tanh(), nn.Linear(8, 3)).double()


def closure_of(model: nn.Module, x: torch.Tensor, y: torch.Tensor):
    def closure() -> torch.Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return closure


def gradient(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    loss = nn.functional.cross_entropy(model(x), y)
    return [g.clone() for g in torch.autograd.grad(loss, list(model.parameters()))]


def by_hand(model: nn.Module, x, y, *, steps: int, rho: float, lr: float, momentum: float, decay: float, scaled: bool):
    """SAM with heavy ball, as Foret et al. write it; `scaled`: ASAM's T, |w| + 0.01 on weights and 1 on biases."""
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    losses = []
    for _ in range(steps):
        losses.append(float(nn.functional.cross_entropy(model(x), y).detach()))
        first = gradient(model, x, y)
        T = [
            p.detach().abs() + 0.01 if scaled and n.endswith("weight") else torch.ones_like(p)
            for n, p in model.named_parameters()
        ]
        size = math.sqrt(sum(float((t * g).square().sum()) for t, g in zip(T, first, strict=True)))
        there = copy.deepcopy(model)
        with torch.no_grad():
            for p, t, g in zip(there.parameters(), T, first, strict=True):
                p += rho * t**2 * g / size
        second = gradient(there, x, y)
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, second, strict=True):
                v.mul_(momentum).add_(g + decay * p)
                p -= lr * v
    return losses


@pytest.mark.parametrize(
    ("text", "scaled", "rho"),
    [
        ("sam(sgd(lr=0.3, momentum=0.9, weight_decay=0.01), rho=0.2)", False, 0.2),
        ("asam(sgd(lr=0.3, momentum=0.9, weight_decay=0.01), 1.5)", True, 1.5),
    ],
)
@pytest.mark.parametrize("given", ["the model", "names", "parameters"])
@pytest.mark.parametrize("how", ["closure", "two steps"])
def test_steps_are_those_written_by_hand(text, scaled, rho, given, how):
    x, y = data()
    mine, theirs = net(), net()
    of = {"the model": mine, "names": mine.named_parameters(), "parameters": mine.parameters()}[given]
    optimizer = optimizers.build(text)(of)
    assert isinstance(optimizer, SAM)
    losses, closure = [], closure_of(mine, x, y)
    for _ in range(5):
        if how == "closure":
            losses.append(float(optimizer.step(closure)))
        else:
            losses.append(float(closure()))
            optimizer.first_step(zero_grad=True)
            closure()
            optimizer.second_step(zero_grad=True)
    expected = by_hand(theirs, x, y, steps=5, rho=rho, lr=0.3, momentum=0.9, decay=0.01, scaled=scaled)
    assert losses == pytest.approx(expected, rel=1e-12)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_on_a_quadratic_the_step_is_in_closed_form():
    H = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    start = torch.tensor([1.0, -0.5], dtype=torch.float64)
    w = nn.Parameter(start.clone())
    optimizer = optimizers.build("sam(sgd(lr=0.1), rho=0.3)")([w])

    def closure():
        loss = 0.5 * w @ H @ w
        loss.backward()
        return loss.detach()

    assert float(optimizer.step(closure)) == pytest.approx(float(0.5 * start @ H @ start))
    g = H @ start
    torch.testing.assert_close(w.detach(), start - 0.1 * (g + 0.3 * H @ g / g.norm()), rtol=1e-14, atol=0)
    assert float(optimizer.ascent_norm) == pytest.approx(float(g.norm()), rel=1e-14)
    torch.testing.assert_close(w.grad, g + 0.3 * H @ g / g.norm(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("base", ["sgd(lr=0.1, momentum=0.9)", "adamw(lr=0.01)"])
def test_without_a_distance_it_is_its_base(base):
    x, y = data()
    mine, theirs = net(), net()
    optimizer, plain = optimizers.build(f"sam({base}, rho=0)")(mine), optimizers.build(base)(theirs.parameters())
    for _ in range(4):
        optimizer.step(closure_of(mine, x, y))
        plain.zero_grad()
        closure_of(theirs, x, y)()
        plain.step()
    assert same(mine.state_dict(), theirs.state_dict())


def test_a_gradient_of_zero_or_without_bound_climbs_nowhere():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = optimizers.build("sam(sgd(lr=0.1), rho=0.5)")([w])
    for bad in (0.0, math.inf, math.nan):
        w.grad = torch.full_like(w, bad)
        optimizer.first_step()
        assert w.tolist() == [1.0, 2.0]
        optimizer.restore()


# ------------------------------------------------------------------------------------------- buffers


@pytest.mark.parametrize("given", ["the model", "parameters"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_count_each_batch_once_at_the_weights_that_are_kept(given, momentum):
    x, y = data()
    model, once = net(nn.BatchNorm1d(8, momentum=momentum)), net(nn.BatchNorm1d(8, momentum=momentum))
    optimizer = optimizers.build("sam(sgd(lr=0.1), rho=0.5)")(model if given == "the model" else model.parameters())
    for part in (slice(0, 20), slice(20, 40)):
        once.load_state_dict({**model.state_dict(), **dict(once.named_buffers())})
        once(x[part])
        optimizer.step(closure_of(model, x[part], y[part]))
    for (name, mine), right in zip(model.named_buffers(), once.buffers(), strict=True):
        assert torch.equal(mine, right), name
    assert int(model[1].num_batches_tracked) == 2


def test_statistics_of_a_compiled_model_count_once():
    x, y = data()
    model, compiled = net(nn.BatchNorm1d(8)), net(nn.BatchNorm1d(8))
    for own, called in ((model, model), (compiled, torch.compile(compiled, backend="aot_eager"))):
        optimizers.build("sam(sgd(lr=0.1), rho=0.5)")(own).step(closure_of(called, x, y))
    for name, buffer in model.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], buffer, rtol=1e-12, atol=1e-13)


# ------------------------------------------------------------------------------------------- state


def test_state_goes_through_a_checkpoint_and_a_copy():
    x, y = data()
    text = "asam(adam(lr=0.05), rho=0.3)"
    model = net()
    optimizer = optimizers.build(text)(model)
    for _ in range(3):
        optimizer.step(closure_of(model, x, y))
    again = net(seed=5)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    loaded = optimizers.build(text)(again)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied, of_copy = copy.deepcopy((model, optimizer))
    for m, o in ((model, optimizer), (again, loaded), (copied, of_copy)):
        assert o.param_groups is o.base.param_groups
        for _ in range(2):
            o.step(closure_of(m, x, y))
    assert same(model.state_dict(), again.state_dict())
    assert same(model.state_dict(), copied.state_dict())


def test_the_state_of_the_base_alone_keeps_the_distance():
    model = net()
    optimizer = optimizers.build("sam(sgd(lr=0.1), rho=0.7)")(model)
    optimizer.load_state_dict(torch.optim.SGD(net().parameters(), lr=0.2).state_dict())
    assert (optimizer.param_groups[0]["rho"], optimizer.base.param_groups[0]["lr"]) == (0.7, 0.2)


def test_groups_and_schedules_are_the_bases():
    model = net()
    optimizer = optimizers.build("sam(sgd(lr=0.1), rho=0.7)")(model[0].named_parameters())
    optimizer.add_param_group({"params": model[2].parameters(), "rho": 0.1})
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step(closure_of(model, *data()))
    schedule.step()
    assert [(g["rho"], g["lr"]) for g in optimizer.base.param_groups] == [(0.7, 0.05), (0.1, 0.05)]


def test_a_scaler_of_gradients_goes_around_the_base():
    x, y = data()
    mine, theirs = net().float(), net().float()
    optimizer, plain = (optimizers.build("sam(sgd(lr=0.1), rho=0.3)")(m) for m in (mine, theirs))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # a power of two changes no bit
    for _ in range(3):
        for half in (optimizer.first_step, optimizer.restore):
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(mine(x.float()), y)).backward()
            half()
        scaler.step(optimizer.base)
        scaler.update()
        plain.step(closure_of(theirs, x.float(), y))
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


# ------------------------------------------------------------------------------------------- names and bad input


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sam", "sam"),
        ("sam( sgd( lr = 0.1 ), rho=0.1)", "sam(sgd(lr=0.1), rho=0.1)"),
        ("asam(base=adamw, eta=0)", "asam(base=adamw, eta=0)"),
    ],
)
def test_strings(text, shown):
    call = optimizers.parse(text)
    assert str(call) == shown
    assert optimizers.parse(shown) == call
    assert optimizers.build(text).closure


def test_a_base_is_a_string_or_a_recipe_in_python():
    for base in ("sgd(lr=0.1)", optimizers.get("sgd", lr=0.1)):
        recipe = optimizers.get("sam", base, rho=0.1)
        assert optimizers.build(repr(recipe))([nn.Parameter(torch.ones(1))]).base.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("text", ["sam", "sam(sgd(momentum=0.5))", "sam(rho=0.1, base=sgd)"])
def test_a_rate_goes_to_the_base(text):
    recipe = optimizers.make(optimizers.with_rate(optimizers.parse(text), 0.25))
    assert recipe([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == 0.25
    with pytest.raises(TrainingError, match=r"sgd\(lr=1\) has a learning rate of its own, and lr=0.25 is given, too"):
        optimizers.with_rate(optimizers.parse("sam(sgd(lr=1))"), 0.25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sam(lbfgs)", "sam can't be built around lbfgs, which asks for gradients by itself"),
        ("asam(sam)", "asam can't be built around sam"),
        ("sam(0.05)", r"base of sam is 0.05; expected an optimizer with its settings, such as sgd\(momentum=0.9\)"),
        ("sam(sgdd)", "there is no optimizer 'sgdd'; did you mean sgd"),
        ("sam(sgd(rho=1))", "sgd has no parameter 'rho'"),
        ("sam(rho=-1)", r"rho=-1 of sam must lie in \[0, inf\)"),
        ("sam(rho=sgd)", "rho=sgd of sam is no plain value"),
        ("sgd(adam)", "lr=adam of sgd is no plain value; expected a number"),
    ],
)
def test_bad_settings_are_a_line(text, message):
    with pytest.raises(TrainingError, match=message):
        optimizers.build(text)


def test_bad_calls_are_a_line():
    model = net()
    optimizer = optimizers.build("sam")(model)
    with pytest.raises(TrainingError, match="SAM needs two gradients a step: call step"):
        optimizer.step()
    with pytest.raises(TrainingError, match="call backward before first_step"):
        optimizer.first_step()
    with pytest.raises(TrainingError, match="second_step comes behind first_step"):
        optimizer.second_step()
    closure_of(model, *data())()
    optimizer.first_step()
    with pytest.raises(TrainingError, match="first_step was called twice"):
        optimizer.first_step()
    table = nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TrainingError, match="sparse gradients"):
        optimizers.build("sam")(table).first_step()


def test_a_closure_that_fails_leaves_the_weights():
    model = net()
    before = copy.deepcopy(model.state_dict())
    optimizer = optimizers.build("sam")(model)
    working, calls = closure_of(model, *data()), []

    def closure():
        calls.append(working())
        if len(calls) == 2:
            raise RuntimeError("out of something")
        return calls[-1]

    with pytest.raises(RuntimeError, match="out of something"):
        optimizer.step(closure)
    assert same(model.state_dict(), before)


# ------------------------------------------------------------------------------------------- stability


def threshold(text: str, size: float) -> float:
    return optimizers.build(text).threshold(size).threshold


def test_groups_that_climb_by_different_rhos_have_no_threshold():
    groups = [{"lr": 0.1, "momentum": 0.9, "rho": rho, "adaptive": False} for rho in (0.1, 0.2)]
    found = stability_threshold(groups, gradient_norm=1.0)
    assert not found.defined
    assert "one rho" in found.notes[0]
    assert stability_threshold([{**g, "rho": 0.1} for g in groups], gradient_norm=1.0).defined


@pytest.mark.parametrize(("lr", "rho"), [(0.05, 0.1), (0.2, 0.01), (0.1, 1.0)])
def test_on_a_quadratic_gradient_descent_with_sam_ends_on_its_edge(lr, rho):
    """Bartlett, Long and Bousquet 2023: it ends in a cycle along the sharpest direction, at lr rho h / (2 - lr h)."""
    curvatures = torch.tensor([1.0, 7.0], dtype=torch.float64)
    w = nn.Parameter(torch.tensor([1.0, 0.3], dtype=torch.float64))
    text = f"sam(sgd(lr={lr}), rho={rho})"
    optimizer = optimizers.build(text)([w])

    def closure():
        loss = 0.5 * (curvatures * w.square()).sum()
        loss.backward()
        return loss.detach()

    for _ in range(400):
        optimizer.step(closure)
    assert abs(float(w[1].detach())) == pytest.approx(lr * rho * 7 / (2 - lr * 7), rel=1e-9)
    found = optimizers.build(text).threshold(float(optimizer.ascent_norm))
    assert found.threshold == pytest.approx(7, rel=1e-9)
    assert (found.operator, found.optimizer, found.lr) == ("hessian", "sam(sgd)", lr)


@pytest.mark.parametrize(
    "base", ["sgd(lr=0.1)", "momentum(lr=0.1)", "nesterov(lr=0.1)", "sgd(lr=0.1, weight_decay=3)", "gd(lr=0.1)"]
)
def test_with_the_norm_held_steps_shrink_below_the_edge_and_grow_above(base):
    rho, size = 0.2, 0.5
    limit = threshold(f"sam({base}, rho={rho})", size)
    assert limit < optimizers.build(base).threshold().threshold
    for share, shrinks in ((0.97, True), (1.03, False)):
        h = share * limit
        w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = optimizers.build(base)([w])
        for _ in range(300):
            w.grad = h * (w.detach() + rho * h * w.detach() / size)
            optimizer.step()
        assert (float(w.detach().abs()) < 1) == shrinks


def test_the_edge_at_its_limits():
    assert threshold("sam(sgd(lr=0.1), rho=0)", 1.0) == 20
    assert threshold("sam(sgd(lr=0.1), rho=0.05)", 1e9) == pytest.approx(20)
    assert threshold("sam(sgd(lr=0.1), rho=0.05)", 0.0) == 0
    size, rho, lr = 0.3, 0.05, 0.1  # as Long and Bartlett write it
    formula = size / (2 * rho) * (math.sqrt(1 + 8 * rho / (lr * size)) - 1)
    assert threshold(f"sam(sgd(lr={lr}), rho={rho})", size) == pytest.approx(formula, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("sam(sgd(lr=0.1))", None, "it depends on the gradient's norm (gradient_norm=...)"),
        ("asam(sgd(lr=0.1))", 1.0, "not defined for ASAM"),
        ("sam(adam)", 1.0, r"not defined for sam\(adam\) here"),
        ("sam(sgd(lr=0.1))", math.nan, "not defined at a gradient of norm nan"),
    ],
)
def test_where_there_is_no_edge_the_notes_say_why(text, size, message):
    found = optimizers.build(text).threshold(size)
    assert not found.defined
    assert math.isnan(found.threshold)
    assert message.replace("\\", "") in found.notes[0]


class Around(torch.optim.Optimizer):
    """Groups and base as davda54/sam keeps them, which most implementations follow."""

    def __init__(self, params, base=torch.optim.SGD, lr=0.1, **own):
        super().__init__(params, {"lr": lr, **own})
        if base is not None:
            self.base_optimizer = base(self.param_groups, lr=lr)
            self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        raise NotImplementedError


ASSUMED = "taken for SAM around sgd by the rho and adaptive of its groups"
UNKNOWN = "its linear recursion is not known here"


def test_a_checkpoint_of_anybodys_sam_is_known_by_its_rho():
    """Its groups look like SGD's, whose 2 / lr would be wrong."""
    model = net()
    theirs = type("SAM", (Around,), {})(model.parameters(), rho=0.05, adaptive=False)
    for given in (theirs, theirs.state_dict()):
        assert not stability_threshold(given).defined
        found = stability_threshold(given, gradient_norm=1e9)
        assert found.threshold == pytest.approx(20)
        assert ASSUMED in found.notes[0]
    mine = optimizers.build("sam(sgd(lr=0.1))")(model).state_dict()
    assert not any(ASSUMED in n for n in stability_threshold(mine, gradient_norm=1.0).notes)


class Signs(torch.optim.SGD):
    def step(self, closure=None):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "base", "own", "live", "saved"),
    [
        # Their state_dicts are SAM's to the letter (as kozistr/pytorch_optimizer's LookSAM's is).
        ("LookSAM", torch.optim.SGD, {"rho": 0.1, "adaptive": False}, "it may climb otherwise", ""),
        ("SAM", Signs, {"rho": 0.1, "adaptive": False}, "it has a step of its own beside that of torch's sgd", ""),
        ("FriendlySAM", torch.optim.SGD, {"rho": 0.1, "adaptive": False, "sigma": 1.0}, UNKNOWN, "rho, .*sigma beside"),
        # Elastic averaging's rho, or that of a SAM that doesn't say so.
        (
            "EASGD",
            torch.optim.SGD,
            {"rho": 0.1},
            UNKNOWN,
            "rho beside .* where it is SAM around that, .* adaptive=False",
        ),
        ("SophiaG", None, {"rho": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}, UNKNOWN, UNKNOWN),
        ("BSAM", None, {"rho": 0.1, "adaptive": False, "betas": (0.9, 0.99), "damping": 0.1}, UNKNOWN, UNKNOWN),
    ],
)
def test_what_is_not_surely_sam_has_no_threshold(kind, base, own, live, saved):
    theirs = type(kind, (Around,), {})(net().parameters(), base, **own)
    for given, message in ((theirs, live), (theirs.state_dict(), saved)):
        found = stability_threshold(given, gradient_norm=1.0)
        if message:
            assert not found.defined
            assert re.search(message, found.notes[0])
        else:
            assert ASSUMED in found.notes[0]
            assert stability_threshold(theirs, name="sgd", gradient_norm=1.0) == found


def test_an_adadelta_is_no_sam():
    optimizer = torch.optim.Adadelta(net().parameters())
    for given in (optimizer, optimizer.state_dict()):
        assert not stability_threshold(given, gradient_norm=1.0).defined


def test_stability_is_measured_at_the_gradient_of_the_draw():
    model = net()
    optimizer = optimizers.build("sam(sgd(lr=0.1), rho=0.05)")(model)
    x, y = data()
    found = measure_stability(Task(model, nn.CrossEntropyLoss(), (x, y), optimizer=optimizer))
    size = float(torch.cat([g.flatten() for g in gradient(model, x, y)]).norm())
    assert found.threshold == pytest.approx(threshold("sam(sgd(lr=0.1), rho=0.05)", size), rel=1e-6)
    assert found.ratio == pytest.approx(found.eigenvalue / found.threshold)
    assert any("|g| is that of the mean loss over the draw" in n for n in found.notes)


# ------------------------------------------------------------------------------------------- recorded


@pytest.mark.parametrize("how", ["closure", "two steps"])
def test_a_recorder_sees_one_step_and_both_gradients(tmp_path, how):
    x, y = data()
    model = net(nn.BatchNorm1d(8))
    optimizer = optimizers.build("sam(sgd(lr=0.1, momentum=0.9), rho=0.3)")(model)
    task = Task(model, nn.CrossEntropyLoss(), (x, y), batchnorm="batch")
    from landscape.probes import default_probes

    at_weights, climbed, moved, losses = [], [], [], []
    chosen = [*default_probes(), CurvatureProbe(when=at([2]))]
    with Recorder(tmp_path / "run.h5", model, optimizer, task=task, probes=chosen) as rec:
        for _ in range(4):
            before = torch.cat([p.detach().flatten() for p in model.parameters()])
            at_weights.append(torch.cat([g.flatten() for g in gradient(copy.deepcopy(model), x, y)]).norm())

            def closure():
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                rec.log(loss=loss)
                loss.backward()
                return loss.detach()

            if how == "closure":
                losses.append(optimizer.step(closure))
            else:
                losses.append(closure())
                optimizer.first_step()
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.second_step()
            climbed.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm())
            moved.append((torch.cat([p.detach().flatten() for p in model.parameters()]) - before).norm())
    record = open_archive(tmp_path / "run.h5")
    h = record.history
    assert [e.kind for e in h.events] == ["sharpness_aware", "start"]
    for name, expected in (("gradient_norm", climbed), ("ascent_norm", at_weights), ("update_norm", moved)):
        np.testing.assert_array_equal(h[name].steps, [1, 2, 3, 4])
        np.testing.assert_allclose(h[name].column("global"), expected, rtol=1e-6)
    np.testing.assert_allclose(h["loss"].column("loss"), losses, rtol=1e-12)
    assert h["learning_rate"].column("0").tolist() == [0.1] * 4
    edge = float(h["curvature"].column("threshold")[0])
    assert edge == pytest.approx(threshold("sam(sgd(lr=0.1, momentum=0.9), rho=0.3)", float(at_weights[2])), rel=1e-5)


def test_a_record_says_of_others_where_their_gradients_are():
    for kind, told in (("SAM", ASSUMED), ("LookSAM", "LookSAM climbs before it steps")):
        model = net()
        theirs = type(kind, (Around,), {})(model.parameters(), rho=0.05, adaptive=False)
        (text,) = sharpness_aware(follow(model, {"": theirs}))
        assert told in text
        assert "the norm at the weights themselves is not known" in text
    model = net()
    assert not sharpness_aware(follow(model, {"": torch.optim.SGD(model.parameters(), lr=0.1)}))


# ------------------------------------------------------------------------------------------- in sweeps


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    return tmp_path


def cell_by_hand(epochs: int, batch: int, lr: float, rho: float) -> dict[str, torch.Tensor]:
    """A cell's training as people write it: float32, clipped, a cosine; only the order of the data is the sweep's."""
    torch.manual_seed(0)
    task = load_task("tasks.py:tiny")
    model, (x, y) = task.model, task.train
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    total, step = epochs * math.ceil(len(x) / batch), 0
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(_mixed(0, epoch)))
        for chosen in order.split(batch):
            base.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / total))
            here = [p.detach().clone() for p in model.parameters()]
            first = gradient(model, x[chosen], y[chosen])
            size = torch.cat([g.flatten().double() for g in first]).norm()
            with torch.no_grad():
                for p, g in zip(model.parameters(), first, strict=True):
                    p += g * (rho / size).float()
            base.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            with torch.no_grad():
                for p, w in zip(model.parameters(), here, strict=True):
                    p.copy_(w)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            base.step()
            step += 1
    return model.state_dict()


@pytest.mark.parametrize("record", [False, True])
def test_a_cell_is_a_loop_written_by_hand(world, record):
    text = "sam(sgd(momentum=0.9), rho=0.2)"
    chosen = cell(optimizer=text, schedule="cosine", batch_size=50, lr=0.5, clip=0.5)
    result = train_cell(chosen, "tasks.py:tiny", "c", How(record=record, measure=False))
    assert result.status == "complete", result.reason
    expected, found = cell_by_hand(3, 50, 0.5, 0.2), weights("c/final.pt")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
    if record:
        h = open_archive("c/run.h5").history
        assert len(h["loss"].steps) == len(h["gradient_norm"].steps) == len(h["ascent_norm"].steps) == result.steps
        assert float(h["gradient_norm"].column("global").max()) <= 0.5
        assert float(h["gradient_norm_before"].column("global")[0]) > 0.5
        assert float(h["ascent_norm"].column("global")[0]) > 0.5  # unclipped: its size means nothing to the ascent


@pytest.mark.parametrize("optimizer", ["sam(sgd(momentum=0.9), rho=0.2)", "asam(adam)"])
def test_a_cell_stopped_at_any_step_ends_with_the_same_weights(world, optimizer):
    chosen = cell(optimizer=optimizer, lr=0.05, batch_size=50, epochs=2, drive={"rho": "ramp(0, 0.3)"})
    whole = train_cell(chosen, "tasks.py:dropped", "whole", How(measure=False))
    assert whole.status == "complete", whole.reason
    assert float(open_archive("whole/run.h5").history["scheduled"].column("rho")[-1]) > 0.2
    for after in (5,):
        first = train_cell(chosen, "tasks.py:dropped", f"after{after}", How(measure=False), stop=After(after))
        assert (first.status, first.step) == ("interrupted", after)
        torch.manual_seed(1000 + after)
        second = train_cell(chosen, "tasks.py:dropped", f"after{after}", How(measure=False))
        assert second.final_weights == whole.final_weights
    one, other = (open_archive(f"{n}/run.h5").history for n in ("whole", "after5"))
    for name in ("loss", "gradient_norm", "ascent_norm", "update_norm"):
        a, b = one[name].current(), other[name].current()
        assert a.steps.tolist() == b.steps.tolist() == list(range(1, whole.steps + 1))
        if name != "update_norm":
            np.testing.assert_array_equal(a.values, b.values)


def test_a_steps_time_is_that_of_the_optimizers_inside():
    kinds = {t: _kind(cell(optimizer=t)) for t in ("sam", "sam(sgd(momentum=0.5), rho=0.1)", "sam(adam)", "adam")}
    assert kinds["sam"] == kinds["sam(sgd(momentum=0.5), rho=0.1)"]
    assert len({*kinds.values()}) == 3


def test_around_gradient_descent_a_cell_takes_all_samples_at_once(world):
    result = train_cell(cell(optimizer="sam(gd)", lr=0.1), "tasks.py:tiny", "c", BARE)
    assert (result.status, result.steps) == ("complete", 3)
    with pytest.raises(TrainingError, match="say --batch-size full"):
        train_cell(cell(optimizer="sam(gd)", lr=0.1, batch_size=50), "tasks.py:tiny", "d", BARE)


def test_a_range_test_says_that_there_is_no_threshold(world):
    found = range_test("tasks.py:tiny", cell(optimizer="sam(sgd)", lr=0.1), low=1e-3, high=1, steps=5)
    assert any("no threshold at the start: not defined for SAM by its settings alone" in n for n in found.notes)
    assert np.isfinite(found.loss).all()
