"""The recorder in loops as people write them: skipped steps, several optimizers, odd orders, resumes, misuse."""

from __future__ import annotations

import gc
import itertools
import math
import os
import time
import warnings

import numpy as np
import pytest
import torch
from recorded_training import batch, small, steps
from recorded_world import pairs
from torch import nn

from landscape import open_archive
from landscape.archive.watching import Watched
from landscape.errors import MeasurementError
from landscape.probes import (
    Embeddings,
    Found,
    GradientNoise,
    GradientNorms,
    LossTerms,
    Probe,
    Quantity,
    Recorder,
    Updates,
    at,
    every,
    log_spaced,
    noise,
)
from landscape.probes.probe import Followed, Step
from landscape.probes.recorder import default_probes
from landscape.probes.sink import Landing


def history(path):
    return open_archive(path / "run.h5").history


class TestALossBelongsToItsStep:
    """Also under GradScaler, where steps are skipped, wherever the loop logs and zeroes."""

    def loop(self, tmp_path, order: str, bad: tuple[int, ...], n: int = 7):
        model, optimizer = small()
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        g = torch.Generator().manual_seed(0)
        right = []
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms()]) as rec:
            for i in range(n):
                x, y = batch(6, g)
                what = {}

                def forward(x=x, y=y, what=what):
                    what["loss"] = nn.functional.cross_entropy(model(x), y)

                def backward(i=i, what=what):
                    scaler.scale(what["loss"]).backward()
                    if i in bad:
                        model[0].weight.grad[0, 0] = torch.inf

                def step():
                    scaler.step(optimizer)
                    scaler.update()

                actions = {
                    "f": forward,
                    "z": optimizer.zero_grad,
                    "b": backward,
                    "s": step,
                    "l": lambda what=what: rec.log(loss=what["loss"]),
                }
                for action in order:
                    actions[action]()
                if i not in bad:
                    right.append(what["loss"].item())
        return history(tmp_path), right

    @pytest.mark.parametrize("bad", [(), (0,), (2,), (0, 1), (3, 4)])
    @pytest.mark.parametrize("order", ["flzbs", "zflbs", "zfbls", "fblsz", "zfbsl"])
    def test_in_every_order(self, tmp_path, order, bad):
        h, right = self.loop(tmp_path, order, bad)
        np.testing.assert_array_equal(h["loss"].steps, np.arange(1, len(right) + 1))
        np.testing.assert_array_equal(h["loss"].column("loss"), right)
        assert len([e for e in h.events if e.kind == "skipped_step"]) == len(bad)
        np.testing.assert_array_equal(h["gradient_norm"].steps, np.arange(1, len(right) + 1))

    def test_with_a_closure_it_is_the_first_evaluation(self, tmp_path):
        model, _ = small()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
        x, y = batch(20, torch.Generator().manual_seed(0))
        first = []
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            for _ in range(3):

                def closure():
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x), y)
                    rec.log(loss=loss)
                    loss.backward()
                    return loss

                first.append(optimizer.step(closure).item())
        np.testing.assert_array_equal(history(tmp_path)["loss"].column("loss"), first)

    def test_gradients_zeroed_in_place_twice_are_no_skipped_step(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            for _ in range(3):
                optimizer.zero_grad(set_to_none=False)
                steps(model, optimizer, 1, rec)
                optimizer.zero_grad(set_to_none=False)
        h = history(tmp_path)
        assert not [e for e in h.events if e.kind == "skipped_step"]
        assert len(h["loss"].steps) == 3


class TwoSteps(torch.optim.Optimizer):
    """A SAM as people write it: an optimizer inside, whose step is taken with the gradient at the perturbed weights."""

    def __init__(self, parameters, rho=0.05, **settings):
        super().__init__(parameters, {"rho": rho, **settings})
        self.inside = torch.optim.SGD(self.param_groups, **settings)
        self.param_groups = self.inside.param_groups

    @torch.no_grad()
    def first_step(self):
        held = self.param_groups[0]["params"]
        norm = torch.stack([p.grad.norm() for p in held]).norm()
        for p in held:
            self.state[p]["old"] = p.clone()
            p.add_(p.grad, alpha=self.param_groups[0]["rho"] / float(norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["old"])
        self.inside.step()

    def step(self, closure):  # type: ignore[override]
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


class TestSharpnessAwareSteps:
    @pytest.mark.parametrize("how", ["two steps", "closure", "by hand"])
    def test_each_is_one_step_with_the_gradient_that_is_applied(self, tmp_path, how):
        model, _ = small()
        x, y = batch(20, torch.Generator().manual_seed(0))
        optimizer = TwoSteps(model.parameters(), lr=0.1)
        right, moved = [], []

        def closure():
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        def flat():
            return torch.cat([p.detach().flatten().double() for p in model.parameters()])

        watched = optimizer.inside if how == "by hand" else optimizer
        with Recorder(tmp_path / "run.h5", model, watched, probes=[GradientNorms(), Updates()]) as rec:
            for _ in range(4):
                before = flat()
                watched.zero_grad()
                rec.log(loss=closure())
                if how == "two steps":
                    optimizer.first_step()
                    closure()
                    optimizer.second_step()
                elif how == "closure":
                    optimizer.step(closure)
                else:
                    optimizer.first_step()
                    watched.zero_grad()
                    closure()
                    optimizer.second_step()
                right.append(torch.cat([p.grad.flatten().double() for p in model.parameters()]).norm())
                moved.append((flat() - before).norm())
        h = history(tmp_path)
        assert not [e for e in h.events if e.kind == "skipped_step"]
        np.testing.assert_array_equal(h["loss"].steps, [1, 2, 3, 4])
        np.testing.assert_allclose(h["gradient_norm"].column("global"), right, rtol=1e-6)
        np.testing.assert_allclose(h["update_norm"].column("global"), moved, rtol=1e-5)

    def test_a_first_step_that_only_writes_weights_is_no_skipped_step(self, tmp_path):
        model, optimizer = small()
        x, y = batch(20, torch.Generator().manual_seed(0))
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            for _ in range(3):
                for move in (0.01, -0.01):
                    optimizer.zero_grad()
                    loss = nn.functional.cross_entropy(model(x), y)
                    loss.backward()
                    with torch.no_grad():
                        for p in model.parameters():
                            p.add_(move)
                rec.log(loss=loss)
                optimizer.step()
        h = history(tmp_path)
        assert not [e for e in h.events if e.kind == "skipped_step"]
        assert len(h["loss"].steps) == len(h["gradient_norm"].steps) == 3


class TestSeveralOptimizers:
    def parts(self):
        torch.manual_seed(0)
        model = nn.ModuleDict({"g": nn.Linear(3, 3), "d": nn.Linear(3, 1)})
        return model, {n: torch.optim.SGD(model[n].parameters(), lr=0.1) for n in "gd"}

    def take(self, model, optimizers, rec, d_steps: int, g_steps: int = 1):
        for name, count in (("d", d_steps), ("g", g_steps)):
            for _ in range(count):
                optimizers["g"].zero_grad()
                optimizers["d"].zero_grad()
                loss = model["d"](model["g"](torch.randn(4, 3))).square().mean()
                if name == "g":
                    rec.log(loss=loss)
                loss.backward()
                optimizers[name].step()

    def test_one_that_is_zeroed_without_stepping_skips_nothing(self, tmp_path):
        model, optimizers = self.parts()
        with Recorder(tmp_path / "run.h5", model, optimizers) as rec:
            for _ in range(4):
                self.take(model, optimizers, rec, d_steps=3)
        h = history(tmp_path)
        assert not [e for e in h.events if e.kind == "skipped_step"]
        assert len(h["loss"].steps) == 4
        assert (len(h["gradient_norm.d"].steps), len(h["gradient_norm.g"].steps)) == (12, 4)

    @pytest.mark.parametrize("with_state", [True, False])
    def test_a_resume_goes_by_each_ones_own_steps(self, tmp_path, with_state):
        model, optimizers = self.parts()
        with Recorder(tmp_path / "run.h5", model, optimizers) as rec:
            for i in range(4):
                if i == 3:
                    state = rec.state_dict()
                self.take(model, optimizers, rec, d_steps=2)
        with Recorder(tmp_path / "run.h5", model, optimizers, resume=True) as rec:
            if with_state:
                rec.load_state_dict(state)
            assert rec.steps == ({"g": 3, "d": 6} if with_state else {"g": 4, "d": 8})
            self.take(model, optimizers, rec, d_steps=2)
        h = history(tmp_path).current()
        for name, count in (("g", 4), ("d", 8)):
            expected = np.arange(1, count + 1 + (0 if with_state else count // 4))
            np.testing.assert_array_equal(h[f"gradient_norm.{name}"].steps, expected)

    def test_clipping_asks_which(self, tmp_path):
        model, optimizers = self.parts()
        with Recorder(tmp_path / "run.h5", model, optimizers) as rec:
            with pytest.raises(MeasurementError, match="say which"):
                rec.clip_grad_norm_(1.0)
            rec.clip_grad_norm_(1.0, optimizer="d")

    @pytest.mark.parametrize("kinds", [("SGD", "Adam"), ("SGD", "SGD")])
    def test_a_list_of_them_is_called_by_class_or_by_place_wherever_they_are_named(self, tmp_path, kinds):
        model, _ = self.parts()
        made = [getattr(torch.optim, k)(model[n].parameters(), lr=0.1) for n, k in zip("gd", kinds, strict=True)]
        first, second = ("sgd", "adam") if kinds[0] != kinds[1] else ("0", "1")
        names = {"g": first, "d": second}
        with Recorder(tmp_path / "run.h5", model, made) as rec:
            for _ in range(3):
                self.take(model, dict(zip("gd", made, strict=True)), rec, d_steps=2)
            rec.save(tmp_path / "x.pt")
            assert rec.steps == rec.state_dict()["taken"] == {first: 3, second: 6}
            rec.clip_grad_norm_(1.0, optimizer=second)
        archive = open_archive(tmp_path / "run.h5")
        for part, count in (("g", 3), ("d", 6)):
            np.testing.assert_array_equal(archive.history[f"learning_rate.{names[part]}"].steps, range(1, count + 1))
            assert archive.history[f"gradient_norm.{names[part]}"].names[1:] == (f"{part}.weight", f"{part}.bias")
            assert archive.run[f"optimizer.{names[part]}"] == kinds["gd".index(part)].lower()
        assert list(torch.load(tmp_path / "x.pt", weights_only=True)["optimizers"]) == [first, second]
        # A dict of the same names goes on with it.
        with Recorder(tmp_path / "run.h5", model, dict(zip((first, second), made, strict=True)), resume=True) as rec:
            assert rec.steps == {first: 3, second: 6}

    def test_a_list_of_one_is_that_one(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, [optimizer]) as rec:
            steps(model, optimizer, 2, rec)
            assert rec.steps == {"": 2}
        np.testing.assert_array_equal(history(tmp_path)["learning_rate"].steps, [1, 2])

    def test_what_is_no_list_of_optimizers_is_said(self, tmp_path):
        model, optimizer = small()
        for given, got in (
            ([optimizer, "adam"], "list of SGD, str"),
            ({"a": optimizer, "b": None}, "dict of SGD, NoneType"),
            ("adam", "str"),
            ({"lr": 0.1}, "dict of float"),
        ):
            with pytest.raises(TypeError, match=f"a list of them or {{name: optimizer}}, got {got}$"):
                Recorder(tmp_path / "run.h5", model, given)
        for given in ([], {}, None):
            with pytest.raises(MeasurementError, match="no optimizer; pass the one"):
                Recorder(tmp_path / "run.h5", model, given)
        for given in ([optimizer, optimizer], {"a": optimizer, "b": optimizer}):
            with pytest.raises(MeasurementError, match="are one optimizer: give each once"):
                Recorder(tmp_path / "run.h5", model, given)
        assert not (tmp_path / "run.h5").exists()

    def test_a_clipping_is_kept_while_another_ones_parameters_change(self, tmp_path):
        model, optimizers = self.parts()
        model["late"] = nn.Linear(1, 1)
        with Recorder(tmp_path / "run.h5", model, optimizers, probes=[GradientNorms()]) as rec:
            for step in range(3):
                model.zero_grad()
                model["late"](model["d"](model["g"](torch.randn(4, 3)))).square().mean().backward()
                rec.clip_grad_norm_(1e-3, optimizer="g")
                if step == 1:
                    optimizers["d"].add_param_group({"params": model["late"].parameters()})
                optimizers["d"].step()  # where the new parameters are noticed
                optimizers["g"].step()
        h = history(tmp_path)
        assert [e.step for e in h.events if e.kind == "parameters_changed"] == [1]
        np.testing.assert_array_equal(h["clip.g"].steps, [1, 2, 3])
        np.testing.assert_array_equal(h["gradient_norm_before.g"].steps, [1, 2, 3])
        assert (h["gradient_norm_before.g"].column("global") > 1e-3).all()


class TestInterrupted:
    def test_a_step_whose_hooks_were_interrupted_was_taken(self, tmp_path):
        class Interrupted(Probe):
            name = "interrupted"

            def after(self, run, step) -> None:
                if step.number == 3:
                    raise KeyboardInterrupt

        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms(), Interrupted(), Updates()]) as rec:
            norms, losses = [], []
            for i in range(6):
                x, y = batch(6, torch.Generator().manual_seed(i))
                loss = nn.functional.cross_entropy(model(x), y)
                rec.log(loss=loss)
                losses.append(float(loss.detach()))
                optimizer.zero_grad()
                loss.backward()
                norms.append(float(torch.cat([p.grad.double().reshape(-1) for p in model.parameters()]).norm()))
                if i == 2:
                    with pytest.raises(KeyboardInterrupt):
                        optimizer.step()
                else:
                    optimizer.step()
            assert rec.step == 6
        h = history(tmp_path)
        np.testing.assert_array_equal(h["gradient_norm"].steps, [1, 2, 3, 4, 5, 6])
        np.testing.assert_allclose(h["gradient_norm"].column("global"), norms, rtol=1e-6)
        np.testing.assert_array_equal(h["loss"].steps, [1, 2, 3, 4, 5, 6])
        np.testing.assert_allclose(h["loss"].column("loss"), losses, rtol=1e-6)
        assert set(h["update_norm"].steps) == {1, 2, 4, 5, 6}


class TestWrappedOptimizers:
    """Wrappers that torch calls no hooks of, and that move the weights behind the step of the optimizer inside."""

    class Lookahead(torch.optim.Optimizer):
        """As in many a repository: without torch's own __init__."""

        def __init__(self, base, alpha: float = 0.5) -> None:
            self.optimizer, self.alpha = base, alpha
            self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults
            self.slow = [[p.detach().clone() for p in g["params"]] for g in base.param_groups]

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.optimizer.zero_grad(set_to_none)

        def step(self, closure=None):
            self.optimizer.step(closure)
            with torch.no_grad():
                for group, slow in zip(self.param_groups, self.slow, strict=True):
                    for p, q in zip(group["params"], slow, strict=True):
                        p.copy_(q.add_(p - q, alpha=self.alpha))

    class Plain:
        """As schedule-free's wrapper: no torch.optim.Optimizer."""

        def __init__(self, base) -> None:
            self.base = base

        def zero_grad(self) -> None:
            self.base.zero_grad()

        def step(self) -> None:
            self.base.step()
            with torch.no_grad():
                for p in self.base.param_groups[0]["params"]:
                    p.mul_(0.9)

    @pytest.mark.parametrize("kind", [Lookahead, Plain])
    def test_what_they_do_behind_a_step_counts_to_the_next(self, tmp_path, kind):
        model, base = small()
        optimizer = kind(base)
        inner = []
        base.register_step_post_hook(
            lambda *_: inner.append(torch.cat([p.detach().double().reshape(-1) for p in model.parameters()]))
        )
        inner.append(torch.cat([p.detach().double().reshape(-1) for p in model.parameters()]))
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 5, rec)
        h = history(tmp_path)
        expected = [float((b - a).norm()) for a, b in itertools.pairwise(inner)]
        np.testing.assert_allclose(h["update_norm"].column("global"), expected, rtol=1e-6)
        (event,) = [e for e in h.events if e.kind == "wrapped_optimizer"]
        assert event.message.startswith(f"steps are those of SGD inside {kind.__name__}: ")

    def test_one_without_an_optimizer_inside_is_refused_with_the_way_out(self, tmp_path):
        class Bare(torch.optim.Optimizer):
            def __init__(self, parameters) -> None:
                self.param_groups, self.state = [{"params": list(parameters)}], {}

        model, _ = small()
        with pytest.raises(MeasurementError, match=r"Bare never called torch.optim.Optimizer.__init__.*let it call"):
            Recorder(tmp_path / "run.h5", model, Bare(model.parameters()))


class TestResuming:
    def test_what_is_logged_before_the_first_step_supersedes_too(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 10, rec)
        with Recorder(tmp_path / "run.h5", model, optimizer, resume=True) as rec:
            rec.load_state_dict({"step": 5, "epoch": 0})
            rec.log(val_loss=1.0)
            rec.scheduled({"clip": 1.0})
            steps(model, optimizer, 5, rec)
            with pytest.raises(MeasurementError, match="before the first step or log"):
                rec.load_state_dict({"step": 5, "epoch": 0})
        h = history(tmp_path)
        assert h["loss"].superseded.sum() == 5
        np.testing.assert_array_equal(h.current()["loss"].steps, np.arange(1, 11))

    def test_the_seconds_of_all_sessions_count(self, tmp_path, monkeypatch):
        """A resumed run said to have taken the seconds of its last session, for the steps of all."""
        clock = itertools.count(step=0.5)  # each look at the clock is half a second later
        for _ in range(3):
            model, optimizer = small()
            with monkeypatch.context() as patched:
                patched.setattr(time, "perf_counter", lambda: float(next(clock)))
                with Recorder(tmp_path / "run.h5", model, optimizer, resume=True) as rec:
                    steps(model, optimizer, 4, rec)
            archive = open_archive(tmp_path / "run.h5")
            took = [archive.history["time"].column(n) for n in ("elapsed", "recording")]
            assert all((np.diff(of) > 0).all() for of in took)
            assert archive.attributes["seconds"] >= took[0][-1] > took[1][-1] > 0
            assert archive.attributes["seconds"] >= 0.5 * next(clock) * 0.8
            events = [e.seconds for e in archive.history.events]
            assert events == sorted(events)

    @pytest.mark.parametrize("killed", [False, True])
    def test_from_the_start_supersedes_step_0_too(self, tmp_path, killed):
        def recorder(**how) -> Recorder:
            probes = [Kept(), *default_probes()]
            return Recorder(tmp_path / "run.h5", model, optimizer, probes=probes, **how)

        class Kept(Probe):
            name, expensive, when = "kept", True, every(steps=2)

            def start(self, run):
                return [Quantity("kept", ("at",))]

            def measure(self, run, now):
                return Found({"kept": (float(now.step),)}, (pairs(1.0),))

        model, optimizer = small()
        rec = recorder()
        rec.log(val_loss=3.0)
        steps(model, optimizer, 3, rec)
        if killed:
            rec._sink.close()
            rec._opened.release()
            rec._recording.detach()
        else:
            rec.close()
        again = recorder(resume=True)
        again.load_state_dict({"step": 0, "epoch": 0})
        again.log(val_loss=2.0)
        steps(model, optimizer, 2, again)
        for when in ("live", "closed"):
            if when == "closed":
                again.close()
            else:
                again.flush()
            h = history(tmp_path)
            assert h["kept"].steps.tolist() == [0, 2, 0, 2], when
            assert h["kept"].superseded.tolist() == [True, True, False, False], when
            assert h["logged"].superseded.tolist() == [True, False], when
            assert h.current()["logged"].column("val_loss").tolist() == [2.0]
            found = sorted((p.step, p.superseded) for p in h.probed["kept"])
            assert found == [(0, False), (0, True), (2, False), (2, True)], when
            assert [e.kind for e in h.events if not e.superseded][:2] == ["resumed", "start"], when
            watched = Watched(tmp_path / "run.h5")
            watched.refresh()
            curve = watched.curve("logged", "val_loss")
            assert curve is not None
            assert curve.last == 2.0
            assert (watched.standing.step, sum(e.kind == "start" for e in watched.events)) == (2, 1), when

    def test_twice_goes_on_from_what_stands(self, tmp_path):
        model, optimizer = small()
        for state, count in ((None, 10), (2, 2), (None, 3)):
            with Recorder(tmp_path / "run.h5", model, optimizer, resume=True) as rec:
                if state is not None:
                    rec.load_state_dict({"step": state, "epoch": 0})
                steps(model, optimizer, count, rec)
        assert rec.step == 7
        np.testing.assert_array_equal(history(tmp_path).current()["loss"].steps, np.arange(1, 8))

    def test_a_cheap_probes_budget_is_decided_alike(self, tmp_path):
        def probe() -> GradientNorms:
            return GradientNorms(every(steps=1, budget=0.02))

        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[probe()]) as rec:
            steps(model, optimizer, 60, rec)
        first = history(tmp_path)["gradient_norm"].steps
        assert 1 <= len(first) < 60
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[probe()], resume=True) as rec:
            rec.load_state_dict({"step": 20, "epoch": 0})
            steps(model, optimizer, 40, rec)
        np.testing.assert_array_equal(history(tmp_path).current()["gradient_norm"].steps, first)


