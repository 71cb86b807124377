"""The run behind `landscape probe`: which task, which weights, which samples, and what is kept when it stops."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import small_world
import torch

from landscape import open_archive, save_checkpoint
from landscape import results as registry
from landscape.errors import ArchiveError, CheckpointError, MeasurementError, ObjectiveError, TaskError
from landscape.probes import prediction
from landscape.probes.inspection import inspect_task
from landscape.probes.outcome import SECTIONS, ProbeOutcome, merged
from landscape.probes.posthoc import plan_run, probe_checkpoints
from landscape.probes.prediction import CHOOSING, PASSES_A_PRODUCT, Span, Speed, measure_speed, predict, timed, total
from landscape.probes.selection import UnknownName, choose, samples_to_draw
from landscape.probes.targets import archive_paths
from landscape.results import Measurement, Result, StoredResult


@pytest.fixture
def world(tmp_path, monkeypatch):
    small_world.enter(tmp_path, monkeypatch)
    small_world.build(tmp_path)
    return tmp_path


def loss(outcome: ProbeOutcome) -> float:
    return outcome.as_dict()["loss"]["train"]


# ------------------------------------------------------------------------------------------- which weights


def test_checkpoints_that_share_a_task_are_each_measured_with_their_own_weights(world):
    alone = [loss(probe_checkpoints([p], only=["performance"], out=f"{p}.h5")[0]) for p in ("tiny.pt", "other.pt")]
    together = probe_checkpoints(["tiny.pt", "other.pt"], only=["performance"], out="both.h5")
    assert [loss(o) for o in together] == alone
    assert alone[0] != alone[1]


def test_the_loss_is_that_of_the_checkpoint(world):
    (outcome,) = probe_checkpoints(["tiny.pt"], only=["performance"])
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    expected = torch.nn.functional.cross_entropy(small_world.train(0)(x), y).item()
    assert loss(outcome) == pytest.approx(expected, rel=1e-6)  # float32 sums in another order
    assert outcome.samples == 200
    assert outcome.parameters == 67


def test_what_was_verified_of_one_checkpoint_is_verified_again_for_the_next(world):
    model = small_world.train(0)
    model[0].weight.data.fill_(math.nan)
    save_checkpoint("nan.pt", model, task="tasks.py:tiny")
    with pytest.raises(ObjectiveError, match="nan"):
        probe_checkpoints(["tiny.pt", "nan.pt"], only=["performance"])
    assert open_archive("tiny.landscape.h5").status == "complete"
    assert not (world / "nan.landscape.h5").exists()
    with pytest.raises(ObjectiveError, match="nan"):
        probe_checkpoints(["tiny.pt", "nan.pt"], only=["performance"], out="both.h5")
    kept = open_archive("both.h5")
    assert (kept.status, len(kept.entries)) == ("failed", 1)


def test_a_checkpoint_that_does_not_fit_stops_the_run_before_anything_is_measured(world):
    save_checkpoint("wide.pt", small_world.train(0, hidden=9), task="tasks.py:tiny")
    with pytest.raises(CheckpointError, match=r"wide.pt.*\(9, 4\)"):
        probe_checkpoints(["tiny.pt", "wide.pt"], only=["performance"])
    assert list(world.glob("*.h5*")) == []


# ---------------------------------------------------------------------------------------------- which task


def test_what_is_called_is_said(world):
    said = []
    probe_checkpoints(["tiny.pt", "other.pt"], only=["performance"], say=said.append)
    assert said[0] == "task: tasks.py:tiny(), named by tiny.pt"
    assert sum(line.startswith("task:") for line in said) == 1  # one task for both


def test_settings_go_to_the_task_and_to_the_archive(world):
    save_checkpoint("wide.pt", small_world.train(0, 9), task="tasks.py:tiny", settings={"hidden": 9}, lr=0.5)
    (outcome,) = probe_checkpoints(["wide.pt"], only=["performance"], settings={"samples": 50})
    assert outcome.parameters == 9 * 4 + 9 + 3 * 9 + 3
    assert outcome.samples == 50
    archive = open_archive("wide.landscape.h5")
    assert archive.run == {"task": "tasks.py:tiny", "lr": 0.5, "hidden": 9, "samples": 50}
    (subject,) = archive.subjects
    assert {k: subject.facts[k] for k in ("hidden", "samples", "lr", "preset", "device", "dtype")} == {
        "hidden": 9, "samples": 50, "lr": 0.5, "preset": "standard", "device": "cpu", "dtype": "float32",
    }  # fmt: skip


def test_a_task_of_the_users_own_that_leaves_out_the_kept_settings_is_said(world):
    save_checkpoint("named.pt", small_world.train(0), task="tasks.py:tiny", settings={"hidden": 8})
    (outcome,) = probe_checkpoints(["named.pt"], task="tasks.py:tiny", only=["performance"])
    assert any("hidden=8" in w and "--set" in w for w in outcome.warnings)


def test_a_task_file_that_changed_is_a_warning(world):
    (world / "tasks.py").write_text(small_world.TASKS + "\n# edited\n")
    (outcome,) = probe_checkpoints(["tiny.pt"], only=["performance"])
    assert any("changed since the checkpoint was written" in w for w in outcome.warnings)


def test_a_file_without_a_task_says_what_it_holds_and_what_to_type(world):
    with pytest.raises(TaskError) as caught:
        probe_checkpoints(["plain.pt"])
    told = "\n".join([str(caught.value), *caught.value.__notes__])
    assert "0.weight" in told
    assert "(8, 4)" in told
    assert "landscape init plain.pt" in told
    assert "landscape probe plain.pt --task plain_task.py" in told


# ------------------------------------------------------------------------------------------- which samples


@pytest.mark.parametrize(
    ("preset", "own", "given", "drawn"),
    [
        ("quick", None, None, 1024),
        ("standard", None, None, 4096),
        ("thorough", None, None, None),
        ("quick", 300, None, 300),
        ("quick", 9000, None, 1024),
        ("thorough", 300, None, 300),
        ("quick", 300, 5000, 5000),
    ],
)
def test_samples_of_a_draw(world, preset, own, given, drawn):
    task = plan_run(["tiny.pt"]).prepared[0].task.replace(max_samples=own)
    assert samples_to_draw(task, preset, given) == drawn


def test_the_seed_chooses_the_draw(world):
    runs = [
        probe_checkpoints(["tiny.pt"], only=["performance"], max_samples=50, seed=s, out=f"{i}.h5")[0]
        for i, s in enumerate((0, 0, 1))
    ]
    assert loss(runs[0]) == loss(runs[1])
    assert loss(runs[0]) != loss(runs[2])


# ------------------------------------------------------------------------------------ which measurements


def names(**how):
    return [c.measurement.name for c in choose(**how)]


def test_measurements_are_chosen_by_name_and_by_section(world):
    every = registry.measurements()
    assert names() == [m.name for m in every.values() if m.default]
    assert names(only=["curvature"]) == ["eigenvalues", "trace"]  # what runs by default in it
    assert names(only=["stability"]) == [m.name for m in every.values() if m.section == "stability"]  # nothing does
    assert names(only=["frobenius"]) == ["frobenius"]
    assert names(only=["plane", "performance"]) == ["performance", "plane"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"only": ["curvatur"]}, "curvature"),
        ({"preset": "quik"}, "quick"),
        ({"options": {"eigenvalue": {"k": 3}}}, "eigenvalues"),
        ({"options": {"eigenvalues": {"kk": 3}}}, "did you mean k"),
        ({"only": ["performance"], "options": {"eigenvalues": {"k": 3}}}, "not measured"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(world, how, said):
    with pytest.raises(UnknownName, match=said):
        choose(**how)


@pytest.mark.parametrize(
    ("name", "option"),
    [(name, key) for name, m in registry.measurements().items() for key, o in m.options.items() if o.choices],
)
def test_a_value_that_is_none_of_the_choices_is_refused_before_anything_is_measured(world, name, option):
    choices = registry.measurements()[name].options[option].choices
    with pytest.raises(MeasurementError, match=f"{option}='nonsense' is not one of {choices[0]}"):
        choose(only=[name], options={name: {option: "nonsense"}})
    for value in choices:
        choose(only=[name], options={name: {option: value}})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "sam+asam"}, "kind 'sam\\+asam' is not one of sam, adaptive"),
        ({"rho": {"sma": 1.0}}, "rho names 'sma'"),
        ({"rho": -1.0}, "must be a positive number"),
        ({"draws": 0}, "draws=0 must be at least 1"),
    ],
)
def test_sharpness_that_can_not_be_measured_is_refused_before_anything_is(world, options, said):
    with pytest.raises(MeasurementError, match=said):
        choose(only=["sharpness"], options={"sharpness": options})


def test_options_come_from_default_preset_and_user_in_that_order(world):
    def k(**how):
        return next(c.options["k"] for c in choose(**how) if c.measurement.name == "eigenvalues")

    assert (k(), k(preset="quick"), k(preset="quick", options={"eigenvalues": {"k": 3}})) == (10, 5, 3)


def test_a_section_may_not_hide_a_key_of_the_json_object(world):
    registry.measurement("mine", section="archive", default=False)(lambda task, **_: None)
    with pytest.raises(MeasurementError, match="key of --json"):
        choose(only=["mine"])


def test_what_a_task_cannot_give_is_left_out_said_and_recorded(world):
    (outcome,) = probe_checkpoints(["plain.pt"], task="tasks.py:regression", only=["performance", "calibration"])
    assert outcome.as_dict()["calibration"] is None
    assert list(outcome.missing) == ["calibration"]
    assert any(w.startswith("not measured: calibration") for w in outcome.warnings)
    archive = open_archive("plain.landscape.h5")
    (entry,) = archive.select("calibration")
    assert entry.status == "failed"
    assert "no class labels" in entry.result.checks[0].message
    assert archive.status == "complete"


def test_a_run_that_measures_nothing_leaves_nothing(world):
    with pytest.raises(MeasurementError, match=r"nothing could be measured.*no class labels"):
        probe_checkpoints(["plain.pt"], task="tasks.py:regression", only=["calibration"])
    assert list(world.glob("*.h5*")) == []


def test_an_option_of_the_users_that_does_not_fit_stops_the_run(world):
    with pytest.raises(MeasurementError, match=r"1000.*67"):
        probe_checkpoints(["tiny.pt"], only=["curvature"], options={"eigenvalues": {"k": 1000}})


LINEAR = """
import torch
from landscape import Task, task

