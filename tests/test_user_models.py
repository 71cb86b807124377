"""Models, losses and batches as people write them: measured right, left alone, or refused with the reason."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections import UserDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from untouched import State

from landscape import GaussNewton, Hessian, Objective, Task, interpolate, sharpness
from landscape.errors import ObjectiveError, TaskError


def data(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(12, 5, generator=g, dtype=torch.float64).to(dtype), torch.randint(3, (12,), generator=g)


def linear(dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(5, 3, dtype=dtype)


def matrix(operator: Hessian | GaussNewton) -> torch.Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=operator.dtype)


def dense(model: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    """Return the Hessian row by row from autograd, without any code of ours."""
    parameters = list(model.parameters())
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in gradient]
    return torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows])


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    # float64 sums over a dozen samples in another order.
    return bool((a - b).abs().max() <= 1e-10 * b.abs().max())


class TestCurvature:
    def test_gauss_newton_of_outputs_that_are_computed_from_each_other(self):
        class Net(nn.Module):
            def __init__(self, both: bool):
                super().__init__()
                torch.manual_seed(0)
                self.body, self.head, self.both = nn.Linear(5, 4).double(), nn.Linear(4, 3).double(), both

            def forward(self, x):
                features = torch.tanh(self.body(x))
                return (features, self.head(features)) if self.both else self.head(features)

        def loss(outputs, y):
            logits = outputs[1] if isinstance(outputs, tuple) else outputs
            return F.cross_entropy(logits, y), float(len(y))

        both, alone = (matrix(GaussNewton(Task(Net(b), loss, data(), batch_size=5))) for b in (True, False))
        assert close(both, alone)

    def test_gauss_newton_refuses_a_loss_that_the_model_computed(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = linear()

            def forward(self, x, y):
                logits = self.head(x)
                return {"loss": F.cross_entropy(logits, y), "logits": logits}

        x, y = data()
        task = Task(Net(), lambda outputs, _: outputs["loss"], {"x": x, "y": y})
        assert close(matrix(Hessian(task)), dense(task.model, task.model(x, y)["loss"]))
        with pytest.raises(ObjectiveError, match="computed from the logits"):
            matrix(GaussNewton(task))

    def test_weight_norm(self):
        """torch's own second derivative of it is wrong: differences of gradients are the oracle."""
        x, y = data()
        model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3).double()))
        parameters = list(model.parameters())
        found = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (x, y))))
        start = nn.utils.parameters_to_vector(parameters).detach()

        def gradient(step: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                nn.utils.vector_to_parameters(start + step, parameters)
            grads = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
            return torch.cat([g.reshape(-1) for g in grads])

        steps = 1e-5 * torch.eye(len(start), dtype=torch.float64)
        expected = torch.stack([(gradient(s) - gradient(-s)) / 2e-5 for s in steps])
        # A central difference errs by step^2 and by rounding / step: both about 1e-10.
        assert (found - expected).abs().max() <= 1e-7 * expected.abs().max()

    def test_sparse_embedding(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Linear(12, 3)).double()
        ids, y = torch.randint(7, (12, 3)), data()[1]
        found = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (ids, y), batch_size=5)))
        assert model[0].sparse
        model[0].sparse = False
        assert close(found, dense(model, F.cross_entropy(model(ids), y)))

    @pytest.mark.parametrize("last", [False, True])
    def test_an_operation_that_is_differentiable_once_is_refused_where_it_matters(self, last):
        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.square().mean()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, g):
                return g * 2 * ctx.saved_tensors[0] / ctx.saved_tensors[0].numel()

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.early, self.late = nn.Linear(5, 5).double(), linear()

            def forward(self, x):
                h = self.early(x)
                return self.late(x) + (0 if last else Square.apply(h))

        def loss(outputs, y):
            extra = Square.apply(outputs) if last else 0
            return F.cross_entropy(outputs, y) + extra, float(len(y))

        task = Task(Net(), loss, data())
        with pytest.raises(ObjectiveError, match="operation Square is differentiable only once"):
            Hessian(task) @ torch.ones(48).double()
        if not last:
            assert matrix(Hessian(task, "late")).abs().max() > 0

    def test_a_custom_function_may_be_called_error(self):
        class ErrorFunction(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x * x

            @staticmethod
            def backward(ctx, g):
                return 2 * ctx.saved_tensors[0] * g

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = linear()

            def forward(self, x):
                return ErrorFunction.apply(self.head(x))

        model, (x, y) = Net(), data()
        found = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (x, y))))
        assert close(found, dense(model, F.cross_entropy(model(x), y)))

    def test_a_loss_with_a_derivative_inside(self):
        """A physics-informed net: no pass over it may switch autograd off."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()

        def residual(model, batch):
            t = batch[0].requires_grad_(True)
            u = model(t)
            (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            return (slope + u).square().mean()

        t = torch.linspace(0, 1, 11).double()[:, None]
        with Objective(Task(model, batch_loss=residual, train=(t,), batch_size=4)) as objective:
            found = objective.evaluate(stderr=True)
            h = matrix(Hessian(objective))
        assert not t.requires_grad
        expected = residual(model, (t.clone(),))
        assert found.loss == pytest.approx(expected.item(), rel=1e-12)
        parameters = list(model.parameters())
        gradient = torch.autograd.grad(expected, parameters, create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in flat]
        assert close(h, torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows]))

    def test_an_autocast_inside_the_forward_does_not_lower_the_precision(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = linear(torch.float32)

            def forward(self, x):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return self.head(x)

        model, (x, y) = Net(), data(torch.float32)
        enter = torch.autocast.__enter__
        with Objective(Task(model, nn.CrossEntropyLoss(), (x, y))) as objective:
            loss = objective.evaluate().loss
        assert loss == pytest.approx(F.cross_entropy(model.head(x), y).item(), rel=1e-6)
        assert torch.autocast.__enter__ is enter
        assert model(x).dtype == torch.bfloat16

    def test_recurrent_layers_run_without_cudnn(self):
        """cuDNN's recurrent kernels have no second derivative, and no backward in eval mode."""
        seen = []

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.head = nn.LSTM(5, 4, batch_first=True), nn.Linear(4, 3)

            def forward(self, x):
                seen.append(torch.backends.cudnn.enabled)
                return self.head(self.rnn(x)[0][:, -1])

        model, y = Net().double(), data()[1]
        x = torch.randn(12, 6, 5).double()
        found = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=5)))
        assert not any(seen)
        assert torch.backends.cudnn.enabled
        assert close(found, dense(model, F.cross_entropy(model(x), y)))