class TestNoise:
    def record(self, tmp_path, *, scaler=None, bad=(), raising=False):
        model, optimizer = small()
        g = torch.Generator().manual_seed(1)
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNoise(6)]) as rec:
            for i in range(3 + len(bad)):
                if raising and i == 1:
                    broken = model[0].weight.register_hook(lambda grad: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        model(torch.ones(1, 4)).sum().backward()
                    broken.remove()
                    optimizer.zero_grad()
                data = [batch(6, g) for _ in range(4)] if i not in bad else [(torch.ones(6, 4), torch.zeros(6).long())]
                for x, y in data:
                    loss = nn.functional.cross_entropy(model(x), y) / 4
                    (scaler.scale(loss) if scaler else loss).backward()
                if i in bad:
                    model[0].weight.grad[0, 0] = torch.inf
                if scaler:
                    scaler.unscale_(optimizer)
                    rec.clip_grad_norm_(0.05)
                    scaler.step(optimizer)
                    scaler.update()
                else:
                    rec.clip_grad_norm_(0.05)
                    optimizer.step()
                optimizer.zero_grad()
        return history(tmp_path)["noise_scale"].values

    def test_is_the_same_under_a_scaler_and_behind_a_skipped_step(self, tmp_path):
        plain = self.record(tmp_path / "a")
        scaled = self.record(tmp_path / "b", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=99))
        np.testing.assert_allclose(scaled, plain, rtol=1e-4)
        skipped = self.record(
            tmp_path / "c", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=99), bad=(1,)
        )
        np.testing.assert_allclose(skipped, plain, rtol=1e-4)

    @pytest.mark.parametrize("most", [0, 256])
    def test_of_a_device_is_read_by_the_thread_that_writes_and_none_is_missing(self, tmp_path, monkeypatch, most):
        """Numbers on their way to the host are not waited for in a step, unless nobody writes."""
        plain = self.record(tmp_path / "a")
        monkeypatch.setattr(Followed, "on_host", False)
        monkeypatch.setattr(noise, "_MOST_PENDING", most)
        waited = []
        monkeypatch.setattr(Landing, "array", property(lambda own: waited.append(1) or own._host.numpy()))
        counted = []
        look = GradientNoise.on_gradients
        monkeypatch.setattr(
            GradientNoise,
            "on_gradients",
            lambda *a: counted.append([len(waited), look(*a), len(waited)]),
        )
        np.testing.assert_allclose(self.record(tmp_path / "b"), plain, rtol=1e-6)
        assert [after - before for before, _, after in counted] == ([0, 0, 0] if most else [1, 1, 1])
        assert len(waited) == 3

    def test_a_state_holds_steps_whose_numbers_were_on_their_way(self, tmp_path, monkeypatch):
        states = []
        for on_host in (True, False):
            monkeypatch.setattr(Followed, "on_host", on_host)
            probe = GradientNoise(6)
            model, optimizer = small()
            g = torch.Generator().manual_seed(0)
            rec = Recorder(tmp_path / f"{on_host}.h5", model, optimizer, probes=[probe], flush_seconds=1e6)
            for _ in range(3):
                optimizer.zero_grad()
                for x, y in (batch(6, g), batch(6, g)):
                    (nn.functional.cross_entropy(model(x), y) / 2).backward()
                optimizer.step()
            states.append(probe.state_dict())
            rec.close()
        assert states[0]["steps"] == 3
        assert states[1] == pytest.approx(states[0], rel=1e-6)

    def test_goes_on_behind_a_backward_pass_that_failed(self, tmp_path):
        assert len(self.record(tmp_path, raising=True)) == 3

    def test_refuses_closures(self, tmp_path):
        model, _ = small()
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(2, 4)).square().mean()
            loss.backward()
            return loss

        with (
            pytest.warns(RuntimeWarning, match="one backward pass"),
            Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNoise(6)]),
        ):
            optimizer.step(closure)