@task
def linear():
    X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    return Task(torch.nn.Linear(3, 1), torch.nn.MSELoss(), train=(X, X.sum(1, keepdim=True)))
"""


@pytest.mark.parametrize("preset", ["quick", "standard", "thorough"])
def test_a_model_with_fewer_parameters_than_a_preset_has_eigenvalues_is_measured_whole(world, preset):
    (world / "linear.py").write_text(LINEAR)
    save_checkpoint("linear.pt", torch.nn.Linear(3, 1), task="linear.py:linear")
    X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
    A = torch.cat([X, torch.ones(48, 1)], 1).double()
    expected = torch.linalg.eigvalsh(2 * A.T @ A / 48).flip(0)  # of the mean squared error, whatever the weights
    for name in ("eigenvalues", "eigenvalues_by_differences"):
        (outcome,) = probe_checkpoints(["linear.pt"], only=[name], preset=preset, force=True)
        found = outcome.results[name]
        count = min(4, len(found.values))
        assert (count, outcome.missing) == (3 if (preset, name) == ("quick", "eigenvalues_by_differences") else 4, {})
        assert found.values[:count].tolist() == pytest.approx(expected[:count].tolist(), rel=1e-3)  # float32
        assert found.settings["k"] == count
    (outcome,) = probe_checkpoints(
        ["linear.pt"], only=["eigenvalues"], options={"eigenvalues": {"parameters": "bias"}}, preset=preset, force=True
    )
    assert outcome.results["eigenvalues"].values.tolist() == pytest.approx([2.0], rel=1e-5)
    with pytest.raises(MeasurementError, match="k=5 exceeds the 4 parameters selected; lower k"):
        probe_checkpoints(["linear.pt"], only=["eigenvalues"], options={"eigenvalues": {"k": 5}}, force=True)


def test_the_archive_keeps_what_was_measured_before_a_failure(world):
    with pytest.raises(ZeroDivisionError):
        probe_checkpoints(["mine.pt"], only=["performance", "crash"])
    kept = open_archive("mine.landscape.h5")
    assert (kept.status, [e.kind for e in kept.entries]) == ("failed", ["performance"])


# --------------------------------------------------------------------------------------------- where it goes


def test_archives_are_named_after_checkpoints(world):
    assert [p.name for p in archive_paths(["a/x.pt", "b/y.safetensors", "folder/"])] == [
        "x.landscape.h5", "y.landscape.h5", "folder.landscape.h5",
    ]  # fmt: skip
    assert [str(p) for p in archive_paths(["x.pt", "y.pt"], "run.h5")] == ["run.h5", "run.h5"]
    assert [p.name for p in archive_paths(["a/x.pt", "b/x.pt", "y.pt"])] == [
        "a_x.landscape.h5", "b_x.landscape.h5", "y.landscape.h5",
    ]  # fmt: skip
    # The nearest folder is the same: the next one tells them apart.
    assert [p.name for p in archive_paths(["a/last run/x.pt", "b/last run/x.pt"])] == [
        "a_last-run_x.landscape.h5", "b_last-run_x.landscape.h5",
    ]  # fmt: skip
    with pytest.raises(ArchiveError, match=r"-o run\.h5"):
        archive_paths(["a/x.pt", "a/x.safetensors"])


def test_one_archive_for_several_keeps_each_ones_settings_apart(world):
    probe_checkpoints(["tiny.pt", "other.pt"], only=["performance"], out="both.h5")
    archive = open_archive("both.h5")
    assert [s.facts["schedule"] for s in archive.subjects] == ["constant", "cosine"]
    assert "schedule" not in archive.run


def test_the_output_is_checked_before_anything_is_measured(world, monkeypatch):
    def never(*_, **__):
        raise AssertionError("measured")

    monkeypatch.setitem(
        registry._MEASUREMENTS,
        "performance",
        Measurement("performance", "performance", never, "", {}, {}, True, 1, None),
    )
    (world / "taken.h5").write_text("mine")
    with pytest.raises(ArchiveError, match="--force"):
        probe_checkpoints(["tiny.pt"], only=["performance"], out="taken.h5")
    with pytest.raises(ArchiveError, match="does not exist"):
        probe_checkpoints(["tiny.pt"], only=["performance"], out="nowhere/run.h5")
    assert (world / "taken.h5").read_text() == "mine"


# ------------------------------------------------------------------------------------------ the JSON object


def test_summaries_of_one_section_are_joined_and_products_add_up():
    one = {"eigenvalues": [2.0], "products": 20}
    both = merged(one, {"trace": {"value": 3.0}, "products": 32, "eigenvalues": [9.0]}, "density")
    assert both == {
        "eigenvalues": [2.0], "products": 52, "trace": {"value": 3.0}, "density": {"eigenvalues": [9.0]},
    }  # fmt: skip
    assert one == {"eigenvalues": [2.0], "products": 20}


def test_a_failed_result_is_null():
    failed = StoredResult(stored_kind="plane", status="failed")
    outcome = ProbeOutcome("c", "t", "cpu", "float32", 1, 1, results={"plane": failed})
    assert {outcome.as_dict()[name] for name in SECTIONS} == {None}


# ------------------------------------------------------------------------------------------------ prediction


def test_predicted_time_is_passes_times_the_pass_measured():
    speed = Speed(
        samples=100,
        forward=Span(0.5, 0.75),
        gradient=Span(1.5, 2.0),
        product=Span(6.0, 9.0),
        parameters=10,
        itemsize=8,
        graph=700,
        weights=80,
        batch=50,
        budget=2000,
    )

    def registered(name, needs, estimate):
        return Measurement(name, name, lambda: Result(), "", {}, {}, True, 1, estimate, needs)

    from landscape.probes.selection import Chosen

    plain = Chosen(registered("a", (), lambda *, k=1, **_: 10.0 * k), {"k": 2}, frozenset())
    bends = registered("b", ("second derivative",), lambda *, k=1, **_: (10.0 * k, 20.0 * k))
    curved = Chosen(bends, {"k": 2}, frozenset())
    unknown = Chosen(Measurement("c", "c", lambda: Result(), "", {}, {}, True, 1, None), {}, frozenset())
    a, b, c = predict([plain, curved, unknown], speed, 400)
    assert a.seconds == Span(4 * 20 * 0.5, 4 * 20 * 0.75)
    assert b.seconds == Span(4 * 20 * 6.0 / PASSES_A_PRODUCT, (4 * 40 + CHOOSING) * 9.0 / PASSES_A_PRODUCT)
    assert not c.seconds.known
    assert total([a, b, c]) == Span(a.seconds.low + b.seconds.low, a.seconds.high + b.seconds.high)
    assert a.memory == 3 * 80 + 4 * 50 + 700
    # Four batches' graphs would take 2,800: as many are kept as the budget holds.
    assert b.memory == pytest.approx(3 * 80 + 4 * 50 + 2000 + 40 / PASSES_A_PRODUCT * 10 * 8)


CPU = torch.device("cpu")


class Machine:
    """A pretended machine: a call takes seconds of its own, and the wall's clock shows more where others compute."""

    def __init__(self, monkeypatch, busy):
        self.own, self.wall, self.busy = 100.0, 500.0, busy
        monkeypatch.setattr(prediction, "cpu_clock", lambda device: lambda: self.own)
        monkeypatch.setattr(prediction, "time", SimpleNamespace(perf_counter=lambda: self.wall))

    def computing(self, *seconds):
        """Return a call that takes these seconds in turn."""
        turns = itertools.cycle(seconds)

        def call():
            spent = next(turns)
            self.own += spent
            self.wall += self.busy * spent

        return call


