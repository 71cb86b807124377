"""Directions that the loss and other checkpoints give, and every quantity beside the loss, against closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from untouched import State, data, messy

from landscape import Objective, Task, direction_between, gradient_direction, hessian_directions, line, plane, project
from landscape.errors import MeasurementError
from landscape.surface.checks import AUTOCAST
from landscape.surface.directions import Direction, cosine, random_direction, rescaled
from landscape.surface.grid import axis
from landscape.surface.measure import checkpoint_paths, measure_plane

#: Sums of a few hundred float64 numbers in another order.
EXACT = 1e-10
DOUBLE = torch.float64


def regression() -> tuple[Task, np.ndarray]:
    """Return a linear regression and the Hessian of its mean squared error, 2 X^T X / n, the bias last."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 4, generator=g, dtype=DOUBLE) * torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=DOUBLE)
    y = torch.randn(30, 1, generator=g, dtype=DOUBLE)
    torch.manual_seed(1)
    design = np.c_[x.numpy(), np.ones(30)]
    return Task(nn.Linear(4, 1).to(DOUBLE), nn.MSELoss(), (x, y), batch_size=7), 2 * design.T @ design / 30


def classifier(dtype: torch.dtype = DOUBLE, **settings) -> Task:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
    model(data(40, dtype)[0])
    return Task(model.eval(), nn.CrossEntropyLoss(), data(40, dtype), data(25, dtype), batch_size=16, **settings)


def flat(d: Direction) -> np.ndarray:
    return np.concatenate([t.numpy().ravel() for t in d.values()])


# -------------------------------------------------------------------------------------------------- directions


def test_the_gradients_direction_is_autograds():
    task = classifier()
    d = gradient_direction(task, length=2.5)
    F.cross_entropy(task.model(data(40)[0]), data(40)[1]).backward()
    for name, p in task.model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(d[name] / 2.5 * _norm(p.grad for p in task.model.parameters()), p.grad)
    assert d.norm == pytest.approx(2.5)
    weights = [p for p in task.model.parameters() if p.ndim > 1]
    assert gradient_direction(task).norm == pytest.approx(_norm(weights))
    assert line(task, d, [-0.001, 0.0, 0.001]).slope > 0


def _norm(tensors) -> float:
    return math.sqrt(sum(float(t.detach().square().sum()) for t in tensors))


def test_a_gradient_of_zero_has_no_direction():
    x = torch.ones(6, 2, dtype=DOUBLE)
    model = nn.Linear(2, 1).to(DOUBLE)
    with pytest.raises(MeasurementError, match="gradient is zero"):
        gradient_direction(Task(model, nn.MSELoss(), (x, model(x).detach())))


def test_eigenvectors_are_those_of_the_dense_hessian():
    task, dense = regression()
    values, vectors = np.linalg.eigh(dense)
    first, second = hessian_directions(task, 2, tol=1e-8, length=1.0)
    for d, k in ((first, -1), (second, -2)):
        assert abs(flat(d) @ vectors[:, k]) == pytest.approx(1, abs=1e-6)
        assert f"eigenvalue {values[k]:.6g}" in d.label
    assert abs(cosine(first, second)) < 1e-6
    found = plane(task, first, second, [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0])
    np.testing.assert_allclose(found.curvatures, np.diag(values[[-1, -2]]), atol=1e-5)
    both = hessian_directions(task, 1, which="both", tol=1e-8, length=1.0)
    assert abs(flat(both[1]) @ vectors[:, 0]) == pytest.approx(1, abs=1e-6)
    assert "smallest" in both[1].label


def test_the_way_between_two_states_ends_in_the_second():
    task = classifier()
    other = copy.deepcopy(task.model)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=DOUBLE))
    d = direction_between(task, other.state_dict())
    found = line(task, d, [0.0, 0.5, 1.0])
    x, y = data(40)
    assert found.loss[2] == pytest.approx(float(F.cross_entropy(other(x), y).detach()), rel=EXACT)
    back = direction_between(task, other, task.model)
    np.testing.assert_allclose(flat(back), -flat(d), rtol=EXACT)
    turned = direction_between(task, other, normalize="filter")
    np.testing.assert_allclose(turned["0.weight"].norm(dim=1), task.model[0].weight.detach().norm(dim=1), rtol=EXACT)


