"""Rows of a run while it goes on: read back bit for bit, after kills, full disks, deletions and resumes."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest

from landscape.archive import live, segments
from landscape.archive.live import LiveWriter
from landscape.archive.segments import live_folder, read_live, read_segment
from landscape.errors import ArchiveError

COLUMNS = {"gradient_norm": ("a", "b", "c"), "loss": ("train",)}


def write(folder, steps: range, seed: int = 0, facts=None, columns=None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write random rows and return them."""
    columns = columns or COLUMNS
    rng = np.random.default_rng(seed)
    given = {q: rng.standard_normal((len(steps), len(names))) for q, names in columns.items()}
    writer = LiveWriter(folder, columns, facts, flush_seconds=60)
    for i, step in enumerate(steps):
        for q, values in given.items():
            writer.append(q, step, values[i])
    writer.close()
    assert (writer.lost, writer.problem) == (0, None)
    return {q: (np.array(steps), values) for q, values in given.items()}


class TestResumed:
    def test_a_run_begun_again_at_0_overtakes_the_first_step_too(self, tmp_path):
        """From a later step the row of that step stands: it was recorded before the run went on."""
        write(tmp_path, range(6))
        write(tmp_path, range(4, 8), facts={"resumed_at": 3})
        assert read_live(tmp_path)[0]["loss"].superseded.tolist() == [False] * 4 + [True] * 2 + [False] * 4
        write(tmp_path, range(2), facts={"resumed_at": 0})
        assert read_live(tmp_path)[0]["loss"].superseded.tolist() == [True] * 10 + [False] * 2

    def test_each_optimizer_is_overtaken_by_its_own_steps(self, tmp_path):
        columns = {"gradient_norm": ("all",), "gradient_norm.critic": ("all",)}
        write(tmp_path, range(6), columns=columns)
        write(tmp_path, range(6), columns=columns, facts={"resumed_at": 4, "resumed_by": {"": 4, ".critic": 2}})
        rows, _ = read_live(tmp_path)
        assert rows["gradient_norm"].superseded[:6].tolist() == [False] * 5 + [True]
        assert rows["gradient_norm.critic"].superseded[:6].tolist() == [False] * 3 + [True] * 3


class TestRoundTrip:
    def test_every_bit_comes_back(self, tmp_path):
        given = write(tmp_path, range(1000), facts={"seed": 3})
        rows, (segment,) = read_live(tmp_path)
        for q, (steps, values) in given.items():
            assert rows[q].names == COLUMNS[q]
            np.testing.assert_array_equal(rows[q].steps, steps)
            np.testing.assert_array_equal(rows[q].values, values)
        assert segment.facts == {"seed": 3}
        assert segment.torn == 0

    def test_what_is_not_finite_is_kept(self, tmp_path):
        writer = LiveWriter(tmp_path, {"x": ("a", "b")})
        writer.append("x", 7, [np.nan, -np.inf])
        writer.close()
        np.testing.assert_array_equal(read_live(tmp_path)[0]["x"].values, [[np.nan, -np.inf]])

    def test_more_rows_than_a_block_holds(self, tmp_path, monkeypatch):
        monkeypatch.setattr(live, "MOST_ROWS", 7)
        given = write(tmp_path, range(50))
        np.testing.assert_array_equal(read_live(tmp_path)[0]["loss"].values, given["loss"][1])

    def test_little_more_than_the_numbers_is_written(self, tmp_path):
        names = tuple(f"layer{i}" for i in range(200))
        writer = LiveWriter(tmp_path, {"x": names})
        for step in range(2000):
            writer.append("x", step, np.full(200, float(step)))
        writer.close()
        assert writer.path.stat().st_size <= 1.02 * 2000 * 200 * 8


