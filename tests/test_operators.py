"""Curvature operators against dense autograd in float64, closed forms, and PyHessian."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import (
    GaussNewton,
    Hessian,
    Task,
    diagonal,
    eigenpairs,
    frobenius_norm,
    layer_curvature,
    spectral_density,
    trace,
)
from landscape.errors import LandscapeError, MeasurementError, ObjectiveError

# float64 sums of a few hundred terms in another order: 1e-10 leaves three digits above what was seen.
EXACT = 1e-10


def dense(loss, model: nn.Module) -> torch.Tensor:
    """Return the Hessian of `loss()` in the trainable parameters, by torch.autograd over a flat vector."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    values = [dict(model.named_parameters())[n].detach() for n in names]
    sizes = [v.numel() for v in values]

    def of_flat(flat: torch.Tensor) -> torch.Tensor:
        parts = [x.view_as(v) for x, v in zip(flat.split(sizes), values, strict=True)]
        return loss(lambda *a, **k: torch.func.functional_call(model, dict(zip(names, parts, strict=True)), a, k))

    return torch.autograd.functional.hessian(of_flat, torch.cat([v.reshape(-1) for v in values]))


def matrix(operator) -> torch.Tensor:
    with operator as a:
        return a @ torch.eye(a.shape[0], dtype=a.dtype)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = EXACT) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-12))


def mlp(inputs: int = 5, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, 6), nn.Tanh(), nn.Linear(6, classes)).double()


def data(n: int = 23, inputs: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(n, inputs, generator=g).double(), torch.randint(classes, (n,), generator=g)


def cut(x: torch.Tensor, y: torch.Tensor, *sizes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


class TestAgainstTheDenseHessian:
    @pytest.mark.parametrize("sizes", [(23,), (3, 4, 16), (2, 6, 15), (11, 11, 1)])
    def test_unequal_batches_give_the_hessian_of_the_whole_set(self, sizes):
        model, (x, y) = mlp(), data()
        expected = dense(lambda f: F.cross_entropy(f(x), y), model)
        assert close(matrix(Hessian(Task(model, nn.CrossEntropyLoss(), cut(x, y, *sizes)))), expected)

    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    def test_class_weights_and_ignore_index_count_as_the_loss_counts_them(self, smoothing):
        model, (x, y) = mlp(), data()
        y[::4] = -7
        loss = nn.CrossEntropyLoss(
            weight=torch.tensor([1.0, 5.0, 0.2]).double(), ignore_index=-7, label_smoothing=smoothing
        )
        expected = dense(lambda f: loss(f(x), y), model)
        assert close(matrix(Hessian(Task(model, loss, cut(x, y, 3, 4, 16)))), expected)

    def test_a_batch_with_every_label_ignored_counts_nothing(self):
        model, (x, y) = mlp(), data()
        y[:4] = -100
        expected = dense(lambda f: F.cross_entropy(f(x), y), model)
        assert close(matrix(Hessian(Task(model, nn.CrossEntropyLoss(), cut(x, y, 4, 19)))), expected)

    def test_a_functional_loss_and_a_partial_of_one_are_known(self):
        model, (x, y) = mlp(), data()
        y[::3] = 2
        loss = functools.partial(F.cross_entropy, weight=torch.tensor([1.0, 5.0, 0.2]).double())
        expected = dense(lambda f: loss(f(x), y), model)
        assert close(matrix(Hessian(Task(model, loss, cut(x, y, 3, 4, 16)))), expected)

    def test_a_loss_that_returns_its_weight_is_believed(self):
        model, (x, y) = mlp(), data()
        mask = torch.rand(23, generator=torch.Generator().manual_seed(5)) > 0.6

        def masked(outputs, target):
            label, keep = target[:, 0], target[:, 1].bool()
            return F.cross_entropy(outputs[keep], label[keep]), keep.sum()

        target = torch.stack([y, mask.long()], dim=1)
        expected = dense(lambda f: F.cross_entropy(f(x)[mask], y[mask]), model)
        assert close(matrix(Hessian(Task(model, masked, cut(x, target, 9, 14)))), expected)

    def test_terms_add_up(self):
        model, (x, y) = mlp(), data()

        def terms(outputs, target):
            return {"ce": F.cross_entropy(outputs, target), "size": 0.1 * outputs.square().mean()}

        expected = dense(lambda f: F.cross_entropy(f(x), y) + 0.1 * f(x).square().mean(), model)
        assert close(matrix(Hessian(Task(model, terms, cut(x, y, 9, 14)))), expected)

    @pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), nn.BCEWithLogitsLoss(), nn.SmoothL1Loss()])
    def test_losses_over_elements(self, loss):
        model, (x, _) = mlp(), data()
        target = torch.rand(23, 3, generator=torch.Generator().manual_seed(0)).double()
        expected = dense(lambda f: loss(f(x), target), model)
        assert close(matrix(Hessian(Task(model, loss, cut(x, target, 9, 13, 1)))), expected)

    def test_float32_is_within_rounding(self):
        model, (x, y) = mlp(), data()
        expected = dense(lambda f: F.cross_entropy(f(x), y), model)
        task = Task(model, nn.CrossEntropyLoss(), (x, y), dtype=torch.float32)
        assert close(matrix(Hessian(task)).double(), expected, 1e-5)


