"""Every loss passes the gate, and the gate catches what it is there to catch."""

from __future__ import annotations

import pytest
import torch

from landscape import losses
from landscape.errors import TrainingError
from landscape.training.gate import examine
from landscape.training.inputs import LOGITS, VALUES
from landscape.training.registries import LossEntry
from landscape.training.registry import Entry

#: Losses that a part of their example (two of six samples) is too small or too uniform for.
PARTS_REFUSED = dict.fromkeys(("triplet_hard", "triplet_semi_hard", "circle", "multi_similarity"), "finds no triplet")


def levels(entry: LossEntry) -> dict[str, str]:
    return {check.name: check.level for check in examine(entry)}


@pytest.mark.parametrize("name", losses.names())
def test_every_loss_passes(name):
    # gradcheck's own tolerances: 1e-5 absolute and 1e-3 relative, on steps of 1e-6 in float64.
    failed = [f"{c.name}: {c.message}" for c in examine(losses.entry(name)) if c.level == "fail"]
    assert failed == []


def test_all_but_one_have_a_second_derivative():
    without = [n for n, e in losses.entries().items() if not e.second]
    assert without == ["multiclass_hinge"]
    loss, z, y = losses.get("multiclass_hinge"), torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1])
    (slope,) = torch.autograd.grad(loss(z, y), z, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative"):
        torch.autograd.grad(slope.sum(), z)


def test_every_loss_cites_and_explains_itself():
    for name, entry in losses.entries().items():
        assert entry.source, f"{name} cites nothing"
        assert entry.doc.endswith("."), f"{name} has no line about itself"
        assert entry.takes is not None, f"{name} doesn't say what it takes"
        for option, o in entry.options.items():
            assert o.doc, f"{name}({option}) is not explained"
            assert o.source, f"{name}({option}) has a default from nowhere"


def test_losses_that_couple_samples_do():
    # Said of a loss that is a plain mean over samples, rebatch=False would forbid cutting for nothing.
    for name, entry in losses.entries().items():
        if entry.rebatch or name == "vat":  # vat's first direction is drawn for the whole batch
            continue
        plain = LossEntry(**{**vars(entry), "rebatch": True})
        if name in PARTS_REFUSED:
            with pytest.raises(TrainingError, match=PARTS_REFUSED[name]):
                examine(plain)
        else:
            assert levels(plain)["mean"] == "fail", name


def made(function, **facts) -> LossEntry:
    from landscape.training.loss import NamedLoss

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
