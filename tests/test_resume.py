"""Interrupted surfaces go on where they stopped: after Ctrl-C, kill -9 and a time limit, bit for bit."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world
import torch
from torch import nn

from landscape import Plane, Task, journal, open_archive, plane, random_direction, save_checkpoint
from landscape.archive.writer import ArchiveWriter
from landscape.cli.options import Duration
from landscape.errors import ArchiveError
from landscape.identity import hold
from landscape.journal import Journal, keeping, until
from landscape.surface.grid import axis, line
from landscape.surface.points import Points

#: A task whose every pass takes 2 ms longer where SLOW is set: long enough to be killed in the middle of a surface.
SLOW = """
import os
import time
import torch
from torch import nn
from landscape import Task, task


WIDTH = 1.0


def softened(outputs, target):
    return nn.functional.huber_loss(outputs, nn.functional.one_hot(target, 3).to(outputs), delta=WIDTH)


@task
def slow(hidden: int = 8, loss: str = "ce", smoothing: float = 0.0, slope: float = 0.0):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

    def forward(model, batch):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return model(batch[0]), batch[1]

    losses = {"ce": nn.CrossEntropyLoss(label_smoothing=smoothing), "huber": softened}
    return Task(nn.Sequential(*model, nn.LeakyReLU(1 - slope)), losses[loss], (x, y), forward=forward)
