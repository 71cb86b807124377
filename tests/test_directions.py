"""Directions: Li et al.'s formula written out filter by filter, what is left out, seeds, angles, refusals."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from landscape.curvature.operators import Hessian
from landscape.curvature.scaled import filter_scaled
from landscape.errors import MeasurementError
from landscape.objective import Objective
from landscape.surface.basin import _scales
from landscape.surface.derived import gradient_direction
from landscape.surface.directions import Direction, cosine, orthogonalize, random_direction
from landscape.tasks import Task

#: Sums of at most a few hundred numbers in float64, in another order.
EXACT = 1e-13


class Conv1D(nn.Module):
    """As in Transformers' GPT-2: a linear layer whose weight is (in, out), its outputs along dimension 1."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.randn(outputs))


class Zoo(nn.Module):
    """One layer of each kind; directions never run it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(4, 5, 2)
        self.one = Conv1D(6, 5)
        self.embedding = nn.Embedding(7, 3)
        self.layer_norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(1.5))


FILTERS_ON_DIM_1 = {"up.weight", "one.weight"}


def zoo(dtype: torch.dtype = torch.float64) -> Zoo:
    torch.manual_seed(3)
    model = Zoo()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1)  # no bias of zero: d = w must be seen
    return model.to(dtype)


def task(model: nn.Module, **settings) -> Task:
    return Task(model, nn.MSELoss(), (torch.zeros(4, 3), torch.zeros(4, 2)), **settings)


def regression(dtype: torch.dtype = torch.float64) -> Task:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    return task(model)


def drawn(model: nn.Module, seed: int) -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).numpy()
        for name, p in model.named_parameters()
    }


def row_norms(t: torch.Tensor, other: tuple[int, ...] | list[int]) -> torch.Tensor:
    return t.square().sum(dim=other).sqrt()


def naive(name: str, w: np.ndarray, d: np.ndarray, normalize: str | None, ignore: str | None) -> np.ndarray:
    """CONVENTIONS section 2, one filter and one number at a time."""
    if w.ndim <= 1:
        if ignore == "biasbn":
            return np.zeros_like(w)
        return d if normalize is None else w
    out = d.copy()
    if normalize == "filter":
        dim = 1 if name in FILTERS_ON_DIM_1 else 0
        for i in range(w.shape[dim]):
            here = (slice(None),) * dim + (i,)
            w_norm = math.sqrt(sum(x * x for x in w[here].ravel().tolist()))
            d_norm = math.sqrt(sum(x * x for x in d[here].ravel().tolist()))
            out[here] = d[here] * (w_norm / (d_norm + 1e-10))
    elif normalize == "layer":
        out = d * math.sqrt((w**2).sum() / (d**2).sum())
    elif normalize == "weight":
        out = d * w
    return out


# ------------------------------------------------------------------------------------------------ the formula


@pytest.mark.parametrize("ignore", ["biasbn", None])
@pytest.mark.parametrize("normalize", ["filter", "layer", "weight", None])
def test_each_normalization_is_its_formula_on_every_kind_of_layer(normalize, ignore):
    model = zoo()
    found = random_direction(task(model), 5, normalize, ignore)
    raw = drawn(model, 5)
    for name, p in model.named_parameters():
        expected = naive(name, p.detach().numpy(), raw[name], normalize, ignore)
        assert found[name].shape == p.shape
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=EXACT, atol=0, err_msg=name)


def test_float32_is_the_same_direction_rounded():
    model = zoo(torch.float32)
    single, double = random_direction(task(model)), random_direction(task(model, dtype=torch.float64))
    assert {t.dtype for t in single.values()} == {torch.float32}
    assert {t.dtype for t in double.values()} == {torch.float64}
    for name in single:
        assert torch.equal(single[name], double[name].float()), name


def test_half_precision_weights_get_a_float32_direction():
    assert {t.dtype for t in random_direction(task(zoo(torch.bfloat16))).values()} == {torch.float32}


def test_filters_along_dimension_1_have_the_weights_norms_and_the_notes_say_so():
    model = zoo()
    found = random_direction(task(model))
    for name, other in (("up.weight", (0, 2, 3)), ("one.weight", (0,)), ("conv.weight", (1, 2, 3))):
        w = dict(model.named_parameters())[name].detach()
        torch.testing.assert_close(row_norms(found[name], other), row_norms(w, other), rtol=1e-9, atol=0)
    assert [n for n in found.notes if "dimension 1" in n] == [
        "filters of up.weight (ConvTranspose2d) are taken along dimension 1",
        "filters of one.weight (Conv1D) are taken along dimension 1",
    ]


class Scaled(nn.Module):
    """Scales of one number for each filter, and weights with as many numbers as filters that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3))
        self.layer_scale = nn.Parameter(torch.full((5, 1, 1), 0.1))
        self.one_input = nn.Linear(1, 6)
        self.depthwise = nn.Conv2d(3, 3, 1, groups=3)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(1, 3))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_scales_of_more_than_one_dimension_are_held_like_those_of_normalization_layers():
    torch.manual_seed(0)
    model = Scaled()
    model.old = nn.utils.weight_norm(nn.Linear(3, 4))
    d = random_direction(task(model))
    held = {n for n, t in d.items() if not t.any()}
    scales = {"new.parametrizations.weight.original0", "layer_scale", "old.weight_g"}
    assert held == scales | {n for n in d if n.endswith("bias")}
    (note,) = [n for n in d.notes if "one number for each filter" in n]
    assert note.endswith("and 2 more")
    free = random_direction(task(model), ignore=None)
    weights = dict(model.named_parameters())
    for name in scales:
        assert torch.equal(free[name], weights[name].detach())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_what_random_directions_hold_is_held_by_all_that_is_scaled_by_filters():
    """Basins, lengths along the gradient and scaled curvature go by the same rule as slices."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3))
            self.layer_scale = nn.Parameter(torch.full((4, 1, 1), 0.3))
            self.old = nn.utils.weight_norm(nn.Linear(4, 3))
            self.one_input = nn.Linear(1, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.old((self.conv(x) * self.layer_scale).mean((2, 3)))
            return z + self.one_input(x.mean((1, 2, 3))[:, None])

    torch.manual_seed(0)
    x = torch.randn(12, 2, 5, 5, dtype=torch.float64)
    made = Task(Net().double(), nn.CrossEntropyLoss(), (x, torch.arange(12) % 3))
    d = random_direction(made)
    with Objective(made) as objective:
        moved = [bool(d[name].any()) for name in objective.names]
        scales, _ = _scales(objective, "biasbn")
        assert [bool(s.any()) for s in scales] == moved
        operator = filter_scaled(Hessian(objective))
        sizes = [int(np.prod(c.shape)) for c in objective.center]
        columns = [torch.cat([torch.full((n,), float(i == j)) for i, n in enumerate(sizes)]) for j in range(len(sizes))]
        products = operator @ torch.stack(columns, 1).double()
        assert [bool(p.any()) for p in products.T] == moved
    assert sum(moved) == 3
    assert gradient_direction(made).norm == pytest.approx(d.norm)  # each filter of d has its weights' norm


def test_a_dead_filter_stays_and_is_counted():
    model = zoo()
    with torch.no_grad():
        model.conv.weight[1] = 0
        model.up.weight[:, 2] = 0
    found = random_direction(task(model))
    assert not found["conv.weight"][1].any()
    assert found["conv.weight"][0].any()
    assert not found["up.weight"][:, 2].any()
    assert "2 filters have weights of norm zero: the direction is zero there" in found.notes


def test_norm_label_and_settings_are_told():
    found = random_direction(task(zoo()), 8, "layer", None)
    dense = torch.cat([t.reshape(-1) for t in found.values()])
    assert found.norm == pytest.approx(float(dense.norm()), rel=EXACT)
    assert (found.seed, found.normalize, found.ignore) == (8, "layer", None)
    assert found.label == "random, layer-normalized, seed 8"
    assert random_direction(task(zoo())).label == "random, filter-normalized, biases and norms held, seed 0"


# ------------------------------------------------------------------------------------------ what is in a direction


def test_frozen_parameters_tied_names_and_buffers_are_left_out():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 2), "n": nn.BatchNorm1d(2)})
    model["b"].weight = model["a"].weight
    model["c"].weight.requires_grad_(False)
    found = random_direction(task(model))
    assert list(found) == ["a.weight", "a.bias", "b.bias", "c.bias", "n.weight", "n.bias"]


def test_a_wrapped_model_has_the_names_of_the_model_inside():
    model = zoo()
    assert list(random_direction(task(nn.DataParallel(model)))) == [n for n, _ in model.named_parameters()]


def test_seeds_repeat_and_differ_and_nobodys_generator_moves():
    made = task(zoo())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, again, other = (random_direction(made, s) for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first if first[n].ndim > 1)
    assert abs(cosine(first, other)) < 0.5
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]


def test_an_entered_objective_gives_the_direction_of_its_centre():
    made = regression()
    expected = random_direction(made, 4)
    with Objective(made) as objective:
        objective.move((expected.tensors(objective.names),), (2.0,))
        found = random_direction(objective, 4)
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert all(torch.equal(random_direction(Objective(made), 4)[n], expected[n]) for n in expected)


def test_a_direction_keeps_copies_of_what_it_is_given():
    made = regression()
    live = dict(made.model.named_parameters())
    d = Direction(live)
    before = {n: t.clone() for n, t in d.items()}
    with torch.no_grad():
        for p in live.values():
            p.zero_()
    assert all(torch.equal(d[n], before[n]) for n in d)
    assert not any(t.requires_grad for t in d.values())
    with pytest.raises(TypeError):
        d["0.weight"] = torch.zeros(5, 3)  # type: ignore[index]


# ------------------------------------------------------------------------------------------------------ angles


def test_cosine_is_that_of_the_flat_vectors():
    made = task(zoo())
    d1, d2 = random_direction(made, 0, None, None), random_direction(made, 1, None, None)
    a, b = (torch.cat([t.reshape(-1) for t in d.values()]) for d in (d1, d2))
    assert cosine(d1, d2) == pytest.approx(float(torch.nn.functional.cosine_similarity(a, b, dim=0)), rel=1e-10)
    assert cosine(d1, d1) == pytest.approx(1.0, abs=EXACT)


@pytest.mark.parametrize("overlap", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("normalize", ["filter", "layer", "weight", None])
def test_orthogonalized_directions_keep_their_norms(normalize, overlap):
    made = task(zoo())
    d1, drawn_ = random_direction(made, 0, normalize), random_direction(made, 1, normalize)
    d2 = Direction(
        {n: t + overlap * d1[n] for n, t in drawn_.items()}, normalize=normalize, filter_dims=drawn_.filter_dims
    )
    found = orthogonalize(d1, d2)
    assert abs(cosine(d1, found)) <= 2e-12  # tol, and the rounding of one more sum
    assert found.norm == pytest.approx(d2.norm, rel=1e-12)
    for n, t in d2.items():
        if normalize == "filter" and t.ndim > 1:
            other = [i for i in range(t.ndim) if i != (n in FILTERS_ON_DIM_1)]
            torch.testing.assert_close(row_norms(found[n], other), row_norms(t, other), rtol=1e-12, atol=0)
        if normalize == "layer":
            torch.testing.assert_close(found[n].norm(), t.norm(), rtol=1e-12, atol=0)
    assert "made orthogonal to" in found.notes[-1]
    assert "no orthogonal direction" not in found.notes[-1]


def test_what_can_not_be_made_orthogonal_is_said():
    # Filters of one number each: with their norms kept, only signs are free, and 3, 1 and 1 never sum to 0.
    ones = torch.ones(3, 1, dtype=torch.float64)
    d1 = Direction({"w": ones}, normalize="filter")
    d2 = Direction({"w": torch.tensor([[3.0], [1.0], [1.0]], dtype=torch.float64)}, normalize="filter")
    found = orthogonalize(d1, d2)
    assert abs(cosine(d1, found)) > 0.1
    assert "no orthogonal direction with these norms was found" in found.notes[-1]


def test_float32_directions_are_orthogonal_to_rounding():
    made = task(zoo(torch.float32))
    found = orthogonalize(random_direction(made, 0), random_direction(made, 1))
    assert abs(cosine(random_direction(made, 0), found)) < 1e-7
    assert {t.dtype for t in found.values()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------- refusals


def test_unknown_settings_are_refused():
    made = task(zoo())
    with pytest.raises(MeasurementError, match="normalize='filters' is not one of 'filter', 'layer', 'weight' or None"):
        random_direction(made, 0, "filters")  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="ignore='bias' is neither 'biasbn' nor None"):
        random_direction(made, ignore="bias")  # type: ignore[arg-type]
    with pytest.raises(MeasurementError, match="seed=-1 is not between 0"):
        random_direction(made, -1)
    with pytest.raises(MeasurementError, match="seed=4294967296 is not between 0"):
        random_direction(made, 2**32)
    with pytest.raises(TypeError, match="seed must be an int, got float"):
        random_direction(made, 1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"needs a landscape\.Task, got Zoo"):
        random_direction(zoo())  # type: ignore[arg-type]


def test_torch_draws_the_same_for_seeds_that_differ_by_2_to_the_32():
    # Why larger seeds are refused: two of them would silently be one direction.
    draws = [torch.randn(8, generator=torch.Generator().manual_seed(s)) for s in (7, 7 + 2**32)]
    assert torch.equal(*draws)


def test_zero_norm_is_refused():
    model = zoo()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    with pytest.raises(MeasurementError, match="norm zero"):
        random_direction(task(model))
    with pytest.raises(MeasurementError, match="norm zero"):  # nothing but biases and scales
        random_direction(task(nn.BatchNorm1d(3)))
    with pytest.raises(MeasurementError, match="norm zero"):
        Direction({})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_name(value):
    model = zoo()
    with torch.no_grad():
        model.head.weight[0, 0] = value
    with pytest.raises(MeasurementError, match=r"not finite in 'head\.weight'"):
        random_direction(task(model))


def test_what_is_no_mapping_of_tensors_is_refused():
    with pytest.raises(TypeError, match="mapping of parameter names to tensors, got list"):
        Direction([torch.ones(3)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"'w' must be a real torch\.Tensor, got ndarray"):
        Direction({"w": np.ones(3)})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match=r"'w' must be a real torch\.Tensor, got torch\.complex64"):
        Direction({"w": torch.ones(3, dtype=torch.complex64)})


def test_names_and_shapes_that_do_not_fit_are_refused():
    made = regression()
    good = dict(random_direction(made))
    with Objective(made) as objective:
        wrong = Direction({**good, "0.weight": torch.ones(3, 5, dtype=torch.float64)})
        with pytest.raises(MeasurementError, match=r"shape \(3, 5\) for '0\.weight', whose shape is \(5, 3\)"):
            wrong.fitted(objective)
        with pytest.raises(MeasurementError, match=r"'0\.running_mean', which is no trainable parameter"):
            Direction({**good, "0.running_mean": torch.ones(5)}).fitted(objective)
        del good["2.bias"]
        with pytest.raises(MeasurementError, match=r"lacks '2\.bias' \(1 of 4 parameters\)"):
            Direction(good).fitted(objective)


def test_parallel_directions_cannot_be_made_orthogonal():
    d = random_direction(regression())
    with pytest.raises(MeasurementError, match="parallel"):
        orthogonalize(d, Direction({n: -2 * t for n, t in d.items()}))
