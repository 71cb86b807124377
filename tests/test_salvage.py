"""`landscape repair` of damaged archives: what is kept is what was measured, what is lost is said, the file stays."""

from __future__ import annotations

import errno
import html
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import archive_fuzz
import h5py
import numpy as np
import pytest
import report_samples as samples
from click.testing import CliRunner
from recorded_world import begin, pairs, session

from landscape import open_archive, save_archive
from landscape.archive import parity, salvage, seal, survey
from landscape.archive.compaction import compact, repair
from landscape.archive.schema import Subject
from landscape.archive.segments import live_folder, segment_paths
from landscape.cli.main import main
from landscape.errors import ArchiveError, DamagedError
from landscape.report.page import render_report
from landscape.report.questions import every_check
from landscape.report.runs import gather


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    return save_archive(tmp_path / "run.h5", [pairs(2.0), pairs(3.0)])


@pytest.fixture(scope="module")
def recorded_bytes(tmp_path_factory) -> bytes:
    path = begin(tmp_path_factory.mktemp("long") / "run.h5")
    wide = {"gradient_norm": [f"layer{i}" for i in range(60)]}
    session(path, range(6000), columns=wide, events=[{"step": 3, "kind": "spike", "message": "loss"}])
    compact(path, "complete")
    return path.read_bytes()


def without_parity(path: Path) -> bytes:
    """Return an archive as earlier versions wrote it: checksums of blocks, and nothing that mends."""
    data = path.read_bytes()
    image = data[: seal.own_end(data[:48])]
    found = seal._checksums(np.frombuffer(image, np.uint8))
    return image + seal._seal(len(image), found, np.zeros(len(found), np.uint8))


def spoiled(data: bytes, start: int, stop: int) -> bytes:
    return data[:start] + bytes(b ^ 255 for b in data[start:stop]) + data[stop:]


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


