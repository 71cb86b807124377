"""Reading: without torch, without holding the file, and a clear line for whatever isn't an archive."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from landscape.archive import reader
from landscape.archive.reader import open_archive
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.writer import ArchiveWriter
from landscape.curvature.spectrum import Estimate
from landscape.errors import ArchiveError

ROOT = Path(__file__).resolve().parent.parent


def estimate(value: float = 1.0, draws: int = 3) -> Estimate:
    return Estimate(value=value, stderr=0.1, samples=np.full(draws, value))


@pytest.fixture
def path(tmp_path) -> Path:
    return save_archive(tmp_path / "run.h5", estimate(), subject=Subject("a.pt"), run={"loss": "ce"})


def test_reading_and_showing_import_no_torch(path):
    code = """
import sys
import landscape
archive = landscape.open_archive(sys.argv[1])
from landscape.archive.describe import archive_json, describe_archive
assert "estimate 0001" in describe_archive(archive)
assert archive_json(archive)["subjects"]
heavy = {"torch", "matplotlib", "plotly", "scipy", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True)


def test_each_result_is_read_once_when_asked_for(path, monkeypatch):
    archive = open_archive(path)
    reads = []
    real = reader.read_variables
    monkeypatch.setattr(reader, "read_variables", lambda group: reads.append(group.name) or real(group))
    assert archive.entries[0].status == "complete"
    assert reads == []
    assert archive.entries[0].result is archive.entries[0].result
    assert reads == ["/results/estimate/0001"]


def test_the_file_is_not_held_open_nor_locked(path):
    fcntl = pytest.importorskip("fcntl")
    archive = open_archive(path)
    assert archive.entries[0].result.value == 1.0
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if anybody holds a lock
        assert open_archive(path).entries[0].result.value == 1.0  # and needs none


def test_a_closed_archive_says_so(path):
    with open_archive(path) as archive:
        read = archive.entries[0].result
    assert read.value == 1.0
    with pytest.raises(ArchiveError, match="is closed; open it again"):
        open_and_close(path).entries[0].result  # noqa: B018


def open_and_close(path: Path):
    archive = open_archive(path)
    archive.close()
    return archive


def test_appending_does_not_disturb_a_reader_but_another_run_is_noticed(path):
    archive, late = open_archive(path), open_archive(path)
    save_archive(path, estimate(2.0), append=True)
    assert archive.entries[0].result.value == 1.0
    save_archive(path, estimate(3.0), force=True)
    with pytest.raises(ArchiveError, match="was replaced by another run since it was opened"):
        late.entries[0].result  # noqa: B018


def test_selecting(tmp_path):
    a, b = Subject("runs/a/x.pt", "aa"), Subject("runs/b/x.pt", "bb", name="flat")
    with ArchiveWriter(tmp_path / "run.h5") as archive:
        for subject in (a, b, a):
            archive.add(estimate(), subject=subject)
    archive = open_archive(tmp_path / "run.h5")
    assert archive.subjects == (a, b)
    assert [e.id for e in archive.select(subject=a)] == ["0001", "0003"]
    for name in ("flat", "runs/b/x.pt", "bb"):
        assert [e.id for e in archive.select("estimate", name)] == ["0002"]
    assert archive.select("plane") == []
    assert "3 results (estimate)" in repr(archive)


def test_subjects_are_told_apart_by_their_facts_in_any_order_nan_included(tmp_path):
    facts = [{"seed": 0, "val": np.nan}, {"val": np.nan, "seed": 0}, {"val": np.nan, "seed": 1}]
    for one in facts:
        save_archive(tmp_path / "run.h5", estimate(), subject=Subject("a.pt", facts=one), append=True)
    archive = open_archive(tmp_path / "run.h5")
    assert [s.facts["seed"] for s in archive.subjects] == [0, 1]
    assert [e.id for e in archive.select(subject=Subject("a.pt", facts=facts[1]))] == ["0001", "0002"]


# ------------------------------------------------------------------------------------ parts missing


