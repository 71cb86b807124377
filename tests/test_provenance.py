"""Where a number came from: complete, never failing, nothing private beyond the command line."""

from __future__ import annotations

import getpass
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy
import pytest

import landscape
from landscape import provenance as module
from landscape.provenance import command_line, provenance, source_revision, versions

ROOT = Path(__file__).resolve().parent.parent
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run([*GIT, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_everything_is_there():
    found = provenance(seed=3, device="cuda:0")
    assert (found["seed"], found["device"]) == (3, "cuda:0")
    assert found["versions"]["landscape-probe"] == landscape.__version__
    assert found["versions"]["numpy"] == numpy.__version__
    assert found["python"] == platform.python_version()
    created = datetime.fromisoformat(found["created"])
    assert created.tzinfo == UTC
    assert abs((datetime.now(UTC) - created).total_seconds()) < 5
    assert provenance()["run_id"] != found["run_id"]


def test_nothing_private_beyond_the_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/jane/venv/bin/landscape", "probe", "my model.pt"])
    found = provenance()
    assert found["command_line"] == "landscape probe 'my model.pt'"
    for private in (socket.gethostname(), getpass.getuser(), str(Path.home())):
        assert not any(private in str(value).split() for value in found.values())
    assert "/home" not in str(found)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ([], ""),
        (["-c"], "-c"),
        (["/usr/bin/x", "a b", "$HOME"], "x 'a b' '$HOME'"),
        (["/x/ipykernel_launcher.py", "-f", "/home/jane/kernel-1.json"], "(notebook)"),
    ],
)
def test_command_lines(argv, text):
    assert command_line(argv) == text


def test_the_revision_of_the_source(repository):
    commit = git(repository, "rev-parse", "HEAD")
    assert source_revision(str(repository)) == commit
    (repository / "new.py").write_text("2")  # untracked: the code that was committed has not changed
    assert source_revision(str(repository)) == commit
    (repository / "a.py").write_text("2")
    assert source_revision(str(repository)) == f"{commit}-dirty"


def test_the_revision_never_fails(tmp_path, monkeypatch, repository):
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    assert source_revision(str(outside)) == ""
    assert source_revision(str(tmp_path / "gone")) == ""
    monkeypatch.setattr(module, "GIT_TIMEOUT", 0.0)
    assert source_revision(str(repository)) == ""
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    assert source_revision(str(repository)) == ""
    assert provenance()["source_revision"] == ""


def test_a_repository_cannot_make_us_run_its_programs(repository):
    mark = repository / "ran"
    monitor = repository / "monitor.sh"
    monitor.write_text(f"#!/bin/sh\ntouch {mark}\n")
    monitor.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(monitor))
    source_revision(str(repository))
    assert not mark.exists()
    git(repository, "status")  # it is the setting that would have run it
    assert mark.exists()


def test_a_library_that_is_missing_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "LIBRARIES", ("numpy", "no-such-library"))
    assert set(versions()) == {"landscape-probe", "numpy"}


def test_no_torch_is_imported():
    code = "import sys, landscape.provenance as p; p.provenance(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), check=True)