class TestModelsPeopleHave:
    def test_batchnorm_in_eval_and_dropout(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Softplus(), nn.Dropout(0.5), nn.Linear(6, 3)
        ).double()
        x, y = data()
        model(x)  # gives the running statistics something to hold
        model.eval()
        expected = dense(lambda f: F.cross_entropy(f(x), y), model)
        model.train()
        assert close(matrix(Hessian(Task(model, nn.CrossEntropyLoss(), cut(x, y, 9, 14)))), expected)

    def test_tied_weights_count_once(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(5, 5, bias=False)
                self.b = nn.Linear(5, 5, bias=False)
                self.b.weight = self.a.weight

            def forward(self, x):
                return self.b(torch.tanh(self.a(x)))

        torch.manual_seed(0)
        model, (x, y) = Tied().double(), data(classes=5)
        h = Hessian(Task(model, nn.CrossEntropyLoss(), (x, y)))
        assert h.shape == (25, 25)
        w = model.a.weight.detach()
        expected = torch.autograd.functional.hessian(
            lambda v: F.cross_entropy(torch.tanh(x @ v.view(5, 5).T) @ v.view(5, 5).T, y), w.reshape(-1)
        )
        assert close(matrix(h), expected)

    def test_frozen_layers_are_left_out(self):
        model, (x, y) = mlp(), data()
        model[0].requires_grad_(False)
        expected = dense(lambda f: F.cross_entropy(f(x), y), model)
        h = Hessian(Task(model, nn.CrossEntropyLoss(), (x, y)))
        assert h.names == ("2.weight", "2.bias")
        assert close(matrix(h), expected)

    def test_a_parameter_that_the_loss_does_not_use_has_a_zero_row(self):
        model, (x, y) = mlp(), data()
        model.unused = nn.Parameter(torch.ones(2).double())
        model.forward = lambda x: model[2](model[1](model[0](x)))
        h = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (x, y))))
        names = [n for n, _ in model.named_parameters()]
        first = 0 if names[0] == "unused" else h.shape[0] - 2
        assert not h[first : first + 2].any()
        assert not h[:, first : first + 2].any()
        assert h.any()

    @pytest.mark.parametrize("kind", ["functional", "MultiheadAttention", "TransformerEncoderLayer"])
    def test_attention_is_differentiated_twice(self, kind):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(4, 12)
                if kind == "MultiheadAttention":
                    self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
                if kind == "TransformerEncoderLayer":
                    self.layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True, activation="gelu")
                self.head = nn.Linear(4, 3)

            def forward(self, x):
                if kind == "functional":
                    q, k, v = self.inner(x).chunk(3, dim=-1)
                    x = F.scaled_dot_product_attention(q, k, v)
                elif kind == "MultiheadAttention":
                    x = self.attention(x, x, x, need_weights=False)[0]
                else:
                    x = self.layer(x)
                return self.head(x.mean(1))

        torch.manual_seed(0)
        model = Net().double()
        x, y = torch.randn(7, 5, 4).double(), torch.randint(3, (7,))
        task = Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=3)
        with Hessian(task) as h:
            v = torch.randn(h.shape[0], generator=torch.Generator().manual_seed(1)).double()
            product = h @ v
            # Oracle: a central difference of gradients; with steps of 1e-5 its own error is about 1e-9.
            gradients = []
            for step in (1e-5, -1e-5):
                parts = [p.view_as(q) for p, q in zip(v.split([q.numel() for q in h.objective.parameters]),
                                                      h.objective.parameters, strict=True)]  # fmt: skip
                h.objective.move([parts], [step])
                gradients.append(torch.cat([g.reshape(-1) for g in h.objective.gradient()]))
            h.objective.reset()
        assert close((gradients[0] - gradients[1]) / 2e-5, product, 1e-6)

    def test_a_recurrent_net_moves_with_its_weights(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = nn.LSTM(4, 3, batch_first=True)

            def forward(self, x):
                return self.lstm(x)[0][:, -1]

        torch.manual_seed(0)
        model, x, y = Net().double(), torch.randn(6, 5, 4).double(), torch.randint(3, (6,))
        task = Task(model, nn.CrossEntropyLoss(), (x, y))
        from landscape import Objective

        with Objective(task) as objective:
            at_center = objective.evaluate().loss
            objective.move([[torch.ones_like(p) for p in objective.parameters]], [0.1])
            moved = objective.evaluate().loss
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1)
        assert moved == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)
        assert moved != at_center

    def test_a_dict_batch(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(5, 3)

            def forward(self, features, labels=None):
                return {"logits": self.lin(features), "labels": labels}

        torch.manual_seed(0)
        model, (x, y) = Net().double(), data()
        batches = [{"features": a, "labels": b} for a, b in cut(x, y, 9, 14)]
        task = Task(model, lambda out, batch: F.cross_entropy(out["logits"], batch["labels"]), batches)
        expected = dense(lambda f: F.cross_entropy(f(features=x)["logits"], y), model)
        assert close(matrix(Hessian(task)), expected)

    def test_a_model_that_computes_its_own_loss(self):
        model, (x, y) = mlp(), data()
        task = Task(model, batch_loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), train=cut(x, y, 9, 14))
        assert close(matrix(Hessian(task)), dense(lambda f: F.cross_entropy(f(x), y), model))

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_activation_checkpointing(self, reentrant):
        from torch.utils.checkpoint import checkpoint

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 3)

            def forward(self, x):
                return self.b(checkpoint(lambda t: torch.tanh(self.a(t)), x, use_reentrant=reentrant))

        torch.manual_seed(0)
        model, (x, y) = Net().double(), data()
        x.requires_grad_(reentrant)
        expected = dense(lambda f: F.cross_entropy(model.b(torch.tanh(model.a(x))) if f is None else f(x), y), model) \
            if not reentrant else None  # fmt: skip
        got = matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (x.detach(), y))))
        if expected is None:
            plain = nn.Sequential(model.a, nn.Tanh(), model.b)
            expected = dense(lambda f: F.cross_entropy(f(x.detach()), y), plain)
        assert close(got, expected)

    def test_a_compiled_model_is_measured_by_its_original(self):
        model, (x, y) = mlp(), data()
        compiled = torch.compile(model, backend="eager")
        expected = dense(lambda f: F.cross_entropy(f(x), y), model)
        assert close(matrix(Hessian(Task(compiled, nn.CrossEntropyLoss(), (x, y)))), expected)

    def test_a_gradient_hook_of_the_user_stays_out(self):
        model, (x, y) = mlp(), data()
        expected = dense(lambda f: F.cross_entropy(f(x), y), model)
        calls = []
        handle = model[0].weight.register_hook(lambda g: calls.append(1) or g * 0)
        assert close(matrix(Hessian(Task(model, nn.CrossEntropyLoss(), (x, y)))), expected)
        assert not calls
        F.cross_entropy(model(x), y).backward()
        assert calls
        handle.remove()