class TestResuming:
    def test_rows_that_a_resume_overtakes_are_kept_as_superseded(self, tmp_path):
        first = write(tmp_path, range(100))
        second = write(tmp_path, range(60, 120), seed=1, facts={"resumed_at": 59})
        rows, segments = read_live(tmp_path)
        assert [s.path.name for s in segments] == ["0001.rows", "0002.rows"]
        loss = rows["loss"]
        assert loss.superseded.sum() == 40
        current = loss.current()
        np.testing.assert_array_equal(current.steps, np.arange(120))
        np.testing.assert_array_equal(current.values[:60], first["loss"][1][:60])
        np.testing.assert_array_equal(current.values[60:], second["loss"][1])

    def test_new_names_are_a_new_segment_and_missing_ones_nan(self, tmp_path):
        first = write(tmp_path, range(3), columns={"x": ("a", "b")})
        second = write(tmp_path, range(3, 5), columns={"x": ("b", "new"), "y": ("z",)})
        rows, _ = read_live(tmp_path)
        assert rows["x"].names == ("a", "b", "new")
        np.testing.assert_array_equal(rows["x"].values[:3, :2], first["x"][1])
        assert np.isnan(rows["x"].values[:3, 2]).all()
        np.testing.assert_array_equal(rows["x"].values[3:, 1:], second["x"][1])
        assert np.isnan(rows["x"].values[3:, 0]).all()
        np.testing.assert_array_equal(rows["y"].steps, [3, 4])


