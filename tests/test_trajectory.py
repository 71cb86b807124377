"""Trajectories: against scikit-learn's PCA and NumPy's least squares, streamed in pieces, gaps, planes, bad input."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import small_world
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import nn
from untouched import State, data, messy

from landscape import load_checkpoint, save_checkpoint
from landscape.archive.reader import open_archive
from landscape.checkpoints.mapped import locate, map_file
from landscape.errors import CheckpointError, MeasurementError
from landscape.parameters import trainable
from landscape.results import measurements, rebuild
from landscape.surface.directions import Direction, random_direction
from landscape.surface.grid import plane
from landscape.surface.rows import Rows
from landscape.surface.trajectory import trajectory, trajectory_plane
from landscape.tasks import Task

DOUBLE = torch.float64
#: Sums of a hundred products in float64, in another order.
EXACT = 1e-10


def net(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    torch.manual_seed(9)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).to(dtype).eval()


def walk(count: int = 9, dtype: torch.dtype = DOUBLE) -> list[dict[str, torch.Tensor]]:
    """Return the states of a short training, running statistics included."""
    model = net(dtype)
    x, y = data(40, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
    states = []
    for _ in range(count):
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        model.train()
        for part in torch.arange(40).split(10):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
        model.eval()
    return states


def task(dtype: torch.dtype = DOUBLE, **settings) -> Task:
    return Task(net(dtype), nn.CrossEntropyLoss(), data(40, dtype), data(23, dtype), batch_size=16, **settings)


def matrix(states: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """Return theta_i - theta_final over the trainable parameters, in float64."""
    names = list(trainable(net()))
    flat = np.array([np.concatenate([s[n].double().numpy().ravel() for n in names]) for s in states])
    return flat - flat[-1]


def vector(direction: Direction) -> np.ndarray:
    return np.concatenate([t.double().numpy().ravel() for t in direction.values()])


def level(result, name: str) -> str:
    return {c.name: c.level for c in result.checks}[name]


# ----------------------------------------------------------------------------------------------- principal axes


def test_axes_shares_and_places_are_those_of_scikit_learns_pca():
    states = walk()
    found = trajectory(task(), states, losses=False)
    rows = matrix(states)
    pca = PCA(n_components=8).fit(rows)
    np.testing.assert_allclose(found.share, pca.explained_variance_ratio_, rtol=1e-8, atol=1e-12)
    for k, d in enumerate(found.directions()):
        assert abs(vector(d) @ pca.components_[k]) == pytest.approx(1.0, abs=EXACT)
        assert d.norm == pytest.approx(1.0, abs=EXACT)
        # Not centered: the last checkpoint is the plane's center.
        np.testing.assert_allclose(found.coordinates[:, k], rows @ vector(d), rtol=EXACT, atol=EXACT)
    assert found.coordinates[-1].tolist() == [0, 0]
    # An axis has no sign of its own: its farthest checkpoint is on the positive side.
    np.testing.assert_array_equal(found.coordinates.max(axis=0), np.abs(found.coordinates).max(axis=0))
    np.testing.assert_allclose(found.distance, np.linalg.norm(rows, axis=1), rtol=EXACT)
    plane_of = np.array([vector(d) for d in found.directions()])
    rest = rows - found.coordinates @ plane_of
    np.testing.assert_allclose(found.off_plane, np.linalg.norm(rest, axis=1), atol=1e-7)
    assert found.captured == pytest.approx(1 - (rest**2).sum() / (rows**2).sum(), abs=EXACT)
    assert found.loss is None
    assert found.parameters == rows.shape[1] == 69


@pytest.mark.parametrize("memory", [9 * 8, 9 * 8 * 10, 9 * 8 * 69, 1 << 30])
def test_pieces_of_any_size_give_the_same_products(memory):
    states = walk()
    rows = Rows(states, net(), memory)
    assert rows.pieces == max(1, -(-69 // (memory // 72)))
    exact = matrix(states)
    np.testing.assert_allclose(rows.gram(), exact @ exact.T, rtol=EXACT, atol=1e-14)


def test_small_steps_in_float32_keep_their_digits():
    # theta moves in its last digits: the products come from differences, not from the weights themselves.
    model = nn.Linear(50, 40, bias=False)
    g = torch.Generator().manual_seed(0)
    base = 100 + torch.rand(40, 50, generator=g)
    states = [{"weight": base + 1e-4 * torch.randn(40, 50, generator=g)} for _ in range(6)]
    exact = np.array([s["weight"].double().numpy().ravel() for s in states])
    exact -= exact[-1]
    np.testing.assert_allclose(Rows(states, model).gram(), exact @ exact.T, rtol=1e-12, atol=1e-16)


def test_half_precision_checkpoints_are_read_in_float32():
    states = [{k: v.half() if v.is_floating_point() else v for k, v in s.items()} for s in walk()]
    found = trajectory(task(torch.float32), states)
    exact = matrix(states)
    np.testing.assert_allclose(found.distance, np.linalg.norm(exact, axis=1), rtol=1e-6)
    assert any("float16" in note for note in found.notes)


# ---------------------------------------------------------------------------------------------------- any plane


def test_oblique_directions_are_projected_by_least_squares():
    states, made = walk(), task()
    load_checkpoint_into(made, states[-1])
    d1 = random_direction(made, 1, None, None)
    noise = random_direction(made, 2, None, None)
    d2 = Direction({n: 0.8 * d1[n] + 0.3 * noise[n] for n in d1}, label="oblique")
    found = trajectory(made, states, (d1, d2))
    rows, axes = matrix(states), np.array([vector(d1), vector(d2)]).T
    expected = np.linalg.lstsq(axes, rows.T, rcond=None)[0].T
    np.testing.assert_allclose(found.coordinates, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.off_plane, np.linalg.norm(rows - expected @ axes.T, axis=1), atol=1e-7)
    assert found.share is None
    assert found.directions_from == "given"
    assert level(found, "directions") == "warn"
    assert found.labels == (d1.label, "oblique")


def test_one_direction_divides_by_its_square():
    states, made = walk(), task()
    d1, d2 = (random_direction(made, s, None, None) for s in (1, 2))
    longer = Direction({n: 10 * t for n, t in d1.items()}, label="longer")
    short = trajectory(made, states, (d1, d2), losses=False).coordinates
    far = trajectory(made, states, (longer, d2), losses=False).coordinates
    np.testing.assert_allclose(far[:, 0], short[:, 0] / 10, rtol=1e-9)
    np.testing.assert_allclose(far[:, 1], short[:, 1], rtol=1e-9)


def load_checkpoint_into(made: Task, state: dict[str, torch.Tensor]) -> None:
    made.model.load_state_dict(state)


# ------------------------------------------------------------------------------------------------------- losses


def test_true_losses_are_the_checkpoints_and_the_gap_is_the_planes_minus_them():
    states, made = walk(), task()
    found = trajectory(made, states, split="test")
    x, y = data(23)
    first, second = found.directions()
    for i, state in enumerate(states):
        own, drawn = net(), net()
        own.load_state_dict(state)
        a, b = found.coordinates[i]
        at = {k: v.clone() for k, v in states[-1].items()}
        for n in first:
            at[n] += a * first[n] + b * second[n]
        drawn.load_state_dict(at)  # with the last checkpoint's running statistics, as the picture below has them
        assert found.loss[i] == pytest.approx(F.cross_entropy(own(x), y).item(), rel=EXACT)
        assert found.plane_loss[i] == pytest.approx(F.cross_entropy(drawn(x), y).item(), rel=1e-8)
    np.testing.assert_array_equal(found.gap, found.plane_loss - found.loss)
    assert found.gap[-1] == found.gap_stderr[-1] == 0
    assert level(found, "center") == "pass"
    assert (found.samples, found.split, found.batchnorm) == (23, "test", "eval")
    assert (found.gap_stderr[:-1] > 0).all()


def test_recomputed_statistics_belong_to_each_checkpoint():
    states = walk()
    found = trajectory(task(batchnorm="recompute"), states)
    model = net()
    model.load_state_dict(states[2])
    x, y = data(40)
    hidden = [h.detach() for h in model[0](x).split(16)]
    model[1].running_mean.copy_(torch.cat(hidden).mean(0))
    model[1].running_var.copy_(sum(len(h) / 40 * h.var(0) for h in hidden))
    assert found.loss[2] == pytest.approx(F.cross_entropy(model.eval()(x), y).item(), rel=EXACT)


class Scaled(nn.Module):
    """x @ w times a buffer that is no running statistic."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(values[:2], dtype=DOUBLE))
        self.register_buffer("scale", torch.tensor([values[2]], dtype=DOUBLE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight)[:, None] * self.scale


def test_buffers_that_are_no_statistics_belong_to_each_checkpoint():
    x, y = torch.eye(2, dtype=DOUBLE), torch.zeros(2, 1, dtype=DOUBLE)
    states = [Scaled(1, 0, 3), Scaled(0, 1, 5), Scaled(1, 1, 7)]
    found = trajectory(Task(Scaled(0, 0, 1), nn.MSELoss(), (x, y)), states)
    # mean of (w_i s)^2 over the two samples
    np.testing.assert_allclose(found.loss, [9 / 2, 25 / 2, 49.0], rtol=1e-12)


def test_a_large_gap_is_said():
    model = nn.Linear(3, 1, bias=False).to(DOUBLE)
    x = torch.eye(3, dtype=DOUBLE)
    made = Task(model, nn.MSELoss(), (x, torch.zeros(3, 1, dtype=DOUBLE)))
    # The way leaves the plane of the first two coordinates for a while.
    places = [(1, 0, 0), (0, 1, 0), (0.5, 0.5, 3), (0, 0, 0)]
    states = [{"weight": torch.tensor([p], dtype=DOUBLE)} for p in places]
    axes = [{"weight": torch.eye(3, dtype=DOUBLE)[k : k + 1]} for k in (0, 1)]
    found = trajectory(made, states, axes)
    np.testing.assert_allclose(found.coordinates, [p[:2] for p in places], atol=EXACT)
    np.testing.assert_allclose(found.off_plane, [0, 0, 3, 0], atol=1e-7)
    np.testing.assert_allclose(found.gap, [0, 0, -3.0, 0], atol=EXACT)
    check = next(c for c in found.checks if c.name == "gap")
    assert check.level == "warn"
    assert "checkpoint 3" in check.message
    assert check.value == pytest.approx(3)
    # Mean squares of the three weights, shifted by 1: the limit is a tenth of their range, not of the largest.
    raised = trajectory(made.replace(loss=lambda out, y: F.mse_loss(out, y) + 1), states, axes)
    for one in (found, raised):
        limit = next(c.limit for c in one.checks if c.name == "gap")
        assert limit == pytest.approx(0.1 * 9.5 / 3)


def test_a_loss_that_is_not_finite_is_kept():
    model = nn.Linear(2, 1, bias=False).to(DOUBLE)
    made = Task(
        model, train=[torch.zeros(4, 1, dtype=DOUBLE)], rebatch=False,
        batch_loss=lambda m, b: m.weight[0, 0].log() + b.mean(),
    )  # fmt: skip
    with torch.no_grad():
        model.weight.fill_(1.0)
    states = [{"weight": torch.tensor([p], dtype=DOUBLE)} for p in ([-1.0, 0], [0.5, 2.0], [1.0, 1.0])]
    found = trajectory(made, states)
    assert np.isnan(found.loss[0])
    assert np.isfinite(found.loss[1:]).all()
    assert level(found, "finite") == "warn"


# ------------------------------------------------------------------------------------------------- the contour


def test_the_plane_lies_under_its_trajectory():
    states, made = walk(), task()
    surface, found = trajectory_plane(made, states, grid=6, margin=0.2)
    assert surface.directions == found.labels
    found.lies_on(surface, found.fingerprint)
    for values, places in zip((surface.alpha, surface.beta), found.coordinates.T, strict=True):
        assert values[0] < places.min()
        assert places.max() < values[-1]
        assert 0.0 in values
        assert len(values) == 6
    i, j = np.flatnonzero(surface.alpha == 0)[0], np.flatnonzero(surface.beta == 0)[0]
    assert surface.loss[i, j] == surface.center_loss == found.loss[-1]


def test_the_measured_plane_brings_its_trajectory_along(tmp_path):
    paths = []
    for i, state in enumerate(walk(4)):
        paths.append(str(tmp_path / f"{i}.pt"))
        save_checkpoint(paths[-1], state, step=i)
    made, run = task(), measurements()["plane"].run
    with pytest.raises(MeasurementError, match=r"around its last checkpoint, .*3\.pt, not around this one"):
        run(made, directions="trajectory", checkpoints=paths, grid=3)
    load_checkpoint(paths[-1], made)
    found = run(made, directions="trajectory", checkpoints=paths, grid=3)
    (way,) = found.along
    way.lies_on(found)
    assert way.states == tuple(paths)


def test_the_command_line_measures_the_plane_at_the_last_checkpoint_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_world.build(tmp_path)
    for steps in (1, 20, 60):
        save_checkpoint(f"s{steps}.pt", small_world.train(0, steps=steps), task="tasks.py:tiny", step=steps)
    shared = ("s1.pt", "s20.pt", "s60.pt", "--plane", "trajectory", "--grid", "3", "--preset", "quick", "-o", "run.h5")
    small_world.done("probe", *shared, "--only", "performance,surface")
    kinds = {
        s.label: [e.kind for e in open_archive("run.h5").select(subject=s)] for s in open_archive("run.h5").subjects
    }
    assert kinds == {
        "s1": ["performance"],
        "s20": ["performance"],
        "s60": ["performance", "plane", "trajectory"],
    }
    entry = open_archive("run.h5").select("trajectory")[0]
    assert entry.result.fingerprint == entry.subject.fingerprint  # type: ignore[attr-defined]
    assert entry.result.step.tolist() == [1, 20, 60]  # type: ignore[attr-defined]
    alone = small_world.landscape("probe", *shared[:-2], "--only", "surface")
    assert alone.exit_code == 0, alone.output
    assert "s20.pt is a point of the trajectory" in alone.stderr
    assert sorted(p.name for p in tmp_path.glob("*.h5*")) == ["run.h5", "s60.landscape.h5"]
    # A shell's pattern puts s100 before s20; the way goes by the steps, and ends in the last of them.
    mixed = ("s60.pt", "s1.pt", "s20.pt", *shared[3:-1], "mixed.h5")
    again = small_world.landscape("probe", *mixed, "--only", "surface")
    assert again.exit_code == 0, again.output
    assert "the trajectory goes by the checkpoints' steps: 1, 20, 60" in again.stderr
    entry = open_archive("mixed.h5").select("trajectory")[0]
    assert entry.subject.label == "s60"  # type: ignore[union-attr]
    assert entry.result.step.tolist() == [1, 20, 60]  # type: ignore[attr-defined]


def test_a_plane_of_another_model_is_refused():
    states, made = walk(), task()
    found = trajectory(made, states)
    load_checkpoint_into(made, states[-1])
    elsewhere = plane(made, *(random_direction(made, s) for s in (1, 2)), [0, 1], [0, 1])
    with pytest.raises(MeasurementError, match="the trajectory was projected onto"):
        found.lies_on(elsewhere)
    same = plane(made, *found.directions(), [0, 1], [0, 1])
    found.lies_on(same)
    with pytest.raises(MeasurementError, match="belongs to another model"):
        found.lies_on(same, "0" * 64)
    onto = trajectory(made, states, [random_direction(made, s) for s in (1, 2)])
    onto.lies_on(elsewhere)
    with torch.no_grad():
        for p in made.model.parameters():  # the directions are twice as long, and at the same angle
            p.mul_(2)
    other = plane(made, *(random_direction(made, s) for s in (1, 2)), [0, 1], [0, 1])
    with pytest.raises(MeasurementError, match="norms"):
        onto.lies_on(other)


def test_an_archived_trajectory_keeps_its_numbers_but_not_its_directions():
    found = trajectory(task(), walk())
    again = rebuild("trajectory", found.variables(), found.attributes())
    np.testing.assert_array_equal(again.coordinates, found.coordinates)
    assert again.fingerprint == found.fingerprint
    with pytest.raises(MeasurementError, match="read from an archive"):
        again.directions()


def test_the_fingerprint_is_the_checkpoints(tmp_path):
    states, made = walk(), task()
    save_checkpoint(tmp_path / "last.pt", states[-1])
    assert trajectory(made, states, losses=False).fingerprint == load_checkpoint(tmp_path / "last.pt", made).fingerprint


# -------------------------------------------------------------------------------------------------------- files


def test_files_of_every_kind_are_streamed(tmp_path):
    from safetensors.torch import save_file

    states = walk()
    paths = []
    for i, state in enumerate(states):
        path = tmp_path / f"{i}.{'safetensors' if i % 3 == 1 else 'pt'}"
        if i % 3 == 1:
            save_file(state, path)
        elif i % 3 == 2:
            torch.save(state, path, _use_new_zipfile_serialization=False)
        else:
            save_checkpoint(path, state, step=10 * i)
        paths.append(path)
    assert map_file(paths[0]) is not None
    assert map_file(paths[2]) is None
    expected = trajectory(task(), states)
    for given in (paths, lambda: iter(paths), tuple(map(str, paths))):
        found = trajectory(task(), given, memory=9 * 8 * 20)
        np.testing.assert_allclose(found.coordinates, expected.coordinates, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(found.loss, expected.loss)
    assert found.states == tuple(map(str, paths))
    assert found.step.tolist() == list(range(9))  # not every file has a step


def test_parts_of_files_are_read_from_their_places(tmp_path):
    from safetensors.torch import save_file

    state = dict(walk(2)[1])
    state["0.weight"] = state["0.weight"].bfloat16()
    save_checkpoint(tmp_path / "a.pt", state, step=3)
    torch.save({"optimizer": {"state": {0: torch.ones(5)}}, "ema": 1, "model": state}, tmp_path / "b.pt")
    save_file(state, tmp_path / "c.safetensors")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({k: v.t() if v.ndim == 2 else v for k, v in state.items()}, tmp_path / "turned.pt")
    names = ["0.weight", "3.bias", "1.running_mean"]
    for path in ("a.pt", "b.pt", "c.safetensors"):
        places = locate(tmp_path / path, lambda w: [w[n] for n in names])
        assert places is not None
        assert places.current()
        out = torch.zeros(7, dtype=DOUBLE)
        places.read([(0, 4, 7, out[:3]), (1, 0, 2, out[3:5]), (2, 1, 3, out[5:])])
        expected = [state["0.weight"].reshape(-1)[4:7].double(), state["3.bias"][:2], state["1.running_mean"][1:3]]
        assert torch.equal(out, torch.cat(expected))
    for path in ("old.pt", "turned.pt", "none.pt"):
        assert locate(tmp_path / path, lambda w: [w[n] for n in names]) is None
    places = locate(tmp_path / "a.pt", lambda w: [w[n] for n in names])
    save_checkpoint(tmp_path / "a.pt", state, step=4)
    assert places is not None
    assert not places.current()


def test_a_file_that_is_written_anew_between_two_pieces_is_read_anew(tmp_path):
    states = walk(3)
    paths = [tmp_path / f"{i}.pt" for i in range(3)]
    for path, state in zip(paths, states, strict=True):
        save_checkpoint(path, state)
    rows = Rows(paths, net(), 3 * 8 * 10)
    assert all(p is not None for p in rows._places)
    torch.save({"before": torch.zeros(999), "model": states[1]}, paths[0])  # everything lies elsewhere in it
    exact = matrix([states[1], states[1], states[2]])
    np.testing.assert_allclose(rows.gram(), exact @ exact.T, rtol=EXACT, atol=1e-14)


def test_steps_come_from_the_files(tmp_path):
    paths = []
    for i, state in enumerate(walk(4)):
        paths.append(tmp_path / f"{i}.pt")
        save_checkpoint(paths[-1], state, step=10 * i)
    assert trajectory(task(), paths, losses=False).step.tolist() == [0, 10, 20, 30]
    assert trajectory(task(), paths[::-1], losses=False).step.tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_trajectory_is_refused(tmp_path):
    made, states = task(), walk()
    with pytest.raises(TypeError, match="can't be walked twice"):
        trajectory(made, iter(states))
    with pytest.raises(MeasurementError, match="at least two checkpoints, got 1"):
        trajectory(made, states[:1])
    with pytest.raises(MeasurementError, match="at least 3"):
        trajectory(made, states[:2])
    with pytest.raises(MeasurementError, match="all the same"):
        trajectory(made, [states[0]] * 4)
    line = [{k: v * (1 + s) if v.is_floating_point() else v for k, v in states[0].items()} for s in (0, 0.1, 0.3)]
    with pytest.raises(MeasurementError, match="lie on one line"):
        trajectory(made, line)
    with pytest.raises(CheckpointError, match="state 2 does not fit"):
        trajectory(made, [states[0], {"a": torch.zeros(3)}, states[1]])
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        trajectory(made, [tmp_path / "none.pt", *states])
    for place in (1, -1):
        wrong = copy.deepcopy(states)
        wrong[place]["0.weight"][0, 0] = math.nan
        with pytest.raises(MeasurementError, match=f"state {2 if place == 1 else 9} holds weights that are not finite"):
            trajectory(made, wrong)
    d = random_direction(made, 0)
    with pytest.raises(MeasurementError, match="parallel"):
        trajectory(made, states, (d, Direction({n: -2 * t for n, t in d.items()})))
    with pytest.raises(MeasurementError, match="must be two"):
        trajectory(made, states, d)
    with pytest.raises(MeasurementError, match="was it made for another model"):
        trajectory(made, states, (d, {n: torch.ones(2) for n in d}))
    with pytest.raises(MeasurementError, match="holds no piece"):
        trajectory(made, states, memory=8)


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_callers_model_and_states_are_untouched(error):
    model = messy()
    base = copy.deepcopy(model).state_dict()
    g = torch.Generator().manual_seed(0)
    states = [
        {k: v + 0.1 * torch.rand(v.shape, generator=g) if v.is_floating_point() else v.clone() for k, v in base.items()}
        for _ in range(4)
    ]
    kept = [{k: v.clone() for k, v in s.items()} for s in states]
    calls = 0

    def loss(outputs, target):
        nonlocal calls
        calls += 1
        if error is not None and calls == 70:
            raise error("stop")
        return F.cross_entropy(outputs, target)

    made = Task(model, loss, data(60, torch.float32), batch_size=16)
    before = State(model)
    if error is None:
        trajectory_plane(made, states, grid=3)
    else:
        with pytest.raises((ValueError, KeyboardInterrupt), match="stop"):
            trajectory_plane(made, states, grid=3)
        assert calls == 70
    before.unchanged()
    for s, k in zip(states, kept, strict=True):
        assert all(torch.equal(s[n], k[n]) for n in k)


@pytest.mark.gpu
def test_on_a_gpu_states_may_lie_anywhere():
    states = walk()
    mixed = [{k: v.cuda() for k, v in s.items()} if i % 2 else s for i, s in enumerate(states)]
    expected, found = trajectory(task(), states), trajectory(task(device="cuda"), mixed)
    np.testing.assert_allclose(found.coordinates, expected.coordinates, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.gap, expected.gap, rtol=1e-6, atol=1e-10)