class TestTimed:
    def test_a_free_machine_whose_calls_take_the_same_gives_a_point(self, monkeypatch):
        machine = Machine(monkeypatch, busy=1)
        forward, product = timed([machine.computing(0.25), machine.computing(2.0)], CPU)
        assert (forward, product) == (Span(0.25, 0.25), Span(2.0, 2.0))

    @pytest.mark.parametrize("busy", [1, 2, 3.5])
    def test_the_span_holds_what_many_calls_take_on_a_free_machine_and_on_one_as_busy(self, monkeypatch, busy):
        machine = Machine(monkeypatch, busy)
        (span,) = timed([machine.computing(0.010, 0.011, 0.013)], CPU)
        call, own, wall = machine.computing(0.010, 0.011, 0.013), machine.own, machine.wall
        for _ in range(1000):
            call()
        expected = span.times(1000, 1000)
        assert expected.low <= machine.own - own <= expected.high
        assert machine.wall - wall <= expected.high * 1.02  # 20 trials of three kinds aren't a whole number of rounds
        assert expected.high <= 1.35 * busy * (machine.own - own)

    def test_one_hiccup_is_not_the_rule(self, monkeypatch):
        machine = Machine(monkeypatch, busy=1)
        (span,) = timed([machine.computing(*[0.01] * 19, 0.1)], CPU)
        assert span.low == pytest.approx(0.01)
        assert span.high == pytest.approx((19 * 0.01 + 0.1) / 20)

    def test_the_first_run_of_each_is_not_counted(self, monkeypatch):
        machine = Machine(monkeypatch, busy=1)
        (span,) = timed([machine.computing(50.0, *[1.0] * 30)], CPU)
        assert span == Span(1.0, 1.0)

    def test_slow_calls_are_tried_twice_and_quick_ones_20_times(self, monkeypatch):
        machine, calls = Machine(monkeypatch, busy=1), []
        for seconds in (5.0, 1e-6):
            call = machine.computing(seconds)
            timed([lambda call=call: calls.append(call) or call()], CPU)
        assert [calls.count(c) for c in dict.fromkeys(calls)] == [3, 21]


