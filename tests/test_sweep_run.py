"""A sweep as processes run it: killed, signalled, resumed, in workers that die; as if nobody had disturbed it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from sweep_world import build, cells_of, start

from landscape import Task, load_task, losses, open_archive
from landscape.errors import TrainingError
from landscape.probes import Sweep, collect
from landscape.probes.sweep.how import How
from landscape.probes.workers.stopping import Stop

BARE = How(record=False, measure=False)
#: Two losses and two seeds of a net whose dropout draws, and whose steps take 10 ms.
SLOW = ("tasks.py:slow", "--loss", "cross_entropy,focal", "--seeds", "2", "--epochs", "4", "--batch-size", "20")


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The final weights of the slow sweep, cell by cell, of one process that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    build(folder)
    ended = start(folder, *SLOW, "--no-measure", "--no-record")
    _, err = ended.communicate(timeout=300)
    assert ended.returncode == 0, err
    return {name: c["final_weights"] for name, c in cells_of(folder / "runs").items()}


def wait_for(condition, process: subprocess.Popen, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def finish(folder, *arguments) -> None:
    process = start(folder, *arguments)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


# ------------------------------------------------------------------------------------------------- killed


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_sweep_killed_at_random_moments_ends_as_an_undisturbed_one(world, undisturbed, workers):
    rng = random.Random(workers)
    arguments = (*SLOW, "--only", "performance", "--workers", workers)
    kills = 0
    for turn in range(3):
        process = start(world, *arguments, "--resume")
        if turn == 0:
            wait_for((world / "runs").exists, process)
        # From before the first cell to the last: a process needs seconds to begin, on a quiet machine few to end.
        try:
            process.communicate(timeout=rng.uniform(0.0, 1.5) if turn == 0 else rng.uniform(2.0, 5.0))
        except subprocess.TimeoutExpired:
            kills += 1
            process.kill()
            process.communicate()
    assert kills
    finish(world, *arguments, "--resume")
    found = cells_of(world / "runs")
    assert {name: c["final_weights"] for name, c in found.items()} == undisturbed
    assert {c["status"] for c in found.values()} == {"complete"}
    for path in (world / "runs").glob("*/run.h5"):
        archive = open_archive(path)
        assert archive.status == "complete"
        assert archive.history["loss"].current().steps.tolist() == list(range(1, 41))
        assert [e.kind for e in archive.entries] == ["performance"]
    assert not list((world / "runs").glob("*/last.pt"))


def test_a_killed_cell_goes_on_from_its_last_saved_state(world, undisturbed, tmp_path):
    script = (
        "from landscape.probes import Sweep, How\n"
        "Sweep('tasks.py:slow', 'runs', loss=['cross_entropy', 'focal'], seeds=2, epochs=4, batch_size=20,\n"
        "      how=How(record=False, measure=False, save_every=0)).run(resume=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-W", "error", "-c", script], cwd=world)
    first = next(iter(undisturbed))
    wait_for(lambda: cells_of(world / "runs").get(first, {}).get("step", 0) >= 10, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = cells_of(world / "runs")[first]
    assert before["status"] == "running"
    assert (world / "runs" / first / "last.pt").exists()
    sweep = Sweep("tasks.py:slow", "runs", loss=["cross_entropy", "focal"], seeds=2, epochs=4, batch_size=20, how=BARE)
    said: list[str] = []
    found = sweep.run(resume=True, only=sweep.cells[:1], say=said.append)
    assert any("goes on from step" in text for text in said), said
    assert found.results[0].final_weights == undisturbed[first]
    assert found.results[0].attempts == 2


# ------------------------------------------------------------------------------------------------- signalled


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGUSR1, 128 + signal.SIGUSR1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_what_is_under_way_and_leaves(world, undisturbed, number, code):
    first = next(iter(undisturbed))
    arguments = (*SLOW, "--no-measure", "--no-record", "--cell", "1")
    process = start(world, *arguments)
    wait_for(lambda: first in cells_of(world / "runs"), process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    state = cells_of(world / "runs")[first]
    assert state["status"] == "interrupted"
    assert signal.Signals(number).name in state["reason"]
    finish(world, *arguments)
    assert cells_of(world / "runs")[first]["final_weights"] == undisturbed[first]


@pytest.mark.slow
def test_workers_are_told_to_stop_and_save(world, undisturbed):
    process = start(world, *SLOW, "--no-measure", "--no-record", "--workers", 2)
    wait_for(lambda: len(cells_of(world / "runs")) >= 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 143, err
    states = {c["status"] for c in cells_of(world / "runs").values()}
    assert states <= {"interrupted", "trained", "complete"}  # trained: the signal came behind the last step
    assert states != {"complete"}
    finish(world, *SLOW, "--no-measure", "--no-record", "--resume")
    assert {n: c["final_weights"] for n, c in cells_of(world / "runs").items()} == undisturbed


def test_a_time_limit_saves_and_says_how_to_go_on(world):
    sweep = Sweep("tasks.py:slow", "runs", loss=["cross_entropy", "focal"], epochs=4, batch_size=20, how=BARE)
    found = sweep.run(time_limit=0.15)
    assert found.late
    assert not found.finished
    assert found.counts.get("pending", 0) >= 1
    assert sweep.run(resume=True).finished


# ------------------------------------------------------------------------------------------------- extended


def test_more_seeds_and_losses_join_a_sweep_and_only_they_are_trained(world):
    lists = {"epochs": 2, "batch_size": 50, "how": BARE}
    first = Sweep("tasks.py:dropped", "runs", loss=["cross_entropy"], seeds=2, **lists).run()
    weights = {p: p.read_bytes() for p in (world / "runs").glob("*/final.pt")}
    longer = {"loss": ["focal", "cross_entropy"], "seeds": 3, **lists}
    with pytest.raises(TrainingError, match="holds 2 of these 6 cells already; pass --resume"):
        Sweep("tasks.py:dropped", "runs", **longer).run()
    said: list[str] = []
    sweep = Sweep("tasks.py:dropped", "runs", **longer)
    found = sweep.run(resume=True, say=said.append)
    assert "4 cells join the 2 that are there" in said
    assert "2 of 6 cells are finished already" in said
    assert found.counts == {"complete": 6}
    assert {p: p.read_bytes() for p in weights} == weights
    assert [r.attempts for r in found.results] == [1] * 6
    assert [r.final_weights for r in found.results[:2]] == [r.final_weights for r in first.results]
    assert [(g.label, g.seeds) for g in found.groups()] == [("cross_entropy", (0, 1, 2)), ("focal", (0, 1, 2))]
    # As if it had been one sweep from the beginning.
    whole = Sweep("tasks.py:dropped", "whole", **longer).run()
    by_key = {r.cell.key: r.final_weights for r in whole.results}
    assert {r.cell.key: r.final_weights for r in found.results} == by_key
    assert len((world / "runs/results.csv").read_text().splitlines()) == 7


def test_an_extension_with_a_mistake_leaves_the_sweep_as_it_was(world):
    Sweep("tasks.py:tiny", "runs", loss=["cross_entropy"], epochs=1, how=BARE).run()
    before = (world / "runs/sweep.json").read_text()
    with pytest.raises(TrainingError, match="mse doesn't fit"):
        Sweep("tasks.py:tiny", "runs", loss=["cross_entropy", "mse"], epochs=1, how=BARE).run(resume=True)
    assert (world / "runs/sweep.json").read_text() == before


# ------------------------------------------------------------------------------------------------- in workers


@pytest.mark.slow
def test_workers_are_not_led_astray_by_a_folder_called_landscape(world):
    (world / "landscape").mkdir()  # as in a checkout of this project
    (world / "landscape/__init__.py").touch()
    found = Sweep("tasks.py:tiny", "runs", seeds=2, epochs=1, how=BARE).run(workers=2)
    assert found.counts == {"complete": 2}


def test_workers_give_the_weights_of_one_process(world):
    lists = {"loss": ["cross_entropy", "focal"], "seeds": 2, "epochs": 2, "batch_size": 50}
    one = Sweep("tasks.py:dropped", "one", how=BARE, **lists).run()
    two = Sweep("tasks.py:dropped", "two", how=BARE, **lists).run(workers=2)
    assert [r.final_weights for r in one.results] == [r.final_weights for r in two.results]
    assert one.counts == two.counts == {"complete": 4}


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_cell_goes_on(world):
    lists = {"vary": {"at": [0, 3]}, "epochs": 2, "batch_size": 50}
    said: list[str] = []
    found = Sweep("tasks.py:deadly", "runs", how=BARE, **lists).run(workers=2, say=said.append)
    assert found.counts == {"complete": 2}
    assert any("its process died (SIGKILL)" in text for text in said), said
    assert found.results[1].attempts == 2


@pytest.mark.slow
def test_a_worker_that_dies_twice_at_a_cell_leaves_it_as_failed_and_the_sweep_goes_on(world):
    lists = {"vary": {"at": [3, 0]}, "settings": {"times": 9}, "epochs": 2, "batch_size": 50}
    found = Sweep("tasks.py:deadly", "runs", how=BARE, **lists).run(workers=2)
    assert [r.status for r in found.results] == ["failed", "complete"]
    assert "its process died (SIGKILL)" in found.results[0].reason
    assert "2 times" in found.results[0].reason


def test_workers_need_a_task_that_they_can_load(world):
    with pytest.raises(TrainingError, match=r"name it as 'file\.py:name'"):
        Sweep(lambda: None, "runs").run(workers=2)  # type: ignore[arg-type,return-value]


# ------------------------------------------------------------------------------------------------- cells as results


def test_a_cell_that_fails_or_diverges_does_not_end_the_sweep_and_can_be_tried_again(world):
    lists = {"vary": {"at": [0, 6]}, "lr": [0.1, 1e30], "epochs": 2, "batch_size": 50}
    sweep = Sweep("tasks.py:failing", "runs", how=BARE, **lists)
    said: list[str] = []
    found = sweep.run(say=said.append)
    assert [r.status for r in found.results] == ["complete", "failed", "diverged", "diverged"]
    assert any("failed: OSError" in text for text in said)
    (world / "mended").touch()
    # Finished is finished, until one asks.
    assert [r.status for r in sweep.run(resume=True).results] == [r.status for r in found.results]
    again = sweep.run(resume=True, retry=True)
    assert [r.status for r in again.results] == ["complete", "complete", "diverged", "diverged"]
    assert again.results[1].final_weights == again.results[0].final_weights  # `at` changes nothing but when it fails


def test_all_mistakes_are_said_before_anything_is_trained(world):
    sweep = Sweep("tasks.py:tiny", "runs", loss=["cross_entropy", "mse", "focl"], optimizer=["sgd", "sdg"], how=BARE)
    with pytest.raises(TrainingError) as caught:
        sweep.run()
    text = str(caught.value)
    assert "mse doesn't fit the task" in text
    assert (
        "mse takes values and targets of one shape (n, ...); got outputs float32 (200, 3), target int64 (200,)" in text
    )
    assert "no loss or schedule 'focl'; did you mean focal" in text
    assert "no optimizer 'sdg'; did you mean sgd" in text
    assert not (world / "runs").exists()


def test_a_loss_that_is_not_finite_or_has_no_slope_is_said_before_anything_is_trained(world):
    def own():
        return load_task("tasks.py:tiny").replace(loss=lambda o, t: (o * float("nan")).mean())

    with pytest.raises(TrainingError, match="nan on the first batch"):
        Sweep(own, "runs", how=BARE).run()

    def flat():
        task = load_task("tasks.py:tiny")
        return Task(task.model, lambda o, t: o.detach().mean(), task.train)

    with pytest.raises(TrainingError, match="doesn't depend on any weight"):
        Sweep(flat, "runs", how=BARE).run()
    assert "mine" in losses


def test_the_same_seed_begins_with_the_same_weights_and_order_in_all_cells(world):
    lists = {"loss": ["cross_entropy", "focal"], "batch_size": [20, 50], "seeds": 2, "epochs": 1}
    found = Sweep("tasks.py:dropped", "runs", how=BARE, **lists).run()
    for seed in (0, 1):
        own = [r for r in found.results if r.cell.seed == seed]
        assert len({(r.initial_weights, r.order) for r in own}) == 1
    assert len({r.initial_weights for r in found.results}) == 2
    assert found.warnings == ()


def test_a_task_that_defeats_the_seeds_is_warned_about(world):
    found = Sweep("tasks.py:fixed", "runs", seeds=2, epochs=1, how=BARE).run()
    assert any("all seeds begin with the same weights" in text for text in found.warnings)
    own = torch.Generator()

    def escaping():
        task = load_task("tasks.py:tiny")
        with torch.no_grad():
            for p in task.model.parameters():
                p.normal_(generator=own)
        return task

    found = Sweep(escaping, "other", loss=["cross_entropy", "focal"], epochs=1, how=BARE).run()
    assert any("differ in their first weights" in text for text in found.warnings)


# ------------------------------------------------------------------------------------------------- collected


def test_the_results_are_one_table_and_means_over_the_seeds(world):
    how = How(record=False, only=["performance"])
    sweep = Sweep("tasks.py:tiny", "runs", loss=["cross_entropy", "focal"], seeds=3, epochs=2, lr=0.5, how=how)
    found = sweep.run()
    groups = found.groups()
    assert [g.label for g in groups] == ["cross_entropy", "focal"]
    own = [r.metrics["loss.test"] for r in found.results[:3]]
    mean = sum(own) / 3
    assert groups[0].value("loss.test")[0] == pytest.approx(mean)
    assert groups[0].value("loss.test")[1] == pytest.approx((sum((v - mean) ** 2 for v in own) / 2) ** 0.5)
    rows = (world / "runs/results.csv").read_text().splitlines()
    assert len(rows) == 7
    assert rows[0].startswith("cell,folder,loss,schedule,optimizer,batch_size,lr")
    data = json.loads((world / "runs/results.json").read_text())
    assert data["counts"] == {"complete": 6}
    assert collect("runs").to_dict() == found.to_dict()


def test_a_damaged_cell_file_is_set_aside_and_its_cell_goes_on(world):
    sweep = Sweep("tasks.py:tiny", "runs", loss=["cross_entropy", "focal"], epochs=1, batch_size=50, how=BARE)
    before = {r.cell.name: r.final_weights for r in sweep.run().results}
    name = next(iter(before))
    for content in ('{"status": "com', "", "\0" * 300):
        (world / "runs" / name / "cell.json").write_text(content)
        with pytest.raises(TrainingError, match=r"cell\.json can't be read .*--resume sets it aside"):
            collect("runs")
        said: list[str] = []
        found = sweep.run(resume=True, say=said.append)
        assert {r.cell.name: r.final_weights for r in found.results} == before
        assert any("is kept as cell.json.damaged" in line for line in said)
        assert (world / "runs" / name / "cell.json.damaged").read_text() == content


def test_a_folder_without_a_sweep_is_said(world):
    with pytest.raises(TrainingError, match="holds no sweep"):
        collect(world)


def test_a_stop_that_was_asked_before_begins_nothing(world):
    stop = Stop()
    stop.ask(signal.SIGTERM)
    found = Sweep("tasks.py:tiny", "runs", how=BARE).run(stop=stop)
    assert found.counts == {"pending": 1}
    assert found.stopped == signal.SIGTERM
