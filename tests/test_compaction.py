"""Segments into the archive: every row comes back, whatever was resumed, repeated, killed or full meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from recorded_world import begin, session, standing

from landscape import open_archive
from landscape.archive import compaction
from landscape.archive.compaction import compact, gather, repair
from landscape.archive.history import History
from landscape.archive.segments import hold, live_folder
from landscape.errors import ArchiveError

EVENTS = [
    {"step": 3, "kind": "skipped_step", "message": "thrown away", "seconds": 0.5},
    {"step": 8, "kind": "checkpoint", "message": "step-8.pt", "seconds": 1.5},
]


def same(a: History, b: History) -> None:
    """Assert that two records hold the same rows, marks, events and Results."""
    assert set(a.names) == set(b.names)
    for name in a.names:
        x, y = a[name], b[name]
        assert (x.names, x.units, x.doc, x.axis) == (y.names, y.units, y.doc, y.axis)
        np.testing.assert_array_equal(x.steps, y.steps)
        np.testing.assert_array_equal(x.values, y.values)
        np.testing.assert_array_equal(x.superseded, y.superseded)
    assert a.events == b.events
    assert a.probed.keys() == b.probed.keys()
    for name, found in a.probed.items():
        told = [[(p.step, p.epoch, p.kind, p.superseded, p.result.values.tolist()) for p in f]
                for f in (found, b.probed[name])]  # fmt: skip
        assert told[0] == told[1]


def check(path: Path, quantity: str, rows: dict[int, np.ndarray]) -> None:
    series = open_archive(path).history[quantity].current()
    np.testing.assert_array_equal(series.steps, list(rows))
    np.testing.assert_array_equal(series.values, list(rows.values()))


def read(path: Path) -> History:
    """Return the record with all that is read late read now, since the files are about to move."""
    history = open_archive(path).history
    for name in history.names:
        history[name]
    for found in history.probed.values():
        [p.result for p in found]
    return history


@pytest.mark.parametrize("compacted", [False, True])
def test_events_of_the_step_from_which_a_run_goes_on_stand(tmp_path, compacted):
    path = begin(tmp_path / "run.h5")
    session(path, range(1, 6), events=[{"step": step, "kind": "note"} for step in (2, 3, 4)])
    if compacted:
        compact(path, "interrupted")
    session(path, range(4, 6), number=1, resumed_at=3)
    assert [(e.step, e.superseded) for e in read(path).events] == [(2, False), (3, False), (4, True)]


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that was resumed twice, each time from before where it had been."""
    path = begin(tmp_path / "run.h5")
    session(path, range(1, 41), events=EVENTS, probed=[0, 20, 40])
    session(path, range(26, 51), number=1, resumed_at=25, probed=[40])
    session(
        path,
        range(36, 61),
        number=2,
        resumed_at=35,
        events=[{"step": 36, "kind": "resumed", "seconds": 9.5}],
        probed=[40, 60],
    )
    return path