class TestParametersThatChange:
    def test_a_head_that_is_replaced_is_followed(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 2, rec)
            model[2] = nn.Linear(8, 3)
            optimizer.param_groups[0]["params"] = list(model.parameters())
            steps(model, optimizer, 2, rec)
        h = history(tmp_path)
        assert np.isfinite(h["gradient_norm"].column("2.weight")).all()
        assert [e.step for e in h.events if e.kind == "parameters_changed"] == [2]

    def test_a_parameter_replaced_in_the_optimizers_own_list_shows_when_a_probe_looks(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms(every(steps=3))]) as rec:
            steps(model, optimizer, 4, rec)
            model[2].bias = nn.Parameter(torch.zeros(3))
            optimizer.param_groups[0]["params"][3] = model[2].bias
            steps(model, optimizer, 3, rec)
        h = history(tmp_path)
        assert [e.step for e in h.events if e.kind == "parameters_changed"] == [5]
        assert np.isfinite(h["gradient_norm"].column("2.bias")).all()

    def test_the_distance_goes_on_from_the_start_of_what_was_there(self, tmp_path):
        """A layer is unfrozen into a group of its own, then frozen again: it counts from when it came."""
        model, optimizer = small()
        optimizer.param_groups[0]["params"] = list(model[2].parameters())
        expected = []
        start = {p: p.detach().double().clone() for p in model[2].parameters()}
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[Updates()]) as rec:
            for i in range(6):
                if i == 2:
                    with torch.no_grad():
                        model[0].weight.mul_(1.5)  # before it came: no part of the distance
                    optimizer.add_param_group({"params": list(model[0].parameters())})
                    start |= {p: p.detach().double().clone() for p in model[0].parameters()}
                if i == 4:
                    del optimizer.param_groups[1]
                    start = {p: at for p, at in start.items() if p in set(model[2].parameters())}
                steps(model, optimizer, 1, rec)
                expected.append(math.sqrt(sum(float((p.detach() - at).square().sum()) for p, at in start.items())))
        update = history(tmp_path)["update"]
        np.testing.assert_allclose(update.column("distance"), expected, rtol=1e-6)
        assert np.isnan(update.column("cosine")).tolist() == [True, False, True, False, True, False]

    def test_a_probe_that_is_used_again_starts_again(self, tmp_path):
        model, optimizer = small()
        probe = Updates()
        for name in ("a", "b"):
            with Recorder(tmp_path / f"{name}.h5", model, optimizer, probes=[probe]) as rec:
                steps(model, optimizer, 3, rec)
        update = open_archive(tmp_path / "b.h5").history
        assert update["update"].column("distance")[0] == pytest.approx(update["update_norm"].column("global")[0])

    def test_nothing_of_the_model_left_is_an_event_not_an_error(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 1, rec)
            optimizer.param_groups[0]["params"] = [nn.Parameter(torch.ones(1))]
            optimizer.step()
        assert "none of them" in next(e.message for e in history(tmp_path).events if e.kind == "parameters_changed")