def test_one_batch_is_timed_and_the_model_is_as_before(world):
    task = plan_run(["tiny.pt"]).prepared[0].task
    before = [p.clone() for p in task.model.parameters()]
    speed = measure_speed(task)
    assert speed.samples == 200
    assert 0 < speed.forward.low < speed.gradient.low < speed.product.low
    assert all(t.low <= t.high for t in (speed.forward, speed.gradient, speed.product))
    assert speed.weights == 67 * 4
    # At least the input of the second layer (200, 8) and the logits' softmax (200, 3) are kept for the derivatives.
    assert speed.graph >= 200 * (8 + 3) * 4
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ inspection


def found(inspection, name):
    return next(c for c in inspection.findings if c.name == name)


def test_a_sound_task_passes_every_check(world):
    inspection = inspect_task("tasks.py:tiny", "tiny.pt")
    assert inspection.ok
    assert {c.level for c in inspection.findings} == {"pass"}
    assert found(inspection, "twice differentiable").value < 1e-6  # float64, a smooth net: only rounding is left
    assert set(inspection.works.values()) == {""}
    assert set(inspection.presets) == {"quick", "standard", "thorough"}
    assert all(samples == 200 for samples, _ in inspection.presets.values())


def test_a_backward_that_forgets_its_own_derivative_is_found(world):
    inspection = inspect_task("tasks.py:once")
    check = found(inspection, "twice differentiable")
    assert check.level == "fail"
    assert check.value > 0.3
    assert "differ" in inspection.works["eigenvalues"]
    assert inspection.works["plane"] == ""


