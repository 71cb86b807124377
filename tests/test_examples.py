"""The examples run as a user would run them: as scripts, from their folder's files, into an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from landscape import Objective, load_checkpoint, load_task, open_archive

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: File -> (function, checkpoint, least accuracy on held-out data: what a failed training would not reach).
TASKS = {
    "digits_task.py": ("digits", "digits.pt", 0.85),
    "dict_batch_task.py": ("progressions", "progressions.pt", 0.9),
}


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for file in TASKS:
        run([sys.executable, "-W", "error", str(EXAMPLES / file)], folder)
    return folder


def test_every_example_is_tested_here():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*TASKS, "probe_script.py", "gallery.py"}


@pytest.mark.parametrize("file", TASKS)
def test_the_task_file_fits_its_checkpoint(file, trained):
    function, checkpoint, least = TASKS[file]
    task = load_task(f"{EXAMPLES / file}:{function}")
    found = load_checkpoint(trained / checkpoint, task)
    task.model.load_state_dict(found.weights)
    with Objective(task, "test") as objective:
        assert objective.evaluate(accuracy=True).accuracy > least


@pytest.mark.parametrize("file", TASKS)
def test_the_command_line_probes_the_example(file, trained, tmp_path):
    function, checkpoint, least = TASKS[file]
    landscape = str(Path(sys.executable).with_name("landscape"))
    command = [landscape, "probe", str(trained / checkpoint), "--task", f"{EXAMPLES / file}:{function}"]
    options = ["--only", "performance,curvature,calibration", "--preset", "quick", "-o", "run.h5", "--json"]
    (result,) = json.loads(run([*command, *options], tmp_path).stdout)["results"]
    assert result["accuracy"]["test"] > least
    assert result["curvature"]["eigenvalues"][0] > 0
    assert 0 <= result["calibration"]["ece"] < 0.2
    assert (tmp_path / "run.h5").is_file()


def test_the_script_probes_a_model_in_at_most_30_lines(tmp_path):
    script = EXAMPLES / "probe_script.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    said = run([sys.executable, "-W", "error", str(script)], tmp_path).stdout
    assert "calibration error" in said
    archive = open_archive(tmp_path / "probe.h5")
    assert {entry.kind for entry in archive.entries} == {"eigenvalues", "plane", "calibration"}
    page = (tmp_path / "probe.html").read_text(encoding="utf-8")
    assert "<html" in page
