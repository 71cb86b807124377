"""`landscape path`: one path or all pairs, the numbers, the archive, the report, and bad input."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from small_world import TASKS, done, landscape

import landscape as ls
from landscape.task_files import load_task


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text(TASKS, encoding="utf-8")
    task = load_task("tasks.py:tiny")
    for i in range(3):
        torch.manual_seed(10 + i)
        for p in task.model.parameters():
            torch.nn.init.normal_(p)
        ls.save_checkpoint(f"s{i}.pt", task.model, task="tasks.py:tiny")
    return task


def found(*arguments) -> dict:
    shown = json.loads(done("path", *arguments, "--json"))
    assert shown["schema"] == 1
    (one,) = shown["results"]
    return one


def test_a_path_is_that_of_interpolate_over_both_splits(world):
    one = found("s0.pt", "s1.pt", "s2.pt", "--points", "5")
    direct = ls.interpolate(world, "s0.pt", "s1.pt", "s2.pt", points=5, splits=("train", "test"))
    assert one["path"] == json.loads(json.dumps(direct.summary()))
    assert one["checkpoints"] == ["s0.pt", "s1.pt", "s2.pt"]
    assert (one["samples"], one["task"]) == ({"train": 200, "test": 60}, "tasks.py:tiny")
    assert os.path.basename(one["archive"]) == "s0-to-s2.path.h5"
    archive = ls.open_archive(one["archive"])
    (entry,) = archive.entries
    assert (archive.status, entry.kind, entry.subject.label) == ("complete", "path", "s0 to s2")
    np.testing.assert_array_equal(entry.result.loss, direct.loss)
    assert entry.subject.facts["between"] == ["s0.pt", "s1.pt", "s2.pt"]


def test_pairs_are_those_of_connectivity(world):
    one = found("s0.pt", "s1.pt", "s2.pt", "--pairs", "--points", "5", "--split", "train", "-o", "p.h5")
    direct = ls.connectivity(world, "s0.pt", "s1.pt", "s2.pt", points=5)
    assert one["connectivity"]["states"] == ["s0", "s1", "s2"]
    assert one["connectivity"]["barrier"] == json.loads(json.dumps(direct.summary()["barrier"]))
    (entry,) = ls.open_archive("p.h5").entries
    assert (entry.kind, entry.subject.label) == ("connectivity", "3 checkpoints")


def test_the_text_has_a_row_for_each_segment_and_a_triangle_for_pairs(world):
    text = done("path", "s0.pt", "s1.pt", "s2.pt", "--points", "5", "--align", "weights")
    assert "67 parameters, 200 train and 60 test samples" in text
    assert [line.split()[:2] for line in text.splitlines() if line.strip().startswith("s")] == [
        ["s0.pt", "s1.pt"],
        ["s1.pt", "s2.pt"],
    ]
    assert "train, before aligning" in text
    text = done("path", "s0.pt", "s1.pt", "s2.pt", "--points", "5", "--pairs", "--split", "test")
    head, _, first, second = text.splitlines()[3:7]
    assert head.split() == ["test", "barrier", "s0", "s1"]
    assert (first.split()[0], second.split()[0]) == ("s1", "s2")


def test_a_curve_and_an_alignment_are_named_where_runs_are_compared(world):
    found("s0.pt", "s1.pt", "--points", "3", "-o", "a.h5")
    found("s0.pt", "s1.pt", "--points", "3", "--curve", "bezier", "--steps", "3", "-o", "a.h5", "--append")
    found("s0.pt", "s1.pt", "--points", "3", "--align", "weights", "-o", "a.h5", "--append")
    entries = ls.open_archive("a.h5").entries
    assert [e.subject.label for e in entries] == ["s0 to s1", "s0 to s1, curve", "s0 to s1, aligned by weights"]
    assert [e.result.settings.get("steps") for e in entries] == [None, 3, None]


def test_a_report_is_drawn_with_paths_and_pairs(world):
    done("path", "s0.pt", "s1.pt", "--points", "3", "-o", "a.h5")
    done("path", "s0.pt", "s1.pt", "s2.pt", "--points", "3", "--pairs", "-o", "a.h5", "--append", "--report", "r.html")
    page = Path("r.html").read_text("utf-8")
    assert "Paths between checkpoints" in page
    assert "Barriers between checkpoints" in page
    assert "between_fingerprints" not in page.split("Provenance")[0]
    done("figure", "a.h5", "barriers", "-o", "b.png")
    words = Path("b.txt").read_text("utf-8")
    assert "Barriers between each two checkpoints along a straight path" in words
    assert "evaluated at 3 points on 60 to 200 samples" in words


def test_another_task_or_loss_is_measured_with_the_first_ones_and_said(world):
    ls.save_checkpoint("other.pt", world.model, task="tasks.py:tiny", settings={"samples": 50})
    one = found("s0.pt", "other.pt", "--points", "3")
    assert one["samples"]["train"] == 200
    assert any("other.pt names another task, settings or loss" in w for w in one["warnings"])
    assert not any("names another" in w for w in found("s0.pt", "s1.pt", "--points", "3")["warnings"])


def test_files_of_one_name_are_told_apart(world, tmp_path):
    for folder in ("a", "b"):
        os.makedirs(folder)
    os.rename("s0.pt", "a/final.pt")
    os.rename("s1.pt", "b/final.pt")
    one = found("a/final.pt", "b/final.pt", "--points", "3")
    assert os.path.basename(one["archive"]) == "a_final-to-b_final.path.h5"


def test_a_name_with_dots_stays_whole(world):
    os.rename("s0.pt", "net.v1.0.pt")
    os.rename("s1.pt", "net.v1.5.pt")
    one = found("net.v1.0.pt", "net.v1.5.pt", "--points", "3")
    assert os.path.basename(one["archive"]) == "net.v1.0-to-net.v1.5.path.h5"


def test_what_was_measured_before_ctrl_c_is_in_the_archive(world, monkeypatch):
    from landscape.surface import connectivity

    real, asked = connectivity.interpolate, []

    def cut(*arguments, **how):
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **how)

    monkeypatch.setattr(connectivity, "interpolate", cut)
    stopped = landscape("path", "s0.pt", "s1.pt", "s2.pt", "--points", "3", "--pairs", "-o", "p.h5")
    assert stopped.exit_code == 130
    archive = ls.open_archive("p.h5")
    (entry,) = archive.entries
    assert (archive.status, entry.status) == ("interrupted", "partial")
    assert np.isfinite(entry.result.barrier[0, 0]).all()
    assert np.isnan(entry.result.barrier[0, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["s0.pt"], 2, "a path needs at least two checkpoints"),
        (["s0.pt", "nowhere.pt"], 1, "no checkpoint at nowhere.pt"),
        (["s0.pt", "s0.pt"], 1, "are identical"),
        (["s0.pt", "s1.pt", "--split", "val"], 1, "has no 'val' data; it has train, test"),
        (["s0.pt", "s1.pt", "--steps", "5"], 2, "add --curve bezier"),
        (["s0.pt", "s1.pt", "--append", "--force"], 2, "give one of them"),
        (["s0.pt", "wide.pt"], 1, "wide.pt"),
        (["s0.pt", "s1.pt", "-o", "there.h5"], 1, "there.h5 exists"),
    ],
)
def test_bad_input_is_one_line_and_no_file(world, arguments, code, said):
    torch.save({"0.weight": torch.zeros(9, 4)}, "wide.pt")
    Path("there.h5").write_text("mine")
    extra = ["--task", "tasks.py:tiny"] if "wide.pt" in arguments else []
    before = sorted(os.listdir())
    failed = landscape("path", *arguments, *extra)
    assert failed.exit_code == code
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr
    assert sorted(os.listdir()) == before
