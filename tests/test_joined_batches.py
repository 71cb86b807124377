"""Small batches made one: the same product, faster, or the batches as they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import Fisher, GaussNewton, Hessian, Objective, Task
from landscape.curvature import joining
from landscape.curvature.graphs import HessianGraph

SIZES = (4, 4, 1, 5, 3)
# The same sums in another order, in float64.
EXACT = 1e-11


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()


def samples(n: int = sum(SIZES)) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, generator=g).double(), torch.randint(4, (n,), generator=g)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = samples()
    return list(zip(x.split(SIZES), y.split(SIZES), strict=True))


def task(**settings: Any) -> Task:
    return Task(model(), F.cross_entropy, batches(), **settings)


def ignoring() -> Task:
    x, y = samples()
    y[7:9] = -100  # the third batch counts nothing
    return Task(model(), nn.CrossEntropyLoss(), list(zip(x.split(SIZES), y.split(SIZES), strict=True)))


def named() -> Task:
    rows = [{"x": x, "y": y, "name": ["a"] * len(x)} for x, y in batches()]
    return Task(model(), F.cross_entropy, rows, forward=lambda m, batch: (m(batch.pop("x")), batch.pop("y")))


def own_loss() -> Task:
    return Task(model(), batch_loss=lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]), train=batches())


class Times:
    """Stands in for the clock: a call takes 1 for each graph, and .01 for each sample."""

    def __init__(self, call: float = 1.0, sample: float = 0.01) -> None:
        self.call, self.sample = call, sample
        self.trials = 0

    def __call__(self, product: Callable[[], Any], device: torch.device, enough: float) -> tuple[Any, float]:
        self.trials += 1
        multiplied: list[float] = []
        plain = joining.by_columns

        def counting(multiply: Any, v: Any) -> Any:
            multiplied.append(multiply.__self__.weight)
            return plain(multiply, v)

        joining.by_columns = counting
        try:
            found = product()
        finally:
            joining.by_columns = plain
        return found, 1e-3 * (self.call * len(multiplied) + self.sample * sum(multiplied))


@pytest.fixture
def calls_take_the_time(monkeypatch: pytest.MonkeyPatch) -> Times:
    times = Times()
    monkeypatch.setattr(joining, "timed", times)
    return times


def vector(n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(2)).double()


OPERATORS = {
    "hessian": Hessian,
    "gauss-newton": GaussNewton,
    "type-2": Fisher,
    "empirical": lambda *a, **k: Fisher(*a, kind="empirical", **k),
}


class TestTheProductStaysWhatItIs:
    @pytest.mark.parametrize("kind", OPERATORS)
    @pytest.mark.parametrize("make", [task, ignoring, named])
    def test_for_every_operator(self, make: Callable[[], Task], kind: str, calls_take_the_time: Times) -> None:
        with OPERATORS[kind](make(), strategy="keep") as plain, OPERATORS[kind](make()) as joined:
            v = vector(plain.shape[0])
            torch.testing.assert_close(joined @ v, plain @ v, rtol=EXACT, atol=EXACT)
            assert joined.how.startswith("graphs of the one batch (joined from 5) kept")
            assert plain.how.startswith("graphs of all 5 batches kept")
            V = torch.stack([v, 2 * v - 1], dim=1)
            torch.testing.assert_close(joined @ V, plain @ V, rtol=EXACT, atol=EXACT)

    def test_for_a_loss_of_a_whole_batch(self, calls_take_the_time: Times) -> None:
        with Hessian(own_loss(), strategy="keep") as plain, Hessian(own_loss()) as joined:
            v = vector(plain.shape[0])
            torch.testing.assert_close(joined @ v, plain @ v, rtol=EXACT, atol=EXACT)
            assert "joined from 5" in joined.how

    def test_when_the_weights_move(self, calls_take_the_time: Times) -> None:
        with Objective(task()) as objective, Hessian(objective) as joined:
            v = vector(joined.shape[0])
            here = joined @ v
            step = [0.1 * torch.ones_like(p) for p in objective.parameters]
            objective.move([step], [1.0])
            there = joined @ v
            assert "joined from 5" in joined.how
            torch.testing.assert_close(there, Hessian(objective, strategy="rebuild") @ v, rtol=EXACT, atol=EXACT)
            objective.reset()
            torch.testing.assert_close(joined @ v, here, rtol=0, atol=0)

    def test_in_groups_where_the_numbers_take_their_part(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Calls take a quarter as long as the 4 samples of a batch: 5 together leave 5% to them.
        monkeypatch.setattr(joining, "timed", Times(call=0.25, sample=0.25))
        x, y = samples(24)
        even = Task(model(), F.cross_entropy, (x, y), batch_size=4)
        with Hessian(even) as joined, Hessian(even, strategy="rebuild") as plain:
            v = vector(plain.shape[0])
            torch.testing.assert_close(joined @ v, plain @ v, rtol=EXACT, atol=EXACT)
            assert joined.how.startswith("graphs of all 2 batches (joined from 6) kept")


class TestTheObjective:
    def test_has_its_own_batches_between_products(self, calls_take_the_time: Times) -> None:
        with Objective(task()) as objective:
            largest, value, before = objective.largest, objective.evaluate().loss, objective.batch(2)
            with Hessian(objective) as joined:
                joined @ vector(joined.shape[0])
                assert "joined from 5" in joined.how
                assert (len(objective), objective.largest) == (len(SIZES), largest)
                assert objective.evaluate().loss == value
                assert all(torch.equal(a, b) for a, b in zip(objective.batch(2), before, strict=True))

    def test_has_them_after_an_error(self, monkeypatch: pytest.MonkeyPatch, calls_take_the_time: Times) -> None:
        with Objective(task()) as objective, Hessian(objective) as joined:
            joined @ vector(joined.shape[0])
            monkeypatch.setattr(HessianGraph, "product", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                joined @ vector(joined.shape[0])
            assert len(objective) == len(SIZES)

    def test_tries_once_for_a_draw(self, calls_take_the_time: Times) -> None:
        once = task()
        for _ in range(2):
            with Hessian(once) as joined:
                joined @ vector(joined.shape[0])
                assert "joined from 5" in joined.how
                tried = calls_take_the_time.trials
        assert tried == 4  # two batches and all of them, both ways

    def test_tries_anew_where_the_loss_was_changed_by_hand(self, calls_take_the_time: Times) -> None:
        def coupled(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(outputs, y) * (1.001 if len(y) > max(SIZES) else 1.0)

        once = task()
        with Hessian(once) as joined:
            v = vector(joined.shape[0])
            plain = joined @ v
            assert "joined from 5" in joined.how
        once.loss = coupled
        with Hessian(once) as apart:
            torch.testing.assert_close(apart @ v, plain, rtol=EXACT, atol=EXACT)
            assert apart.how.startswith("graphs of all 5 batches kept")

    def test_counts_what_the_trials_cost(self, calls_take_the_time: Times) -> None:
        with Hessian(task(), strategy="keep") as plain, Hessian(task()) as joined:
            v = vector(plain.shape[0])
            plain @ v
            joined @ v
            # Graphs: 5 batches, 2 and all of them together, and again as the one that is kept, with its size measured;
            # products: 2 batches both ways, and all of them.
            trials = 3 * (5 + 2 + 5) / 5 + 6 * (2 + 2 + 5 + 5) / 5
            assert joined.passes - plain.passes == pytest.approx(trials + 3 - 3 / 5 + 3 / 5)


class TestBatchesAreLeftAlone:
    @pytest.mark.parametrize("settings", [{"rng": "fixed"}, {"rebatch": False}])
    def test_where_the_task_says_so(self, settings: dict[str, Any], calls_take_the_time: Times) -> None:
        with Hessian(task(**settings)) as h:
            h @ vector(h.shape[0])
            assert h.how.startswith("graphs of all 5 batches kept")
        assert calls_take_the_time.trials == 0

    def test_where_statistics_are_recomputed_from_them(self, calls_take_the_time: Times) -> None:
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).double()
        x, y = samples()
        with Hessian(Task(net, F.cross_entropy, (x, y), batch_size=6, batchnorm="recompute")) as h:
            h @ vector(h.shape[0])
            assert h.how.startswith("graphs of all 3 batches kept")

    def test_where_labels_are_drawn_batch_by_batch(self, calls_take_the_time: Times) -> None:
        with Fisher(task(), kind="monte-carlo") as f:
            f @ vector(f.shape[0])
            assert f.how.startswith("graphs of all 5 batches kept")

    def test_where_samples_have_different_shapes(self, calls_take_the_time: Times) -> None:
        class Mean(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(3, 4).double()

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.head(x.mean(1))

        g = torch.Generator().manual_seed(1)
        padded = [(torch.randn(4, n, 3, generator=g).double(), torch.arange(4)) for n in (2, 5)]
        with Hessian(Task(Mean(), F.cross_entropy, padded)) as h:
            h @ vector(h.shape[0])
            assert h.how.startswith("graphs of all 2 batches kept")

    @pytest.mark.parametrize("without", [(0,), (1,), (2, 3), (4,)])
    def test_where_some_lack_what_others_hold(self, without: tuple[int, ...], calls_take_the_time: Times) -> None:
        def masked(m: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
            outputs = m(batch["x"])
            return (outputs if batch["mask"] is None else outputs * batch["mask"]), batch["y"]

        rows = [{"x": x, "y": y, "mask": None if i in without else 0 * x[:, :1]} for i, (x, y) in enumerate(batches())]
        some = Task(model(), F.cross_entropy, rows, forward=masked)
        with Objective(some) as objective:
            assert objective.join_batches(5) is None
            with Hessian(objective) as h, Hessian(objective, strategy="keep") as plain:
                v = vector(h.shape[0])
                torch.testing.assert_close(h @ v, plain @ v, rtol=EXACT, atol=EXACT)
                assert h.how.startswith("graphs of all 5 batches kept")

    def test_where_there_is_no_memory_for_both(
        self, monkeypatch: pytest.MonkeyPatch, calls_take_the_time: Times
    ) -> None:
        def full(*_: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

        monkeypatch.setattr("landscape.loaded.join", full)
        with Hessian(task()) as h:
            h @ vector(h.shape[0])
            assert h.how.startswith("graphs of all 5 batches kept")
            assert len(h.objective) == 5
            assert not h._products.notes

    def test_where_the_product_would_be_another(self, calls_take_the_time: Times) -> None:
        def of_large_batches(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            # No part of a batch shows this, so that entering the objective can't either.
            return F.cross_entropy(outputs, y) * (1.001 if len(y) > max(SIZES) else 1.0)

        with Hessian(Task(model(), of_large_batches, batches())) as h:
            v = vector(h.shape[0])
            with Hessian(task(), strategy="keep") as plain:
                torch.testing.assert_close(h @ v, plain @ v, rtol=EXACT, atol=EXACT)
            assert h.how.startswith("graphs of all 5 batches kept")
        assert calls_take_the_time.trials == 4

    def test_where_the_first_batches_curve_nothing_and_so_show_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # 5 batches of 4 together, as above; the first 20 samples count nothing, and others more in a larger batch.
        monkeypatch.setattr(joining, "timed", Times(call=0.25, sample=0.25))

        def of_large_batches(outputs: torch.Tensor, target: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
            y, share = target
            return (share * F.cross_entropy(outputs, y, reduction="none")).mean() * (1.001 if len(y) > 4 else 1.0)

        x, y = samples(60)
        data = {"x": x, "y": y, "share": (torch.arange(60) >= 20).double()}
        some = Task(
            model(), of_large_batches, data, batch_size=4, forward=lambda m, b: (m(b["x"]), (b["y"], b["share"]))
        )
        with Hessian(some) as h, Hessian(some, strategy="keep") as plain:
            v = vector(h.shape[0])
            torch.testing.assert_close(h @ v, plain @ v, rtol=EXACT, atol=EXACT)
            assert h.how.startswith("graphs of all 15 batches kept")

    def test_where_nothing_is_gained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = Times(call=0.1, sample=0.25)
        monkeypatch.setattr(joining, "timed", times)
        with Hessian(task()) as h:
            h @ vector(h.shape[0])
            assert h.how.startswith("graphs of all 5 batches kept")
            before = h.passes
            h @ vector(h.shape[0])
            assert h.passes - before == 6  # the graphs are still there
        assert times.trials == 2

    def test_where_few_batches_take_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        times = Times(call=1e3)
        monkeypatch.setattr(joining, "timed", times)
        with Hessian(task()) as h:
            h @ vector(h.shape[0])
            assert h.how.startswith("graphs of all 5 batches kept")
        assert times.trials == 1

    def test_where_the_graphs_would_not_fit_twice(self, calls_take_the_time: Times) -> None:
        with Hessian(task(), strategy="keep") as plain:
            plain @ vector(plain.shape[0])
            size = plain.held[0]
        with Hessian(task(), memory=int(7.5 * size)) as h:
            h @ vector(h.shape[0])
            assert h.how.startswith("graphs of all 5 batches kept")
        assert calls_take_the_time.trials == 0

    def test_when_memory_runs_out(self, monkeypatch: pytest.MonkeyPatch, calls_take_the_time: Times) -> None:
        once = task()
        with Hessian(once) as h:
            expected = h @ vector(h.shape[0])

        def starved(self: HessianGraph, v: Any, *, last: bool = False) -> Any:
            if self.weight > max(SIZES):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return plain(self, v, last=last)

        plain = HessianGraph.product
        with Objective(once) as objective, Hessian(objective) as h:
            h @ vector(h.shape[0])
            monkeypatch.setattr(HessianGraph, "product", starved)
            torch.testing.assert_close(h @ vector(h.shape[0]), expected, rtol=EXACT, atol=EXACT)
            assert h.notes[-1] == "out of memory with the graphs kept: they are rebuilt at each product"


def test_many_small_batches_are_joined_by_the_clock() -> None:
    x, y = samples(256)
    with Hessian(Task(model(), F.cross_entropy, (x, y), batch_size=2)) as h:
        h @ vector(h.shape[0])
        assert "(joined from 128)" in h.how
