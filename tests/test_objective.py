"""The objective: exact means over one fixed draw, nothing guessed, everything restored."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)
from untouched import State, data, messy, net

from landscape import Hessian, Objective, Task, placement
from landscape.errors import LandscapeError, MeasurementError, ObjectiveError, TaskError
from landscape.evaluation import evaluate_checkpoint


def test_an_objective_says_what_it_is():
    task = Task(nn.Linear(2, 1).double(), nn.MSELoss(), (torch.ones(9, 2), torch.ones(9, 1)), name="mine")
    assert repr(Objective(task, max_samples=4)) == "Objective(mine, 4 train samples, float64 on cpu)"


class TestRestoration:
    @pytest.mark.parametrize("batchnorm", ["eval", "batch", "recompute"])
    @pytest.mark.parametrize("dtype", [None, torch.float64])
    def test_after_a_measurement(self, batchnorm, dtype):
        model = messy()
        task = Task(
            model,
            nn.CrossEntropyLoss(),
            data(),
            batchnorm=batchnorm,
            mode="train",
            rng="fixed",
            dtype=dtype,
            batch_size=9,
        )
        before = State(model)
        with Objective(task) as objective:
            objective.evaluate(accuracy=True, stderr=True)
            objective.move([[torch.ones_like(p) for p in objective.parameters]], [0.3])
            objective.evaluate()
            objective.gradient()
        before.unchanged()

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_exception_in_the_middle(self, error):
        model = messy()
        calls = []

        def loss(outputs, target):
            calls.append(1)
            if len(calls) > 40:
                raise error("stop")
            return F.cross_entropy(outputs, target)

        task = Task(model, loss, data(), batch_size=6)
        before = State(model)
        with pytest.raises((TaskError, KeyboardInterrupt)), Objective(task) as objective:  # noqa: PT012
            for step in range(100):
                objective.move([[torch.ones_like(p) for p in objective.parameters]], [step / 100])
                objective.evaluate()
        assert len(calls) > 40
        before.unchanged()

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_exception_while_entering(self, error):
        def loss(outputs, target):
            raise error("stop")

        model = messy()
        before = State(model)
        with pytest.raises((TaskError, KeyboardInterrupt)):
            Objective(Task(model, loss, data())).__enter__()
        before.unchanged()

    def test_under_the_callers_no_grad_inference_and_autocast(self):
        model = messy()
        expected = None
        for context in (torch.enable_grad, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")):
            with context():
                before = State(model)
                with Objective(Task(model, nn.CrossEntropyLoss(), data(dtype=torch.float32))) as objective:
                    gradient = objective.gradient()
                before.unchanged()
            expected = expected or gradient
            assert all(torch.equal(a, b) for a, b in zip(gradient, expected, strict=True))

    def test_flags_set_by_the_older_functions_survive(self):
        model = messy()
        torch.set_float32_matmul_precision("high")
        try:
            before = State(model)
            with Objective(Task(model, nn.CrossEntropyLoss(), data())) as objective:
                assert torch.backends.cuda.matmul.fp32_precision == "ieee"
                objective.evaluate()
            before.unchanged()
            assert torch.get_float32_matmul_precision() == "high"
        finally:
            torch.set_float32_matmul_precision("highest")

    def test_hessian_products(self):
        model = messy()
        before = State(model)
        with Hessian(Task(model, nn.CrossEntropyLoss(), data(), dtype=torch.float64)) as h:
            h @ torch.ones(h.shape[0]).double()
        before.unchanged()

    def test_older_weight_norm_leaves_nothing_behind(self):
        with pytest.warns(FutureWarning):
            layer = nn.utils.weight_norm(nn.Linear(5, 3))
        model = nn.Sequential(layer)
        held = layer.weight
        with Objective(Task(model, nn.CrossEntropyLoss(), data(), dtype=torch.float64)) as objective:
            objective.gradient()
        assert layer.weight is held

    def test_objectives_left_in_the_wrong_order(self):
        model = messy()
        before = State(model)
        first, second = (Objective(Task(model, nn.CrossEntropyLoss(), data(), dtype=d)) for d in (None, torch.float64))
        first.__enter__()
        second.__enter__()
        with pytest.raises(RuntimeError, match="entered last first"):
            first.__exit__()
        before.unchanged()
        assert not second.entered
        second.__exit__()
        before.unchanged()

    def test_state_of_the_loaders_generator(self):
        generator = torch.Generator().manual_seed(7)
        state = generator.get_state()
        loader = DataLoader(TensorDataset(*data()), batch_size=5, shuffle=True, generator=generator)
        with Objective(Task(net(), nn.CrossEntropyLoss(), loader)) as objective:
            objective.evaluate()
        assert torch.equal(generator.get_state(), state)


class TestTheMean:
    def test_loss_accuracy_and_gradient_equal_the_whole_sets(self):
        model, (x, y) = net(), data()
        with Objective(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=7)) as objective:
            found = objective.evaluate(accuracy=True, stderr=True)
            gradient = objective.gradient()
        model.eval()
        loss = F.cross_entropy(model(x), y)
        expected = torch.autograd.grad(loss, list(model.parameters()))
        assert found.loss == pytest.approx(loss.item(), rel=1e-13)
        assert found.accuracy == (model(x).argmax(1) == y).double().mean().item()
        for a, b in zip(gradient, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)

    def test_standard_error_is_that_of_the_sample_losses(self):
        """With at least as many blocks as samples each block is one sample: the textbook formula."""
        model, (x, y) = net(), data(60)
        with Objective(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=7)) as objective:
            found = objective.evaluate(stderr=True)
        losses = F.cross_entropy(model.eval()(x), y, reduction="none").detach()
        assert found.stderr == pytest.approx((losses.std() / 60**0.5).item(), rel=1e-10)

    def test_an_error_from_few_whole_batches_is_called_a_rough_one(self):
        x = torch.randn(36, 5, dtype=torch.float64)

        def noisy(model, batch):
            return (model(batch[0]) - torch.randn_like(batch[0][:, :1])).square().mean()

        task = Task(net(), batch_loss=noisy, train=[(x[:18],), (x[18:],)], rng="fixed")
        told = [n for n in evaluate_checkpoint(task).notes if "standard error" in n]
        assert told == [
            "the standard error of the train loss rests on 2 batches, which can't be cut into samples: it is known to "
            "about 71% only; more samples (max_samples) or smaller batches tell more"
        ]
        whole = Task(net(), nn.CrossEntropyLoss(), data(), batch_size=18)
        assert not [n for n in evaluate_checkpoint(whole).notes if "standard error" in n]

    @pytest.mark.parametrize("own", [False, True])
    def test_accuracys_error_is_over_images_not_over_pixels(self, own):
        """Each image is right or wrong as a whole: n images carry n facts, however many pixels they have."""
        g = torch.Generator().manual_seed(3)
        y = torch.randint(2, (40,), generator=g)[:, None, None].expand(40, 6, 6).contiguous()
        kept = torch.rand(40, 6, 6, generator=g) < torch.rand(40, 1, 1, generator=g)
        kept[:, 0, 0] = True
        guess = torch.randint(2, (40, 1, 1), generator=g)
        x = F.one_hot(guess.expand(40, 6, 6), 2).movedim(-1, 1).double()
        y[~kept] = -100
        task = Task(
            nn.Conv2d(2, 2, 1).double(),
            nn.CrossEntropyLoss(),
            (x, y),
            batch_size=7,
            predict=(lambda model, batch: (batch[0], batch[1])) if own else None,
        )
        with torch.no_grad():
            task.model.weight.copy_(torch.eye(2)[:, :, None, None])
            task.model.bias.zero_()
        with Objective(task) as objective:
            found = objective.evaluate(accuracy=True)
        counts = kept.flatten(1).sum(1).double()
        hit = (guess[:, 0, 0] == y.flatten(1).amax(1)) * counts
        share = hit.sum() / counts.sum()
        error = (40 / 39 * (hit - share * counts).square().sum()).sqrt() / counts.sum()
        assert found.accuracy == pytest.approx(share.item(), rel=1e-12)
        assert found.accuracy_stderr == pytest.approx(error.item(), rel=1e-10)

    def test_accuracys_error_where_nobody_knows_whose_the_predictions_are(self):
        """Rows that a `predict` flattened itself: the batches are what is independent; one batch has no error."""
        x, y = torch.randn(20, 5, 3).double(), torch.randint(3, (20, 5))

        def predict(model, batch):
            return model(batch[0]).reshape(-1, 3), batch[1].reshape(-1)

        task = Task(
            nn.Linear(3, 3).double(), lambda o, t: F.cross_entropy(o.movedim(-1, 1), t), (x, y), predict=predict
        )
        with Objective(task) as objective:
            assert math.isnan(objective.evaluate(accuracy=True).accuracy_stderr)
        with Objective(task.replace(batch_size=5)) as objective:
            found = objective.evaluate(accuracy=True)
            shares = (predict(task.model, (x, y))[0].argmax(1) == y.reshape(-1)).double().reshape(4, -1).mean(1)
        assert found.accuracy_stderr == pytest.approx((shares.std() / 2).item(), rel=1e-10)

    def test_standard_error_covers(self):
        """Over 200 draws of 100 samples the error bar of one sigma holds the true mean about 68 times in 100."""
        model, (x, y) = net(), data(4000)
        truth = F.cross_entropy(model.eval()(x), y).item()
        held = 0
        for seed in range(200):
            task = Task(model, nn.CrossEntropyLoss(), (x, y), max_samples=100, seed=seed)
            with Objective(task) as objective:
                found = objective.evaluate(stderr=True)
            held += abs(found.loss - truth) <= found.stderr
        # Binomial with p = .68 and n = 200: standard deviation 6.6; four of them either way.
        assert abs(held - 137) <= 27

    def test_terms_are_recorded(self):
        task = Task(net(), lambda o, t: {"ce": F.cross_entropy(o, t), "l1": o.abs().mean()}, data(), batch_size=9)
        with Objective(task) as objective:
            found = objective.evaluate()
        assert found.loss == pytest.approx(found.terms["ce"] + found.terms["l1"], rel=1e-13)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_moving_nowhere_is_exactly_the_centre(self, dtype):
        with Objective(Task(net(), nn.CrossEntropyLoss(), data(), dtype=dtype)) as objective:
            direction = [torch.full_like(p, torch.inf) for p in objective.parameters]
            at_center = objective.evaluate().loss
            objective.move([direction], [0.0])
            assert objective.evaluate().loss == at_center
            objective.move([[torch.ones_like(p) for p in objective.parameters]], [0.1])
            assert objective.evaluate().loss != at_center
            objective.reset()
            assert objective.evaluate().loss == at_center


class TestRefusals:
    def test_a_random_layer_is_named(self):
        with pytest.raises(ObjectiveError, match=r"first differ in 3 \(Dropout\).*rng=.fixed"):
            Objective(Task(net(), nn.CrossEntropyLoss(), data(), mode="train")).__enter__()

    def test_a_random_loss_is_named(self):
        with pytest.raises(ObjectiveError, match="first differ in the loss function itself"):
            Objective(Task(net(), lambda o, t: o.mean() * torch.rand(()), data())).__enter__()

    @pytest.mark.parametrize("rng", ["refuse", "fixed"])
    @pytest.mark.parametrize("kind", ["torch", "numpy", "random"])
    def test_a_loss_with_a_generator_of_its_own_is_told_to_seed_it(self, rng, kind):
        generators = {
            "torch": torch.Generator().manual_seed(0),
            "numpy": np.random.default_rng(0),
            "random": random.Random(0),
        }

        def drawn() -> float:
            own = generators[kind]
            return float(torch.rand((), generator=own)) if isinstance(own, torch.Generator) else own.random()

        with pytest.raises(ObjectiveError, match=r"the loss function itself.*its own generator") as caught:
            Objective(Task(net(), lambda o, t: o.square().mean() * drawn(), data(), rng=rng)).__enter__()
        assert "generator.manual_seed(0)" in str(caught.value)
        assert 'or set Task(rng="fixed")' not in str(caught.value)

    def test_a_generator_that_is_seeded_at_each_call_is_measured(self):
        own = torch.Generator()

        def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            own.manual_seed(0)
            return outputs.square().mean() * torch.rand((), generator=own)

        with Objective(Task(net(), loss, data())) as objective:
            assert objective.evaluate().loss == objective.evaluate().loss

    def test_with_a_fixed_generator_it_is_measured(self):
        task = Task(net(), nn.CrossEntropyLoss(), data(), mode="train", rng="fixed", batch_size=9)
        with Objective(task) as objective:
            assert objective.evaluate().loss == objective.evaluate().loss

    def test_nan_at_the_centre_names_the_batch(self):
        x, y = data()
        x[15] = torch.nan
        with pytest.raises(ObjectiveError, match="loss at the checkpoint is nan on train batch 1"):
            Objective(Task(net(), nn.CrossEntropyLoss(), (x, y), batch_size=10)).__enter__()

    def test_weights_that_turn_nan_later_are_refused_as_well(self):
        model = net()
        task = Task(model, nn.CrossEntropyLoss(), data())
        with Objective(task):
            pass
        with torch.no_grad():
            model[0].weight[0, 0] = torch.nan
        with pytest.raises(ObjectiveError, match="loss at the checkpoint is nan"):
            Objective(task).__enter__()

    def test_a_failing_forward_names_shapes(self):
        with pytest.raises(TaskError, match=r"failed on a train batch: RuntimeError: .*\(23, 4\) float64"):
            Objective(Task(net(), nn.CrossEntropyLoss(), (torch.randn(23, 4).double(), data()[1]))).__enter__()

    def test_a_batch_of_three_parts_asks_for_forward(self):
        x, y = data()
        with pytest.raises(TaskError, match="forward=lambda"):
            Objective(Task(net(), nn.CrossEntropyLoss(), (x, y, y))).__enter__()

    def test_a_dict_batch_with_more_than_the_model_takes_is_told_the_line(self):
        class Named(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net()

            def forward(self, features):
                return self.net(features)

        x, y = data()
        batches = [{"features": x, "label": y}]
        line = r"Named.forward takes no label .* forward=lambda model, batch: \(model\(features=batch\['features'\]\), "
        with pytest.raises(TaskError, match=line + r"batch\['label'\]\)"):
            Objective(Task(Named(), nn.CrossEntropyLoss(), batches)).__enter__()
        forward = lambda model, batch: (model(features=batch["features"]), batch["label"])  # noqa: E731
        with Objective(Task(Named(), nn.CrossEntropyLoss(), batches, forward=forward)) as objective:
            assert objective.samples == len(y)

    def test_no_trainable_parameter(self):
        with pytest.raises(ObjectiveError, match="requires a gradient"):
            Objective(Task(net().requires_grad_(False), nn.CrossEntropyLoss(), data())).__enter__()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a device that isn't there")
    def test_cuda_without_cuda(self):
        with pytest.raises(TaskError, match="no CUDA device"):
            Objective(Task(net(), nn.CrossEntropyLoss(), data(), device="cuda"))

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"mode": "test"}, "mode='test'"),
            ({"batchnorm": "no"}, "batchnorm='no'"),
            ({"rng": 3}, "rng=3"),
            ({"max_samples": 0}, "max_samples=0"),
            ({"dtype": torch.float16}, "float16"),
            ({"batch_loss": print}, "not both"),
        ],
    )
    def test_arguments(self, arguments, said):
        with pytest.raises(LandscapeError, match=said):
            Task(net(), nn.CrossEntropyLoss(), data(), **arguments)

    def test_types(self):
        with pytest.raises(TypeError, match="make an instance"):
            Task(net(), nn.CrossEntropyLoss, data())
        with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
            Task(print, nn.CrossEntropyLoss(), data())  # pyright: ignore


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_low_precision_weights_are_measured_in_float32_and_said(self, dtype):
        model = net(torch.float32).to(dtype)
        with Objective(Task(model, nn.CrossEntropyLoss(), data())) as objective:
            assert objective.dtype == torch.float32
            assert any("are measured in float32" in n for n in objective.notes)
            objective.gradient()
        assert model[0].weight.dtype == dtype


class TestBatchNorm:
    def test_recompute_uses_the_statistics_of_the_moved_weights(self):
        model, (x, y) = net(), data()
        task = Task(model, nn.CrossEntropyLoss(), (x, y), batchnorm="recompute")
        with Objective(task) as objective:
            ones = [torch.ones_like(p) for p in objective.parameters]
            objective.move([ones], [0.2])
            loss = objective.evaluate().loss
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.2)
            hidden = model[0](x)
            model[1].running_mean.copy_(hidden.mean(0))
            model[1].running_var.copy_(hidden.var(0))
        assert loss == pytest.approx(F.cross_entropy(model.eval()(x), y).item(), rel=1e-12)

    def test_recomputed_statistics_count_values_and_not_batches(self):
        """Means are those of the whole draw however it is cut; a last batch of 2 samples doesn't count as one of 38."""
        model, (x, y) = net(), data(40)

        class Twice(nn.Module):  # one layer for two branches sees two sets of values in each pass
            def __init__(self) -> None:
                super().__init__()
                self.net = model

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.net(x) + self.net(2 * x)

        for batches in ([40], [38, 2], [20, 20], [3, 17, 18, 2]):
            task = Task(Twice(), nn.CrossEntropyLoss(), list(zip(x.split(batches), y.split(batches), strict=True)))
            with Objective(task.replace(batchnorm="recompute")) as objective:
                objective.evaluate()
                hidden = torch.cat([model[0](x), model[0](2 * x)])
                assert model[1].running_mean.numpy() == pytest.approx(hidden.detach().mean(0).numpy(), rel=1e-12)
            assert not model[1]._forward_pre_hooks

    @pytest.mark.parametrize("batchnorm", ["eval", "batch", "recompute"])
    def test_instance_norm_with_running_statistics_follows_the_policy_too(self, batchnorm):
        torch.manual_seed(0)
        norm = nn.InstanceNorm1d(4, track_running_stats=True)
        model = nn.Sequential(nn.Conv1d(2, 4, 1), norm, nn.Tanh(), nn.Flatten(), nn.Linear(20, 3)).double()
        x, y = torch.randn(20, 2, 5).double(), torch.arange(20) % 3
        model(x)
        batches = list(zip(x.split([13, 7]), y.split([13, 7]), strict=True))
        with Objective(Task(model, nn.CrossEntropyLoss(), batches, batchnorm=batchnorm)) as objective:
            loss = objective.evaluate().loss
        hidden = model[0](x).detach()
        if batchnorm == "recompute":
            norm.running_mean.copy_(hidden.mean(2).mean(0))
            norm.running_var.copy_(hidden.var(2).mean(0))
        model.train(batchnorm == "batch")
        assert loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)

    def test_batch_uses_those_of_each_batch(self):
        model, (x, y) = net(), data()
        with Objective(Task(model, nn.CrossEntropyLoss(), (x, y), batchnorm="batch")) as objective:
            loss = objective.evaluate().loss
        model.eval()
        model[1].train()
        assert loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)


