"""Paths between states: closed forms, exact ends, paired errors, running statistics, the trained curve, bad input."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from untouched import State, data, messy

from landscape import read_checkpoint, save_checkpoint
from landscape.cli.summary import summarize
from landscape.errors import CheckpointError, MeasurementError
from landscape.objective import Objective
from landscape.passes import Evaluation
from landscape.results import rebuild
from landscape.surface.barriers import _resolution, paired_error
from landscape.surface.path import interpolate
from landscape.surface.walk import bezier_weights
from landscape.tasks import Task

#: Losses of at most 100 samples in float64, summed in another order.
EXACT = 1e-12

DOUBLE = torch.float64


def regression(n: int = 12) -> tuple[Task, np.ndarray, np.ndarray]:
    """Return a linear regression in unequal batches, its design matrix and targets."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, k, generator=g, dtype=DOUBLE) for k in (3, 1))
    batches = [(x[a:b], y[a:b]) for a, b in ((0, 4), (4, n - 1), (n - 1, n))]
    model = nn.Linear(3, 1, bias=False).to(DOUBLE)
    return Task(model, nn.MSELoss(), batches), x.numpy(), y.numpy()[:, 0]


def weight(*values: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([values], dtype=DOUBLE)}


def normed(seed: int) -> nn.Sequential:
    """Return a net with BatchNorm whose running statistics are its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).to(DOUBLE)
    model(3 * torch.randn(40, 5, dtype=DOUBLE) + seed)
    return model.eval()


def classes(**settings) -> Task:
    return Task(normed(9), nn.CrossEntropyLoss(), data(40), data(23), batch_size=16, **settings)


def level(path, name: str) -> str:
    return {c.name: c.level for c in path.checks}[name]


# ------------------------------------------------------------------------------------------------ closed forms


def test_along_a_parabola_the_excess_is_its_curvature_and_never_a_barrier():
    task, x, y = regression()
    a, b = np.array([1.0, -2.0, 0.5]), np.array([-0.5, 1.0, 3.0])
    found = interpolate(task, weight(*a), weight(*b), points=5)
    t = np.linspace(0, 1, 5)
    expected = np.array([((x @ ((1 - s) * a + s * b) - y) ** 2).mean() for s in t])
    np.testing.assert_allclose(found.loss[0], expected, rtol=EXACT)
    # L(t) - (1 - t) L(0) - t L(1) = -t (1 - t) (b - a)^T (X^T X / n) (b - a)
    bend = ((x @ (b - a)) ** 2).mean()
    np.testing.assert_allclose(found.excess[0], -t * (1 - t) * bend, rtol=EXACT, atol=EXACT * expected.max())
    assert found.barrier[0, 0] == 0
    assert found.distance[0] == pytest.approx(np.linalg.norm(b - a), rel=EXACT)
    assert found.accuracy is None


def bump(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the mean over samples of a_i (1 - w^2)^2 + b_i w + c_i: each has its own barrier from -1 to 1."""
    w = model.weight.reshape(())
    return (batch[0][:, 0] * (1 - w**2) ** 2 + batch[0][:, 1] * w + batch[0][:, 2]).mean()


def bumps(n: int = 50) -> tuple[Task, np.ndarray]:
    # Samples differ by ten times as much in their level as in their barrier.
    heights = torch.rand(n, 3, generator=torch.Generator().manual_seed(3), dtype=DOUBLE) * torch.tensor([1, 1, 10.0])
    made = nn.Linear(1, 1, bias=False).to(DOUBLE)
    return Task(made, train=[(heights, torch.zeros(n))], batch_loss=bump), heights.numpy()


