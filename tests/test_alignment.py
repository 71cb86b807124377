"""Alignment: what was only permuted is found back, groups against known ones, brute force, what has an order stays."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from untouched import State as Kept

import landscape
from landscape.alignment.activations import correlations
from landscape.alignment.axes import Atom, Product, Sum, atoms, cut, order, places, resolve, unify
from landscape.alignment.check import generators, permuted
from landscape.alignment.matching import Weights, match
from landscape.alignment.permuting import align
from landscape.alignment.rules import RULES, elementwise
from landscape.alignment.units import Units, find_units
from landscape.checkpoint import read_checkpoint
from landscape.errors import CheckpointError, MeasurementError
from landscape.objective import Objective
from landscape.results import rebuild
from landscape.surface.path import interpolate
from landscape.tasks import Task

#: Losses in float64 whose sums run in another order.
ROUNDING = 1e-12


class Residual(nn.Module):
    """A residual block with BatchNorm, with a projection where the widths differ."""

    def __init__(self, a: int, b: int, stride: int = 1) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.c2, self.b2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.short = nn.Conv2d(a, b, 1, stride) if (a, stride) != (b, 1) else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.short(x))


def residual() -> nn.Module:
    body = [nn.Conv2d(1, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU(), Residual(6, 6), Residual(6, 8, 2), Residual(8, 8)]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(8 * 16, 10))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 10))


def depthwise() -> nn.Module:
    deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    layers = [nn.Conv2d(1, 8, 1), deep, nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 12, 1, groups=2), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


class Dense(nn.Module):
    """Concatenated channels, pooled and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.c, self.out = nn.Conv2d(11, 7, 3, padding=1), nn.Linear(7 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        y = torch.cat([x, F.relu(self.b(x))], 1)
        return self.out(F.max_pool2d(F.relu(self.c(y)), 2).flatten(1))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(8, 12), nn.Parameter(torch.randn(20, 12))
        self.layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0, norm_first=True)
        self.out = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(self.embed(x.squeeze(1)) + self.positions[:8]).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.out = kind(8, 7, batch_first=True), nn.Linear(7, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cell(x.squeeze(1))[0][:, -1])


#: For each model the sizes of its groups of units.
MODELS = {
    "mlp": (mlp, [12, 9]),
    "residual": (residual, [6, 6, 8, 8, 8]),
    # Two groups of GroupNorm with four channels in each; two groups of a convolution share the order of their six.
    "depthwise": (depthwise, [2, 4, 6]),
    "dense": (Dense, [6, 5, 7]),
    # The stream, heads, channels within all heads alike, and the block's MLP.
    "transformer": (Transformer, [12, 3, 4, 20]),
    "lstm": (lambda: Recurrent(nn.LSTM), [7]),
    "gru": (lambda: Recurrent(nn.GRU), [7]),
}


def made(make, seed: int = 1) -> nn.Module:
    """Return a model none of whose tensors is at its first values, running statistics included."""
    torch.manual_seed(seed)
    model = make()
    for _ in range(2):
        model.train()(torch.randn(16, 1, 8, 8))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def task(model: nn.Module, n: int = 40) -> Task:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, 8, 8, generator=g), torch.randint(0, 10, (n,), generator=g)
    return Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=16)


def units_of(given: Task) -> Units:
    with Objective(given) as objective:
        return find_units(objective, list(given.model.state_dict()))[0]


def scrambled(given: Task, seed: int = 3) -> dict[str, torch.Tensor]:
    """Return the task's weights with the units of every group in a random order."""
    state, units, generator = given.model.state_dict(), units_of(given), np.random.default_rng(seed)
    return state | permuted(units, state, {g: generator.permutation(g.size) for g in units.names})


# -------------------------------------------------------------------------------------- what was only permuted