class TestBlocksOfParameters:
    def test_a_prefix_selects_the_diagonal_block(self):
        model, (x, y) = mlp(), data()
        whole = dense(lambda f: F.cross_entropy(f(x), y), model)
        block = Hessian(Task(model, nn.CrossEntropyLoss(), (x, y)), parameters="2")
        assert close(matrix(block), whole[36:, 36:])

    def test_an_unknown_name_is_said_with_those_there_are(self):
        with pytest.raises(MeasurementError, match="'7'; there are 0, 2"):
            Hessian(Task(mlp(), nn.CrossEntropyLoss(), data()), parameters="7")


class TestGaussNewton:
    def test_cross_entropy_is_the_jacobian_formula(self):
        model, (x, y) = mlp(), data()
        names = [n for n, _ in model.named_parameters()]
        jacobians = torch.func.jacrev(lambda ps: torch.func.functional_call(model, ps, (x,)))(
            dict(model.named_parameters())
        )
        j = torch.cat([jacobians[n].detach().reshape(23, 3, -1) for n in names], dim=2)
        p = model(x).detach().softmax(1)
        h = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        expected = torch.einsum("nci,ncd,ndj->ij", j, h, j) / 23
        assert close(matrix(GaussNewton(Task(model, nn.CrossEntropyLoss(), cut(x, y, 3, 4, 16)))), expected)

    def test_equals_the_hessian_of_a_linear_model(self):
        torch.manual_seed(0)
        model, (x, y) = nn.Linear(5, 3).double(), data()
        task = Task(model, nn.CrossEntropyLoss(), cut(x, y, 9, 14))
        assert close(matrix(GaussNewton(task)), matrix(Hessian(task)))

    def test_refuses_a_task_without_outputs(self):
        task = Task(mlp(), batch_loss=lambda m, b: F.cross_entropy(m(b[0]), b[1]), train=data())
        with pytest.raises(MeasurementError, match="need the model's outputs"):
            matrix(GaussNewton(task))