def test_wrong_second_derivatives_are_not_measured(world):
    (outcome,) = probe_checkpoints(["plain.pt"], task="tasks.py:once", only=["performance", "curvature"])
    assert list(outcome.results) == ["performance"]
    assert set(outcome.missing) == {"eigenvalues", "trace"}
    assert "differ" in outcome.missing["trace"]
    (entry,) = open_archive("plain.landscape.h5").select("eigenvalues")
    assert entry.status == "failed"


def test_right_second_derivatives_are_recorded_as_a_check(world):
    (outcome,) = probe_checkpoints(["tiny.pt"], only=["trace"])
    (check,) = [c for c in outcome.results["trace"].checks if c.name == "twice differentiable"]
    assert check.level == "pass"
    assert check.value < 1e-6


def test_a_task_without_labels_or_held_out_data_is_told_what_will_be_missing(world):
    inspection = inspect_task("tasks.py:regression")
    assert inspection.ok
    assert found(inspection, "labels").level == "warn"
    assert found(inspection, "test data").level == "warn"
    assert "no class labels" in inspection.works["calibration"]


def test_what_needs_train_data_is_left_out_where_there_are_test_data_only(world, tmp_path):
    (tmp_path / "held_out.py").write_text(
        "from landscape import task\nfrom tasks import tiny\n\n\n@task\ndef held_out():\n    made = tiny()\n"
        "    return made.replace(train=None, test=made.train)\n"
    )
    inspection = inspect_task("held_out.py:held_out", "tiny.pt")
    assert [n for n, why in inspection.works.items() if not why] == ["performance", "calibration"]
    assert "no train data" in inspection.works["eigenvalues"]
    how = {"task": "held_out.py:held_out", "only": ["performance", "eigenvalues"]}
    (outcome,) = probe_checkpoints(["tiny.pt"], **how)
    assert list(outcome.results) == ["performance"]
    assert "split='test'" in outcome.missing["eigenvalues"]
    how["options"] = {"eigenvalues": {"split": "test"}}
    (outcome,) = probe_checkpoints(["tiny.pt"], force=True, **how)
    assert list(outcome.results) == ["performance", "eigenvalues"]


@pytest.mark.parametrize(
    ("name", "said"), [("noisy", "not deterministic"), ("weightless", "weight"), ("empty", "empty")]
)
def test_what_cannot_be_measured_is_a_finding(world, name, said):
    inspection = inspect_task(f"tasks.py:{name}")
    assert not inspection.ok
    assert said in inspection.findings[-1].message
    assert inspection.works == {}


@pytest.mark.parametrize("checkpoint", [None, "plain.pt"])
def test_a_task_without_data_is_refused(world, checkpoint):
    with pytest.raises(TaskError, match="has no data"):
        inspect_task("tasks.py:no_data", checkpoint)


def test_the_public_names_of_probes_resolve():
    from landscape import probes

    assert probes.probe_checkpoints is probe_checkpoints
    assert {name: getattr(probes, name).__module__ for name in probes.__all__} == probes._NAMES
    assert set(probes.__all__) == set(probes._NAMES) <= set(dir(probes))
