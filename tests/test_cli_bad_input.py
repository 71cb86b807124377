"""Bad input ends in one clear line, exit status 1 or 2, no traceback, and nothing half-written."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import small_world
import torch
from small_world import landscape

from landscape import save_checkpoint


@pytest.fixture
def world(tmp_path, monkeypatch):
    small_world.enter(tmp_path, monkeypatch)
    small_world.build(tmp_path)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "tiny.pt").read_bytes()[:-500])
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no weights")
    save_checkpoint("wide.pt", small_world.train(0, hidden=9))
    diverged = small_world.train(0)
    diverged[2].bias.data[0] = float("nan")
    torch.save(diverged.state_dict(), "diverged.pt")
    return tmp_path


class Evil:
    """A pickle that leaves a file behind when it is loaded."""

    def __reduce__(self):
        return os.system, ("touch left_behind",)


def point_at(reference: str) -> None:
    """Write `pointing.pt`, whose task is this reference: by hand, since save_checkpoint refuses to."""
    held = torch.load("tiny.pt", weights_only=True)
    held["landscape"]["task"] = reference
    torch.save(held, "pointing.pt")


def files(folder: Path) -> dict[str, float]:
    found = folder.rglob("*")
    return {str(p): p.stat().st_mtime for p in found if p.is_file() and "__pycache__" not in p.parts}


CASES = {
    "no task": ("plain.pt", 1, r"plain\.pt does not say which task"),
    "not marked": ("plain.pt --task tasks.py:unmarked", 1, "not marked @task"),
    "no such task": ("plain.pt --task tasks.py:tinny", 1, "no tinny"),
    "no such task file": ("plain.pt --task nowhere.py:tiny", 1, r"no task file at nowhere\.py"),
    "no such setting": ("tiny.pt --set hiden=9", 1, "did you mean 'hidden'"),
    "task fails": ("plain.pt --task tasks.py:broken", 1, r"tasks\.py, line \d+: RuntimeError: the disk"),
    "keys that don't fit": ("wide.pt --task tasks.py:tiny", 1, r"0\.weight.*\(9, 4\).*\(8, 4\)"),
    "no weight": ("plain.pt --task tasks.py:weightless", 1, r"masked.*weight"),
    "batch_loss and GGN": ("plain.pt --task measures.py:own_loss --only gauss_newton", 1, "Gauss-Newton"),
    "truncated": ("cut.pt --task tasks.py:tiny", 1, r"cut\.pt.*(truncated|damaged)"),
    "folder without weights": ("folder --task tasks.py:tiny", 1, "folder"),
    "no checkpoint": ("nowhere.pt", 1, r"no checkpoint at nowhere\.pt"),
    "empty data": ("plain.pt --task tasks.py:empty", 1, "empty"),
    "no data": ("plain.pt --task tasks.py:no_data", 1, "no data"),
    "NaN at the centre": ("diverged.pt --task tasks.py:tiny", 1, "nan"),
    "not deterministic": ("plain.pt --task tasks.py:noisy", 1, "not deterministic.*Noise"),
    "k too large": ("tiny.pt --only eigenvalues --option eigenvalues.k=68", 1, "k=68.*67"),
    "output in no folder": ("tiny.pt -o nowhere/run.h5", 1, "nowhere does not exist"),
    "output is a folder": ("tiny.pt -o folder", 1, "is a folder"),
    "output exists": ("tiny.pt -o taken.h5", 1, "taken.h5 exists.*--force"),
    "append to something else": ("tiny.pt -o taken.h5 --append", 1, "taken.h5 is not an HDF5 file"),
    "report exists": ("tiny.pt --report taken.html", 1, "taken.html exists"),
    "report in no format": ("tiny.pt --report report.docx", 1, "tells no report format.*html, pdf"),
    "report in no folder": ("tiny.pt --report nowhere/r.html", 1, "nowhere does not exist"),
    "two archives of one name": ("tiny.pt ./tiny.pt", 1, r"tiny\.landscape\.h5.*-o"),
    "unknown measurement": ("tiny.pt --only curvatur", 2, "did you mean curvature"),
    "unknown option": ("tiny.pt --option eigenvalues.kk=3", 2, "did you mean k"),
    "option without a name": ("tiny.pt --option k=3", 2, r"eigenvalues\.k=20"),
    "setting without =": ("tiny.pt --set hidden", 2, "key=value"),
    "no samples": ("tiny.pt --max-samples 0", 2, "max-samples"),
    "no such preset": ("tiny.pt --preset fast", 2, "quick"),
    "no such device": ("tiny.pt --device gpu", 2, "none of auto, cpu, cuda"),
    "no such precision": ("tiny.pt --dtype float16", 2, "float32"),
    "append and force": ("tiny.pt --append --force", 2, "one of them"),
    "no names": ("tiny.pt --only ,", 2, "no name"),
    "no such root": ("tiny.pt --root nowhere", 2, "nowhere"),
    "no checkpoint given": ("", 2, "CKPT"),
}  # fmt: skip


def refused(world: Path, arguments: list[str], status: int, said: str) -> str:
    """Run the command; assert one line of error, its status, and that no file was written or changed."""
    for name in ("taken.h5", "taken.html"):
        (world / name).write_text("mine")
    before = files(world)
    result = landscape(*arguments)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.lower().startswith("error:")]
    assert len(lines) == 1
    assert re.search(said, lines[0]), lines[0]
    assert "Traceback" not in result.stderr
    assert files(world) == before
    return result.stderr


@pytest.mark.parametrize("case", CASES)
def test_probe_refuses(world, case):
    arguments, status, said = CASES[case]
    refused(world, ["probe", *arguments.split()], status, said)


@pytest.mark.parametrize(
    "reference",
    [
        "os:system",
        "os.py:system",
        "posix:system",
        "/etc/task.py:run",
        "../tasks.py:tiny",
        "folder/../../tasks.py:tiny",
        "~/tasks.py:tiny",
        "tasks.py:unmarked",
        "subprocess:run",
    ],
)
def test_a_checkpoint_cannot_choose_what_runs(world, monkeypatch, reference):
    point_at(reference)
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("it was called"))
    refused(world, ["probe", "pointing.pt"], 1, r"refused|not marked|not under|root")


@pytest.mark.parametrize("command", [["probe"], ["init"], ["check", "tasks.py:tiny"]])
def test_a_pickle_that_would_run_code_is_refused(world, command):
    torch.save({"model": small_world.train(0).state_dict(), "extra": Evil()}, "evil.pt")
    refused(world, [*command, "evil.pt"], 1, r"evil\.pt")
    assert not (world / "left_behind").exists()


@pytest.mark.parametrize("command", [["probe", "tiny.pt"], ["check", "tasks.py:tiny"]])
def test_cuda_where_there_is_none(world, monkeypatch, command):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(world, [*command, "--device", "cuda"], 1, "no CUDA device here; use --device cpu")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_may_not_be_written_to(world):
    (world / "locked").mkdir(mode=0o500)
    refused(world, ["probe", "tiny.pt", "-o", "locked/run.h5"], 1, "cannot be written")
    refused(world, ["probe", "tiny.pt", "--report", "locked/r.html"], 1, "cannot be written")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("show nowhere.h5", "no archive at nowhere.h5"),
        ("show tiny.pt", "not an HDF5 file"),
        ("report tiny.pt", "not an HDF5 file"),
        ("report nowhere.h5", "no archive"),
        ("check nowhere.py:tiny", "no task file"),
        ("check tasks.py:tiny wide.pt", r"\(9, 4\)"),
        ("check tasks.py:broken", "the disk"),
        ("init folder", "folder"),
        ("init plain.pt -o nowhere/task.py", "nowhere"),
        ("list --task tasks.py:broken", "the disk"),
        ("demo -o folder", "--force"),
    ],
)
def test_the_other_commands_refuse(world, arguments, said):
    refused(world, arguments.split(), 1, said)


@pytest.mark.parametrize("arguments", [["probe", "--nonsense"], ["list", "quantities"], ["show"], ["nonsense"]])
def test_wrong_usage(world, arguments):
    refused(world, arguments, 2, "")
