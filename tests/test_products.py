"""How Hessian products are made: every strategy against finite differences of torch's own gradients in float64."""

from __future__ import annotations

import os
import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import GaussNewton, Hessian, Objective, Task, eigenpairs
from landscape.curvature import products
from landscape.curvature.graphs import HessianGraph
from landscape.curvature.products import graph_bytes
from landscape.curvature.rewritten import cheap_second_derivatives
from landscape.curvature.trials import findings
from landscape.errors import MeasurementError

# Central differences with a step of 1e-5: a truncation error near 1e-10 and a rounding error near 1e-11, relative to
# third derivatives of order one and less.
DIFFERENCES = 1e-7
# The same sums in another order.
EXACT = 1e-10


def images(n: int = 12, channels: int = 3, size: int = 8, dims: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return torch.randn(n, channels, *[size] * dims, generator=g).double(), torch.randint(4, (n,), generator=g)


def settled(model: nn.Module) -> nn.Module:
    """Return the model in float64 with running statistics and scales that are not those of a new one."""
    g = torch.Generator().manual_seed(5)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.copy_(0.3 * torch.randn(m.num_features, generator=g))
            m.running_var.copy_(0.5 + torch.rand(m.num_features, generator=g))
            if m.affine:
                nn.init.normal_(m.weight, 1.0, 0.3, generator=g)
                nn.init.normal_(m.bias, 0.0, 0.3, generator=g)
    return model.double()


class Residual(nn.Module):
    """Convolutions with and without BatchNorm behind them, used twice, written in place, with all geometries."""

    def __init__(self, written: bool = True) -> None:
        super().__init__()
        self.written = written
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.strided, self.second = nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2, bias=False), nn.BatchNorm2d(6)
        self.grouped, self.plain = nn.Conv2d(6, 6, 3, padding="same", groups=3), nn.BatchNorm2d(6, affine=False)
        self.reflected = nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect")
        self.last = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.softplus(self.norm(self.stem(x)))
        x = self.second(self.strided(x))
        raw = self.grouped(x)
        x = x + torch.tanh(self.plain(raw)) + 0.1 * raw  # the convolution's own output is used as well
        y = self.reflected(x)
        y = y.mul_(2.0) if self.written else y.mul(2.0)  # no longer what the convolution gave
        return self.head(self.last(y).tanh().mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return self.out(F.gelu(F.scaled_dot_product_attention(q, k, v))).mean(1)


def convolutional(dims: int) -> nn.Module:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
    return nn.Sequential(
        conv(3, 4, 3, stride=2), norm(4), nn.SiLU(inplace=True), conv(4, 4, 2), norm(4), nn.Flatten(), nn.LazyLinear(4)
    )


def residual(written: bool = True) -> Task:
    torch.manual_seed(0)
    x, y = images()
    return Task(settled(Residual(written)), F.cross_entropy, [(x[:5], y[:5]), (x[5:], y[5:])])


def transformer() -> Task:
    torch.manual_seed(0)
    x = torch.randn(10, 5, 6, generator=torch.Generator().manual_seed(1)).double()
    return Task(Attention().double(), F.cross_entropy, (x, torch.arange(10) % 4), batch_size=4)


def in_batches() -> Task:
    """BatchNorm with the statistics of each batch: its derivative goes through them."""
    torch.manual_seed(0)
    x, y = images()
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 4)))
    return Task(model, F.cross_entropy, [(x[:5], y[:5]), (x[5:], y[5:])], batchnorm="batch", rebatch=False)


TASKS = {
    "residual": residual,
    "residual, nothing written": lambda: residual(False),
    "transformer": transformer,
    "batch statistics": in_batches,
}


