"""Batches that hold sparse tensors: the same numbers as with dense ones, and never cut where rows may be nodes."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import small_world
import torch
import torch.nn.functional as F
from graphs import LAYOUTS, GraphNet, batches, graph, laid_out
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from landscape import (
    GaussNewton,
    Hessian,
    Objective,
    Task,
    eigenpairs,
    line,
    open_archive,
    sampling_error,
    save_checkpoint,
    sharpness,
    trace,
)
from landscape.augmentation import random_sample
from landscape.batch import bytes_of, fingerprint, join, pick, stays_whole, to_device
from landscape.calibration.measure import measure_calibration
from landscape.errors import MeasurementError, TaskError
from landscape.evaluation import evaluate_checkpoint
from landscape.probes.inspection import inspect_task
from landscape.probes.posthoc import probe_checkpoints
from landscape.probes.sweep.batches import Batches
from landscape.sparse import content, same

# Sums over the entries of a row in another order, through a second derivative.
CLOSE = 1e-10


def task(layout: str, weights: torch.dtype = torch.float64, **settings) -> Task:
    data = batches(layout, weights)
    settings = {"loss": nn.CrossEntropyLoss(), "train": data, "test": data, **settings}
    return Task(settings.pop("model", GraphNet().to(weights)), **settings)


def matrix(layout: str, values: float = 1.0) -> torch.Tensor:
    return laid_out(values * graph()[0], layout)


# ------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("layout", LAYOUTS)
class TestNumbers:
    def test_losses_gradients_and_errors_are_those_of_the_dense_matrix(self, layout):
        found, expected = (evaluate_checkpoint(task(x)) for x in (layout, "dense"))
        for name, v in expected.variables().items():
            if np.issubdtype(v.data.dtype, np.floating):
                np.testing.assert_allclose(found.variables()[name].data, v.data, rtol=CLOSE, err_msg=name)
        assert found.loss_stderr[0] > 0  # from blocks of nodes: what is cut are the outputs

    def test_the_loss_is_the_mean_over_all_nodes(self, layout):
        made = task(layout)
        with torch.no_grad():
            outputs = [made.model((a, x)) for a, x, _ in (graph(12, 1), graph(9, 2))]
        y = torch.cat([graph(12, 1)[2], graph(9, 2)[2]])
        with Objective(made) as objective:
            assert objective.samples == 21
            assert objective.evaluate().loss == pytest.approx(F.cross_entropy(torch.cat(outputs), y).item(), rel=CLOSE)

    @pytest.mark.parametrize("strategy", ["auto", "keep", "rebuild"])
    @pytest.mark.parametrize("kind", [Hessian, GaussNewton])
    def test_products_are_those_of_the_dense_matrix(self, layout, strategy, kind):
        products = []
        for x in (layout, "dense"):
            with kind(task(x), strategy=strategy) as a:
                products.append(a @ torch.eye(a.shape[0], dtype=torch.float64))
        scale = products[1].abs().max()
        assert torch.allclose(products[0] / scale, products[1] / scale, rtol=0, atol=CLOSE)

    def test_eigenvalues_traces_and_slices_are_those_of_the_dense_matrix(self, layout):
        found, expected = (eigenpairs(Hessian(task(x)), k=3) for x in (layout, "dense"))
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)
        a, b = (trace(Hessian(task(x)), draws=8) for x in (layout, "dense"))
        assert a.value == pytest.approx(b.value, rel=1e-6)
        a, b = (line(task(x), alphas=[-1.0, -0.5, 0.0, 0.5, 1.0]) for x in (layout, "dense"))
        np.testing.assert_allclose(a.loss, b.loss, rtol=CLOSE)

    def test_calibration_is_that_of_the_dense_matrix(self, layout):
        a, b = (measure_calibration(task(x)) for x in (layout, "dense"))
        assert a.ece == pytest.approx(b.ece, rel=CLOSE)
        assert a.nll == pytest.approx(b.nll, rel=CLOSE)

    def test_the_loss_of_a_dict_batch_that_is_its_own_target(self, layout):
        class Net(GraphNet):
            def forward(self, a, x, y):
                return super().forward((a, x))

        losses = []
        for kind in (layout, "dense"):
            data = [{"a": a, "x": x, "y": y} for (a, x), y in batches(kind)]
            made = Task(Net().double(), lambda o, b: F.cross_entropy(o, b["y"]), data)
            with Objective(made) as objective:
                assert "verified: each batch's mean" in objective.notes[-1]
                losses.append(objective.evaluate(stderr=True, accuracy=True))
        assert losses[0].loss == pytest.approx(losses[1].loss, rel=CLOSE)
        assert losses[0].stderr == pytest.approx(losses[1].stderr, rel=CLOSE)
        assert losses[0].accuracy == losses[1].accuracy

    def test_float32_weights_and_batches_are_measured_in_float64(self, layout):
        made = task(layout, torch.float32, dtype=torch.float64)
        with Objective(made) as objective:
            (a, x), _ = objective.batch(0)
            assert (a.dtype, x.dtype) == (torch.float64, torch.float64)
            assert str(a.layout).endswith(layout)
            loss = objective.evaluate().loss
        with Objective(task("dense", torch.float32, dtype=torch.float64)) as objective:
            assert loss == pytest.approx(objective.evaluate().loss, rel=CLOSE)
        assert made.train[0][0][0].dtype == torch.float32

    def test_sharpness_over_whole_batches(self, layout):
        options = {"rebatch": False}  # a dense matrix could be cut
        a, b = (sharpness(task(x, **options), batch=5, samples=21, steps=3) for x in (layout, "dense"))
        assert a.values == pytest.approx(b.values, rel=1e-6)
        alone = sharpness(task(layout), batch=5, samples=21, steps=3)  # never cut, whatever is asked for
        assert alone.values == pytest.approx(a.values, rel=1e-6)

    def test_a_forward_may_write_into_its_batch(self, layout):
        def forward(model, batch):
            (a, x), y = batch
            a.mul_(2.0) if layout != "bsc" else a.values().mul_(2.0)
            return model((a, x)), y

        made = task(layout, forward=forward)
        before = fingerprint(made.train)
        with Objective(made) as objective:
            assert objective.copies
            assert objective.evaluate().loss == objective.evaluate().loss
        assert fingerprint(made.train) == before


# --------------------------------------------------------------------------------------- from a checkpoint


TASKS = """
import torch
from torch import nn
from graphs import GraphNet, batches
from landscape import Task, task