class TestStepsAtWhichNoProbeLooks:
    def test_are_counted_and_asked_nothing(self, tmp_path, monkeypatch):
        made = []
        monkeypatch.setattr("landscape.probes.attachment.Step", lambda *a: made.append(a[1]) or Step(*a))
        model, optimizer = small()
        probes = [GradientNorms(every(steps=10)), Updates(at([3, 20])), GradientNoise(2, when=log_spaced())]
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=probes) as rec:
            steps(model, optimizer, 27, rec)
        assert made == [1, 2, 3, 4, 6, 10, 16, 20, 25]
        h = history(tmp_path)
        assert h["gradient_norm"].steps.tolist() == [10, 20]
        assert h["update"].steps.tolist() == [3, 20]
        assert h["loss"].steps.tolist() == h["time"].steps.tolist() == list(range(1, 28))

    def test_a_resumed_run_looks_where_its_lattice_says(self, tmp_path):
        model, optimizer = small()
        for resume, n in ((False, 13), (True, 9)):
            probes = [GradientNorms(every(steps=5))]
            with Recorder(tmp_path / "run.h5", model, optimizer, probes=probes, resume=resume) as rec:
                steps(model, optimizer, n, rec)
        assert history(tmp_path)["gradient_norm"].steps.tolist() == [5, 10, 15, 20]

    def test_a_probe_that_failed_leaves_the_others_their_steps(self, tmp_path):
        class Broken(Probe):
            name = "broken"

            def after(self, run, step):
                raise RuntimeError("no")

        model, optimizer = small()
        with (
            pytest.warns(RuntimeWarning, match="broken"),
            Recorder(tmp_path / "run.h5", model, optimizer, probes=[Broken(), GradientNorms(every(steps=4))]) as rec,
        ):
            steps(model, optimizer, 9, rec)
        assert history(tmp_path)["gradient_norm"].steps.tolist() == [4, 8]