class TestWeights:
    def test_a_loss_out_of_the_models_outputs_is_verified_on_parts_of_the_batch(self):
        class Net(nn.Module):
            def __init__(self, weight):
                super().__init__()
                self.head, self.weight = linear(), weight

            def forward(self, x, y):
                logits = self.head(x)
                return {"loss": F.cross_entropy(logits, y, weight=self.weight), "logits": logits}

        x, y = data()
        weighted = torch.tensor([1.0, 5.0, 9.0]).double()
        task = Task(Net(weighted), lambda outputs, _: outputs["loss"], {"x": x, "y": y}, batch_size=5)
        with pytest.raises(ObjectiveError, match="can't say its weight"), Objective(task):
            pass
        task = Task(Net(None), lambda outputs, _: outputs["loss"], {"x": x, "y": y}, batch_size=5)
        with Objective(task) as objective:
            found = objective.evaluate(stderr=True)
        losses = F.cross_entropy(task.model.head(x), y, reduction="none").detach()
        assert found.loss == pytest.approx(losses.mean().item(), rel=1e-12)
        assert found.stderr == pytest.approx((losses.std() / 12**0.5).item(), rel=1e-10)

    def test_batches_of_one_sample_are_not_called_verified(self):
        x, y = data()
        task = Task(linear(), lambda o, t: F.cross_entropy(o, t), list(zip(x.split(1), y.split(1), strict=True)))
        with Objective(task) as objective:
            assert "not verified: batches of one sample" in objective.notes[-1]

    def test_a_target_that_pairs_every_sample_with_every_other(self):
        x, y = data()
        task = Task(nn.Linear(5, 1).double(), nn.MSELoss(), (x, y.double()), batch_size=5)
        with (
            pytest.warns(UserWarning, match="different to the input size"),
            pytest.raises(ObjectiveError, match="no plain mean over samples"),
            Objective(task),
        ):
            pass

    def test_the_deprecated_names_of_a_reduction(self):
        task = Task(linear(), functools.partial(F.cross_entropy, size_average=False), data(), batch_size=5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            with pytest.raises(ObjectiveError, match="sums over the samples of a batch"), Objective(task):
                pass

    def test_a_loss_that_fails_on_a_part_of_a_batch(self):
        lengths = torch.full((12,), 9)
        x, y = torch.randn(12, 9, 5).double(), torch.randint(1, 3, (12, 3))
        task = Task(
            linear(),
            lambda o, t: F.ctc_loss(o, t, lengths, lengths // 3),
            (x, y),
            forward=lambda model, batch: (model(batch[0]).log_softmax(-1).transpose(0, 1), batch[1]),
        )
        with pytest.raises(ObjectiveError, match=r"fails on a part of it\. Return \(mean, weight\)"), Objective(task):
            pass

    def test_a_total_beside_its_terms_is_not_added_to_them(self):
        def loss(outputs, y):
            ce, size = F.cross_entropy(outputs, y), outputs.square().mean()
            return {"loss": ce + size, "ce": ce, "size": size}

        with pytest.raises(ObjectiveError, match="'loss' beside ce, size"), Objective(Task(linear(), loss, data())):
            pass

    @pytest.mark.parametrize("own", [False, True])
    def test_two_losses_are_no_mean_with_its_weight(self, own):
        def loss(outputs, y):
            return F.cross_entropy(outputs, y), outputs.square().mean()

        if own:
            task = Task(linear(), train=data(), batch_loss=lambda model, batch: loss(model(batch[0]), batch[1]))
        else:
            task = Task(linear(), loss, data())
        with pytest.raises(ObjectiveError, match=r"second entry depends on the parameters.* return their sum"):
            Objective(task).__enter__()

    def test_a_weight_that_is_a_tensor_is_taken(self):
        x, y = data()
        task = Task(linear(), lambda o, t: (F.cross_entropy(o, t), (t >= 0).sum()), (x, y), batch_size=5)
        with Objective(task) as objective:
            whole = F.cross_entropy(linear()(x), y)
            assert objective.evaluate().loss == pytest.approx(float(whole.detach()), rel=1e-12)

    @pytest.mark.parametrize(
        ("weight", "doubted"),
        [(lambda y: (y != 2).sum(), False), (lambda y: float(len(y)), True), (lambda y: 1.0, True)],
        ids=["right", "samples", "constant"],
    )
    def test_a_weight_that_is_not_the_means_denominator_is_said_to_be_none(self, weight, doubted):
        x, _ = data()
        y = torch.tensor([0, 2, 2, 1] + [0, 1] * 4)

        def loss(outputs, y):
            return F.cross_entropy(outputs, y, ignore_index=2), weight(y)

        for rebatch in (True, False):
            with Objective(Task(linear(), loss, (x, y), batch_size=6, rebatch=rebatch)) as objective:
                found = [n for n in objective.notes if "don't average to the whole" in n]
            assert len(found) == (doubted and rebatch)

    def test_a_split_where_nothing_counts(self):
        task = Task(linear(), nn.CrossEntropyLoss(), (data()[0], torch.full((12,), -100)))
        with pytest.raises(ObjectiveError, match="weight 0"):
            sharpness(task)


class TestBatches:
    @pytest.mark.parametrize("change", ["pop", "in place"])
    def test_a_forward_may_change_its_batch(self, change):
        x, y = data()

        def forward(model, batch):
            if change == "pop":
                labels = batch.pop("y")
                return model(batch["x"]), labels
            return model(batch["x"].mul_(2)), batch["y"]

        held, model = {"x": x.clone(), "y": y}, linear()
        task = Task(model, lambda o, t: F.cross_entropy(o, t), [held], forward=forward)
        with Objective(task) as objective:
            found = objective.evaluate(accuracy=True, stderr=True)
            again = objective.evaluate()
        assert found.loss == again.loss
        assert found.loss == pytest.approx(F.cross_entropy(model(x if change == "pop" else 2 * x), y).item(), rel=1e-12)
        assert torch.equal(held["x"], x)
        assert held["y"] is y

    def test_mappings_and_dataclasses_keep_their_kind(self):
        class Encoding(UserDict):
            def __getattr__(self, name):
                if name not in vars(self).get("data", {}):
                    raise AttributeError(name)
                return self.data[name]

        @dataclasses.dataclass
        class Rows:
            x: torch.Tensor
            y: torch.Tensor

        class Moving:
            """A batch class that moves itself in place, as PyTorch Geometric's do."""

            def __init__(self, x, y):
                self.x, self.y = x, y

            def to(self, device):
                self.x, self.y = self.x.to(device), self.y.to(device)
                return self

        x, y = data(torch.float32)
        model, losses = linear(torch.float32), []
        for batch in (Encoding({"x": x, "y": y}), Rows(x, y), Moving(x, y)):
            task = Task(
                model,
                nn.CrossEntropyLoss(),
                [batch],
                forward=lambda model, batch: (model(batch.x), batch.y),
                dtype=torch.float64,
            )
            with Objective(task) as objective:
                losses.append(objective.evaluate().loss)
            assert batch.x is x
        assert losses[0] == losses[1] == losses[2]

    def test_outputs_in_a_dataclass(self):
        @dataclasses.dataclass
        class Outputs:
            logits: torch.Tensor

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = linear()

            def forward(self, x):
                return Outputs(self.head(x))

        x, y = data()
        task = Task(Net(), lambda o, t: F.cross_entropy(o.logits, t), (x, y), batch_size=5)
        with Objective(task) as objective:
            found = objective.evaluate(accuracy=True, stderr=True)
            h, g = matrix(Hessian(objective)), matrix(GaussNewton(objective))
        assert found.accuracy == (task.model.head(x).argmax(1) == y).double().mean().item()
        assert close(h, g)  # the logits are linear in the parameters

    def test_the_losses_own_tensors_follow_the_precision(self):
        x, y = data(torch.float32)
        weight = torch.tensor([1.0, 2.0, 3.0])
        losses = []
        for loss in (nn.CrossEntropyLoss(weight=weight), functools.partial(F.cross_entropy, weight=weight)):
            task = Task(linear(torch.float32), loss, (x, y), dtype=torch.float64, batch_size=5)
            with Objective(task) as objective:
                losses.append(objective.evaluate().loss)
        assert losses[0] == losses[1]
        assert losses[0] == pytest.approx(F.cross_entropy(linear(torch.float32)(x), y, weight=weight).item(), rel=1e-6)
        assert weight.dtype == torch.float32

    def test_the_loaders_batches_may_come_from_the_data_set(self):
        class Batches(Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, i):
                x, y = data()
                return x[3 * i : 3 * i + 3], y[3 * i : 3 * i + 3]

        task = Task(linear(), nn.CrossEntropyLoss(), DataLoader(Batches(), batch_size=None), max_samples=5)
        assert task.draw("train").samples == 5

    def test_a_tensor_of_one_element_with_a_stride(self):
        x = data()[0]
        task = Task(
            linear(),
            nn.MSELoss(),
            (x, x[:, 0]),
            batch_size=11,
            forward=lambda model, batch: (model(batch[0])[:, 0], batch[1]),
        )
        assert task.draw("train").sizes == (11, 1)

    def test_integer_targets_of_a_regression_are_no_labels(self):
        x, y = data()
        cases = ((y > 0).long(), nn.MSELoss(), False), ((y > 0).double(), nn.BCEWithLogitsLoss(), True)
        for target, loss, expected in cases:
            with Objective(Task(nn.Linear(5, 1).double(), loss, (x, target[:, None]))) as objective:
                assert objective.has_labels == expected

    def test_a_cast_inside_the_forward_is_explained(self):
        x, y = data(torch.float32)
        task = Task(
            linear(torch.float32),
            nn.CrossEntropyLoss(),
            (x, y),
            forward=lambda model, batch: (model(batch[0].float()), batch[1]),
            dtype=torch.float64,
        )
        with pytest.raises(TaskError, match=r"float64 was asked for: .* \.float\(\)"), Objective(task):
            pass

    def test_the_fingerprint_follows_text(self):
        prints = [
            Task(linear(), None, [{"text": t, "y": data()[1]}]).draw("train").fingerprint
            for t in (["a", "b"], ["a", "b"], ["a", "c"])
        ]
        assert prints[0] == prints[1] != prints[2]


class TestParameters:
    def test_a_losses_own_parameters_are_said_to_be_held_fixed(self):
        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.tensor(2.0))

            def forward(self, outputs, y):
                return F.cross_entropy(outputs * self.scale, y)

        loss = Scaled()
        with Objective(Task(linear(), loss, data())) as objective:
            assert "parameters of its own" in objective.notes[0]
            assert objective.names == ("weight", "bias")
        assert loss.scale.dtype == torch.float32

    def test_complex_parameters_are_said_to_be_held_fixed(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.wave, self.bias = nn.Parameter(torch.randn(5, 3) + 0j), nn.Parameter(torch.zeros(3))

            def forward(self, x):
                return (x.to(self.wave.dtype) @ self.wave).real + self.bias

        for dtype in (torch.float32, torch.float64):
            with Objective(Task(Net(), nn.CrossEntropyLoss(), data(torch.float32), dtype=dtype)) as objective:
                assert objective.names == ("bias",)
                said = "1 complex parameter is held fixed (wave: 15 numbers of two parts, beside 3 real ones)"
                assert said in objective.notes[0]
                assert objective.evaluate().loss > 0

    def test_complex_parameters_alone_are_refused_with_the_way_out(self):
        model = nn.Module()
        model.w = nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))
        with pytest.raises(ObjectiveError, match=r"are complex \(w first\): .* torch\.view_as_real"):
            Hessian(Task(model, lambda outputs, _: outputs.abs().mean(), data()))

    def test_a_lazy_module_is_named(self):
        with pytest.raises(ObjectiveError, match=r"0\.weight has no shape yet"):
            Hessian(Task(nn.Sequential(nn.LazyLinear(3)), nn.CrossEntropyLoss(), data()))

    def test_a_scripted_module_is_refused(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = torch.jit.script(linear())
        with pytest.raises(ObjectiveError, match="TorchScript"), Objective(Task(model, nn.CrossEntropyLoss(), data())):
            pass


class Merging(nn.Linear):
    """A LoRA layer as loralib writes it: eval() merges the product of its two factors into the weight."""

    def __init__(self):
        torch.manual_seed(3)
        super().__init__(5, 3, dtype=torch.float64)
        self.down, self.up = nn.Parameter(torch.randn(2, 5).double()), nn.Parameter(torch.randn(3, 2).double())
        self.weight.requires_grad_(False)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if self.merged == mode:
            self.weight.data += (-1 if mode else 1) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, x):
        out = F.linear(x, self.weight, self.bias)
        return out if self.merged else out + x @ self.down.T @ self.up.T