"""
GRID = ("--only", "performance,surface", "--grid", "41")


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.py").write_text(SLOW)
    save_checkpoint("net.pt", small_world.train(0), task="slow.py:slow")
    return tmp_path


def small() -> Task:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return Task(model, nn.CrossEntropyLoss(), (torch.randn(20, 5, generator=g).double(), torch.arange(20) % 3))


class Memory:
    """What a journal hands on, and the interruption after so many rows."""

    def __init__(self, stop: int = -1):
        self.rows: dict[str, list[np.ndarray]] = {}
        self.facts: dict[str, Mapping[str, Any]] = {}
        self.stop = stop

    def write(self, key: str, rows: np.ndarray, facts: Mapping[str, Any]) -> None:
        self.facts[key] = facts
        self.rows.setdefault(key, []).append(rows)
        if self.count >= self.stop >= 0:
            self.stop = -1
            raise KeyboardInterrupt

    @property
    def count(self) -> int:
        return sum(len(r) for parts in self.rows.values() for r in parts)

    def kept(self) -> dict[str, np.ndarray]:
        return {key: np.concatenate(parts) for key, parts in self.rows.items()}

    def again(self, say: Callable[[str], None] | None = None) -> Journal:
        return Journal(self.kept(), self.write, known=self.facts, say=say)


@pytest.fixture
def at_once(monkeypatch):
    """Hand each row on as soon as it is there."""
    monkeypatch.setattr(journal, "BLOCK_SECONDS", 0.0)


def same(a: Plane, b: Plane) -> None:
    for name, v in a.variables().items():
        np.testing.assert_array_equal(b.variables()[name].data, v.data, err_msg=name)


# ------------------------------------------------------------------------------------------------- the journal


@pytest.mark.parametrize("tol", [None, 0.01])
def test_an_interrupted_plane_goes_on_with_the_same_points(at_once, tol):
    steps = axis(1, 31 if tol else 9)
    whole = plane(small(), alphas=steps, betas=steps, tol=tol)
    memory = Memory(stop=40)
    with pytest.raises(KeyboardInterrupt), keeping(Journal(write=memory.write)):
        plane(small(), alphas=steps, betas=steps, tol=tol)
    assert memory.count == 40
    before = memory.count
    with keeping(memory.again()) as log:
        again = plane(small(), alphas=steps, betas=steps, tol=tol)
    same(whole, again)
    assert log.reused == 40
    assert memory.count - before == whole.evaluated.sum() - 40
    assert again.cost.passes == whole.cost.passes - 40
    assert "40 points come from an earlier run that was interrupted" in again.notes


def test_points_serve_another_grid_of_the_same_directions(at_once):
    memory = Memory()
    with keeping(Journal(write=memory.write)):
        line(small(), alphas=axis(1, 5))
    with keeping(memory.again()) as log:
        line(small(), alphas=axis(1, 9))
    assert log.reused == 5


def smoothed(factor: float) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, target, label_smoothing=factor)

    return loss


@pytest.mark.parametrize(
    "losses",
    [
        (nn.CrossEntropyLoss(), nn.MultiMarginLoss()),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0]).double())),
        (smoothed(0.1), smoothed(0.2)),
        (partial(nn.functional.cross_entropy, label_smoothing=0.1), partial(nn.functional.cross_entropy)),
    ],
    ids=["class", "setting", "buffer", "closure", "partial"],
)
def test_points_of_another_loss_are_never_taken_and_it_is_said(at_once, losses):
    steps, said = axis(1, 3), []
    memory = Memory()
    with keeping(Journal(write=memory.write)):
        line(small().replace(loss=losses[0]), alphas=steps)
    fresh = line(small().replace(loss=losses[1]), alphas=steps)
    with keeping(memory.again(said.append)) as log:
        again = line(small().replace(loss=losses[1]), alphas=steps)
    assert log.reused == 0
    np.testing.assert_array_equal(again.loss, fresh.loss)
    assert len(said) == 1
    assert "not taken from the 3 points of the earlier run: another is the loss (" in said[0]
    # Both losses' points are there now, and each finds its own.
    for loss in losses:
        with keeping(memory.again(said.append)) as log:
            line(small().replace(loss=loss), alphas=steps)
        assert log.reused == 3
    assert len(said) == 1


def test_points_whose_origin_had_another_loss_are_not_taken_though_nothing_tells_them_apart(at_once, monkeypatch):
    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, target, label_smoothing=float(os.environ["SMOOTHING"]))

    steps, said = axis(1, 3), []
    memory = Memory()
    for smoothing, reused in (("0.1", 0), ("0.2", 0), ("0.2", 3), ("0.1", 3)):
        monkeypatch.setenv("SMOOTHING", smoothing)
        with keeping(memory.again(said.append)) as log:
            line(small().replace(loss=loss), alphas=steps)
        assert log.reused == reused, smoothing
    assert len(said) == 1
    assert "another is the loss at the origin (" in said[0]


def test_a_loss_that_counts_its_calls_is_the_same_loss_where_the_task_is_held(at_once):
    class Counting(nn.Module):
        calls = 0

        def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return nn.functional.cross_entropy(outputs, target)

    memory = Memory()
    for calls, reused in ((0, 0), (5, 3)):
        task = small().replace(loss=Counting())
        hold(task)
        task.loss.calls = calls
        with keeping(memory.again()) as log:
            line(task, alphas=axis(1, 3))
        assert log.reused == reused


@pytest.mark.parametrize("other", ["weights", "data", "direction", "precision", "quantities", "buffers", "layer"])
def test_points_of_anything_else_are_never_taken(at_once, other):
    def made() -> Task:
        task = small()
        task.model.append(nn.BatchNorm1d(3).double())
        return task

    memory = Memory()
    with keeping(Journal(write=memory.write)):
        plane(made(), alphas=axis(1, 3), betas=axis(1, 3))
    task, options = made(), {}
    if other == "weights":
        with torch.no_grad():
            task.model[0].bias[0] += 1e-12
    elif other == "data":
        task = task.replace(max_samples=19)
    elif other == "direction":
        options = {"d2": random_direction(task, 5)}
    elif other == "precision":
        task = task.replace(dtype=torch.float32)
    elif other == "layer":
        task.model[1] = nn.ReLU()
    elif other == "buffers":
        task.model[3].running_mean[0] = 0.5
    else:
        options = {"accuracy": False}
    with keeping(memory.again()) as log:
        plane(task, alphas=axis(1, 3), betas=axis(1, 3), **options)
    assert log.reused == 0


def test_without_a_journal_nothing_is_kept():
    log = journal.journal()
    assert not log.wanted
    log.add("key", (1.0,))
    assert not log.out_of_time
    with until(1000.0) as inner:
        assert inner.deadline is not None
        with until(0.0) as innermost:
            assert innermost.out_of_time
        assert not inner.out_of_time
    assert journal.journal().deadline is None


# --------------------------------------------------------------------------------------------- the command line


def run(*arguments: object, slow: float = 0.0, stop: int | None = None, archive: str = "net.landscape.h5") -> str:
    """Run the command line in a process of its own; with `stop` send that signal when points are on disk."""
    command = [sys.executable, "-m", "landscape.cli", "probe", "net.pt", *map(str, arguments)]
    environment = {**os.environ, "SLOW": str(slow), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if stop is not None:
        deadline = time.monotonic() + 120
        while not points_on_disk(archive):
            assert child.poll() is None, child.stdout.read() if child.stdout else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(stop)
    said, _ = child.communicate(timeout=300)
    expected = {None: 0, signal.SIGKILL: -9, signal.SIGINT: 130}[stop]
    assert child.returncode == expected, said
    return said


def interrupt(monkeypatch: pytest.MonkeyPatch, *arguments: object, after: int = 300) -> None:
    """Run the command line in this process, with Ctrl-C after so many points."""
    at, calls = Points.at, iter(range(after))

    def point(*given: object, **more: object) -> list[float]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return at(*given, **more)

    monkeypatch.setattr(Points, "at", point)
    assert small_world.landscape("probe", "net.pt", *arguments).exit_code == 130
    monkeypatch.setattr(Points, "at", at)


def stop_the_clock(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let every time limit be over when the clock has been looked at so often."""
    looks = iter(range(after))
    monkeypatch.setattr(journal, "monotonic", lambda: 0.0 if next(looks, None) is not None else math.inf)


