"""Nothing that was recorded is lost, and nothing that goes wrong with recording stops a training."""

from __future__ import annotations

import gc
import os
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recorded_training import small, steps

from landscape import open_archive
from landscape.archive import live
from landscape.archive.compaction import repair
from landscape.archive.segments import live_folder, read_live
from landscape.errors import ArchiveError, MeasurementError
from landscape.probes import (
    CurvatureProbe,
    Found,
    GradientNoise,
    GradientNorms,
    Probe,
    Recorder,
    SurfaceProbe,
    at,
    every,
)
from landscape.probes import sink as probe_sink
from landscape.probes import timing as probe_timing

#: Quantities that default probes record at every step.
EVERY_STEP = ("loss", "time", "gradient_norm", "update_norm", "weight_norm", "update", "learning_rate")

# A training whose numbers are known beforehand: step t has the loss t and the gradient norm t of its one weight.
TRAIN = """
import mmap, os, signal, struct, sys, time, torch
from torch import nn
from landscape.probes import GradientNorms, Recorder
torch.set_num_threads(1)

def counter(path):
    # Memory of a file: what is there outlives a kill, with no flush of ours.
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".count", "wb+") as file:
        file.write(bytes(8))
        file.flush()
        return mmap.mmap(file.fileno(), 8)

def train(path, steps, flush, *resume):
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probes, count = [GradientNorms()], counter(path)
    with Recorder(path, model, optimizer, probes=probes, flush_seconds=float(flush), resume=bool(resume)) as rec:
        if resume:
            rec.load_state_dict({"step": int(resume[0]), "epoch": 0})
        print("ready", os.getpid(), flush=True)
        while rec.step < int(steps):
            t = rec.step + 1
            rec.log(loss=float(t))
            model.weight.grad = torch.full((1, 1), float(t))
            optimizer.step()
            count[:] = struct.pack("q", t)
            time.sleep(0.0005)
    print("done", os.getpid(), flush=True)
"""
# One process that has imported everything, and forks a training for each line: fifty imports would take minutes.
NURSERY = (
    TRAIN
    + """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)  # the first optimizer imports torch._dynamo: a second
for line in sys.stdin:
    if os.fork() == 0:
        train(*line.split())
        os._exit(0)
"""
)
FORGETFUL = """
model = nn.Linear(1, 1, bias=False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
rec = Recorder(sys.argv[1], model, optimizer, probes=[GradientNorms()])
for t in range(5):
    rec.log(loss=float(t))
    optimizer.step()
"""


