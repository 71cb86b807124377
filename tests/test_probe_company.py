"""One checkpoint measured by several processes that share its draw: the same numbers, and one end for all."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import small_world
from test_probe_workers import TASKS, ended, points, start, wait_for

from landscape import open_archive, save_checkpoint
from landscape.probes.posthoc import divided
from landscape.probes.workers.pool import shared_out

#: What the second process does at its twentieth pass where BAD is set.
BAD = """
    passes = []

    def forward(model, batch):
        time.sleep(float(os.environ.get("SLOW", 0)))
        distributed = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        passes.append(1)
        if distributed and len(passes) > 20:
            if os.environ.get("BAD") == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if os.environ.get("BAD") == "raises":
                raise ValueError("in one process alone")
        return model(batch[0]), batch[1]

    return Task(model, nn.CrossEntropyLoss(), (x, y), (x[:60], y[:60]), forward=forward, batch_size=50, name="slow")
"""
QUICK = ("s.pt", "--preset", "quick", "--only", "performance,calibration,eigenvalues,line,sharpness,plane")

GRID = ("s.pt", "--preset", "quick", "--only", "performance,eigenvalues,plane", "--grid", 31)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = TASKS.index("    def forward")
    Path("tasks.py").write_text(TASKS[:start] + BAD.lstrip("\n") + "\n\n" + TASKS[TASKS.index("@dataclass") :])
    save_checkpoint("s.pt", small_world.train(0), task="tasks.py:slow")
    return tmp_path


def numbers(shown: str) -> dict[str, Any]:
    """Return the one result of `--json` by path, without what another run of the same process would change, too."""
    found = {}

    def walk(x: Any, path: str) -> None:
        if isinstance(x, dict):
            for k, v in x.items():
                walk(v, f"{path}/{k}")
        elif isinstance(x, list):
            for i, v in enumerate(x):
                walk(v, f"{path}/{i}")
        elif not any(word in path for word in ("seconds", "archive", "residuals", "/notes")):
            found[path] = x

    walk(json.loads(shown)["results"][0], "")
    return found


def about(number: Any) -> Any:
    # Sharpness is a difference of float32 losses of about 0.4, each right to 3e-8, which here differ by 2e-4.
    return pytest.approx(number, rel=1e-4, abs=2e-7) if isinstance(number, float) else number


def processes_left() -> list[str]:
    left = []
    for about in Path("/proc").glob("[0-9]*"):
        try:
            if b"probes.several.worker" in (about / "cmdline").read_bytes() and (about / "cwd").resolve() == Path.cwd():
                left.append(about.name)
        except OSError:
            continue
    return left


def test_so_many_processes_for_so_many_checkpoints():
    assert [divided(w, n) for w, n in ((1, 1), (4, 1), (4, 3), (8, 2), (2, 5))] == [
        (1, 1),
        (1, 4),
        (3, 1),
        (2, 4),
        (2, 1),
    ]
    assert shared_out(["a", "b", "c", "d"], 2, 2) == ["a,b", "c,d"]
    assert shared_out(["a", "b"], 1, 3) == ["a,b"]
    assert shared_out(["a", "b"], 3, 1) == ["a", "b", "a"]
    assert shared_out([], 3, 2) == []


@pytest.mark.slow
class TestOneCheckpoint:
    def test_has_the_numbers_of_one_process(self, world):
        one, two, three = (numbers(ended(*QUICK, "--json", "--workers", n, "-o", f"{n}.h5")[0]) for n in (1, 2, 3))
        assert one.keys() == two.keys() == three.keys()
        for several in (two, three):
            # Three cut the test data's two batches, and have other blocks of samples behind a standard error.
            kept = {k: v for k, v in one.items() if several is two or "stderr" not in k}
            apart = {k: (v, several[k]) for k, v in kept.items() if several[k] != about(v)}
            assert not apart
        whole = {k for k in one if k.split("/")[1] in ("loss", "accuracy", "calibration", "surface")}
        assert {k: two[k] for k in whole} == {k: one[k] for k in whole}  # whole batches: bit for bit
        losses = [next(iter(open_archive(f"{n}.h5").select("plane"))).result.loss for n in (1, 2, 3)]
        assert (losses[0] == losses[1]).all()
        assert losses[2] == pytest.approx(losses[0], rel=1e-6)
        assert not processes_left()

    @pytest.mark.parametrize(
        ("bad", "line"),
        [("dies", "a process that went along died (-9)"), ("raises", "ValueError: in one process alone")],
    )
    def test_ends_where_one_process_fails_and_is_gone_on_with(self, world, bad, line):
        _, said = ended(*QUICK, "--workers", 2, "-o", "r.h5", code=1, BAD=bad)
        assert line in said
        assert "Traceback" not in said
        assert not processes_left()
        held = len(open_archive("r.h5").entries) if Path("r.h5").exists() else 0
        shown, said = ended(*QUICK, "--json", "--workers", 2, "-o", "r.h5", "--resume")
        assert said.count("is in the archive already") == held
        one = numbers(ended(*QUICK, "--json", "-o", "one.h5")[0])
        assert numbers(shown) == {k: about(v) for k, v in one.items()}

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_is_interrupted_and_gone_on_with(self, world, number, code):
        process = start(*GRID, "--workers", 2, "-o", "r.h5", SLOW="0.02")
        wait_for(lambda: points("r.h5.partial"), process)
        os.kill(process.pid, number)
        _, said = process.communicate(timeout=120)
        assert process.returncode == code, said
        assert not processes_left()
        assert open_archive("r.h5").status == "interrupted"
        shown, said = ended(*GRID, "--json", "--workers", 3, "-o", "r.h5", "--resume")
        assert "is in the archive already" in said
        assert "none was used" not in said
        one = numbers(ended(*GRID, "--json", "-o", "one.h5")[0])
        assert numbers(shown) == {k: about(v) for k, v in one.items()}

    def test_stops_at_a_time_limit_which_all_keep_alike(self, world):
        _, said = ended(*QUICK, "--workers", 2, "-o", "r.h5", "--time-limit", "40s", SLOW="0.3")
        assert "don't do the same" not in said
        assert open_archive("r.h5").status == "interrupted"
        ended(*QUICK, "--workers", 2, "-o", "r.h5", "--resume")
        assert open_archive("r.h5").status == "complete"
