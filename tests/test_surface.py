"""Lines and planes: closed forms, naive loops, the exact centre, holes, and a model that is left alone."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from untouched import State, data, messy

from landscape.errors import MeasurementError, ObjectiveError, TaskError
from landscape.objective import Objective
from landscape.results import measurements, rebuild
from landscape.surface import checks
from landscape.surface.directions import Direction, random_direction
from landscape.surface.grid import SECOND_SEED, axis, line, plane
from landscape.surface.measure import measure_line, measure_plane
from landscape.tasks import Task

#: Losses of at most 100 samples in float64, summed in another order.
EXACT = 1e-12

DOUBLE, SINGLE = torch.float64, torch.float32


def convnet(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(64, 3)
    ).to(dtype)
    model(torch.randn(40, 1, 6, 6, dtype=dtype))  # running statistics of its own
    return model.eval()


def images(n: int = 30, dtype: torch.dtype = DOUBLE) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(6)
    return torch.randn(n, 1, 6, 6, generator=g, dtype=DOUBLE).to(dtype), torch.randint(3, (n,), generator=g)


def task(model: nn.Module | None = None, loss=None, **settings) -> Task:
    model = convnet() if model is None else model
    dtype = next(model.parameters()).dtype
    return Task(model, loss or nn.CrossEntropyLoss(), images(dtype=dtype), images(17, dtype), batch_size=8, **settings)


def level(result, name: str) -> str:
    return {c.name: c.level for c in result.checks}[name]


def moved(model: nn.Module, steps: list[tuple[float, Direction]]) -> nn.Module:
    """Return a copy of the model with its weights moved, by its state dict."""
    other = copy.deepcopy(model)
    state = other.state_dict()
    for a, d in steps:
        for name, t in d.items():
            state[name] = state[name] + a * t
    other.load_state_dict(state)
    return other


# ------------------------------------------------------------------------------------------------ closed forms


def regression() -> tuple[Task, np.ndarray, np.ndarray, np.ndarray]:
    """Return (task, design matrix with a column of ones, targets, weights with the bias last), batches 4, 6 and 1."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(11, 3, generator=g, dtype=DOUBLE)
    y = torch.randn(11, 1, generator=g, dtype=DOUBLE)
    torch.manual_seed(1)
    model = nn.Linear(3, 1).to(DOUBLE)
    batches = [(x[a:b], y[a:b]) for a, b in ((0, 4), (4, 10), (10, 11))]
    w = torch.cat([model.weight.detach().reshape(-1), model.bias.detach()]).numpy()
    return Task(model, nn.MSELoss(), batches), np.c_[x.numpy(), np.ones(11)], y.numpy()[:, 0], w


def flat(d: Direction) -> np.ndarray:
    return np.concatenate([d["weight"].numpy().ravel(), d["bias"].numpy()])


def test_a_line_of_a_quadratic_is_the_parabola():
    made, x, y, w = regression()
    d = random_direction(made, 2, None, None)
    v = flat(d)
    start, slope, bend = ((x @ w - y) ** 2).mean(), 2 * (x @ w - y) @ (x @ v) / 11, 2 * ((x @ v) ** 2).mean()
    alphas = np.array([-2.0, -0.3, 0.0, 0.1, 5.0])
    found = line(made, d, alphas)
    np.testing.assert_allclose(found.loss, start + alphas * slope + alphas**2 / 2 * bend, rtol=EXACT)
    assert found.accuracy is None
    assert found.direction_norm == pytest.approx(np.linalg.norm(v), rel=EXACT)
    assert (found.samples, found.split, found.batchnorm, found.seed) == (11, "train", "none", 2)


def test_a_plane_of_a_quadratic_is_the_paraboloid_indexed_alpha_beta():
    made, x, y, w = regression()
    d1, d2 = random_direction(made, 2, None, None), random_direction(made, 3, None, None)
    alphas, betas = np.array([-1.0, 0.0, 0.5, 2.0]), np.array([-0.7, 0.2, 3.0])
    expected = [[((x @ (w + a * flat(d1) + b * flat(d2)) - y) ** 2).mean() for b in betas] for a in alphas]
    found = plane(made, d1, d2, alphas, betas)
    np.testing.assert_allclose(found.loss, expected, rtol=EXACT)
    assert found.loss.shape == found.evaluated.shape == (4, 3)
    assert found.evaluated.all()
    a, b = flat(d1), flat(d2)
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=EXACT)
    np.testing.assert_allclose(found.direction_norms, [np.linalg.norm(a), np.linalg.norm(b)], rtol=EXACT)