class TestModes:
    def test_layers_that_merge_their_weights_in_eval_are_measured_unmerged_and_left_as_they_were(self):
        model, (x, y) = Merging(), data()
        found = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=5)))
        assert not model.merged
        assert model.training
        loss = F.cross_entropy(model(x), y)
        model.weight.requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, trained, create_graph=True)])
        rows = [torch.autograd.grad(g, trained, retain_graph=True, materialize_grads=True) for g in gradient]
        assert close(found, torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows]))

    def test_what_a_train_of_the_models_own_freezes_is_frozen(self):
        class Net(nn.Sequential):
            def train(self, mode=True):
                super().train(mode)
                self[1].eval()
                return self

        model = Net(linear(), nn.Dropout(0.5)).double()
        with Objective(Task(model, nn.CrossEntropyLoss(), data(), mode="train")) as objective:
            assert model[0].training
            assert not model[1].training
            assert objective.evaluate().loss > 0

    def test_counters_of_model_and_loss_are_put_back(self):
        class Counting(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner, self.calls = inner, 0

            def forward(self, *args):
                self.calls += 1
                self.latest = self.calls
                return self.inner(*args)

        model, loss = Counting(linear()), Counting(nn.CrossEntropyLoss())
        with Objective(Task(model, loss, data())):
            assert model.calls > 0
        for counting in (model, loss):
            assert counting.calls == 0
            assert not hasattr(counting, "latest")


class Flat(nn.Module):
    """All weights in one parameter, of which the layers are views that were made once."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.flat = nn.Parameter(torch.randn(18, dtype=torch.float64))
        views = [self.flat[:15].view(3, 5), self.flat[15:]]
        if kind == "attributes":
            self.weight, self.bias = views
        self.views = {"list": views, "dict": dict(zip("wb", views, strict=True))}.get(kind)

    def forward(self, x):
        if self.views is None:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, *(self.views.values() if isinstance(self.views, dict) else self.views))


class TestSharedMemory:
    @pytest.mark.parametrize("kind", ["attributes", "list", "dict"])
    @pytest.mark.parametrize("dtype", [None, torch.float32])
    def test_views_of_a_parameter_that_were_made_once_move_with_it(self, kind, dtype):
        x, y = data()
        model, step = Flat(kind), torch.linspace(-1, 1, 18).double()
        held = [v for k, v in vars(model).items() if isinstance(v, torch.Tensor | list | dict) and k[0] != "_"]
        task = Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=5, dtype=dtype)
        with Objective(task) as objective:
            objective.move([[step.to(objective.dtype)]], [1.0])
            found = objective.evaluate().loss
            slope = torch.cat([g.reshape(-1) for g in objective.gradient()])
        assert all(any(v is w for w in vars(model).values()) for v in held)
        h = matrix(Hessian(task))
        exact = torch.allclose if dtype is None else functools.partial(torch.allclose, atol=1e-6, rtol=1e-6)
        same = Flat(kind)
        assert exact(h.double(), dense(same, F.cross_entropy(same(x), y)))
        with torch.no_grad():
            model.flat += step
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        assert exact(torch.tensor(found).double(), loss.detach())
        assert exact(slope.double(), model.flat.grad)

    def test_a_path_between_two_states_of_such_a_model(self):
        x, y = data()
        model, ends = Flat("list"), [{"flat": torch.randn(18).double()} for _ in range(2)]
        found = interpolate(Task(model, nn.CrossEntropyLoss(), (x, y)), *ends, points=3)
        for loss, share in zip(found.loss[0], (0.0, 0.5, 1.0), strict=True):
            model.load_state_dict({"flat": (1 - share) * ends[0]["flat"] + share * ends[1]["flat"]})
            assert loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)

    def test_a_buffer_that_is_a_view_of_a_parameter_moves_with_it(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = linear()
                self.register_buffer("columns", self.head.weight.data.T)

            def forward(self, x):
                return self.head(x) + x @ self.columns

        model, (x, y) = Net(), data()
        with Objective(Task(model, nn.CrossEntropyLoss(), (x, y))) as objective:
            objective.move([[torch.ones(3, 5).double().tril(), torch.zeros(3).double()]], [1.0])
            found = objective.evaluate().loss
            assert not objective.notes
        with torch.no_grad():
            model.head.weight += torch.ones(3, 5).double().tril()
        assert found == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)

    def test_a_view_of_several_parameters_is_said_to_stay(self):
        model, whole = linear(), torch.randn(18).double()
        model.weight.data, model.bias.data, model.whole = whole[:15].view(3, 5), whole[15:], whole
        with Objective(Task(model, nn.CrossEntropyLoss(), data())) as objective:
            assert "whole share memory with parameters in a way that can't be followed" in objective.notes[0]

    def test_two_parameters_in_one_memory_are_refused(self):
        model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)).double()
        model[1].weight.data = model[0].weight.data
        with pytest.raises(ObjectiveError, match=r"0\.weight and 1\.weight lie in the same memory .* make them one"):
            Objective(Task(model, nn.CrossEntropyLoss(), data())).__enter__()

    @pytest.mark.parametrize(
        ("shape", "cut"),
        [((6, 5), lambda t: (t[:3], t[3:])), ((3, 10), lambda t: (t[:, :5], t[:, 5:]))],
        ids=["rows", "columns"],
    )
    def test_parameters_beside_each_other_in_one_memory_are_two(self, shape, cut):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.a, self.b = map(nn.Parameter, cut(torch.randn(shape).double()))

            def forward(self, x):
                return x @ self.a.T + (x @ self.b.T).tanh()

        model, (x, y) = Net(), data()
        found = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=5)))
        assert close(found, dense(model, F.cross_entropy(model(x), y)))


class TestForwardsThatWrite:
    @pytest.mark.parametrize("turns", [0, 300], ids=["fresh", "converged"])
    def test_the_loss_at_some_weights_does_not_depend_on_where_it_was_evaluated_before(self, turns):
        """spectral_norm goes one power iteration on at each forward in train mode, from where the last one stopped."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8)), nn.Tanh(), nn.Linear(8, 3))
        model.double().train()
        for _ in range(turns):
            model(data()[0])
        held = {k: v.clone() for k, v in model.state_dict().items()}
        with Objective(Task(model, nn.CrossEntropyLoss(), data(), mode="train", batch_size=5)) as objective:
            step = [torch.randn_like(p) for p in objective.parameters]
            found = []
            for share in (0.0, 1.0, -1.0, 1.0, 0.0):
                objective.move([step], [share])
                found.append(objective.evaluate().loss)
            assert any("weight.0._u" in n and "starts from the checkpoint's own" in n for n in objective.notes)
        assert found[0] == found[4]
        assert found[1] == found[3]
        assert all(torch.equal(v, held[k]) for k, v in model.state_dict().items())

    @pytest.mark.parametrize("length", [1.0, 50.0], ids=["reached", "never reached"])
    def test_derivatives_of_an_embedding_with_a_largest_norm_say_what_they_leave_out(self, length):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4, max_norm=length), nn.Flatten(), nn.Linear(12, 3)).double()
        ids, y = torch.randint(7, (12, 3)), data()[1]
        kept = model[0].weight.detach().clone()
        A = Hessian(Task(model, nn.CrossEntropyLoss(), (ids, y), batch_size=5))
        with A:
            assert "writes to 0.weight (max_norm)" in A.notes[0]
        assert torch.equal(model[0].weight, kept)

    @pytest.mark.parametrize("strategy", ["auto", "rebuild", "forward"])
    def test_a_buffer_that_counts_passes_is_the_checkpoints_in_each_of_them(self, strategy):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = linear()
                self.register_buffer("scale", torch.tensor(1.0).double())

            def forward(self, x):
                out = self.head(x) * self.scale
                self.scale = self.scale * 0.5
                return out

        x, y = data()
        found = matrix(Hessian(Task(Net(), nn.CrossEntropyLoss(), (x, y), batch_size=5), strategy=strategy))
        plain = linear()
        assert close(found, dense(plain, F.cross_entropy(plain(x), y)))


