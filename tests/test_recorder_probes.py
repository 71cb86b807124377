"""What expensive probes measure while a model trains is what the same measurement says afterwards."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from recorded_training import batch, small, steps, task_of
from torch import nn

import landscape as ls
from landscape import load_checkpoint, open_archive, read_checkpoint
from landscape.dynamics.noise import NoiseScale
from landscape.errors import MeasurementError
from landscape.probes import (
    CalibrationProbe,
    CurvatureProbe,
    Embeddings,
    GradientNoise,
    GradientNorms,
    LossTerms,
    Recorder,
    SurfaceProbe,
    Updates,
    at,
    every,
)
from landscape.probes.demo.digits import REFERENCE, digits
from landscape.probes.subjects import Tasks
from landscape.task_files import TaskReference, file_sha256


def batches(n, size=8):
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 4, generator=g), torch.randint(0, 3, (size,), generator=g)) for _ in range(n)]


class TestExpensiveProbes:
    def run(self, tmp_path, **options):
        model, optimizer = small()
        task = task_of(model)
        probes = [
            GradientNorms(),
            Updates(),
            CalibrationProbe(),
            CurvatureProbe(k=2, when=every(steps=5), draws=8),
            SurfaceProbe(5, when=at([0, 10])),
            Embeddings("0", every(steps=5)),
            GradientNoise(source="samples", samples=16, when=every(steps=10)),
        ]
        with Recorder(tmp_path / "run.h5", model, optimizer, task=task, probes=probes, **options) as rec:
            for epoch in range(2):
                steps(model, optimizer, 5, rec, seed=epoch)
                with torch.no_grad():
                    x, y = task.train
                    rec.observe(model(x), y)
                    rec.observe(model(x), y, split="test")
                rec.end_epoch()
        return model, open_archive(tmp_path / "run.h5")

    def test_training_is_bit_for_bit_the_same_with_all_of_them(self, tmp_path):
        recorded, _ = self.run(tmp_path)
        model, optimizer = small()
        for epoch in range(2):
            steps(model, optimizer, 5, seed=epoch)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), recorded.parameters(), strict=True))

    def test_each_equals_the_same_measurement_afterwards(self, tmp_path):
        model, archive = self.run(tmp_path)
        task = task_of(model)
        h = archive.history
        with ls.Hessian(task) as H:
            pairs = ls.eigenpairs(H, 2, tol=1e-5)
        np.testing.assert_array_equal(h["eigenvalue"].steps, [0, 5, 10])
        np.testing.assert_allclose(h["eigenvalue"].values[-1], pairs.values, rtol=1e-3)
        curvature = h["curvature"]
        assert curvature.column("threshold")[0] == pytest.approx(2 * 1.9 / 0.1)
        np.testing.assert_allclose(
            curvature.column("margin"), 1 - curvature.column("lambda_max") / curvature.column("threshold")
        )
        x, y = task.train
        with torch.no_grad():
            logits = model(x)
        expected = ls.calibration_error(logits=logits, labels=y)
        calibration = h["calibration"]
        np.testing.assert_array_equal(calibration.steps, [5, 10])
        assert calibration.column("ece")[-1] == expected.ece
        assert calibration.column("test.nll")[-1] == expected.nll
        assert calibration.column("temperature")[-1] == pytest.approx(ls.fit_temperature(logits, y).value)
        assert [p.step for p in h.probed["surface"]] == [0, 10]
        center = h.probed["surface"][-1].result.center_loss
        assert center == pytest.approx(float(nn.functional.cross_entropy(logits, y)), rel=1e-6)
        assert h.probed["calibration"][-1].result.ece == expected.ece
        assert [int(e) for e in h["epoch"].column("epoch")] == [1, 2]

    def test_eigenvalues_between_audits_say_what_the_last_one_found(self, tmp_path):
        _, archive = self.run(tmp_path)
        audits = {
            p.step: [c for c in p.result.checks if c.name == "multiplicity"]
            for p in archive.history.probed["curvature"]
        }
        assert [(step, c.level) for step, found in audits.items() for c in found] == [(s, "pass") for s in (0, 5, 10)]
        assert "not looked for again" not in audits[0][0].message
        assert "(at step 0; not looked for again since" in audits[10][0].message
        model, optimizer = small()
        never = [CurvatureProbe(when=at([0, 1]), verify=False)]
        with Recorder(tmp_path / "never.h5", model, optimizer, task=task_of(model), probes=never) as rec:
            steps(model, optimizer, 1, rec)
        for p in open_archive(tmp_path / "never.h5").history.probed["curvature"]:
            assert [c.level for c in p.result.checks if c.name == "multiplicity"] == ["warn"]

    def test_the_noise_scale_of_single_samples_is_the_naive_one(self, tmp_path):
        model, optimizer = small()
        task = task_of(model)
        with Recorder(
            tmp_path / "n.h5",
            model,
            optimizer,
            task=task,
            probes=[GradientNoise(source="samples", samples=40, when=at([0]))],
        ) as rec:
            x, y = task.train
            each = []
            for i in range(40):
                loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
                each.append(
                    torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).double()
                )
            steps(model, optimizer, 1, rec)
        G = torch.stack(each)
        n = len(G)
        variance = float(G.var(0, unbiased=True).sum())
        squared = float(G.mean(0).square().sum()) - variance / n
        found = open_archive(tmp_path / "n.h5").history["noise_scale"]
        np.testing.assert_allclose(found.values[0][1:], [squared, variance], rtol=1e-4)

    def test_the_noise_scale_of_a_loss_that_draws_noise_is_that_of_each_samples_own(self, tmp_path):
        """A denoiser: a sample's gradient depends on the noise that is drawn for it, as in training."""
        model, optimizer = small()
        drawn: list[tuple[torch.Tensor, torch.Tensor]] = []

        def denoise(m, batch):
            x = batch[0]
            noise = torch.randn_like(x)
            if len(x) == 1:
                drawn.append((x, noise))
            return (m(x + noise)[:, :3] - noise[:, :3]).square().mean()

        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
        task = ls.Task(model, batch_loss=denoise, train=[(part,) for part in x.split(16)], rng="fixed")
        probes = [GradientNoise(source="samples", samples=40, when=at([0]))]
        with Recorder(tmp_path / "n.h5", model, optimizer, task=task, probes=probes) as rec:
            start = [p.detach().clone() for p in model.parameters()]
            steps(model, optimizer, 1, rec)
        for p, before in zip(model.parameters(), start, strict=True):
            p.data.copy_(before)
        each = []
        for part, noise in drawn[-40:]:
            loss = (model(part + noise)[:, :3] - noise[:, :3]).square().mean()
            each.append(
                torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).double()
            )
        assert sorted(float(part[0, 0]) for part, _ in drawn[-40:]) == sorted(x[:, 0].tolist())
        G = torch.stack(each)
        variance = float(G.var(0, unbiased=True).sum())
        squared = float(G.mean(0).square().sum()) - variance / 40
        found = open_archive(tmp_path / "n.h5").history["noise_scale"]
        np.testing.assert_allclose(found.values[0][1:], [squared, variance], rtol=1e-4)

    def test_single_samples_of_a_loss_that_couples_them_are_refused_with_what_to_do(self, tmp_path):
        model, optimizer = small()
        task = task_of(model).replace(rebatch=False, batch_size=10)
        probes = [GradientNoise(source="samples", when=at([0]))]
        with (
            Recorder(tmp_path / "n.h5", model, optimizer, task=task, probes=probes) as rec,
            pytest.warns(RuntimeWarning, match="'noise' failed.*10 together .rebatch=False.*micro-batches instead"),
        ):
            steps(model, optimizer, 1, rec)

    def test_a_run_that_ended_before_a_probes_first_moment_says_so(self, tmp_path):
        def told(name, count, **resume):
            model, optimizer = small()
            probes = [GradientNorms(), Embeddings("0"), SurfaceProbe(5, when=every(epochs=3)), CalibrationProbe()]
            with Recorder(tmp_path / name, model, optimizer, task=task_of(model), probes=probes, **resume) as rec:
                steps(model, optimizer, count, rec)
                rec.end_epoch()
            return [e.message for e in open_archive(tmp_path / name).history.events if e.kind == "not_measured"]

        assert told("short.h5", 5) == [
            "embeddings: nothing was recorded: its first moment is step 100, and the run ended at step 5; let it look "
            "more often (when=...)",
            "surface: nothing was recorded: its first moment is the end of epoch 3, and there were 1; let it look more "
            "often (when=...)",
        ]
        assert not [m for m in told("long.h5", 100) if "embeddings" in m]
        assert told("none.h5", 0) == []

    def test_curvature_of_a_loss_with_a_detached_part_is_refused_as_a_checkpoints_is(self, tmp_path):
        """A policy's loss with a detached advantage: autograd's Hessian is that of no loss at all."""
        model, optimizer = small()

        def policy(logits, y):
            advantage = (y.double() - logits.double().logsumexp(1)).detach().to(logits.dtype)
            return -(advantage * logits.log_softmax(1).gather(1, y[:, None])[:, 0]).mean()

        task = task_of(model).replace(loss=policy)
        probes = [CurvatureProbe(when=at([0, 2]))]
        with (
            Recorder(tmp_path / "r.h5", model, optimizer, task=task, probes=probes) as rec,
            pytest.warns(RuntimeWarning, match="'curvature' failed.*second derivative is missing"),
        ):
            steps(model, optimizer, 3, rec)
        history = open_archive(tmp_path / "r.h5").history
        assert "eigenvalue" not in history or not len(history["eigenvalue"].steps)
        assert [e.kind for e in history.events if "detached" in e.message] == ["probe_failed"]

    def test_curvature_says_that_the_product_was_compared(self, tmp_path):
        model, optimizer = small()
        probes = [CurvatureProbe(when=at([0, 2]))]
        with Recorder(tmp_path / "r.h5", model, optimizer, task=task_of(model), probes=probes) as rec:
            steps(model, optimizer, 3, rec)
        first, second = (p.result for p in open_archive(tmp_path / "r.h5").history.probed["curvature"])
        assert [c.level for c in first.checks if c.name == "twice differentiable"] == ["pass"]
        assert not [c for c in second.checks if c.name == "twice differentiable"]

    @pytest.mark.parametrize("rate", ["lr", "step_size"])
    def test_curvature_needs_no_settings_of_an_optimizer_that_it_does_not_know(self, tmp_path, rate):
        """Many a Lookahead keeps its state in a form of its own; others call their learning rate otherwise."""

        class Own(torch.optim.Optimizer):
            def __init__(self, parameters):
                super().__init__(parameters, {rate: 0.1})

            def step(self, closure=None):
                with torch.no_grad():
                    for group in self.param_groups:
                        for p in group["params"]:
                            p.sub_(p.grad, alpha=group[rate])

            def state_dict(self):
                kept = super().state_dict()
                return {"fast": kept} if rate == "lr" else kept

        model, _ = small()
        optimizer, task = Own(model.parameters()), task_of(model)
        with Recorder(tmp_path / "r.h5", model, optimizer, task=task, probes=[CurvatureProbe(when=at([3]))]) as rec:
            steps(model, optimizer, 3, rec)
        history = open_archive(tmp_path / "r.h5").history
        found = history["curvature"]
        with ls.Hessian(task) as H:
            largest = ls.eigenpairs(H, 1).values[0]
        np.testing.assert_allclose(found.column("lambda_max"), [largest], rtol=1e-2)
        assert np.isnan(found.column("threshold")).all()
        assert "not defined for Own" in ls.stability_threshold(optimizer).notes[0]
        assert not [e for e in history.events if e.kind == "probe_failed"]

    def test_a_probe_whose_moments_came_and_that_saw_nothing_says_what_to_write(self, tmp_path):
        def told(name, log, layers="0", train=True):
            model, optimizer = small()
            model.add_module("aside", nn.Linear(8, 8))  # never called: the loop below calls the layers one by one
            model.train(train)
            probes = [LossTerms(every(steps=2)), Embeddings(layers, every(steps=3))]
            x, y = batch(6, torch.Generator().manual_seed(0))
            with Recorder(tmp_path / name, model, optimizer, probes=probes) as rec:
                for _ in range(6):
                    out = model[2](model[1](model[0](x)))
                    parts = {"ce": nn.functional.cross_entropy(out, y), "l2": out.square().mean()}
                    log(rec, parts)
                    optimizer.zero_grad()
                    sum(parts.values()).backward()
                    optimizer.step()
            return [e.message for e in open_archive(tmp_path / name).history.events if e.kind == "not_measured"]

        def whole(rec, parts):
            rec.log(loss=sum(parts.values()))

        def numbers(rec, parts):
            rec.log(loss=sum(parts.values()), **{k: v.item() for k, v in parts.items()})

        def terms(rec, parts):
            rec.log(loss=parts)

        no_terms = (
            "terms: nothing was recorded: at none of its steps was a term logged that has a graph; write "
            "rec.log(loss=loss, first=a, second=b) with the terms' tensors, or rec.log(loss={'first': a, 'second': b}) "
            "before loss.backward()"
        )
        assert told("terms.h5", terms) == []
        assert told("whole.h5", whole) == [no_terms]
        assert told("numbers.h5", numbers) == [no_terms]
        one = told("aside.h5", terms, ["0", "aside"])
        assert len(one) == 1
        assert one[0].startswith(
            "embeddings: nothing was recorded of aside: no forward pass in training mode called it"
        )
        assert "call model.train()" in told("eval.h5", terms, train=False)[0]

    def test_micro_batches_that_use_other_parameters_have_a_noise_scale_of_their_own_gradients(self, tmp_path):
        """A parameter whose first gradient comes with the second micro-batch (an expert that wasn't chosen before)."""
        torch.manual_seed(0)
        experts = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        optimizer = torch.optim.SGD(experts.parameters(), lr=0.1)
        b, scale, expected = 6, NoiseScale(), []
        with Recorder(tmp_path / "run.h5", experts, optimizer, probes=[GradientNoise(b)]):
            for order in ((0, 1), (0, 1, 1), (1, 0)):
                optimizer.zero_grad()
                squares, total = [], 0
                for i, (x, y) in zip(order, batches(len(order), b), strict=True):
                    loss = nn.functional.cross_entropy(experts[i](x), y)
                    parameters = list(experts.parameters())
                    own = torch.autograd.grad(
                        loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                    )
                    flat = torch.cat([p.reshape(-1) for p in own]).double()
                    squares.append(float(flat.square().sum()))
                    total = total + flat / len(order)
                    (loss / len(order)).backward()
                optimizer.step()
                scale.add(float(np.mean(squares)), float(total.square().sum()), b, b * len(order))
                expected.append([scale.value, scale.squared_gradient, scale.variance])
        np.testing.assert_allclose(open_archive(tmp_path / "run.h5").history["noise_scale"].values, expected, rtol=1e-4)

    def test_when_in_the_place_of_samples_is_told(self):
        with pytest.raises(MeasurementError, match=r"say GradientNoise\(when=every"):
            GradientNoise(every(steps=10))  # pyright: ignore[reportArgumentType]

    @pytest.mark.parametrize("scaling", [None, 1024.0])
    @pytest.mark.parametrize("clip", [None, 0.1, "a quarter"])
    @pytest.mark.parametrize("accumulation", ["mean", "sum", "sum, divided"])
    @pytest.mark.parametrize("parts", [3, 4])
    def test_the_noise_scale_of_micro_batches_is_the_naive_one(self, tmp_path, parts, accumulation, clip, scaling):
        """Neither how gradients were accumulated, nor clipping or GradScaler, changes the scale and its two parts."""
        if scaling and accumulation == "sum, divided" and parts == 4:
            return  # a scaled sum that is divided by a power of two looks like one of a larger scale
        model, optimizer = small()
        g = torch.Generator().manual_seed(1)
        b, small_squares, big = 6, [], []
        probe = GradientNoise(b, accumulation="mean" if accumulation == "mean" else "sum", when=every(steps=1))
        scaler = torch.amp.GradScaler("cpu", init_scale=scaling or 1.0, enabled=scaling is not None)
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[probe]) as rec:
            for _ in range(3):
                total, squares = torch.zeros(()), []
                for _ in range(parts):
                    x, y = torch.randn(b, 4, generator=g), torch.randint(0, 3, (b,), generator=g)
                    loss = nn.functional.cross_entropy(model(x), y)
                    own = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
                    flat = torch.cat([p.reshape(-1) for p in own]).double()
                    squares.append(float(flat.square().sum()))
                    total = total + flat / parts
                    scaler.scale(loss / parts if accumulation == "mean" else loss).backward()
                small_squares.append(np.mean(squares))
                big.append(float(total.square().sum()))
                scaler.unscale_(optimizer)
                if accumulation == "sum, divided":
                    for p in model.parameters():
                        p.grad /= parts
                if clip is not None:
                    # Clipping to a quarter looks like a scale of 4: it is of no account, either.
                    norm = float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())
                    rec.clip_grad_norm_(norm / 4 if clip == "a quarter" else clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        scale = NoiseScale()
        expected = []
        for s, B in zip(small_squares, big, strict=True):
            scale.add(float(s), B, b, b * parts)
            expected.append([scale.value, scale.squared_gradient, scale.variance])
        np.testing.assert_allclose(open_archive(tmp_path / "run.h5").history["noise_scale"].values, expected, rtol=1e-4)

    def test_steps_of_one_backward_pass_have_no_noise_scale_and_that_is_said_once(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNoise()]) as rec:
            with pytest.warns(RuntimeWarning, match=r'one backward pass each.*source="samples"'):
                steps(model, optimizer, 20, rec)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                steps(model, optimizer, 25, rec)
        events = open_archive(tmp_path / "run.h5").history.events
        assert [(e.step, e.kind) for e in events if e.kind == "not_measured"] == [(20, "not_measured")]

    @pytest.mark.parametrize("known", [True, False])
    def test_checkpoints_along_the_way_name_their_task(self, tmp_path, known):
        task = digits()
        model = task.model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        named = {"task": task} if known else {"task_reference": REFERENCE}
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[], checkpoints=every(epochs=1), **named) as rec:
            x, y = task.train
            for _ in range(2):
                nn.functional.cross_entropy(model(x[:32]), y[:32]).backward()
                optimizer.step()
                optimizer.zero_grad()
                rec.end_epoch()
        found = sorted(p.name for p in tmp_path.glob("step-*.pt"))
        assert found == ["step-00000001.pt", "step-00000002.pt"]
        checkpoint = load_checkpoint(tmp_path / found[-1], digits())
        assert (checkpoint.step, checkpoint.epoch) == (2, 2)
        prepared = Tasks(root=tmp_path).prepare(tmp_path / found[-1])
        assert "recorder" in checkpoint.facts
        assert "recorder" not in prepared.run  # a state that lets a training go on, no setting to be compared
        assert prepared.run["optimizer"] == "sgd"  # as the archive says it: a report shows one setting, not two
        assert prepared.run["lr"] == 0.01
        assert prepared.facts["recorded_in"] == open_archive(tmp_path / "run.h5").attributes["run_id"]

    @pytest.mark.parametrize("happens", ["the directory changes", "the file is worked on", "the file is deleted"])
    def test_checkpoints_name_the_task_as_it_was_at_the_start(self, tmp_path, monkeypatch, happens):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "away").mkdir()
        file = tmp_path / "tiny.py"
        file.write_text(
            "import torch\nfrom landscape import Task, task\n\n@task\ndef tiny(width=4):\n"
            "    return Task(torch.nn.Linear(width, 2), torch.nn.MSELoss())\n"
        )
        known = file_sha256(file)
        task = ls.load_task("tiny.py:tiny", width=3)
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.01)
        with Recorder("run.h5", task.model, optimizer, task=task, probes=[], checkpoints=every(steps=1)) as rec:
            if happens == "the directory changes":
                monkeypatch.chdir("away")
            elif happens == "the file is worked on":
                file.write_text("def tiny(")
            else:
                file.unlink()
            task.model(torch.ones(8, 3)).square().mean().backward()
            optimizer.step()
            rec.end_epoch()
        found = read_checkpoint(tmp_path / "step-00000001.pt").task
        assert found == TaskReference("tiny.py:tiny", {"width": 3}, known)

    @pytest.mark.parametrize(("hidden", "named"), [(None, True), (5, False)])
    def test_checkpoints_of_another_model_do_not_name_the_task_of_the_data(self, tmp_path, hidden, named):
        task = digits()
        model = (
            digits().model
            if hidden is None
            else nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, 10))
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with Recorder(tmp_path / "run.h5", model, optimizer, task=task, probes=[]) as rec:
            nn.functional.cross_entropy(model(task.train[0][:8]), task.train[1][:8]).backward()
            optimizer.step()
            path = rec.save()
        found = read_checkpoint(path).task
        assert (None if found is None else found.reference) == (REFERENCE if named else None)