@task
def graphs(layout="dense"):
    data = batches(layout)
    return Task(GraphNet().double(), nn.CrossEntropyLoss(), data, data, name="graphs")
"""
WHAT = ("performance", "eigenvalues", "trace", "line", "calibration")


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text(TASKS)
    torch.manual_seed(3)
    model = GraphNet().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    save_checkpoint("net.pt", model, task="tasks.py:graphs")
    return tmp_path


def probed(layout: str) -> dict:
    out = f"{layout}.h5"
    probe_checkpoints(["net.pt"], only=WHAT, out=out, settings={"layout": layout}, seed=0)
    with open_archive(out) as archive:
        return {e.kind: e.result for e in archive.select()}


@pytest.mark.parametrize("layout", LAYOUTS)
class TestProbe:
    def test_a_checkpoint_is_probed_as_with_the_dense_matrix(self, world, layout):
        found, expected = probed(layout), probed("dense")
        assert found.keys() == expected.keys()
        assert len(expected) >= len(WHAT)
        for name in WHAT:
            for key, v in expected[name].variables().items():
                if np.issubdtype(v.data.dtype, np.floating) and not key.startswith(("residual", "bound")):
                    np.testing.assert_allclose(
                        found[name].variables()[key].data, v.data, rtol=1e-6, atol=1e-9, err_msg=f"{name}: {key}"
                    )

    def test_check_says_what_a_batch_holds(self, world, layout):
        inspection = inspect_task("tasks.py:graphs", "net.pt", settings={"layout": layout})
        assert inspection.ok
        data = next(c for c in inspection.findings if c.name == "train data")
        assert data.message == (
            f"21 samples; a batch holds (12, 12) float64 sparse {layout.upper()}, (12, 4) float64, (12,) int64"
        )
        assert set(inspection.works.values()) == {""}
        parts = content(matrix(layout))
        assert inspection.speed is not None
        assert inspection.speed.batch >= sum(p.numel() * p.element_size() for p in parts) + 12 * 4 * 8 + 12 * 8

    def test_resume_knows_the_data_again(self, world, layout):
        small_world.done("probe", "net.pt", "--set", f"layout={layout}", "--only", "performance,trace")
        again = small_world.landscape(
            "probe", "net.pt", "--set", f"layout={layout}", "--only", "performance,trace", "--resume"
        )
        assert again.exit_code == 0, again.output
        assert "2 results" in again.output or again.output.count("is in the archive already") == 2


# ------------------------------------------------------------------------------------------- what a batch is


Pair = namedtuple("Pair", "a y")


@dataclasses.dataclass
class Held:
    a: torch.Tensor
    y: torch.Tensor


CONTAINERS = {
    "tuple": lambda a, y: (a, y),
    "list": lambda a, y: [a, [y]],
    "dict": lambda a, y: {"a": a, "y": y},
    "namedtuple": Pair,
    "dataclass": Held,
    "nested": lambda a, y: {"in": (Held(a, y), {"y": y})},
}


@pytest.mark.parametrize("layout", LAYOUTS)
class TestHandling:
    @pytest.mark.parametrize("container", list(CONTAINERS))
    def test_the_fingerprint_follows_values_pattern_and_layout(self, layout, container):
        def made(a):
            return fingerprint([CONTAINERS[container](a, torch.arange(12))])

        base, dense = made(matrix(layout)), graph()[0]
        assert made(matrix(layout)) == base
        assert made(matrix(layout, 1 + 1e-15)) != base
        moved = dense.clone()
        moved[0, -1], moved[-1, 0] = 0.125 - moved[0, -1], moved[-1, 0]
        assert made(laid_out(moved, layout)) != base
        assert made(laid_out(dense.T.roll(3, 0), layout)) != base
        assert made(dense) != base
        assert made(matrix(next(x for x in LAYOUTS if x != layout))) != base

    def test_equality_and_bytes(self, layout):
        a = matrix(layout)
        assert same(a, a.clone())
        assert not same(a, matrix(layout, 2.0))
        assert not same(a, laid_out(graph(12, 2)[0], layout))
        assert not same(a, graph()[0])
        held = [p.numpy().nbytes for p in content(a)]
        assert bytes_of((a, {"x": torch.zeros(5)})) == sum(held) + 20

    @pytest.mark.parametrize("container", list(CONTAINERS))
    def test_placing_keeps_container_and_layout(self, layout, container):
        batch = CONTAINERS[container](matrix(layout).float(), torch.arange(12))
        placed = to_device(batch, torch.device("cpu"), torch.float64)
        assert type(placed) is type(batch)
        expected = CONTAINERS[container](matrix(layout).float().double(), torch.arange(12))
        assert fingerprint([placed]) == fingerprint([expected])

    def test_an_integer_pattern_stays_integer(self, layout):
        pattern = laid_out((graph()[0] > 0).long(), layout)
        assert to_device(pattern, torch.device("cpu"), torch.float64).dtype == torch.int64

    def test_a_random_data_set_is_noticed(self, layout):
        class Graphs(Dataset):
            def __init__(self, noise):
                self.noise = noise

            def __len__(self):
                return 4

            def __getitem__(self, i):
                return matrix(layout, 1 + self.noise * torch.rand(()).item()), i

        assert random_sample(Graphs(0.0)) is None
        assert random_sample(Graphs(0.1)) == 0

    def test_a_random_layer_is_named_where_outputs_are_sparse(self, layout):
        class Dropped(nn.Module):
            def forward(self, a):
                return laid_out(a.to_dense() * torch.rand(()), layout)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop, self.net = Dropped(), GraphNet().double()

            def forward(self, given):
                return self.net((self.drop(given[0]), given[1]))

        with pytest.raises(Exception, match=r"first differ in drop \(Dropped\)"), Objective(task(layout, model=Net())):
            pass


REMARKS = """
import sys, warnings
import torch
from torch import nn
from graphs import GraphNet, batches
from landscape import Hessian, Objective, Task
from landscape.calibration.measure import measure_calibration