class TestWhatIsLeftOutIsSaid:
    def test_gauss_newton_of_a_loss_with_a_penalty_on_the_weights(self):
        model, (x, y) = linear(), data()

        def loss(outputs, y):
            return F.cross_entropy(outputs, y) + 0.1 * sum(p.square().sum() for p in model.parameters())

        for penalized in (True, False):
            A = GaussNewton(Task(model, loss if penalized else F.cross_entropy, (x, y), batch_size=5))
            with A:
                A @ torch.ones(18).double()
                found = [n for n in A.notes if "a penalty on the weights?" in n]
            assert len(found) == penalized

    @pytest.mark.parametrize("kind", [Hessian, GaussNewton])
    def test_a_hook_on_a_tensor_of_the_forward_pass(self, kind):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = linear()

            def forward(self, x):
                h = self.head(x).tanh()
                if h.requires_grad:
                    h.register_hook(lambda g: g * 0.5)
                return h

        register = torch.Tensor.register_hook
        A = kind(Task(Net(), nn.CrossEntropyLoss(), data(), batch_size=5))
        with A:
            A @ torch.ones(18).double()
            assert sum("puts a hook on a tensor" in n for n in A.notes) == 1
        assert torch.Tensor.register_hook is register


class TestTorchFunc:
    @pytest.mark.parametrize("strategy", ["auto", "keep", "rebuild"])
    def test_a_loss_with_derivatives_by_torch_func(self, strategy):
        """They refuse the hooks by which the size of a graph is measured."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).double()

        def residual(model, batch):
            slope = torch.func.vmap(torch.func.grad(lambda t: model(t[None])[0, 0]))(batch[0])
            return (slope + model(batch[0])).square().mean()

        t = torch.linspace(0, 1, 11).double()[:, None]
        with Hessian(Task(model, batch_loss=residual, train=(t,), batch_size=4), strategy=strategy) as A:
            found = matrix(A)
            assert ("torch.func" in A.how) == (strategy == "auto")
        loss = residual(model, (t,))
        parameters = list(model.parameters())
        gradient = torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True)
        flat = torch.cat([g.reshape(-1) for g in gradient])
        rows = [torch.autograd.grad(g, parameters, retain_graph=True, materialize_grads=True) for g in flat]
        assert close(found, torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows]))


def test_ctc_counts_sequences_not_the_length_of_their_outputs():
    lengths = torch.tensor([6, 5])
    loss = functools.partial(nn.CTCLoss(), input_lengths=lengths, target_lengths=torch.tensor([2, 2]))
    torch.manual_seed(0)
    batches = [(torch.randn(n, 2, 5).double(), torch.randint(1, 3, (2, 2))) for n in (6, 12)]
    model = nn.Sequential(linear(), nn.LogSoftmax(-1))
    with Objective(Task(model, loss, batches, rebatch=False)) as objective:
        found = objective.evaluate().loss
    each = [loss(model(x), y).item() for x, y in batches]
    assert found == pytest.approx(sum(each) / 2, rel=1e-12)


@pytest.mark.parametrize("older", [True, False])
def test_a_model_that_sets_cudnns_flags_in_its_forward(older):
    class Net(nn.Linear):
        def forward(self, x):
            with torch.backends.cudnn.flags(enabled=False):  # as speech models do around their CTC loss
                return super().forward(x)

    x, y = data()
    model = Net(5, 3).double()
    cudnn, kept = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    try:
        cudnn.allow_tf32 = older
        before = State(model)
        with Objective(Task(model, nn.CrossEntropyLoss(), (x, y))) as objective:
            assert cudnn.conv.fp32_precision == cudnn.rnn.fp32_precision == "ieee"
            assert objective.evaluate().loss == pytest.approx(
                F.cross_entropy(F.linear(x, *model.parameters()), y).item()
            )
            assert not cudnn.allow_tf32
        before.unchanged()
        assert cudnn.allow_tf32 == older
    finally:
        cudnn.allow_tf32 = kept


def test_a_model_that_chooses_its_attention_kernel_in_its_forward():
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]

    class Attention(nn.Linear):
        flash = True

        def forward(self, x):
            q = super().forward(x).view(1, 1, -1, 5)
            with sdpa_kernel(kernels if self.flash else SDPBackend.MATH):
                return F.scaled_dot_product_attention(q, q, q).flatten(0, 2)

    x, y = data()
    torch.manual_seed(0)
    model = Attention(5, 5).double()
    found = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), [(x, y)])))
    model.flash = False
    assert close(found, dense(model, F.cross_entropy(model(x), y)))
    with sdpa_kernel(kernels):  # what is set outside of a measurement holds again
        assert torch.backends.cuda.flash_sdp_enabled()
        assert not torch.backends.cuda.mem_efficient_sdp_enabled()


class Cached:
    def __init__(self, weight):
        self.doubled = 2 * weight.detach()


class Caching(nn.Linear):
    """Computes something from its weights at its first call in eval mode, and keeps it until the next train()."""

    def __init__(self, there: bool):
        super().__init__(5, 3, dtype=torch.float64)
        if there:
            self.cache = None

    def forward(self, x):
        if self.training or getattr(self, "cache", None) is None:
            self.cache = Cached(self.weight)
        return F.linear(x, self.weight + self.cache.doubled, self.bias)


@pytest.mark.parametrize("there", [True, False])
def test_what_a_forward_computes_once_and_keeps_is_computed_at_the_weights_of_each_pass(there):
    x, y = data()
    torch.manual_seed(0)
    model = Caching(there).eval()
    before = State(model)
    task = Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=5)
    for _ in range(2):  # what was verified once is remembered
        with Objective(task) as objective:
            objective.evaluate()
            objective.move([[torch.ones_like(p) * p for p in objective.parameters]], [0.5])
            found = objective.evaluate().loss
            assert any("changes cache: each pass starts" in note for note in objective.notes)
        truth = F.cross_entropy(F.linear(x, 4.5 * model.weight, 1.5 * model.bias), y).item()
        assert found == pytest.approx(truth, rel=1e-12)
        assert getattr(model, "cache", None) is None
        assert hasattr(model, "cache") == there
    before.unchanged()
