"""A screen that is enough by itself: bars of letters, checks that aren't green, a training in a few lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import report_samples as samples
from click.testing import CliRunner

from landscape.archive.history import History
from landscape.archive.reader import open_archive
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.cli.bars import curve, heights, reliability
from landscape.cli.glance import COLUMNS, archive_text, checks, training
from landscape.cli.main import main
from landscape.results import Check

# ------------------------------------------------------------------------------------------------ bars


def table(counts: list[int], confidence: list[float], low: list[float], high: list[float]) -> Any:
    return replace(
        samples.calibration(bins=len(counts)),
        counts=np.array(counts),
        confidences=np.array(confidence),
        accuracy_interval=np.stack([low, high], axis=1),
    )


def test_each_bin_says_on_which_side_its_accuracy_lies() -> None:
    found = table([0, 10, 20, 40], [np.nan, 0.4, 0.6, 0.9], [np.nan, 0.5, 0.5, 0.7], [np.nan, 0.7, 0.7, 0.8])
    assert reliability(found, plain=False) == [
        "0 ·▲=▼ 1  1 bin overconfident ▼, 1 bin underconfident ▲",
        "0 ·▃▅█ 1  samples in each bin",
    ]
    assert reliability(found, plain=True)[0] == "0 .^=v 1  1 bin overconfident v, 1 bin underconfident ^"
    fine = table([5, 5], [0.4, 0.6], [0.1, 0.1], [0.9, 0.9])
    assert reliability(fine, plain=False)[0] == "0 == 1  every bin within its 95% interval ="


def test_heights_and_curves_keep_their_ends() -> None:
    assert heights([0, 1, 8]) == "·▂█"
    assert heights([]) == ""
    assert curve(np.linspace(8, 1, 400), plain=False)[0] == "█"
    assert curve(np.linspace(8, 1, 400), plain=False)[-1] == "▁"
    assert len(curve(np.arange(1000.0), plain=True)) == 40
    assert curve(np.full(5, np.nan)) == ""
    assert curve(np.ones(3), plain=False) == "▁▁▁"
    assert curve(np.array([1e-4, 1e-2, 1.0]), plain=False) == "▁▅█"  # decades: a log scale


# ------------------------------------------------------------------------------------------------ checks


def test_only_what_is_not_green_is_written_out() -> None:
    loud = (Check("a", "pass", "fine"), Check("b", "warn", "look"), Check("c", "fail", "wrong; measure again"))
    rows = checks([replace(samples.trace(), checks=loud), replace(samples.plane(n=3), status="failed", checks=())])
    assert rows == [
        ["checks", "1 of 4 pass"],
        ["FAILED", "trace, c: wrong; measure again"],
        ["FAILED", "plane, status: the measurement failed; measure it again"],
        ["to look at", "trace, b: look"],
    ]
    many = replace(samples.trace(), checks=tuple(Check(str(i), "warn", "m") for i in range(9)))
    assert checks([many])[-1] == ["to look at", "and 3 more: landscape show --full"]
    assert checks([samples.sharpness()]) == []


# ------------------------------------------------------------------------------------------------ an archive


@pytest.fixture
def archive(tmp_path: Path) -> Any:
    subject = Subject("runs/a.pt", "ab", "digits", 7, 1, name="evil \x1b[31m name")
    run = {"loss": "ce", "lr": 0.1, "least": 0.1 * 3e-6}
    save_archive(tmp_path / "run.h5", samples.results(0, 5), subject=subject, run=run)
    return open_archive(tmp_path / "run.h5")


def test_a_screen_holds_the_numbers_the_bar_and_the_checks(archive: Any) -> None:
    text = archive_text(archive)
    flat = " ".join(text.split())
    for words in ("loss ce  lr 0.1  least 3 × 10⁻⁷",
                  "step 7", "λ max", "±", "ECE", "bins overconfident", "samples in each bin",
                  "checks", "to look at", "did not converge; raise the number of products"):  # fmt: skip
        assert " ".join(words.split()) in flat, words
    assert max(map(len, text.split("\n"))) <= COLUMNS
    assert "evil ?[31m name" in text
    assert len(text.split("\n")) < 30


def test_the_command_shows_a_screen_or_everything(archive: Any) -> None:
    short = CliRunner().invoke(main, ["show", str(archive.path)])
    full = CliRunner().invoke(main, ["show", "--full", str(archive.path)])
    assert short.exit_code == full.exit_code == 0
    assert "reliability" in short.stdout
    assert len(full.stdout) > 2 * len(short.stdout)


def test_a_damaged_result_is_named_and_the_others_stand(archive: Any) -> None:
    with h5py.File(archive.path, "r+") as file:
        file["results/plane/0001/loss"].attrs["stored_from"] = "no type"
    text = archive_text(open_archive(archive.path))
    assert "FAILED" in text
    assert "plane 0001 cannot be read" in text
    assert "λ max" in text


def test_a_training_is_told_by_its_ends_its_curve_and_its_events() -> None:
    from test_paper_figures import Event, Record

    record: Any = Record()
    record.events = (Event(7, "spike"), Event(8, "spike"), Event(9, "epoch"))
    rows = dict(map(tuple, training(record)))
    assert rows["loss"].endswith("over 200 steps")
    assert rows["events"] == "2 × spike"
    assert training(None) == []


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ([2.0, 1.0, np.nan, 0.5], "over 4 steps"),
        ([2.0, 1.0, np.nan, np.inf], "over 2 steps, then not finite up to step 4"),
        ([np.nan, np.nan], "not finite at any of its 2 steps"),
    ],
)
def test_a_loss_that_stopped_being_finite_does_not_pass_for_the_whole_training(loss: list[float], said: str) -> None:
    from training_samples import series

    record = History({"loss": series("loss", ("loss",), np.arange(1, len(loss) + 1), loss)})
    assert dict(map(tuple, training(record)))["loss"].endswith(said)
