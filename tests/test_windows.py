"""What Windows refuses, on a pretended one: see pretend_windows.py."""

from __future__ import annotations

import contextlib
import ntpath
import os
import sys

import numpy as np
import pytest
import small_world
import sweep_world
import torch
from pretend_windows import O_BINARY, windows
from small_world import done
from torch import nn

import landscape as ls
from landscape.archive.writer import ArchiveWriter
from landscape.errors import ArchiveError
from landscape.paths import relative
from landscape.probes import Recorder
from landscape.probes.targets import archive_paths
from landscape.task_files import split_reference

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc says which files are open")


def scores():
    return ls.calibration_error(probabilities=np.array([[0.9, 0.1], [0.4, 0.6]]), labels=np.array([0, 1]), bins=2)


def test_the_pretended_windows_refuses_what_it_says(tmp_path):
    path = tmp_path / "a"
    with windows():
        with open(path, "w", encoding="utf-8") as file, pytest.raises(PermissionError):
            os.replace(path, tmp_path / "b")
        fd = os.open(path, os.O_RDWR)
        os.write(fd, b"1\n")
        with pytest.raises(PermissionError):
            path.unlink()
        os.close(fd)
        assert path.read_bytes() == b"1\r\n"
        mapped = np.memmap(path, np.uint8, "r")
        with pytest.raises(PermissionError):
            path.unlink()
        del mapped
        with pytest.raises(OSError, match="syntax"):
            (tmp_path / "x*y").mkdir()
        os.close(os.open(path, os.O_RDWR | O_BINARY))
        assert file.closed


def test_archives_are_written_appended_to_and_resumed(tmp_path):
    path = tmp_path / "run.h5"
    with windows():
        ls.save_archive(path, [scores()])
        with ArchiveWriter(path, mode="append") as archive:
            archive.add(scores())
        with contextlib.suppress(KeyboardInterrupt), ArchiveWriter(path, resume=True) as archive:
            archive.keep("points", np.zeros((2, 3)))
            archive.add(scores())
            raise KeyboardInterrupt
        assert len(ls.open_archive(path).entries) == 3
        ls.save_archive(path, [scores()], force=True)
        assert len(ls.open_archive(path).entries) == 1
    assert os.listdir(tmp_path) == ["run.h5"]


def record(path, *, steps=5, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(path, model, optimizer, **options) as recorder:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 3)).square().mean()
            loss.backward()
            optimizer.step()
            recorder.log(loss=loss)


def test_a_run_is_recorded_resumed_and_replaced(tmp_path):
    path = tmp_path / "run.h5"
    with windows():
        record(path)
        record(path, resume=True)
        assert len(ls.open_archive(path).history["loss"].steps) == 10
        record(path, steps=3, force=True)
        assert len(ls.open_archive(path).history["loss"].steps) == 3
    assert os.listdir(tmp_path) == ["run.h5"]


def test_a_checkpoint_is_probed_and_reported_and_its_archive_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_world.build(tmp_path)
    with windows():
        done("probe", "tiny.pt", "--only", "performance,eigenvalues", "--report", "report.html")
        done("report", "tiny.landscape.h5", "-o", "again.html")
        done("export", "tiny.landscape.h5", "-o", "tables", "--format", "csv")
    assert not [name for name in os.listdir() if "partial" in name or name.endswith(".tmp")]


def test_a_sweep_whose_losses_are_sums_is_trained_and_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep_world.build(tmp_path)
    losses = ["--loss", "cross_entropy,0.9*cross_entropy"]
    given = ["tasks.py:tiny", *losses, "--epochs", 1, "-o", "runs", "--only", "performance"]
    with windows():
        done("sweep", *given)
        done("sweep", *given, "--seeds", 2, "--workers", 2, "--resume")
    assert len(list((tmp_path / "runs").glob("*/cell.json"))) == 4


def test_a_drive_is_no_file_and_what_follows_no_name():
    assert split_reference(r"C:\tasks\mine.py") == (r"C:\tasks\mine.py", "")
    assert split_reference(r"C:\tasks\mine.py:tiny") == (r"C:\tasks\mine.py", "tiny")
    assert split_reference("C:/mine.py") == ("C:/mine.py", "")
    assert split_reference("tasks/mine.py:tiny") == ("tasks/mine.py", "tiny")


def test_a_path_on_another_drive_is_said_in_full(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "path", ntpath)
        found = [relative(r"D:\runs\a.h5", to) for to in ("D:/", "C:/work")]
    assert found == [r"runs\a.h5", r"D:\runs\a.h5"]


def test_names_that_differ_in_case_alone_are_told_apart():
    assert [p.name for p in archive_paths(["a/Best.pt", "b/best.pt"], suffix=".h5")] == ["a_Best.h5", "b_best.h5"]
    with pytest.raises(ArchiveError, match=r"two sources would both be written to .*_Best\.h5"):
        archive_paths(["a/Best.pt", "a/best.safetensors"], suffix=".h5")