class TestWhateverHappens:
    def four_blocks(self, folder, monkeypatch):
        """Return 20 rows of x, the bytes of their segment, where its blocks begin, and the size of each of the four."""
        monkeypatch.setattr(live, "MOST_ROWS", 5)
        given = write(folder / "whole", range(20), columns={"x": ("a", "b")})["x"][1]
        data = (folder / "whole" / "0001.rows").read_bytes()
        block = segments.ROWS.size + 5 * 8 * 3
        return given, data, len(data) - 4 * block, block

    def test_a_file_cut_anywhere_gives_its_whole_blocks(self, tmp_path, monkeypatch):
        given, data, begin, block = self.four_blocks(tmp_path, monkeypatch)
        for size in range(len(data)):
            (tmp_path / "cut.rows").write_bytes(data[:size])
            if size < begin:
                with pytest.raises(ArchiveError, match=r"no segment|never finished"):
                    read_segment(tmp_path / "cut.rows")
                continue
            found = read_segment(tmp_path / "cut.rows")
            count = 5 * ((size - begin) // block)
            np.testing.assert_array_equal(found.values["x"], given[:count])
            assert found.torn == (size - begin) % block

    def test_a_damaged_block_in_the_middle_loses_its_rows_alone_and_is_said(self, tmp_path, monkeypatch):
        given, whole, begin, block = self.four_blocks(tmp_path, monkeypatch)
        for place in range(begin + block, begin + 2 * block):  # every byte of the second block, its head included
            data = bytearray(whole)
            data[place] ^= 0x40
            (tmp_path / "bad.rows").write_bytes(data)
            found = read_segment(tmp_path / "bad.rows")
            np.testing.assert_array_equal(found.steps["x"], [0, 1, 2, 3, 4, *range(10, 20)])
            np.testing.assert_array_equal(found.values["x"], np.delete(given, np.s_[5:10], axis=0))
            (event,) = found.events
            assert (event["kind"], event["step"], found.torn) == ("lost_rows", 4, 0)
            assert "bad.rows is damaged" in event["message"]
        assert event["message"].startswith("5 rows of x are lost")

    def test_a_damaged_header_is_read_from_its_copy(self, tmp_path):
        given = write(tmp_path / "whole", range(3), columns={"x": ("a", "b")})["x"][1]
        whole = (tmp_path / "whole" / "0001.rows").read_bytes()
        header = whole.index(segments.MAGIC, 1)
        for place in range(2 * header):
            data = bytearray(whole)
            data[place] ^= 1
            (tmp_path / "bad.rows").write_bytes(data)
            found = read_segment(tmp_path / "bad.rows")
            assert found.columns["x"] == ("a", "b")
            np.testing.assert_array_equal(found.values["x"], given)

    def test_segments_of_earlier_versions_are_read(self, tmp_path):
        header = json.dumps({"columns": {"x": ["a"]}, "facts": {}, "id": "1"}).encode()
        blocks = []
        for rows in ([1, 2], [3]):
            payload = np.array(rows, "<i8").tobytes() + np.array(rows, "<f8").tobytes()
            blocks.append(struct.pack("<4sHIII", b"LSBK", 0, len(rows), len(payload), zlib.crc32(payload)) + payload)
        path = tmp_path / "0001.rows"
        path.write_bytes(struct.pack("<8sI", b"LSROWS1\n", len(header)) + header + b"".join(blocks))
        np.testing.assert_array_equal(read_segment(path).values["x"][:, 0], [1, 2, 3])
        path.write_bytes(path.read_bytes().replace(np.float64(2).tobytes(), np.float64(3).tobytes()))
        np.testing.assert_array_equal(read_segment(path).values["x"][:, 0], [3])

    def test_a_last_block_of_the_right_length_with_wrong_bytes_is_torn(self, tmp_path):
        write(tmp_path, range(5), columns={"x": ("a",)})
        path = tmp_path / "0001.rows"
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(data)
        assert len(read_segment(path).steps["x"]) == 0
        assert read_segment(path).torn > 0

    def test_killed_at_a_random_moment_nothing_flushed_is_missing(self, tmp_path):
        code = (
            "import sys, time\n"
            "from landscape.archive.live import LiveWriter\n"
            "w = LiveWriter(sys.argv[1], {'x': ('a', 'b')}, flush_seconds=0.02)\n"
            "for step in range(10**9):\n"
            "    w.append('x', step, [step, 2.0 * step])\n"
            "    if step % 50 == 0:\n"
            "        time.sleep(0.001)\n"
            "        print(step, flush=True)\n"
        )
        rng = np.random.default_rng(0)
        for turn in range(5):
            folder = tmp_path / str(turn)
            command = [sys.executable, "-c", code, str(folder)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                child.stdout.readline()
                time.sleep(0.2 + 0.3 * rng.random())
                child.send_signal(signal.SIGKILL)
                rest = child.stdout.read().split()
            x = read_live(folder)[0]["x"]
            np.testing.assert_array_equal(x.steps, np.arange(len(x.steps)))
            np.testing.assert_array_equal(x.values[:, 1], 2.0 * x.steps)
            # The flush interval is 20 ms; a busy machine may run the thread later: a second is far on the safe side.
            assert len(x.steps) > 0
            assert int(rest[-1]) - len(x.steps) < 50_000

    @pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
    def test_a_full_disk_is_a_problem_in_words_and_loses_nothing_once_there_is_room(self, tmp_path):
        code = (
            "import resource, signal, sys\n"
            "from landscape.archive.live import LiveWriter\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "w = LiveWriter(sys.argv[1], {'x': ('a',)}, flush_seconds=60)\n"
            "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))\n"
            "for step in range(1000):\n"
            "    w.append('x', step, [float(step)])\n"
            "    if step % 10 == 0:\n"
            "        w.flush()\n"
            "print(w.problem)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))\n"
            "w.close()\n"
            "print(w.problem, w.lost)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
        during, after = done.stdout.splitlines()
        assert "may not grow further" in during
        assert after == "None 0"
        np.testing.assert_array_equal(read_live(tmp_path)[0]["x"].values[:, 0], np.arange(1000.0))

    def test_what_waits_too_long_is_given_up_oldest_first_and_counted(self, tmp_path, monkeypatch):
        monkeypatch.setattr(live, "MOST_WAITING", 1000)
        writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=60)

        def full(file, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(live, "_write_all", full)
        for step in range(200):
            writer.append("x", step, [1.0])
            if step % 10 == 9:
                writer.flush()
        assert writer.problem is not None
        assert "disk is full" in writer.problem
        monkeypatch.undo()
        writer.close()
        kept = read_live(tmp_path)[0]["x"].steps
        assert writer.lost + len(kept) == 200
        assert writer.lost > 0
        np.testing.assert_array_equal(kept, np.arange(writer.lost, 200))

    def test_a_deleted_file_goes_on_in_a_new_one_and_counts_what_was_lost(self, tmp_path):
        writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=60)
        writer.append("x", 0, [0.0])
        writer.flush()
        os.unlink(writer.path)
        writer.append("x", 1, [1.0])
        writer.close()
        assert writer.lost == 1
        np.testing.assert_array_equal(read_live(tmp_path)[0]["x"].steps, [1])

    def test_a_torn_block_that_stays_hides_nothing_behind_it(self, tmp_path, monkeypatch):
        writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=60)
        writer.append("x", 0, [0.0])
        writer.flush()
        honest = live._write_all

        def torn(file, data):
            honest(file, data[:30])
            raise OSError(5, "Input/output error")

        def refuse(*_):
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as m:
            m.setattr(live, "_write_all", torn)
            m.setattr(live.os, "ftruncate", refuse)
            writer.append("x", 1, [1.0])
            writer.flush()
        writer.append("x", 2, [2.0])
        writer.close()
        assert (writer.lost, writer.problem) == (0, None)
        rows, segments = read_live(tmp_path)
        assert rows["x"].values[:, 0].tolist() == [0.0, 1.0, 2.0]
        assert [s.torn > 0 for s in segments] == [True, False]

    def test_no_row_falls_between_two_threads(self, tmp_path):
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        try:
            writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=0)
            for step in range(20_000):
                writer.append("x", step, (float(step),))
            writer.close()
        finally:
            sys.setswitchinterval(before)
        np.testing.assert_array_equal(read_live(tmp_path)[0]["x"].steps, np.arange(20_000))

    def test_a_training_that_outruns_the_writer_waits_and_loses_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(live, "MOST_ROWS", 8)
        monkeypatch.setattr(live, "MOST_AHEAD", 1)
        writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=60)
        most = 0
        for step in range(5000):
            writer.append("x", step, (1.0,))
            most = max(most, len(writer._waiting["x"].rows))
        writer.close()
        assert most <= 16
        assert writer.lost == 0
        np.testing.assert_array_equal(read_live(tmp_path)[0]["x"].steps, np.arange(5000))

    def test_a_disk_that_hangs_stops_a_training_once_and_rows_are_counted(self, tmp_path, monkeypatch):
        monkeypatch.setattr(live, "MOST_ROWS", 8)
        monkeypatch.setattr(live, "MOST_AHEAD", 1)
        monkeypatch.setattr(live, "PATIENCE", 0.2)
        writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=60)
        honest, back = live._write_all, threading.Event()
        monkeypatch.setattr(live, "_write_all", lambda *a: back.wait(60) and honest(*a))
        begun = time.perf_counter()
        for step in range(500):
            writer.append("x", step, (1.0,))
        assert time.perf_counter() - begun < 10
        assert len(writer._waiting["x"].rows) <= 16
        back.set()
        writer.close()
        kept = read_live(tmp_path)[0]["x"].steps
        assert writer.lost > 0
        assert writer.lost + len(kept) == 500

    def test_rows_of_the_wrong_width_are_lost_alone(self, tmp_path):
        writer = LiveWriter(tmp_path, {"x": ("a", "b"), "y": ("c",)}, flush_seconds=60)
        writer.append("x", 0, [1.0])
        writer.append("y", 0, [2.0])
        writer.flush()
        writer.append("x", 1, [1.0, 2.0])
        writer.append("x", 2, [1.0])
        writer.append("x", 3, "text")
        writer.append("none", 3, [1.0])
        writer.close()
        assert writer.lost == 4
        rows, _ = read_live(tmp_path)
        assert rows["x"].steps.tolist() == [1]
        assert rows["y"].steps.tolist() == [0]

    def test_a_reader_follows_a_writer(self, tmp_path):
        writer = LiveWriter(tmp_path, {"x": ("a",)}, flush_seconds=0.005)
        done = threading.Event()

        def train():
            for step in range(3000):
                writer.append("x", step, [float(step)])
                if step % 100 == 0:
                    time.sleep(0.002)
            done.set()

        thread = threading.Thread(target=train)
        thread.start()
        while not done.is_set():
            x = read_live(tmp_path)[0]["x"]
            np.testing.assert_array_equal(x.values[:, 0], np.arange(len(x.steps)))
        thread.join()
        writer.close()
        assert len(read_live(tmp_path)[0]["x"].steps) == 3000


class TestBadInput:
    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(ArchiveError, match="can't write"):
            LiveWriter(tmp_path / "file" / "run.h5.live", {"x": ("a",)})

    def test_nothing_to_read(self, tmp_path):
        with pytest.raises(ArchiveError, match="holds no rows of a run"):
            read_live(tmp_path)
        (tmp_path / "0001.rows").write_bytes(b"something else")
        with pytest.raises(ArchiveError, match="is no segment of a run"):
            read_live(tmp_path)

    def test_where_the_segments_lie(self):
        assert str(live_folder("runs/a.h5")) == os.path.join("runs", "a.h5.live")
