"""What save_checkpoint writes: whole or not at all, readable by everybody, and it names its task safely."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import stat
import subprocess
import sys
import textwrap
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from landscape import Task, __version__, load_checkpoint, read_checkpoint, save_checkpoint, task
from landscape.checkpoints.naming import reference_of
from landscape.errors import CheckpointError
from landscape.probes.demo.digits import digits
from landscape.task_files import TaskReference, file_sha256, load_named_task

TASK = """
from landscape import Task, task
import torch

@task
def tiny(width=4):
    return Task(torch.nn.Linear(width, 2), torch.nn.CrossEntropyLoss())

def unmarked():
    pass
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "tiny.py").write_text(TASK)
    return tmp_path


def _trained():
    model = nn.Linear(4, 2)
    optimizer = torch.optim.AdamW([{"params": [model.bias]}, {"params": [model.weight], "lr": 0.5}])
    model(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def test_everybody_reads_it_and_it_comes_back(here):
    model, optimizer = _trained()
    facts = {"loss": "focal", "schedule": "cosine", "lr": 0.1, "extra": {"a": [1, None, True, 2.5]}}
    save_checkpoint(
        "x.pt", model, task="tasks/tiny.py:tiny", settings={"width": 4}, optimizer=optimizer, step=7, epoch=2, **facts
    )
    raw = torch.load("x.pt", weights_only=True)
    assert set(raw) == {"model", "optimizer", "step", "epoch", "landscape"}
    assert raw["landscape"] == {
        "format": 1,
        "version": __version__,
        "task": "tasks/tiny.py:tiny",
        "settings": {"width": 4},
        "task_sha256": file_sha256("tasks/tiny.py"),
        "facts": facts,
        "optimizer_parameters": [["bias"], ["weight"]],
    }
    other = nn.Linear(4, 2)
    other.load_state_dict(raw["model"])
    torch.optim.AdamW([{"params": [other.bias]}, {"params": [other.weight]}]).load_state_dict(raw["optimizer"])
    ck = read_checkpoint("x.pt")
    assert torch.equal(ck.weights["weight"], model.weight.detach())
    assert (ck.step, ck.epoch, ck.facts, ck.notes) == (7, 2, facts, ())
    assert ck.task == TaskReference("tasks/tiny.py:tiny", {"width": 4}, file_sha256("tasks/tiny.py"))
    assert ck.optimizer is not None
    assert [g["param_names"] for g in ck.optimizer["param_groups"]] == [["bias"], ["weight"]]
    first = ck.optimizer["param_groups"][0]["params"][0]
    assert torch.equal(ck.optimizer["state"][first]["exp_avg"], optimizer.state[model.bias]["exp_avg"])
    assert load_named_task(ck.task).task.model.in_features == 4


def test_several_optimizers_each_go_on_from_their_own_state(here):
    model = nn.ModuleDict({"g": nn.Linear(4, 2), "d": nn.Linear(2, 1)})
    both = {n: torch.optim.Adam(model[n].parameters(), lr=lr) for n, lr in (("g", 0.1), ("d", 0.2))}
    for name, steps in (("g", 3), ("d", 1)):
        for _ in range(steps):
            model["d"](model["g"](torch.ones(3, 4))).sum().backward()
            both[name].step()
    save_checkpoint("x.pt", model, optimizer=both)
    raw = torch.load("x.pt", weights_only=True)
    assert raw["landscape"]["optimizers_parameters"] == {"g": [["g.weight", "g.bias"]], "d": [["d.weight", "d.bias"]]}
    for name, steps in (("g", 3), ("d", 1)):
        fresh = torch.optim.Adam(model[name].parameters())
        fresh.load_state_dict(raw["optimizers"][name])
        assert fresh.param_groups[0]["lr"] == both[name].param_groups[0]["lr"]
        assert int(fresh.state[model[name].weight]["step"]) == steps
        assert torch.equal(fresh.state[model[name].weight]["exp_avg"], both[name].state[model[name].weight]["exp_avg"])
    ck = read_checkpoint("x.pt")
    assert ck.optimizer is not None
    assert ck.optimizer["param_groups"][0]["param_names"] == ["g.weight", "g.bias"]
    assert set(ck.weights) == set(model.state_dict())
    assert (ck.facts, ck.notes) == ({}, ())
    assert [ck.optimizers[n]["param_groups"][0]["param_names"][0] for n in ("g", "d")] == ["g.weight", "d.weight"]
    assert torch.equal(ck.optimizers["d"]["state"][0]["exp_avg"], both["d"].state[model["d"].weight]["exp_avg"])
    assert "optimizers g, d" in repr(ck)
    # Of a part of the model, by its names there.
    part = load_checkpoint("x.pt", nn.Linear(2, 1), weights="d")
    assert part.optimizers["d"]["param_groups"][0]["param_names"] == ["weight", "bias"]
    # The first one's state stands there once.
    save_checkpoint("one.pt", model, optimizer=both["g"])
    d = sum(v.numel() * v.element_size() for s in both["d"].state.values() for v in s.values())
    assert Path("x.pt").stat().st_size < Path("one.pt").stat().st_size + d + 4096
    save_checkpoint("none.pt", model, optimizer={})
    assert read_checkpoint("none.pt").optimizer is None


def test_a_list_of_optimizers_is_named_by_class_or_by_place(here):
    a, b, c = (nn.Linear(2, 2) for _ in range(3))
    model = nn.ModuleList([a, b, c])
    made = [torch.optim.SGD(a.parameters()), torch.optim.AdamW(b.parameters()), torch.optim.Adam(c.parameters())]
    for given, names in (
        (made, ["sgd", "adamw", "adam"]),
        ((made[0], torch.optim.SGD(c.parameters())), ["0", "1"]),
    ):
        save_checkpoint("x.pt", model, optimizer=given)
        raw = torch.load("x.pt", weights_only=True)
        assert list(raw["optimizers"]) == list(raw["landscape"]["optimizers_parameters"]) == names
    save_checkpoint("x.pt", model, optimizer=made[:1])
    assert "optimizers" not in torch.load("x.pt", weights_only=True)
    with pytest.raises(TypeError, match=r"a list of them or \{name: optimizer\}, got list"):
        save_checkpoint("y.pt", model, optimizer=[made[0], "adam"])
    with pytest.raises(CheckpointError, match="are one optimizer"):
        save_checkpoint("y.pt", model, optimizer=[made[0], made[0]])
    assert not Path("y.pt").exists()


def test_a_bare_model_is_enough(here):
    save_checkpoint("x.pt", nn.Linear(4, 2))
    ck = read_checkpoint("x.pt")
    assert (ck.optimizer, ck.step, ck.epoch, ck.facts, ck.task) == (None, None, None, {}, None)
    save_checkpoint("y.pt", nn.Linear(4, 2).state_dict())
    assert set(read_checkpoint("y.pt").weights) == {"weight", "bias"}


TIMED = """
import functools

def timed(f):
    @functools.wraps(f)
    def g(*a, **k):
        return f(*a, **k)
    return g
"""


def imported(folder: Path, name: str = "tiny") -> types.ModuleType:
    """Import a task file as a training script does."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def changed(made: Task) -> Task:
    """Return the task with another loss, set by hand."""
    made.loss = nn.MSELoss()
    return made


class TestTasksThatKnowTheirFunction:
    @pytest.mark.parametrize(("args", "kwargs"), [((), {"width": 6}), ((6,), {})])
    def test_they_are_named_with_their_settings(self, here, args, kwargs):
        made = imported(here / "tasks").tiny(*args, **kwargs)
        save_checkpoint("a.pt", made.model, task=made)
        reference = read_checkpoint("a.pt").task
        assert (reference.reference, reference.settings) == ("tasks/tiny.py:tiny", {"width": 6})
        assert reference.sha256 == file_sha256(here / "tasks" / "tiny.py")
        assert load_named_task(reference).task.model.weight.shape == (2, 6)

    def test_keyword_settings_that_a_function_collects(self, here):
        text = TASK.replace("def tiny(width=4):", "def tiny(**more):\n    width = more['width']")
        (here / "tasks" / "free.py").write_text(text)
        made = imported(here / "tasks", "free").tiny(width=3, depth=2)
        save_checkpoint("a.pt", made.model, task=made)
        assert read_checkpoint("a.pt").task.settings == {"width": 3, "depth": 2}

    def test_one_of_the_package_is_named_by_its_module(self, here):
        made = digits()
        save_checkpoint("a.pt", made.model, task=made)
        assert read_checkpoint("a.pt").task.reference == "landscape.probes.demo.digits:digits"

    @pytest.mark.parametrize(
        ("make", "line"),
        [
            (lambda m: m.tiny().replace(seed=1), r"marked @task made.*give task='file.py:name'"),
            (lambda m: changed(m.tiny()), r"marked @task made.*give task='file.py:name'"),
            (lambda m: Task(nn.Linear(4, 2), nn.CrossEntropyLoss()), "marked @task made"),
            (lambda m: task(lambda: Task(nn.Linear(4, 2), nn.CrossEntropyLoss()))(), "cannot name this task"),
        ],
    )
    def test_others_are_refused_with_the_way_out(self, here, make, line):
        made = make(imported(here / "tasks"))
        with pytest.raises(CheckpointError, match=line):
            save_checkpoint("a.pt", made.model, task=made)
        assert reference_of(made) is None
        assert not Path("a.pt").exists()

    def test_settings_that_are_not_plain_are_refused(self, here):
        made = imported(here / "tasks").tiny(width=torch.tensor(5))
        with pytest.raises(TypeError, match="settings 'width' is a Tensor"):
            save_checkpoint("a.pt", made.model, task=made)
        assert reference_of(made) is None

    def test_what_a_function_does_to_its_settings_changes_none_of_them(self, here):
        text = TASK.replace("def tiny(width=4):", "def tiny(config):\n    width = config.pop('width')")
        (here / "tasks" / "config.py").write_text(text)
        config = {"width": 3, "depth": 2}
        made = imported(here / "tasks", "config").tiny(config)
        save_checkpoint("a.pt", made.model, task=made)
        assert read_checkpoint("a.pt").task.settings == {"config": {"width": 3, "depth": 2}}

    @pytest.mark.parametrize("signature", ["*width", "width, /"])
    def test_settings_without_a_name_are_refused(self, here, signature):
        text = TASK.replace("def tiny(width=4):", f"def tiny({signature}):\n    width = 3")
        (here / "tasks" / "placed.py").write_text(text)
        made = imported(here / "tasks", "placed").tiny(3)
        with pytest.raises(TypeError, match="settings 'width' were given by their place alone"):
            save_checkpoint("a.pt", made.model, task=made)
        assert reference_of(made) is None

    def test_a_decorator_of_another_file_below_it_hides_nothing(self, here):
        (here / "tasks" / "timing.py").write_text(TIMED)
        text = TASK.replace("@task", "@task\n@timed").replace(
            "import torch", "import torch\nfrom timing import timed", 1
        )
        (here / "tasks" / "wrapped.py").write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "timing", imported(here / "tasks", "timing"))
            made = imported(here / "tasks", "wrapped").tiny(width=3)
        assert reference_of(made) == ("tasks/wrapped.py:tiny", {"width": 3})

    def test_a_decorator_that_gives_arguments_itself_may_stand_below_it(self, here):
        (here / "tasks" / "timing.py").write_text(TIMED.replace("f(*a, **k)", "f(3, *a, **k)"))
        text = TASK.replace("@task", "@task\n@timed").replace(
            "import torch", "import torch\nfrom timing import timed", 1
        )
        (here / "tasks" / "given.py").write_text(text.replace("width=4", "width"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "timing", imported(here / "tasks", "timing"))
            made = imported(here / "tasks", "given").tiny()
        assert made.model.weight.shape == (2, 3)
        assert reference_of(made) is None

    def test_they_can_be_pickled(self):
        made = digits()
        other = pickle.loads(pickle.dumps(made))
        assert reference_of(other) == reference_of(made) == ("landscape.probes.demo.digits:digits", {})

    def test_they_keep_nothing_alive_that_they_were_given(self):
        given = torch.zeros(3)
        gone = weakref.ref(given)
        made = task(lambda data: Task(nn.Linear(4, 2), nn.CrossEntropyLoss()))(given)
        del given
        assert made.made_by.problem.startswith("settings 'data' is a Tensor")
        assert gone() is None

    def test_a_script_that_runs_is_not_named(self, here):
        script = (
            TASK
            + "from landscape import save_checkpoint\nmade = tiny()\nsave_checkpoint('a.pt', made.model, task=made)"
        )
        (here / "script.py").write_text(script)
        done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False)
        said = done.stderr.splitlines()[-1]
        assert "tiny() stands in the script that runs" in said
        assert said.endswith("put it into a file of its own, or give task='file.py:name'")

    def test_a_file_elsewhere_is_not_named(self, here, tmp_path_factory):
        other = tmp_path_factory.mktemp("elsewhere")
        (other / "tiny.py").write_text(TASK)
        made = imported(other).tiny()
        with pytest.raises(CheckpointError, match="cannot name this task"):
            save_checkpoint("a.pt", made.model, task=made)


def test_wrapped_models_are_saved_under_their_own_names(here):
    model = nn.Linear(4, 2)
    save_checkpoint("x.pt", torch.compile(nn.DataParallel(model), backend="eager"))
    assert set(torch.load("x.pt", weights_only=True)["model"]) == {"weight", "bias"}


def test_ties_stay_ties_and_slices_do_not_drag_their_storage_along(here):
    big = torch.randn(1000, 1000)
    model = nn.Module()
    model.a = nn.Parameter(big[:2])
    model.b = model.a
    save_checkpoint("x.pt", model)
    assert Path("x.pt").stat().st_size < 50_000
    weights = torch.load("x.pt", weights_only=True)["model"]
    assert weights["a"].data_ptr() == weights["b"].data_ptr()
    assert torch.equal(weights["a"], big[:2])


@pytest.mark.parametrize(
    ("task", "line"),
    [
        ("/etc/tasks.py:run", "no absolute path"),
        ("../tasks/tiny.py:tiny", "no absolute path, no .."),
        ("tasks/../../x.py:f", "no absolute path, no .."),
        ("~/x.py:f", "no absolute path"),
        ("os:system", "neither a .py file"),
        ("tasks.tiny:tiny", "neither a .py file"),
        ("landscape.nothing:f", "no landscape.nothing"),
        ("tasks/none.py:f", "not under"),
        ("tasks/tiny.py:unmarked", "not marked @task"),
        ("tasks/tiny.py:other", "is not there"),
        ("tasks/tiny.py", "names no function"),
        ("tasks/tiny.py:a.b", "names no function"),
    ],
)
def test_tasks_that_a_checkpoint_may_not_name(here, task, line):
    with pytest.raises(CheckpointError, match=line) as error:
        save_checkpoint("x.pt", nn.Linear(4, 2), task=task)
    assert "\n" not in str(error.value)
    assert os.listdir(here) == ["tasks"]


def test_what_is_not_plain_is_refused_before_anything_is_written(here):
    model = nn.Linear(4, 2)
    for value in (np.float64(1), torch.tensor(1.0), {1: 2}, {"a": {2}}, object(), b"x", [Path()]):
        with pytest.raises(TypeError, match=r"facts 'loss'.*plain values only|text keys only"):
            save_checkpoint("x.pt", model, loss=value)
        with pytest.raises(TypeError, match="settings 'loss'"):
            save_checkpoint("x.pt", model, task="tasks/tiny.py:tiny", settings={"loss": value})
    for wrong in (1.5, True, "3", torch.tensor(3)):
        with pytest.raises(TypeError, match="step is a whole number"):
            save_checkpoint("x.pt", model, step=wrong)
    with pytest.raises(CheckpointError, match="settings belong to a task"):
        save_checkpoint("x.pt", model, settings={"a": 1})
    assert os.listdir(here) == ["tasks"]


def test_sharded_tensors_are_refused(here):
    class Sharded(torch.Tensor):
        pass

    with pytest.raises(CheckpointError, match="a Sharded cannot be saved plainly; gather"):
        save_checkpoint("x.pt", {"w": torch.ones(2).as_subclass(Sharded)})


# Whole or not at all ------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_what_was_there(here, monkeypatch):
    save_checkpoint("x.pt", nn.Linear(4, 2), step=1)
    before = Path("x.pt").read_bytes()

    def fails(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(CheckpointError, match="No space left on device; what was there before is untouched"):
        save_checkpoint("x.pt", nn.Linear(4, 2), step=2)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint("x.pt", nn.Linear(4, 2), step=2)
    assert Path("x.pt").read_bytes() == before
    assert sorted(os.listdir(here)) == ["tasks", "x.pt"]


def test_a_full_disk_in_the_middle_of_torch_save(here):
    """The real thing: a limit on file sizes that the second write runs into."""
    script = textwrap.dedent(
        """
        import resource, signal, sys, torch
        from landscape import save_checkpoint
        from landscape.errors import CheckpointError
        save_checkpoint("x.pt", torch.nn.Linear(2, 2), step=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            save_checkpoint("x.pt", torch.nn.Linear(1000, 1000), step=2)
        except CheckpointError as error:
            print(error)
        """
    )
    root = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", script], cwd=here, env=env, capture_output=True, text=True)
    assert "x.pt cannot be written" in run.stdout, run.stderr
    assert run.stdout.count("\n") == 1
    assert read_checkpoint("x.pt").step == 1
    assert sorted(os.listdir(here)) == ["tasks", "x.pt"]


def test_killed_at_any_moment_the_file_is_whole(here):
    script = textwrap.dedent(
        """
        import torch
        from landscape import save_checkpoint
        model = torch.nn.Linear(500, 500)
        for step in range(10_000):
            save_checkpoint("x.pt", model, step=step)
            print(step, flush=True)
        """
    )
    root = Path(__file__).parent.parent
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", script], cwd=here, env=env, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for _ in range(20):
            last = int(run.stdout.readline())
        run.kill()
    step = read_checkpoint("x.pt").step
    assert step is not None
    assert step >= last


def test_the_bytes_are_on_the_disk_before_the_name_is(here, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda _descriptor: done.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    save_checkpoint("x.pt", nn.Linear(2, 2))
    assert done == ["fsync", "rename", "fsync"]


def test_folders_links_and_permissions(here):
    model = nn.Linear(4, 2)
    with pytest.raises(CheckpointError, match="does not exist; make it first"):
        save_checkpoint("none/x.pt", model)
    Path("folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint("folder", model)
    save_checkpoint("step-1.pt", model)
    os.symlink("step-1.pt", "last.pt")
    save_checkpoint("last.pt", model, step=9)
    assert Path("last.pt").is_symlink()
    assert read_checkpoint("step-1.pt").step == 9
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(Path("step-1.pt").stat().st_mode) == 0o666 & ~mask
    assert sorted(os.listdir(here)) == ["folder", "last.pt", "step-1.pt", "tasks"]


# Reading what somebody else wrote in our place ----------------------------------------------------------------


@pytest.mark.parametrize(
    "own", [{"task": 7}, {"task": "os:system", "settings": [1]}, {"task": ["a"]}, {"facts": 3}, {}, {"task": None}]
)
def test_a_forged_entry_is_no_failure(here, own):
    torch.save({"model": nn.Linear(2, 2).state_dict(), "landscape": own}, "x.pt")
    ck = read_checkpoint("x.pt")
    assert ck.task is None
    assert ck.facts == {}
    assert any("ignored" in n for n in ck.notes) == (own.get("task") is not None)


def test_a_newer_format_is_said(here):
    torch.save({"model": nn.Linear(2, 2).state_dict(), "landscape": {"format": 99, "version": "9.0"}}, "x.pt")
    assert any("newer landscape (9.0)" in n for n in read_checkpoint("x.pt").notes)


def test_facts_of_json_stay_json(here):
    save_checkpoint("x.pt", nn.Linear(2, 2), text="x" * 20_000, pair=(1, 2))
    ck = read_checkpoint("x.pt")
    assert ck.facts == {"text": "x" * 20_000, "pair": [1, 2]}
    json.dumps(ck.facts)
    assert load_checkpoint("x.pt", nn.Linear(2, 2)).facts == ck.facts
