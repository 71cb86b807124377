"""Every loss passes the gate, and the gate catches what it is there to catch."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from landscape import losses
from landscape.errors import TrainingError
from landscape.training.expressions import parse_call
from landscape.training.gate import examine
from landscape.training.inputs import LOGITS, VALUES
from landscape.training.loss import NamedLoss
from landscape.training.registries import LossEntry
from landscape.training.registry import REQUIRED, Entry

#: Losses that a part of their example (two of six samples) is too small or too uniform for.
PARTS_REFUSED = dict.fromkeys(("triplet_hard", "triplet_semi_hard", "circle", "multi_similarity"), "finds no triplet")


def home(entry: LossEntry) -> str:
    """Return the package that the loss's function or class comes from."""
    made = [entry.make, *getattr(entry.make, "args", ())]
    return next(m.__module__ for m in made if getattr(m, "__module__", "functools") != "functools").partition(".")[0]


#: Without what other tests' users register in the same process.
OURS = {n: e for n, e in losses.entries().items() if home(e) in ("landscape", "torch")}


def levels(entry: LossEntry) -> dict[str, str]:
    return {check.name: check.level for check in examine(entry)}


@pytest.mark.parametrize("name", losses.names())
def test_every_loss_passes(name):
    # gradcheck's own tolerances: 1e-5 absolute and 1e-3 relative, on steps of 1e-6 in float64.
    failed = [f"{c.name}: {c.message}" for c in examine(losses.entry(name)) if c.level == "fail"]
    assert failed == []


@pytest.mark.parametrize(
    "text",
    [
        "evidential(kl=0.5)",
        "evidential('softplus', kl=0.5)",
        "evidential_likelihood('exp', kl=0.5)",
        "soft_ece(norm=1)",
        "soft_ece(norm=3)",
        "focal(gamma=0.5, alpha=[0.1, 0.2, 0.3, 0.4])",
        "binary_focal(gamma=0.5, alpha=None)",
        "poly1_focal(gamma=1.5)",
        "nfl(gamma=2)",
        "apl(active='nfl', passive='mae')",
        "gce(q=1)",
        "multiclass_hinge(p=2)",
        "anyloss('g_mean')",
        "anyloss('accuracy', amplify=20)",
        "anyloss('balanced_accuracy')",
        "dice(squared=True)",
        "multi_similarity(epsilon=None)",
        "consistency('kl', exact=True)",
        "elastic_net(0.2, biases=False)",
        "ldr(temperature=0.3, margin=0.5)",
        "arcface(margin=1.5)",
    ],
)
def test_other_settings_pass_too(text):
    call = parse_call(text)
    entry = losses.entry(call.name)
    trial = entry.settings(*call.given, **call.named)
    failed = [f"{c.name}: {c.message}" for c in examine(replace(entry, trial=trial)) if c.level == "fail"]
    assert failed == []


@pytest.mark.parametrize("name", [n for n, e in OURS.items() if e.trial])
def test_the_defaults_are_finite_too(name):
    entry = losses.entry(name)
    needed = {k: v for k, v in entry.trial.items() if entry.options[k].default is REQUIRED}
    assert levels(replace(entry, trial=needed))["finite"] == "pass"


@pytest.mark.parametrize("name", [n for n, e in OURS.items() if e.takes is LOGITS])
def test_pixels_are_samples(name):
    """Logits (n, classes, h, w) give what their pixels give as (n h w, classes)."""
    entry = losses.entry(name)
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(2, 4, 3, 2, generator=g, dtype=torch.float64), torch.randint(4, (2, 3, 2), generator=g)
    loss = entry.build(**entry.trial).double()
    flat = loss(z.movedim(1, -1).reshape(-1, 4), y.reshape(-1))
    assert float(loss(z, y)) == pytest.approx(float(flat), rel=1e-12)


def test_a_thousand_classes_take_little_memory():
    loss, z = losses.get("nfl"), torch.randn(64, 1000, requires_grad=True)
    value = loss(z, torch.arange(64))
    value.backward()  # a table of classes by classes would be 256 MB for each operation
    assert bool(value.isfinite())


@pytest.mark.parametrize("name", ["focal", "mmce", "contrastive", "vat", "class_balanced", "mse"])
def test_they_go_to_another_process(name):
    entry = losses.entry(name)
    loss = entry.build(**entry.trial)
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss)):
        assert repr(other) == repr(loss)
    if isinstance(loss, NamedLoss):
        assert pickle.loads(pickle.dumps(loss))._takes is entry.takes


def test_all_but_one_have_a_second_derivative():
    without = [n for n, e in OURS.items() if not e.second]
    assert without == ["multiclass_hinge"]
    loss, z, y = losses.get("multiclass_hinge"), torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1])
    (slope,) = torch.autograd.grad(loss(z, y), z, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative"):
        torch.autograd.grad(slope.sum(), z)


def test_every_loss_cites_and_explains_itself():
    for name, entry in OURS.items():
        assert entry.source, f"{name} cites nothing"
        assert entry.doc.endswith("."), f"{name} has no line about itself"
        assert entry.takes is not None, f"{name} doesn't say what it takes"
        for option, o in entry.options.items():
            assert o.doc, f"{name}({option}) is not explained"
            assert o.source, f"{name}({option}) has a default from nowhere"


def test_losses_that_couple_samples_do():
    # Said of a loss that is a plain mean over samples, rebatch=False would forbid cutting for nothing.
    for name, entry in OURS.items():
        if entry.rebatch or name == "vat":  # vat's first direction is drawn for the whole batch
            continue
        plain = replace(entry, rebatch=True)
        if name in PARTS_REFUSED:
            with pytest.raises(TrainingError, match=PARTS_REFUSED[name]):
                examine(plain)
        else:
            assert levels(plain)["mean"] == "fail", name


def made(function, **facts) -> LossEntry:
    return LossEntry(
        "mine", lambda: NamedLoss("mine", function, {}, VALUES, True), "Mine.", "", {}, takes=VALUES, **facts
    )


@pytest.mark.parametrize(
    ("function", "check"),
    [
        (lambda o, t: ((o - t).detach() * (o - t)).mean(), "gradient"),
        (lambda o, t: (o - t).square().sum(), "mean"),
        (lambda o, t: torch.exp((o - t).abs()).mean(), "finite"),
        (lambda o, t: ((o - t).square() * 1e-30 / (o - t).square().clamp(min=1e7).rsqrt() * 0).mean() / 0, "finite"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_wrong_loss_fails_its_check(function, check):
    assert levels(made(function))[check] == "fail"


def test_a_loss_without_a_paper_or_an_example_is_said():
    assert levels(made(lambda o, t: (o - t).square().mean()))["source"] == "warn"
    entry = LossEntry("mine", lambda: None, "Mine.", "somebody", {})
    assert levels(entry) == {"example": "warn", "source": "pass"}
    assert isinstance(entry, Entry)


def test_the_gate_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    examine(losses.entry("l2"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_misfit_in_the_middle_of_an_example_is_named():
    assert LOGITS.misfit(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)) != ""