class TestProbesThatMisbehave:
    def test_a_layer_whose_rank_can_not_be_had_leaves_the_forward_pass_alone(self, tmp_path, monkeypatch):
        def fail(features):
            raise torch.linalg.LinAlgError("did not converge")

        monkeypatch.setattr("landscape.probes.embeddings.effective_rank", fail)
        model, optimizer = small()
        with (
            pytest.warns(RuntimeWarning, match="did not converge"),
            Recorder(tmp_path / "run.h5", model, optimizer, probes=[Embeddings("0", every(steps=1))]) as rec,
        ):
            steps(model, optimizer, 3, rec)

    @pytest.mark.parametrize("found", [{"a": 1}, Found({"never declared": (1.0,)})])
    def test_a_probe_that_returns_something_else_is_switched_off(self, tmp_path, found):
        class Odd(Probe):
            name, expensive, when = "odd", True, every(steps=1)

            def measure(self, run, now):
                return found

        model, optimizer = small()
        with (
            pytest.warns(RuntimeWarning, match="'odd' failed"),
            Recorder(tmp_path / "run.h5", model, optimizer, probes=[Odd()]) as rec,
        ):
            steps(model, optimizer, 2, rec)

    def test_a_tensor_that_a_probe_uses_again_was_recorded_as_it_was(self, tmp_path):
        class Own(Probe):
            name = "own"
            held = torch.zeros(1, dtype=torch.float64)

            def start(self, run):
                return [Quantity("own", ("value",))]

            def after(self, run, step):
                self.held.fill_(step.number)
                run.record("own", step.number, self.held)

        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[Own()]) as rec:
            steps(model, optimizer, 3, rec)
        np.testing.assert_array_equal(history(tmp_path)["own"].column("value"), [1, 2, 3])

    def test_two_evaluations_behind_one_step_are_both_kept(self, tmp_path):
        model, optimizer = small()
        x, y = batch(50, torch.Generator().manual_seed(0))
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 1, rec)
            rec.observe(model(x).detach(), y)
            rec.end_evaluation()
            rec.observe(model(x[:20]).detach(), y[:20], split="test")
            rec.end_epoch()
        assert [p.result.samples for p in history(tmp_path).probed["calibration"]] == [50, 20]

    def test_what_nobody_evaluates_is_said_once(self, tmp_path):
        model, optimizer = small()
        x, y = batch(50, torch.Generator().manual_seed(0))
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms()]) as rec:
            with pytest.warns(RuntimeWarning, match=r"put CalibrationProbe\(\) among the recorder's probes"):
                rec.observe(model(x).detach(), y)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                rec.observe(model(x).detach(), y)
                rec.end_epoch()

    def test_terms_of_micro_batches_are_measured_once_a_step(self, tmp_path):
        model, optimizer = small()
        g = torch.Generator().manual_seed(0)
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[LossTerms(every(steps=1))]) as rec:
            for i in range(6):
                x, y = batch(6, g)
                out = model(x)
                terms = {"ce": nn.functional.cross_entropy(out, y), "l2": out.square().mean()}
                rec.log(loss=terms)
                sum(terms.values()).backward()
                if i % 3 == 2:
                    optimizer.step()
                    optimizer.zero_grad()
        np.testing.assert_array_equal(history(tmp_path)["term_gradient_norm"].steps, [1, 2])