def test_the_slope_at_the_centre_is_checked_against_the_gradient():
    made, x, y, w = regression()
    d = random_direction(made, 2, None, None)
    found = {c.name: c for c in line(made, d, [0.0]).checks}["slope"]
    assert found.level == "pass"
    # A parabola's central difference is exact: what is left is rounding over a step of 0.002 ||theta|| / ||d||.
    assert found.value < 1e-11
    assert f"gradient . d = {2 * (x @ w - y) @ (x @ flat(d)) / 11:.6g}" in found.message


class ForgedSlope(torch.autograd.Function):
    """The identity, with minus the right derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


def test_a_gradient_that_is_not_the_losss_own_is_seen():
    def forged(outputs, target):
        return ForgedSlope.apply(F.cross_entropy(outputs, target))

    assert level(line(task(), alphas=[0.0]), "slope") == "pass"
    assert level(line(task(loss=forged), alphas=[0.0]), "slope") == "warn"


def test_rescaled_relu_layers_give_the_same_filter_normalized_slice():
    # Li et al. 2018, section 4: what plain directions get wrong, and filter normalization is made for.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).to(DOUBLE)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight *= 20
        scaled[0].bias *= 20
        scaled[2].weight /= 20
    both = [Task(m, nn.CrossEntropyLoss(), data(40)) for m in (model, scaled)]
    a, b = (plane(t, alphas=axis(1, 5), betas=axis(2, 3)) for t in both)
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-10)
    np.testing.assert_array_equal(a.accuracy, b.accuracy)
    raw = [line(t, random_direction(t, normalize=None), axis(1, 5)) for t in both]
    assert np.abs(raw[0].loss - raw[1].loss).max() > 0.1


# ------------------------------------------------------------------------------------------- against naive loops


@pytest.mark.parametrize("batchnorm", ["eval", "batch", "recompute"])
def test_a_plane_is_what_a_plain_loop_over_copies_gives(batchnorm):
    made = task(batchnorm=batchnorm, rebatch=batchnorm == "eval")
    d1, d2 = random_direction(made, 0), random_direction(made, 1, "layer", None)
    alphas, betas = np.array([-0.5, 0.0, 0.25, 1.0]), np.array([-1.0, 0.0, 2.0])
    found = plane(made, d1, d2, alphas, betas)
    x, y = images()
    parts = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 30, 8)]
    for i, a in enumerate(alphas):
        for j, b in enumerate(betas):
            model = moved(made.model, [(a, d1), (b, d2)])
            norm = model[1]
            if batchnorm == "batch":
                norm.train()
            if batchnorm == "recompute":
                seen = [model[0](p).detach().transpose(0, 1).reshape(4, -1) for p, _ in parts]
                norm.running_mean.copy_(torch.cat(seen, 1).mean(1))
                norm.running_var.copy_(sum(len(p) / 30 * s.var(1) for s, (p, _) in zip(seen, parts, strict=True)))
            logits = torch.cat([model(p).detach() for p, _ in parts])
            # Means over batches of 8, 8, 8 and 6: the loss of the whole, whatever the cut.
            assert found.loss[i, j] == pytest.approx(float(F.cross_entropy(logits, y)), rel=EXACT)
            assert found.accuracy[i, j] == pytest.approx(float((logits.argmax(1) == y).double().mean()), rel=EXACT)
    assert found.batchnorm == batchnorm


def test_a_row_of_the_plane_is_the_line_to_the_last_bit():
    made = task()
    steps = axis(1, 5)
    p = plane(made, alphas=steps, betas=np.array([-1.0, 0.0, 0.5]))
    row, column = line(made, alphas=steps), line(made, alphas=[-1.0, 0.0, 0.5], seed=SECOND_SEED)
    np.testing.assert_array_equal(p.loss[:, 1], row.loss)
    np.testing.assert_array_equal(p.accuracy[:, 1], row.accuracy)
    np.testing.assert_array_equal(p.loss[2], column.loss)
    assert p.seeds == (row.seed, column.seed) == (0, SECOND_SEED)


def test_running_statistics_are_never_moved_along():
    made = task()
    seen = []
    hook = made.model[1].register_forward_hook(
        lambda m, _, __: seen.append((m.running_mean.clone(), m.running_var.clone()))
    )
    plane(made, random_direction(made, 0, "filter", None), None, axis(1, 3), axis(1, 3))
    hook.remove()
    mean, var = made.model[1].running_mean, made.model[1].running_var
    assert len(seen) > 36
    assert all(torch.equal(m, mean) and torch.equal(v, var) for m, v in seen)


def test_frozen_weights_stay_and_tied_ones_move_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
            self.b.weight = self.a.weight
            self.head.weight.requires_grad_(False)

        def forward(self, x):
            return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))

    torch.manual_seed(0)
    model = Tied().to(DOUBLE)
    made = Task(model, nn.CrossEntropyLoss(), data(40))
    d = random_direction(made, 0, "filter", None)
    assert list(d) == ["a.weight", "a.bias", "b.bias", "head.bias"]
    found = line(made, d, [-0.5, 0.7])
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if name in d:
                p.add_(0.7 * d[name])
        x, y = data(40)
        assert found.loss[1] == pytest.approx(float(F.cross_entropy(other(x), y)), rel=EXACT)


def test_fixed_random_numbers_are_the_same_at_every_point():
    made = task(mode="train", rng="fixed")
    first, again = (plane(made, alphas=axis(1, 3), betas=axis(1, 3)) for _ in range(2))
    np.testing.assert_array_equal(first.loss, again.loss)
    assert level(first, "center") == "pass"
    assert abs(first.center_loss - line(task(), alphas=[0.0]).center_loss) > 1e-6  # dropout was on


# ------------------------------------------------------------------------------------------------------ centre


@pytest.mark.parametrize("dtype", [SINGLE, DOUBLE])
@pytest.mark.parametrize("batchnorm", ["eval", "batch", "recompute"])
def test_the_centre_is_the_checkpoints_loss_to_the_last_bit(dtype, batchnorm):
    made = task(convnet(dtype), batchnorm=batchnorm, rebatch=False)
    with Objective(made) as objective:
        loss = objective.evaluate().loss
    on, off = (plane(made, alphas=steps, betas=axis(1, 3)) for steps in (axis(1, 3), axis(1, 2)))
    assert on.loss[1, 1] == on.center_loss == on.checkpoint_loss == loss
    assert off.center_loss == off.checkpoint_loss == loss
    assert level(on, "center") == level(off, "center") == "pass"
    assert math.isfinite(on.loss_stderr)


def test_a_centre_that_differs_in_the_last_bit_fails():
    found = checks.center(0.5, np.nextafter(0.5, 1))
    assert found.level == "fail"
    assert "0.5000000000000001" in found.message
    assert "0.5:" in found.message


@pytest.mark.parametrize("points", [3, 51, 99, 101, 197])
def test_default_steps_hold_zero_exactly(points):
    for span in (0.1, 0.7, 1.0, 3.0):
        steps = axis(span, points)
        assert steps[points // 2] == 0
        assert (steps[0], steps[-1]) == (-span, span)
        np.testing.assert_allclose(np.diff(steps), 2 * span / (points - 1), rtol=1e-9)
    assert not axis(1, 4).tolist().count(0)


# -------------------------------------------------------------------------------------------------------- holes


class Scalar(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, 1, dtype=DOUBLE))

    def forward(self, x):
        return x @ self.w


def logarithm(outputs, target):
    return (outputs.log() + 0 * target).mean()


def test_losses_that_are_not_finite_are_kept_as_what_they_are():
    made = Task(Scalar(), logarithm, (torch.ones(4, 1, dtype=DOUBLE), torch.ones(4, 1, dtype=DOUBLE)))
    d = {"w": -torch.ones(1, 1, dtype=DOUBLE)}
    found = line(made, d, [-1.0, 0.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(found.loss, [math.log(2), 0, math.log(0.5), -math.inf, math.nan], rtol=EXACT)
    check = {c.name: c for c in found.checks}["finite"]
    assert (check.level, check.value) == ("warn", 0.4)
    assert "2 of 5 points are not finite" in check.message


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_cliff_right_beside_the_centre_is_seen_and_no_crash(value):
    def cliff(outputs, target):
        return torch.where(outputs < 0.999, value, outputs + 0 * target).mean()

    made = Task(Scalar(), cliff, (torch.ones(4, 1, dtype=DOUBLE), torch.ones(4, 1, dtype=DOUBLE)))
    found = line(made, {"w": torch.ones(1, 1, dtype=DOUBLE)}, [-0.5, 0.0, 0.5])
    np.testing.assert_array_equal(found.loss, [value, 1, 1.5])
    assert level(found, "slope") == "warn"


def test_weights_that_diverged_since_the_task_was_verified_are_refused():
    made = Task(Scalar(), logarithm, (torch.ones(4, 1, dtype=DOUBLE), torch.ones(4, 1, dtype=DOUBLE)))
    d = {"w": torch.ones(1, 1, dtype=DOUBLE)}
    line(made, d, [0.0])
    with torch.no_grad():
        made.model.w.fill_(-1)
    with pytest.raises(ObjectiveError, match="the loss at the checkpoint is nan"):
        line(made, d, [0.0])


def test_a_loss_below_zero_is_a_loss():
    def gain(outputs, target):
        return -(outputs.gather(1, target[:, None]) ** 2).mean() - 3

    found = line(task(loss=gain), alphas=axis(1, 7))
    assert (found.loss < -3).all()
    assert level(found, "finite") == level(found, "center") == level(found, "slope") == "pass"


def test_a_loss_without_a_gradient_can_still_be_drawn():
    def errors(outputs, target):
        return (outputs.argmax(1) != target).double().mean()

    found = line(task(loss=errors), alphas=axis(1, 5))
    np.testing.assert_allclose(found.loss, 1 - found.accuracy, rtol=EXACT)
    slope = {c.name: c for c in found.checks}["slope"]
    assert slope.level == "warn"
    assert "does not require grad" in slope.message


# ------------------------------------------------------------------------------------------- the caller's model


class Stop(Exception):
    """Raised in the middle of a picture."""


class Bomb:
    """A loss that raises at the third point that differs from the checkpoint."""

    def __init__(self, weight: nn.Parameter, error: type[BaseException]):
        self.weight, self.error = weight, error
        self.points: set[float] = set()

    def __call__(self, outputs, target):
        self.points.add(float(self.weight[0, 0]))
        if len(self.points) == 4:
            raise self.error("stop")
        return F.cross_entropy(outputs, target)


def test_the_model_is_untouched_after():
    model = messy()
    made = Task(model, nn.CrossEntropyLoss(), data(60), batch_size=16)
    before = State(model)
    plane(made, alphas=axis(1, 3), betas=axis(1, 4))
    line(made, random_direction(made, 1, "weight", None), axis(1, 3))
    before.unchanged()


@pytest.mark.parametrize("settings", [{}, {"batchnorm": "recompute"}, {"mode": "train", "rng": "fixed"}])
@pytest.mark.parametrize("measure", [line, plane])
@pytest.mark.parametrize(("error", "seen"), [(Stop, TaskError), (KeyboardInterrupt, KeyboardInterrupt)])
def test_the_model_is_untouched_after_a_failure_at_the_third_point(measure, error, seen, settings):
    model = messy()
    loss = Bomb(model[0].weight, error)
    made = Task(model, loss, data(60), batch_size=16, **settings)
    before = State(model)
    with pytest.raises(seen, match="stop"):
        measure(made, seed=1)
    assert len(loss.points) == 4
    before.unchanged()


def test_an_entered_objective_stays_entered_and_at_its_centre():
    made = task()
    with Objective(made, "test") as objective:
        objective.move((random_direction(objective).tensors(objective.names),), (1.0,))
        found = line(objective, alphas=axis(1, 3))
        assert found.split == "test"
        assert found.samples == 17
        assert found.loss[1] == found.checkpoint_loss == line(made, alphas=[0.0], split="test").center_loss
        assert all(torch.equal(p, c) for p, c in zip(objective.parameters, objective.center, strict=True))
        spent = objective.passes
        assert line(objective, alphas=axis(1, 3)).cost.passes == objective.passes - spent == 3 + 1 + 7 + 9


def test_live_weights_as_a_direction_are_taken_as_they_stand():
    made = task()
    d1, steps = random_direction(made), axis(1, 3)
    expected = plane(made, d1, {n: p.detach().clone() for n, p in made.model.named_parameters()}, steps, steps)
    with Objective(made) as objective:
        found = plane(objective, d1, dict(made.model.named_parameters()), steps, steps)
    np.testing.assert_array_equal(found.loss, expected.loss)


# --------------------------------------------------------------------------------------------- what a result says


def test_checks_and_labels_of_a_plane():
    found = plane(task(), alphas=axis(1, 3), betas=axis(1, 3), seed=7)
    assert [c.name for c in found.checks] == [
        "center", "finite", "directions", "batchnorm", "samples", "slope", "bend", "interpolation",
    ]  # fmt: skip
    assert {c.level for c in found.checks} == {"pass"}
    said = {c.name: c.message for c in found.checks}
    assert "(BatchNorm layers: 1)" in said["batchnorm"]
    assert f"cosine {found.cosine:.3g}" in said["directions"]
    assert "30 samples" in said["samples"]
    assert found.seeds == (7, 7 + SECOND_SEED)
    assert found.directions[0] == "random, filter-normalized, biases and norms held, seed 7"
    oblique = random_direction(task(), 7)
    other = random_direction(task(), 8)
    for sign in (1, -1):  # as much at 135 degrees as at 45
        second = {n: sign * t + other[n] for n, t in oblique.items()}
        skew = plane(task(), oblique, second, axis(1, 3), axis(1, 3))
        assert math.copysign(1, skew.cosine) == sign
        assert level(skew, "directions") == "warn"
    assert skew.seeds == (7, None)
    assert skew.directions[1] == "given d2"


def test_a_flat_picture_of_a_noisy_loss_is_said_to_be_uncertain():
    found = line(task(), alphas=[-1e-6, 0.0, 1e-6])
    assert level(found, "samples") == "warn"
    assert found.loss_stderr > np.ptp(found.loss)


def test_turned_filters_are_told_in_the_result():
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(128, 3)).to(DOUBLE)
    assert (
        "filters of 0.weight (ConvTranspose2d) are taken along dimension 1"
        in plane(task(model), alphas=[0.0, 1.0], betas=[0.0, 1.0]).notes
    )


def test_recomputed_statistics_leave_the_slope_unchecked():
    found = line(task(batchnorm="recompute"), alphas=[0.0])
    assert "slope" not in [c.name for c in found.checks]


@pytest.mark.parametrize("measure", [line, plane])
def test_a_result_survives_the_archives_form(measure):
    made = task()
    given = {n: torch.randn_like(p) for n, p in made.model.named_parameters()}
    found = measure(made, given)
    again = rebuild(found.kind, found.variables(), json.loads(json.dumps(found.attributes())))
    for name, v in found.variables().items():
        np.testing.assert_array_equal(again.variables()[name].data, v.data)
    assert json.dumps(again.attributes()) == json.dumps(found.attributes())
    assert json.dumps(again.summary()) == json.dumps(found.summary())


def test_progress_goes_to_stderr_and_only_when_asked(capfd):
    line(task(), alphas=axis(1, 3))
    assert capfd.readouterr() == ("", "")
    line(task(), alphas=axis(1, 3), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "line" in err
    assert "3/3" in err or "0/3" in err


# ------------------------------------------------------------------------------------------------ measurements


def test_the_measurements_are_registered_with_their_presets():
    known = measurements()
    assert [known["plane"].settings(p)["grid"] for p in ("quick", "standard", "thorough")] == [15, 25, 51]
    assert [known["line"].settings(p)["grid"] for p in ("quick", "standard", "thorough")] == [31, 51, 101]
    assert known["plane"].section == "surface"


@pytest.mark.parametrize("grid", [4, 5])
@pytest.mark.parametrize("measure", [measure_line, measure_plane])
def test_the_estimate_is_what_it_costs(measure, grid):
    made = task()
    found = measure(made, grid=grid, seed=3)
    name = "line" if measure is measure_line else "plane"
    assert found.cost.passes == measurements()[name].estimate(draw_samples=30, parameters=9, grid=grid)
    assert found.loss.shape == ((grid,) if name == "line" else (grid, grid))


def test_options_reach_the_picture():
    found = measure_plane(task(), seed=3, grid=3, span=0.5, split="test", normalize="layer", ignore=None)
    assert found.alpha.tolist() == found.beta.tolist() == [-0.5, 0.0, 0.5]
    assert (found.split, found.samples, found.seeds) == ("test", 17, (3, 3 + SECOND_SEED))
    assert found.directions[0] == "random, layer-normalized, seed 3"
    expected = plane(
        task(),
        random_direction(task(), 3, "layer", None),
        random_direction(task(), 3 + SECOND_SEED, "layer", None),
        found.alpha,
        found.beta,
        split="test",
    )
    np.testing.assert_array_equal(found.loss, expected.loss)


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "alphas is empty: give at least one step"),
        ([1.0, 0.0, -1.0], "alphas is reversed, from 1 to -1"),
        ([0.0, 2.0, 1.0], "alphas is not increasing"),
        ([0.0, 0.0], "alphas is not increasing"),
        ([0.0, math.nan], "alphas holds nan: give finite steps"),
        ([[0.0, 1.0]], r"alphas has shape \(1, 2\)"),
    ],
)
def test_bad_steps_are_refused(steps, message):
    for measure in (lambda s: line(task(), alphas=s), lambda s: plane(task(), alphas=s)):
        with pytest.raises(MeasurementError, match=message):
            measure(steps)


def test_steps_that_are_no_numbers_are_a_type_error():
    with pytest.raises(TypeError, match="alphas must be a sequence of numbers, got list"):
        line(task(), alphas=["a"])
    assert line(task(), alphas=torch.tensor([0.0, 1.0])).alpha.tolist() == [0.0, 1.0]


def test_parallel_directions_span_no_plane():
    made = task()
    d = random_direction(made)
    with pytest.raises(MeasurementError, match=r"parallel \(cosine -1\.0+\): they span no plane"):
        plane(made, d, {n: -3 * t for n, t in d.items()}, [0.0], [0.0])


def test_a_direction_that_does_not_fit_is_refused_and_the_model_left_alone():
    made = task()
    before = copy.deepcopy(made.model.state_dict())
    d = dict(random_direction(made))
    with pytest.raises(MeasurementError, match=r"lacks '5\.bias'"):
        line(made, {n: t for n, t in d.items() if n != "5.bias"})
    with pytest.raises(MeasurementError, match=r"'1\.running_mean', which is no trainable parameter"):
        line(made, {**d, "1.running_mean": torch.ones(4)})
    with pytest.raises(MeasurementError, match=r"shape \(3,\) for '0\.bias', whose shape is \(4,\)"):
        line(made, {**d, "0.bias": torch.ones(3)})
    with pytest.raises(MeasurementError, match=r"'given' is not finite in '0\.bias'"):
        line(made, {**d, "0.bias": torch.full((4,), math.nan)})
    with pytest.raises(MeasurementError, match="norm zero"):
        line(made, {n: torch.zeros_like(t) for n, t in d.items()})
    with pytest.raises(TypeError, match="mapping of parameter names to tensors, got int"):
        line(made, 3)  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in made.model.state_dict().items())


def test_bad_options_are_refused():
    with pytest.raises(MeasurementError, match=r"span=0 must be a finite number above 0"):
        measure_line(task(), span=0)
    with pytest.raises(MeasurementError, match="a grid of 1 points shows no slice"):
        measure_plane(task(), grid=1)
    with pytest.raises(MeasurementError, match=r"grid=2\.5 must be a whole number"):
        measure_plane(task(), grid=2.5)  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="no 'valid' data"):
        measure_line(task(), split="valid")
