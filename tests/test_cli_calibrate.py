"""`landscape calibrate`: saved predictions and checkpoints, the numbers, the archive, the model, and bad input."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import small_world
import torch
from small_world import done, landscape

import landscape as ls
from landscape.calibration.scores import calibration_error


@pytest.fixture
def world(tmp_path, monkeypatch):
    small_world.enter(tmp_path, monkeypatch)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 4)) * 2
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    y = np.minimum((p.cumsum(axis=1) < rng.random((2000, 1))).sum(axis=1), 3)
    np.savez("a.npz", logits=2 * z, labels=y)
    np.savez("b.npz", logits=1.2 * z, labels=y)
    np.savez("c.npz", logits=2 * z[::-1], labels=y[::-1])
    return 2 * z, y


def found(*arguments) -> list[dict]:
    shown = json.loads(done("calibrate", *arguments, "--json"))
    assert shown["schema"] == 1
    return shown["results"]


# ------------------------------------------------------------------------------------------------ predictions


def test_saved_predictions_before_and_after(world):
    z, y = world
    (one,) = found("a.npz")
    direct = calibration_error(logits=z, labels=y)
    assert one["calibration"]["ece"] == direct.ece
    assert one["calibration"]["ece_ci"] == direct.ece_interval.tolist()
    assert one["calibration"]["nll"] == pytest.approx(direct.nll, rel=1e-12)
    assert (one["samples"], one["classes"], one["task"], one["split"]) == (2000, 4, None, None)
    mended = one["recalibration"]
    same = ls.recalibrate(logits=z, labels=y)
    assert mended["temperature"] == same.temperature == one["calibration"]["temperature"]
    assert mended["ece"]["after"] == same.ece[1]
    assert mended["ece"]["change_ci"] == same.ece_change_interval.tolist()
    assert mended["ece"]["change_ci"][1] < 0
    archive = ls.open_archive(one["archive"])
    assert os.path.basename(one["archive"]) == "a.calibration.h5"
    assert [e.kind for e in archive.entries] == ["calibration", "recalibration", "sample_scores"]
    assert archive.entries[0].subject.label == "a"
    assert archive.status == "complete"


def test_the_text_holds_the_numbers_with_their_intervals(world):
    text = done("calibrate", "a.npz")
    assert "2,000 predictions, 4 classes" in text
    assert "temperature scaling, T = " in text
    assert "fitted on 1,000, judged on 1,000 other predictions" in text
    assert "none: the order of the classes stays" in text
    assert "logits from 'logits', labels from 'labels'" in text


def test_options_reach_what_they_name(world):
    (one,) = found(
        "a.npz", "--method", "isotonic", "--bins", "10", "--split-share", "0.25", "--seed", "3", "--folds", "0"
    )
    assert one["recalibration"]["method"] == "isotonic"
    assert (one["recalibration"]["fitted"], one["recalibration"]["judged"]) == (500, 1500)
    assert one["calibration"]["bins"] == 10
    assert one["calibration"]["temperature"] is None
    (two,) = found("a.npz", "--convention", "torchmetrics", "--archive", "t.h5")
    z, y = world
    direct = calibration_error(logits=z, labels=y, convention="torchmetrics")
    assert two["calibration"]["ece"] == direct.ece
    assert two["calibration"]["convention"] == "torchmetrics"


def test_names_and_layout_are_the_users(world):
    z, y = world
    np.savez("odd.npz", scores=z.reshape(200, 10, 4), y=np.where(np.arange(2000) % 7, y, -100).reshape(200, 10))
    (one,) = found(
        "odd.npz", "--logits", "scores", "--labels", "y", "--ignore-index", "-100", "--class-dim", "-1"
    )  # fmt: skip
    assert one["samples"] == int((np.arange(2000) % 7 > 0).sum())
    torch.save({"out": torch.from_numpy(z), "y": torch.from_numpy(y)}, "odd.pt")
    (two,) = found("odd.pt", "--logits", "out", "--labels", "y", "--archive", "odd.h5")
    assert two["samples"] == 2000


def test_groups_widen_every_interval(world):
    z, y = world
    np.savez("g.npz", logits=np.repeat(z[:400], 5, axis=0), labels=np.repeat(y[:400], 5), who=np.repeat(range(400), 5))
    (alone,) = found("g.npz", "--folds", "5")
    (one,) = found("g.npz", "--groups", "who", "--folds", "5", "--archive", "g.h5")

    def width(of, name):
        low, high = of["recalibration"][name]["change_ci"]
        return high - low

    assert one["calibration"]["ece"] == alone["calibration"]["ece"]
    assert width(one, "nll") > 1.7 * width(alone, "nll")  # five copies of each: sqrt(5) = 2.2
    scores = [e.result for e in ls.open_archive("g.h5").entries if e.kind == "sample_scores"]
    assert len(np.unique(scores[0].group)) == 400


def test_a_single_column_is_said_to_be_a_binary_task(world):
    rng = np.random.default_rng(1)
    p = rng.random(500)
    rows = "\n".join(f"{a:.6f},{int(b)}" for a, b in zip(p, rng.random(500) < p, strict=True))
    with open("b.csv", "w") as file:
        file.write(f"p,label\n{rows}\n")
    (one,) = found("b.csv")
    assert one["classes"] == 2
    assert "one column: the probability of class 1 of a binary task" in one["notes"]


def test_without_a_fit_the_calibration_is_there_and_the_reason_said(world):
    y = np.arange(90) % 3
    np.savez("sure.npz", probabilities=np.eye(3)[y] * 0.97 + 0.01, labels=y)
    (one,) = found("sure.npz")
    assert one["recalibration"] is None
    assert any("no minimum above T=0.001" in w for w in one["warnings"])
    result = landscape("calibrate", "sure.npz", "--method", "temperature", "--archive", "other.h5")
    assert result.exit_code == 1
    assert "no minimum above T=0.001" in result.stderr
    assert not os.path.exists("other.h5")


def test_few_samples_are_a_warning_where_asked_for(world):
    z, y = world
    np.savez("few.npz", logits=z[:10], labels=y[:10])
    (one,) = found("few.npz", "--no-strict")
    assert one["calibration"]["ece"] == calibration_error(logits=z[:10], labels=y[:10], strict=False).ece
    assert any("10 samples for 15 bins" in w for w in one["warnings"])
    assert any(w.endswith("give more, or fewer --bins") for w in one["warnings"])
    assert "--bins" not in str([e.result.warnings for e in ls.open_archive(one["archive"]).entries])


@pytest.mark.parametrize("kind", ["multilabel", "binary", "top-label"])
def test_predictions_of_every_kind_have_their_numbers_and_a_report(world, kind):
    rng = np.random.default_rng(3)
    shape = {"multilabel": (500, 4), "binary": (60, 6, 6), "top-label": (900,)}[kind]
    p = rng.random(shape)
    y = (rng.random(shape) < p).astype(int)
    np.savez("k.npz", probabilities=p, labels=y)
    (one,) = found("k.npz", "--kind", kind, "--report", "k.html")
    direct = calibration_error(probabilities=p, labels=y, kind=kind)
    assert one["samples"] == p.size
    assert one["calibration"]["ece"] == direct.ece
    assert not any("one column" in n for n in one["notes"])
    assert (one["recalibration"] is None) == (kind != "binary")
    assert any("recalibrate each label by itself" in w for w in one["warnings"]) == (kind != "binary")
    assert ("each against the rest" in Path("k.html").read_text()) == (kind == "multilabel")


def test_several_files_and_their_report(world):
    one, two = found("a.npz", "b.npz", "--archive", "both.h5", "--report", "r.html")
    assert one["archive"] == two["archive"]
    archive = ls.open_archive("both.h5")
    assert [e.subject.label for e in archive.entries] == ["a"] * 3 + ["b"] * 3
    scores = [e.result for e in archive.entries if e.kind == "sample_scores"]
    assert scores[0].fingerprint == scores[1].fingerprint  # the same labels in the same order
    (three,) = found("c.npz")
    last = [e.result for e in ls.open_archive(three["archive"]).entries if e.kind == "sample_scores"]
    assert last[0].fingerprint != scores[0].fingerprint
    assert os.path.getsize("r.html") > 100_000


def test_the_map_of_saved_predictions_is_written_alone(world):
    z, _ = world
    (one,) = found("a.npz", "-o", "map.pt")
    assert one["output"] == "map.pt"
    mended = ls.load_recalibration("map.pt")
    np.testing.assert_allclose(mended.apply(z), z / one["recalibration"]["temperature"])


# ------------------------------------------------------------------------------------------------ checkpoints


def test_a_checkpoint_becomes_a_calibrated_model(world, tmp_path):
    small_world.build(tmp_path)
    (one,) = found("tiny.pt", "--split", "train", "--method", "temperature", "-o", "calibrated.pt")
    assert one["task"] == "tasks.py:tiny"
    assert (one["split"], one["samples"]) == ("train", 200)
    assert one["recalibration"]["folds"] == 5

    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    ls.load_checkpoint("calibrated.pt", model)
    calibrated = ls.Calibrated(model, ls.load_recalibration("calibrated.pt"))
    x = torch.randn(6, 4)
    torch.testing.assert_close(calibrated(x), model(x) / one["recalibration"]["temperature"])

    # It still names its task, and its step: it is a checkpoint as any.
    held = torch.load("calibrated.pt", weights_only=True)
    assert held["landscape"]["task"] == "tasks.py:tiny"
    assert held["step"] == 60
    assert held["landscape"]["facts"]["schedule"] == "constant"
    (again,) = found("calibrated.pt", "--split", "train")
    assert again["calibration"]["ece"] == one["calibration"]["ece"]
    assert any("is not applied" in w for w in again["warnings"])


def test_a_foreign_checkpoint_with_its_task(world, tmp_path):
    small_world.build(tmp_path)
    (one,) = found("plain.pt", "--task", "tasks.py:tiny", "--split", "train", "-o", "calibrated.pt")
    held = torch.load("calibrated.pt", weights_only=True)
    assert held["landscape"]["task"] == "tasks.py:tiny"
    assert one["recalibration"]["temperature"] == ls.load_recalibration("calibrated.pt").temperature


def test_the_same_checkpoint_probed_and_calibrated_agree(world, tmp_path):
    small_world.build(tmp_path)
    (probed,) = small_world.results("tiny.pt", "--only", "calibration")
    (one,) = found("tiny.pt")
    assert one["calibration"]["ece"] == probed["calibration"]["ece"]
    assert one["calibration"]["temperature"] == probed["calibration"]["temperature"]
    assert one["recalibration"] == probed["calibration"]["recalibration"]


# ------------------------------------------------------------------------------------------------ bad input

CASES = {
    "nothing there": ("nowhere.npz", 1, r"no predictions or checkpoint at nowhere\.npz"),
    "NaN, the row named": ("nan.npz", 1, r"logits must be finite, got nan in row 17"),
    "logits called probabilities": ("a.npz --probabilities logits", 1, r"must lie in \[0, 1\].*as --logits NAME"),
    "probabilities called logits": ("p.npz --logits p", 1, "they are probabilities; pass them as --probabilities NAME"),
    "unnormalized": ("short.npz", 1, r"must sum to 1 .*got 0\.9 in row 0; if these are logits, pass them as --logits"),
    "infinite": ("inf.npz", 1, r"logits must be finite, got -inf in row 17"),
    "negative label": ("negative.npz", 1, "label -7 in row 4 is negative.*pass --ignore-index -7"),
    "one-hot labels": ("hot.npz", 1, "not one-hot .*--kind multilabel; a binary task for each pixel: --kind binary"),
    "a map of several labels": (
        "hot.npz --kind multilabel --method vector",
        1,
        "got --kind multilabel; recalibrate each",
    ),
    "labels out of range": ("range.npz", 1, "label 9 in row 4 lies outside the 4 classes.*--ignore-index"),
    "unnamed scores": ("unnamed.npz", 1, "neither logits nor probabilities by name"),
    "one class only": ("one.npz", 1, "all 2000 labels are class 2"),
    "few": ("few.npz", 1, r"10 samples for 15 bins.*or --no-strict to go on with a warning"),
    "both names": ("a.npz --logits a --probabilities b", 2, "give the one that the numbers are"),
    "method": ("a.npz --method platt", 2, "temperature"),
    "share": ("a.npz --split-share 1", 2, "split-share"),
    "one fold": ("a.npz --folds 1", 2, "at least 2"),
    "append and force": ("a.npz --append --force", 2, "one of them"),
    "archive exists": ("a.npz --archive taken.h5", 1, "taken.h5 exists"),
    "archive in no folder": ("a.npz --archive nowhere/x.h5", 1, "nowhere does not exist"),
    "output is an archive": ("a.npz -o run.h5", 1, "the archive goes to --archive"),
    "output exists": ("a.npz -o taken.pt", 1, r"taken\.pt exists; pass --force"),
    "output is the source": ("taken.pt -o taken.pt --force", 1, "is the source itself"),
    "output in no folder": ("a.npz -o nowhere/x.pt", 1, "nowhere does not exist"),
    "one output of two": ("a.npz b.npz -o x.pt", 1, "can hold one calibrated model"),
    "two archives of one name": ("a.npz ./a.npz", 1, r"a\.calibration\.h5.*--archive"),
    "report exists": ("a.npz --report taken.html", 1, "taken.html exists"),
    "no task": ("plain.pt", 1, r"plain\.pt does not say which task"),
    "no labels": ("plain.pt --task tasks.py:regression", 1, "no class labels"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(world, tmp_path, case):
    z, y = world
    small_world.build(tmp_path)
    broken = z.copy()
    broken[17, 2] = np.nan
    np.savez("nan.npz", logits=broken, labels=y)
    np.savez("range.npz", logits=z, labels=np.where(np.arange(2000) == 4, 9, y))
    np.savez("unnamed.npz", x=z, labels=y)
    np.savez("one.npz", logits=z, labels=np.full(2000, 2))
    np.savez("few.npz", logits=z[:10], labels=y[:10])
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.savez("p.npz", p=p, labels=y)
    np.savez("short.npz", p=0.9 * p, labels=y)
    np.savez("inf.npz", logits=np.where(np.isnan(broken), -np.inf, broken), labels=y)
    np.savez("negative.npz", logits=z, labels=np.where(np.arange(2000) == 4, -7, y))
    np.savez("hot.npz", logits=z, labels=np.eye(4, dtype=int)[y])
    torch.save({"logits": torch.from_numpy(z), "labels": torch.from_numpy(y)}, "taken.pt")
    for name in ("taken.h5", "taken.html"):
        (tmp_path / name).write_text("something else")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    arguments, code, said = CASES[case]
    result = landscape("calibrate", *arguments.split())
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.stderr.splitlines() if "rror:" in line]
    assert len(errors) == 1
    assert re.search(said, result.stderr)
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert after == before