@pytest.mark.parametrize("dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)])
def test_the_way_between_states_of_half_precision_ends_in_the_second(dtypes):
    task = Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), (torch.eye(4), torch.tensor([0, 1, 2, 0])))
    g = torch.Generator().manual_seed(5)
    a, b = (
        {n: torch.randn(p.shape, generator=g).to(dtype) for n, p in task.model.state_dict().items()} for dtype in dtypes
    )
    d = direction_between(task, a, b)
    for name, t in d.items():
        torch.testing.assert_close(t.double(), b[name].double() - a[name].double(), rtol=1e-6, atol=0)  # of float32


def test_a_direction_is_split_into_its_share_of_others():
    task = classifier()
    a, b, c = (random_direction(task, s, None, None) for s in range(3))
    mixed = Direction({n: 2 * a[n] - 0.5 * b[n] for n in a})
    found = project(mixed, [a, b])
    np.testing.assert_allclose(found.coefficients, [2, -0.5], rtol=EXACT)
    assert found.captured == pytest.approx(1, abs=EXACT)
    alone = project(c, [a])
    assert alone.captured == pytest.approx(cosine(a, c) ** 2, rel=EXACT)
    rest = flat(c) - alone.coefficients[0] * flat(a)
    assert abs(rest @ flat(a)) < 1e-9
    with pytest.raises(MeasurementError, match="parallel"):
        project(c, [a, a.of_norm(3.0)])
    with pytest.raises(MeasurementError, match="at least one"):
        project(c, [])


@pytest.mark.parametrize("normalize", ["filter", "layer"])
def test_rescaled_directions_have_the_norms_of_the_weights(normalize):
    torch.manual_seed(2)
    model = nn.Sequential(nn.ConvTranspose1d(3, 2, 2), nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4)).to(DOUBLE)
    with torch.no_grad():
        model[2].weight[1] *= 5  # type: ignore[index]  # filters of unlike size
    task = Task(model.eval(), nn.CrossEntropyLoss(), (torch.ones(6, 3, 3, dtype=DOUBLE), torch.arange(6) % 4))
    given = dict(random_direction(task, 0, None, None))
    given["2.weight"][3] = 0  # a filter that the direction doesn't move has no norm to be given
    d = rescaled(task, Direction(given), normalize)
    factors = []
    # Filters lie along dimension 0, those of a transposed convolution along 1.
    for name, along in (("0.weight", 1), ("2.weight", 0)):
        w, g = (np.moveaxis(t.detach().numpy(), along, 0) for t in (model.get_parameter(name), given[name]))
        if normalize == "filter":
            pairs = [(np.linalg.norm(a), np.linalg.norm(b)) for a, b in zip(w, g, strict=True)]
        else:
            pairs = [(np.linalg.norm(w), np.linalg.norm(g))] * len(w)
        each = np.array([a / b if b else 0.0 for a, b in pairs])
        expected = g * each.reshape(-1, *[1] * (g.ndim - 1))
        np.testing.assert_allclose(np.moveaxis(d[name].numpy(), along, 0), expected, rtol=EXACT)
        factors.append(each.mean())
    for name in ("0.bias", "2.bias", "3.weight", "3.bias"):
        np.testing.assert_allclose(d[name].numpy(), given[name].numpy() * np.mean(factors), rtol=EXACT)
    said = ("filters of 0.weight (ConvTranspose1d) are taken along dimension 1",)
    assert d.notes == (said if normalize == "filter" else ())
    assert d.filter_dims == ({"0.weight": 1} if normalize == "filter" else {})
    with pytest.raises(MeasurementError, match="can't rescale"):
        rescaled(task, d, "weight")


@pytest.mark.parametrize("directions", ["random", "gradient", "hessian"])
def test_the_measurement_takes_each_kind(directions):
    model = messy()
    task = Task(model, nn.CrossEntropyLoss(), data(60), data(61), batch_size=16)
    before = State(model)
    found = measure_plane(task, grid=3, directions=directions, seed=1)
    before.unchanged()
    assert found.loss[1, 1] == found.center_loss
    assert {"random": "random", "gradient": "gradient", "hessian": "Hessian eigenvector 1"}[directions] in (
        found.directions[0]
    )


