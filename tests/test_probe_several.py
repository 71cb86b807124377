"""Several checkpoints by several processes, without the processes: what they tell goes through JSON, and comes out as
what one process measures. `test_probe_workers.py` has the processes.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_world

from landscape import Archive, open_archive, save_checkpoint
from landscape import results as registry
from landscape.archive.schema import dump_json
from landscape.errors import ArchiveError, MeasurementError
from landscape.probes import probe_checkpoints
from landscape.probes.outcome import NotAllMeasured
from landscape.probes.prediction import Span, spread
from landscape.probes.selection import UnknownName
from landscape.probes.several import jobs as several
from landscape.probes.several import measuring
from landscape.probes.several.measuring import Measuring
from landscape.probes.workers.errors import raised, told
from landscape.probes.workers.lines import portable, rows_in_text, rows_out_of_text
from landscape.probes.workers.stopping import Stop

#: What stands on Hessian products.
PRODUCTS = ("trace", "eigenvalues")
#: What says when something was measured, or how long it took.
TIMES = ("seconds",)


class Died(BaseException):
    """Stands in for the end of a process."""


class Here:
    """Stands in for `run_in_workers`: every job by a `Measuring` in this process, every line through JSON.

    `deaths` says of a checkpoint before which line each attempt at it dies; `workers` and `begun` what was asked for.
    """

    def __init__(self) -> None:
        self.deaths: dict[str, list[int]] = {}
        self.begun: list[str] = []
        self.measured: list[str] = []
        self.workers = 0
        self.stop_before = -1
        self.lines = 0

    def __call__(self, work: Any, jobs: Any, workers: int, *, stop: Stop, say: Callable[[str], None], gpus: Any):
        self.workers = workers
        for job in jobs:
            attempts = iter(self.deaths.get(job.path, []))
            again = True
            while again and not stop.asked:
                given = work.begin(job)
                if given is None:
                    break
                self.begun.append(job.path)
                again = self._attempt(work, job, json.loads(json.dumps(given)), stop, say, next(attempts, -1))

    def _attempt(self, work: Any, job: Any, given: Any, stop: Stop, say: Callable[[str], None], dies: int) -> bool:
        heard = []

        class Speaker:
            def tell(own, **message: Any) -> None:
                if len(heard) == dies:
                    raise Died
                message = json.loads(json.dumps(message))
                self.lines += 1
                if "say" in message:
                    say(message["say"])
                    self.measured += re.findall(r": (\w+) \(\d+ of \d+\)$", message["say"])
                else:
                    heard.append(work.heard(job, message))
                if self.lines == self.stop_before:
                    stop.ask(15)
                    raise KeyboardInterrupt

        try:
            Measuring(json.loads(json.dumps(work.setup)), Speaker(), stop)(given)  # type: ignore[arg-type]
        except Died:
            again = sum(p == job.path for p in self.begun) < 2
            work.died(job, "its process died (SIGKILL)" + ("" if again else ", 2 times"), again, stop.asked)
            return again
        assert heard[-1] in ("done", "spent")
        return False


@pytest.fixture
def here(monkeypatch):
    found = Here()
    monkeypatch.setattr(several, "run_in_workers", found)
    return found


@pytest.fixture
def world(tmp_path, monkeypatch):
    small_world.enter(tmp_path, monkeypatch)
    small_world.build(tmp_path)
    for i in range(3):
        save_checkpoint(f"s{i}.pt", small_world.train(i), task="tasks.py:tiny", step=10 * (3 - i))
    return tmp_path


PATHS = ("s0.pt", "s1.pt", "s2.pt")
QUICK: dict[str, Any] = {"preset": "quick", "only": ("performance", "calibration", "line", "sharpness")}


def same(one: Archive, other: Archive) -> None:
    assert (one.status, one.run, one.attributes["model_fingerprint"]) == (
        other.status,
        other.run,
        other.attributes["model_fingerprint"],
    )
    assert [(e.kind, e.id, e.subject.key, e.asked) for e in one.entries] == [
        (e.kind, e.id, e.subject.key, e.asked) for e in other.entries
    ]
    for a, b in zip(one.entries, other.entries, strict=True):
        assert a.status == b.status
        # By which of several ways products are made a trial of their speed decides, anew in each process.
        rounding = 1e-4 if a.kind in PRODUCTS else 0.0
        for name, v in a.result.variables().items():
            other, where = b.result.variables()[name].data, f"{a.group} {name}"
            if rounding and v.data.dtype.kind == "f":
                np.testing.assert_allclose(other, v.data, rtol=rounding, err_msg=where)
            else:
                np.testing.assert_array_equal(other, v.data, err_msg=where)


def plain(outcome: Any) -> str:
    return dump_json({**{k: v for k, v in outcome.as_dict().items() if k not in TIMES}, "missing": outcome.missing})


# ------------------------------------------------------------------------------------------------- as one process


def test_one_archive_and_the_outcomes_are_those_of_one_process(world, here):
    one = probe_checkpoints(PATHS, out="run.h5", **QUICK)
    before = open_archive("run.h5")
    Path("run.h5").rename("one.h5")
    two = probe_checkpoints(PATHS, out="run.h5", workers=2, **QUICK)
    assert here.begun == [*PATHS]
    same(open_archive("run.h5"), open_archive("one.h5"))
    assert [plain(o) for o in two] == [plain(o) for o in one]
    assert before.attributes["run_id"] != open_archive("run.h5").attributes["run_id"]


def test_an_archive_for_each_is_complete_as_soon_as_it_is_measured(world, here):
    found = []

    def say(text: str) -> None:
        found.append([Path(f"s{i}.landscape.h5").exists() for i in range(3)])

    probe_checkpoints(PATHS, workers=3, say=say, only=["performance"])
    assert found[-1] == [True, True, False]
    assert {open_archive(f"s{i}.landscape.h5").status for i in range(3)} == {"complete"}


def test_as_many_checkpoints_at_a_time_as_there_are_and_several_processes_for_each_where_more_are_left(
    world, here, monkeypatch
):
    companies: list[int] = []

    def led(module: str, setup: Any, job: Any, of: int, gpus: Any) -> Any:
        companies.append(of)
        return contextlib.nullcontext()

    monkeypatch.setattr(measuring, "led", led)
    probe_checkpoints(PATHS, workers=5, only=["performance"])
    assert (here.workers, companies) == (3, [])
    here.begun.clear()
    probe_checkpoints(PATHS, workers=7, out="two each.h5", only=["performance"])
    assert (here.workers, companies) == (3, [2, 2, 2])
    here.begun.clear()
    probe_checkpoints(["tiny.pt"], workers=50, only=["performance"])
    assert (here.workers, here.begun, companies[3:]) == (1, ["tiny.pt"], [50])
    with pytest.raises(MeasurementError, match="workers=0 must be at least 1"):
        probe_checkpoints(PATHS, workers=0)


def test_the_plane_of_a_trajectory_lies_at_its_last_checkpoint_by_step_and_is_begun_first(world, here):
    said: list[str] = []
    how: dict[str, Any] = {
        "only": ("performance", "plane"),
        "options": {"plane": {"directions": "trajectory", "checkpoints": list(PATHS), "grid": 5}},
    }
    one = probe_checkpoints(PATHS, out="one.h5", **how)
    two = probe_checkpoints(PATHS, out="two.h5", workers=2, say=said.append, **how)
    assert here.begun == ["s0.pt", "s2.pt", "s1.pt"]  # their steps are 30, 10, 20
    same(open_archive("one.h5"), open_archive("two.h5"))
    assert [plain(o).replace("one.h5", "two.h5") for o in one] == [plain(o) for o in two]
    here.begun.clear()
    probe_checkpoints(PATHS, out="three.h5", workers=2, say=said.append, **{**how, "only": ("plane",)})
    assert here.begun == ["s0.pt"]
    assert "[1/3] s2.pt is a point of the trajectory, whose plane lies elsewhere" in said


def test_settings_options_and_a_task_of_the_users_own_reach_the_workers(world, here):
    how: dict[str, Any] = {
        "task": "tasks.py:tiny",
        "settings": {"samples": 40},
        "options": {"line": {"grid": 5}},
        "only": ("line", "performance"),
        "seed": 3,
        "dtype": "float64",
    }
    (one, _) = probe_checkpoints(PATHS[:2], out="one.h5", **how)
    (two, _) = probe_checkpoints(PATHS[:2], out="two.h5", workers=2, **how)
    assert (two.samples, two.dtype) == (40, "float64")
    same(open_archive("one.h5"), open_archive("two.h5"))
    assert plain(one).replace("one.h5", "two.h5") == plain(two)


def test_appending_keeps_what_was_there_and_replacing_does_not(world, here):
    probe_checkpoints(["tiny.pt"], out="run.h5", only=["performance"])
    with pytest.raises(ArchiveError, match="exists"):
        probe_checkpoints(PATHS, out="run.h5", workers=2, only=["performance"])
    assert here.begun == []
    probe_checkpoints(PATHS, out="run.h5", append=True, workers=2, only=["performance"])
    assert [e.subject.label for e in open_archive("run.h5").entries] == ["tiny", "s0", "s1", "s2"]
    probe_checkpoints(PATHS, out="run.h5", force=True, workers=2, only=["performance"])
    assert [e.subject.label for e in open_archive("run.h5").entries] == ["s0", "s1", "s2"]


def test_an_archive_is_in_the_order_of_its_checkpoints_whoever_was_first(world, here, monkeypatch):
    probe_checkpoints(PATHS, out="one.h5", **QUICK)
    monkeypatch.setattr(
        several, "run_in_workers", lambda work, jobs, *a, **k: here(work, list(reversed(jobs)), *a, **k)
    )
    probe_checkpoints(PATHS, out="two.h5", workers=2, **QUICK)
    assert here.begun == [*reversed(PATHS)]
    same(open_archive("one.h5"), open_archive("two.h5"))


# ------------------------------------------------------------------------------------------------- resumed, stopped


def test_what_an_archive_holds_is_not_measured_again(world, here):
    probe_checkpoints(PATHS[:2], out="run.h5", only=["performance"])
    found = probe_checkpoints(PATHS, out="run.h5", resume=True, workers=2, only=["performance", "calibration"])
    assert here.measured == ["calibration", "calibration", "performance", "calibration"]
    assert [list(o.results)[:2] for o in found] == [["performance", "calibration"]] * 3
    alone = probe_checkpoints(PATHS, out="alone.h5", only=["performance", "calibration"])
    assert [plain(o).replace("run.h5", "alone.h5") for o in found] == [plain(o) for o in alone]


def test_a_stop_keeps_results_and_points_and_a_resumed_run_goes_on_with_them(world, here, monkeypatch):
    monkeypatch.setattr("landscape.journal.BLOCK_SECONDS", 0.0)
    how: dict[str, Any] = {"only": ("performance", "line"), "options": {"line": {"grid": 11}}}
    probe_checkpoints(PATHS, out="whole.h5", **how)
    here.stop_before = 11  # amid the points of the first line
    said: list[str] = []
    monkeypatch.setattr(several.signal, "raise_signal", lambda number: said.append(f"signal {number}"))
    with pytest.raises(KeyboardInterrupt):
        probe_checkpoints(PATHS, out="run.h5", workers=2, say=said.append, **how)
    assert "signal 15" in said
    left = open_archive("run.h5")
    assert left.status == "interrupted"
    assert [e.kind for e in left.entries] == ["performance"]
    points = sum(len(rows) for rows in left.unfinished.values())
    assert 0 < points < 11
    here.stop_before, here.lines = -1, 0
    said.clear()
    found = probe_checkpoints(PATHS, out="run.h5", resume=True, workers=2, say=said.append, **how)
    assert f"{points} points come from an earlier run that was interrupted" in found[0].notes
    assert not any("none was used" in text for text in said)
    one, two = open_archive("whole.h5"), open_archive("run.h5")
    assert two.status == "complete"
    lines = [{e.subject.label: e.result.variables() for e in a.select("line")} for a in (one, two)]
    for label in ("s0", "s1", "s2"):
        np.testing.assert_array_equal(lines[0][label]["loss"].data, lines[1][label]["loss"].data)


def test_after_the_time_limit_nothing_is_begun(world, here):
    with pytest.raises(NotAllMeasured, match=r"3 of 3 .*the time limit came first; --resume goes on") as caught:
        probe_checkpoints(PATHS, workers=2, time_limit=1e-9)
    assert here.begun == []
    assert caught.value.outcomes == []
    assert not list(world.glob("*.h5*"))


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_one_that_dies_is_measured_once_more_but_for_what_it_found(world, here):
    probe_checkpoints(PATHS, out="one.h5", **QUICK)
    here.deaths["s1.pt"] = [5]  # behind begins, add, begins, add, begins
    said: list[str] = []
    probe_checkpoints(PATHS, out="two.h5", workers=2, say=said.append, **QUICK)
    assert here.begun == ["s0.pt", "s1.pt", "s1.pt", "s2.pt"]
    assert [t for t in said if "died" in t] == [
        "[2/3] s1.pt: its process died (SIGKILL); measured once more, but for what its archive holds already"
    ]
    assert sum("is in the archive already" in t for t in said) == 2
    same(open_archive("one.h5"), open_archive("two.h5"))


def test_what_one_measurement_gives_is_told_at_once_or_not_at_all(world, here):
    how: dict[str, Any] = {"preset": "quick", "only": ("performance", "calibration")}
    probe_checkpoints(PATHS[:2], out="one.h5", **how)
    for dies in range(5):  # before: begins, add, begins, add (of three results), done
        here.deaths["s0.pt"] = [dies]
        here.begun.clear()
        probe_checkpoints(PATHS[:2], out="two.h5", force=True, workers=2, **how)
        same(open_archive("one.h5"), open_archive("two.h5"))


def test_one_that_dies_twice_is_named_at_the_end_and_the_others_are_measured(world, here):
    here.deaths["s1.pt"] = [3, 1]  # behind the loss
    said: list[str] = []
    with pytest.raises(NotAllMeasured) as caught:
        probe_checkpoints(PATHS, workers=2, say=said.append, **QUICK)
    assert str(caught.value) == (
        "1 of 3 checkpoints could not be measured: s1.pt (its process died (SIGKILL), 2 times); the same command with "
        "--resume tries them again"
    )
    assert [o.checkpoint for o in caught.value.outcomes] == ["s0.pt", "s2.pt"]
    assert list(caught.value.errors) == ["s1.pt"]
    assert [open_archive(f"s{i}.landscape.h5").status for i in range(3)] == ["complete", "failed", "complete"]
    assert "[2/3] s1.pt: failed: its process died (SIGKILL), 2 times" in said
    here.deaths.clear()
    here.measured.clear()
    assert len(probe_checkpoints(PATHS, workers=2, resume=True, **QUICK)) == 3
    assert here.measured == ["calibration", "line", "sharpness"]


def test_an_error_is_that_of_one_process_and_the_others_are_measured(world, here):
    save_checkpoint("bad.pt", small_world.train(5), task="measures.py:tiny")
    how: dict[str, Any] = {"only": ("performance", "crash")}
    with pytest.raises(ZeroDivisionError) as alone:
        probe_checkpoints(["bad.pt"], out="alone.h5", **how)
    said: list[str] = []
    with pytest.raises(NotAllMeasured, match=r"2 of 2 .* bad.pt \(ZeroDivisionError: by zero\)") as caught:
        probe_checkpoints(["bad.pt", "s0.pt"], out="run.h5", workers=2, say=said.append, **how)
    error = caught.value.errors["bad.pt"]
    assert type(error) is ZeroDivisionError
    assert str(error) == str(alone.value)
    assert "raise ZeroDivisionError" in str(error.__cause__)
    assert caught.value.__cause__ is error
    found = open_archive("run.h5")
    assert (found.status, [e.kind for e in found.entries]) == ("failed", ["performance", "performance"])


def test_what_can_not_be_measured_is_recorded_once_however_often_it_is_tried(world, here):
    here.deaths["tiny.pt"] = [5]
    how: dict[str, Any] = {"task": "tasks.py:own_loss", "only": ("performance", "calibration", "line")}
    probe_checkpoints(["tiny.pt", "s0.pt"], out="one.h5", **how)
    probe_checkpoints(["tiny.pt", "s0.pt"], out="two.h5", workers=2, **how)
    assert here.begun == ["tiny.pt", "tiny.pt", "s0.pt"]
    assert [e.kind for e in open_archive("two.h5").entries] == [e.kind for e in open_archive("one.h5").entries]


def test_a_task_that_is_another_in_each_process_is_refused_before_it_is_measured(world, here):
    (world / "random_task.py").write_text(
        "import torch\nfrom torch import nn\nfrom landscape import Task, task\nfrom tasks import net\n\n\n@task\n"
        "def unseeded():\n"
        "    model = net()\n"
        "    torch.seed()\n"
        "    return Task(model, nn.CrossEntropyLoss(), (torch.rand(20, 4), torch.zeros(20).long()))\n"
    )
    with pytest.raises(NotAllMeasured, match="is not the same in every process, another is the draw train: seed what"):
        probe_checkpoints(PATHS, task="random_task.py:unseeded", workers=2, only=["performance"])
    assert here.measured == []
    assert not list(world.glob("*.h5*"))


def test_what_workers_can_not_be_told_is_refused_before_anything_is_measured(world, here):
    (world / "any.py").write_text(
        "from landscape import task\nfrom tasks import tiny\n\n\n@task\ndef of(samples):\n    return tiny()\n"
    )
    with pytest.raises(MeasurementError, match=r"settings\['samples'\] is a object, which can't be told to several"):
        probe_checkpoints(PATHS, task="any.py:of", settings={"samples": object()}, workers=2)
    assert not list(world.glob("*.h5*"))


@pytest.fixture
def forgets(monkeypatch):
    """Let workers know only the measurements that a fresh process knows."""
    registry.measurements()
    fresh = dict(registry._MEASUREMENTS)

    class Forgetful(Measuring):
        def __init__(self, *arguments: Any) -> None:
            monkeypatch.setattr(registry, "_MEASUREMENTS", dict(fresh))
            super().__init__(*arguments)

    monkeypatch.setattr("test_probe_several.Measuring", Forgetful)


def test_a_measurement_that_only_this_process_knows_is_named(world, forgets, here):
    small_world.results("mine.pt", "--only", "largest_weight")  # registers it
    with pytest.raises(NotAllMeasured, match="a worker doesn't know the measurement 'largest_weight'"):
        probe_checkpoints(PATHS, workers=2, only=["largest_weight"])


def test_the_command_prints_the_others_and_ends_with_1(world, here):
    arguments = ("probe", "s0.pt", "mine.pt", "--only", "performance,crash", "--workers", 2, "--force")
    failed = small_world.landscape(*arguments, "--json", "--report", "r.html")
    assert (failed.exit_code, failed.stdout) == (1, "")  # both fail: nothing is there to print
    here.deaths["s1.pt"] = [1, 1]
    arguments = ("probe", *PATHS, "--only", "performance", "--workers", 2, "--force")
    result = small_world.landscape(*arguments, "--json", "--report", "r.html")
    assert result.exit_code == 1
    assert [r["checkpoint"] for r in json.loads(result.stdout)["results"]] == ["s0.pt", "s2.pt"]
    assert Path("r.html").stat().st_size > 100_000
    assert result.stderr.splitlines()[-1].startswith("error: 1 of 3 checkpoints could not be measured: s1.pt (its proc")


def test_a_dry_run_says_what_all_take_on_so_many_workers(world, here):
    shown = small_world.done("probe", *PATHS, "--dry-run", "--preset", "quick", "--workers", 2)
    assert re.search(r"^3 checkpoints, .* s on 2 workers$", shown, re.MULTILINE)
    found = json.loads(small_world.done("probe", *PATHS, "--dry-run", "--preset", "quick", "--workers", 2, "--json"))
    each = [sum(m["seconds"][1] for m in d["measurements"]) for d in found["dry_run"]]
    assert found["workers"] == 2
    assert found["seconds"][1] == pytest.approx(max(sum(each) / 2, max(each)))
    alone = json.loads(small_world.done("probe", *PATHS, "--dry-run", "--preset", "quick", "--json"))
    assert set(alone) == {"schema", "dry_run"}
    assert here.begun == []


def test_unknown_names_are_refused_here(world, here):
    with pytest.raises(UnknownName):
        probe_checkpoints(PATHS, workers=2, only=["nothing"])
    assert here.begun == []


# ------------------------------------------------------------------------------------------------- the parts


def test_arguments_are_told_as_plain_data():
    given = {"a": (1, np.float64(0.5), None), "b": Path("x/y"), 3: [True, "t"]}
    assert portable(given, "how") == {"a": [1, 0.5, None], "b": "x/y", "3": [True, "t"]}
    assert json.loads(json.dumps(portable(float("inf"), "x"))) == float("inf")


def test_rows_come_over_bit_for_bit():
    rows = np.random.default_rng(0).normal(size=(5, 4))
    rows[0] = [np.nan, np.inf, -0.0, 5e-324]
    came = rows_out_of_text(json.loads(json.dumps(rows_in_text(rows))))
    assert came.tobytes() == rows.tobytes()
    assert rows_out_of_text(rows_in_text(np.empty((0, 3)))).shape == (0, 3)


class Custom(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


@pytest.mark.parametrize(
    ("error", "kind"), [(ArchiveError("full"), ArchiveError), (KeyError("x"), None), (Custom(1, 2), None)]
)
def test_errors_come_over_with_name_text_notes_and_traceback(error, kind):
    error.add_note("a note")
    try:
        raise error
    except Exception as caught:
        came = raised(json.loads(json.dumps(told(caught))))
    assert type(came).__name__ == type(error).__name__
    assert str(came) == str(error)
    assert isinstance(came, kind or RuntimeError)
    assert came.__notes__ == ["a note"]
    assert "raise error" in str(came.__cause__)


def test_time_on_several_workers_is_the_sum_over_them_but_never_less_than_the_longest():
    times = [Span(1, 2), Span(1, 2), Span(4, 8)]
    assert spread(times, 1) == Span(6, 12)
    assert spread(times, 2) == Span(4, 8)
    assert spread(times[:2], 2) == Span(1, 2)
    assert spread([], 3) == Span(0, 0)
