"""`landscape sweep` as typed: cells, estimate, run, resume, shares, results, range test, and mistakes in one line."""

from __future__ import annotations

import json
import re
import time

import pytest
from small_world import done, landscape
from sweep_world import build, cells_of

from landscape.probes.sweep.how import How
from landscape.probes.sweep.study import Sweep
from landscape.probes.sweep.training import Training

BASE = ("sweep", "tasks.py:tiny", "--epochs", "2", "--batch-size", "50")
QUICK = ("--only", "performance")


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    return tmp_path


def test_the_cells_are_listed_without_anything_else(world):
    text = done(
        *BASE, "--loss", "cross_entropy,focal(gamma=2, alpha=1)", "--schedule", "constant,cosine", "--list-cells"
    )
    rows = [line.split("\t") for line in text.splitlines()]
    assert [r[0] for r in rows] == ["1", "2", "3", "4"]
    assert rows[2][2] == "focal(gamma=2,alpha=1), constant"
    assert not (world / "runs").exists()
    cells = json.loads(done(*BASE, "--vary", "hidden=4,8", "--seeds", "0,4", "--list-cells", "--json"))["cells"]
    assert [(c["settings"]["hidden"], c["seed"]) for c in cells] == [(4, 0), (4, 4), (8, 0), (8, 4)]


def test_the_estimate_writes_nothing_and_counts_steps_and_bytes(world):
    shown = json.loads(done(*BASE, "--loss", "cross_entropy,focal", "--seeds", "2", "--dry-run", "--json"))["dry_run"]
    assert [c["steps"] for c in shown["cells"]] == [8] * 4
    assert all(c["bytes"] > 0 for c in shown["cells"])
    for ends in (
        shown["seconds"],
        *(c[f"{part}_seconds"] for c in shown["cells"] for part in ("training", "measuring")),
    ):
        assert 0 < ends[0] <= ends[1]
    assert not (world / "runs").exists()
    text = done(*BASE, "--dry-run", "--no-measure")
    assert re.search(
        r"1 cell, (\S+ to \S+ m?s|under 0.1 s), and .* on the disk at most\npredicted from one batch", text
    )


def test_what_others_take_of_the_machine_is_in_the_upper_end_of_a_sweeps_time_alone(world, monkeypatch):
    take = Training.take

    def waiting(self, batch):
        time.sleep(0.05)  # as where another program has the processor: this thread's own clock stands still
        return take(self, batch)

    monkeypatch.setattr(Training, "take", waiting)
    sweep = Sweep("tasks.py:tiny", "runs", epochs=2, batch_size=50, how=How(measure=False))
    found = sweep.estimate()[0]
    assert found.training.low < 0.04 * found.steps
    assert found.training.high > 0.05 * found.steps


def test_a_sweep_prints_a_table_over_seeds_and_leaves_its_files(world):
    text = done(*BASE, *QUICK, "--loss", "cross_entropy,focal", "--seeds", "2", "--report", "report.html")
    lines = text.splitlines()
    assert lines[0].split()[:2] == ["cell", "seeds"]
    assert lines[2].startswith("cross_entropy")
    assert "±" in lines[2]
    assert "4 cells: 4 complete" in text
    assert (world / "report.html").exists()
    assert (world / "runs/results.csv").exists()
    again = landscape(*BASE, *QUICK, "--loss", "cross_entropy,focal", "--seeds", "2", "--resume")
    assert again.exit_code == 0
    assert "4 of 4 cells are finished already" in again.stderr
    collected = json.loads(done("sweep", "--collect", "-o", "runs", "--json"))
    assert collected["counts"] == {"complete": 4}
    assert [g["label"] for g in collected["groups"]] == ["cross_entropy", "focal"]


def test_jobs_of_an_array_share_a_folder_and_are_collected(world):
    lists = ("--loss", "cross_entropy,focal", "--seeds", "2", "--no-measure", "--no-record")
    for i in (2, 1):
        done(*BASE, *lists, "--cell", f"{i}/2")
    assert {c["status"] for c in cells_of(world / "runs").values()} == {"complete"}
    whole = Sweep("tasks.py:tiny", "runs", loss=["cross_entropy", "focal"], seeds=2, epochs=2, batch_size=50)
    assert whole.run(resume=True).counts == {"complete": 4}


