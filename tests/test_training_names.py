"""Names and strings: what there is, what a string makes, and the line that a wrong one ends in."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from small_world import done, landscape
from torch import nn

from landscape import averages, losses, optimizers, schedules
from landscape.cli.listing import _TRAINING
from landscape.errors import TrainingError
from landscape.reduction import split_value
from landscape.training.expressions import parse_call, parse_sum
from landscape.training.inputs import VALUES
from landscape.training.loss import NamedLoss
from landscape.training.registry import Parameter
from landscape.training.schedule import Progress
from landscape.training.weighted import WeightedLoss

#: Every method that the toolkit must know by name, as its registry has it.
LOSSES = """
mse mae huber smooth_l1 pseudo_huber bce cross_entropy label_smoothing hinge squared_hinge multiclass_hinge focal
contrastive triplet triplet_hard triplet_semi_hard info_nce nt_xent cosface arcface evidential mmce soft_ece
temperature_ce ohem class_balanced logit_adjusted total_variation dice jaccard diou ciou detection consistency coral mmd
l1 l2 elastic_net
poly1 poly1_focal squentropy z_loss nce nfl apl gce ldr sparsemax one_vs_rest sovr anyloss circle multi_similarity
adaface
jaccard_metric scheduled_pseudo_huber vat norm_loss correctness_calibration
evidential_likelihood class_mae rce rmse log_cosh giou brier binary_focal
"""
SCHEDULES = """
constant step multi_step exponential polynomial linear cosine sgdr warmup_linear warmup_cosine triangular triangular2
exp_range one_cycle plateau warmup_stable_decay ramp unfreezing curriculum
"""
OPTIMIZERS = "gd sgd momentum nesterov adagrad rmsprop adam adamw lbfgs"


@pytest.fixture
def mine():
    """Remove what a test registers."""
    registries = (losses, schedules, optimizers)
    before = [set(r.entries()) for r in registries]
    yield
    for registry, known in zip(registries, before, strict=True):
        for name in set(registry.entries()) - known:
            del registry._entries[name], registry._origins[name]


@pytest.mark.parametrize(
    ("registry", "wanted"), [(losses, LOSSES), (schedules, SCHEDULES), (optimizers, OPTIMIZERS)], ids=lambda x: ""
)
def test_every_method_is_known_by_name(registry, wanted):
    assert set(wanted.split()) - set(registry.names()) == set()


def test_a_registry_shows_what_it_holds():
    assert repr(averages) == "<the average registry: ema, swa>"


def test_no_loss_has_the_name_of_a_schedule():
    assert set(losses.names()) & set(schedules.names()) == set()


def test_pytorchs_own_is_handed_out():
    kinds = {
        "mse": nn.MSELoss,
        "mae": nn.L1Loss,
        "huber": nn.HuberLoss,
        "smooth_l1": nn.SmoothL1Loss,
        "bce": nn.BCEWithLogitsLoss,
        "cross_entropy": nn.CrossEntropyLoss,
        "label_smoothing": nn.CrossEntropyLoss,
        "multiclass_hinge": nn.MultiMarginLoss,
    }
    assert {n: type(losses.get(n)) for n in kinds} == kinds
    assert type(losses.get("class_balanced", counts=[3, 1])) is nn.CrossEntropyLoss


# --------------------------------------------------------------------------------------------------- strings


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("focal", "focal"),
        (" focal( gamma = 2 ) ", "focal(gamma=2)"),
        ("apl(1, beta=-2.5, active='nce')", "apl(1, beta=-2.5, active='nce')"),
        ("multi_step([3, 5], None)", "multi_step([3, 5], None)"),
        ("adam(betas=(0.9, 0.99), amsgrad=True)", "adam(betas=(0.9, 0.99), amsgrad=True)"),
    ],
)
def test_calls(text, shown):
    call = parse_call(text)
    assert str(call) == shown
    assert parse_call(str(call)) == call


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("focal", ["focal"]),
        ("0.9*a + ramp(0,0.1)*b", ["0.9*a", "ramp(0, 0.1)*b"]),
        ("a - 2*b", ["a", "-2*b"]),
        ("a - (b - c/4)", ["a", "-1*b", "0.25*c"]),
        ("-a*2", ["-2*a"]),
        ("b*ramp(0, 1)*3/2", ["1.5*b*ramp(0, 1)"]),
    ],
)
def test_sums(text, shown):
    assert [str(p) for p in parse_sum(text)] == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a name with settings"),
        ("focal(", "can't be read"),
        ("focal(gamma=2, gamma=3)", "gives 'gamma' twice"),
        ("3", "names no loss"),
        ("2*3", "names no loss"),
        ("'focal'*mse", "'focal' in .* is no number"),
        ("True*mse", "True in .* is no number"),
        ("mse/0", "divides by 0"),
        ("1/mse", "divides by 'mse'"),
        ("mse**2", r"'mse \*\* 2' in .* is no plain value"),
        ("torch.nn.MSELoss()", "'torch.nn.MSELoss' in .* is no plain name"),
        ("focal(gamma=open('x'))", r"\"open\('x'\)\" in .* is no plain value"),
        ("focal(gamma=x)", "'x' in .* is no plain value"),
        ("focal(*[1])", r"unpacks with \*"),
        ("focal(**{})", r"unpacks with \*"),
        ("(lambda: 1)()", "is no plain name"),
        ("mse if 1 else mae", "is no plain value"),
        ("focl", "there is no loss or schedule 'focl'; did you mean focal"),
        ("crossentropy", "did you mean cross_entropy"),
        ("mse + ramp(0, 1)", r"the summand 'ramp\(0, 1\)' of .* has 0 losses"),
        ("mse*mae", r"the summand 'mse\*mae' of .* has 2 losses"),
        ("rampp(0, 1)*mse", "'rampp'; did you mean ramp"),
        ("focal(gama=2)", r"focal has no parameter 'gama'; it has gamma=2.0, alpha=None"),
        ("focal(1, 2, 3)", "focal takes 2 parameters .* got 3"),
        ("focal(1, gamma=2)", "got its parameter 'gamma' twice"),
        ("logit_adjusted", r"needs its parameter 'counts' \(training samples of each class"),
        ("mse + " * 5000 + "mse", "to be read|can't be read"),
        ("mse + " * 100 + "mse)", "can't be read"),
    ],
)
def test_a_wrong_string_is_a_line(text, message):
    with pytest.raises(TrainingError, match=message):
        losses.build(text)


@pytest.mark.parametrize(
    ("registry", "text", "message"),
    [
        (losses, "focal(gamma=-1)", r"gamma=-1 of focal must lie in \[0, inf\)"),
        (losses, "0.5*focal + label_smoothing(1.5)", r"smoothing=1.5 of label_smoothing must lie in \[0, 1\]"),
        (losses, "info_nce(temperature=0)", r"temperature=0 of info_nce must lie in \(0, inf\)"),
        (losses, "rce(log_zero=0)", r"log_zero=0 of rce must lie in \(-inf, 0\)"),
        (schedules, "step(factor=-0.1)", r"factor=-0.1 of step must lie in \[0, inf\)"),
        (schedules, "warmup_cosine(end=-1)", r"end=-1 of warmup_cosine must lie in \[0, inf\)"),
    ],
)
def test_a_number_that_can_not_be_is_a_line_before_anything_runs(registry, text, message):
    with pytest.raises(TrainingError, match=message):
        registry.build(text)


def test_the_ends_of_an_interval_are_in_it_or_not_and_words_are_no_numbers():
    half_open = Parameter(1.0, "", limits="(0, 1]")
    assert [half_open.takes(v) for v in (0, 1e-9, 1, 1.1, float("nan"), None, "x", True)] == [
        False, True, True, False, False, True, True, True,
    ]  # fmt: skip
    assert Parameter(1.0, "").takes(-5)
    for registry in (losses, schedules, optimizers):
        for entry in registry.entries().values():
            assert all(o.takes(o.default) for o in entry.options.values()), entry.name


def test_nothing_in_a_string_is_run(capsys):
    for text in ("focal(gamma=__import__('os').system('echo run'))", "print('run')", "mse*[print('run')][0]"):
        with pytest.raises(TrainingError):
            losses.build(text)
    assert capsys.readouterr().out == ""


def test_a_string_is_one_call_where_no_sum_is_meant():
    with pytest.raises(TrainingError, match=r"'0.5\*cosine' is no name with settings"):
        schedules.build("0.5*cosine")
    with pytest.raises(TrainingError, match="there is no schedule 'cosin'; did you mean cosine"):
        schedules.get("cosin")


def test_a_name_that_is_near_nothing_gets_the_whole_list():
    with pytest.raises(TrainingError, match="there are adagrad, adam, adamw, asam, gd"):
        optimizers.get("xyzzy")


# ------------------------------------------------------------------------------------------------ weighted sums


def test_a_sum_records_its_terms_and_their_weights():
    loss = losses.build("0.9*cross_entropy + ramp(0, 0.1)*soft_ece")
    assert isinstance(loss, WeightedLoss)
    assert (loss.names, loss.scheduled, loss.rebatch) == (("cross_entropy", "soft_ece"), ("soft_ece",), False)
    assert loss.weights == {"cross_entropy": 0.9, "soft_ece": 0.0}
    assert loss.advance(Progress(5, 10)) == {"cross_entropy": 0.9, "soft_ece": 0.05}
    torch.manual_seed(0)
    z, y = torch.randn(8, 3).double(), torch.randint(3, (8,))
    mean, weight, terms = split_value(loss(z, y))
    ce, ece = losses.get("cross_entropy")(z, y), losses.get("soft_ece")(z, y)
    assert float(terms["cross_entropy"]) == pytest.approx(0.9 * float(ce))
    assert float(terms["soft_ece"]) == pytest.approx(0.05 * float(ece))
    assert float(mean) == pytest.approx(float(0.9 * ce + 0.05 * ece))
    assert weight is None


def test_a_sum_of_losses_that_know_their_denominator_knows_it():
    loss = losses.build("0.5*cross_entropy + label_smoothing(0.2)")
    y = torch.tensor([0, -100, 2])
    mean, weight, _ = split_value(loss(torch.zeros(3, 3), y))
    assert weight == 2
    assert float(mean) == pytest.approx(1.5 * float(torch.tensor(3.0).log()))


def test_terms_of_terms_and_terms_of_one_name():
    loss = losses.build("mse + 0.5*mse + mae")
    assert loss.names == ("mse", "mse_2", "mae")
    boxes = torch.tensor([[0.0, 0, 1, 1]])
    parts = {"cls": torch.zeros(1, 2), "box": boxes, "obj": torch.zeros(1)}
    target = {"cls": torch.zeros(1, dtype=torch.long), "box": boxes, "obj": torch.ones(1)}
    terms = losses.build("2*detection")(parts, target)
    assert set(terms) == {"detection.cls", "detection.box", "detection.obj"}


def test_a_weighted_single_loss_is_a_sum_of_one():
    loss = losses.build("3*mse")
    assert {k: float(v) for k, v in split_value(loss(torch.ones(2), torch.zeros(2)))[2].items()} == {"mse": 3}
    assert type(losses.build("mse")) is nn.MSELoss


def test_the_weights_of_a_sum_are_those_of_its_schedule_in_this_run():
    loss = losses.build("mse + ramp(0, 1, stop=500)*mae")
    with pytest.raises(TrainingError, match="it changes at step 500"):
        loss.check(100)
    assert loss.check(1000) == ()


# ------------------------------------------------------------------------------------------------ ones of one's own


@pytest.mark.usefixtures("mine")
def test_a_loss_of_ones_own_is_like_the_others():
    @losses.register(
        "quartic", kind="regression", takes=VALUES, source="mine", about={"power": ("of the error", "mine")}
    )
    def quartic(outputs, target, *, power: float = 4.0):
        """Mean of a power of the errors."""
        return (outputs - target).abs().pow(power).mean()

    loss = losses.build("0.5*quartic(power=3) + mse")
    value = split_value(loss(torch.full((2,), 2.0), torch.zeros(2)))[0]
    assert float(value) == 0.5 * 8 + 4
    entry = losses.entry("quartic")
    assert (entry.doc, entry.kind, entry.options["power"].default) == (
        "Mean of a power of the errors.",
        "regression",
        4.0,
    )
    made = losses.get("quartic")
    assert isinstance(made, NamedLoss)
    assert "quartic, power=4.0" in repr(made)


@pytest.mark.usefixtures("mine")
def test_a_class_and_a_factory_of_ones_own():
    @losses.register("scaled_mse_of_mine")
    class Scaled(nn.Module):
        """Scaled."""

        def __init__(self, scale: float = 2.0) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, outputs, target):
            return self.scale * (outputs - target).square().mean()

    @losses.factory("made_mse_of_mine")
    def made(scale: float = 3.0):
        """Made."""
        return Scaled(scale)

    one, zero = torch.ones(1), torch.zeros(1)
    assert float(losses.build("scaled_mse_of_mine(scale=5)")(one, zero)) == 5
    assert float(losses.build("made_mse_of_mine")(one, zero)) == 3
    assert losses.entry("made_mse_of_mine").options["scale"].source == "the signature's default"


@pytest.mark.usefixtures("mine")
def test_names_are_taken_once():
    def other(outputs, target):
        """Other."""
        return outputs.mean()

    with pytest.raises(TrainingError, match="loss 'focal' is registered twice"):
        losses.register("focal")(other)
    losses.register("other_of_mine")(other)
    losses.register("other_of_mine")(other)  # a task file that is loaded again
    with pytest.raises(TrainingError, match="'my loss' can't be the name of a loss"):
        losses.register("my loss")(other)
    with pytest.raises(TrainingError, match="kind='ranking' is not one of classification"):
        losses.register("fine", kind="ranking")  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="other has no parameter 'x'"):
        losses.register("fine", about={"x": "y"})(other)


# --------------------------------------------------------------------------------------------------- the listing


@pytest.mark.parametrize("what", sorted(_TRAINING))
def test_the_listing_shows_each_with_its_parameters_and_source(what):
    registry = {"losses": losses, "schedules": schedules, "optimizers": optimizers, "averages": averages}[what]
    text = done("list", what)
    shown = json.loads(done("list", what, "--json"))[what]
    assert [e["name"] for e in shown] == list(registry.names())
    for entry, row in zip((registry.entry(n) for n in registry.names()), shown, strict=True):
        assert f"\n{entry.name}" in f"\n{text}"
        assert entry.source in text
        assert row["source"] == entry.source
        assert set(row["options"]) == set(entry.options)
        for option, o in entry.options.items():
            assert row["options"][option]["source"] == o.source


def test_the_listing_knows_what_a_task_file_registers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from landscape import losses, task, Task\nfrom torch import nn\n\n"
        "@losses.register('loss_of_a_task_file', source='mine')\n"
        "def own(outputs, target):\n    'Mine.'\n    return outputs.mean()\n\n"
        "@task\ndef one():\n    return Task(nn.Linear(1, 1), train=(__import__('torch').zeros(2, 1),) * 2)\n"
    )
    try:
        assert "loss_of_a_task_file" in done("list", "losses", "--task", "own.py:one")
    finally:
        del losses._entries["loss_of_a_task_file"], losses._origins["loss_of_a_task_file"]


def test_the_gate_is_shown_on_request(monkeypatch):
    few = {n: losses.entry(n) for n in ("mse", "multiclass_hinge")}
    monkeypatch.setattr(type(losses), "entries", lambda self: few)
    text = done("list", "losses", "--check")
    assert text.count("gradient  pass") == 2
    assert "second derivative  warn  there is none" in text


def test_the_gate_is_for_losses():
    result = landscape("list", "schedules", "--check")
    assert result.exit_code == 2
    assert "--check is for losses" in result.stderr


def test_listing_schedules_imports_no_torch(tmp_path):
    import subprocess

    code = (
        "import contextlib, io, sys\nfrom landscape.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['list', 'schedules'])\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "False\n", run.stderr