data = batches(sys.argv[1])
warnings.simplefilter("error")
task = Task(GraphNet(), nn.CrossEntropyLoss(), data, data, dtype=torch.float32)
with Objective(task) as objective:
    objective.evaluate(accuracy=True, stderr=True)
    with Hessian(objective) as h:
        h @ torch.ones(h.shape[0])
measure_calibration(task)
"""


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_torch_remarks_once_on_what_the_user_makes_and_never_on_ours(layout):
    found = subprocess.run(
        [sys.executable, "-c", REMARKS, layout],
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr


def test_entries_that_repeat_are_one_sum():
    twice = torch.sparse_coo_tensor([[0, 0, 1], [1, 1, 2]], [1.0, 2.0, 4.0], (3, 3), check_invariants=True)
    once = torch.sparse_coo_tensor([[0, 1], [1, 2]], [3.0, 4.0], (3, 3), check_invariants=True)
    assert same(twice, once)
    assert fingerprint([twice]) == fingerprint([once])
    assert bytes_of(twice) == 3 * (2 * 8 + 4)  # as it lies in memory


def test_a_stored_zero_is_part_of_the_pattern():
    stored = torch.sparse_coo_tensor([[0, 1], [1, 2]], [3.0, 0.0], (3, 3), check_invariants=True)
    plain = torch.sparse_coo_tensor([[0], [1]], [3.0], (3, 3), check_invariants=True)
    assert torch.equal(stored.to_dense(), plain.to_dense())
    assert fingerprint([stored]) != fingerprint([plain])


@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("strategy", ["forward", "linearize"])
def test_a_mode_that_torch_has_not_for_sparse_tensors_is_named(layout, strategy):
    said = rf"strategy='{strategy}' fails on this model .* use strategy='auto'"
    with Hessian(task(layout), strategy=strategy) as h, pytest.raises(MeasurementError, match=said):
        h @ torch.ones(h.shape[0], dtype=torch.float64)


# --------------------------------------------------------------------------------------- rows that are no samples


@pytest.mark.parametrize("layout", LAYOUTS)
class TestWhole:
    def test_a_smaller_draw_takes_whole_graphs_and_says_so(self, layout):
        draw = task(layout, max_samples=10).draw("train")
        assert draw.samples in (9, 12)
        assert f"{draw.samples} of 21 train samples" in draw.notes[0]
        assert "taken whole: one holds a sparse tensor" in draw.notes[1]
        assert task(layout, max_samples=21).draw("train").notes == ()
        walked = task(layout, train=iter(batches(layout)), max_samples=13).draw("train")
        assert walked.sizes == (12,)
        first = task(layout, train=iter(batches(layout)), max_samples=5).draw("train")
        assert first.sizes == (12,)
        assert "taken whole" in first.notes[0]

    def test_nothing_cuts_a_graph(self, layout):
        with Objective(task(layout), regroup=5) as objective:
            assert not objective.can_cut()
            assert not objective.halve()
            assert [len(objective.batch(i)[1]) for i in range(2)] == [12, 9]

    def test_a_loss_that_runs_the_model_itself_is_not_cut(self, layout):
        def own(model, batch):
            return F.cross_entropy(model(batch[0]), batch[1])

        with Objective(Task(GraphNet().double(), None, batches(layout), batch_loss=own)) as objective:
            assert "not verified: no cutting" in objective.notes[-1]
            found = objective.evaluate(stderr=True)
        assert len(found.blocks) == 2
        with Objective(task(layout)) as objective:
            assert found.loss == pytest.approx(objective.evaluate().loss, rel=CLOSE)

    def test_parts_of_the_draw_are_whole_graphs(self, layout):
        with pytest.raises(MeasurementError, match="2 batches, which must stay whole"):
            sampling_error(task(layout), "trace")

    @pytest.mark.parametrize("kind", [tuple, dict])
    def test_tensors_beside_an_adjacency_matrix_are_no_columns(self, layout, kind):
        a, x, y = graph()
        data = kind({"a": laid_out(a, layout), "x": x, "y": y}.items()) if kind is dict else (laid_out(a, layout), x, y)
        with pytest.raises(TaskError, match=r"rows are samples, got a \w+ with a sparse tensor \(12, 12\).* \[batch\]"):
            task(layout, train=data).draw("train")
        with pytest.raises(TaskError, match=r"\[batch\]"):
            Batches(data, 4)

    def test_an_incidence_matrix_beside_features_stays_whole(self, layout):
        h = laid_out(torch.rand(12, 6, generator=torch.Generator().manual_seed(0)), layout)
        assert "(12, 6)" in stays_whole(((h, torch.zeros(12, 4)), torch.arange(12)))

    def test_a_sweep_takes_whole_graphs(self, layout):
        found = list(Batches(batches(layout), seed=0).epoch(0))
        assert sorted(len(y) for _, y in found) == [9, 12]
        assert all(str(a.layout).endswith(layout) for (a, _), _ in found)


# ------------------------------------------------------------------------------------------- rows that are samples


def words(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return counts of words (n, 7) as classifiers of text have them, and labels."""
    g = torch.Generator().manual_seed(0)
    return torch.rand(n, 7, generator=g).double() * (torch.rand(n, 7, generator=g) < 0.3), torch.arange(n) % 3


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(7, 3).double())

    def forward(self, x):
        return torch.tanh(x @ self.weight)