def test_the_barrier_is_above_the_line_between_the_ends_and_its_error_is_that_of_paired_samples():
    task, h = bumps()
    found = interpolate(task, weight(-1.0), weight(1.0), points=9)
    assert found.barrier[0, 0] == pytest.approx(h[:, 0].mean(), rel=EXACT)
    assert found.barrier_at[0, 0] == 0.5
    # Each of the 50 samples is a block of its own: the standard error of a mean. Slopes and levels cancel in it.
    assert found.barrier_stderr[0, 0] == pytest.approx(h[:, 0].std(ddof=1) / math.sqrt(50), rel=1e-9)
    assert found.loss_stderr[0, 0] == pytest.approx((h[:, 2] - h[:, 1]).std(ddof=1) / math.sqrt(50), rel=1e-9)
    assert found.loss_stderr[0, 0] > 5 * found.barrier_stderr[0, 0]
    # Frankle et al.: from the mean of the two ends, which lie at mean(c) -+ mean(b).
    assert found.instability[0, 0] == pytest.approx(found.loss[0].max() - h[:, 2].mean(), rel=EXACT)


def test_without_the_same_samples_at_each_point_there_is_no_paired_error():
    a = Evaluation(1.5, blocks=((1.0, 2.0), (2.0, 2.0)))
    b = Evaluation(2.5, blocks=((1.0, 1.0), (3.0, 3.0)))  # weighed otherwise
    assert math.isnan(paired_error((a, b), (1.0, -1.0)))
    assert math.isnan(paired_error((b, a, a), (1.0, -0.5, -0.5)))
    assert paired_error((a, a), (1.0, -0.5)) == pytest.approx(0.25)  # half the difference of two samples, over 2


def test_a_barrier_between_the_points_is_that_of_the_parabola():
    # 1 - 4 (t - 0.55)^2 over five points: the top lies a fifth of a step behind the middle one.
    position = np.linspace(0, 1, 5)
    excess = 1 - 4 * (position - 0.55) ** 2
    inside, tops = [np.arange(5)], np.array([[2]])
    for error, expected in ((0.02, "pass"), (0.005, "warn")):
        errors = np.array([[0.0, 1.0, error, 1.0, 0.0]])
        check = _resolution(position, excess[None], errors, tops, inside, ("train",))
        assert check.value == pytest.approx(1 - excess[2])
        assert (check.level, check.limit) == (expected, error)


def test_three_states_make_two_segments_that_share_the_state_between():
    task, h = bumps()
    found = interpolate(task, weight(-1.0), weight(1.0), weight(-1.0), points=5)
    assert found.position.tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    np.testing.assert_allclose(found.barrier[0], h[:, 0].mean(), rtol=EXACT)
    assert found.barrier_at[0].tolist() == [0.5, 1.5]
    np.testing.assert_allclose(found.loss[0], found.loss[0, ::-1], rtol=EXACT)
    np.testing.assert_allclose(found.barrier_stderr[0], h[:, 0].std(ddof=1) / math.sqrt(50), rtol=1e-9)
    np.testing.assert_allclose(found.distance, [2.0, 2.0])


def test_each_point_is_the_loss_of_the_mixed_model():
    states, task = [normed(1), normed(2)], classes()
    found = interpolate(task, *states, points=5, batchnorm="interpolate", splits=("train", "test"))
    for i, (x, y) in enumerate((data(40), data(23))):
        for j, t in enumerate(found.position):
            mixed = normed(9)
            a, b = (s.state_dict() for s in states)
            mixed.load_state_dict({k: (1 - t) * a[k] + t * b[k] if a[k].is_floating_point() else a[k] for k in a})
            outputs = mixed(x).detach()
            assert found.loss[i, j] == pytest.approx(float(F.cross_entropy(outputs, y)), rel=EXACT)
            assert found.accuracy[i, j] == pytest.approx(float((outputs.argmax(1) == y).double().mean()), rel=EXACT)
    assert found.samples.tolist() == [40, 23]
    assert found.batchnorm == "interpolate"


# -------------------------------------------------------------------------------------------------------- ends


