"""`landscape probe --workers` as processes run it: in parallel, killed, stopped, gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world
from test_probe_several import same

from landscape import open_archive, save_checkpoint
from landscape.errors import ArchiveError

pytestmark = pytest.mark.slow  # a process needs seconds to begin

#: A task whose every pass takes longer where SLOW is set, and a measurement that kills its process, or prints.
TASKS = """
import os
import signal
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from landscape import Result, Task, array, measurement, task


@task
def slow():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

    def forward(model, batch):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return model(batch[0]), batch[1]

    return Task(model, nn.CrossEntropyLoss(), (x, y), (x[:60], y[:60]), forward=forward, name="slow")


@dataclass(frozen=True, kw_only=True)
class Sum(Result, kind="sum_of_weights"):
    value: float = array(doc="of the first tensor")


@measurement("sum_of_weights", default=False, order=90)
def sum_of_weights(task, *, seed=0, progress=False) -> Sum:
    value = float(next(task.model.parameters()).detach().sum())
    times = Path(f"dies {value:.6f}")
    if times.exists() and int(times.read_text()):
        times.write_text(str(int(times.read_text()) - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    print("something that is no line of JSON")
    warnings.warn("a warning of the task's", stacklevel=1)
    return Sum(value=value)
"""
PATHS = ("s0.pt", "s1.pt", "s2.pt")
QUICK = ("--preset", "quick", "--only", "performance,calibration,trace,line,sharpness,plane")


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "landscape").mkdir()  # must not hide what is installed
    (tmp_path / "landscape" / "__init__.py").write_text("raise RuntimeError")
    for i, path in enumerate(PATHS):
        save_checkpoint(path, small_world.train(i), task="tasks.py:slow")
    return tmp_path


def start(*arguments: Any, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "landscape.cli", "probe", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(*arguments: Any, code: int = 0, **environment: str) -> tuple[str, str]:
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def plain(shown: str) -> list[dict[str, Any]]:
    """Return the results of `--json` without what another run of the same process would give otherwise, too."""
    left_out = ("seconds", "archive", "curvature")
    return [{k: v for k, v in r.items() if k not in left_out} for r in json.loads(shown)["results"]]


def first_tensors() -> list[str]:
    """Return the names of the files that say how often the process that measures each checkpoint dies."""
    return [f"dies {float(small_world.train(i)[0].weight.detach().sum()):.6f}" for i in range(3)]


def points(path: str) -> int:
    try:
        return sum(len(rows) for rows in open_archive(path).unfinished.values())
    except (ArchiveError, OSError):  # not there yet, or replaced meanwhile
        return 0


def test_the_numbers_are_those_of_one_process_bit_for_bit(world):
    one, _ = ended(*PATHS, *QUICK, "--json", "-o", "one.h5")
    two, err = ended(*PATHS, *QUICK, "--json", "-o", "two.h5", "--workers", 2)
    assert plain(one) == plain(two)
    same(open_archive("one.h5"), open_archive("two.h5"))
    assert sorted(line for line in err.splitlines() if "performance" in line) == [
        f"[{i}/3] s{i - 1}.pt: performance (1 of 6)" for i in (1, 2, 3)
    ]
    three, _ = ended(*PATHS, *QUICK, "--json", "--workers", 3)
    assert plain(three) == plain(one)
    for i in range(3):
        found = open_archive(f"s{i}.landscape.h5")
        assert (found.status, len(found.entries)) == ("complete", 8)
    assert not list(world.glob("*.partial*"))


def test_a_worker_that_is_killed_is_replaced_once_and_the_others_go_on(world):
    files = first_tensors()
    Path(files[1]).write_text("1")
    out, err = ended(*PATHS, "--only", "performance,sum_of_weights", "--workers", 2, "--json")
    assert len(plain(out)) == 3
    died = [line for line in err.splitlines() if "died" in line]
    assert died == [
        "[2/3] s1.pt: its process died (SIGKILL) (the system kills so when memory runs out); measured once more, but "
        "for what its archive holds already"
    ]
    assert err.count("warning: a warning of the task's") == 1  # as in one process
    Path(files[1]).write_text("2")
    out, err = ended(*PATHS, "--only", "performance,sum_of_weights", "--workers", 2, "--json", "--force", code=1)
    assert [r["checkpoint"] for r in plain(out)] == ["s0.pt", "s2.pt"]
    assert err.splitlines()[-1].startswith("error: 1 of 3 checkpoints could not be measured: s1.pt (its process died")
    left = open_archive("s1.landscape.h5")
    assert (left.status, [e.kind for e in left.entries]) == ("failed", ["performance"])
    out, err = ended(*PATHS, "--only", "performance,sum_of_weights", "--workers", 2, "--json", "--resume")
    assert len(plain(out)) == 3
    assert err.count("is in the archive already") == 5


@pytest.mark.parametrize(("number", "code", "shared"), [("SIGINT", 130, True), ("SIGTERM", 143, False)])
def test_a_stopped_run_keeps_what_it_has_and_goes_on_from_there(world, number, code, shared):
    output = ("-o", "run.h5") if shared else ()
    archives = ["run.h5"] if shared else ["s0.landscape.h5", "s1.landscape.h5"]
    how = ("--only", "performance,plane", "--grid", 31, "--workers", 2, *output)
    process = start(*PATHS, *how, SLOW="0.01")
    wait_for(lambda: all(points(f"{a}.partial") for a in archives), process)
    process.send_signal(getattr(signal, number))
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert err.splitlines()[-1].startswith("interrupted: stopped by")
    assert "what was measured until now is kept in" in err
    for a in archives:
        left = open_archive(a)
        assert left.status == "interrupted"
        assert {e.kind for e in left.entries} == {"performance"}
        assert points(a) > 0
    _, err = ended(*PATHS, *how, "--resume")
    assert "none was used" not in err
    ended(*PATHS, "--only", "performance,plane", "--grid", 31, "-o", "whole.h5")
    whole = {e.subject.label: e.result.variables() for e in open_archive("whole.h5").select("plane")}
    for a in archives:
        again = open_archive(a)
        assert again.status == "complete"
        for e in again.select("plane"):
            for name, v in e.result.variables().items():
                np.testing.assert_array_equal(v.data, whole[e.subject.label][name].data, err_msg=name)


def test_a_run_that_is_killed_takes_its_workers_with_it_and_goes_on(world):
    how = ("--only", "performance,plane", "--grid", 31, "--workers", 2, "-o", "run.h5")
    process = start(*PATHS, *how, SLOW="0.01")
    wait_for(lambda: points("run.h5.partial") > 20, process)
    children = children_of(process.pid)
    assert len(children) == 2
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 30
    while any(map(alive, children)):
        assert time.monotonic() < until, "a worker stayed behind"
        time.sleep(0.1)
    kept = points("run.h5.partial")
    assert kept > 20
    out, _ = ended(*PATHS, *how, "--resume", "--json")
    assert "come from an earlier run that was interrupted" in out
    assert open_archive("run.h5").status == "complete"
    assert len(open_archive("run.h5").select("plane")) == 3


def test_a_time_limit_ends_with_the_best_picture_so_far(world):
    how = (*PATHS[:2], "--only", "performance,plane", "--grid", 41, "--workers", 2)
    ended(*how, "--time-limit", 12, SLOW="0.02")
    for i in range(2):
        left = open_archive(f"s{i}.landscape.h5")
        assert left.status == "interrupted"
        assert left.select("plane")[0].status == "partial"
    _, err = ended(*how, "--resume")
    assert [open_archive(f"s{i}.landscape.h5").select("plane")[0].status for i in range(2)] == ["complete"] * 2
    assert "none was used" not in err


def test_what_one_tasks_file_registers_all_checkpoints_have(world):
    (world / "plain_task.py").write_text(TASKS.partition("@dataclass")[0])
    save_checkpoint("plain.pt", small_world.train(5), task="plain_task.py:slow")
    out, _ = ended("plain.pt", "s0.pt", "--only", "sum_of_weights", "--workers", 2, "--json")
    assert [r["checkpoint"] for r in plain(out)] == ["plain.pt", "s0.pt"]


def children_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