def test_a_plane_along_a_trajectory_is_measured_around_its_end(tmp_path):
    task = classifier()
    paths = []
    g = torch.Generator().manual_seed(0)
    for step in (1, 2, 10):
        scale = 0.0 if step == 10 else 0.1
        state = {
            k: v + scale * torch.randn(v.shape, generator=g) if v.is_floating_point() else v
            for k, v in task.model.state_dict().items()
        }
        paths.append(str(tmp_path / f"step-{step}.pt"))
        torch.save(state, paths[-1])
    assert checkpoint_paths(str(tmp_path / "step-*.pt")) == paths  # 10 comes after 2
    found = measure_plane(task, grid=5, directions="trajectory", checkpoints=str(tmp_path / "*.pt"))
    assert "principal axis 1 of 3 checkpoints" in found.directions[0]
    for wrong, message in ((None, "needs its checkpoints"), ("nothing-*.pt", "matches"), (paths[:2], "at least three")):
        with pytest.raises(MeasurementError, match=message):
            measure_plane(task, grid=5, directions="trajectory", checkpoints=wrong)
    with pytest.raises(MeasurementError, match="set directions=trajectory"):
        measure_plane(task, grid=5, checkpoints=paths)
    with pytest.raises(MeasurementError, match="is none of random, gradient"):
        measure_plane(task, grid=5, directions="pca")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------- what is measured too


@pytest.mark.parametrize("batchnorm", ["eval", "recompute"])
def test_held_out_data_are_measured_at_the_same_weights(batchnorm):
    task = classifier(batchnorm=batchnorm)
    steps = axis(1, 3)
    both = plane(task, alphas=steps, betas=steps, held_out=True)
    train = plane(task, alphas=steps, betas=steps)
    np.testing.assert_array_equal(both.loss, train.loss)
    np.testing.assert_array_equal(both.accuracy, train.accuracy)
    if batchnorm == "eval":
        test = plane(task, alphas=steps, betas=steps, split="test")
        np.testing.assert_array_equal(both.held_out_loss, test.loss)
        np.testing.assert_array_equal(both.held_out_accuracy, test.accuracy)
    else:  # the statistics are those of the training data, as they are in use, not of the data that are judged
        d1 = random_direction(task)
        model = copy.deepcopy(task.model)
        with torch.no_grad():
            for n, p in model.named_parameters():
                p.add_(d1[n])
        parts = [data(40)[0][i : i + 16] for i in (0, 16, 32)]
        seen = [model[0](p).detach() for p in parts]
        model[1].running_mean.copy_(torch.cat(seen).mean(0))
        model[1].running_var.copy_(sum(len(s) / 40 * s.var(0) for s in seen))
        x, y = data(25)
        assert both.held_out_loss is not None
        assert both.held_out_loss[2, 1] == pytest.approx(float(F.cross_entropy(model(x), y).detach()), rel=EXACT)
    assert line(task, alphas=steps, held_out=True).held_out_loss[1] == both.held_out_loss[1, 1]


def test_held_out_data_must_be_there():
    task = classifier().replace(test=None)
    with pytest.raises(MeasurementError, match="give the task both train and test"):
        line(task, alphas=[0.0], held_out=True)


def test_several_criteria_come_from_one_pass():
    calls = []

    def loss(outputs, target):
        calls.append(1)
        return {"fit": F.cross_entropy(outputs, target), "size": 0.01 * outputs.square().mean()}

    task = classifier().replace(loss=loss)
    criteria = {"hinge": nn.MultiMarginLoss(), "confidence": lambda o, t: o.softmax(1).amax(1).mean()}
    found = plane(task, alphas=[0.0, 1.0], betas=[0.0, 0.5], criteria=criteria)
    assert found.term_names == ("fit", "size", "hinge", "confidence")
    assert found.terms is not None
    np.testing.assert_allclose(found.terms[0] + found.terms[1], found.loss, rtol=EXACT)
    x, y = data(40)
    outputs = task.model(x).detach()
    assert found.terms[2][0, 0] == pytest.approx(float(nn.MultiMarginLoss()(outputs, y)), rel=EXACT)
    # Batches of 16, 16 and 8: a criterion that says no weight is averaged by samples.
    assert found.terms[3][0, 0] == pytest.approx(float(outputs.softmax(1).amax(1).mean()), rel=EXACT)
    with pytest.raises(MeasurementError, match="'fit' has the name"):
        line(task, alphas=[0.0], criteria={"fit": nn.MultiMarginLoss()})
    with pytest.raises(TypeError, match="must be a function"):
        line(task, alphas=[0.0], criteria={"x": 3})  # type: ignore[dict-item]


