"""Writing: whole files or none, nothing measured is lost, an old file stays as it is until the new one is whole."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from landscape.archive import atomic, writer
from landscape.archive.atomic import Partial
from landscape.archive.describe import describe_archive
from landscape.archive.reader import open_archive
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.writer import ArchiveWriter
from landscape.errors import ArchiveError
from landscape.surface.slices import Line, Plane

# A block whose end raises is what is tested here: it takes more than one statement.
# ruff: noqa: PT012, PT031

ROOT = Path(__file__).resolve().parent.parent
FIXED = {"run_id": "r", "created": "2026-01-01T00:00:00Z"}


def line(number: float = 1.0, points: int = 5) -> Line:
    return Line(
        alpha=np.linspace(-1, 1, points),
        loss=np.full(points, number),
        center_loss=number,
        checkpoint_loss=number,
        direction_norm=1.0,
    )


def plane(points: int = 7) -> Plane:
    grid = np.linspace(-1, 1, points)
    return Plane(
        alpha=grid,
        beta=grid,
        loss=np.add.outer(grid**2, grid**2),
        evaluated=np.ones((points, points), bool),
        center_loss=0.0,
        checkpoint_loss=0.0,
        cosine=0.0,
        direction_norms=np.ones(2),
    )


def numbers(path: Path) -> list[float]:
    return [entry.result.center_loss for entry in open_archive(path).entries]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run.h5"


# ------------------------------------------------------------------------------------- the ordinary way


def test_results_lie_where_the_layout_says_in_the_order_measured(path):
    with ArchiveWriter(path, run={"loss": "ce", "lr": 0.1}) as archive:
        ids = [archive.add(r, subject=Subject("c.pt")) for r in (line(1), plane(), line(2))]
        assert not path.exists()
    assert ids == ["0001", "0001", "0002"]
    back = open_archive(path)
    assert [e.group for e in back.entries] == ["results/line/0001", "results/plane/0001", "results/line/0002"]
    assert back.status == "complete"
    assert back.run == {"loss": "ce", "lr": 0.1}
    assert list(path.parent.iterdir()) == [path]


def test_the_root_says_where_the_numbers_come_from(path):
    save_archive(path, line(), attributes={"seed": 3, "device": "cpu"})
    about = open_archive(path).attributes
    assert about["format"] == "landscape-archive"
    assert about["versions"]["h5py"] == h5py.__version__
    assert (about["seed"], about["device"], about["format_version"]) == (3, "cpu", 1)
    assert {"created", "run_id", "command_line", "source_revision", "platform"} <= set(about)


def test_the_same_results_give_the_same_bytes_however_often_they_were_flushed(tmp_path, monkeypatch):
    def write(name: str, share: float) -> str:
        monkeypatch.setattr(writer, "FLUSH_SHARE", share)
        with ArchiveWriter(tmp_path / name, run={"a": [1]}, attributes=FIXED) as archive:
            for i in range(5):
                archive.add(line(i), subject=Subject("c.pt", "ab", facts={"seed": 0}))
                archive.add(plane())
        return digest(tmp_path / name)

    first = write("a.h5", 0.0)
    time.sleep(1.1)  # HDF5's own time stamps count seconds
    assert write("b.h5", 1e9) == first


def test_appending_gives_the_same_bytes_too(tmp_path):
    def write(name: str) -> str:
        save_archive(tmp_path / name, plane(), attributes=FIXED)
        save_archive(tmp_path / name, line(), attributes={**FIXED, "run_id": "s"}, append=True)
        return digest(tmp_path / name)

    first = write("a.h5")
    time.sleep(1.1)
    assert write("b.h5") == first


def test_a_run_without_results_that_ends_well_is_an_empty_archive(path):
    with ArchiveWriter(path):
        pass
    assert open_archive(path).entries == ()
    assert "no results" in describe_archive(open_archive(path))


def test_force_replaces_the_old_file_only_at_the_end(path):
    save_archive(path, line(1))
    with ArchiveWriter(path, force=True) as archive:
        archive.add(line(2))
        assert numbers(path) == [1]
    assert numbers(path) == [2]


def test_a_link_stays_a_link_and_permissions_stay(tmp_path):
    real, link = tmp_path / "real.h5", tmp_path / "link.h5"
    save_archive(real, line(1))
    real.chmod(0o640)
    link.symlink_to(real)
    save_archive(link, line(2), append=True)
    assert link.is_symlink()
    assert numbers(real) == [1, 2]
    assert real.stat().st_mode & 0o777 == 0o640


# ------------------------------------------------------------------------------------------- appending


def test_append_adds_results_and_keeps_the_old_ones(path):
    save_archive(path, [line(1), plane()], subject=Subject("a.pt", "aa"), run={"loss": "ce"})
    before = open_archive(path)
    with ArchiveWriter(path, mode="append", run={"preset": "quick"}, attributes={"seed": 9}) as archive:
        assert archive.add(line(2), subject=Subject("b.pt", "bb")) == "0002"
        assert archive.add(line(3), subject=Subject("a.pt", "aa")) == "0003"
    back = open_archive(path)
    assert [e.group for e in back.entries][:2] == [e.group for e in before.entries]
    assert [e.result.center_loss for e in back.select("line")] == [1, 2, 3]
    assert [s.label for s in back.subjects] == ["a.pt", "b.pt"]
    assert back.run == {"loss": "ce"}
    assert back.attributes["run_id"] == before.attributes["run_id"]
    assert back.attributes["model_fingerprint"] == "aa bb"
    (later,) = back.appended
    assert (later["run"], later["seed"], later["status"], later["found"]) == (
        {"preset": "quick"},
        9,
        "complete",
        "complete",
    )
    assert back.entries[0].provenance["run_id"] == before.attributes["run_id"]
    assert back.entries[-1].provenance["run_id"] == later["run_id"]


def test_append_twice_numbers_the_writings(path):
    for i in range(3):
        save_archive(path, line(i), append=True)
    assert numbers(path) == [0, 1, 2]
    assert len(open_archive(path).appended) == 2


def test_append_counts_on_from_the_last_id_though_some_are_gone(path):
    save_archive(path, [line(1), line(2), line(3)])
    with h5py.File(path, "r+") as file:
        del file["results/line/0001"]
    with ArchiveWriter(path, mode="append") as archive:
        assert archive.add(line(4)) == "0004"
    assert numbers(path) == [2, 3, 4]


def test_append_does_not_finish_what_failed(path):
    with pytest.raises(ZeroDivisionError), ArchiveWriter(path) as archive:
        archive.add(line(1))
        _ = 1 / 0
    with ArchiveWriter(path, mode="append") as archive:
        archive.add(line(2))
    assert (open_archive(path).status, numbers(path)) == ("failed", [1, 2])


def test_resuming_goes_on_from_the_longer_of_two_rows(path):
    """An archive that was interrupted, and the partial file of an appending that was killed early."""
    with pytest.raises(KeyboardInterrupt), ArchiveWriter(path) as archive:
        archive.add(line(1))
        archive.keep("points", np.arange(10.0).reshape(5, 2))
        raise KeyboardInterrupt
    beside = path.with_name(f"{path.name}.partial")
    with pytest.raises(ZeroDivisionError), ArchiveWriter(path, mode="append") as archive:
        archive.keep("points", np.zeros((2, 2)))
        left = beside.read_bytes()
        _ = 1 / 0
    beside.write_bytes(left)
    with ArchiveWriter(path, resume=True) as archive:
        assert archive.unfinished["points"].tolist() == np.arange(10.0).reshape(5, 2).tolist()


def test_append_keeps_groups_that_are_not_ours(path):
    save_archive(path, line(1))
    with h5py.File(path, "r+") as file:
        file["steps/gradient_norm"] = np.arange(6.0).reshape(3, 2)
        file["probes/curvature/values"] = np.arange(3.0)
        file["steps"].attrs["names"] = "a b"
    save_archive(path, line(2), append=True)
    with h5py.File(path, "r") as file:
        assert file["steps/gradient_norm"][()].tolist() == [[0, 1], [2, 3], [4, 5]]
        assert file["probes/curvature/values"][()].tolist() == [0, 1, 2]
        assert file["steps"].attrs["names"] == "a b"


def test_a_failed_append_leaves_the_old_file_alone(path):
    save_archive(path, line(1))
    before = digest(path)
    with pytest.raises(ZeroDivisionError), ArchiveWriter(path, mode="append"):
        _ = 1 / 0
    assert digest(path) == before
    with pytest.raises(ZeroDivisionError), ArchiveWriter(path, mode="append") as archive:
        archive.add(line(2))
        assert digest(path) == before
        _ = 1 / 0
    back = open_archive(path)
    assert numbers(path) == [1, 2]
    assert (back.status, back.appended[0]["found"]) == ("failed", "complete")
    assert list(path.parent.iterdir()) == [path]


# --------------------------------------------------------------------------------------- interruptions


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), "interrupted"), (SystemExit(143), "interrupted"), (ValueError("x"), "failed")],
)
def test_what_was_measured_before_an_exception_is_archived(error, status, path):
    with pytest.raises(type(error)), ArchiveWriter(path) as archive:
        archive.add(line(1))
        raise error
    assert open_archive(path).status == status
    assert numbers(path) == [1]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x")])
def test_nothing_is_left_behind_without_a_result(error, path):
    with pytest.raises(type(error)), ArchiveWriter(path):
        raise error
    assert list(path.parent.iterdir()) == []


# Between opening a file and its `with` even CPython leaves it to the garbage collector, which complains.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_at_any_line_of_ours_keeps_every_result(tmp_path, monkeypatch):
    """Interrupt `add` and the end of the block at every line of theirs, when it runs for the last time."""
    monkeypatch.setattr(writer, "FLUSH_SHARE", 0.0)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # hundreds of archives; durability isn't in question here
    files = {writer.__file__, atomic.__file__}

    def run(path: Path, stop_at: int, append: bool) -> list[tuple[str, int]]:
        if append:
            save_archive(path, line(0), attributes=FIXED)
        seen: list[tuple[str, int]] = []

        def trace(frame, event, arg):
            code = frame.f_code
            # On the first line of `__exit__` nothing can help: the partial file then holds the results.
            if code.co_filename not in files or code.co_name == "__exit__":
                return None
            if event == "line":
                seen.append((code.co_filename, frame.f_lineno))
                if len(seen) == stop_at:
                    raise KeyboardInterrupt
            return trace

        try:
            with ArchiveWriter(path, mode="append" if append else "new", attributes=FIXED) as archive:
                archive.add(line(1))
                sys.settrace(trace)
                archive.add(line(2))
        finally:
            sys.settrace(None)
        return seen

    tried: set[tuple[str, int]] = set()
    for append, old in ((False, []), (True, [0])):
        seen = run(tmp_path / f"whole-{append}.h5", -1, append)
        last = {where: number for number, where in enumerate(seen, 1) if where not in tried}
        assert len(last) > 20
        tried.update(last)
        for (_, where), stop_at in last.items():
            path = tmp_path / f"{append}-{stop_at}.h5"
            with pytest.raises(KeyboardInterrupt):
                run(path, stop_at, append)
            back = open_archive(path)
            assert numbers(path) in ([*old, 1], [*old, 1, 2]), where
            assert back.status in ("interrupted", "complete"), where
            assert not list(tmp_path.glob("*.partial*")), where


def test_a_run_goes_on_after_a_ctrl_c_that_somebody_caught(path, monkeypatch):
    monkeypatch.setattr(writer, "FLUSH_SHARE", 0.0)
    real = writer.write_group

    def cut(parent, group, encoded, attributes):
        real(parent, group, encoded, {})
        monkeypatch.setattr(writer, "write_group", real)
        raise KeyboardInterrupt

    with ArchiveWriter(path) as archive:
        archive.add(line(1))
        monkeypatch.setattr(writer, "write_group", cut)
        with pytest.raises(KeyboardInterrupt):
            archive.add(line(2))
        archive.add(line(3))
        assert numbers(path.with_name("run.h5.partial")) == [1, 2, 3]
    assert numbers(path) == [1, 2, 3]


CHILD = """
import sys
import numpy as np
from landscape.archive.writer import ArchiveWriter
from landscape.surface.slices import Line
a = np.linspace(-1, 1, 50)
with ArchiveWriter(sys.argv[1], mode=sys.argv[2], force=True) as archive:
    for i in range(1, 100_000):
        archive.add(Line(alpha=a, loss=a + i, center_loss=i, checkpoint_loss=i, direction_norm=1.0))