@pytest.mark.parametrize("layout", ["coo", "csr", "csc"])
class TestRows:
    @pytest.mark.parametrize("form", ["columns", "dict", "list", "iterator"])
    def test_sparse_features_are_drawn_and_regrouped_as_dense_ones(self, layout, form):
        found = []
        for kind in (layout, "dense"):
            x, y = words()
            x = laid_out(x, kind)
            data = {"columns": (x, y), "dict": {"x": x, "y": y}, "list": [(x, y)], "iterator": iter([(x, y)])}[form]
            own = (lambda model, b: (model(b["x"]), b["y"])) if form == "dict" else None
            made = Task(Bag(), nn.CrossEntropyLoss(), data, max_samples=30, batch_size=8, forward=own)
            with Objective(made, regroup=7) as objective:
                assert [s % 7 for s in (objective.largest,)] == [0]
                found.append((made.draw("train").sizes, objective.evaluate(stderr=True)))
        assert found[0][0] == found[1][0]
        assert found[0][1].loss == pytest.approx(found[1][1].loss, rel=CLOSE)
        assert found[0][1].stderr == pytest.approx(found[1][1].stderr, rel=CLOSE)

    def test_rows_are_picked_and_joined_exactly(self, layout):
        x, y = words()
        batch, index = (laid_out(x, layout), y), torch.tensor([5, 0, 39, 5])
        for chosen in (index, slice(3, 9)):
            rows, labels = pick(batch, chosen, 40)
            assert torch.equal(rows.to_dense(), x[chosen])
            assert torch.equal(labels, y[chosen])
            assert rows.layout == batch[0].layout
        parts = [pick(batch, slice(0, 25), 40), pick(batch, slice(25, 40), 40)]
        assert fingerprint([join(parts, [25, 15])]) == fingerprint([batch])

    def test_a_sweep_cuts_them_in_its_order(self, layout):
        x, y = words()
        sparse = list(Batches((laid_out(x, layout), y), 8, seed=3, dtype=torch.float64).epoch(1))
        dense = list(Batches((x, y), 8, seed=3, dtype=torch.float64).epoch(1))
        kept = list(Batches(TensorDataset(laid_out(x, layout), y), 8, seed=3, dtype=torch.float64).epoch(1))
        assert len(dense) == len(sparse) == len(kept) == 5
        for a, b, c in zip(sparse, dense, kept, strict=True):
            assert torch.equal(a[0].to_dense(), b[0])
            assert torch.equal(c[0].to_dense(), b[0])
            assert torch.equal(a[1], b[1])


def test_a_stack_of_matrices_is_cut_and_one_as_high_as_wide_is_not():
    a = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = (a.to_sparse(), torch.zeros(5, 4, 2)), torch.arange(5)
    assert stays_whole(batch) == ""
    (rows, _), _ = pick(batch, torch.tensor([3, 1]), 5)
    assert torch.equal(rows.to_dense(), a[[3, 1]])
    assert stays_whole((a[:4].to_sparse(), torch.arange(4)))  # four matrices, or four rows of nodes with relations


def test_a_loader_with_its_own_collation_gives_stacks():
    class Graphs(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            a, x, y = graph(12, i)
            return a.to_sparse(), x, y

    def stacked(items):
        a, x, y = zip(*items, strict=True)
        return (torch.stack(a), torch.stack(x)), torch.stack(y)

    def outputs(model, batch):
        (a, x), y = batch
        return model((a.to_dense(), x)).flatten(0, 1), y.flatten()

    loader = DataLoader(Graphs(), batch_size=4, collate_fn=stacked)
    made = Task(GraphNet().double(), nn.CrossEntropyLoss(), loader, forward=outputs, max_samples=5)
    with Objective(made) as objective:
        assert objective.draw.sizes == (4, 1)
        assert objective.evaluate().loss > 0