class Nursery:
    """Starts trainings in processes of their own."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes
        )

    def begin(self, path, steps: int, flush: float, *resume: int) -> int:
        """Start a training, and return its process once it is under way."""
        self.process.stdin.write(" ".join(map(str, (path, steps, flush, *resume))) + "\n")
        self.process.stdin.flush()
        return self.next("ready")

    def next(self, what: str) -> int:
        said, pid = self.process.stdout.readline().split()
        assert said == what
        return int(pid)


@pytest.fixture(scope="module")
def nursery():
    found = Nursery()
    yield found
    found.process.communicate()


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while True:  # its parent reaps it
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.001)


class TestKills:
    @pytest.mark.slow  # half a minute, several on a busy machine
    def test_at_fifty_moments_every_flushed_row_is_there_and_right_and_the_run_resumes(self, tmp_path, nursery):
        # A step sleeps half a millisecond: 100 of them in a flush at most, and three flushes more for a writer that has
        # to wait for its turn on a busy machine.
        rng, flush, most_lost = np.random.default_rng(0), 0.05, 400
        with_rows = 0
        for i in range(50):
            path = tmp_path / f"{i}" / "run.h5"
            pid = nursery.begin(path, 10**9, flush)
            time.sleep(rng.uniform(0.0, 0.8))
            kill(pid)
            done = struct.unpack("q", Path(f"{path}.count").read_bytes())[0]
            archive = open_archive(path)
            assert (archive.status, archive.alive) == ("running", False)
            h = archive.history
            rows = len(h["loss"].steps) if "loss" in h else 0
            assert done - most_lost <= rows <= done + 1
            if not rows:
                continue
            with_rows += 1
            np.testing.assert_array_equal(h["loss"].steps, np.arange(1, rows + 1))
            np.testing.assert_array_equal(h["loss"].column("loss"), np.arange(1, rows + 1))
            norms = h["gradient_norm"]
            np.testing.assert_array_equal(norms.column("global"), norms.steps)
            np.testing.assert_array_equal(norms.steps, np.arange(1, len(norms.steps) + 1))
            assert done - most_lost <= len(norms.steps) <= done + 1
            if i % 5 == 0:
                nursery.begin(path, rows + 20, flush, rows - 1)
                nursery.next("done")
                h = open_archive(path).history
                assert h["loss"].superseded.sum() == 1
                np.testing.assert_array_equal(h.current()["loss"].column("loss"), np.arange(1, rows + 21))
                assert open_archive(path).status == "complete"
            else:
                repair(path)
                repaired = open_archive(path)
                assert repaired.status == "interrupted"
                np.testing.assert_array_equal(repaired.history["loss"].values, h["loss"].values)
        assert with_rows > 25

    def test_nothing_before_the_last_flush_is_missing(self, tmp_path, nursery):
        pid = nursery.begin(tmp_path / "run.h5", 10**9, 0.1)
        seen = []
        for _ in range(3):
            time.sleep(0.5)
            archive = open_archive(tmp_path / "run.h5")
            assert archive.alive
            seen.append(len(archive.history["loss"].steps))
        kill(pid)
        seen.append(len(open_archive(tmp_path / "run.h5").history["loss"].steps))
        assert 0 < seen[0] < seen[1] < seen[2] <= seen[3]


class TestEnds:
    def test_an_exception_is_archived_and_goes_on(self, tmp_path):
        model, optimizer = small()

        def train() -> None:
            with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
                steps(model, optimizer, 3, rec)
                raise ZeroDivisionError("of all things")

        with pytest.raises(ZeroDivisionError):
            train()
        archive = open_archive(tmp_path / "run.h5")
        assert archive.status == "failed"
        assert [e.message for e in archive.history.events if e.kind == "failed"] == ["ZeroDivisionError: of all things"]
        assert len(archive.history["loss"].steps) == 3

    def test_ctrl_c_is_interrupted(self, tmp_path):
        model, optimizer = small()

        def train() -> None:
            with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
                steps(model, optimizer, 3, rec)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train()
        assert open_archive(tmp_path / "run.h5").status == "interrupted"

    def test_a_loop_without_with_that_forgets_to_close(self, tmp_path):
        command = [sys.executable, "-c", TRAIN + FORGETFUL, str(tmp_path / "run.h5")]
        subprocess.run(command, check=True, timeout=120)
        archive = open_archive(tmp_path / "run.h5")
        assert archive.status == "interrupted"
        assert len(archive.history["loss"].steps) == 5

    def test_one_that_was_made_for_a_loop_that_never_began_leaves_nothing(self, tmp_path):
        command = [sys.executable, "-c", TRAIN + FORGETFUL.partition("for t in")[0], str(tmp_path / "run.h5")]
        subprocess.run(command, check=True, timeout=120)
        assert list(tmp_path.iterdir()) == []

    def test_one_that_nobody_holds_before_its_loop_began_leaves_nothing(self, tmp_path):
        model, optimizer = small()
        rec = Recorder(tmp_path / "run.h5", model, optimizer)
        assert open_archive(tmp_path / "run.h5").status == "running"
        del rec, model, optimizer
        gc.collect()
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("killed", [False, True])
    def test_one_that_would_have_gone_on_leaves_the_run_as_it_was(self, tmp_path, killed):
        path = tmp_path / "run.h5"
        model, optimizer = small()
        rec = Recorder(path, model, optimizer)
        steps(model, optimizer, 3, rec)
        if killed:
            rec.flush()
            rec._recording.detach()
            rec._sink.close()
            rec._opened.release()
        else:
            rec.close("failed")
        before = sorted(p.name for p in tmp_path.iterdir())
        del rec, model, optimizer
        gc.collect()
        model, optimizer = small()
        rec = Recorder(path, model, optimizer, resume=True)
        assert open_archive(path).status == "running"
        del rec, model, optimizer
        gc.collect()
        assert open_archive(path).status == ("running" if killed else "failed")
        assert len(open_archive(path).history["loss"].steps) == 3
        assert sorted(p.name for p in tmp_path.iterdir()) == before

    def test_a_probe_that_can_not_be_attached_leaves_nothing(self, tmp_path, monkeypatch):
        def fail(*args: object) -> None:
            raise RuntimeError("no hook for you")

        model, optimizer = small()
        monkeypatch.setattr(optimizer, "register_step_pre_hook", fail)
        with pytest.raises(RuntimeError, match="no hook"):
            Recorder(tmp_path / "run.h5", model, optimizer)
        assert list(tmp_path.iterdir()) == []

    def test_a_recorder_that_never_saw_a_step(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer):
            pass
        archive = open_archive(tmp_path / "run.h5")
        assert (archive.status, archive.attributes["steps"]) == ("complete", 0)


class TestResuming:
    def test_goes_on_from_a_checkpoint_and_keeps_what_it_overtakes(self, tmp_path):
        path = tmp_path / "run.h5"
        model, optimizer = small()
        with Recorder(path, model, optimizer, checkpoints=at([20])) as rec:
            steps(model, optimizer, 30, rec)
        saved = torch.load(tmp_path / "step-00000020.pt", weights_only=True)
        model, optimizer = small()
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        with Recorder(path, model, optimizer, resume=True) as rec:
            rec.load_state_dict(saved["landscape"]["facts"]["recorder"])
            assert rec.step == 20
            steps(model, optimizer, 20, rec, seed=9)
        archive = open_archive(path)
        assert archive.attributes["sessions"] == 2
        loss = archive.history["loss"]
        assert (len(loss.steps), int(loss.superseded.sum())) == (50, 10)
        np.testing.assert_array_equal(archive.history.current()["loss"].steps, np.arange(1, 41))
        assert [e.step for e in archive.history.events if e.kind == "resumed"] == [20]

    def test_a_checkpoint_never_is_ahead_of_the_rows_that_lie_on_disk(self, tmp_path):
        # A run killed right behind its checkpoint goes on from it: rows that still waited would be missing for good.
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer, flush_seconds=1e6) as rec:
            steps(model, optimizer, 5, rec)
            state = rec.state_dict()
            killed = open_archive(tmp_path / "run.h5").history
            assert state["step"] == 5
            for name in EVERY_STEP:
                np.testing.assert_array_equal(killed[name].steps, np.arange(1, 6))
        assert rec.state_dict()["step"] == 5  # of a recorder that is closed, too

    def test_without_a_checkpoint_it_goes_on_from_the_last_row(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 4, rec)
            rec.end_epoch()
        with Recorder(tmp_path / "run.h5", model, optimizer, resume=True) as rec:
            assert (rec.step, rec.epoch) == (4, 1)
            steps(model, optimizer, 2, rec)
        np.testing.assert_array_equal(open_archive(tmp_path / "run.h5").history["loss"].steps, np.arange(1, 7))

    def test_where_nothing_is_there_it_begins(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer, resume=True) as rec:
            steps(model, optimizer, 2, rec)
        assert open_archive(tmp_path / "run.h5").status == "complete"

    def test_a_resumed_run_decides_as_it_did_where_a_budget_ruled(self, tmp_path, monkeypatch):
        clock = [0.0]  # seconds of a machine where a step takes 4 ms and the probe 10.1, however busy the true one is
        for module in (probe_timing, probe_sink):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

        class Slow(Probe):
            name, expensive, when = "slow", True, every(steps=1, budget=0.5)

            def __init__(self):
                self.at: list[int] = []

            def measure(self, run, now):
                self.at.append(now.step)
                clock[0] += 0.0101
                return Found()

        def train(rec, n: int, seconds: float) -> None:
            for _ in range(n):
                steps(model, optimizer, 1, rec)
                clock[0] += seconds

        path = tmp_path / "run.h5"
        model, optimizer = small()
        first, alone = Slow(), Slow()
        with Recorder(path, model, optimizer, probes=[first]) as rec:
            train(rec, 30, 0.004)
        # The first at once; then where as much again keeps within half of the time so far.
        expected, spent, elapsed = [], 0.0, 0.0
        for step in range(31):
            if not expected or spent + 0.0101 <= 0.5 * elapsed:
                expected.append(step)
                spent, elapsed = spent + 0.0101, elapsed + 0.0101
            elapsed += 0.004 * (step > 0)
        assert first.at == expected
        assert 3 < len(expected) < 30  # some were left out
        again = Slow()
        with Recorder(path, model, optimizer, probes=[again], resume=True) as rec:
            rec.load_state_dict({"step": 10, "epoch": 0})
            train(rec, 20, 0.001)
        assert again.at == [s for s in expected if s > 10]
        # Undecided, the same steps at that speed would have been measured otherwise.
        with Recorder(tmp_path / "other.h5", model, optimizer, probes=[alone]) as rec:
            train(rec, 30, 0.001)
        assert [s for s in alone.at if s > 10] != again.at


class TestTroubleWithTheDisk:
    def test_a_full_disk_is_reported_once_and_counted_and_training_goes_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(live, "MOST_WAITING", 0)
        model, optimizer = small()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        rec = Recorder(tmp_path / "run.h5", model, optimizer, flush_seconds=60)
        steps(model, optimizer, 20, rec)
        rec._sink.flush()
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            size = max(p.stat().st_size for p in live_folder(tmp_path / "run.h5").glob("*.rows"))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
            steps(model, optimizer, 20, rec)
            rec._sink.flush()
            with pytest.warns(RuntimeWarning, match="training goes on"):
                steps(model, optimizer, 20, rec)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                steps(model, optimizer, 5, rec)  # said once
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        rec._sink.flush()
        steps(model, optimizer, 5, rec)
        with pytest.warns(RuntimeWarning, match="could not be written"):
            rec.close()
        archive = open_archive(tmp_path / "run.h5")
        assert archive.attributes["lost_rows"] > 0
        found = archive.history["loss"].steps
        np.testing.assert_array_equal(found[:20], np.arange(1, 21))
        assert found[-1] == 70
        assert [e.kind for e in archive.history.events if e.kind == "lost_rows"]

    def test_a_full_disk_at_the_end_leaves_the_segments(self, tmp_path, monkeypatch):
        model, optimizer = small()

        def full(path, size):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("landscape.archive.compaction.reserve", full)
        with (
            pytest.warns(RuntimeWarning, match=r"No space left.*landscape repair"),
            Recorder(tmp_path / "run.h5", model, optimizer) as rec,
        ):
            steps(model, optimizer, 5, rec)
        monkeypatch.undo()
        assert len(open_archive(tmp_path / "run.h5").history["loss"].steps) == 5
        repair(tmp_path / "run.h5")
        assert not live_folder(tmp_path / "run.h5").exists()
        assert len(open_archive(tmp_path / "run.h5").history["loss"].steps) == 5

    def test_a_folder_that_is_deleted_on_the_way(self, tmp_path):
        import shutil

        model, optimizer = small()
        rec = Recorder(tmp_path / "a" / "run.h5", model, optimizer, flush_seconds=60)
        steps(model, optimizer, 5, rec)
        rec._sink.flush()
        shutil.rmtree(tmp_path / "a")
        steps(model, optimizer, 5, rec)
        rec._sink.flush()
        with pytest.warns(RuntimeWarning):
            rec.close()
        assert len(open_archive_beside(tmp_path / "a" / "run.h5")) == 5

    def test_a_folder_that_can_not_be_written_is_said_before_training(self, tmp_path):
        model, optimizer = small()
        (tmp_path / "file").write_text("")
        with pytest.raises(ArchiveError, match="cannot be written"):
            Recorder(tmp_path / "file" / "run.h5", model, optimizer)
        with Recorder(tmp_path / "run.h5", model, optimizer):
            pass  # and the model is free for another recorder

    def test_where_locks_are_refused_it_goes_on_without(self, tmp_path, monkeypatch):
        import errno
        import fcntl

        def refused(fd, how):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refused)
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 5, rec)
        assert len(open_archive(tmp_path / "run.h5").history["loss"].steps) == 5


def open_archive_beside(path: Path) -> np.ndarray:
    from landscape.archive.joining import read_history

    return read_history(path)["loss"].steps


class TestBadInput:
    def test_a_probe_that_raises_is_switched_off_and_said_once(self, tmp_path):
        class Bad(Probe):
            name = "bad"

            def on_gradients(self, run, step):
                if step.number == 3:
                    raise RuntimeError("no more")

        model, optimizer = small()
        with (
            pytest.warns(RuntimeWarning, match="'bad' failed and is switched off.*no more") as said,
            Recorder(tmp_path / "run.h5", model, optimizer, probes=[Bad(), GradientNorms()]) as rec,
        ):
            steps(model, optimizer, 6, rec)
        assert len(said) == 1
        h = open_archive(tmp_path / "run.h5").history
        assert [(e.step, e.message) for e in h.events if e.kind == "probe_failed"] == [
            (2, "bad: RuntimeError: no more")
        ]
        assert len(h["gradient_norm"].steps) == 6

    @pytest.mark.parametrize("probe", [CurvatureProbe(), SurfaceProbe(), GradientNoise(source="samples")])
    def test_a_probe_that_needs_a_task_says_so_and_training_goes_on(self, tmp_path, probe):
        model, optimizer = small()
        with (
            pytest.warns(RuntimeWarning, match="task="),
            Recorder(tmp_path / "run.h5", model, optimizer, probes=[probe]) as rec,
        ):
            steps(model, optimizer, 2, rec)

    def test_an_optimizer_of_other_parameters(self, tmp_path):
        model, _ = small()
        with pytest.raises(MeasurementError, match="none of them the model's"):
            Recorder(tmp_path / "run.h5", model, small()[1])
        assert not (tmp_path / "run.h5").exists()

    def test_two_recorders_on_one_model(self, tmp_path):
        model, optimizer = small()
        with (
            Recorder(tmp_path / "a.h5", model, optimizer),
            pytest.raises(MeasurementError, match="has a recorder already"),
        ):
            Recorder(tmp_path / "b.h5", model, optimizer)

    def test_an_archive_that_exists(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 3, rec)
        with pytest.raises(ArchiveError, match="resume=True"):
            Recorder(tmp_path / "run.h5", model, optimizer)
        with Recorder(tmp_path / "run.h5", model, optimizer, force=True) as rec:
            steps(model, optimizer, 2, rec)
        assert len(open_archive(tmp_path / "run.h5").history["loss"].steps) == 2

    def test_an_archive_in_use_by_another_process(self, tmp_path, nursery):
        pid = nursery.begin(tmp_path / "run.h5", 10**9, 0.1)
        model, optimizer = small()
        for options in ({"force": True}, {"resume": True}):
            with pytest.raises(ArchiveError, match="being written by another recorder"):
                Recorder(tmp_path / "run.h5", model, optimizer, **options)
        kill(pid)

    def test_what_is_no_optimizer_or_no_probe(self, tmp_path):
        model, optimizer = small()
        with pytest.raises(TypeError, match=r"torch.optim.Optimizer"):
            Recorder(tmp_path / "run.h5", model, "sgd")
        with pytest.raises(TypeError, match=r"make one: GradientNorms\(\)"):
            Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms])
        with pytest.raises(MeasurementError, match="two probes are called 'gradients'"):
            Recorder(tmp_path / "run.h5", model, optimizer, probes=[GradientNorms(), GradientNorms()])

    def test_a_state_that_comes_too_late(self, tmp_path):
        model, optimizer = small()
        with Recorder(tmp_path / "run.h5", model, optimizer) as rec:
            steps(model, optimizer, 1, rec)
            with pytest.raises(MeasurementError, match="before the first step"):
                rec.load_state_dict({"step": 0, "epoch": 0})


class TestWhatWaitsIsLittleAndNotForLong:
    def test_each_quantity_is_on_disk_within_the_flush_interval_and_little_waits(self, tmp_path):
        """Rows of one step are written in a block for each quantity: none of these may lag behind the others."""
        interval = 0.2
        model, optimizer = small()
        rec = Recorder(tmp_path / "run.h5", model, optimizer, flush_seconds=interval)
        taken: list[float] = [time.monotonic()]  # when step i + 1 was taken
        lags, spreads, waiting = [], [], []
        steps(model, optimizer, 1, rec)
        with rec:
            end, look = time.monotonic() + 2.0, 0.0
            while (now := time.monotonic()) < end:
                taken.append(now)
                steps(model, optimizer, 1, rec)
                writer = rec._sink._writer
                waiting.append(max(len(queue.rows) for queue in writer._waiting.values()))
                if now > look and rec.step > 1 and now > taken[0] + 2 * interval:
                    look = now + 0.1
                    begun = time.monotonic()
                    h, _ = read_live(live_folder(tmp_path / "run.h5"))
                    last = [int(h[name].steps[-1]) for name in EVERY_STEP]
                    when = [*taken, begun]  # when[i] is when step i + 1 was taken; the last: nothing is missing
                    lags.append(begun - when[min(last)])
                    spreads.append(when[max(last)] - when[min(last)])
        assert len(lags) >= 5
        # A block is written when the thread gets its turn: the interval, and what a busy machine adds.
        assert sorted(lags)[len(lags) // 2] < interval + 0.3
        assert sorted(spreads)[len(spreads) // 2] < 0.3
        # What waits is what an interval brings, not what the run has brought.
        rate = len(waiting) / 2.0
        assert sorted(waiting)[-len(waiting) // 20] < rate * (interval + 0.6)
        h = open_archive(tmp_path / "run.h5").history
        for name in EVERY_STEP:
            assert h[name].steps.tolist() == list(range(1, rec.step + 1))