def test_cells_come_from_a_file(world):
    (world / "cells.csv").write_text("loss,batch_size,hidden\ncross_entropy,50,4\nfocal,full,8\n")
    lists = ("--cells", "cells.csv", "--epochs", "2", "--no-measure", "--no-record")
    assert "2 cells: 2 complete" in done("sweep", "tasks.py:tiny", *lists)
    result = landscape("sweep", "tasks.py:tiny", *lists, "--loss", "mse")
    assert result.exit_code == 2
    assert "leave --loss out" in result.output


def test_a_sweep_with_a_failed_cell_exits_1_and_says_what_to_do(world):
    result = landscape("sweep", "tasks.py:failing", "--vary", "at=0,6", "--epochs", "2", "--batch-size", "50",
                       "--no-measure", "--no-record")  # fmt: skip
    assert result.exit_code == 1
    assert "failed: at 6: OSError: the disk with the images is gone" in result.stdout
    assert "--resume --retry-failed" in result.stderr


def test_rates_are_found_and_kept(world):
    text = done(
        *BASE, "--loss", "cross_entropy,focal", "--optimizer", "sgd,adam", "--lr-find", "--lr-range", "1e-2,1e4"
    )
    assert "turns / unstable" in text
    assert "blows up / unstable: 6.30 on a quadratic" in text
    assert len([line for line in text.splitlines() if "sgd" in line or "adam" in line]) == 4
    assert "critical_start" in done("show", "runs/lr_find.h5")
    shown = json.loads(done(*BASE, "--lr-find", "--json"))["lr_find"]
    assert shown[0]["critical_start"] > 0
    done(*BASE, "--no-measure")  # a range test before it makes no other sweep of the folder


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--loss", "focl"), 1, "there is no loss or schedule 'focl'; did you mean focal"),
        (("--loss", "focal(gama=1)"), 1, "focal has no parameter 'gama'; it has gamma"),
        (("--loss", "mse"), 1, "mse doesn't fit the task: mse takes values and targets of one shape"),
        (("--schedule", "cosin"), 1, "there is no schedule 'cosin'; did you mean cosine"),
        (("--schedule", "warmup_cosine(warmup=5000)"), 1, "is longer than the run"),
        (("--optimizer", "sdg"), 1, "there is no optimizer 'sdg'; did you mean sgd"),
        (("--batch-size", "1000"), 1, "exceeds the 200 training samples"),
        (("--batch-size", "many"), 2, "'many' is no whole number (nor full)"),
        (("--lr", "fast"), 2, "'fast' is no number"),
        (("--loss", "a,,b"), 2, "has an empty entry"),
        (("--drive", "clip"), 2, "assigns nothing"),
        (("--track", "everything"), 1, "there is nothing to track called 'everything'"),
        (("--only", "curvatur"), 1, "no measurement 'curvatur'"),
        (
            ("--only", "sharpness", "--option", "sharpness.kind=sam+asam"),
            1,
            "kind 'sam+asam' is not one of sam, adaptive",
        ),
        (("--cell", "9/3"), 1, "there is no share 9/3"),
        (("--set", "hiden=3"), 1, "has no setting 'hiden'"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(world, arguments, code, said):
    result = landscape(*BASE, *arguments)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.split())
    assert not cells_of(world / "runs")


def test_another_sweeps_folder_and_a_second_start_are_refused(world):
    done(*BASE, "--no-measure", "--no-record")
    result = landscape(*BASE, "--no-measure", "--no-record")
    assert (result.exit_code, "pass --resume" in result.output) == (1, True)
    result = landscape(*BASE, "--no-measure", "--no-record", "--lr", "0.5", "--resume")
    assert "holds another sweep: lr of cell 1 is 0.1, here it is 0.5" in result.output
    (world / "tasks.py").write_text((world / "tasks.py").read_text() + "\n# changed\n")
    from landscape import losses

    for registered in (losses._entries, losses._origins):
        registered.pop("mine", None)
    result = landscape(*BASE, "--no-measure", "--no-record", "--resume")
    assert "changed since the sweep" in result.output
    done(*BASE, "--no-measure", "--no-record", "--resume", "--allow-changed")
    assert landscape("sweep", "--collect", "-o", "nothing").exit_code == 1
    assert landscape("sweep").exit_code == 2