@pytest.mark.parametrize("method", ["weights", "activations"])
@pytest.mark.parametrize("name", MODELS)
def test_units_that_were_only_permuted_are_found_back(name, method):
    make, sizes = MODELS[name]
    model = made(make)
    given = task(model)
    other = scrambled(given)
    found = align(given, model, other, method=method)
    assert sorted(found.units) == sorted(sizes)
    assert found.distance == 0
    apart = [(p.detach() - other[n]).double().square().sum() for n, p in model.named_parameters()]
    assert found.distance_before == pytest.approx(math.sqrt(sum(apart)), rel=1e-6)  # no running statistics in it
    assert found.distance_before > 1
    assert found.moved.sum() > 0
    for key, value in model.state_dict().items():
        assert torch.equal(found.weights[key], value), key
    assert {c.name: c.level for c in found.checks}["function"] == "pass"
    assert not found.warnings


def test_activations_are_correlated_as_numpy_correlates_them():
    given, other = task(made(mlp)), made(mlp, 2)
    states = [m.state_dict() for m in (copy.deepcopy(given.model), other)]
    with Objective(given) as objective:
        found = correlations(objective, units_of(given), *states, update=lambda: None)
    x, hidden = given.train[0], []
    for state in states:
        h = F.relu(F.linear(x.flatten(1).double(), state["1.weight"].double(), state["1.bias"].double()))
        hidden.append((h, torch.tanh(F.linear(h, state["3.weight"].double(), state["3.bias"].double()))))
    by_size = {len(c.matrix): c.matrix for c in found}
    assert sorted(by_size) == [9, 12]
    for a, b in zip(*hidden, strict=True):
        with np.errstate(invalid="ignore"):  # a unit that never changes correlates with none
            expected = np.nan_to_num(np.corrcoef(a.numpy().T, b.numpy().T)[: a.shape[1], a.shape[1] :])
        np.testing.assert_allclose(by_size[a.shape[1]], expected, atol=1e-5)


def test_permuted_weights_are_the_same_function_for_the_model_itself():
    # Without any of the code under test: plain forward passes in float64.
    for make, _ in MODELS.values():
        model = made(make)
        given = task(model)
        other = make()
        other.load_state_dict(scrambled(given))
        other.eval().double()
        x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
        with torch.no_grad():
            torch.testing.assert_close(other(x), copy.deepcopy(model).double()(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["weights", "activations"])
def test_a_path_to_permuted_weights_has_no_barrier_once_they_are_aligned(method):
    model = made(residual).double()
    given = task(model)
    path = interpolate(given, model, scrambled(given), points=5, align=method)
    # Weights at random have no barrier, but another function half way.
    assert abs(path.unaligned_loss[0, 2] - path.unaligned_loss[0, 0]) > 0.01
    assert abs(path.barrier[0, 0]) < ROUNDING
    assert path.distance[0] == 0
    assert path.unaligned_distance[0] > 1
    assert (path.groups[0], path.units[0], path.align) == (5, 36, method)
    assert path.moved[0] > 10
    assert any("state 2 was permuted to fit state 1" in note for note in path.notes)
    assert path.summary()["unaligned_barrier"]["train"]["stderr"] >= 0
    again = rebuild("path", path.variables(), path.attributes())
    assert again.align == method
    assert interpolate(given, model, scrambled(given), points=5).unaligned_barrier is None


def test_every_state_is_aligned_to_the_one_before_it():
    model = made(mlp)
    given = task(model)
    path = interpolate(given, model, scrambled(given, 3), scrambled(given, 4), points=3, align="weights")
    assert path.distance.tolist() == [0, 0]
    assert (path.unaligned_distance > 1).all()


# ------------------------------------------------------------------------------------------------- brute force


@pytest.mark.parametrize("seed", range(4))
def test_one_group_is_the_best_of_all_its_permutations(seed):
    def small() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 10))

    a, b = made(small, seed), made(small, seed + 10)
    p, q = (m.state_dict() for m in (a, b))

    def squared(order: tuple[int, ...]) -> float:
        at = torch.tensor(order)
        moved = (q["1.weight"][at], q["1.bias"][at], q["3.weight"][:, at], q["3.bias"])
        held = (p["1.weight"], p["1.bias"], p["3.weight"], p["3.bias"])
        return sum(float((x.double() - y.double()).square().sum()) for x, y in zip(held, moved, strict=True))

    best = min(squared(o) for o in itertools.permutations(range(5)))
    assert align(task(a), a, b).distance ** 2 == pytest.approx(best, rel=1e-6)