"""


def child(code: str, *arguments: str, **options) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **options)


@pytest.mark.parametrize("mode", ["new", "append"])
def test_kill_9_in_the_middle_of_writing(mode, path):
    """At random moments: the old file is byte for byte what it was, and the partial file opens, all of it right."""
    save_archive(path, line(-1.0))
    before = digest(path)
    rng = np.random.default_rng(0)
    for _ in range(4):
        partial = path.with_name("run.h5.partial")
        with child(CHILD, str(path), mode) as process:
            deadline = time.monotonic() + 30
            while not (partial.exists() and partial.stat().st_size) and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            assert process.wait() == -signal.SIGKILL
        assert digest(path) == before
        left = open_archive(partial)
        assert left.status == "running"
        assert numbers(partial) == list(range(1, len(left.entries) + 1))
        assert left.entries[-1].result.loss.tolist() == (np.linspace(-1, 1, 50) + len(left.entries)).tolist()
        with pytest.raises(ArchiveError, match=r"partial holds \d+ results? of a run that was killed"):
            ArchiveWriter(path, mode="append")
    with pytest.raises(ArchiveError, match=r"run2\.h5\.partial holds what a run has measured so far"):
        open_archive(partial.rename(path.with_name("run2.h5.partial")).with_suffix(""))


def test_a_partial_file_that_holds_nothing_is_no_obstacle(path):
    partial = path.with_name("run.h5.partial")
    for left in (b"", b"\x89HDF\r\n\x1a\n and then nothing", b"other"):
        partial.write_bytes(left)
        save_archive(path, line(1), force=True)
        assert not partial.exists()


# ----------------------------------------------------------------------------------------------- refusals


def test_refused_before_anything_is_measured(tmp_path):
    there = save_archive(tmp_path / "there.h5", line(1))
    before = digest(there)
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["x"] = 1
    text = tmp_path / "text.h5"
    text.write_text("no archive")
    newer = save_archive(tmp_path / "newer.h5", line(1))
    with h5py.File(newer, "r+") as file:
        file.attrs["format_version"] = 99
    pipe = tmp_path / "pipe.h5"
    os.mkfifo(pipe)
    cases = [
        (there, {}, "exists; pass --append to add to it, --force to replace it"),
        (tmp_path / "no" / "run.h5", {}, "no does not exist; create it"),
        (tmp_path, {}, "is a folder; name a file in it"),
        (tmp_path, {"mode": "append"}, "is a folder"),
        (pipe, {"force": True}, "is no ordinary file"),
        (foreign, {"mode": "append"}, "is an HDF5 file of something else"),
        (text, {"mode": "append"}, "is not an HDF5 file"),
        (newer, {"mode": "append"}, "has format version 99, this landscape-probe reads up to 1; upgrade"),
        (there, {"mode": "add"}, 'expected "new" or "append"'),
    ]
    for path, options, words in cases:
        with pytest.raises(ArchiveError, match=words):
            ArchiveWriter(path, **options)
    assert digest(there) == before
    assert not list(tmp_path.glob("*.partial*"))


def test_a_place_that_cannot_be_written_is_refused(path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(atomic.os, "open", denied)
    with pytest.raises(ArchiveError, match="cannot be written: Permission denied"):
        ArchiveWriter(path)


def test_a_file_that_may_not_be_changed_is_not_replaced(path, monkeypatch):
    save_archive(path, line(1))
    monkeypatch.setattr(writer.os, "access", lambda path, mode: mode != os.W_OK)
    for options in ({"force": True}, {"mode": "append"}):
        with pytest.raises(ArchiveError, match="is read-only; write to another file"):
            ArchiveWriter(path, **options)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_read_only_folder_or_file_is_refused(path):
    save_archive(path, line(1))
    path.chmod(0o444)
    with pytest.raises(ArchiveError, match="is read-only"):
        ArchiveWriter(path, force=True)
    path.parent.chmod(0o555)
    try:
        with pytest.raises(ArchiveError, match="cannot be written: Permission denied"):
            ArchiveWriter(path.with_name("other.h5"))
    finally:
        path.parent.chmod(0o755)


def test_a_second_writer_is_refused_while_the_first_is_at_work(path):
    pytest.importorskip("fcntl")
    with ArchiveWriter(path) as archive:
        with pytest.raises(ArchiveError, match="is being written by another process"):
            ArchiveWriter(path)
        archive.add(line(1))
        with pytest.raises(ArchiveError, match="is being written by another process"):
            ArchiveWriter(path, force=True)
        # Reading what there is so far is always possible.
        assert numbers(path.with_name("run.h5.partial")) == [1]
    with ArchiveWriter(path, mode="append") as archive:
        archive.add(line(2))
    assert numbers(path) == [1, 2]


def test_a_file_system_without_locks_is_used_without(path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    save_archive(path, line(1))
    assert numbers(path) == [1]


def test_wrong_types_are_type_errors(path):
    with ArchiveWriter(path) as archive:
        with pytest.raises(TypeError, match="expected a Result, got dict"):
            archive.add({})
        with pytest.raises(TypeError, match="expected a Subject, got str"):
            archive.add(line(), subject="c.pt")
    with pytest.raises(ArchiveError, match="is finished"):
        archive.add(line())
    with pytest.raises(ArchiveError, match="no results to save"):
        save_archive(path.with_name("b.h5"), [])


def test_a_file_that_appears_meanwhile_is_left_as_it_is(path):
    with pytest.raises(ArchiveError, match="was made by another program meanwhile"), ArchiveWriter(path) as a:
        a.add(line(1))
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    assert numbers(path.with_name("run.h5.partial")) == [1]


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_an_archive_that_changes_during_append_is_left_as_it_is(how, path):
    def changed() -> None:
        path.unlink()
        if how == "replaced":
            path.write_text("somebody else's")

    save_archive(path, line(1))
    with (
        pytest.raises(ArchiveError, match="was changed by another program meanwhile"),
        ArchiveWriter(path, mode="append") as archive,
    ):
        archive.add(line(2))
        changed()
    assert numbers(path.with_name("run.h5.partial")) == [2]
    assert path.exists() == (how == "replaced")


# ---------------------------------------------------------------------------------------- a full disk

FULL = """
import resource, sys
from tests.test_archive_writer import line, plane, numbers
from landscape.archive import writer
from landscape.errors import ArchiveError
writer.FLUSH_SHARE = 0.0
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    with writer.ArchiveWriter(sys.argv[1], mode=sys.argv[3], force=True) as archive:
        for i in range(1, 9):
            archive.add(line(i, points=1000))