class TestClosedForms:
    def test_softmax_regression_at_zero(self):
        """H = (I - 11^T/K)/K (x) X^T X/n: lambda_max(X^T X/n)/K, with multiplicity K-1."""
        x, y = data(classes=4)
        model = nn.Linear(5, 4, bias=False).double()
        nn.init.zeros_(model.weight)
        values = torch.linalg.eigvalsh(matrix(Hessian(Task(model, nn.CrossEntropyLoss(), cut(x, y, 9, 14))))).flip(0)
        top = torch.linalg.eigvalsh(x.T @ x / 23).max() / 4
        assert torch.allclose(values[:3], top.expand(3), rtol=1e-10)
        assert values[3] < top * 0.99

    def test_linear_regression(self):
        x, _ = data()
        model = nn.Linear(5, 1, bias=False).double()
        task = Task(model, nn.MSELoss(), cut(x, torch.zeros(23, 1).double(), 9, 14))
        assert close(matrix(Hessian(task)), 2 * x.T @ x / 23)

    def test_product_of_two_numbers(self):
        """L = (ab-1)^2/2 on ab = 1: lambda_max = a^2 + b^2."""

        class Product(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Parameter(torch.tensor(4.0)), nn.Parameter(torch.tensor(0.25))

            def forward(self, x):
                return self.a * self.b * x

        task = Task(Product().double(), lambda o, t: ((o - t) ** 2 / 2).mean(), (torch.ones(3, 1), torch.ones(3, 1)))
        assert torch.linalg.eigvalsh(matrix(Hessian(task))).max().item() == pytest.approx(16 + 1 / 16, rel=1e-12)

    def test_rosenbrock_at_its_minimum(self):
        class Rosenbrock(nn.Module):
            def __init__(self):
                super().__init__()
                self.p = nn.Parameter(torch.ones(2))

            def forward(self, x):
                return ((1 - self.p[0]) ** 2 + 100 * (self.p[1] - self.p[0] ** 2) ** 2) * x

        task = Task(Rosenbrock().double(), lambda o, t: o.mean(), (torch.ones(2), torch.ones(2)))
        values = torch.linalg.eigvalsh(matrix(Hessian(task)))
        assert values.tolist() == pytest.approx([0.39936, 1001.60064], abs=5e-6)

    def test_a_loss_that_is_linear_in_the_weights_has_none(self):
        task = Task(nn.Linear(5, 1).double(), lambda o, t: o.mean(), (data()[0], torch.zeros(23, 1)))
        assert not matrix(Hessian(task)).any()


class TestSecondOpinion:
    # PyHessian keeps .grad with its graph (backward(create_graph=True)), of which torch warns.
    @pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
    def test_pyhessian_agrees_on_products(self):
        pyhessian = pytest.importorskip("pyhessian")
        model, (x, y) = mlp(), data(22)
        other = pyhessian.hessian(model.eval(), nn.CrossEntropyLoss(), dataloader=cut(x, y, 11, 11), cuda=False)
        g = torch.Generator().manual_seed(3)
        parts = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in model.parameters()]
        _, theirs = other.dataloader_hv_product(parts)
        ours = Hessian(Task(model, nn.CrossEntropyLoss(), cut(x, y, 11, 11))) @ torch.cat(
            [p.reshape(-1) for p in parts]
        )
        assert close(ours, torch.cat([t.reshape(-1) for t in theirs]))