class TestRoundTrip:
    def test_compacting_changes_nothing_that_is_read(self, run):
        before = read(run)
        done = gather(run, "complete", steps=60)
        assert not live_folder(run).exists()
        archive = open_archive(run)
        assert (archive.status, archive.attributes["steps"], archive.attributes["sessions"]) == ("complete", 60, 3)
        same(before, archive.history)
        assert done.rows["loss"] == 40 + 25 + 25
        assert (done.events, done.results, done.torn, done.damaged) == (3, 6, 0, ())

    def test_rows_that_stand_are_those_of_the_last_session(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        sessions = [
            (session(path, range(1, 41)), None),
            (session(path, range(21, 31), number=1, resumed_at=20), 20),
            (session(path, range(26, 61), number=2, resumed_at=25), 25),
        ]
        for turn in range(2):
            for quantity in ("loss", "gradient_norm", "curvature", "epoch"):
                check(path, quantity, standing(*((given[quantity], at) for given, at in sessions)))
            if not turn:
                compact(path, "complete")

    def test_compacted_between_all_sessions_as_at_the_end(self, tmp_path):
        paths = [begin(tmp_path / f"{name}.h5") for name in "ab"]
        for number, (steps, at) in enumerate([(range(1, 31), None), (range(11, 41), 10), (range(21, 51), 20)]):
            for path in paths:
                session(path, steps, number=number, resumed_at=at, events=EVENTS, probed=[steps.stop - 1])
            compact(paths[0], "interrupted")
            same(*(open_archive(p).history for p in paths))
        compact(paths[1], "complete")
        same(*(open_archive(p).history for p in paths))

    def test_new_columns_and_quantities_in_the_middle(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        first = session(path, range(1, 6))["gradient_norm"]
        names = {"gradient_norm": ("global", "new", "0.weight"), "more": ("x",)}
        second = session(path, range(6, 11), columns=names)
        compact(path, "interrupted")
        third = session(path, range(11, 16), columns={"gradient_norm": ("last",)}, number=1, resumed_at=10)
        for turn in range(2):
            history = open_archive(path).history
            found = history["gradient_norm"]
            assert set(found.names) == {"global", "0.weight", "0.bias", "new", "last"}
            np.testing.assert_array_equal(found.column("0.weight")[:5], [r[1] for r in first.values()])
            np.testing.assert_array_equal(found.column("new")[5:10], [r[1] for r in second["gradient_norm"].values()])
            np.testing.assert_array_equal(found.column("last")[10:, None], list(third["gradient_norm"].values()))
            assert np.isnan(found.column("new")[:5]).all()
            assert np.isnan(found.column("0.bias")[5:]).all()
            np.testing.assert_array_equal(history["more"].values, list(second["more"].values()))
            if not turn:
                compact(path, "complete")

    def test_many_small_blocks_are_gathered(self, tmp_path, monkeypatch):
        monkeypatch.setattr(compaction, "_CHUNK", 1 << 9)
        path = begin(tmp_path / "run.h5")
        monkeypatch.setattr("landscape.archive.live.MOST_ROWS", 3)
        given = session(path, range(1, 200))
        compact(path, "complete")
        check(path, "gradient_norm", given["gradient_norm"])

    def test_every_group_opens_in_xarray(self, run):
        xarray = pytest.importorskip("xarray")
        before = read(run)
        compact(run, "complete")
        for name in before.names:
            series = before[name]
            group = f"{'epochs' if series.axis == 'epoch' else 'steps'}/{name}"
            with xarray.open_dataset(run, engine="h5netcdf", group=group) as found:
                assert found["value"].dims == ("step", "name")
                assert found["value"].attrs.get("units", found.attrs.get("units", "")) == series.units
                np.testing.assert_array_equal(found["value"], series.values)
                np.testing.assert_array_equal(found["step"], series.steps)
                assert found["name"].values.tolist() == list(series.names)
        with xarray.open_dataset(run, engine="h5netcdf", group="events") as found:
            assert found["kind"].values.tolist() == [e.kind for e in before.events]
        with xarray.open_dataset(run, engine="h5netcdf", group="probes/curvature/00000020") as found:
            assert found["values"].values.tolist() == [20.0, 10.0]


class TestWhateverHappens:
    def test_killed_between_the_renaming_and_the_removal_no_row_is_doubled(self, run, monkeypatch):
        before = read(run)
        with monkeypatch.context() as m:
            m.setattr(compaction.shutil, "rmtree", lambda *_, **__: None)
            compact(run, "complete")
        assert live_folder(run).exists()
        same(before, open_archive(run).history)
        # A resumed run writes beside what was left, which the next compaction passes over as well.
        session(run, range(61, 66), number=3, resumed_at=60, probed=[65])
        after = read(run)
        assert len(after["loss"].steps) == len(before["loss"].steps) + 5
        assert len(after.probed["curvature"]) == 7
        compact(run, "complete")
        same(after, open_archive(run).history)
        assert not live_folder(run).exists()

    def test_leftovers_alone_are_removed_by_repair(self, run, monkeypatch):
        with monkeypatch.context() as m:
            m.setattr(compaction.shutil, "rmtree", lambda *_, **__: None)
            compact(run, "complete")
        before = read(run)
        assert repair(run).leftovers
        assert not live_folder(run).exists()
        same(before, open_archive(run).history)
        assert open_archive(run).status == "complete"

    def test_killed_at_a_random_moment_of_compaction(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 41), events=EVENTS, probed=[0, 20])
        session(path, range(31, 3001), number=1, resumed_at=30)
        before = read(path)
        code = (
            "import sys\n"
            "from landscape.archive.compaction import compact\n"
            "print('ready', flush=True)\n"
            "sys.stdin.readline()\n"
            "compact(sys.argv[1], 'complete')\n"
        )
        rng = np.random.default_rng(0)
        for _ in range(6):
            with subprocess.Popen(
                [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            ) as child:
                assert child.stdout is not None
                assert child.stdin is not None
                child.stdout.readline()
                child.stdin.write("\n")
                child.stdin.flush()
                time.sleep(0.05 * rng.random())
                child.send_signal(signal.SIGKILL)
            same(before, open_archive(path).history)
            if not live_folder(path).exists():
                break
        if live_folder(path).exists():
            compact(path, "complete")
        same(before, open_archive(path).history)

    @pytest.mark.parametrize("moment", ["copyfile", "reserve", "_write_rows", "write_events", "fsync", "replace"])
    def test_killed_at_each_stage_of_compaction(self, run, moment):
        before = read(run)
        where = {"copyfile": "compaction.shutil", "fsync": "os", "replace": "os"}.get(moment, "compaction")
        code = (
            "import os, sys\n"
            "from landscape.archive import compaction\n"
            f"honest = {where}.{moment}\n"
            "def killed(*args, **kwargs):\n"
            "    honest(*args, **kwargs)\n"
            "    os.kill(os.getpid(), 9)\n"
            f"{where}.{moment} = killed\n"
            "compaction.compact(sys.argv[1], 'complete')\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert live_folder(run).exists()
        same(before, open_archive(run).history)
        assert repair(run).leftovers == (moment == "replace")
        same(before, open_archive(run).history)
        left = sorted(p.name for p in run.parent.iterdir())
        assert left == ["run.h5"]

    def test_a_full_disk_leaves_the_segments_and_says_what_to_do(self, run, monkeypatch):
        before = read(run)

        def full(*_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as m:
            m.setattr(compaction, "reserve", full)
            with pytest.raises(ArchiveError, match=r"No space left on device; every row is in .*landscape repair"):
                compact(run, "complete")
        assert sorted(p.name for p in run.parent.iterdir()) == ["run.h5", "run.h5.live"]
        same(before, open_archive(run).history)
        repair(run)
        same(before, open_archive(run).history)

    @pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
    def test_a_limit_on_the_size_of_files_is_met_before_hdf5_writes(self, run):
        before = read(run)
        code = (
            "import resource, signal, sys\n"
            "from landscape.archive.compaction import compact\n"
            "from landscape.errors import ArchiveError\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))\n"
            "try:\n"
            "    compact(sys.argv[1], 'complete')\n"
            "except ArchiveError as error:\n"
            "    print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True)
        assert "File too large" in done.stdout
        same(before, open_archive(run).history)
        assert not list(run.parent.glob("*.partial*"))

    def test_a_real_full_disk(self, tmp_path):
        mount = tmp_path / "small"
        mount.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True)
        if made.returncode:
            pytest.skip("mounting a small tmpfs needs root")
        try:
            path = begin(mount / "run.h5")
            session(path, range(1, 41))
            before = read(path)
            with pytest.raises(ArchiveError, match="No space left"):
                compact(path, "complete")
            same(before, open_archive(path).history)
            assert sorted(p.name for p in mount.iterdir()) == ["run.h5", "run.h5.live"]
        finally:
            subprocess.run(["umount", str(mount)], check=True)

    def test_a_segment_that_was_never_begun_hides_no_other(self, run):
        before = read(run)
        whole = (live_folder(run) / "0001.rows").read_bytes()
        for number, size in enumerate([0, 5, 11, 60], 4):
            (live_folder(run) / f"{number:04d}.rows").write_bytes(whole[:size])
        (live_folder(run) / "0008.rows").write_bytes(bytes(64))  # a lost mount's or a power failure's zeros
        history = open_archive(run).history
        assert history.torn == 5 + 11 + 60 + 64
        compact(run, "complete")
        assert len(open_archive(run).history["loss"].steps) == len(before["loss"].steps)

    @pytest.mark.parametrize("header", [b"{}", b'{"columns": [], "facts": {}}', b'{"columns": {"x": 3}}', b"\xff\xfe"])
    def test_a_damaged_header_is_an_error_that_names_the_file(self, run, header):
        damaged = live_folder(run) / "0002.rows"
        damaged.write_bytes(b"LSROWS1\n" + len(header).to_bytes(4, "little") + header)
        for read in (lambda: open_archive(run).history, lambda: compact(run, "complete")):
            with pytest.raises(ArchiveError, match=r"0002\.rows is a segment with a damaged header.* move it out"):
                read()
        assert damaged.exists()

    def test_what_lies_behind_damage_is_kept_beside_the_archive(self, run):
        path = live_folder(run) / "0001.rows"
        data = bytearray(path.read_bytes())
        data[data.index(b"LSB2")] ^= 1
        path.write_bytes(data)
        done = gather(run, "complete")
        assert [e.kind for e in open_archive(run).history.events].count("lost_rows") == 1
        (kept,) = done.damaged
        assert kept.parent == run.with_name("run.h5.damaged")
        assert kept.read_bytes() == data

    def test_a_torn_end_is_not_damage(self, run):
        path = live_folder(run) / "0003.rows"
        path.write_bytes(path.read_bytes()[:-7])
        done = gather(run, "complete")
        assert done.torn > 0
        assert done.damaged == ()

    def test_a_probes_result_that_a_kill_left_half_is_kept_beside_the_archive(self, run):
        half = live_folder(run) / "results" / "curvature" / "00000020-0.h5"
        half.write_bytes(half.read_bytes()[:700])
        assert [p.step for p in open_archive(run).history.probed["curvature"]] == [0, 40, 40, 40, 60]
        done = gather(run, "complete")
        assert (done.results, len(done.damaged)) == (5, 1)
        assert done.damaged[0].stat().st_size == 700

    def test_truncated_anywhere_the_record_is_read_or_refused_in_words(self, run):
        whole = read(run)
        rng = np.random.default_rng(0)
        files = sorted(p for p in live_folder(run).rglob("*") if p.is_file())
        for _ in range(60):
            path = files[rng.integers(len(files))]
            data = path.read_bytes()
            path.write_bytes(data[: rng.integers(len(data) + 1)])
            try:
                history = open_archive(run).history
            finally:
                path.write_bytes(data)
            for name in history.names:
                # What is left of each session is where it was: rows are whole, and none is made up.
                known = {(s, v.tobytes()) for s, v in zip(whole[name].steps, whole[name].values, strict=True)}
                found = {(s, v.tobytes()) for s, v in zip(history[name].steps, history[name].values, strict=True)}
                assert found <= known
            if path.suffix == ".h5":
                assert set(history.names) == set(whole.names)

    def test_flipped_bytes_are_read_or_refused_in_words(self, run):
        rng = np.random.default_rng(1)
        files = sorted(p for p in live_folder(run).rglob("*") if p.is_file() and p.stat().st_size)
        for _ in range(20):
            path = files[rng.integers(len(files))]
            data = bytearray(path.read_bytes())
            good = bytes(data)
            for place in rng.integers(len(data), size=4):
                data[place] ^= 1 << rng.integers(8)
            path.write_bytes(data)
            try:
                with contextlib.suppress(ArchiveError):
                    read(run)
            finally:
                path.write_bytes(good)


class TestBadInput:
    def test_nothing_to_compact(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        with pytest.raises(ArchiveError, match="holds no rows of a run"):
            compact(path, "complete")

    def test_a_run_that_ended_well_needs_no_repair(self, run):
        compact(run, "complete")
        with pytest.raises(ArchiveError, match=r"needs no repair: its status is complete"):
            repair(run)

    def test_a_run_that_goes_on_is_left_alone(self, run):
        lock = hold(live_folder(run))
        assert lock is not None
        try:
            with pytest.raises(ArchiveError, match="goes on"):
                repair(run)
        finally:
            os.close(lock)
        assert repair(run).status == "interrupted"

    def test_killed_before_its_first_row(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        assert repair(path).rows == {}
        assert open_archive(path).status == "interrupted"

    def test_two_at_once(self, run):
        partial = compaction.Partial(run)
        try:
            with pytest.raises(ArchiveError, match="being written by another process"):
                compact(run, "complete")
        finally:
            partial.discard()
        assert live_folder(run).exists()