def test_interpolated_ends_are_the_checkpoints_bit_for_bit():
    states = [normed(1), normed(2), normed(3)]
    found = interpolate(classes(), *states, points=4, batchnorm="interpolate")
    for i, model in enumerate(states):
        with Objective(Task(model, nn.CrossEntropyLoss(), data(40), batch_size=16)) as own:
            assert found.loss[0, 3 * i] == own.evaluate().loss == found.own_loss[0, i]
    assert level(found, "ends") == "pass"


def test_recomputed_statistics_are_those_of_the_train_draw_on_both_splits():
    states = [normed(1), normed(2)]
    found = interpolate(classes(), *states, points=3, splits=("test",))
    mixed = normed(9)
    a, b = (s.state_dict() for s in states)
    mixed.load_state_dict({k: (a[k] + b[k]) / 2 if a[k].is_floating_point() else a[k] for k in a})
    # Each batch counts by its samples: 16, 16 and 8.
    hidden = [h.detach() for h in mixed[0](data(40)[0]).split(16)]
    mixed[1].running_mean.copy_(torch.cat(hidden).mean(0))
    mixed[1].running_var.copy_(sum(len(h) * h.var(0) for h in hidden) / 40)
    mixed.eval()
    x, y = data(23)
    assert found.loss[0, 1] == pytest.approx(F.cross_entropy(mixed(x), y).item(), rel=EXACT)
    assert found.batchnorm == "recompute"
    assert found.own_loss[0, 0] == pytest.approx(F.cross_entropy(states[0](x), y).item(), rel=EXACT)
    assert found.own_loss[0, 0] != pytest.approx(found.loss[0, 0], rel=1e-6)


@pytest.mark.parametrize(("asked", "said"), [("recompute", "recompute"), ("interpolate", "interpolate")])
def test_the_result_says_what_the_running_statistics_are(asked, said):
    found = interpolate(classes(), normed(1), normed(2), points=3, batchnorm=asked)
    assert found.batchnorm == said
    assert f"running statistics {said}" in summarize({"path": found})
    task, _ = bumps()
    assert "statistics" not in summarize({"path": interpolate(task, weight(-1.0), weight(1.0), points=3)})
    assert interpolate(task, weight(-1.0), weight(1.0), points=3, batchnorm=asked).batchnorm == "none"
    task = classes(batchnorm="batch")
    assert interpolate(task, normed(1), normed(2), points=3, batchnorm=asked).batchnorm == "batch"