class TestUse:
    def test_scipy_and_blocks_give_the_same(self):
        model, (x, y) = mlp(), data()
        with Hessian(Task(model, nn.CrossEntropyLoss(), cut(x, y, 9, 14)), strategy="keep") as h:
            v = torch.randn(h.shape[0], 3, generator=torch.Generator().manual_seed(0)).double()
            block = h @ v
            for k in range(3):
                assert torch.equal(block[:, k], h @ v[:, k])
            assert torch.equal(torch.as_tensor(h.to_scipy() @ v.numpy()), block)
            assert h.products == 9

    def test_outside_with_each_product_restores_the_model(self):
        model = mlp()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        h = Hessian(Task(model, nn.CrossEntropyLoss(), data(), dtype=torch.float32))
        h @ torch.ones(h.shape[0])
        assert model.training
        assert not h.objective.entered
        assert all(torch.equal(v, before[k]) and v.dtype == torch.float64 for k, v in model.state_dict().items())

    @pytest.mark.parametrize("v", [torch.ones(3), torch.ones(2, 2, 2), torch.tensor(1.0)])
    def test_a_vector_that_does_not_fit(self, v):
        with pytest.raises(MeasurementError, match="expected \\(57,\\)"):
            Hessian(Task(mlp(), nn.CrossEntropyLoss(), data())) @ v

    def test_an_operation_without_second_derivative_is_named(self):
        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.sin()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(ctx, g):
                return g * ctx.saved_tensors[0].cos()

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(5, 3)

            def forward(self, x):
                return Once.apply(self.lin(x))

        h = Hessian(Task(Net().double(), nn.CrossEntropyLoss(), data()))
        for operator in (h, h, h.restricted("lin.bias")):  # a second try, and a block, are no way around it
            with pytest.raises(ObjectiveError, match="operation Once is differentiable only once"):
                matrix(operator)

    def test_a_custom_backward_is_taken_at_its_word_and_the_result_says_so(self):
        class Sine(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.sin()

            @staticmethod
            def backward(ctx, g):
                return g * ctx.saved_tensors[0].detach().cos()

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.lin = nn.Conv1d(1, 2, 3), nn.Linear(6, 3)

            def forward(self, x):
                return Sine.apply(self.lin(torch.tanh(self.conv(x[:, None])).flatten(1)))

        found = eigenpairs(Hessian(Task(Net().double(), nn.CrossEntropyLoss(), data())), 1)
        # Its numbers are wrong, symmetric, and nothing else shows it; our own convolutions are no custom functions.
        assert found.status == "complete"
        assert [note for note in found.notes if note.startswith("the second derivative of Sine ")]

    def test_a_detached_loss_is_said(self):
        with pytest.raises(LandscapeError, match="doesn't depend on the parameters"):
            matrix(Hessian(Task(mlp(), lambda o, t: F.cross_entropy(o.detach(), t), data())))


MEASURES = {
    "eigenpairs": lambda A: eigenpairs(A, 2),
    "arpack": lambda A: eigenpairs(A, 2, method="arpack"),
    "trace": lambda A: trace(A, draws=4),
    "frobenius": lambda A: frobenius_norm(A, draws=4),
    "diagonal": lambda A: diagonal(A, draws=4),
    "density": lambda A: spectral_density(A, steps=4, draws=2),
    "layers": layer_curvature,
}


@pytest.mark.parametrize("name", MEASURES)
def test_every_result_says_how_its_products_were_made_and_in_which_precision(name):
    task = Task(mlp().half(), nn.CrossEntropyLoss(), cut(*data(), 9, 14))
    found = MEASURES[name](Hessian(task))
    assert found.settings["strategy"].startswith(("graphs of all 2 batches kept", "graphs of the one batch (joined"))
    assert found.notes[0] == "float16 weights are measured in float32"
    assert found.cost.products == found.products > 0
    assert found.cost.seconds > 0


@pytest.mark.parametrize("name", MEASURES)
def test_the_layer_of_a_second_derivative_that_does_not_exist_is_named(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.scale = nn.Linear(5, 3), nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.lin(x) + self.scale.abs() ** 1.5

    with pytest.raises(MeasurementError, match=r"product 1 is not finite .*, in scale\).*do not exist"):
        MEASURES[name](Hessian(Task(Net().double(), nn.CrossEntropyLoss(), data())))