class TestBeginningAndEnd:
    def test_values_that_are_no_numbers_are_said_at_once(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            with pytest.raises(ValueError, match=r"one element, got a tensor of shape \(3,\)"):
                rec.log(loss=torch.ones(3))
            with pytest.raises(TypeError, match="a number or a tensor of one element"):
                rec.log(accuracy="high")

    def test_calls_behind_the_end_do_nothing(self, tmp_path):
        model, optimizer = small()
        rec = Recorder(tmp_path / "run.h5", model, optimizer)
        steps(model, optimizer, 1, rec)
        rec.close()
        written = (tmp_path / "run.h5").read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            steps(model, optimizer, 1, rec)
            rec.clipped(torch.tensor(1.0), 1.0)
            rec.end_epoch()
            rec.close()
        assert (tmp_path / "run.h5").read_bytes() == written
        assert [path.name for path in tmp_path.iterdir()] == ["run.h5"]

    def test_somebody_elses_zero_grad_is_put_back(self, tmp_path):
        model, optimizer = small()
        own = optimizer.zero_grad
        optimizer.zero_grad = theirs = lambda *a, **k: own(*a, **k)
        with Recorder(tmp_path / "run.h5", model, optimizer):
            assert optimizer.zero_grad is not theirs
        assert optimizer.zero_grad is theirs

    def test_one_that_nobody_holds_any_more_frees_its_archive(self, tmp_path):
        model, optimizer = small()
        rec = Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms()])
        steps(model, optimizer, 3, rec)
        del rec, model, optimizer
        gc.collect()
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer, resume=True) as rec:
            assert rec.step == 3

    def test_a_forked_child_that_ends_leaves_the_recorder_alone(self, tmp_path):
        code = (
            "import os, sys, torch\n"
            "from landscape.probes import GradientNorms, Recorder\n"
            "m = torch.nn.Linear(1, 1); o = torch.optim.SGD(m.parameters(), lr=0.1)\n"
            "rec = Recorder(sys.argv[1], m, o, probes=[GradientNorms()])\n"
            "m.weight.grad = torch.ones(1, 1); o.step()\n"
            "pid = os.fork()\n"
            "if pid == 0: sys.exit(0)\n"
            "os.waitpid(pid, 0)\n"
            "o.step(); rec.close()\n"
        )
        import subprocess
        import sys

        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        subprocess.run([sys.executable, "-c", code, str(tmp_path / "run.h5")], check=True, timeout=120, env=environment)
        archive = open_archive(tmp_path / "run.h5")
        assert (archive.status, len(archive.history["gradient_norm"].steps)) == ("complete", 2)

    def test_complex_parameters_have_a_cosine(self, tmp_path):
        model = nn.Module()
        model.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(tmp_path / "run.h5", model, optimizer, probes=[Updates()]):
            for _ in range(3):
                model.weight.grad = torch.full((3,), 1 + 2j, dtype=torch.complex64)
                optimizer.step()
        np.testing.assert_allclose(history(tmp_path)["update"].column("cosine")[1:], 1, rtol=1e-6)


def test_one_process_of_several_does_not_run_a_model_that_synchronizes_its_statistics(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.SyncBatchNorm(8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run.h5", model, optimizer, probes=[]) as rec:
        rec._run.alone("curvature")  # a training in one process may
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        with pytest.raises(MeasurementError, match="curvature of a model with SyncBatchNorm"):
            rec._run.alone("curvature")
        monkeypatch.undo()