def points_on_disk(archive: str) -> int:
    try:
        return sum(len(rows) for rows in open_archive(f"{archive}.partial").unfinished.values())
    except ArchiveError:  # not there yet, or not yet whole
        return 0


def surface(archive: str) -> Plane:
    (entry,) = open_archive(archive).select("plane")
    found = entry.result
    assert isinstance(found, Plane)
    return found


def test_a_surface_that_was_killed_goes_on_bit_for_bit(world):
    small_world.done("probe", "net.pt", *GRID, "-o", "whole.h5")
    run(*GRID, slow=0.002, stop=signal.SIGKILL)
    assert not Path("net.landscape.h5").exists()
    kept = points_on_disk("net.landscape.h5")
    assert 0 < kept < 41 * 41
    refused = small_world.landscape("probe", "net.pt", *GRID)
    assert refused.exit_code == 1
    assert f"1 result and {kept} points of a run that was killed; pass --resume" in " ".join(refused.output.split())
    said = small_world.landscape("probe", "net.pt", *GRID, "--resume")
    assert said.exit_code == 0, said.output
    assert "net: performance (1 of 2) is in the archive already" in said.output
    same(surface("whole.h5"), surface("net.landscape.h5"))
    assert f"{kept:,} points come from an earlier run" in " ".join(surface("net.landscape.h5").notes)
    done = open_archive("net.landscape.h5")
    assert (done.status, done.unfinished, len(done.entries)) == ("complete", {}, 2)
    assert done.attributes["resumed"]["run_id"] != done.attributes["run_id"]
    assert not Path("net.landscape.h5.partial").exists()


def test_ctrl_c_keeps_results_and_points_in_a_readable_archive(world, monkeypatch):
    small_world.done("probe", "net.pt", *GRID, "-o", "whole.h5")
    interrupt(monkeypatch, *GRID)
    stopped = open_archive("net.landscape.h5")
    assert stopped.status == "interrupted"
    assert [e.kind for e in stopped.entries] == ["performance"]
    assert [len(r) for r in stopped.unfinished.values()] == [300]
    assert "300 points of a surface; landscape probe --resume" in small_world.done("show", "net.landscape.h5")
    # Something else appended leaves it as interrupted as it was, points included.
    small_world.done("probe", "net.pt", "--only", "line", "--grid", "3", "--append")
    appended = open_archive("net.landscape.h5")
    assert appended.status == "interrupted"
    assert appended.unfinished.keys() == stopped.unfinished.keys()
    # Interrupted once more while it goes on: the points of both runs are there.
    interrupt(monkeypatch, *GRID, "--resume", after=200)
    assert [len(r) for r in open_archive("net.landscape.h5").unfinished.values()] == [500]
    small_world.done("probe", "net.pt", *GRID, "--resume")
    same(surface("whole.h5"), surface("net.landscape.h5"))
    assert any(n.startswith("500 points") for n in surface("net.landscape.h5").notes)
    done = open_archive("net.landscape.h5")
    assert (done.status, done.unfinished) == ("complete", {})
    assert [e.kind for e in done.entries] == ["performance", "line", "plane"]


