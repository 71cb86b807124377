"""What the recorder writes equals a naive computation in float64, in every way that people train."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from landscape import open_archive
from landscape.archive.history import History
from landscape.probes import GradientNorms, LearningRate, LossTerms, Recorder, Updates, at, every

#: Of recorded norms against float64: what issue and CONVENTIONS ask for.
RELATIVE = 1e-6


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def batches(n: int, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 6, generator=g), torch.randint(0, 3, (8,), generator=g)) for _ in range(n)]


def naive(tensors) -> list[float]:
    """Return the joint norm and each tensor's, one number at a time in float64; NaN for None."""
    each = [math.nan if t is None else math.sqrt(float((t.detach().double() ** 2).sum())) for t in tensors]
    return [math.sqrt(sum(v * v for v in each if not math.isnan(v))), *each]


class Watch:
    """Computes, from outside the recorder, what it should say of each step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.gradients: list[list[float]] = []
        self.updates: list[list[float]] = []
        self.weights: list[list[float]] = []
        self.distance: list[float] = []
        self.start = [p.detach().clone() for p in model.parameters()]
        self._before: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(self._pre)
        optimizer.register_step_post_hook(self._post)

    def _pre(self, *_) -> None:
        self.gradients.append(naive(p.grad for p in self.model.parameters()))
        self._before = [p.detach().clone() for p in self.model.parameters()]

    def _post(self, *_) -> None:
        now = [p.detach() for p in self.model.parameters()]
        self.updates.append(naive(a.double() - b.double() for a, b in zip(now, self._before, strict=True)))
        self.weights.append(naive(now))
        self.distance.append(naive(a.double() - b.double() for a, b in zip(now, self.start, strict=True))[0])


def close(found: np.ndarray, expected, relative: float = RELATIVE) -> None:
    np.testing.assert_allclose(found, expected, rtol=relative, atol=1e-12)


def record(path, model, optimizer, loop: Callable[[Recorder], None], **options) -> History:
    with Recorder(path / "run.h5", model, optimizer, **options) as rec:
        loop(rec)
    assert not list(path.glob("*.live"))
    return open_archive(path / "run.h5").history


def plain_step(model, optimizer, x, y) -> torch.Tensor:
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd for-loop": lambda p: torch.optim.SGD(p, lr=0.1, foreach=False),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.01, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


class TestNormsEqualANaiveComputation:
    @pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_of_gradients_updates_and_weights(self, tmp_path, make):
        model = net()
        optimizer = make(model.parameters())
        watch = Watch(model, optimizer)
        h = record(tmp_path, model, optimizer, lambda rec: [plain_step(model, optimizer, *b) for b in batches(12)])
        assert h["gradient_norm"].names == ("global", "0.weight", "0.bias", "2.weight", "2.bias")
        np.testing.assert_array_equal(h["gradient_norm"].steps, np.arange(1, 13))
        close(h["gradient_norm"].values, watch.gradients)
        # An update is a difference of weights that float32 rounds: to 1e-7 of the weights, not of the update.
        np.testing.assert_allclose(h["update_norm"].values, watch.updates, rtol=RELATIVE, atol=1e-7)
        close(h["weight_norm"].values, watch.weights)
        np.testing.assert_allclose(h["update"].column("distance"), watch.distance, rtol=RELATIVE, atol=1e-7)
        ratio = [u[0] / w[0] for u, w in zip(watch.updates, watch.weights, strict=True)]
        np.testing.assert_allclose(h["update"].column("ratio"), ratio, rtol=1e-5)

    def test_under_accumulation_one_row_a_step(self, tmp_path):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = Watch(model, optimizer)

        def loop(rec):
            for i, (x, y) in enumerate(batches(12)):
                loss = nn.functional.cross_entropy(model(x), y) / 4
                rec.log(loss=loss * 4)
                loss.backward()
                if i % 4 == 3:
                    optimizer.step()
                    optimizer.zero_grad()

        h = record(tmp_path, model, optimizer, loop)
        assert len(h["gradient_norm"].steps) == 3
        close(h["gradient_norm"].values, watch.gradients)
        assert len(h["loss"].steps) == 3  # the mean of four micro-batches

    def test_with_a_closure_gradients_are_those_of_its_last_call(self, tmp_path):
        model, (x, y) = net(), batches(1)[0]
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
        seen: list[list[float]] = []

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            seen.append(naive(p.grad for p in model.parameters()))
            return loss

        after = []

        def loop(rec):
            for _ in range(3):
                optimizer.step(closure)
                after.append(seen[-1])

        h = record(tmp_path, model, optimizer, loop)
        close(h["gradient_norm"].values, after)
        assert (h["update_norm"].values[:, 0] > 0).all()
        assert "skipped" not in h or not len(h["skipped"].steps)  # a closure's own zero_grad skips nothing

    def test_of_several_groups_and_a_parameter_without_a_gradient(self, tmp_path):
        model = net()
        model.unused = nn.Parameter(torch.ones(3))
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": [*model[2].parameters(), model.unused]}]
        optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.5, weight_decay=1e-3)
        watch = Watch(model, optimizer)
        h = record(tmp_path, model, optimizer, lambda rec: [plain_step(model, optimizer, *b) for b in batches(4)])
        close(h["gradient_norm"].values, watch.gradients)
        assert np.isnan(h["gradient_norm"].column("unused")).all()
        np.testing.assert_array_equal(h["learning_rate"].values, [[0.1, 0.01]] * 4)
        np.testing.assert_array_equal(h["momentum"].values, [[0.5, 0.5]] * 4)
        np.testing.assert_array_equal(h["weight_decay"].values, [[1e-3, 1e-3]] * 4)

    def test_of_sparse_gradients(self, tmp_path):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(20, 4, sparse=True), nn.Flatten(), nn.Linear(12, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        expected = []

        def loop(rec):
            x, y = torch.tensor([[1, 2, 2], [3, 1, 1]]), torch.tensor([0, 1])
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            expected.append(naive(p.grad.to_dense() for p in model.parameters()))
            optimizer.step()

        h = record(tmp_path, model, optimizer, loop, probes=[GradientNorms()])
        close(h["gradient_norm"].values, expected)

    def test_of_a_layer_that_is_unfrozen_on_the_way(self, tmp_path):
        model = net()
        for p in model[0].parameters():
            p.requires_grad_(False)
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        data = batches(6)

        def loop(rec):
            for i, b in enumerate(data):
                if i == 3:
                    for p in model[0].parameters():
                        p.requires_grad_(True)
                    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.05})
                plain_step(model, optimizer, *b)

        watch = Watch(model, optimizer)
        h = record(tmp_path, model, optimizer, loop)
        norms = h["gradient_norm"]
        assert set(norms.names) == {"global", "0.weight", "0.bias", "2.weight", "2.bias"}
        for i, name in enumerate(("global", "0.weight", "0.bias", "2.weight", "2.bias")):
            close(norms.column(name), [row[i] for row in watch.gradients])
        assert np.isnan(norms.column("0.weight")[:3]).all()
        assert (norms.column("0.weight")[3:] > 0).all()
        assert [e.step for e in h.events if e.kind == "parameters_changed"]
        np.testing.assert_array_equal(h["learning_rate"].values[:, 0], [0.1] * 6)
        assert np.isnan(h["learning_rate"].values[:3, 1]).all()
        np.testing.assert_array_equal(h["learning_rate"].values[3:, 1], [0.05] * 3)

    def test_of_a_layer_that_is_frozen_again_clipped_before_and_behind(self, tmp_path):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = Watch(model, optimizer)
        before = []

        def loop(rec):
            for i, (x, y) in enumerate(batches(6)):
                if i == 3:
                    optimizer.param_groups[0]["params"] = list(model[2].parameters())
                    model[0].requires_grad_(False)
                optimizer.zero_grad()
                model[0].zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                before.append(naive(p.grad for p in model.parameters()))
                rec.clip_grad_norm_(0.05)
                optimizer.step()

        h = record(tmp_path, model, optimizer, loop)
        for i, name in enumerate(("global", "0.weight", "0.bias", "2.weight", "2.bias")):
            close(h["gradient_norm"].column(name), [row[i] for row in watch.gradients])
            close(h["gradient_norm_before"].column(name), [row[i] for row in before])
        assert np.isnan(h["weight_norm"].column("0.bias")).tolist() == [False] * 3 + [True] * 3

    def test_of_a_frozen_layer_inside_the_optimizer_that_is_unfrozen(self, tmp_path):
        model = net()
        model[0].weight.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def loop(rec):
            for i, b in enumerate(batches(4)):
                model[0].weight.requires_grad_(i >= 2)
                plain_step(model, optimizer, *b)

        found = record(tmp_path, model, optimizer, loop)["gradient_norm"].column("0.weight")
        assert np.isnan(found).tolist() == [True, True, False, False]

    def test_of_several_optimizers_each_by_its_name(self, tmp_path):
        model = nn.ModuleDict({"g": nn.Linear(2, 2), "d": nn.Linear(2, 1)})
        g, d = torch.optim.Adam(model["g"].parameters()), torch.optim.SGD(model["d"].parameters(), lr=0.1)
        expected: dict[str, list] = {"g": [], "d": []}

        def loop(rec):
            for step in range(3):
                x = torch.randn(4, 2, generator=torch.Generator().manual_seed(step))
                for _ in range(2):
                    d.zero_grad()
                    model["d"](model["g"](x).detach()).square().mean().backward()
                    expected["d"].append(naive(p.grad for p in model["d"].parameters()))
                    d.step()
                g.zero_grad()
                model["d"](model["g"](x)).square().mean().backward()
                expected["g"].append(naive(p.grad for p in model["g"].parameters()))
                g.step()

        h = record(tmp_path, model, {"g": g, "d": d}, loop)
        for name in "gd":
            close(h[f"gradient_norm.{name}"].values, expected[name])
        assert h["gradient_norm.d"].names == ("global", "d.weight", "d.bias")
        assert len(h["time"].steps) == 3

    def test_of_a_compiled_model(self, tmp_path):
        model = net()
        compiled = torch.compile(model, backend="eager")
        optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
        watch = Watch(model, optimizer)
        h = record(tmp_path, compiled, optimizer, lambda rec: [plain_step(compiled, optimizer, *b) for b in batches(3)])
        assert h["gradient_norm"].names[1:] == ("0.weight", "0.bias", "2.weight", "2.bias")
        close(h["gradient_norm"].values, watch.gradients)

    def test_of_half_precision_weights(self, tmp_path):
        model = net().to(torch.bfloat16)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = Watch(model, optimizer)
        data = [(x.to(torch.bfloat16), y) for x, y in batches(3)]
        h = record(tmp_path, model, optimizer, lambda rec: [plain_step(model, optimizer, *b) for b in data])
        close(h["gradient_norm"].values, watch.gradients)
        close(h["weight_norm"].values, watch.weights)

    def test_up_to_25_million_elements(self, tmp_path):
        model = nn.Linear(5000, 5000, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.weight.grad = torch.randn(5000, 5000, generator=torch.Generator().manual_seed(0))
        expected = naive([model.weight.grad])
        h = record(tmp_path, model, optimizer, lambda rec: optimizer.step(), probes=[GradientNorms()])
        close(h["gradient_norm"].values, [expected])


class TestClipping:
    def run(self, tmp_path, clip) -> tuple[History, list, list, nn.Module]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before, after = [], []

        def loop(rec):
            for x, y in batches(6):
                optimizer.zero_grad()
                (20 * nn.functional.cross_entropy(model(x), y)).backward()
                before.append(naive(p.grad for p in model.parameters()))
                clip(rec, model)
                after.append(naive(p.grad for p in model.parameters()))
                optimizer.step()

        return record(tmp_path, model, optimizer, loop), before, after, model

    def test_by_norm_records_before_coefficient_and_after(self, tmp_path):
        h, before, after, _ = self.run(tmp_path, lambda rec, model: rec.clip_grad_norm_(4.0))
        close(h["gradient_norm_before"].values, before)
        close(h["gradient_norm"].values, after)
        coefficient = [min(1.0, 4.0 / (b[0] + 1e-6)) for b in before]
        close(h["clip"].column("coefficient"), coefficient)
        assert set(h["clip"].column("limit")) == {4.0}
        assert min(coefficient) < 1  # the case is about clipping

    def test_by_norm_clips_bit_for_bit_as_torch_does(self, tmp_path):
        *_, model = self.run(tmp_path, lambda rec, model: rec.clip_grad_norm_(4.0))
        *_, other = self.run(tmp_path / "2", lambda rec, m: nn.utils.clip_grad_norm_(m.parameters(), 4.0))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))

    def test_by_the_loop_itself_with_the_total_handed_over(self, tmp_path):
        def clip(rec, model):
            rec.clipped(nn.utils.clip_grad_norm_(model.parameters(), 4.0), 4.0)

        h, before, after, _ = self.run(tmp_path, clip)
        np.testing.assert_allclose(h["gradient_norm_before"].values, before, rtol=3e-6)
        close(h["gradient_norm"].values, after)

    def test_by_value(self, tmp_path):
        h, before, after, _ = self.run(tmp_path, lambda rec, model: rec.clip_grad_value_(0.5))
        close(h["gradient_norm_before"].values, before)
        close(h["gradient_norm"].values, after)
        assert np.isnan(h["clip"].column("coefficient")).all()

    def test_gradients_that_are_changed_behind_the_clipping_are_measured_anew(self, tmp_path):
        def clip(rec, model):
            rec.clip_grad_norm_(4.0)
            model[0].weight.grad.mul_(3.0)

        h, _, after, _ = self.run(tmp_path, clip)
        close(h["gradient_norm"].values, after)


class TestUnderMixedPrecision:
    @pytest.mark.parametrize("fused", [False, True])
    def test_gradients_are_unscaled_and_skipped_steps_counted(self, tmp_path, fused):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=10_000)
        expected, weights = [], []

        def loop(rec):
            for i, (x, y) in enumerate(batches(6)):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)
                scaler.scale(loss).backward()
                if i == 2:
                    model[0].weight.grad[0, 0] = torch.inf
                scale = scaler.get_scale()
                expected.append(naive(p.grad.double() / scale for p in model.parameters()))
                scaler.step(optimizer)
                scaler.update()
                weights.append([p.detach().clone() for p in model.parameters()])

        h = record(tmp_path, model, optimizer, loop)
        assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))  # it was skipped
        assert h["skipped"].column("steps").sum() == 1
        if fused:  # its hooks run for a skipped step as well
            assert h["gradient_norm"].values[2, 0] == math.inf
            close(np.delete(h["gradient_norm"].values, 2, 0), np.delete(np.array(expected), 2, 0))
            assert h["skipped"].values.tolist() == [[1.0, 1.0]]
        else:
            close(h["gradient_norm"].values, [e for i, e in enumerate(expected) if i != 2])
            assert [e.step for e in h.events if e.kind == "skipped_step"] == [3]

    def test_bfloat16_autocast(self, tmp_path):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters())
        watch = Watch(model, optimizer)

        def loop(rec):
            for x, y in batches(4):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = nn.functional.cross_entropy(model(x), y)
                rec.log(loss=loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        h = record(tmp_path, model, optimizer, loop)
        close(h["gradient_norm"].values, watch.gradients)


class TestWhatIsLogged:
    def losses(self, tmp_path, where) -> tuple[np.ndarray, list[float]]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        said = []

        def loop(rec):
            for x, y in batches(5):
                loss = nn.functional.cross_entropy(model(x), y)
                said.append(loss.item())
                if where == "before":
                    rec.log(loss=loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if where == "behind":
                    rec.log(loss=loss)

        h = record(tmp_path, model, optimizer, loop)
        np.testing.assert_array_equal(h["loss"].steps, range(1, 6))
        return h["loss"].column("loss"), said

    @pytest.mark.parametrize("where", ["before", "behind"])
    def test_a_loss_belongs_to_its_step_wherever_it_is_logged(self, tmp_path, where):
        found, said = self.losses(tmp_path, where)
        np.testing.assert_array_equal(found, said)

    def test_terms_and_other_numbers(self, tmp_path):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        expected = []

        def loop(rec):
            for i, (x, y) in enumerate(batches(4)):
                out = model(x)
                terms = {"ce": nn.functional.cross_entropy(out, y), "l2": 0.01 * out.square().mean()}
                parts = [torch.autograd.grad(t, list(model.parameters()), retain_graph=True) for t in terms.values()]
                flat = [torch.cat([g.reshape(-1) for g in p]).double() for p in parts]
                expected.append([*(float(f.norm()) for f in flat), float(torch.cosine_similarity(*flat, dim=0))])
                rec.log(loss=terms)
                optimizer.zero_grad()
                sum(terms.values()).backward()
                optimizer.step()
                rec.scheduled({"loss.gamma": 2.0 - i, "clip": 1.0})
                if i % 2:
                    rec.log(val_loss=0.5 + i, accuracy=torch.tensor(0.25))

        h = record(tmp_path, model, optimizer, loop, probes=[LossTerms(every(steps=1))])
        assert h["loss"].names == ("loss", "ce", "l2")
        np.testing.assert_allclose(h["loss"].values[:, 0], h["loss"].values[:, 1:].sum(1), rtol=1e-6)
        np.testing.assert_allclose(h["term_gradient_norm"].values, np.array(expected)[:, :2], rtol=1e-5)
        assert h["term_cosine"].names == ("ce|l2",)
        np.testing.assert_allclose(h["term_cosine"].values[:, 0], np.array(expected)[:, 2], rtol=1e-4)
        assert h["logged"].names == ("val_loss", "accuracy")
        np.testing.assert_array_equal(h["logged"].values, [[1.5, 0.25], [3.5, 0.25]])
        np.testing.assert_array_equal(h["logged"].steps, [2, 4])
        assert h["scheduled"].names == ("loss.gamma", "clip")

    def test_a_jump_of_the_learning_rate_is_an_event(self, tmp_path):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        decay = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.1)

        def loop(rec):
            for b in batches(5):
                plain_step(model, optimizer, *b)
                decay.step()

        h = record(tmp_path, model, optimizer, loop, probes=[LearningRate()])
        assert [(e.step, e.message) for e in h.events if e.kind == "switch"] == [(4, "learning rate 0.1 -> 0.01")]

    @pytest.mark.parametrize("rate", [lambda t: 1 - t / 6, lambda t: (t + 1) / 6], ids=["decay", "warm-up"])
    def test_the_end_of_a_linear_decay_and_the_beginning_of_a_warm_up_are_none(self, tmp_path, rate):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        decay = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

        def loop(rec):
            for b in batches(6):
                plain_step(model, optimizer, *b)
                decay.step()

        h = record(tmp_path, model, optimizer, loop, probes=[LearningRate()])
        assert not [e for e in h.events if e.kind == "switch"]


class TestWhen:
    def test_an_update_is_that_of_one_step_also_where_steps_are_left_out(self, tmp_path):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = Watch(model, optimizer)
        probes = [GradientNorms(every(steps=4)), Updates(at([2, 3, 7]))]
        h = record(
            tmp_path,
            model,
            optimizer,
            lambda rec: [plain_step(model, optimizer, *b) for b in batches(8)],
            probes=probes,
        )
        np.testing.assert_array_equal(h["gradient_norm"].steps, [4, 8])
        np.testing.assert_array_equal(h["update_norm"].steps, [2, 3, 7])
        close(h["gradient_norm"].values, [watch.gradients[3], watch.gradients[7]])
        np.testing.assert_allclose(
            h["update_norm"].values, [watch.updates[i] for i in (1, 2, 6)], rtol=RELATIVE, atol=1e-7
        )
        assert np.isnan(h["update"].column("cosine")).tolist() == [True, False, True]

    @pytest.mark.parametrize("budget", [None, 1.0], ids=["together", "each for itself"])
    def test_probes_that_look_at_the_same_steps(self, tmp_path, budget):
        """What they copy is copied in one call, where no budget counts each one's own seconds."""
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        watch = Watch(model, optimizer)
        third = every(steps=3, budget=budget)
        h = record(
            tmp_path,
            model,
            optimizer,
            lambda rec: [plain_step(model, optimizer, *b) for b in batches(9)],
            probes=[GradientNorms(third), Updates(third)],
        )
        taken = h["gradient_norm"].steps
        assert set(taken) == {3, 6, 9} if budget is None else 3 in taken
        close(h["gradient_norm"].values, [watch.gradients[i - 1] for i in taken])
        of = h["update_norm"].steps
        close(h["update_norm"].values, [watch.updates[i - 1] for i in of])
        close(h["weight_norm"].values, [watch.weights[i - 1] for i in of])
        close(h["update"].column("distance"), [watch.distance[i - 1] for i in of])

    def test_norms_of_the_whole_alone(self, tmp_path):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probes = [GradientNorms(layers=False), Updates(layers=False)]
        h = record(
            tmp_path,
            model,
            optimizer,
            lambda rec: [plain_step(model, optimizer, *b) for b in batches(2)],
            probes=probes,
        )
        assert h["gradient_norm"].names == h["update_norm"].names == ("global",)


class TestTrainingIsTheSame:
    @pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
    def test_bit_for_bit(self, tmp_path, make):
        def train(recorded: bool) -> nn.Module:
            model = nn.Sequential(*net(), nn.Dropout(0.3))
            optimizer = make(model.parameters())
            torch.manual_seed(5)

            def loop(rec):
                for x, y in batches(10):
                    loss = nn.functional.cross_entropy(model(x), y)
                    if rec:
                        rec.log(loss=loss)
                    optimizer.zero_grad()
                    loss.backward()
                    (rec.clip_grad_norm_(1.0) if rec else nn.utils.clip_grad_norm_(model.parameters(), 1.0))
                    optimizer.step()

            if recorded:
                record(tmp_path, model, optimizer, loop)
            else:
                loop(None)
            return model

        bare, recorded = train(False), train(True)
        assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), recorded.parameters(), strict=True))

    def test_the_optimizer_is_as_it_was_afterwards(self, tmp_path):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = copy.deepcopy(optimizer.state_dict()), dict(vars(optimizer)).keys()
        record(tmp_path, model, optimizer, lambda rec: None)
        assert (optimizer.state_dict(), vars(optimizer).keys()) == before
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