def test_states_come_from_dicts_modules_checkpoints_and_files(tmp_path):
    a, b = normed(1), normed(2)
    save_checkpoint(tmp_path / "b.pt", b)
    torch.save({"state_dict": {f"module.{k}": v for k, v in a.state_dict().items()}}, tmp_path / "a.ckpt")
    torch.save(a.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    expected = interpolate(classes(), a, b, points=3).loss
    for first in (a.state_dict(), tmp_path / "a.ckpt", tmp_path / "old.pt", {"model": a.state_dict()}):
        for second in (str(tmp_path / "b.pt"), read_checkpoint(tmp_path / "b.pt")):
            np.testing.assert_array_equal(interpolate(classes(), first, second, points=3).loss, expected)
    named = interpolate(classes(), tmp_path / "a.ckpt", b, points=3)
    assert named.states == (str(tmp_path / "a.ckpt"), "state 2")
    assert any("module." in note for note in named.notes)


def test_frozen_parameters_go_along():
    states = [normed(1), normed(2)]
    task = classes()
    for p in task.model[0].parameters():
        p.requires_grad_(False)
    free = interpolate(classes(), *states, points=4, batchnorm="interpolate")
    np.testing.assert_array_equal(interpolate(task, *states, points=4, batchnorm="interpolate").loss, free.loss)


class Scaled(nn.Module):
    """w x times a buffer that is no running statistic."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(scale, dtype=DOUBLE))
        self.register_buffer("scale", torch.tensor([scale], dtype=DOUBLE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale * self.weight


def test_buffers_that_are_no_statistics_go_along():
    ones = torch.ones(4, 1, dtype=DOUBLE)
    found = interpolate(Task(Scaled(1.0), nn.MSELoss(), (ones, 0 * ones)), Scaled(1.0), Scaled(3.0), points=3)
    assert found.loss[0].tolist() == [1.0, 16.0, 81.0]
    assert found.own_loss[0].tolist() == [1.0, 81.0]


# ------------------------------------------------------------------------------------------------------- curve


def test_the_shares_of_a_bezier_curve_add_up():
    for t in (0.0, 0.3, 1.0):
        assert sum(bezier_weights(t)) == pytest.approx(1.0, rel=1e-15)
    assert bezier_weights(0.0) == (1, 0, 0)
    assert bezier_weights(1.0) == (0, 0, 1)


def ring(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Return (|w|^2 - 1)^2: zero on a circle, with a hill of height 1 in its middle."""
    return (model.weight.square().sum() - 1) ** 2 + 0 * batch.mean()


def test_a_trained_curve_goes_around_the_hill():
    model = nn.Linear(2, 1, bias=False).to(DOUBLE)
    task = Task(model, train=[torch.zeros(4, 1, dtype=DOUBLE)], batch_loss=ring, rebatch=False)
    ends = weight(1.0, 0.0), weight(-0.8, 0.6)
    straight = interpolate(task, *ends, points=21)
    curved = interpolate(task, *ends, points=21, curve="bezier", steps=400, rate=0.05)
    assert straight.barrier[0, 0] > 0.8
    # No parabola lies on a circle. The best one through these ends has a largest loss of 0.04 (a grid of middles).
    assert curved.barrier[0, 0] < 0.1
    middle = curved.middles[0]["weight"]
    t = curved.position[7]
    shares = bezier_weights(t)
    at = sum(c * w for c, w in zip(shares, (ends[0]["weight"], middle, ends[1]["weight"]), strict=True))
    assert curved.loss[0, 7] == pytest.approx(float((at.square().sum() - 1) ** 2), rel=1e-10)
    assert curved.training_loss.shape == (1, 400)
    assert curved.curve == "bezier"
    assert curved.seed == 0


def test_the_middle_follows_autograds_gradient_by_adam():
    model = nn.Linear(2, 1, bias=False).to(DOUBLE)
    task = Task(model, train=[torch.zeros(4, 1, dtype=DOUBLE)], batch_loss=ring, rebatch=False)
    a, b = (weight(*v)["weight"] for v in ((1.0, 0.0), (-0.8, 0.6)))
    found = interpolate(task, {"weight": a}, {"weight": b}, points=3, curve="bezier", steps=5, rate=0.2, seed=3)
    # Each step draws its t behind the order of the batches, of which there is one.
    generator = torch.Generator().manual_seed(3)
    m = ((a + b) / 2).requires_grad_()
    optimizer = torch.optim.Adam([m], lr=0.2 * float((b - a).square().mean().sqrt()))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    for _ in range(5):
        torch.randperm(1, generator=generator)
        t = float(torch.rand((), generator=generator, dtype=DOUBLE))
        first, middle, last = bezier_weights(t)
        optimizer.zero_grad()
        ((first * a + middle * m + last * b).square().sum() - 1).square().backward()
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(found.middles[0]["weight"], m.detach(), rtol=1e-10, atol=0)


def test_a_curves_middle_has_the_statistics_half_way():
    states = [normed(1), normed(2)]
    found = interpolate(classes(), *states, points=3, curve="bezier", steps=2)
    for name in ("1.running_mean", "1.running_var"):
        half = (states[0].state_dict()[name] + states[1].state_dict()[name]) / 2
        torch.testing.assert_close(found.middles[0][name], half)


def test_a_curve_follows_from_its_seed_and_hands_its_middle_back():
    states = [normed(1), normed(2)]
    first, again, other = (
        interpolate(classes(), *states, points=3, curve="bezier", steps=8, seed=s) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.loss, again.loss)
    assert not np.array_equal(first.loss, other.loss)
    normed(9).load_state_dict(first.middles[0])
    assert rebuild("path", first.variables(), first.attributes()).middles is None


class Tied(nn.Module):
    """Embeds tokens and reads them out by the same matrix."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(5, 3)
        self.mix = nn.Linear(3, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embed.weight
        self.to(DOUBLE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.mix(self.embed(x))))


def test_tied_weights_follow_the_curve_under_all_their_names():
    x, y = (torch.randint(5, (30,), generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    a, b = Tied(1), Tied(2)
    found = interpolate(Task(Tied(0), nn.CrossEntropyLoss(), (x, y)), a, b, points=5, curve="bezier", steps=20)
    (middle,) = found.middles
    assert torch.equal(middle["embed.weight"], middle["out.weight"])
    for t, loss in zip(found.position, found.loss[0], strict=True):
        between = Tied(0)
        shares = zip(bezier_weights(float(t)), (a.state_dict(), middle, b.state_dict()), strict=True)
        parts = [{name: c * w for name, w in state.items()} for c, state in shares]
        between.load_state_dict({name: sum(part[name] for part in parts) for name in middle})
        assert loss == pytest.approx(F.cross_entropy(between(x), y).item(), rel=EXACT)


def test_complex_weights_are_mixed_along_the_way():
    class Waves(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.w = nn.Parameter(torch.randn(3, dtype=torch.complex128))
            self.scale = nn.Parameter(torch.randn(1, dtype=DOUBLE))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * torch.fft.irfft(torch.fft.rfft(x) * self.w, n=4)

    x, y = (torch.randn(8, 4, generator=torch.Generator().manual_seed(s), dtype=DOUBLE) for s in (0, 1))
    a, b = Waves(1), Waves(2)
    found = interpolate(Task(Waves(0), nn.MSELoss(), (x, y)), a, b, points=3)
    halfway = Waves(0)
    halfway.load_state_dict({k: (v + b.state_dict()[k]) / 2 for k, v in a.state_dict().items()})
    assert found.loss[0, 1] == pytest.approx(F.mse_loss(halfway(x), y).item(), rel=EXACT)


def test_a_curve_that_diverges_says_so():
    task, _ = bumps()
    with pytest.raises(MeasurementError, match="lower rate"):
        interpolate(task, weight(-1.0), weight(1.0), curve="bezier", steps=50, rate=1e200)


# ------------------------------------------------------------------------------------------------- not finite


def test_a_hole_on_the_path_is_kept_and_no_barrier_hides_it():
    def log(model, batch):
        return model.weight.sum().log() + batch.mean()

    model = nn.Linear(2, 1, bias=False).to(DOUBLE)
    task = Task(model, train=[torch.zeros(4, 1, dtype=DOUBLE)], batch_loss=log, rebatch=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    found = interpolate(task, weight(1.0, 0.0), weight(-3.0, 0.0), weight(2.0, 0.0), points=5)
    assert np.isnan(found.loss).any()
    assert np.isnan(found.barrier).all()
    assert level(found, "finite") == "warn"
    assert "nan" in str(found.summary())


# --------------------------------------------------------------------------------------------------- restored


@pytest.mark.parametrize("curve", ["linear", "bezier"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_callers_model_and_states_are_untouched(curve, error):
    model = messy()
    states = [copy.deepcopy(model).state_dict() for _ in range(2)]
    states[1] = {k: v + 0.1 if v.is_floating_point() else v for k, v in states[1].items()}
    kept = [{k: v.clone() for k, v in s.items()} for s in states]
    calls = 0

    def loss(outputs, target):
        nonlocal calls
        calls += 1
        if error is not None and calls == 60:
            raise error("stop")
        return F.cross_entropy(outputs, target)

    task = Task(model, loss, data(60, torch.float32), batch_size=16)
    before = State(model)
    if error is None:
        interpolate(task, *states, points=5, curve=curve, steps=10)
    else:
        with pytest.raises((RuntimeError, ValueError, KeyboardInterrupt), match="stop"):
            interpolate(task, *states, points=5, curve=curve, steps=10)
        assert calls == 60
    before.unchanged()
    for s, k in zip(states, kept, strict=True):
        assert all(torch.equal(s[n], k[n]) for n in k)


# --------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_path_is_refused(tmp_path):
    task, _ = bumps()
    with pytest.raises(MeasurementError, match="at least two states, got 1"):
        interpolate(task, weight(1.0))
    with pytest.raises(MeasurementError, match=r"states 1 and 2 \(state 1 and state 2\) are identical"):
        interpolate(task, weight(1.0), weight(1.0))
    with pytest.raises(CheckpointError, match=r"state 2 does not fit .*'weight' \(1, 2\) in the file, \(1, 1\)"):
        interpolate(task, weight(1.0), weight(1.0, 2.0))
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        interpolate(task, weight(1.0), tmp_path / "missing.pt")
    with pytest.raises(MeasurementError, match="state 1 is not finite in 'weight'"):
        interpolate(task, weight(math.nan), weight(1.0))
    with pytest.raises(TypeError, match="state 2 is a int"):
        interpolate(task, weight(1.0), 3)
    with pytest.raises(TypeError, match=r"needs a landscape\.Task"):
        interpolate(normed(1), weight(1.0), weight(2.0))
    for bad in (
        {"points": 2}, {"points": 2.5}, {"curve": "cubic"}, {"batchnorm": "eval"}, {"splits": "train"},
        {"splits": ("validation",)}, {"curve": "bezier", "steps": 0}, {"curve": "bezier", "rate": 0.0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="|".join(map(str, [*bad, "split", "validation"]))):
            interpolate(task, weight(1.0), weight(2.0), **bad)


def test_a_parameter_that_the_model_saves_under_another_name_is_named():
    class Renamed(nn.Linear):
        def state_dict(self, *args, **kwargs):
            return {k.replace("weight", "kernel"): v for k, v in super().state_dict(*args, **kwargs).items()}

    model = Renamed(2, 1).to(DOUBLE)
    task = Task(model, nn.MSELoss(), (torch.randn(4, 2, dtype=DOUBLE), torch.randn(4, 1, dtype=DOUBLE)))
    other = {k: v + 1 for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not hold the parameter 'weight'"):
        interpolate(task, model.state_dict(), other)


def test_whole_numbers_that_differ_have_nothing_between_them():
    class Masked(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, dtype=DOUBLE))
            self.register_buffer("mask", torch.tensor(mask))

        def forward(self, x):
            return (x * self.weight * self.mask).sum(1, keepdim=True)

    x = torch.randn(8, 3, dtype=DOUBLE)
    task = Task(Masked([True, True, False]), nn.MSELoss(), (x, x[:, :1]))
    with pytest.raises(MeasurementError, match="'mask' holds whole numbers that differ"):
        interpolate(task, Masked([True, True, False]), Masked([True, False, True]))


@pytest.mark.gpu
@pytest.mark.parametrize("curve", ["linear", "bezier"])
def test_on_a_gpu_states_may_lie_anywhere(curve):
    expected = interpolate(classes(), normed(1), normed(2), points=4, curve=curve, steps=5)
    found = interpolate(
        classes(device="cuda"), normed(1).cuda(), normed(2).state_dict(), points=4, curve=curve, steps=5
    )
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-9)
    np.testing.assert_allclose(found.barrier_stderr, expected.barrier_stderr, rtol=1e-6, atol=1e-12)