def test_class_weights_weigh_a_criterion_too():
    task = classifier()
    weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 0.2], dtype=DOUBLE))
    found = line(task, alphas=[0.0], criteria={"weighted": weighted})
    assert found.terms is not None
    x, y = data(40)
    assert found.terms[0, 0] == pytest.approx(float(weighted(task.model(x), y).detach()), rel=EXACT)


def test_autocast_is_near_and_says_how_near():
    task = classifier(torch.float32)
    before = State(task.model)
    exact, low = (plane(task, alphas=axis(2, 5), betas=axis(2, 5), autocast=a) for a in (None, "bfloat16"))
    before.unchanged()
    (check,) = [c for c in low.checks if c.name == "autocast"]
    worst = np.abs(low.loss - exact.loss).max()
    assert 0 < worst < 0.1 * np.ptp(exact.loss)
    assert check.value <= worst / np.ptp(low.loss) + 1e-12
    assert check.value > 0
    assert check.limit == AUTOCAST
    assert low.checkpoint_loss == exact.checkpoint_loss
    assert {c.name: c.level for c in low.checks}["center"] == "pass"
    assert low.settings["autocast"] == "bfloat16"


def test_autocast_is_refused_where_it_means_nothing():
    with pytest.raises(MeasurementError, match="float32 weights"):
        line(classifier(), alphas=[0.0], autocast="bfloat16")
    with pytest.raises(MeasurementError, match="none of bfloat16 and float16"):
        line(classifier(torch.float32), alphas=[0.0], autocast="fp8")  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- bend


def test_a_quadratic_does_not_bend_away_from_its_model():
    task, dense = regression()
    d1, d2 = (random_direction(task, s, None, None) for s in (0, 1))
    found = plane(task, d1, d2, axis(3, 5), axis(3, 5))
    both = np.stack([flat(d1), flat(d2)])
    np.testing.assert_allclose(found.curvatures, both @ dense @ both.T, rtol=EXACT)
    assert found.bend < 1e-9
    alone = line(task, d1, axis(3, 5))
    assert alone.curvature == pytest.approx(found.curvatures[0, 0], rel=EXACT)
    assert alone.slope == pytest.approx(found.slopes[0], rel=EXACT)
    assert "misses the rise by up to 0.0%" in {c.name: c.message for c in found.checks}["bend"]


def test_a_loss_of_fourth_order_bends_as_it_should():
    class Fourth(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1, 1, dtype=DOUBLE))

        def forward(self, x):
            return x @ self.w

    def loss(outputs, target):
        return (outputs.square() + outputs**4 + target).mean()

    task = Task(Fourth(), loss, (torch.ones(4, 1, dtype=DOUBLE), torch.ones(4, 1, dtype=DOUBLE)))
    found = line(task, {"w": torch.ones(1, 1, dtype=DOUBLE)}, [-0.5, 0.0, 0.5, 2.0])
    assert (found.slope, found.curvature) == (0, 2)
    # w^2 + w^4 against w^2 at 1/2: 1/16 of 5/16; at 2: 16 of 20.
    assert found.bend == pytest.approx(0.2, rel=EXACT)
    assert "by 80.0% at the farthest" in {c.name: c.message for c in found.checks}["bend"]


def test_without_a_second_derivative_the_picture_stands_and_says_so():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * ctx.saved_tensors[0] * g

    task = classifier().replace(loss=lambda o, t: Once.apply(o).mean())
    found = line(task, alphas=axis(1, 3))
    (check,) = [c for c in found.checks if c.name == "bend"]
    assert check.level == "pass"
    assert "was not compared with its quadratic model" in check.message
    assert math.isnan(found.curvature)
    assert math.isfinite(found.slope)
    assert "bend" not in [c.name for c in line(task, alphas=axis(1, 3), bend=False).checks]


def test_accuracy_is_right_whatever_the_labels_hold():
    # Labels to be ignored, and labels that the forward makes anew each time, must not be taken for plain ones.
    x, y = data(40)
    y = y.clone()
    y[::3] = -100
    for forward in (None, lambda model, batch: (model(batch[0]), batch[1].clone())):
        task = Task(classifier().model, nn.CrossEntropyLoss(), (x, y), batch_size=16, forward=forward)
        kept = y >= 0
        expected = task.model(x).argmax(1)[kept].eq(y[kept]).double().mean().item()
        with Objective(task) as objective:
            for _ in range(2):
                assert objective.evaluate(accuracy=True).accuracy == pytest.approx(expected, rel=EXACT)