def test_two_groups_come_near_the_best_of_all_and_never_below_the_start():
    g = torch.Generator().manual_seed(2)
    u, v = Atom(4), Atom(3)
    shapes = (([Atom(6, fixed=True), u], (6, 4)), ([u, v], (4, 3)), ([v, Atom(2, fixed=True)], (3, 2)))
    terms = [Weights(axes, *(torch.randn(s, generator=g, dtype=torch.float64) for _ in range(2))) for axes, s in shapes]

    def value(p: dict) -> float:
        return sum(t.value(p) for t in terms)

    everything = [
        value({u: np.array(p), v: np.array(q)})
        for p in itertools.permutations(range(4))
        for q in itertools.permutations(range(3))
    ]
    found, _ = match(terms, [u, v])
    assert value(found) >= value({})
    assert sorted(everything)[-3] <= value(found) <= max(everything) + ROUNDING


# ------------------------------------------------------------------------------------------- what has an order


class Ordered(nn.Module):
    """A model whose hidden units are used one by one, in some way."""

    def __init__(self, use) -> None:
        super().__init__()
        self.a, self.b, self.use = nn.Linear(64, 8), nn.Linear(8, 10), use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.use(F.relu(self.a(x.flatten(1)))))


ORDERED = {
    "weighed": lambda h: h * torch.arange(8, device="cpu"),
    "turned": lambda h: h + h.flip(1),
    "summed up": lambda h: h.cumsum(1),
    "one of them": lambda h: h + h[:, :1],
    "transformed": lambda h: torch.fft.rfft(h).abs().repeat(1, 2)[:, :8],
    "sorted": lambda h: h.sort(1)[0],
}


@pytest.mark.parametrize("name", ORDERED)
def test_units_with_an_order_of_their_own_stay(name):
    model = made(lambda: Ordered(ORDERED[name]))
    units = units_of(task(model))
    assert all(g.size < 8 for g in units.names)
    assert ("_fft_r2c" in units.unknown) == (name == "transformed")
    found = align(task(model), model, made(lambda: Ordered(ORDERED[name]), 2))
    assert found.dropped == ()


class Deep(nn.Module):
    """Two hidden layers: n units that are used in some way, and 7 that may change places."""

    def __init__(self, n: int, use) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, n), nn.Linear(n, 7), nn.Linear(7, 10)
        self.use = use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(torch.tanh(self.b(self.use(F.relu(self.a(x.flatten(1))), self))))


def weighed_unseen(h: torch.Tensor, _model: Deep) -> torch.Tensor:
    """Scale all units by a number that weighs each of them apart: NumPy's operations are none of torch's."""
    return h * (1 + float((h.detach().numpy() @ np.arange(1.0, 1 + h.shape[1])).mean()))


def neighbors(h: torch.Tensor, _model: Deep) -> torch.Tensor:
    """Multiply each unit by the one before it, which a turn of all units leaves alone, and no swap does."""
    return h * h.roll(1, 1)


WRONG = [("unseen", n) for n in (2, 3, 8)] + [("wrong rule", n) for n in (3, 4, 8)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("why", "n"), WRONG)
def test_a_group_that_changes_the_function_is_dropped_and_told(monkeypatch, why, n, seed):
    if why == "wrong rule":
        monkeypatch.setitem(RULES, "roll", elementwise)
    use = weighed_unseen if why == "unseen" else neighbors
    a, b = (made(lambda: Deep(n, use), i) for i in (1, 2))
    assert sorted(g.size for g in units_of(task(b)).names) == sorted([n, 7])  # the wrong one is proposed
    found = align(task(a), a, b, seed=seed)
    assert found.dropped == ("a.weight, dim 0",)
    assert found.warnings == ("a.weight, dim 0: permuting these units changes outputs; they stay as they are",)
    assert {c.name: c.level for c in found.checks}["groups"] == "warn"
    assert torch.equal(found.weights["a.weight"], b.a.weight)
    # The other group is aligned all the same.
    assert (found.units.tolist(), found.names) == ([7], ("b.weight, dim 0",))
    assert found.distance < found.distance_before


