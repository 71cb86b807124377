"""The examples run as a user would run them: as scripts, from their folder's files, into an empty folder."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from landscape import Objective, load_checkpoint, load_task, open_archive
from landscape.errors import TaskError
from landscape.probes import How, Sweep

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
#: File -> (function, checkpoint, least accuracy on held-out data: what a failed training would not reach).
TASKS = {
    "digits_task.py": ("digits", "digits.pt", 0.85),
    "dict_batch_task.py": ("progressions", "progressions.pt", 0.9),
}
#: Task files for sweeps -> (function, losses that a sweep tries, a lr, epochs, number to reach: name, most).
SWEPT = {
    "regression_task.py": ("surface", "huber(delta=0.5)", 0.05, 10, ("loss.test", 0.05)),
    "segmentation_task.py": ("shapes", "0.5*cross_entropy + 0.5*dice", 0.2, 5, ("loss.test", 0.5)),
    "cifar10_task.py": ("cifar10", "squentropy", 0.01, 1, ("loss.test", 100.0)),
}

#: Library -> steps that its example takes.
RECORDED = {"lightning": 6 * 23, "transformers": 4 * 16, "accelerate": 6 * 23}


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
    others = {"probe_script.py", "gallery.py", "digits_sweep.py", *SWEPT}
    recorded = {f"record_{name}.py" for name in RECORDED}
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*TASKS, *others, *recorded}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in listed for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("file", TASKS)
def test_the_task_file_fits_its_checkpoint(file, trained):
    function, checkpoint, least = TASKS[file]
    task = load_task(f"{EXAMPLES / file}:{function}")
    found = load_checkpoint(trained / checkpoint, task)
    task.model.load_state_dict(found.weights)
    with Objective(task, "test") as objective:
        assert objective.evaluate(accuracy=True).accuracy > least


# The other one takes a quarter of a minute.
@pytest.mark.parametrize("file", ["digits_task.py", pytest.param("dict_batch_task.py", marks=pytest.mark.slow)])
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


@pytest.mark.slow  # the libraries' own imports; what is recorded is tested with each integration
@pytest.mark.parametrize("library", RECORDED)
def test_the_training_of_a_library_is_recorded(library, tmp_path):
    pytest.importorskip(library)
    # Lightning 2.6 calls a name that torch 2.13 is about to drop.
    warn = ["-W", "error", "-W", "ignore::FutureWarning:lightning.pytorch.utilities._pytree"]
    run([sys.executable, *warn, str(EXAMPLES / f"record_{library}.py")], tmp_path)
    archive = open_archive(tmp_path / "runs" / library / "run.h5")
    assert archive.status == "complete"
    loss = archive.history["loss"].column("loss")
    assert len(loss) == RECORDED[library]
    assert loss[-10:].mean() < 0.7 * loss[:10].mean()
    for quantity in ("gradient_norm", "gradient_norm_before", "update_norm", "calibration"):
        assert len(archive.history[quantity].steps), quantity


def test_the_script_probes_a_model_in_at_most_30_lines(tmp_path):
    script = EXAMPLES / "probe_script.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 30
    said = run([sys.executable, "-W", "error", str(script)], tmp_path).stdout
    assert "calibration error" in said
    archive = open_archive(tmp_path / "probe.h5")
    assert {entry.kind for entry in archive.entries} == {"eigenvalues", "plane", "calibration"}
    page = (tmp_path / "probe.html").read_text(encoding="utf-8")
    assert "<html" in page


# ------------------------------------------------------------------------------------------------- sweeps


def cifar(folder: Path, form: str, n: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Write batches of the format of CIFAR-10, n images each; return those of the first."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    first = None
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images = rng.integers(0, 256, (n, 3072), dtype=np.uint8)
        labels = rng.integers(0, 10, n)
        if form == "bin":
            rows = np.concatenate([labels[:, None].astype(np.uint8), images], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"data": images, b"labels": labels.tolist(), b"batch_label": b"x", b"filenames": [b"a.png"] * n}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        first = first or (images, labels)
    assert first is not None
    return first


@pytest.mark.parametrize("form", ["bin", "py"])
def test_cifar_is_read_in_both_forms_without_running_it(form, tmp_path):
    images, labels = cifar(tmp_path / "data", form)
    task = load_task(f"{EXAMPLES / 'cifar10_task.py'}:cifar10", folder=str(tmp_path / "data"), augment=False)
    x, y = task.train
    assert tuple(x.shape) == (40, 3, 32, 32)
    assert y[:8].tolist() == labels.tolist()
    # Red, green and blue planes one after the other, in rows.
    red = (images[0, :1024].reshape(32, 32).astype(np.float32) / 255 - 0.4914) / 0.2470
    np.testing.assert_allclose(x[0, 0].numpy(), red, rtol=1e-5, atol=1e-5)
    assert len(task.test[1]) == 8


def test_a_cifar_file_that_would_run_code_is_refused(tmp_path):
    cifar(tmp_path / "data", "py")

    class Bad:
        def __reduce__(self):
            return os.system, ("touch owned",)

    (tmp_path / "data" / "data_batch_1").write_bytes(pickle.dumps({b"data": Bad()}, protocol=2))
    with pytest.raises(TaskError, match="asks for"):
        load_task(f"{EXAMPLES / 'cifar10_task.py'}:cifar10", folder=str(tmp_path / "data"))
    with pytest.raises(TaskError, match="no folder"):
        load_task(f"{EXAMPLES / 'cifar10_task.py'}:cifar10", folder=str(tmp_path / "none"))


@pytest.mark.parametrize("file", SWEPT)
def test_the_sweeps_of_the_task_files_train_and_measure(file, tmp_path, monkeypatch):
    function, loss, lr, epochs, (name, most) = SWEPT[file]
    monkeypatch.chdir(tmp_path)
    settings = {}
    if file == "cifar10_task.py":
        cifar(tmp_path / "data", "py")
        settings = {"folder": "data", "width": 4, "blocks": 1}
    how = How(only=["performance", "calibration"])
    sweep = Sweep(f"{EXAMPLES / file}:{function}", "runs", loss=loss, lr=lr, epochs=epochs, settings=settings, how=how)
    (result,) = sweep.run().results
    assert result.status == "complete", result.reason
    assert result.metrics[name] < most


@pytest.mark.slow
def test_the_digits_sweep_runs_goes_on_and_reports(tmp_path):
    command = [sys.executable, "-W", "error", str(EXAMPLES / "digits_sweep.py"), "digits", "1", "1", "1"]
    run(command, tmp_path)
    said = run(command, tmp_path).stdout
    assert "18 of 18 cells are finished already" in said
    page = (tmp_path / "digits.html").read_text(encoding="utf-8")
    assert "Sharp against flat" in page
    assert "focal(gamma=2)" in page
