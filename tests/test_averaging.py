"""Averages of a training's weights: against sums written by hand, with BatchNorm, resumed, measured, told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sweep_world import build
from test_sweep_cell import BARE, After, cell, same, weights
from torch import nn

from landscape import averages, load_task, open_archive, read_checkpoint
from landscape.errors import TrainingError
from landscape.probes import Sweep
from landscape.probes.sweep.batches import Batches
from landscape.probes.sweep.cell import train_cell
from landscape.probes.sweep.grid import grid, read_cells
from landscape.probes.sweep.how import How
from landscape.report.runs import gather
from landscape.report.sections.dynamics import _notes
from landscape.training.averaging import Averaging

NORMED = """

@task
def normed():
    x, y = data()
    return Task(net(8, nn.BatchNorm1d(8), nn.Dropout(0.2)), nn.CrossEntropyLoss(), (x, y), (x[:60], y[:60]))


@task
def dicts():
    x, y = data()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net(8, nn.BatchNorm1d(8))

        def forward(self, x, y):
            return {"loss": nn.functional.cross_entropy(self.net(x), y)}

    rows = [{"x": x[i], "y": y[i]} for i in range(len(x))]
    return Task(Named(), train=rows, batch_loss=lambda model, batch: model(**batch)["loss"])
"""


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    with open("tasks.py", "a") as file:
        file.write(NORMED)
    return tmp_path


def walk(text: str, *, steps: int = 12, per_epoch: int = 4) -> tuple[list[torch.Tensor], torch.Tensor, int]:
    """Return the weights after each of some steps of a walk, and what became of their average."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    average = Averaging(text, model, steps, per_epoch)
    seen = []
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight += torch.randn(2, 3, dtype=torch.float64)
        seen.append(model.weight.detach().clone())
        average.stepped(step)
    return seen, average.model.weight.detach(), average.count


def test_an_exponential_average_is_the_sum_written_by_hand():
    seen, found, count = walk("ema(decay=0.7)")
    expected = seen[0]
    for w in seen[1:]:
        expected = 0.7 * expected + 0.3 * w
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert count == 12


@pytest.mark.parametrize(("text", "epochs"), [("swa", (3,)), ("swa(start=0.3)", (1, 2, 3)), ("swa(1)", (2, 3))])
def test_swa_is_the_mean_of_the_ends_of_epochs(text, epochs):
    if len(epochs) < 2:
        with pytest.raises(TrainingError, match="averages the weights of one epoch of 3 at most: begin earlier"):
            walk(text)
        return
    seen, found, count = walk(text)
    # torch weighs by 1 / n in float32.
    torch.testing.assert_close(found, torch.stack([seen[4 * e - 1] for e in epochs]).mean(0), rtol=1e-6, atol=1e-7)
    assert count == len(epochs)


@pytest.mark.parametrize("text", ["ema(decay=0.9)", "swa(start=0.3)"])
def test_the_end_of_a_cell_is_the_average_of_the_weights_that_it_kept(text):
    """Checkpoints of each epoch (SWA), and a plain training beside it, say what was averaged."""
    chosen = cell(batch_size=50, average=[text])
    kept = How(measure=False, checkpoints=1)
    result = train_cell(chosen, "tasks.py:tiny", "c", kept)
    assert result.status == "complete", result.reason
    plain = train_cell(cell(batch_size=50), "tasks.py:tiny", "plain", BARE)
    assert same(weights("c/unaveraged.pt"), weights("plain/final.pt"))  # averaging changes nothing of the training
    assert result.metrics["unaveraged.test_loss"] == plain.metrics["test_loss"]
    found = weights("c/final.pt")
    assert not same(found, weights("plain/final.pt"))
    if text.startswith("swa"):
        ends = [weights(p) for p in sorted(Path("c").glob("step-*.pt"))]
        assert len(ends) == 3
        for name, value in found.items():
            torch.testing.assert_close(value, torch.stack([e[name] for e in ends]).mean(0), rtol=1e-5, atol=1e-6)
    task = load_task("tasks.py:tiny")
    task.model.load_state_dict(found)
    x, y = task.test
    assert result.metrics["test_loss"] == pytest.approx(
        float(nn.functional.cross_entropy(task.model(x), y).detach()), rel=1e-5
    )
    one, other = read_checkpoint("c/final.pt"), read_checkpoint("c/unaveraged.pt")
    assert (one.facts["average"], other.facts["average"]) == (text, "none")
    assert (one.step, other.step) == (None, 12)  # what was recorded at the last step is not the average's
    assert one.optimizer is None  # its moments, and its threshold, are of other weights
    assert other.optimizer is not None
    assert one.task.reference == other.task.reference == "tasks.py:tiny"