def test_complex_outputs_are_compared_too():
    class Turned(Deep):
        """Complex outputs whose sizes, which the loss takes, are the same in any order of the units; phases aren't."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = F.relu(self.a(x.flatten(1)))
            size = self.c(torch.tanh(self.b(h))).abs()
            return torch.polar(size, torch.full_like(size, float((h.detach().numpy() @ np.arange(8)).mean())))

    a, b = (made(lambda: Turned(8, None), i) for i in (1, 2))
    x = [torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))]
    given = Task(a, train=x, batch_loss=lambda m, x: m(x).abs().mean(), rebatch=False)
    assert align(given, a, b).dropped == ("a.weight, dim 0",)


def test_a_permutation_that_is_another_function_at_b_itself_is_refused():
    # Fresh biases are all 0; generic ones, at which groups are tried, are not.
    def use(h: torch.Tensor, model: Deep) -> torch.Tensor:
        return h if model.a.bias.detach().numpy().any() else weighed_unseen(h, model)

    a, b = (made(lambda: Deep(8, use), i) for i in (1, 2))
    nn.init.zeros_(b.a.bias)
    said = "b with its units permuted gives other outputs than b on the train data"
    with pytest.raises(MeasurementError, match=said):
        align(task(a), a, b)
    with pytest.raises(MeasurementError, match=said):
        interpolate(task(a), a, b, points=3, align="weights")


def test_a_group_that_changes_the_function_on_a_later_batch_only_is_dropped():
    def use(h: torch.Tensor, model: Deep) -> torch.Tensor:
        return weighed_unseen(h, model) if len(h) == 8 else h  # of 16, 16 and 8 samples

    a, b = (made(lambda: Deep(8, use), i) for i in (1, 2))
    found = align(task(a), a, b)
    assert found.dropped == ("a.weight, dim 0",)
    assert found.units.tolist() == [7]


def test_units_without_activations_to_compare_stay_and_are_told(monkeypatch):
    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(8, 4, 6)), nn.Parameter(torch.randn(4, 6, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.tanh(torch.einsum("btd,dhk->bthk", x.squeeze(1), self.a))
            return torch.einsum("bthk,hkc->bc", hidden, self.b)

    model = made(Summed)
    given = task(model)
    assert align(given, model, scrambled(given)).distance == 0
    found = align(given, model, scrambled(given), method="activations")
    assert found.moved.sum() == 0
    assert found.warnings == tuple(
        f"a, dim {d}: no activations were found to match these units by; they stay as they are" for d in (1, 2)
    )
    monkeypatch.setattr("landscape.alignment.activations.WIDEST", 10)  # wider layers would need too much memory
    wide = made(mlp)
    found = align(task(wide), wide, scrambled(task(wide)), method="activations")
    assert found.warnings == (
        "1.weight, dim 0: no activations were found to match these units by; they stay as they are",
    )


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_group_is_tried_by_permutations_that_make_all_others(n):
    pair = [tuple(p.tolist()) for p in generators(Atom(n), seed=n)]
    reached = set(pair)
    while more := {tuple(p[i] for i in q) for p in reached for q in pair} - reached:
        reached |= more
    assert len(reached) == math.factorial(n)


def test_outputs_keep_their_order_where_the_loss_has_none():
    # The mean of squares is the same for permuted outputs: the model would not be.
    class Embedding(nn.Sequential):
        pass

    def make() -> nn.Module:
        return Embedding(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5))

    given = Task(
        made(make), train=[torch.randn(4, 1, 8, 8)], batch_loss=lambda m, x: m(x).square().mean(), rebatch=False
    )
    assert [g.size for g in units_of(given).names] == [6]


def test_tied_weights_and_embeddings_keep_their_vocabulary():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.mix = nn.Embedding(11, 6), nn.Linear(6, 6)
            self.out = nn.Linear(6, 11, bias=False)
            self.out.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.table(x)
            return self.out(h + torch.tanh(self.mix(h))).mean(1)

    torch.manual_seed(0)
    model = Tied()
    x, y = torch.randint(0, 11, (20, 4)), torch.randint(0, 11, (20,))
    given = Task(model, nn.CrossEntropyLoss(), (x, y))
    found = align(given, model, scrambled(given))
    assert found.units.tolist() == [6]
    assert found.distance == 0
    assert torch.equal(found.weights["out.weight"], found.weights["table.weight"])


# --------------------------------------------------------------------------------------------------- the axes


def test_axes_that_are_viewed_and_cut_permute_as_their_parts_do():
    whole = Atom(12)
    unify(whole, Product((Atom(3), Atom(4))))
    first, second = cut(whole, 4) or (Atom(1), Atom(1))
    assert (first.size, second.size) == (4, 8)
    found = list(dict.fromkeys(atoms(whole)))
    assert sorted(a.size for a in found) == [1, 2, 4]  # the first of three blocks stands apart, in the others' order
    block = next(a for a in found if a.size == 4)
    p = np.array([1, 0, 3, 2])
    assert order(whole, {block: p}).tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    at = np.concatenate(places(whole, block), axis=1)
    assert sorted(at[0].tolist()) == [0, 4, 8]


def test_structures_that_do_not_fit_are_fixed():
    a, b = Product((Atom(2), Atom(3))), Sum((Atom(2), Atom(4)))
    unify(a, Product((Atom(3), Atom(2))))
    assert all(x.fixed for x in atoms(a))
    unify(Product((Atom(2), Atom(3))), b)
    assert all(x.fixed for x in atoms(resolve(b)))


# ------------------------------------------------------------------------------------- restored, saved, refused


def test_models_and_states_are_as_before_and_results_follow_from_the_seed(tmp_path):
    model, other = made(residual), made(residual, 2)
    before, beside = Kept(model), Kept(other)
    found, again = (align(task(model), model, other, seed=4) for _ in range(2))
    before.unchanged()
    beside.unchanged()
    assert all(torch.equal(v, again.weights[k]) for k, v in found.weights.items())
    assert 0 < found.distance < found.distance_before
    torch.save(found.weights, tmp_path / "b.pt")
    assert read_checkpoint(tmp_path / "b.pt").weights.keys() == model.state_dict().keys()
    kept = rebuild("alignment", found.variables(), found.attributes())
    assert kept.summary() == found.summary()
    assert landscape.align is align


def test_what_can_not_be_aligned_is_refused():
    model = made(mlp)
    with pytest.raises(TypeError, match=r"align needs a landscape\.Task"):
        align(model, model, model)  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="method='names' is neither 'weights' nor 'activations'"):
        align(task(model), model, model, method="names")  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="align='names' is neither 'weights' nor 'activations'"):
        interpolate(task(model), model, made(mlp, 2), align="names")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="state 2 does not fit"):
        align(task(model), model, made(Dense))
    broken = {k: v * torch.nan for k, v in model.state_dict().items()}
    with pytest.raises(MeasurementError, match="state 2 is not finite"):
        align(task(model), model, broken)
    # Finite weights, activations that aren't any more.
    deep = made(lambda: nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(5)), nn.Linear(64, 10)))
    diverged = {k: 1e37 * v for k, v in deep.state_dict().items()}
    with pytest.raises(
        MeasurementError, match=r"activations leaving '.*' are not finite, or too large to be multiplied"
    ):
        align(task(deep), diverged, deep, method="activations")
