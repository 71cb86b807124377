"""`landscape show`: everything that was measured, with its uncertainty, in 100 columns; and as strict JSON."""

from __future__ import annotations

import json
import math

import h5py
import numpy as np
import pytest

from landscape.archive.describe import WIDTH, archive_json, describe_archive, number, uncertain
from landscape.archive.reader import open_archive
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.writer import ArchiveWriter
from landscape.performance import Performance
from landscape.results import Check, Cost
from landscape.surface.slices import Plane


def performance() -> Performance:
    return Performance(
        loss=np.array([0.123456, 0.5]),
        loss_stderr=np.array([0.00213, np.nan]),
        accuracy=np.array([0.9, np.nan]),
        accuracy_stderr=np.array([0.01, np.nan]),
        samples=np.array([1024, 512]),
        parameters=1234567,
        gradient_norm=0.01,
        weight_norm=12.0,
        splits=("train", "test"),
        cost=Cost(products=1200, passes=3.5, seconds=12.345),
        settings={"draws": 10, "unset": None},
        checks=(
            Check("repeat", "pass", "fine"),
            Check("center", "fail", "the loss moved by 0.1, which is far more than rounding explains, " * 3),
        ),
        warnings=("few samples",),
    )


def plane() -> Plane:
    loss = np.arange(63.0).reshape(9, 7)
    loss[0, 0] = np.nan
    return Plane(
        alpha=np.linspace(-1, 1, 9),
        beta=np.linspace(-1, 1, 7),
        loss=loss,
        evaluated=loss > 9,
        center_loss=0.5,
        checkpoint_loss=0.5,
        cosine=math.inf,
        direction_norms=np.ones(2),
    )


@pytest.fixture
def archive(tmp_path):
    subject = Subject(
        "runs/" + "long/" * 40 + "c.pt", "ab" * 32, "digits.py:digits", 7, 1, facts={"device": "cpu", "seed": 0}
    )
    with ArchiveWriter(tmp_path / "run.h5", run={"loss": "ce", "lr": 0.1}) as writer:
        writer.add(performance(), subject=subject)
        writer.add(plane(), subject=subject)
        writer.add(plane(), subject=Subject("b.pt", name="evil \x1b[31m\nname"))
    save_archive(tmp_path / "run.h5", plane(), subject=subject, attributes={"versions": {"torch": "9"}}, append=True)
    return open_archive(tmp_path / "run.h5")


def test_the_text_holds_every_number_with_its_uncertainty(archive):
    text = " ".join(describe_archive(archive).split())
    for words in (
        "complete, 4 results, format 1",
        "settings loss ce, lr 0.1",
        "appended 1",
        "other versions: torch 9",
        "[1] c.pt",
        "step 7, epoch 1, device cpu, seed 0",
        "performance 0001 complete, 1,200 products, 3.5 passes, 12.3 s",
        "train 0.1235 ± 0.0021, test 0.5 loss",
        "train 0.900 ± 0.010, test nan share",
        "1,234,567",
        "settings: draws 10",
        "FAIL center: the loss moved",
        "1 of 2 checks pass",
        "warning: few samples",
        "1 ... 62 loss (9 alpha x 7 beta, 1 not finite)",
        "53 of 63 true (9 alpha x 7 beta)",
    ):
        assert words in text, words
    assert "loss_stderr" not in text
    assert "unset" not in text


def test_the_text_stays_within_its_columns_and_drives_no_terminal(archive):
    text = describe_archive(archive)
    assert max(map(len, text.split("\n"))) <= WIDTH
    assert "evil ?[31m?name" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_a_killed_run_and_a_damaged_result_are_shown_as_such(archive):
    with h5py.File(archive.path, "r+") as file:
        file.attrs["status"] = "running"
        file["results/plane/0001/loss"].attrs["stored_from"] = "no type"
    text = describe_archive(open_archive(archive.path))
    assert "running, or killed before its end" in " ".join(text.split())
    assert "plane 0001  cannot be read: " in text
    assert "plane 0002  complete" in text
    shown = archive_json(open_archive(archive.path))["subjects"][0]["results"]
    assert "cannot be read" in next(r for r in shown if r["id"] == "0001" and r["kind"] == "plane")["error"]


def test_the_json_is_strict_and_says_what_became_null(archive):
    shown = archive_json(archive)
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert shown["schema"] == 1
    first, second = shown["subjects"]
    assert (first["label"], first["step"], first["facts"]) == ("c.pt", 7, {"device": "cpu", "seed": 0})
    assert second["label"] == "evil \x1b[31m\nname"
    measured = first["results"][0]
    assert measured["summary"]["loss"] == {"train": 0.123456, "test": 0.5}
    assert measured["summary"]["loss_stderr"]["test"] is None
    assert measured["cost"] == {"products": 1200, "passes": 3.5, "seconds": 12.345}
    assert [c["level"] for c in measured["checks"]] == ["pass", "fail"]
    assert measured["dims"]["loss"] == {"split": 2}
    assert "results/performance/0001: 3 numbers that are not finite are null" in shown["warnings"]
    assert "results/plane/0001: 1 number that is not finite is null" in shown["warnings"]


@pytest.mark.parametrize(
    ("value", "stderr", "text"),
    [
        (0.123456, 0.00213, "0.1235 ± 0.0021"),
        (0.123456, 0.0996, "0.123 ± 0.100"),
        (12345.678, 210.0, "12,346 ± 210"),
        (-1.0, 0.5, "-1.00 ± 0.50"),
        (1e-12, 3e-13, "1e-12 ± 3e-13"),
        (3e9, 2e8, "3e+09 ± 2e+08"),
        (0.0, 0.02, "0.000 ± 0.020"),
        (2.5, 0.0, "2.5 ± 0"),
        (2.5, math.nan, "2.5"),
        (math.nan, 1.0, "nan"),
        (math.inf, 1.0, "inf"),
    ],
)
def test_numbers_are_cut_at_the_second_digit_of_their_error(value, stderr, text):
    assert uncertain(value, stderr) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(True, "yes"), (1234, "1,234"), (0.1 + 0.2, "0.3"), (math.inf, "inf"), (1e-9, "1e-09"), ("a\tb", "a?b")],
)
def test_numbers_without_an_error(value, text):
    assert number(value) == text
