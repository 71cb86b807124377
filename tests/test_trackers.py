"""Archives as runs of Weights & Biases and MLflow: everything arrives, through stand-ins for both."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import report_samples as samples
from click.testing import CliRunner

from landscape.archive import trackers
from landscape.archive.history import Series
from landscape.archive.reader import Archive, open_archive
from landscape.archive.trackers import content, export_to_tracker, scalars
from landscape.cli.main import main
from landscape.errors import ArchiveError


class History:
    """A record of a training with two quantities."""

    names = ("loss", "gradient_norm")
    events = ()

    def __getitem__(self, name: str) -> Series:
        steps = np.array([1, 2, 3])
        none = np.zeros(3, dtype=bool)
        if name == "loss":
            return Series(("loss", "term: a"), steps, np.array([[3.0, 1], [np.nan, 2], [1.0, 3]]), none, "loss")
        return Series(("global", "w"), steps, np.ones((3, 2)), none, "gradient_norm")


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Archive, "history", History())
    (path,) = samples.write_archives(tmp_path, 1, points=5)
    return path


class Wandb:
    """What is used of wandb: init, a run that logs, an artifact."""

    def __init__(self, broken: bool = False) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.broken = broken
        self.Artifact = self.artifact
        self.url, self.dir = "https://wandb.test/run", "wandb/offline"
        self.summary = SimpleNamespace(update=lambda values: self.calls.append(("summary", values)))

    def init(self, **options: Any) -> Wandb:
        self.calls.append(("init", options))
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if self.broken:
            raise RuntimeError("no network\nat all")
        self.calls.append(("log", (step, values)))

    def artifact(self, name: str, type: str) -> Any:
        return SimpleNamespace(add_file=lambda path: self.calls.append(("file", path)))

    def log_artifact(self, artifact: Any) -> None:
        self.calls.append(("artifact", artifact))

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))

    def of(self, kind: str) -> list[Any]:
        return [what for name, what in self.calls if name == kind]


class Mlflow:
    """What is used of mlflow: an experiment, a run, batches of metrics, an artifact."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.entities = SimpleNamespace(Metric=lambda **m: m)
        self.info = SimpleNamespace(run_id="r1")

    def __getattr__(self, name: str) -> Any:
        return lambda *given: self.calls.append((name, given[0]))

    def start_run(self, **options: Any) -> Mlflow:
        self.calls.append(("start_run", options))
        return self

    def __enter__(self) -> Mlflow:
        return self

    def __exit__(self, *exc: object) -> None:
        self.calls.append(("end", None))

    def MlflowClient(self) -> Any:
        return SimpleNamespace(log_batch=lambda run, metrics: self.calls.append(("batch", metrics)))

    def of(self, kind: str) -> list[Any]:
        return [what for name, what in self.calls if name == kind]


# ------------------------------------------------------------------------------------------------ what is sent


def test_every_number_has_a_name_and_its_error_beside_it() -> None:
    found = scalars(samples.trace())
    assert set(found) >= {"trace/value", "trace/stderr"}
    assert set(scalars(samples.sharpness())) >= {"sharpness/values/sam", "sharpness/stderr/adaptive"}
    assert {"eigenvalues/values/1", "eigenvalues/values/10"} <= set(scalars(samples.eigenvalues()))
    found = scalars(samples.calibration())
    assert {"calibration/ece", "calibration/ece_interval/low"} <= set(found)
    assert not any("counts" in name for name in found)
    assert all(math.isfinite(v) for v in found.values())


def test_the_record_is_sent_by_steps_without_what_is_missing(archive: Path) -> None:
    found = content(open_archive(archive))
    assert [step for step, _ in found.steps] == [1, 2, 3]
    assert found.steps[0][1] == {"loss": 3.0, "loss/term_ a": 1.0, "gradient_norm": 1.0}
    assert "loss" not in found.steps[1][1]
    every = content(open_archive(archive), every_column=True)
    assert "gradient_norm/w" in every.steps[0][1]
    assert found.settings["loss"] == "cross_entropy"
    assert found.facts["landscape.task"] == "digits"


# ------------------------------------------------------------------------------------------------ trackers


def test_a_run_of_wandb_holds_settings_record_numbers_and_the_archive(archive: Path, monkeypatch) -> None:
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    place = export_to_tracker(archive, "wandb", project="p", mode="offline")
    (options,) = wandb.of("init")
    assert place == "wandb/offline"
    assert (options["project"], options["mode"], options["config"]["schedule"]) == ("p", "offline", "constant")
    assert [step for step, _ in wandb.of("log")] == [1, 2, 3]
    assert wandb.of("summary")[0]["trace/value"] > 0
    assert wandb.of("file") == [str(archive)]
    assert wandb.calls[-1] == ("finish", 0)


def test_a_run_of_mlflow_holds_the_same_in_batches(archive: Path, monkeypatch) -> None:
    mlflow = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setattr(trackers, "BATCH", 7)
    assert export_to_tracker(archive, "mlflow", uri="sqlite:///x.db", experiment="e") == "run r1"
    assert mlflow.of("set_tracking_uri") == ["sqlite:///x.db"]
    assert mlflow.of("set_experiment") == ["e"]
    assert mlflow.of("log_params")[0]["loss"] == "cross_entropy"
    batches = mlflow.of("batch")
    assert {len(b) for b in batches[:-1]} == {7}
    sent = {(m["key"], m["step"]): m["value"] for b in batches for m in b}
    assert sent["loss", 1] == 3.0
    assert ("trace/value", 3) in sent
    assert mlflow.of("log_artifact") == [str(archive)]


def test_what_goes_wrong_there_is_one_line_and_ends_the_run(archive: Path, monkeypatch) -> None:
    wandb = Wandb(broken=True)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(ArchiveError, match="wandb refused: no network at all"):
        export_to_tracker(archive, "wandb")
    assert wandb.calls[-1] == ("finish", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projekt": "x"}, "wandb has no option 'projekt'; it has project"),
        ({"columns": "some"}, "columns is global or all, got 'some'"),
        ({"checkpoint": "nobody"}, "holds no checkpoint 'nobody'; it has cross_entropy constant"),
    ],
)
def test_bad_options_are_refused_first(archive: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ArchiveError, match=message):
        export_to_tracker(archive, "wandb", **options)  # type: ignore[arg-type]


def test_the_command_needs_no_file_for_a_tracker(archive: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    done = CliRunner().invoke(main, ["export", str(archive), "--format", "wandb", "--option", "project=p"])
    assert (done.exit_code, done.stdout) == (0, "https://wandb.test/run\n")
    for arguments, message in (
        (["--format", "wandb", "-o", "x"], "writes no file"),
        ([], "Say which file to write"),
    ):
        done = CliRunner().invoke(main, ["export", str(archive), *arguments])
        assert done.exit_code == 2
        assert message in done.output
    monkeypatch.setitem(sys.modules, "mlflow", None)
    done = CliRunner().invoke(main, ["export", str(archive), "--format", "mlflow"])
    assert done.exit_code == 1
    assert "pip install 'landscape-probe[mlflow]'" in done.output
