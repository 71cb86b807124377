"""Schedules against their formulas at start, switches and end, against PyTorch's and transformers' own, and driven."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from landscape import losses, optimizers, schedules
from landscape.errors import TrainingError
from landscape.reduction import split_value
from landscape.training.driver import drive
from landscape.training.native import to_torch
from landscape.training.phasing import easiest, unfreeze
from landscape.training.schedule import Progress

#: Values pass through a handful of float64 operations, in another order in the other library.
CLOSE = {"rel": 1e-10, "abs": 1e-12}


def optimizer(lr: float = 0.4, groups: int = 1, **settings) -> torch.optim.SGD:
    parts = [{"params": [nn.Parameter(torch.zeros(2))], "lr": lr / (i + 1)} for i in range(groups)]
    return torch.optim.SGD(parts, lr=lr, **settings)


# ---------------------------------------------------------------------------------------------- worked numbers


def test_step_decay_of_the_lecture():
    schedule = schedules.build("step(every=30, factor=0.1)")
    for epoch, value in {0: 1, 29: 1, 30: 0.1, 59: 0.1, 60: 0.01, 89: 0.01}.items():
        assert schedule(epoch, 90) == pytest.approx(value)
        assert schedule(epoch * 7, 90 * 7, steps_per_epoch=7) == pytest.approx(value)
        assert schedule(epoch * 7 + 6, 90 * 7, steps_per_epoch=7) == pytest.approx(value)


def test_cosine_of_the_lecture():
    schedule = schedules.get("cosine")
    for step, printed in {10: 0.97553, 25: 0.85355, 50: 0.5, 90: 0.02447}.items():
        assert abs(schedule(step, 100) - printed) <= 0.5000001e-5
    slope = (schedule(1, 10**6) - schedule(0, 10**6)) * 10**6
    assert abs(slope) < 1e-5  # it is flat at the start


@pytest.mark.parametrize(("batch", "updates"), [(1000, 1), (100, 10), (1, 1000)])
def test_updates_in_an_epoch_of_1000_samples(batch, updates):
    taken = sum(1 for _ in torch.utils.data.DataLoader(torch.zeros(1000), batch_size=batch))
    assert taken == updates
    assert Progress(taken, 10 * taken, taken).epoch == 1
    assert Progress(taken - 1, 10 * taken, taken).epoch == 0


# ------------------------------------------------------------------------------------- start, switches and end


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("constant(0.5)", 100, {0: 0.5, 100: 0.5}),
        ("step(every=0.25)", 100, {0: 1, 24: 1, 25: 0.1, 49: 0.1, 50: 0.01, 75: 0.001, 99: 0.001}),
        ("step(every=1, factor=0.5)", 4, {0: 1, 1: 0.5, 2: 0.25, 3: 0.125}),
        ("multi_step", 100, {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 99: 0.01}),
        ("multi_step([3, 7], 0.5)", 10, {2: 1, 3: 0.5, 6: 0.5, 7: 0.25}),
        ("exponential(0.9, decay_steps=5)", 20, {0: 1, 5: 0.9, 10: 0.81, 7: 0.9**1.4}),
        ("polynomial(2)", 10, {0: 1, 5: 0.25, 9: 0.01, 10: 0}),
        ("polynomial(2, end=0.1)", 10, {0: 1, 5: 0.1 + 0.9 / 4, 10: 0.1}),
        ("linear", 10, {0: 1, 5: 0.5, 10: 0}),
        ("linear(end=0.2, start=0.6)", 10, {0: 0.6, 5: 0.4, 10: 0.2}),
        ("cosine(end=0.1)", 10, {0: 1, 5: 0.55, 10: 0.1}),
        ("sgdr", 70, {0: 1, 5: 0.5, 10: 1, 20: 0.5, 30: 1, 50: 0.5, 70: 0}),
        ("sgdr(period=10, multiply=1)", 30, {0: 1, 9: (1 + math.cos(0.9 * math.pi)) / 2, 10: 1, 20: 1, 30: 0}),
        ("warmup_constant(0.1)", 100, {0: 0, 5: 0.5, 10: 1, 99: 1}),
        ("warmup_constant(20, start=0.5)", 100, {0: 0.5, 10: 0.75, 20: 1}),
        ("warmup_linear(0.1)", 100, {0: 0, 5: 0.5, 10: 1, 55: 0.5, 100: 0}),
        ("warmup_linear(0.1, end=0.2, start=0.5)", 100, {0: 0.5, 5: 0.75, 10: 1, 55: 0.6, 100: 0.2}),
        ("warmup_cosine(0.1, end=0.2, start=0.5)", 100, {0: 0.5, 5: 0.75, 10: 1, 55: 0.6, 100: 0.2}),
        ("sgdr(end=0.2)", 70, {0: 1, 5: 0.6, 10: 1, 70: 0.2}),
        ("warmup_cosine(warmup=0.05)", 100, {0: 0, 4: 0.8, 5: 1, 100: 0, 52: (1 + math.cos(math.pi * 47 / 95)) / 2}),
        ("warmup_stable_decay", 100, {0: 0, 5: 1, 50: 1, 80: 1, 90: 0.5, 100: 0}),
        ("warmup_stable_decay(10, 40, 'sqrt', end=0.1)", 100, {10: 1, 60: 1, 70: 1 - 0.9 * 0.5, 100: 0.1}),
        ("warmup_stable_decay(shape='cosine')", 100, {80: 1, 90: 0.5, 100: 0}),
        ("triangular(period=20, low=0.1)", 40, {0: 0.1, 5: 0.55, 10: 1, 15: 0.55, 20: 0.1, 30: 1, 40: 0.1}),
        ("triangular2(period=20, low=0.1)", 60, {0: 0.1, 10: 1, 20: 0.1, 30: 0.55, 50: 0.325}),
        ("exp_range(period=20, low=0.1, decay=0.9)", 40, {0: 0.1, 10: 0.1 + 0.9 * 0.9**10, 30: 0.1 + 0.9 * 0.9**30}),
        ("one_cycle(rise=0.3)", 100, {0: 1 / 25, 29: 1, 99: 4e-6, 64: (1 + 4e-6) / 2}),
        ("ramp(0, 0.1)", 100, {0: 0, 50: 0.05, 100: 0.1}),
        ("ramp(1, 3, start=0.2, stop=0.6)", 100, {0: 1, 20: 1, 40: 2, 60: 3, 99: 3}),
        ("ramp(0, 1, 10, 30, 'cosine')", 100, {10: 0, 20: 0.5, 30: 1}),
        ("ramp(0, 1, shape='root')", 100, {25: 0.5}),
        ("stages([1, 5, 2], [0.5, 0.75])", 100, {0: 1, 49: 1, 50: 5, 74: 5, 75: 2, 99: 2}),
        ("unfreezing(4)", 100, {0: 1, 16: 1, 17: 2, 33: 2, 34: 3, 49: 3, 50: 4, 99: 4}),
        ("curriculum", 100, {0: 0.2, 25: 0.6, 50: 1, 99: 1}),
    ],
)
def test_formulas(text, total, expected):
    schedule = schedules.build(text)
    schedule.check(total)
    found = {step: schedule(step, total) for step in expected}
    assert found == {step: pytest.approx(value, **CLOSE) for step, value in expected.items()}


def test_every_schedule_is_tried_above_and_stays_finite():
    for name in schedules.names():
        settings = {"ramp": "(0, 1)", "stages": "([1, 2], [0.5])", "unfreezing": "(3)", "step": "(0.3)"}.get(name, "")
        schedule = schedules.build(name + settings)
        for total in (1, 2, 3, 1000):
            values = [*schedule.values(total), schedule(total, total)]
            assert all(math.isfinite(v) and v >= 0 for v in values), (name, total)
        assert all(0 <= s <= 1000 for s in schedule.switches(1000)), name


def test_switches_are_where_the_formula_changes():
    assert schedules.get("step", every=30).switches(90) == (30, 60)
    assert schedules.get("step", every=30).switches(900, 10) == (300, 600)
    assert schedules.get("multi_step").switches(100) == (50, 75)
    assert schedules.get("sgdr").switches(70) == (10, 30)
    assert schedules.get("warmup_stable_decay").switches(100) == (5, 80)
    assert schedules.get("triangular", period=20).switches(40) == (10, 20, 30)


# ------------------------------------------------------------------------------------ PyTorch's and transformers'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("constant(0.5)", lr_scheduler.LambdaLR),
        ("step(every=7)", lr_scheduler.StepLR),
        ("multi_step([8, 30])", lr_scheduler.MultiStepLR),
        ("multi_step", lr_scheduler.MultiStepLR),
        ("exponential(0.93)", lr_scheduler.ExponentialLR),
        ("exponential(0.8, decay_steps=10)", lr_scheduler.ExponentialLR),
        ("polynomial(2)", lr_scheduler.PolynomialLR),
        ("linear(end=0.2)", lr_scheduler.LinearLR),
        ("cosine", lr_scheduler.CosineAnnealingLR),
        ("sgdr(period=10, multiply=2)", lr_scheduler.CosineAnnealingWarmRestarts),
        ("triangular(period=20)", lr_scheduler.CyclicLR),
        ("triangular2(period=14)", lr_scheduler.CyclicLR),
        ("exp_range(period=14, decay=0.99)", lr_scheduler.CyclicLR),
        ("one_cycle", lr_scheduler.OneCycleLR),
        ("one_cycle(rise=0.1, start=0.5, end=0.01)", lr_scheduler.OneCycleLR),
        ("warmup_cosine", lr_scheduler.LambdaLR),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_pytorchs_own_scheduler_gives_the_same_values(text, kind, groups):
    schedule, total, theirs = schedules.build(text), 70, optimizer(groups=groups)
    scheduler = to_torch(schedule, theirs, total)
    assert type(scheduler) is kind
    for step in range(total):
        for i, group in enumerate(theirs.param_groups):
            assert group["lr"] == pytest.approx(0.4 / (i + 1) * schedule(step, total), rel=1e-9, abs=1e-12), step
        theirs.step()
        scheduler.step()


@pytest.mark.parametrize("text", ["step(every=3)", "exponential(0.5)", "cosine(end=0.1)"])
def test_pytorchs_own_scheduler_counts_steps_where_ours_counts_epochs(text):
    schedule, theirs = schedules.build(text), optimizer()
    scheduler = to_torch(schedule, theirs, 40, steps_per_epoch=4)
    for step in range(40):
        assert theirs.param_groups[0]["lr"] == pytest.approx(0.4 * schedule(step, 40, 4), **CLOSE)
        theirs.step()
        scheduler.step()


@pytest.mark.parametrize(
    "settings", [{}, {"mode": "max", "cooldown": 2}, {"patience": 1, "lowest": 0.05, "factor": 0.3}]
)
def test_plateau_is_pytorchs(settings):
    ours, theirs = schedules.get("plateau", **{"patience": 3, **settings}), optimizer(lr=1.0)
    scheduler = to_torch(ours, theirs, 200)
    assert isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
    metrics = torch.rand(200, generator=torch.Generator().manual_seed(0)).cumsum(0).sin().tolist()
    metrics[50] = math.nan
    seen = set()
    for metric in metrics:
        ours.observe(metric)
        scheduler.step(metric)
        assert ours(0, 1) == pytest.approx(theirs.param_groups[0]["lr"], **CLOSE)
        seen.add(ours(0, 1))
    assert len(seen) > 2  # it did fall


def test_warmups_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    cases = {
        "warmup_linear(6)": lambda o: transformers.get_linear_schedule_with_warmup(o, 6, 60),
        "warmup_cosine(0.1)": lambda o: transformers.get_cosine_schedule_with_warmup(o, 6, 60),
        "warmup_constant(6)": lambda o: transformers.get_constant_schedule_with_warmup(o, 6),
    }
    for text, make in cases.items():
        schedule, theirs = schedules.build(text), optimizer()
        scheduler = make(theirs)
        for step in range(60):
            assert theirs.param_groups[0]["lr"] == pytest.approx(0.4 * schedule(step, 60), **CLOSE), (text, step)
            theirs.step()
            scheduler.step()


# ------------------------------------------------------------------------------------ longer or shorter than the run


@pytest.mark.parametrize(
    ("text", "total", "message"),
    [
        ("step(every=30)", 20, r"longer than the run: it changes at step 30, and the run ends at step 20"),
        ("step(every=30)", 30, "it changes at step 30"),
        ("multi_step([10, 50])", 40, "it changes at step 50"),
        ("warmup_cosine(500)", 100, "it changes at step 500"),
        ("sgdr(period=50)", 30, "it changes at step 50"),
        ("triangular(period=80)", 30, "it changes at step 40"),
        ("ramp(0, 1, stop=200)", 100, "it changes at step 200"),
        ("warmup_stable_decay(50, 60)", 100, "50 steps of warmup and 60 of decay, and the run has 100"),
        ("ramp(0, 1, start=0.5, stop=20)", 100, "starts at step 50 of a run of 100, behind its stop at 20"),
    ],
)
def test_a_schedule_longer_than_the_run_is_a_line(text, total, message):
    with pytest.raises(TrainingError, match=message):
        schedules.build(text).check(total)
    with pytest.raises(TrainingError, match=message):
        drive(optimizer(), {"lr": text}, total)


@pytest.mark.parametrize("text", ["sgdr(period=10)", "triangular(period=40)"])
def test_a_run_that_ends_inside_a_cycle_is_a_note(text):
    notes = drive(optimizer(), {"lr": text}, 100).notes
    assert len(notes) == 1
    assert "the run is shorter than the schedule" in notes[0]
    assert drive(optimizer(), {"lr": "sgdr"}, 100).notes == ()


def test_a_run_of_another_length_is_a_line():
    driver = drive(optimizer(), {"lr": "cosine"}, 2)
    driver.step()
    with pytest.raises(TrainingError, match="ended after 1 of its 2 steps: the schedules are longer than the run"):
        driver.finish()
    driver.step()
    driver.finish()
    with pytest.raises(TrainingError, match="goes on after its 2 steps, and its schedules have ended"):
        driver.step()
    with pytest.raises(TrainingError, match="step 11 lies outside the run of 10 steps"):
        schedules.get("cosine")(11, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step(every=0)", "every > 0"),
        ("step(every=-3)", "no position in a run"),
        ("multi_step([5, 3])", "must rise"),
        ("exponential(0)", "decay > 0"),
        ("polynomial(0)", "power=0 must be above 0"),
        ("sgdr(multiply=0.5)", "multiply >= 1"),
        ("warmup_cosine(warmup='long')", "warmup='long' is no position"),
        ("warmup_stable_decay(shape='exp')", "shape='exp' is not one of linear, cosine, sqrt"),
        ("exp_range(decay=1.5)", r"decay=1.5 must lie in \(0, 1\]"),
        ("plateau(factor=2)", r"factor=2 must lie in \(0, 1\)"),
        ("plateau(mode='best')", "mode='best' is not one of min, max"),
        ("ramp(0, 1, start=0.6, stop=0.2)", "start=0.6 lies behind stop=0.2"),
        ("ramp(0)", "ramp needs its parameter 'last'"),
        ("stages([1], [0.5])", "one value more"),
        ("unfreezing(3, first=4)", "between 0 and the 3 groups"),
        ("curriculum(0)", "first=0 must lie in"),
    ],
)
def test_settings_that_make_no_sense_are_a_line(text, message):
    with pytest.raises(TrainingError, match=message):
        schedules.build(text)


# --------------------------------------------------------------------------------------------------- driving


def test_named_scalars_are_set_and_returned():
    theirs = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.2, weight_decay=0.1)
    named = {
        "lr": "linear",
        "weight_decay": "ramp(0, 0.4)",
        "beta1": "stages([0.5, 0.8], [0.5])",
        "clip": "linear(0.5)",
    }
    driver = drive(theirs, named, 4, values={"clip": 10.0})
    rows = []
    for _ in range(4):
        now = driver.step()
        group = theirs.param_groups[0]
        assert (now["lr"], now["weight_decay"], now["beta1"]) == (group["lr"], group["weight_decay"], group["betas"][0])
        assert group["betas"][1] == 0.999
        assert now == driver.in_force
        rows.append([now[n] for n in named])
    expected = [[0.2, 0, 0.5, 10], [0.15, 0.1, 0.5, 8.75], [0.1, 0.2, 0.8, 7.5], [0.05, 0.3, 0.8, 6.25]]
    assert rows == [pytest.approx(row, **CLOSE) for row in expected]


def test_groups_keep_their_own_base_values():
    theirs = optimizer(lr=1.0, groups=2)
    driver = drive(theirs, {"lr": "linear", "momentum": "ramp(0.5, 0.9)"}, 2)
    assert driver.step() == {"lr": 1.0, "lr.1": 0.5, "momentum": 0.5}
    assert driver.step() == {"lr": 0.5, "lr.1": 0.25, "momentum": pytest.approx(0.7)}
    assert [g["lr"] for g in theirs.param_groups] == [0.5, 0.25]


COSINE_AND_RAMP = {"lr": "cosine", "momentum": "ramp(0.5, 0.9)"}


class TestGroupsThatComeLater:
    """`add_param_group` while a training goes on: the new group is driven from the value that it comes with."""

    def run(self, theirs, driver, first, last, joins=None):
        rows = []
        for step in range(first, last):
            if step == joins:
                theirs.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.2})
            now = driver.step()
            rows.append((now, [(g["lr"], g["momentum"]) for g in theirs.param_groups]))
        return rows

    def test_it_is_where_it_would_be_had_it_been_there_from_the_start(self):
        both = optimizer(lr=0.4, groups=2)
        whole = self.run(both, drive(both, COSINE_AND_RAMP, 8), 0, 8)
        late = optimizer(lr=0.4)
        found = self.run(late, drive(late, COSINE_AND_RAMP, 8), 0, 8, joins=3)
        assert found[3:] == whole[3:]
        assert [values for _, values in found[:3]] == [values[:1] for _, values in whole[:3]]

    def test_one_without_a_value_of_its_own_takes_the_optimizers_and_is_like_the_first(self):
        theirs = optimizer(lr=0.4)
        driver = drive(theirs, {"lr": "linear"}, 4)
        driver.step(), driver.step()
        theirs.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        assert driver.step() == {"lr": pytest.approx(0.2)}
        assert [g["lr"] for g in theirs.param_groups] == [pytest.approx(0.2)] * 2

    def test_one_that_shares_the_first_ones_tensor_is_driven_as_that_is(self):
        theirs = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=torch.tensor(0.4))
        driver = drive(theirs, {"lr": "linear"}, 4)
        driver.step(), driver.step(), driver.step()
        theirs.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        assert theirs.param_groups[1]["lr"] is theirs.param_groups[0]["lr"]  # torch's default, at 0.2 by now
        assert driver.step() == {"lr": pytest.approx(0.1)}
        assert [float(g["lr"]) for g in theirs.param_groups] == [pytest.approx(0.1)] * 2

    def test_a_resumed_run_knows_it(self):
        theirs = optimizer(lr=0.4)
        driver = drive(theirs, COSINE_AND_RAMP, 8)
        self.run(theirs, driver, 0, 5, joins=3)
        saved, state = driver.state_dict(), theirs.state_dict()
        rest = self.run(theirs, driver, 5, 8)
        fresh = optimizer(lr=0.4, groups=2)
        resumed = drive(fresh, COSINE_AND_RAMP, 8)
        fresh.load_state_dict(state)
        resumed.load_state_dict(saved)
        assert self.run(fresh, resumed, 5, 8) == rest

    def test_one_without_the_number_is_a_line(self):
        theirs = optimizer()
        driver = drive(theirs, COSINE_AND_RAMP, 8)
        theirs.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
        del theirs.param_groups[1]["momentum"]
        with pytest.raises(TrainingError, match="group 1 of the optimizer has no momentum to be driven, it has lr, "):
            driver.step()


def test_a_learning_rate_on_the_device_stays_a_tensor():
    theirs = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.5), capturable=False, foreach=False)
    rate = theirs.param_groups[0]["lr"]
    driver = drive(theirs, {"lr": "linear"}, 2)
    driver.step(), driver.step()
    assert theirs.param_groups[0]["lr"] is rate
    assert float(rate) == 0.25


def test_settings_and_weights_of_a_loss_are_driven():
    loss = losses.build("cross_entropy + 0.5*ramp(0, 2)*focal")
    named = {"loss.focal.gamma": "ramp(0, 4)", "loss.cross_entropy.label_smoothing": "ramp(0.2, 0)"}
    driver = drive(None, named, 2, loss=loss)
    z, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    first = driver.step()
    assert first == {
        "loss.focal.gamma": 0,
        "loss.cross_entropy.label_smoothing": 0.2,
        "weight.cross_entropy": 1,
        "weight.focal": 0,
    }
    driver.step()
    terms = loss(z, y)
    assert driver.in_force["weight.focal"] == 0.5
    assert float(terms["focal"]) == pytest.approx(0.5 * float(losses.get("focal", gamma=2.0)(z, y)))
    smoothed = nn.CrossEntropyLoss(label_smoothing=0.1)(z, y)
    assert float(terms["cross_entropy"]) == pytest.approx(float(smoothed))


def test_a_setting_of_one_loss_is_driven():
    loss = losses.get("temperature_ce", temperature=2.0)
    driver = drive(None, {"loss.temperature": "linear(0.5)"}, 2, loss=loss)
    assert [driver.step()["loss.temperature"] for _ in range(2)] == [2.0, 1.5]
    assert loss.settings["temperature"] == 1.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wieght_decay", r"nothing here is called 'wieght_decay'; did you mean weight_decay"),
        ("loss.gama", r"the loss has nothing called 'loss.gama'; did you mean loss.gamma"),
        ("clip", r"values=\{'clip': \.\.\.\}"),
    ],
)
def test_an_unknown_scalar_offers_the_nearest(name, message):
    with pytest.raises(TrainingError, match=message):
        drive(optimizer(), {name: "cosine"}, 10, loss=losses.get("focal"))


def test_a_factor_on_nothing_is_a_line():
    with pytest.raises(TrainingError, match=r"weight_decay is 0, and Cosine\(end=0.0\) multiplies it"):
        drive(optimizer(), {"weight_decay": "cosine"}, 10)


def test_a_resumed_driver_goes_on_as_if_nothing_had_happened():
    def start():
        theirs = optimizer(weight_decay=0.1)
        return theirs, drive(theirs, {"lr": "plateau(patience=0)", "weight_decay": "warmup_cosine(2)"}, 12)

    whole, (_, straight) = [], start()
    for step in range(12):
        whole.append(straight.step())
        straight.observe([3, 2, 2, 1, 5][step % 5])
    theirs, driver = start()
    for step in range(7):
        assert driver.step() == whole[step]
        driver.observe([3, 2, 2, 1, 5][step % 5])
    saved, state = driver.state_dict(), theirs.state_dict()
    fresh, resumed = start()
    fresh.load_state_dict(state)  # with the values in force, not the base values
    resumed = drive(fresh, {"lr": "plateau(patience=0)", "weight_decay": "warmup_cosine(2)"}, 12)
    resumed.load_state_dict(saved)
    for step in range(7, 12):
        assert resumed.step() == whole[step]
        resumed.observe([3, 2, 2, 1, 5][step % 5])
    assert len({row["lr"] for row in whole}) > 3


def test_another_run_is_not_resumed():
    saved = drive(optimizer(), {"lr": "cosine"}, 10).state_dict()
    with pytest.raises(TrainingError, match="the saved run has total 10, this one 20"):
        drive(optimizer(), {"lr": "cosine"}, 20).load_state_dict(saved)
    with pytest.raises(TrainingError, match="the saved run has schedules"):
        drive(optimizer(), {"lr": "linear"}, 10).load_state_dict(saved)


# ---------------------------------------------------------------------------------------------------- phases


def test_layers_thaw_from_the_head():
    groups = [nn.Linear(2, 2), nn.Linear(2, 3), nn.Linear(3, 1)]
    schedule, trained = schedules.build("unfreezing(3, stop=0.5)"), []
    for step in (0, 50, 99):
        trained.append(unfreeze(groups, schedule(step, 100)))
    assert trained == [4, 6 + 9 + 4, 6 + 9 + 4]
    assert unfreeze(groups, 2) == 9 + 4
    assert [g.weight.requires_grad for g in groups] == [False, True, True]
    with pytest.raises(TrainingError, match="4 groups can't train: there are 3"):
        unfreeze(groups, 4)


def test_a_curriculum_takes_the_easiest_first():
    difficulty = torch.tensor([0.5, 0.1, 0.9, 0.1, 0.3])
    assert easiest(difficulty, 0.4).tolist() == [1, 3]
    assert easiest(difficulty, 1.0).tolist() == [1, 3, 4, 0, 2]
    assert easiest(difficulty, 0.01).tolist() == [1]
    with pytest.raises(TrainingError, match="none of them NaN"):
        easiest(torch.tensor([math.nan]), 1.0)


def test_a_schedule_of_ones_own():
    from landscape.training.schedule import Schedule

    @schedules.register("sawtooth_of_a_test", about={"teeth": "number"})
    class Sawtooth(Schedule):
        """Down, and up at once."""

        def __init__(self, teeth: int = 4) -> None:
            self.teeth = teeth

        def value(self, progress):
            return 1 - (progress.share * self.teeth) % 1

    try:
        driver = drive(optimizer(lr=1.0), {"lr": "sawtooth_of_a_test(teeth=2)"}, 4)
        assert [driver.step()["lr"] for _ in range(4)] == [1, 0.5, 1, 0.5]
    finally:
        del schedules._entries["sawtooth_of_a_test"]


def test_schedules_import_no_torch():
    code = "import sys; from landscape import schedules; schedules.build('cosine')(1, 2); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


def test_a_training_with_everything_by_name():
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(4, 2)
    loss = losses.build("cross_entropy + ramp(0, 0.2)*soft_ece + 0.001*l2").bind(model)
    trained = optimizers.build("sgd(lr=0.5, momentum=0.9)")(model.parameters())
    named = {"lr": "warmup_cosine(warmup=0.1)", "momentum": "ramp(0.5, 0.9)", "clip": "linear(0.5)"}
    driver = drive(trained, named, 40, steps_per_epoch=4, loss=loss, values={"clip": 2.0})
    seen = []
    for step in range(40):
        now = driver.step()
        batch = slice(16 * (step % 4), 16 * (step % 4) + 16)
        mean, _, terms = split_value(loss(model(x[batch]), y[batch]))
        trained.zero_grad()
        mean.backward()
        nn.utils.clip_grad_norm_(model.parameters(), now["clip"])
        trained.step()
        seen.append((float(terms["cross_entropy"]), now))
    driver.finish()
    assert set(now) == {"lr", "momentum", "clip", "weight.cross_entropy", "weight.soft_ece", "weight.l2"}
    assert sum(s[0] for s in seen[-4:]) < 0.3 * sum(s[0] for s in seen[:4])
    assert seen[20][1]["weight.soft_ece"] == pytest.approx(0.1)
    assert seen[4][1]["lr"] == 0.5
    assert trained.param_groups[0]["lr"] == seen[-1][1]["lr"]
