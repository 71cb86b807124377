"""`landscape show` of a recorded training: in words, as JSON, of runs that end, go on or were killed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from recorded_training import small, steps, task_of
from recorded_world import begin, pairs, session

from landscape import open_archive, read_checkpoint, save_archive
from landscape.archive.compaction import compact
from landscape.archive.describe import told
from landscape.archive.segments import hold, live_folder
from landscape.archive.training import training_facts
from landscape.cli.main import main
from landscape.probes import CurvatureProbe, Recorder, every
from landscape.probes.probe import Now
from landscape.report.measures import settings
from landscape.report.runs import gather

EVENTS = [
    {"step": 3, "kind": "switch", "message": "learning rate 0.1 -> 0.01", "seconds": 1.5},
    {"step": 10, "kind": "checkpoint", "message": "step-00000010.pt", "seconds": 5.0},
    {"step": 12, "kind": "checkpoint", "message": "could not be written: full", "seconds": 5.0},
    *[{"step": s, "kind": "skipped_step", "message": "thrown away", "seconds": 6.0} for s in (20, 21)],
]


@pytest.fixture
def run(tmp_path):
    path = begin(tmp_path / "run.h5")
    session(path, range(1, 41), events=EVENTS)
    session(path, range(31, 51), number=1, resumed_at=30)
    return path


class TestFacts:
    def test_they_are_those_of_the_rows_that_stand(self, run):
        facts = training_facts(open_archive(run))
        assert facts is not None
        history = open_archive(run).history.current()
        assert (facts["status"], facts["steps"], facts["epochs"], facts["seconds"]) == ("killed", 50, 5, 25.0)
        assert facts["recording_share"] == pytest.approx(0.01)
        loss = history["loss"].values[:, 0]
        assert facts["loss"] == pytest.approx({"first": loss[:5].mean(), "last": loss[-5:].mean(), "step": 50})
        norm = history["gradient_norm"].column("global")
        assert facts["gradient_norm"] == {
            "last": norm[-1], "finite_until": None, "largest": norm.max(), "step": 1 + int(np.argmax(norm)),
            "unclipped": None, "clipped": 0, "steps": 50,
        }  # fmt: skip
        bend = history["curvature"]
        assert facts["curvature"] == {
            "lambda_max": bend.column("lambda_max")[-1], "threshold": bend.column("threshold")[-1], "margin": None,
            "operator": "Hessian", "learning_rate": history["learning_rate"].values[-1, 0], "step": 50,
        }  # fmt: skip
        assert facts["calibration"] == dict(zip(("ece", "nll"), history["calibration"].values[-1], strict=True))
        assert facts["events"] == {"switch": 1, "checkpoint": 2, "skipped_step": 2}
        assert facts["told"] == [{"step": 3, "kind": "switch", "message": "learning rate 0.1 -> 0.01"}]
        assert facts["checkpoints"] == ["step-00000010.pt"]
        assert facts["quantities"]["loss"] == 50
        assert facts["superseded_rows"] > 10

    def test_status(self, run):
        lock = hold(live_folder(run))
        assert lock is not None
        assert (training_facts(open_archive(run)) or {})["status"] == "running"
        os.close(lock)
        compact(run, "failed", lost_rows=7, seconds=99.0)
        facts = training_facts(open_archive(run))
        assert facts is not None
        assert (facts["status"], facts["lost_rows"], facts["seconds"]) == ("failed", 7, 99.0)

    def test_the_last_gradient_that_is_finite_is_not_called_the_end_of_one_that_broke_down(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer):
            for factor in (1.0, 1.0, np.nan, np.nan):
                optimizer.zero_grad()
                (factor * model(torch.ones(3, 4)).square().sum()).backward()
                optimizer.step()
        facts = training_facts(open_archive(tmp_path / "run.h5"))
        assert facts is not None
        assert facts["gradient_norm"]["finite_until"] == 2
        assert " at step 2, not finite after it, at most " in dict(told(facts))["gradient norm"]

    @pytest.mark.parametrize("own", [True, False], ids=["the recorder clips", "the loop clips"])
    def test_gradients_that_were_clipped_are_told(self, tmp_path, own):
        model, optimizer = small()
        largest = 0.0
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            for i in range(6):
                optimizer.zero_grad()
                (model(torch.ones(3, 4)).square().sum() * 10**i).backward()
                whole = rec.clip_grad_norm_(0.5) if own else torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                largest = max(largest, float(whole))
                optimizer.step()
        facts = training_facts(open_archive(tmp_path / "run.h5"))
        assert facts is not None
        norm, text = facts["gradient_norm"], dict(told(facts))["gradient norm"]
        assert norm["largest"] == pytest.approx(0.5, rel=1e-5)
        if own:
            assert norm["unclipped"] == pytest.approx(largest, rel=1e-6)
            assert text == f"0.5 at the end; clipped at 6 of 6 steps, from {largest:.5g} at most to 0.5"
        else:
            assert norm["clipped"] >= 3
            assert text.startswith(f"0.5 at the end; clipped to 0.5 at {norm['clipped']} of 6 steps, as it seems")

    @pytest.mark.parametrize(("last", "said"), [(0.5, "clipped at 1 of 3 steps"), (1e9, ", never clipped")])
    def test_only_steps_whose_gradient_grew_shorter_count_as_clipped(self, tmp_path, last, said):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            for bound in (1e9, 1e9, last):
                optimizer.zero_grad()
                (10 * model(torch.ones(3, 4)).square().sum()).backward()
                assert rec.clip_grad_norm_(bound) > 0.5
                optimizer.step()
        facts = training_facts(open_archive(tmp_path / "run.h5"))
        assert facts is not None
        assert (facts["gradient_norm"]["clipped"], facts["gradient_norm"]["steps"]) == (int(last == 0.5), 3)
        assert said in dict(told(facts))["gradient norm"]

    def test_the_learning_rate_is_the_chosen_one_not_that_of_a_warm_up(self, tmp_path):
        model, optimizer = small()
        rate = optimizer.param_groups[0]["lr"]
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10)
        with Recorder(tmp_path / "run.h5", model, optimizer):
            pass
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate / 10)
        assert open_archive(tmp_path / "run.h5").run["lr"] == rate

    def test_every_optimizer_is_named_with_its_rates(self, tmp_path):
        model = torch.nn.ModuleDict({"g": torch.nn.Linear(3, 3), "d": torch.nn.Linear(3, 1)})
        g = torch.optim.Adam(model["g"].parameters(), lr=2e-4)
        groups = [{"params": [model["d"].weight]}, {"params": [model["d"].bias], "lr": 0.05, "weight_decay": 0.0}]
        d = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)
        path = tmp_path / "run.h5"
        with Recorder(path, model, {"gen": g, "dis": d}, checkpoints=every(steps=1)) as rec:
            model["d"](model["g"](torch.randn(4, 3))).square().mean().backward()
            d.step()
            g.step()
        expected = {
            "optimizer.gen": "adam",
            "lr.gen": 2e-4,
            "weight_decay.gen": 0.0,
            "optimizer.dis": "sgd",
            "lr.dis": "0.1, 0.05",
            "momentum.dis": 0.9,
            "weight_decay.dis": "0.01, 0",
        }
        assert open_archive(path).run == expected
        assert expected.items() <= read_checkpoint(rec.save()).facts.items()
        shown = " ".join(CliRunner().invoke(main, ["show", str(path)]).stdout.split())
        assert "optimizer.gen adam lr.gen 0.0002" in shown
        assert "optimizer.dis sgd lr.dis 0.1, 0.05" in shown
        _, same = settings(gather([path]))
        assert {n: same[n] for n in ("lr.gen", "lr.dis")} == {"lr.gen": "0.0002", "lr.dis": "0.1, 0.05"}
        head = CliRunner().invoke(main, ["watch", "--once", str(path)]).stdout
        assert "optimizer.gen adam, optimizer.dis sgd, lr.gen 2e-4, lr.dis 0.1, " in head

    def test_the_rates_of_many_groups_are_told_by_their_ends(self, tmp_path):
        model = torch.nn.Sequential(*[torch.nn.Linear(2, 2) for _ in range(9)])
        layerwise = [{"params": layer.parameters(), "lr": 0.1 * 2**-i} for i, layer in enumerate(model)]
        with Recorder(tmp_path / "run.h5", model, torch.optim.SGD(layerwise, lr=0.1)):
            pass
        assert open_archive(tmp_path / "run.h5").run["lr"] == "0.000390625 to 0.1, 9 values"

    def test_what_a_budget_left_out_is_counted_and_told(self, tmp_path):
        model, optimizer = small()
        probe = CurvatureProbe(when=every(steps=1, budget=1e-9))
        path = tmp_path / "run.h5"
        with Recorder(path, model, optimizer, task=task_of(model), probes=[probe]) as rec:
            steps(model, optimizer, 6, rec)
        facts = training_facts(open_archive(path))
        assert facts is not None
        seconds = open_archive(path).history["probe_seconds"].column("curvature")
        assert (seconds == 0).sum() > 0
        assert facts["left_out"] == {"curvature": {"moments": len(seconds), "left_out": int((seconds == 0).sum())}}
        text = " ".join(CliRunner().invoke(main, ["show", str(path)]).stdout.split())
        assert f"left out curvature {(seconds == 0).sum()} of {len(seconds)} times, to keep within its budget" in text

    @pytest.mark.parametrize("budget", [1e-9, 1.0, None])
    def test_a_run_too_short_for_its_first_point_says_so(self, tmp_path, budget):
        model, optimizer = small()
        path, probe = tmp_path / "run.h5", CurvatureProbe(when=every(steps=100, budget=budget))
        with Recorder(path, model, optimizer, task=task_of(model), probes=[probe]) as rec:
            steps(model, optimizer, 3, rec)
        history = open_archive(path).history
        told = [e.message for e in history.events if e.kind == "over_budget"]
        assert len(told) == (budget == 1e-9)
        assert history["probe_seconds"].steps.tolist() == [0]
        if told:
            spent = history["probe_seconds"].column("curvature")[0]
            assert told[0].startswith(f"curvature took {spent:.3g} s, ")
            assert "its first point is measured whatever it costs" in told[0]
            assert (training_facts(open_archive(path)) or {})["told"][-1]["message"] == told[0]
            assert "over budget" in CliRunner().invoke(main, ["show", str(path)]).stdout

    @pytest.mark.parametrize(("budget", "audited"), [(None, [True, False, False]), (1.0, [False, True, False])])
    def test_a_budget_leaves_the_audit_to_the_second_point(self, tmp_path, budget, audited):
        model, optimizer = small()
        path, probe = tmp_path / "run.h5", CurvatureProbe(when=every(steps=1, budget=budget))
        with Recorder(path, model, optimizer, task=task_of(model), probes=[probe]) as rec:
            measured = []
            for step in range(3):
                found = probe.measure(rec._run, Now(step, 0))
                measured += [r.settings["verify"] for r in found.results]
        assert measured == audited

    @pytest.mark.parametrize("operator", ["Hessian", "preconditioned"])
    def test_says_whose_eigenvalue_decides_stability(self, tmp_path, operator):
        model, optimizer = small()
        if operator == "preconditioned":
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        path, probe = tmp_path / "run.h5", CurvatureProbe(when=every(steps=2))
        with Recorder(path, model, optimizer, task=task_of(model), probes=[probe]) as rec:
            steps(model, optimizer, 4, rec)
        facts = training_facts(open_archive(path))
        assert facts is not None
        assert facts["curvature"]["operator"] == operator
        assert facts["curvature"]["margin"] == 1 - facts["curvature"]["lambda_max"] / facts["curvature"]["threshold"]
        text = " ".join(CliRunner().invoke(main, ["show", str(path)]).stdout.split())
        assert ("of the preconditioned Hessian at step 4" in text) == (operator == "preconditioned")

    def test_each_of_several_optimizers_and_what_the_loop_logged(self, tmp_path):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"g": torch.nn.Linear(3, 3), "d": torch.nn.Linear(3, 1)})
        optimizers = {n: torch.optim.SGD(model[n].parameters(), lr=0.1) for n in "gd"}
        norms, losses = {"g": [], "d": []}, []
        with Recorder(tmp_path / "run.h5", model, optimizers) as rec:
            for _ in range(12):
                for name, optimizer in optimizers.items():
                    model.zero_grad()
                    loss = model["d"](model["g"](torch.randn(4, 3))).square().mean()
                    loss.backward()
                    norms[name].append(torch.cat([p.grad.flatten() for p in model[name].parameters()]).norm().item())
                    optimizer.step()
                losses.append(loss.item())
                rec.log(adversarial=loss)
        facts = training_facts(open_archive(tmp_path / "run.h5"))
        assert facts is not None
        assert facts["gradient_norm"] is None
        for name, norm in norms.items():
            found = facts["gradient_norms"][name]
            assert (found["last"], found["largest"]) == pytest.approx((norm[-1], max(norm)), rel=1e-6)
            assert found["step"] == 1 + int(np.argmax(norm))
        assert facts["logged"] == {
            "adversarial": pytest.approx({"first": losses[0], "last": losses[-1], "step": 12}, rel=1e-6)
        }
        words = dict(told(facts))
        assert set(words) == {"length", "logged", "gradient norm g", "gradient norm d"}
        assert "adversarial" in words["logged"]
        frame = CliRunner().invoke(main, ["watch", "--once", str(tmp_path / "run.h5")]).stdout
        for title in ("gradient norm g", "gradient norm d", "update / weights g"):
            assert title in frame, frame

    def test_none_without_a_training(self, tmp_path):
        save_archive(tmp_path / "probed.h5", [pairs(1.0)])
        assert training_facts(open_archive(tmp_path / "probed.h5")) is None


def test_of_a_short_training_the_seconds_of_recording_are_told_of_a_longer_one_their_share(run):
    facts = training_facts(open_archive(run))
    assert facts is not None
    assert "25 s, 1.0% of it spent recording" in dict(told(facts))["length"]
    assert "9 s, 0.25 s of it spent recording" in dict(told({**facts, "seconds": 9.0}))["length"]


class TestCommand:
    @pytest.mark.parametrize("options", [[], ["--full"]])
    def test_words(self, run, options):
        done = CliRunner().invoke(main, ["show", *options, str(run)])
        assert done.exit_code == 0, done.output
        text = " ".join(done.stdout.split())
        assert "50 steps, 5 epochs, 25 s, 1.0% of it spent recording" in text
        assert "unstable above" in text
        assert "1, the last one step-00000010.pt" in text
        assert "landscape repair puts its rows into the archive" in text
        assert max(map(len, done.stdout.splitlines())) <= 100 or len(str(run)) > 60

    def test_json(self, run, tmp_path):
        done = CliRunner().invoke(main, ["show", "--json", str(run)])
        shown = json.loads(done.stdout)
        facts = training_facts(open_archive(run))
        assert shown["training"] == json.loads(json.dumps(facts))
        save_archive(tmp_path / "probed.h5", [pairs(1.0)])
        done = CliRunner().invoke(main, ["show", "--json", str(tmp_path / "probed.h5")])
        assert json.loads(done.stdout)["training"] is None