def test_running_statistics_are_those_of_the_averaged_weights():
    chosen = cell(batch_size=50, average=["ema(decay=0.9)"])
    result = train_cell(chosen, "tasks.py:normed", "c", BARE)
    assert "BatchNorm's running statistics were estimated anew at the averaged weights" in result.notes
    found = weights("c/final.pt")
    task = load_task("tasks.py:normed")
    task.model.load_state_dict(found)
    first, means = task.model[0], []
    with torch.no_grad():
        for x, _ in Batches(task.train, 50, seed=0).epoch(3):
            means.append(task.model[1](first(x)).mean(0))
    torch.testing.assert_close(found["2.running_mean"], torch.stack(means).mean(0), rtol=1e-5, atol=1e-6)
    assert int(found["2.num_batches_tracked"]) == 4


def test_a_model_of_named_inputs_has_its_statistics_estimated_too():
    result = train_cell(cell(batch_size=50, average=["swa(start=0.3)"]), "tasks.py:dicts", "c", BARE)
    assert result.status == "complete", result.reason
    assert int(weights("c/final.pt")["net.2.num_batches_tracked"]) == 4


@pytest.mark.parametrize("text", ["ema(decay=0.9)", "swa(start=0.3)"])
def test_a_cell_stopped_at_any_step_ends_with_the_same_average(text):
    chosen = cell(batch_size=50, average=[text], optimizer="sam(sgd(momentum=0.9), rho=0.1)", lr=0.1)
    whole = train_cell(chosen, "tasks.py:normed", "whole", BARE)
    assert whole.status == "complete", whole.reason
    for after in (1, 6, whole.steps):
        first = train_cell(chosen, "tasks.py:normed", f"after{after}", BARE, stop=After(after))
        assert (first.status, first.step) == ("interrupted", after)
        torch.manual_seed(1000 + after)
        second = train_cell(chosen, "tasks.py:normed", f"after{after}", BARE)
        assert second.final_weights == whole.final_weights
        assert second.metrics == whole.metrics


def test_the_averaged_weights_are_measured():
    chosen = cell(batch_size=50, average=["ema(decay=0.9)"])
    result = train_cell(chosen, "tasks.py:tiny", "c", How(only=["performance"]))
    assert result.status == "complete", result.reason
    assert result.metrics["loss.test"] == pytest.approx(result.metrics["test_loss"], rel=1e-5)
    (run,) = gather(["c/run.h5"])
    assert "calibration" not in run.results  # recorded of the last weights, not of these
    assert any("not at their average" in text for _, text in _notes([run], [run]))
    record = open_archive("c/run.h5")
    assert record.run["average"] == "ema(decay=0.9)"


# ------------------------------------------------------------------------------------------- as an axis of a sweep


def test_a_sweep_lists_averages_beside_none():
    cells = grid(average=["none", "ema(decay=0.9)"], seeds=2)
    assert [(c.average, c.label) for c in cells[::2]] == [
        ("", "no average, seed 0"),
        ("ema(decay=0.9)", "ema(decay=0.9), seed 0"),
    ]
    assert "average" not in cells[0].axes  # cells of earlier sweeps are the same as before
    found = Sweep("tasks.py:tiny", "runs", average=["none", "ema(decay=0.9)"], epochs=2, how=BARE).run()
    assert [g.label for g in found.groups()] == ["no average", "ema(decay=0.9)"]
    header, *rows = Path("runs/results.csv").read_text().splitlines()
    assert "average" in header.split(",")
    assert len(rows) == 2


def test_a_file_of_cells_takes_averages(world):
    (world / "cells.json").write_text(json.dumps([{"average": "swa( start = 0.3 )"}, {"average": "none"}]))
    assert [c.average for c in read_cells("cells.json")] == ["swa(start=0.3)", ""]
    (world / "cells.csv").write_text("average,seed\nema,1\n,2\n")
    assert [c.average for c in read_cells("cells.csv")] == ["ema", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emma", "there is no average 'emma'; did you mean ema"),
        ("ema(decay=1)", r"decay=1 of ema must lie in \[0, 1\)"),
        ("swa(start=0.99)", "averages the weights of one epoch of 2 at most"),
        ("swa(start='x')", "start='x' is no position in a run"),
    ],
)
def test_bad_averages_are_a_line_before_anything_trains(text, message):
    with pytest.raises(TrainingError, match=message):
        Sweep("tasks.py:tiny", "runs", average=text, epochs=2, how=BARE).check()


def test_each_says_where_it_comes_from():
    assert averages.names() == ("ema", "swa")
    for entry in averages.entries().values():
        assert entry.source
        assert entry.doc.endswith(".")
        assert all(o.doc and o.source for o in entry.options.values())
    assert np.isclose(averages.entry("ema").options["decay"].default, 0.999)
    assert "arXiv:1703.01780" in averages.entry("ema").source  # no plain mean, which Polyak and Juditsky's is