class TestParity:
    @pytest.mark.parametrize("pages", [1, 3, 4, 5, 130, 700])
    def test_each_single_page_and_neighbours_as_many_as_stripes_are_given_back(self, pages):
        whole = np.random.default_rng(pages).bytes(pages * parity.PAGE - 7)
        file = whole + b"".join(parity.recovery(len(whole), lambda a, n: whole[a : a + n]))
        stripes = parity._stripes(len(whole))
        for first in {0, pages // 2, pages - 1, max(0, pages - stripes)}:
            for count in {1, min(stripes, pages - first)}:
                bad = spoiled(file, first * parity.PAGE, min((first + count) * parity.PAGE, len(whole)))
                buffer = self.mended(bad)
                assert buffer.getvalue()[: len(whole)] == whole

    def mended(self, data: bytes) -> io.BytesIO:
        import tempfile

        with tempfile.TemporaryFile() as file:
            file.write(data)
            found = parity.mend(file)
        assert found is not None
        assert found.lost == ()
        buffer = io.BytesIO(data)
        found.apply(buffer)
        return buffer

    def test_two_pages_of_a_stripe_are_named_and_never_guessed(self, tmp_path):
        whole = np.random.default_rng(0).bytes(20 * parity.PAGE)
        file = whole + b"".join(parity.recovery(len(whole), lambda a, n: whole[a : a + n]))
        bad = spoiled(spoiled(file, 5, 6), 4 * parity.PAGE + 9, 4 * parity.PAGE + 10)
        (tmp_path / "f").write_bytes(spoiled(bad, 7 * parity.PAGE, 7 * parity.PAGE + 1))
        with open(tmp_path / "f", "rb") as opened:
            found = parity.mend(opened)
        assert found is not None
        assert (list(found.pages), found.lost) == ([7], (0, 4))


@pytest.mark.parametrize("kind", ["byte", "zeros", "noise"])
def test_a_flipped_byte_or_a_dead_sector_loses_nothing(measured, kind):
    whole = measured.read_bytes()
    for bad in archive_fuzz.variants_of(whole, kind, 25, seed=1):
        measured.write_bytes(bad)
        with pytest.raises(DamagedError, match=r"landscape repair .*run\.h5 writes .* run\.salvaged\.h5"):
            repair(measured)
        done = salvage.salvage(measured)
        assert (done.lost, done.proven) == ((), True)
        assert done.path.read_bytes() == whole
        assert measured.read_bytes() == bad
        done.path.unlink()


def test_rows_of_good_chunks_are_kept_and_the_others_are_named(tmp_path, recorded_bytes):
    path = tmp_path / "run.h5"
    path.write_bytes(recorded_bytes)
    before = open_archive(path).history["gradient_norm"]
    place = recorded_bytes.index(before.values[3000].tobytes())
    path.write_bytes(spoiled(recorded_bytes, place, place + 64 * 1024))
    done = salvage.salvage(path)
    (line,) = done.lost
    assert line.startswith("steps/gradient_norm: rows 2,184 to 4,367 of 6,000 are lost: steps 2,184 to 4,367")
    history = open_archive(done.path).history
    kept = history["gradient_norm"]
    expected = (before.steps < 2184) | (before.steps > 4367)
    np.testing.assert_array_equal(kept.steps, before.steps[expected])
    np.testing.assert_array_equal(kept.values, before.values[expected])
    assert len(history["loss"].steps) == 6000
    assert [(e.kind, e.step) for e in history.events] == [("spike", 3), ("lost_rows", 2184)]
    with h5py.File(done.path) as file:
        group = file["steps/gradient_norm"]
        assert group["value"].dims[0][0] == group["step"]
        assert group["value"].dims[1][0] == group["name"]


def test_of_an_earlier_versions_archive_what_depends_on_no_bad_block_is_kept(tmp_path, recorded_bytes):
    path = save(tmp_path / "run.h5", recorded_bytes)
    before = open_archive(path).history
    path.write_bytes(whole := without_parity(path))
    place = whole.index(before["gradient_norm"].values[3000].tobytes())
    path.write_bytes(spoiled(whole, place, place + 1))
    done = salvage.salvage(path)
    assert done.proven
    (line,) = done.lost
    assert "rows 2,184 to 4,367 of 6,000 are lost" in line
    after = open_archive(done.path).history
    kept = after["gradient_norm"]
    np.testing.assert_array_equal(kept.values, before["gradient_norm"].values[kept.steps])
    assert set(after) == set(before)


def test_what_has_no_checksums_is_kept_and_called_unproven(tmp_path):
    path = save_archive(tmp_path / "run.h5", [pairs(float(i)) for i in range(5)])
    with h5py.File(path, "r+") as file:
        place = h5py.h5o.get_info(file["results/eigenvalues/0003"].id).addr
    with pytest.raises(ArchiveError, match="needs no repair"):
        repair(path)
    path.write_bytes(spoiled(path.read_bytes(), place + 20, place + 21))
    with pytest.raises(DamagedError, match="HDF5 cannot read all of it"):
        repair(path)
    done = salvage.salvage(path)
    assert (done.lost, done.proven) == (("results/eigenvalues/0003: everything in it is lost",), False)
    assert open_archive(done.path).attributes["salvaged"]["proven"] is False
    assert len(open_archive(done.path).entries) == 4


@pytest.mark.parametrize("byte", [b"[", b"\xff"], ids=["no JSON", "no UTF-8"])
def test_without_checksums_a_result_that_makes_no_sense_is_lost_and_the_others_open(tmp_path, byte):
    path = save_archive(tmp_path / "run.h5", [pairs(float(i)) for i in range(3)])
    with h5py.File(path, "r+"):  # cuts its checksums off
        pass
    whole = path.read_bytes()
    place = whole.rindex(b'{"checkpoint')
    path.write_bytes(whole[:place] + byte + whole[place + 1 :])
    done = salvage.salvage(path)
    (line,) = done.lost
    assert line.startswith("results/eigenvalues/000")
    assert len([e.result for e in open_archive(done.path).entries]) == 2
    assert sorted(os.listdir(tmp_path)) == ["run.h5", "run.salvaged.h5"]


def test_what_was_written_so_is_no_damage(measured):
    whole = measured.read_bytes()
    image = bytearray(whole[: seal.own_end(whole[:48])])
    place = image.index(b'{"checkpoint')
    image[place : place + 1] = b"["
    bad = save(measured, seal.sealed(bytes(image)))
    result = CliRunner().invoke(main, ["repair", str(bad)], catch_exceptions=False)
    assert result.exit_code == 1
    assert "is as it was written" in result.stderr
    assert os.listdir(measured.parent) == ["run.h5"]


def test_the_report_tells_what_a_salvaged_archive_lost_once(tmp_path):
    samples.write_archives(tmp_path, 1, 7)
    path = save_archive(tmp_path / "0.h5", pairs(2.0), subject=Subject(checkpoint="other.pt"), append=True)
    with h5py.File(path, "r+") as file:  # cuts off what would mend it
        place = h5py.h5o.get_info(file["results/trace/0001"].id).addr
    path.write_bytes(spoiled(path.read_bytes(), place + 20, place + 21))
    done = salvage.salvage(path)
    assert any(line.startswith("results/trace/0001") for line in done.lost)
    runs = gather([done.path])
    assert len(runs) == 2
    (told,) = [check for _, _, check in every_check(runs) if check.name == "readable"]
    assert told.level == "warn"
    assert all(line in told.message for line in done.lost)
    assert "not measured, or lost" in runs[0].missing("trace")
    page = render_report(runs)
    assert all(html.escape(line) in page for line in done.lost)


def test_rows_that_a_salvaged_record_lost_are_told_in_one_place(tmp_path, recorded_bytes):
    path = save(tmp_path / "run.h5", recorded_bytes)
    place = recorded_bytes.index(open_archive(path).history["gradient_norm"].values[3000].tobytes())
    path.write_bytes(spoiled(recorded_bytes, place, place + 64 * 1024))
    done = salvage.salvage(path)
    (line,) = done.lost
    told = [(check.name, check.message) for _, _, check in every_check(gather([done.path])) if check.level != "pass"]
    assert ("readable", "salvaged from run.h5, which was damaged") in told
    assert [name for name, message in told if line in message] == ["lost rows"]
    shown = " ".join(CliRunner().invoke(main, ["show", "--full", str(done.path)]).stdout.split())
    assert shown.count(line) == 1


def test_a_quantity_that_is_lost_as_a_whole_is_one_line(tmp_path, recorded_bytes, monkeypatch):
    path = save(tmp_path / "run.h5", without_parity(save(tmp_path / "run.h5", recorded_bytes)))
    walk = salvage.walk_variants

    def without(copy, ranges):
        walked = walk(copy, ranges)
        for key in (("attributes", "/steps/gradient_norm"), ("dataset", "/steps/gradient_norm/value")):
            del walked.answers[key]
        return walked

    monkeypatch.setattr(salvage, "walk_variants", without)
    whole = path.read_bytes()
    path.write_bytes(spoiled(whole, len(recorded_bytes) // 2, len(recorded_bytes) // 2 + 1))
    done = salvage.salvage(path)
    assert [x for x in done.lost if "gradient_norm" in x] == [
        "steps/gradient_norm: all rows are lost (6,000 rows)",
    ]
    events = [e.message for e in open_archive(done.path).history.events if e.kind == "lost_rows"]
    assert sum("gradient_norm" in message for message in events) == 1


def test_what_was_lost_before_is_still_told_of_what_is_salvaged_again(tmp_path, recorded_bytes):
    path = save(tmp_path / "run.h5", recorded_bytes)
    values = open_archive(path).history["gradient_norm"].values
    for row in (3000, 5000):
        whole = path.read_bytes()
        place = whole.index(values[row].tobytes())
        path.write_bytes(spoiled(whole, place, place + 64 * 1024))
        path = salvage.salvage(path).path
    assert len(open_archive(path).attributes["salvaged"]["lost"]) == 2


def test_what_another_program_put_in_is_no_damage(measured):
    with h5py.File(measured, "r+") as file:
        file.create_dataset("mine", data=np.zeros(3, [("a", "<i4"), ("b", "<f8")]))
    with pytest.raises(ArchiveError, match="needs no repair"):
        repair(measured)


def test_where_nothing_may_be_written_the_message_says_what_to_do(measured, monkeypatch):
    measured.write_bytes(spoiled(measured.read_bytes(), 100, 101))

    def refused(target):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(salvage, "Partial", refused)
    with pytest.raises(ArchiveError, match=r"Permission denied; copy run\.h5 to a folder where you may write"):
        salvage.salvage(measured)


def test_a_slow_start_of_python_is_no_hang(measured, monkeypatch, tmp_path):
    odd = tmp_path / "odd.py"
    odd.write_text("import time\nfrom landscape.archive import piecewise\ntime.sleep(1.5)\npiecewise.main()\n")
    monkeypatch.setattr(survey, "LIMIT", 1.0)
    monkeypatch.setattr(survey, "COMMAND", (sys.executable, str(odd)))
    assert survey.readable(measured)
    monkeypatch.setattr(survey, "COMMAND", (sys.executable, "-c", "exit()"))
    with pytest.raises(ArchiveError, match="could not start another process"):
        survey.readable(measured)


def test_a_reader_that_hangs_or_dies_loses_its_piece_alone(measured, monkeypatch, tmp_path):
    odd = tmp_path / "odd.py"
    odd.write_text(
        "import os, sys, time\n"
        "from landscape.archive import piecewise\n"
        "own = piecewise.answer\n"
        "def answer(file, task, memory):\n"
        "    if task[1].endswith('0001/values'): os.abort()\n"
        "    if task[1].endswith('0001/residuals'): time.sleep(60)\n"
        "    return own(file, task, memory)\n"
        "piecewise.answer = answer\n"
        "piecewise.main()\n"
    )
    monkeypatch.setattr(survey, "LIMIT", 1.0)
    monkeypatch.setattr(survey, "COMMAND", (sys.executable, str(odd)))
    with survey.Reader(measured) as reader:
        walked = survey.walk(reader)
    assert {key[1].rpartition("/")[2] for key in walked.unread} == {"values", "residuals"}
    assert ("rows", "/results/eigenvalues/0002/values", 0, -1) in walked.digests


@pytest.mark.skipif(not hasattr(signal, "alarm"), reason="needs signal.alarm")
def test_a_reader_whose_asker_was_killed_ends_by_itself(measured):
    code = "import time; from landscape.archive import piecewise as p; p.answer = lambda *a: time.sleep(60); p.main()"
    child = subprocess.Popen([sys.executable, "-c", code, str(measured), "100", "1"], stdin=subprocess.PIPE)
    assert child.stdin is not None
    with child.stdin as tasks:
        tasks.write(b'["group", "/"]\n')
        tasks.flush()
        assert child.wait(30) == -signal.SIGALRM


def test_rows_beside_a_damaged_archive_go_into_the_salvaged_one(tmp_path):
    path = begin(tmp_path / "run.h5")
    given = session(path, range(50))
    whole = path.read_bytes()
    path.write_bytes(spoiled(whole, 100, 101))
    result = CliRunner().invoke(main, ["repair", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "nothing is lost" in result.stderr
    history = open_archive(tmp_path / "run.salvaged.h5").history
    np.testing.assert_array_equal(history["loss"].values, list(given["loss"].values()))
    assert live_folder(path).is_dir()


def test_a_last_block_that_is_damaged_and_not_torn_is_kept_beside_the_archive(tmp_path):
    path = begin(tmp_path / "run.h5")
    session(path, range(50))
    (segment,) = segment_paths(live_folder(path))
    whole = segment.read_bytes()
    segment.write_bytes(spoiled(whole, len(whole) - 3, len(whole) - 2))
    result = CliRunner().invoke(main, ["repair", str(path)], catch_exceptions=False)
    assert "no whole row" not in result.stderr
    assert "fit no checksum" in result.stderr
    assert "is kept as" in result.stderr


def test_the_command_says_what_is_lost_and_refuses_a_second_time(tmp_path, recorded_bytes):
    path = tmp_path / "run.h5"
    history = open_archive(save(path, recorded_bytes)).history
    place = recorded_bytes.index(history["gradient_norm"].values[3000].tobytes())
    path.write_bytes(spoiled(recorded_bytes, place, place + 64 * 1024))
    result = CliRunner().invoke(main, ["repair", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "  lost: " in result.stderr
    assert result.stdout.strip() == str(tmp_path / "run.salvaged.h5")
    shown = CliRunner().invoke(main, ["show", result.stdout.strip()], catch_exceptions=False)
    assert "salvaged from run.h5, which was damaged" in shown.output
    with pytest.raises(ArchiveError, match=r"run\.salvaged\.h5 exists; move it away"):
        salvage.salvage(path)


def test_nothing_is_written_where_nothing_can_be_read(tmp_path):
    path = tmp_path / "run.h5"
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(5000))
    with pytest.raises(ArchiveError, match=r"nothing of .* can be read any more"):
        salvage.salvage(path)
    assert os.listdir(tmp_path) == ["run.h5"]


@pytest.mark.slow
def test_no_repair_crashes_makes_up_a_number_or_loses_one_without_a_word():
    rows = list(archive_fuzz.repairs(seed=2, variants=42))
    assert [r for r in rows if r["end"] not in ("salvaged", "told")] == []
    for kind in ("byte", "zeros", "noise"):  # within a page or two: parity gives all of it back
        assert {r["share"] for r in rows if r["kind"] == kind} == {1.0}
    assert np.mean([r["share"] for r in rows if r["kind"] == "cut 90%"]) > 0.3


def test_a_few_random_flips_lose_nothing():
    rows = list(archive_fuzz.repairs(seed=3, variants=3, kinds=("byte",)))
    assert [(r["end"], r["share"]) for r in rows] == [("salvaged", 1.0)] * 3
