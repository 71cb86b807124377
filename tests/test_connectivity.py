"""Barriers between each two of several states: closed forms, symmetry, alignment, interruptions, figures, bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib.collections import QuadMesh
from test_path import EXACT, bumps, classes, normed, weight
from torch import nn
from untouched import State, data

import landscape as ls
from landscape.cli.summary import summarize
from landscape.errors import MeasurementError
from landscape.report.figures.connectivity import draw_connectivity, labels, shown
from landscape.report.paper import make_figure
from landscape.surface import connectivity as module
from landscape.surface.connectivity import connectivity
from landscape.surface.fields import EigenvalueMap
from landscape.surface.path import interpolate
from landscape.tasks import Task


def mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(5)
    return made


# ------------------------------------------------------------------------------------------------ closed forms


def test_each_entry_is_the_height_over_the_line_between_its_two_states():
    task, h = bumps()
    at = (-1.0, 1.0, 0.5)
    found = connectivity(task, *(weight(w) for w in at), points=9)
    for i, j in itertools.combinations(range(3), 2):
        t = np.linspace(0, 1, 9)
        w = (1 - t) * at[i] + t * at[j]
        # Of each sample: slopes and levels cancel over the line between the ends.
        well = lambda v: h[:, :1] * (1 - v**2) ** 2  # noqa: E731
        over = well(w) - (1 - t) * well(np.array([at[i]])) - t * well(np.array([at[j]]))
        top = int(np.argmax(over.mean(axis=0)))
        assert found.barrier[0, i, j] == pytest.approx(max(over.mean(axis=0)[top], 0), rel=1e-9, abs=EXACT)
        expected = over[:, top].std(ddof=1) / np.sqrt(len(h))
        assert found.barrier_stderr[0, i, j] == pytest.approx(expected, rel=1e-9, abs=EXACT)
        assert found.distance[i, j] == pytest.approx(abs(at[j] - at[i]))
    assert found.barrier[0, 0, 1] > 0
    assert found.status == "complete"


def test_the_matrices_are_symmetric_and_their_entries_those_of_single_paths():
    states, task = [normed(1), normed(2), normed(3)], classes()
    how = {"points": 5, "splits": ("train", "test")}
    found = connectivity(task, *states, **how)
    for table in (found.barrier, found.barrier_stderr, found.instability, found.distance):
        np.testing.assert_array_equal(table, np.swapaxes(table, -1, -2))
        assert not table[..., range(3), range(3)].any()
    for i, j in found.pairs():
        alone = interpolate(task, states[i], states[j], **how)
        np.testing.assert_array_equal(found.barrier[:, i, j], alone.barrier[:, 0])
        np.testing.assert_array_equal(found.instability[:, i, j], alone.instability[:, 0])
        np.testing.assert_array_equal(found.own_loss[:, [i, j]], alone.own_loss)
    assert found.samples.tolist() == [40, 23]
    assert (found.splits, found.batchnorm) == (("train", "test"), "recompute")


def test_permuted_copies_of_a_state_are_connected_once_they_are_aligned():
    first, (x, _) = mlp(1), data(40)
    a, order = first.state_dict(), [3, 1, 5, 0, 2, 4]
    b = {**a, "0.weight": a["0.weight"][order], "0.bias": a["0.bias"][order], "2.weight": a["2.weight"][:, order]}
    # Labels that the first one gives with confidence: half way between the copies it is wrong.
    task = Task(mlp(3), nn.CrossEntropyLoss(), (x, first(x).argmax(1)))
    found = connectivity(task, a, b, mlp(2), points=5, align="weights")
    assert found.unaligned_barrier is not None
    assert found.unaligned_barrier[0, 0, 1] > 1e-3
    assert found.barrier[0, 0, 1] < 1e-9
    assert found.distance[0, 1] < 1e-9
    said = [n for n in found.notes if "permuted" in n]
    assert len(said) == 1
    assert "of 6 units changed places, by weights" in said[0]


# ------------------------------------------------------------------------------------------------ around it


def test_the_model_and_the_states_stay_as_they_were():
    states, task = [normed(1), normed(2), normed(3)], classes()
    before = [State(m) for m in (task.model, *states)]
    connectivity(task, *states, points=3)
    for state in before:
        state.unchanged()


def test_what_was_measured_before_an_interruption_is_handed_on(monkeypatch):
    states, task = [normed(1), normed(2), normed(3)], classes()
    whole = connectivity(task, *states, points=3)
    asked = []

    def cut(*args, **how):
        asked.append(args)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return interpolate(*args, **how)

    monkeypatch.setattr(module, "interpolate", cut)
    kept: list[ls.Connectivity] = []
    with pytest.raises(KeyboardInterrupt):
        connectivity(task, *states, points=3, interrupted=kept.append)
    (part,) = kept
    assert part.status == "partial"
    assert np.isnan(part.barrier[0, 1, 2])
    np.testing.assert_array_equal(part.barrier[0, 0], whole.barrier[0, 0])


def test_it_survives_an_archive_and_is_told_in_a_line(tmp_path):
    found = connectivity(classes(), normed(1), normed(2), normed(3), points=3, names=("a", "b", "c"))
    path = ls.save_archive(tmp_path / "c.h5", found)
    (entry,) = ls.open_archive(path).entries
    again = entry.result
    np.testing.assert_array_equal(again.barrier, found.barrier)
    assert (again.states, again.pairs()) == (("a", "b", "c"), [(0, 1), (0, 2), (1, 2)])
    assert again.summary() == found.summary()
    assert "3 pairs of 3 checkpoints" in summarize({"connectivity": again})


def test_what_a_path_warns_of_is_said_with_its_pair():
    task, _ = bumps()
    found = connectivity(task, weight(-1.0), weight(1.0), weight(2.0), points=4, names=("a", "b", "c"))
    loud = [c for c in found.checks if c.level == "warn"]
    assert loud
    assert {(c.name, c.message.partition(": ")[0]) for c in loud} == {("resolution", "a to b")}
    quiet = [c.name for c in found.checks if c.level == "pass"]
    assert len(set(quiet)) == len(quiet) == 3


def test_of_what_all_paths_pass_the_most_is_said():
    task, _ = bumps()
    found = connectivity(task, weight(-1.0), weight(1.0), weight(2.0), points=30, names=("a", "b", "c"))
    told = next(c for c in found.checks if c.name == "resolution")
    single = [
        next(c for c in interpolate(task, weight(v), weight(w), points=30).checks if c.name == "resolution")
        for v, w in ((-1.0, 1.0), (-1.0, 2.0), (1.0, 2.0))
    ]
    assert [c.level for c in single] == ["pass"] * 3
    most = max(single, key=lambda c: c.value)
    assert told.value == most.value > 0
    assert told.message.endswith(most.message)


# ------------------------------------------------------------------------------------------------ figures


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("runs/a/final.pt", "runs/b/final.pt"), ["a", "b"]),
        (("s0.pt", "s1.pt"), ["s0", "s1"]),
        (("a/x.pt", "b/y.ckpt"), ["a/x.pt", "b/y.ckpt"]),
        (("state 1", "state 2"), ["state 1", "state 2"]),
        (("r/a/0.pt", "r/a/1.pt", "r/b/0.pt"), ["a/0", "a/1", "b/0"]),
        (("same.pt", "same.pt"), ["same", "same"]),
    ],
)
def test_names_on_the_axes_are_what_tells_the_states_apart(states, expected):
    assert labels(states) == expected


def test_a_long_name_keeps_its_ends():
    (name,) = labels(["a" * 40 + "end"])
    assert len(name) == 22
    assert name.endswith("end")


def test_the_matrix_is_drawn_with_its_numbers_and_no_diagonal():
    task, _ = bumps()
    found = connectivity(task, weight(-1.0), weight(1.0), weight(0.5), points=9)
    ax = draw_connectivity(found)
    drawn = ax.images[0].get_array()
    assert np.ma.getmaskarray(drawn)[range(3), range(3)].all()
    assert float(drawn[0, 1]) == found.barrier[0, 0, 1]
    assert ax.images[0].get_clim()[0] == 0
    assert len(ax.texts) == 6
    assert np.isnan(shown(found, 0)[0, 0])


def test_matrices_beside_one_another_share_their_colors(tmp_path):
    task, _ = bumps()
    high, low = ((weight(-1.0), weight(1.0)), (weight(0.9), weight(1.1)))
    paths = [ls.save_archive(tmp_path / f"{i}.h5", connectivity(task, *s)) for i, s in enumerate((high, low))]
    figure = make_figure(paths, "barriers").figure
    colors = [ax.images[0].get_clim() for ax in figure.axes if ax.images]
    assert len(colors) == 2
    assert colors[0] == colors[1]
    assert colors[0] == (0.0, ls.open_archive(paths[0]).entries[0].result.barrier.max())


def test_eigenvalue_maps_beside_one_another_share_their_colors(tmp_path):
    def made(scale: float) -> EigenvalueMap:
        at, largest, none = np.array([-1.0, 0.0, 1.0]), scale * np.arange(1.0, 10.0).reshape(3, 3), np.zeros((3, 3))
        return EigenvalueMap(
            alpha=at, beta=at, largest=largest, smallest=-largest / (1 + largest), largest_residual=none,
            smallest_residual=none, converged=none == 0, products=none, direction_norms=np.ones(2),
        )  # fmt: skip

    paths = [ls.save_archive(tmp_path / f"{scale}.h5", made(scale)) for scale in (1.0, 3.0)]
    for quantity, ends in (("ratio", (0.0, 0.5)), ("largest", (1.0, 27.0))):
        axes = make_figure(paths, "eigenvalue_map", quantity=quantity).figure.axes
        drawn = [c for ax in axes for c in ax.collections if isinstance(c, QuadMesh) and np.size(c.get_array()) == 9]
        assert [c.get_clim() for c in drawn] == [ends, ends]


# ------------------------------------------------------------------------------------------------ bad input


def test_bad_input_is_refused_before_anything_is_measured(monkeypatch):
    task = classes()
    monkeypatch.setattr(module, "interpolate", lambda *a, **k: pytest.fail("measured"))
    a, b = normed(1), normed(2)
    with pytest.raises(MeasurementError, match="at least two states, got 1"):
        connectivity(task, a)
    with pytest.raises(MeasurementError, match=r"states 1 and 3 .* are identical"):
        connectivity(task, a, b, a)
    with pytest.raises(MeasurementError, match="expected one for each of 2 states"):
        connectivity(task, a, b, names=("a",))
    with pytest.raises(TypeError, match=r"needs a landscape\.Task"):
        connectivity(a, a, b)  # type: ignore[arg-type]