except ArchiveError as error:
    print(error)
"""


@pytest.mark.parametrize("mode", ["new", "append"])
@pytest.mark.parametrize("limit", [1000, 60_000, 120_000])
def test_a_disk_that_really_fills_up(mode, limit, path):
    """A limit on the size of files stands for the disk: the process lives, says it, and keeps what fitted."""
    save_archive(path, line(-1))
    before = digest(path)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with child(FULL, str(path), str(limit), mode, cwd=ROOT, **pipes) as process:
        said, noise = process.communicate(timeout=60)
    assert process.returncode == 0, noise
    assert noise == ""
    assert f"{path} could not be written: File too large; " in said
    assert len(said.strip().splitlines()) == 1
    assert digest(path) == before
    partial = path.with_name("run.h5.partial")
    if limit < 5000:
        assert "none of the 1 results measured is on disk" in said
        assert list(path.parent.iterdir()) == [path]
    else:
        kept = numbers(partial)
        assert kept == list(range(1, len(kept) + 1))
        assert f"{len(kept)} of the {len(kept) + 1} results measured are in {partial}" in said


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_for_a_while_loses_nothing(path, monkeypatch):
    monkeypatch.setattr(writer, "FLUSH_SHARE", 0.0)
    with ArchiveWriter(path) as archive:
        archive.add(line(1))
        with monkeypatch.context() as patch:
            patch.setattr(atomic, "_write_all", full)
            with pytest.raises(ArchiveError, match="No space left on device; 1 of the 2 results measured are in"):
                archive.add(line(2))
        archive.add(line(3))
    assert numbers(path) == [1, 2, 3]


@pytest.mark.parametrize(
    ("mode", "broken"),
    [
        ("new", (Partial, "publish")),
        ("append", (Partial, "publish")),
        ("append", (writer, "reserve")),
        ("append", (writer.shutil, "copyfile")),
    ],
)
def test_a_last_step_that_fails_keeps_the_partial_file_and_names_it(broken, mode, path, monkeypatch):
    save_archive(path, line(0))
    before = digest(path)
    with pytest.raises(ArchiveError) as raised, ArchiveWriter(path, mode=mode, force=True) as archive:
        archive.add(line(1))
        archive.add(line(2))
        monkeypatch.setattr(*broken, full)
    partial = path.with_name("run.h5.partial")
    assert f"all 2 results measured are in {partial}: rename it to keep them" in str(raised.value)
    assert digest(path) == before
    assert numbers(partial) == [1, 2]
    assert sorted(path.parent.iterdir()) == [path, partial]


def test_ctrl_c_stays_ctrl_c_when_the_end_cannot_be_written(path, monkeypatch):
    with (
        pytest.warns(RuntimeWarning, match="all 1 results measured are in"),
        pytest.raises(KeyboardInterrupt),
        ArchiveWriter(path) as archive,
    ):
        archive.add(line(1))
        monkeypatch.setattr(Partial, "publish", full)
        raise KeyboardInterrupt


def test_results_are_on_disk_at_once_and_flushing_stays_under_its_share(path, monkeypatch):
    """Measuring that takes a while is flushed after each result; a burst waits for 20 times the last write."""
    partial = path.with_name("run.h5.partial")
    clock = [0.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: clock[0])
    write = Partial.write

    def slow(self, image):
        clock[0] += 1.0
        write(self, image)

    monkeypatch.setattr(Partial, "write", slow)
    with ArchiveWriter(path) as archive:
        held = []
        for seconds in (0.0, 0.1, 19.0, 1.0, 25.0):
            clock[0] += seconds
            archive.add(line(1))
            held.append(len(open_archive(partial).entries))
        assert held == [1, 1, 1, 4, 5]
    assert len(open_archive(path).entries) == 5