def differences(task: Task, v: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """Return H v by central differences of gradients, which no code under test has a part in."""
    with Objective(task) as objective:
        parts = [
            p.view_as(c) for p, c in zip(v.split([c.numel() for c in objective.center]), objective.center, strict=True)
        ]
        found = []
        for sign in (1, -1):
            objective.move([parts], [sign * step])
            found.append(torch.cat([g.reshape(-1) for g in objective.gradient()]))
    return (found[0] - found[1]) / (2 * step)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


def vector(n: int, k: int = 0) -> torch.Tensor:
    return torch.randn(n, *([k] if k else []), generator=torch.Generator().manual_seed(7)).double()


class TestEveryStrategyIsRight:
    @pytest.mark.parametrize("strategy", ["auto", "keep", "rebuild", "forward", "linearize"])
    @pytest.mark.parametrize("name", TASKS)
    def test_against_finite_differences(self, name, strategy):
        if (name, strategy) == ("residual", "linearize"):
            pytest.skip("torch.func.linearize takes no writing in place: said, see TestBadInput")
        task = TASKS[name]()
        with Hessian(task, strategy=strategy) as h:
            v = vector(h.shape[0])
            first, second = h @ v, h @ v
        assert close(first, differences(task, v), DIFFERENCES)
        assert close(second, first, EXACT)

    @pytest.mark.slow
    def test_compiled(self):
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            pytest.skip("torch.compile needs a C++ compiler")
        task = transformer()  # compiling takes a minute; the nets with convolutions agree as well
        # What torch's compiler warns of itself about is none of ours.
        with warnings.catch_warnings(), Hessian(task, strategy="compile") as h:
            warnings.simplefilter("ignore")
            v = vector(h.shape[0])
            assert close(h @ v, differences(task, v), DIFFERENCES)
            assert h.how == "compiled, nothing kept"

    @pytest.mark.parametrize("dims", [1, 2, 3])
    def test_convolutions_of_every_dimension(self, dims):
        torch.manual_seed(0)
        x, y = images(size=7, dims=dims)
        model = convolutional(dims).double()
        model(x)
        task = Task(settled(model), F.cross_entropy, (x, y))
        v = vector(Hessian(task).shape[0])
        assert close(Hessian(task) @ v, differences(task, v), DIFFERENCES)

    def test_a_vectorized_block_is_its_columns(self, monkeypatch):
        monkeypatch.setattr(products, "GAIN", 0.0)  # whatever the clock says
        for task in (residual(), transformer()):
            with Hessian(task, strategy="keep") as kept, Hessian(task) as h:
                V = vector(h.shape[0], 19)
                assert close(h @ V, kept @ V, EXACT)
                assert "vectorized" in h.how
                assert "vectorized" not in kept.how

    def test_a_vectorized_block_that_disagrees_is_not_taken(self, monkeypatch):
        monkeypatch.setattr(products, "GAIN", 0.0)
        honest = HessianGraph.block
        monkeypatch.setattr(HessianGraph, "block", lambda self, V: [2 * t for t in honest(self, V)])
        with Hessian(transformer()) as h, Hessian(transformer(), strategy="keep") as kept:
            V = vector(h.shape[0], 3)
            assert close(h @ V, kept @ V, EXACT)
            assert "one by one" in h.how


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave batches as they are, whatever the clock says."""
    monkeypatch.setattr(Objective, "join_batches", lambda self, count: None)


@pytest.mark.usefixtures("apart")
class TestWhatIsKept:
    def test_graphs_are_built_once_while_entered(self):
        with Hessian(residual()) as h:
            h @ vector(h.shape[0])
            before = h.passes
            h @ vector(h.shape[0])
            assert h.passes - before == 6
            assert h.how.startswith("graphs of all 2 batches kept")

    def test_outside_with_nothing_is_kept(self):
        h = Hessian(residual())
        v = vector(h.shape[0])
        assert close(h @ v, h @ v, EXACT)
        assert h.how == "auto, decided at the first product inside `with`"

    def test_a_budget_for_one_batch_of_three(self, monkeypatch):
        monkeypatch.setattr(products, "GAIN", 1e9)  # forward mode never wins
        task = transformer()
        with Hessian(task, strategy="keep") as kept:
            v = vector(kept.shape[0])
            expected = kept @ v
            size = kept._products._bytes
        with Hessian(task, memory=int(1.5 * size)) as h:
            assert close(h @ v, expected, EXACT)
            assert h.how.startswith("graphs of 1 of 3 batches kept")
            assert "the budget is" in h.how
            before = h.passes
            assert close(h @ v, expected, EXACT)
            assert h.passes - before == pytest.approx(6 + 2)
        with Hessian(task, memory=0) as h:
            assert close(h @ v, expected, EXACT)
            assert h.how.startswith("graphs rebuilt at each product")

    def test_forward_mode_for_what_does_not_fit_where_it_wins(self, monkeypatch):
        monkeypatch.setattr(products, "GAIN", 0.0)
        task = transformer()
        with Hessian(task, memory=0) as h, Hessian(task, strategy="keep") as kept:
            v = vector(h.shape[0])
            assert close(h @ v, kept @ v, EXACT)
            assert h.how.startswith("graphs forward over reverse mode")

    def test_weights_that_move_drop_the_graphs(self):
        task = transformer()
        with Objective(task) as objective, Hessian(objective) as h:
            v = vector(h.shape[0])
            here = h @ v
            step = [0.1 * torch.ones_like(p) for p in objective.parameters]
            objective.move([step], [1.0])
            there = h @ v
            objective.reset()
            assert close(h @ v, here, EXACT)
            assert not close(there, here, 1e-3)
            objective.move([step], [1.0])
            assert close(Hessian(objective) @ v, there, EXACT)

    def test_the_size_of_a_graph_is_that_of_what_it_holds(self):
        w = torch.randn(50, 40, dtype=torch.float64, requires_grad=True)
        x = torch.randn(30, 50, dtype=torch.float64)
        # x for the derivative in w, and the output of exp for its own: 8 bytes a number; w is a parameter.
        assert graph_bytes(lambda: (x @ w).exp().sum(), [w]) == 8 * (30 * 50 + 30 * 40)

    def test_a_batch_that_is_a_view_of_all_data_counts_as_itself(self):
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(64, 5, generator=g), torch.randint(3, (64,), generator=g)
        net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
        apart = [(x[a : a + 8].clone(), y[a : a + 8].clone()) for a in range(0, 64, 8)]
        sizes = []
        for data in ((x, y), apart):
            with Hessian(Task(net, nn.CrossEntropyLoss(), data, batch_size=8), strategy="keep") as h:
                h @ torch.ones(h.shape[0])
                sizes.append(h.held[0])
        assert sizes[0] == sizes[1] < x.nbytes

    def test_the_models_functions_are_put_back(self):
        before = (F.conv2d, F.batch_norm)
        with cheap_second_derivatives(), cheap_second_derivatives():
            assert F.conv2d is not before[0]
        assert (F.conv2d, F.batch_norm) == before
        with pytest.raises(KeyError), cheap_second_derivatives():
            raise KeyError
        assert (F.conv2d, F.batch_norm) == before


@pytest.mark.usefixtures("apart")
class TestOutOfMemory:
    def failing(self, monkeypatch, times: int, when) -> list[int]:
        """Let the first `times` double derivatives for which `when(graph)` run out of memory."""
        left, honest = [times], HessianGraph.product

        def product(self, v, *, last=False):
            if left[0] and when(last):
                left[0] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return honest(self, v, last=last)

        monkeypatch.setattr(HessianGraph, "product", product)
        return left

    def test_kept_graphs_are_rebuilt_instead(self, monkeypatch):
        task = residual()
        v = vector(Hessian(task).shape[0])
        expected = Hessian(task) @ v
        left = self.failing(monkeypatch, 1, lambda last: not last)
        with Hessian(task) as h:
            assert close(h @ v, expected, EXACT)
            assert left == [0]
            assert h.notes == ("out of memory with the graphs kept: they are rebuilt at each product",)
            assert eigenpairs(h, 1).notes == h.notes

    def test_then_the_batches_are_halved(self, monkeypatch):
        task = residual()
        v = vector(Hessian(task).shape[0])
        expected = Hessian(task) @ v
        self.failing(monkeypatch, 1, lambda last: True)
        with Hessian(task, strategy="rebuild") as h:
            assert close(h @ v, expected, EXACT)
            assert h.notes == ("out of memory on a whole batch: the batches are cut in two",)
            assert len(h.objective) == 4

    def test_both_in_one_product_and_then_a_line(self, monkeypatch):
        task = residual()
        v = vector(Hessian(task).shape[0])
        expected = Hessian(task) @ v
        self.failing(monkeypatch, 3, lambda last: True)  # the first one ends the trial of another layout
        with Hessian(task) as h:
            assert close(h @ v, expected, EXACT)
            assert [n.split(":")[0] for n in h.notes] == [
                "out of memory with the graphs kept",
                "out of memory on a whole batch",
            ]
        monkeypatch.undo()
        self.failing(monkeypatch, 99, lambda last: True)
        with Hessian(task) as h, pytest.raises(MeasurementError, match="out of memory on half a batch"):
            h @ v

    def test_and_where_they_may_not_be_it_is_said(self, monkeypatch):
        self.failing(monkeypatch, 1, lambda last: True)
        with Hessian(in_batches(), strategy="rebuild") as h, pytest.raises(MeasurementError, match="smaller batches"):
            h @ vector(h.shape[0])


class TestBadInput:
    def test_an_unknown_strategy(self):
        with pytest.raises(MeasurementError, match="choose from auto, keep, rebuild, forward, linearize, compile"):
            Hessian(residual(), strategy="fast")

    def test_a_negative_budget(self):
        with pytest.raises(MeasurementError, match="memory=-1"):
            Hessian(residual(), memory=-1)

    @pytest.mark.parametrize("strategy", ["forward", "linearize", "compile"])
    def test_what_only_the_hessian_has(self, strategy):
        message = "has no (forward-mode|compiled) product: use strategy 'auto'"
        with GaussNewton(residual(), strategy=strategy) as g, pytest.raises(MeasurementError, match=message):
            g @ vector(g.shape[0])

    def test_a_model_that_a_strategy_cannot_take(self):
        message = "strategy='linearize' fails on this model .*in-place.*; use strategy='auto'"
        with Hessian(residual(), strategy="linearize") as h, pytest.raises(MeasurementError, match=message):
            h @ vector(h.shape[0])

    def test_a_product_that_is_not_finite_names_the_parameters(self):
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()

        def loss(out, y):
            # Finite, with a finite gradient, and a second derivative of 0 * inf in the last layer's output.
            return (out.clamp_min(0) ** 1.5).sum() * 0 + ((out - out.detach()) ** 2).pow(0.75).mean()

        with pytest.raises(MeasurementError, match=r"1\.weight|0\.weight"):
            eigenpairs(Hessian(Task(model, loss, (torch.ones(4, 3).double(), torch.ones(4, 1).double()))), 1)


# ------------------------------------------------------------------------------------------- channels last


def pictures(flatten: nn.Module) -> Task:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 4, 3, stride=2), nn.Tanh()]
    model = nn.Sequential(*layers, flatten, nn.Linear(4 * 9, 3)).double().eval()
    x = torch.randn(11, 3, 8, 8, dtype=torch.float64)
    return Task(model, nn.functional.cross_entropy, (x, torch.randint(0, 3, (11,))), batch_size=4)


class Viewed(nn.Module):
    """Flattens by a view, which a channels-last tensor refuses."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(len(x), -1)


def always_faster(call, device, times=2):
    """Take every trial's second way for the faster one."""
    always_faster.count += 1
    return call(), 1.0 / always_faster.count**2


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_channels_last_gives_the_same_product(
    kind: type[Hessian | GaussNewton], monkeypatch: pytest.MonkeyPatch
) -> None:
    always_faster.count = 0
    monkeypatch.setattr(products, "timed", always_faster)
    with Objective(pictures(nn.Flatten())) as objective, kind(objective) as fast:
        v = torch.randn(fast.shape[0], dtype=torch.float64)
        found = fast @ v
        assert "convolutions channels last" in fast.how
        plain = kind(objective, strategy="rebuild")
        torch.testing.assert_close(found, plain @ v, rtol=1e-10, atol=1e-12)
        assert "channels last" not in plain.how
        tried = always_faster.count
        with kind(objective) as again:  # the trial is made once for each draw
            torch.testing.assert_close(again @ v, found, rtol=0, atol=0)
        assert always_faster.count == tried
    assert all(p.is_contiguous() for p in objective.model.parameters())


def test_a_model_that_views_memory_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    always_faster.count = 0
    monkeypatch.setattr(products, "timed", always_faster)
    with Objective(pictures(Viewed())) as objective, Hessian(objective) as h:
        v = torch.randn(h.shape[0], dtype=torch.float64)
        found = h @ v
        assert "channels last" not in h.how
        torch.testing.assert_close(found, Hessian(objective, strategy="rebuild") @ v)
        # And where the first batch didn't show it: the product is made the plain way, once and for all.
        findings(objective)[products.LAST] = True
        with Hessian(objective) as late:
            torch.testing.assert_close(late @ v, found)
            assert "channels last" not in late.how
        assert not findings(objective)[products.LAST]
