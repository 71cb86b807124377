"""The pool that sweeps and probes give their work to: with a worker that begins in a moment."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
from pretend_windows import windows

from landscape import side_by_side
from landscape.curvature.products import free_memory
from landscape.probes.workers.pool import Heard, Work, as_in_a_worker, run_in_workers
from landscape.probes.workers.stopping import Stop

WORKER = """
import os
import signal
import sys
import time

from landscape.probes.workers.process import serve
from landscape.side_by_side import sharers


def ready(setup, speaker, stop):
    print("no line of ours")

    def do(job):
        if job["do"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job["do"] == "wait":
            speaker.tell(waits=True)
            while not stop.asked:
                time.sleep(0.01)
            speaker.tell(done="saved")
            return
        import beside  # lies where whoever gives the work finds it

        speaker.tell(say=f"{setup['greeting']} {len(job['text'])}")
        facts = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
        facts |= {"pid": os.getpid(), "host": sharers("host"), "device": sharers("device"), "text": job["text"]}
        speaker.tell(done=facts, spent=job["do"] == "spend")

    return do


if __name__ == "__main__":
    sys.exit(serve(ready))
"""


class Numbers(Work[int]):
    """Jobs are numbers; what is to be done at each is listed, an attempt after the other."""

    def __init__(self, *todo: list[str], text: str = "") -> None:
        super().__init__("pool_worker", {"greeting": "hello"})
        self.todo, self.text = [list(t) for t in todo], text
        self.done: dict[int, Any] = {}
        self.deaths: list[tuple[int, str, bool, bool]] = []
        self.waits = 0

    def begin(self, job: int) -> dict[str, Any] | None:
        return {"do": self.todo[job].pop(0), "text": self.text} if self.todo[job] else None

    def heard(self, job: int, message: dict[str, Any]) -> Heard:
        self.waits += "waits" in message
        if "done" not in message:
            return "more"
        self.done[job] = message["done"]
        return "spent" if message.get("spent") else "done"

    def died(self, job: int, reason: str, again: bool, stopping: bool) -> None:
        self.deaths.append((job, reason, again, stopping))


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    (tmp_path / "on_path").mkdir()
    (tmp_path / "on_path" / "pool_worker.py").write_text(WORKER)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "beside.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "on_path"))
    monkeypatch.syspath_prepend(str(tmp_path / "beside"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


def go(work: Numbers, workers: int, *, stop: Stop | None = None, gpus: tuple[str, ...] = ()) -> list[str]:
    said: list[str] = []
    run_in_workers(work, range(len(work.todo)), workers, stop=stop or Stop(), say=said.append, gpus=gpus)
    return said


def test_every_job_is_done_by_no_more_processes_than_there_are_jobs():
    # A long line: more than a pipe holds, for who is still importing.
    work = Numbers(*[["tell"]] * 3, text="ä" * 300_000)
    assert go(work, 50) == ["hello 300000"] * 3
    assert sorted(work.done) == [0, 1, 2]
    facts = work.done[0]
    assert len({f["pid"] for f in work.done.values()}) <= 3
    assert (facts["OMP_NUM_THREADS"], facts["CUDA_VISIBLE_DEVICES"]) == ("1", os.environ.get("CUDA_VISIBLE_DEVICES"))
    assert (facts["host"], facts["text"]) == (3, work.text)


def test_gpus_are_taken_in_turn_and_the_users_threads_kept(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    work = Numbers(*[["spend"]] * 3)  # a process for each
    go(work, 1, gpus=("4", "6"))
    assert [work.done[i]["CUDA_VISIBLE_DEVICES"] for i in range(3)] == ["4", "6", "4"]
    assert {f["OMP_NUM_THREADS"] for f in work.done.values()} == {"3"}
    assert len({f["pid"] for f in work.done.values()}) == 3
    work = Numbers(*[["tell"]] * 3)
    go(work, 3, gpus=("4", "6"))
    assert {(f["host"], f["device"]) for f in work.done.values()} == {(3, 2)}


def test_what_dies_is_given_once_more_and_then_given_up():
    work = Numbers(["tell"], ["die", "tell"], ["die", "die", "tell"], [])
    go(work, 2)
    assert sorted(work.done) == [0, 1]
    how = "its process died (SIGKILL) (the system kills so when memory runs out)"
    assert [d for d in work.deaths if d[0] == 1] == [(1, how, True, False)]
    assert [d for d in work.deaths if d[0] == 2] == [(2, how, True, False), (2, f"{how}, 2 times", False, False)]
    assert work.todo == [[], [], ["tell"], []]


@pytest.mark.parametrize("system", [contextlib.nullcontext, windows])
def test_a_stop_lets_those_under_way_save_themselves_and_begins_no_other(system):
    work, stop = Numbers(["wait"], ["wait"], ["tell"]), Stop()

    def ask() -> None:
        until = time.monotonic() + 60
        while work.waits < 2 and time.monotonic() < until:
            time.sleep(0.01)
        stop.ask(signal.SIGTERM)

    thread = threading.Thread(target=ask)
    thread.start()
    with system():
        go(work, 2, stop=stop)
    thread.join()
    assert work.done == {0: "saved", 1: "saved"}
    assert work.deaths == []
    assert work.todo[2] == ["tell"]


def test_an_error_here_ends_the_workers():
    class Failing(Numbers):
        def heard(self, job: int, message: dict[str, Any]) -> Heard:
            if "waits" in message:
                raise OSError("the disk is full")
            return "more"

    started = time.monotonic()
    with pytest.raises(OSError, match="the disk is full"):
        go(Failing(["wait"], ["wait"]), 2)
    assert time.monotonic() - started < 30  # they were told, not waited for


def test_several_processes_share_the_memory(monkeypatch):
    monkeypatch.setattr(side_by_side, "_PROCESSES", {"host": 1, "device": 1})
    alone = free_memory(torch.device("cpu"))
    side_by_side.share_memory(host=4, device=2)
    assert free_memory(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.3)


@pytest.mark.parametrize(("told", "threads"), [(None, 1), ("2", 2), ("3,1", 3), ("many", 1)])
def test_what_workers_will_do_is_timed_with_their_threads(monkeypatch, told, threads):
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    before = torch.get_num_threads()
    with as_in_a_worker():
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before