def test_archives_with_parts_missing_open(path):
    with h5py.File(path, "r+") as file:
        del file["run"]
    assert open_archive(path).run == {}
    with h5py.File(path, "r+") as file:
        group = file["results/estimate/0001"]
        del group["samples"]
        for name in list(group.attrs):
            del group.attrs[name]
    (entry,) = open_archive(path).entries
    assert (entry.subject, entry.settings, entry.status) == (Subject(), {}, "")
    assert entry.result.samples is None
    assert entry.result.value == 1.0
    with h5py.File(path, "r+") as file:
        del file["results"]
        for name in set(file.attrs) - {"format", "format_version"}:
            del file.attrs[name]
    archive = open_archive(path)
    assert (archive.entries, archive.subjects, archive.status) == ((), (), "")


def test_an_archive_of_an_hdf5_program_with_other_habits_is_read(path):
    """Fixed-length texts, no dimension scales: what other writers do."""
    with h5py.File(path, "r+") as file:
        file.attrs["status"] = np.bytes_(b"complete")
        file.attrs["format"] = np.array([b"landscape-archive"])[0]
        group = file.create_group("results/foreign/0001")
        group["values"] = np.arange(3.0)
        group["name"] = np.bytes_(b"text")
        group["values"].attrs["units"] = np.bytes_(b"m")
    archive = open_archive(path)
    assert archive.status == "complete"
    stored = archive.select("foreign")[0].result.variables()
    assert (stored["values"].dims, stored["values"].units) == (("dim_0",), "m")
    assert stored["name"].data.item() == "text"


# ------------------------------------------------------------------------------------------ refusals


def test_what_is_no_archive_gets_a_clear_line(tmp_path, path):
    text = tmp_path / "text.h5"
    text.write_text("epoch,loss\n1,2\n")
    empty = tmp_path / "empty.h5"
    empty.touch()
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["weights"] = np.zeros(3)
    newer = tmp_path / "newer.h5"
    newer.write_bytes(path.read_bytes())
    with h5py.File(newer, "r+") as file:
        file.attrs["format_version"] = 2
    cut = tmp_path / "cut.h5"
    cut.write_bytes(path.read_bytes()[:-1000])
    weights = tmp_path / "w.pt"
    weights.write_bytes(b"PK")
    cases = [
        (tmp_path / "no.h5", "no archive at .*no.h5; check the path"),
        (tmp_path, "is a folder, expected an archive file"),
        (text, "is not an HDF5 file"),
        (weights, r"a checkpoint is measured first: landscape probe .*w\.pt"),
        (empty, "is not an HDF5 file"),
        (foreign, "is an HDF5 file of something else: its root attribute format is None"),
        (newer, "has format version 2, this landscape-probe reads up to 1; upgrade"),
        (cut, r"is damaged: the checksums at its end are, .*landscape repair .*cut\.h5 writes"),
    ]
    for place, words in cases:
        with pytest.raises(ArchiveError, match=words) as raised:
            open_archive(place)
        assert "\n" not in str(raised.value)


def test_a_file_that_may_not_be_read_says_so(path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(ArchiveError, match="cannot be read: Permission denied"):
        open_archive(path)


def test_a_file_cut_anywhere_is_an_archive_error(path, tmp_path):
    whole = path.read_bytes()
    cut = tmp_path / "cut.h5"
    for size in range(0, len(whole), max(1, len(whole) // 60)):
        cut.write_bytes(whole[:size])
        with pytest.raises(ArchiveError):
            open_archive(cut)


def test_a_damaged_result_names_its_group_and_the_others_are_read(path):
    save_archive(path, estimate(2.0), append=True)
    with h5py.File(path, "r+") as file:
        file["results/estimate/0001/value"].attrs["stored_from"] = "no type"
    broken, sound = open_archive(path).entries
    assert sound.result.value == 2.0
    with pytest.raises(ArchiveError, match=r"results/estimate/0001 of .*run\.h5 cannot be read"):
        broken.result  # noqa: B018
    with h5py.File(path, "r+") as file:
        file["results/estimate/0001"].attrs["attributes"] = "{"
    with pytest.raises(ArchiveError, match=r"results/estimate/0001 of .* has damaged attributes"):
        open_archive(path)