class TestPredictions:
    def test_of_a_classifier(self):
        model, (x, y) = net(), data()
        with Objective(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=7)) as objective:
            logits, labels = objective.predictions()
        assert torch.equal(labels, y)
        assert torch.allclose(logits, model.eval()(x), rtol=1e-13)

    def test_of_a_binary_task(self):
        torch.manual_seed(0)
        model, (x, y) = nn.Linear(5, 1).double(), data()
        target = (y > 0).double()[:, None]
        with Objective(Task(model, nn.BCEWithLogitsLoss(), (x, target))) as objective:
            logits, labels = objective.predictions()
            found = objective.evaluate(accuracy=True)
        assert logits.shape == labels.shape == (23,)
        assert found.accuracy == ((model(x)[:, 0] > 0).long() == labels).double().mean().item()

    def test_of_segmentation_with_ignored_pixels(self):
        torch.manual_seed(0)
        model = nn.Conv2d(2, 4, 1).double()
        x, y = torch.randn(3, 2, 5, 5).double(), torch.randint(4, (3, 5, 5))
        y[0, 0] = 255
        with Objective(Task(model, nn.CrossEntropyLoss(ignore_index=255), (x, y))) as objective:
            logits, labels = objective.predictions()
        assert logits.shape == (70, 4)
        assert torch.equal(labels, y[y != 255])

    def test_of_a_contrastive_loss_with_a_smaller_last_batch_are_refused_with_what_to_do(self):
        """Its classes are the samples of the batch: 6 and 6 of them, then 3."""
        model, x = nn.Linear(5, 4, bias=False).double(), torch.randn(15, 5).double()

        def forward(m, b):
            return m(b[0]) @ m(b[1]).T, torch.arange(len(b[0]))

        batches = [(a, a + 0.1) for a in x.split(6)]
        task = Task(model, nn.CrossEntropyLoss(), batches, rebatch=False, forward=forward)
        with Objective(task) as objective:
            assert 0 <= objective.evaluate(accuracy=True).accuracy <= 1
            with pytest.raises(MeasurementError, match=r"told apart in 3 and 6 classes.*drop_last=True"):
                objective.predictions()
        with Objective(task.replace(train=batches[:2])) as objective:
            assert objective.predictions()[0].shape == (12, 6)

    def test_of_a_regression_there_are_none(self):
        model = nn.Linear(5, 1).double()
        with Objective(Task(model, nn.MSELoss(), (data()[0], torch.rand(23, 1).double()))) as objective:
            assert np.isnan(objective.evaluate(accuracy=True).accuracy)
            with pytest.raises(MeasurementError, match="no class labels on its train data"):
                objective.predictions()

    def test_of_a_batch_loss_task_come_from_predict(self):
        model, (x, y) = net(), data()
        task = Task(
            model,
            batch_loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]),
            predict=lambda m, b: (m(b[0]), b[1]),
            train=(x, y),
        )
        with Objective(task) as objective:
            found = objective.evaluate(accuracy=True, stderr=True)
        assert found.accuracy == (model.eval()(x).argmax(1) == y).double().mean().item()
        assert found.stderr > 0


def test_a_device_without_float64_is_refused_and_its_model_measured_on_the_cpu(monkeypatch):
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    with (
        pytest.raises(TaskError, match="device 'mps' has no float64, in which sums are taken; use device='cpu'"),
        Objective(Task(nn.Linear(2, 2), nn.CrossEntropyLoss(), (x, y), device="mps")),
    ):
        pass
    monkeypatch.setattr(placement, "WITHOUT_FLOAT64", {"meta"})  # a kind that is everywhere
    model = nn.Linear(2, 2, device="meta")
    device, dtype, notes = placement.place(Task(model, nn.CrossEntropyLoss(), (x, y)), model)
    assert (device.type, dtype) == ("cpu", torch.float32)
    assert notes == ["measured on the CPU: the model's device 'meta' has no float64, in which sums are taken"]