@pytest.mark.slow
def test_killed_before_any_result_the_points_are_kept_and_ctrl_c_as_well(world):
    alone = ("--only", "surface", "--grid", "41", "-o", "run.h5")
    small_world.done("probe", "net.pt", "--only", "surface", "--grid", "41", "-o", "whole.h5")
    run(*alone, slow=0.002, stop=signal.SIGKILL, archive="run.h5")
    first = points_on_disk("run.h5")
    assert first > 0
    (world / "run.h5.partial").rename("aside")
    run(*alone, slow=0.002, stop=signal.SIGINT, archive="run.h5")
    assert not Path("run.h5").exists()
    assert points_on_disk("run.h5") > 0
    Path("aside").rename(world / "run.h5.partial")
    small_world.done("probe", "net.pt", *alone, "--resume")
    same(surface("whole.h5"), surface("run.h5"))


def test_a_time_limit_leaves_a_partial_picture_and_resume_completes_it(world, monkeypatch):
    small_world.done("probe", "net.pt", *GRID, "-o", "whole.h5")
    stop_the_clock(monkeypatch, after=900)
    said = small_world.landscape("probe", "net.pt", *GRID, "--time-limit", "1h")
    assert said.exit_code == 0, said.output
    partial = surface("net.landscape.h5")
    assert partial.status == "partial"
    assert 0 < partial.evaluated.sum() < partial.loss.size
    assert np.isfinite(partial.loss).all()
    assert "the time limit came first" in said.output
    assert open_archive("net.landscape.h5").status == "interrupted"
    monkeypatch.undo()
    monkeypatch.chdir(world)
    small_world.done("probe", "net.pt", *GRID, "--resume")
    same(surface("whole.h5"), surface("net.landscape.h5"))
    assert open_archive("net.landscape.h5").status == "complete"


def test_measurements_that_were_not_begun_in_time_are_made_by_resume(world, monkeypatch):
    stop_the_clock(monkeypatch, after=3)
    found = small_world.landscape("probe", "net.pt", "--only", "performance,trace", "--time-limit", "1h")
    assert found.exit_code == 0, found.output
    assert "not measured: trace: the time limit came first; --resume goes on" in found.output
    assert open_archive("net.landscape.h5").status == "interrupted"
    monkeypatch.undo()
    monkeypatch.chdir(world)
    small_world.done("probe", "net.pt", "--only", "performance,trace", "--resume")
    assert [e.kind for e in open_archive("net.landscape.h5").entries] == ["performance", "trace"]
    assert open_archive("net.landscape.h5").status == "complete"


def test_a_time_limit_too_short_for_anything_is_an_error(world, monkeypatch):
    stop_the_clock(monkeypatch, after=0)
    found = small_world.landscape("probe", "net.pt", *GRID, "--time-limit", "1h")
    assert found.exit_code == 1
    assert "nothing could be measured of net.pt (performance: the time limit came first" in found.output
    assert list(world.glob("*.h5*")) == []


