"""Following a run: every row once, curves in fixed memory, frames that fit the terminal, an end when the run ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from click.testing import CliRunner
from recorded_training import small, steps
from recorded_world import begin, session

from landscape import open_archive, save_archive
from landscape.archive import follow, live, watching
from landscape.archive.compaction import compact
from landscape.archive.follow import Begun, Follower, Fresh, Happened
from landscape.archive.live import LiveWriter
from landscape.archive.segments import hold, live_folder
from landscape.archive.watching import Curve, Watched
from landscape.cli.main import main
from landscape.errors import ArchiveError
from landscape.probes import Recorder
from landscape.report.textplot import Drawn, Pen, plot, short
from landscape.report.watching import frame, summary

PLAIN = Pen(braille=False)


@contextlib.contextmanager
def child(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process whose output is read, and which does not outlive a failing test."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def polled(follower: Follower) -> list[int]:
    return [step for found in follower.poll() if isinstance(found, Fresh) for step in found.steps.tolist()]


class TestFollowing:
    def test_every_poll_brings_what_is_new(self, tmp_path):
        follower = Follower(tmp_path)
        assert list(follower.poll()) == []
        writer = LiveWriter(tmp_path, {"x": ("a", "b")}, {"session": 0}, flush_seconds=60)
        found = []
        for begin_at in range(0, 50, 10):
            for step in range(begin_at, begin_at + 10):
                writer.append("x", step, (step, 2.0 * step))
            writer.flush()
            fresh = [f for f in follower.poll() if isinstance(f, Fresh)]
            assert [f.names for f in fresh] == [("a", "b")]
            np.testing.assert_array_equal(fresh[0].values[:, 1], 2.0 * fresh[0].steps)
            found += fresh[0].steps.tolist()
            assert list(follower.poll()) == []
        writer.close()
        assert found == list(range(50))

    def test_new_bytes_alone_are_read(self, tmp_path, monkeypatch):
        writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=60)
        for step in range(10_000):
            writer.append("x", step, (1.0,))
        writer.flush()
        follower = Follower(tmp_path)
        list(follower.poll())
        writer.append("x", 10_000, (1.0,))
        writer.close()
        sizes = []
        honest = np.frombuffer
        monkeypatch.setattr(follow.np, "frombuffer", lambda b, *a: sizes.append(len(b)) or honest(b, *a))
        assert polled(follower) == [10_000]
        assert sizes == [live.ROWS.size + 16]

    def test_blocks_larger_than_a_piece_and_torn_ends_wait(self, tmp_path, monkeypatch):
        monkeypatch.setattr(follow, "_PIECE", 256)
        monkeypatch.setattr(live, "MOST_ROWS", 37)
        writer = LiveWriter(tmp_path, {"x": ("a", "b", "c")}, flush_seconds=60)
        for step in range(200):
            writer.append("x", step, (1.0, 2.0, 3.0))
        writer.event({"step": 1, "kind": "start"})
        writer.close()
        data = writer.path.read_bytes()
        follower, found = Follower(tmp_path), []
        for size in (*range(0, len(data), 301), len(data)):
            writer.path.write_bytes(data[:size])
            found += polled(follower)
        assert found == list(range(200))
        assert follower.torn == 0

    def test_segments_follow_each_other(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        follower = Follower(live_folder(path))
        session(path, range(1, 4), events=[{"step": 1, "kind": "start"}])
        assert [f.resumed_at for f in follower.poll() if isinstance(f, Begun)] == [None]
        session(path, range(3, 6), number=1, resumed_at=2, events=[{"step": 3, "kind": "resumed"}])
        found = list(follower.poll())
        assert [f.resumed_at for f in found if isinstance(f, Begun)] == [2]
        assert [e["kind"] for f in found if isinstance(f, Happened) for e in f.events] == ["resumed"]
        losses = [f for f in found if isinstance(f, Fresh) and f.quantity == "loss"]
        assert losses[0].steps.tolist() == [3, 4, 5]
        compact(path, "complete")
        assert list(follower.poll()) == []

    def test_while_a_writer_writes_every_row_comes_once(self, tmp_path):
        writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=0.001)
        follower, found = Follower(tmp_path), []

        def train():
            for step in range(5000):
                writer.append("x", step, (float(step),))
                if step % 100 == 0:
                    time.sleep(0.001)
            writer.close()

        thread = threading.Thread(target=train)
        thread.start()
        while thread.is_alive():
            found += polled(follower)
        thread.join()
        found += polled(follower)
        assert found == list(range(5000))

    def test_memory_is_bounded(self, tmp_path, monkeypatch):
        path = begin(tmp_path / "run.h5")
        monkeypatch.setattr(live, "MOST_ROWS", 1 << 10)
        writer = LiveWriter(live_folder(path), {"loss": tuple(f"{i}" for i in range(50))}, flush_seconds=60)
        row = np.ones(50)
        for step in range(50_000):
            writer.append("loss", step, row)
        writer.close()
        monkeypatch.setattr(follow, "_PIECE", 1 << 20)
        (live_folder(path) / "lock").touch()
        tracemalloc.start()
        try:
            watched = Watched(path)
            watched.refresh()
            assert watched.standing.step == 49_999
            assert tracemalloc.get_traced_memory()[1] < writer.path.stat().st_size / 2
        finally:
            tracemalloc.stop()


class TestCurves:
    def test_bins_hold_the_means_and_the_ends(self, monkeypatch):
        monkeypatch.setattr(watching, "_BINS", 64)
        rng = np.random.default_rng(0)
        values, curve = rng.standard_normal(5000), Curve()
        for start in range(0, 5000, 170):
            curve.extend(np.arange(start, min(start + 170, 5000)), values[start : start + 170])
        steps, means, low, high = curve.points()
        assert 32 <= len(steps) <= 64
        width = 5000 // len(steps) + 1
        width = 1 << (width - 1).bit_length()
        for i in range(len(steps)):
            part = values[i * width : (i + 1) * width]
            np.testing.assert_allclose(means[i], part.mean(), rtol=1e-12, atol=1e-12)
            assert (low[i], high[i]) == (part.min(), part.max())
        assert (curve.last, curve.last_step, curve.bad) == (values[-1], 4999, 0)

    def test_what_is_not_finite_is_counted_or_passed_over(self):
        curve = Curve()
        curve.extend(np.arange(4), np.array([1.0, np.nan, np.inf, -np.inf]))
        assert curve.bad == 2
        assert curve.points()[0].tolist() == [0.0]

    def test_bins_of_many_steps_are_cut_by_their_steps(self, monkeypatch):
        monkeypatch.setattr("landscape.archive.watching._BINS", 8)
        curve = Curve()
        curve.extend(np.arange(16), np.arange(16.0))  # bins of two steps
        curve.cut(7)
        assert curve.points()[0].tolist() == [0.5, 2.5, 4.5, 6.5]

    def test_a_resumed_run_forgets_what_it_goes_over_again(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 41), events=[{"step": 30, "kind": "spike"}])
        again = session(path, range(21, 26), number=1, resumed_at=20)["loss"]
        (live_folder(path) / "lock").unlink()
        watched = Watched(path)
        watched.refresh()
        curve = watched.curve("loss", "loss")
        assert curve is not None
        steps, means, *_ = curve.points()
        assert steps.tolist() == list(range(1, 26))
        np.testing.assert_array_equal(means[20:], np.concatenate(list(again.values())))
        assert watched.standing.step == 25
        assert list(watched.events) == []


class TestStanding:
    def test_running_killed_and_complete(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 41))
        watched = Watched(path)
        lock = hold(live_folder(path))
        assert lock is not None
        standing = watched.refresh()
        assert (standing.status, standing.step, standing.epoch, standing.ended) == ("running", 40, 4, False)
        assert standing.speed == pytest.approx(2.0)
        assert standing.recording / standing.seconds == pytest.approx(0.01)
        os.close(lock)
        assert watched.refresh().status == "killed"
        compact(path, "complete", seconds=20.0, seconds_recording=0.5)
        standing = watched.refresh()
        assert standing.recording == 0.5  # of all of it, as show says, not of its last row
        assert (standing.status, standing.step, standing.ended) == ("complete", 40, True)
        assert watched.refresh() == standing
        assert Watched(path).refresh() == standing

    def test_a_run_resumed_after_it_was_compacted(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 41))
        compact(path, "running")
        session(path, range(31, 61), number=1, resumed_at=30)
        watched = Watched(path)
        watched.refresh()
        curve = watched.curve("loss", "loss")
        assert curve is not None
        assert curve.points()[0].tolist() == list(range(1, 61))

    def test_no_training_no_watching(self, tmp_path):
        from recorded_world import pairs

        save_archive(tmp_path / "probed.h5", [pairs(1.0)])
        with pytest.raises(ArchiveError, match="no record of a training"):
            Watched(tmp_path / "probed.h5")
        with pytest.raises(ArchiveError, match="no archive at"):
            Watched(tmp_path / "none.h5")


class TestPlots:
    def test_a_line_in_ascii(self):
        lines = plot([Drawn(np.arange(5), np.arange(5.0))], 20, 4, PLAIN)
        assert lines == ["       4 |      ..:'", "         |  .:'''   ", "       0 |:''       ", "          0        4"]

    def test_a_line_in_braille(self):
        lines = plot([Drawn(np.array([0, 9]), np.array([1.0, 1.0]))], 20, 4, Pen())
        assert all(len(line) == 20 for line in lines)
        assert {c for line in lines for c in line if "\u2800" < c <= "\u28ff"} <= set("⠒⠤")

    @pytest.mark.parametrize("pen", [Pen(), PLAIN, Pen(colour=True)])
    @pytest.mark.parametrize(
        "values",
        [[], [1.0], [np.nan, 2.0], [0.0, 0.0], [-1e300, 1e300], [1e-300, 1e300], [1.0, np.inf, 3.0], list(range(9999))],
    )
    def test_any_numbers_fit(self, pen, values):
        curves = [Drawn(np.arange(len(values)), np.array(values, dtype=float), dotted=d) for d in (True, False)]
        for width, height in ((15, 2), (40, 6), (100, 11)):
            with np.errstate(over="ignore"):
                lines = plot(curves, width, height, pen)
            assert len(lines) == height
            assert {len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines} == {width}

    def test_a_far_limit_does_not_flatten_the_curve(self):
        curve, limit = Drawn(np.arange(9), np.arange(9.0)), Drawn(np.arange(9), np.full(9, 1e9), dotted=True)
        assert plot([limit, curve], 30, 5, PLAIN) == plot([curve], 30, 5, PLAIN)

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0.0, "0"), (1.0, "1"), (0.123456, "0.1235"), (12345.6, "12346"), (-1e-7, "-1e-7"), (1.5e12, "1.5e12")],
    )
    def test_numbers_are_short(self, value, text):
        assert short(value) == text
        assert len(text) <= 8


class TestFrames:
    @pytest.fixture
    def path(self, tmp_path):
        path = begin(tmp_path / "run.h5", note="a\x1bb")
        events = [
            {"step": 1, "kind": "start", "message": "Net", "seconds": 0.0},
            *[{"step": s, "kind": "skipped_step", "message": "thrown away", "seconds": 1.0} for s in (5, 6)],
            {"step": 9, "kind": "lost_rows", "message": "3 rows could not be written", "seconds": 1.0},
        ]
        session(path, range(1, 41), events=events)
        return path

    def test_of_a_short_run_it_tells_the_seconds_of_recording(self, tmp_path):
        path = begin(tmp_path / "short.h5")
        session(path, range(1, 9))
        watched = Watched(path)
        watched.refresh()
        assert "step 8, 4.0 s, 2 steps/s, recording 0.0 s" in "\n".join(frame(watched, 200, 40, PLAIN))

    def test_what_it_tells(self, path):
        watched = Watched(path)
        watched.refresh()
        text = "\n".join(frame(watched, 200, 40, PLAIN))
        assert "run.h5  killed, step 40, epoch 4, 20 s, 2 steps/s, recording 1.0%" in text
        assert f"nobody writes this run any more; landscape repair {path}" in text
        assert "loss ce, lr 0.1, note a?b" in text
        for title in ("loss", "gradient norm", "lambda_max", "learning rate", "calibration error"):
            assert re.search(rf"(^|  ){title}  \S", text, re.M)
        assert "unstable above" in text
        assert "6  skipped step (2 times)  thrown away" in text
        assert "9  lost rows  3 rows could not be written" in text
        assert "gradient norm" in summary(watched)

    def test_only_losses_of_held_out_data_are_drawn_as_the_loss(self, tmp_path):
        """The loss of a GAN's discriminator stood there as "loss", and was no validation of anything."""
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            for _ in range(3):
                rec.log(d_loss=1.5, g_loss=0.5, **{"val/loss": 2.5})
                steps(model, optimizer, 1, None)
        watched = Watched(tmp_path / "run.h5")
        watched.refresh()
        assert {"loss 2.5", "d_loss 1.5", "g_loss 0.5"} <= set(summary(watched).split(", "))

    @pytest.mark.parametrize("size", [(30, 10), (60, 24), (80, 24), (200, 60)])
    def test_it_fits(self, path, size):
        watched = Watched(path)
        watched.refresh()
        for pen in (PLAIN, Pen(), Pen(colour=True)):
            lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in frame(watched, *size, pen)]
            assert len(lines) <= size[1]
            assert max(map(len, lines)) <= size[0]
            assert any("loss" in line for line in lines)

    def test_a_run_that_has_just_begun(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        watched = Watched(path)
        watched.refresh()
        assert "nothing recorded yet" in "\n".join(frame(watched, 80, 24, PLAIN))


class TestCommand:
    def test_once(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 41))
        for status in ("killed", "complete"):
            done = CliRunner().invoke(main, ["watch", "--once", "--ascii", "--width", "90", str(path)])
            assert done.exit_code == 0, done.output
            assert f"run.h5  {status}, step 40" in done.stdout
            assert done.stdout.isascii()
            if status == "killed":
                compact(path, "complete")

    def test_it_ends_with_the_run(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 11))
        lock = hold(live_folder(path))
        assert lock is not None
        with child("-m", "landscape.cli", "watch", "--every", "0.1", "--width", "80", str(path)) as process:
            assert "running, step 10" in line(process)
            session(path, range(11, 21))
            assert "running, step 20" in line(process)
            compact(path, "complete")
            os.close(lock)
            out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert "run.h5  complete" in out

    def test_ctrl_c_ends_the_watching(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 11))
        lock = hold(live_folder(path))
        assert lock is not None
        try:
            with child("-m", "landscape.cli", "watch", "--every", "0.1", str(path)) as process:
                line(process)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
        finally:
            os.close(lock)
        assert (process.returncode, err) == (0, "")
        assert "running" in out

    def test_repair(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 41), probed=[20], events=[{"step": 1, "kind": "start"}])
        segment = live_folder(path) / "0001.rows"
        segment.write_bytes(segment.read_bytes()[:-5])
        before = len(open_archive(path).history["loss"].steps)
        done = CliRunner().invoke(main, ["repair", str(path)])
        assert done.exit_code == 0, done.output
        assert done.stdout == f"{path}\n"
        assert re.search(rf"loss: {before} rows\n", done.stderr)
        assert "bytes at the end were torn" in done.stderr
        assert "0 events and 1 result of probes went into the archive" in done.stderr
        archive = open_archive(path)
        assert (archive.status, len(archive.history["loss"].steps)) == ("interrupted", before)
        again = CliRunner().invoke(main, ["repair", str(path)])
        assert again.exit_code == 1
        assert "needs no repair" in again.stderr

    def test_repair_after_kill(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        code = (
            "import sys\n"
            "from landscape.archive.live import LiveWriter\n"
            "from landscape.archive.segments import hold, live_folder\n"
            "folder = live_folder(sys.argv[1])\n"
            "w = LiveWriter(folder, {'loss': ('loss',)}, {'session': 0}, flush_seconds=0.01)\n"
            "lock = hold(folder)\n"
            "for step in range(1, 10**9):\n"
            "    w.append('loss', step, (1.0 / step,))\n"
            "    if step % 1000 == 0:\n"
            "        print(step, flush=True)\n"
        )
        with child("-c", code, str(path)) as process:
            for _ in range(20):
                line(process)
            assert CliRunner().invoke(main, ["repair", str(path)]).exit_code == 1
            deadline = time.monotonic() + 30
            while not len(open_archive(path).history["loss"].steps) and time.monotonic() < deadline:
                time.sleep(0.01)
        before = open_archive(path).history["loss"]
        assert len(before.steps) > 0
        np.testing.assert_array_equal(before.values[:, 0], 1.0 / before.steps)
        assert CliRunner().invoke(main, ["repair", str(path)]).exit_code == 0
        np.testing.assert_array_equal(open_archive(path).history["loss"].values, before.values)