def test_resume_measures_only_what_differs(world):
    only = ("--only", "performance,line", "--grid", "5")
    small_world.done("probe", "net.pt", *only)
    before = Path("net.landscape.h5").read_bytes()
    said = small_world.landscape("probe", "net.pt", *only, "--resume")
    assert said.output.count("is in the archive already") == 2
    assert Path("net.landscape.h5").read_bytes() == before
    for change in (("--span", "0.5"), ("--seed", "3"), ("--max-samples", "30")):
        said = small_world.landscape("probe", "net.pt", *only, *change, "--resume")
        assert said.exit_code == 0, said.output
        assert said.output.count("is in the archive already") == (1 if change[0] == "--span" else 0)
    save_checkpoint("net.pt", small_world.train(5), task="slow.py:slow")
    assert "is in the archive already" not in small_world.landscape("probe", "net.pt", *only, "--resume").output


def test_points_of_other_weights_are_said_and_not_used(world, monkeypatch):
    interrupt(monkeypatch, *GRID)
    save_checkpoint("net.pt", small_world.train(5), task="slow.py:slow")
    said = small_world.landscape("probe", "net.pt", *GRID, "--resume")
    assert said.exit_code == 0, said.output
    assert "not taken from the 300 points of the earlier run: another is the weights" in said.output
    assert "of the 300 points of the earlier run none was used" in said.output
    assert not any("earlier run" in n for n in surface("net.landscape.h5").notes)


CHANGES = {
    "loss": (("--set", "loss=huber"), "the setting loss (none before, now huber)"),
    "smoothing": (("--set", "smoothing=0.1"), "the setting smoothing (none before, now 0.1)"),
    "model": (("--set", "slope=0.5"), "the setting slope (none before, now 0.5)"),
    "data": (("--max-samples", "30"), "the data"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_interrupted_probe_takes_no_points_of_another_task_setting(world, monkeypatch, change):
    options, why = CHANGES[change]
    grid = ("--only", "performance,surface", "--grid", "9")
    interrupt(monkeypatch, *grid, after=30)
    small_world.done("probe", "net.pt", *grid, *options, "-o", "fresh.h5")
    said = small_world.landscape("probe", "net.pt", *grid, *options, "--resume")
    assert said.exit_code == 0, said.output
    assert "evaluated anew, not taken from the 30 points of the earlier run: another is" in said.output
    assert why in said.output
    same(surface("fresh.h5"), surface("net.landscape.h5"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_finished_probe_is_measured_anew_with_another_task_setting(world, change):
    options, why = CHANGES[change]
    grid = ("--only", "line", "--grid", "5")
    small_world.done("probe", "net.pt", *grid)
    small_world.done("probe", "net.pt", *grid, *options, "-o", "fresh.h5")
    said = small_world.landscape("probe", "net.pt", *grid, *options, "--resume")
    assert said.exit_code == 0, said.output
    assert "net: line: measured anew, not taken from the archive: another is" in said.output
    assert why.replace("data", "draw train") in said.output
    fresh, found = (open_archive(a).entries[-1].result for a in ("fresh.h5", "net.landscape.h5"))
    np.testing.assert_array_equal(found.loss, fresh.loss)
    before = Path("net.landscape.h5").read_bytes()
    said = small_world.landscape("probe", "net.pt", *grid, *options, "--resume")
    assert "is in the archive already" in said.output
    assert Path("net.landscape.h5").read_bytes() == before


def test_a_loss_that_the_checkpoint_names_and_one_whose_constant_changed_are_other_losses(world, monkeypatch):
    only = ("--only", "line", "--grid", "5")
    small_world.done("probe", "net.pt", *only)
    for loss in ("focal(gamma=2)", "focal(gamma=3)"):
        save_checkpoint("net.pt", small_world.train(0), task="slow.py:slow", task_loss=loss)
        said = small_world.landscape("probe", "net.pt", *only, "--resume").output
        assert f"the loss of the registry ({'none' if '2' in loss else 'focal(gamma=2)'} before, now {loss})" in said
    # The function lies in a module beside the task's file, which itself stays the same.
    Path("beside.py").write_text(SLOW)
    Path("imports.py").write_text(
        "from landscape import task\nimport beside\n\n@task\ndef made():\n    return beside.slow(loss='huber')\n"
    )
    imported = ("--task", "imports.py:made", *only, "-o", "beside.h5")
    small_world.done("probe", "net.pt", *imported)
    monkeypatch.setattr(sys.modules["beside"], "WIDTH", 0.25)
    said = small_world.landscape("probe", "net.pt", *imported, "--resume").output
    assert "another is the loss (softened with other code or settings)" in said


@pytest.mark.parametrize("other", ["--append", "--force"])
def test_resume_goes_with_neither_append_nor_force(world, other):
    found = small_world.landscape("probe", "net.pt", "--resume", other)
    assert found.exit_code == 2
    assert "--resume goes on with the archive that there is" in found.output


def test_a_full_disk_under_way_is_one_line_and_keeps_what_is_there(world, monkeypatch):
    writer = ArchiveWriter("run.h5")
    writer.keep("key", np.ones((3, 2)))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr("landscape.archive.writer.FLUSH_SHARE", 0.0)
    with pytest.raises(ArchiveError, match="No space left on device"):
        writer.keep("key", np.ones((2, 2)))
    monkeypatch.undo()
    assert [len(r) for r in open_archive(world / "run.h5.partial").unfinished.values()] == [3]
    writer.close("interrupted")
    assert [len(r) for r in open_archive(world / "run.h5.partial").unfinished.values()] == [5]


# --------------------------------------------------------------------------------- the surface on the command line


@pytest.mark.parametrize("directions", ["random", "gradient", "hessian"])
def test_the_surfaces_options_reach_it(world, directions):
    small_world.done("probe", "net.pt", "--only", "surface,line", "--plane", directions, "--grid", "7", "--span", "0.5")
    archive = open_archive("net.landscape.h5")
    (flat,) = archive.select("plane")
    (straight,) = archive.select("line")
    assert flat.result.loss.shape == (7, 7)
    assert flat.result.alpha[0] == straight.result.alpha[0] == -0.5
    assert straight.result.loss.shape == (7,)
    kind = {"random": "random", "gradient": "gradient", "hessian": "Hessian eigenvector"}[directions]
    assert flat.result.directions[0].startswith(kind)


def test_a_tolerance_is_said_with_what_it_saved(world):
    said = small_world.done("probe", "net.pt", "--only", "surface", "--grid", "41", "--tol", "0.02")
    found = surface("net.landscape.h5")
    assert found.settings["tol"] == 0.02
    assert found.evaluated.sum() < 0.2 * 41**2
    assert f"{found.evaluated.sum()} evaluated, the others within an estimated" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "trace", "--tol", "0.1"), "add surface to --only"),
        (("--only", "line", "--plane", "hessian"), "add surface to --only"),
        (("--time-limit", "soon"), "type 90s, 10m or 1.5h"),
        (("--time-limit", "0"), "is no time above 0"),
        (("--tol", "2"), "not in the range"),
        (("--grid", "1"), "not in the range"),
    ],
)
def test_wrong_usage_of_the_surfaces_options(world, arguments, message):
    found = small_world.landscape("probe", "net.pt", *arguments)
    assert found.exit_code == 2
    assert message in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("option", "message"),
    [("plane.span=-1", "span=-1 must be"), ("plane.tol=0", "tol=0 must be"), ("plane.budget=10", "needs a tolerance")],
)
def test_options_that_cannot_be_kept_are_refused_before_anything_is_measured(world, option, message):
    found = small_world.landscape("probe", "net.pt", "--only", "performance,surface", "--option", option)
    assert found.exit_code == 1
    assert message in found.output
    assert "performance (1 of 2)" not in found.output
    assert list(world.glob("*.h5*")) == []


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (".5min", 30)])
def test_times_as_people_write_them(text, seconds):
    assert Duration().convert(text, None, None) == seconds


def test_a_long_run_says_beforehand_how_long(world, monkeypatch):
    monkeypatch.setattr("landscape.probes.posthoc.WORTH_SAYING", 0.0)
    said = small_world.landscape("probe", "net.pt", "--only", "performance,line", "--grid", "5").output
    assert re.search(r"this will take [^,]+ s, most of it for", said)
    assert said.index("this will take") < said.index("performance (1 of 2)")
