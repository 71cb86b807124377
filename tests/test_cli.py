"""The command line: help, errors in one line, exit statuses, signals, colours, and what is not imported."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import click
import pytest
import small_world
from click.testing import CliRunner
from small_world import done, landscape

from landscape import __version__, open_archive
from landscape import results as registry
from landscape.cli import main as cli
from landscape.cli.options import Command
from landscape.cli.output import finite, table
from landscape.errors import TaskError

NAMES = [name for section in cli.COMMANDS.values() for name in section]


@pytest.fixture
def world(tmp_path, monkeypatch):
    small_world.enter(tmp_path, monkeypatch)
    small_world.build(tmp_path)
    return tmp_path


def python(code: str, folder: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-c", code]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


# ----------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_command(name):
    text = done(name, "--help")
    assert text.startswith(f"Usage: landscape {name}")
    assert "Example" in text
    assert "--debug" in text
    command = cli.main.get_command(click.Context(cli.main), name)
    assert isinstance(command, Command)
    # Every option says what it is for, and the example's options exist.
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
    known = {o for p in command.params for o in p.opts}
    assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", command.example)) <= known
    assert command.example.split()[:2] == ["landscape", name]


def test_the_table_of_commands_says_what_each_says_of_itself():
    text = done("--help")
    for section in cli.COMMANDS.values():
        for name, (_, line) in section.items():
            command = cli.main.get_command(click.Context(cli.main), name)
            assert command is not None
            assert line == (command.help or "").split("\n")[0]
            assert re.search(rf"^  {name} ", text, re.M)


def test_without_a_command_the_help_is_shown():
    result = landscape()
    assert result.exit_code == 2
    assert "Measure:" in result.output


def test_version():
    assert done("--version") == f"landscape {__version__}\n"


def test_an_unknown_command_is_met_with_the_nearest():
    result = landscape("prob")
    assert result.exit_code == 2
    assert "Did you mean probe?" in result.stderr


def test_it_runs_as_a_module_from_the_checkout():
    ended = subprocess.run(
        [sys.executable, "-m", "landscape.cli", "--version"], capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == f"landscape {__version__}\n"


# -------------------------------------------------------------------------------------------------- imports


def test_help_imports_click_and_nothing_heavy():
    loaded = json.loads(
        python(
            "import contextlib, io, json, sys\n"
            "from landscape.cli.main import main\n"
            "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
            "print(json.dumps(sorted(sys.modules)))"
        )
    )
    assert {"torch", "h5py", "numpy", "matplotlib", "scipy", "sklearn", "tqdm", "plotly", "jinja2"} & set(
        loaded
    ) == set()
    # No subcommand either: each is imported when it is called.
    assert [m for m in loaded if m.startswith("landscape.cli.")] == ["landscape.cli.main"]


@pytest.mark.parametrize("arguments", [["show", "tiny.h5"], ["show", "--json", "tiny.h5"], ["report", "tiny.h5"]])
def test_reading_archives_imports_no_torch(world, arguments):
    done("probe", "tiny.pt", "--only", "performance", "-o", "tiny.h5")
    code = (
        "import contextlib, io, sys\n"
        "from landscape.cli.main import main\n"
        f"with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main({arguments!r})\n"
        "print('torch' in sys.modules, 'h5py' in sys.modules)"
    )
    assert python(code, world) == "False True\n"


# --------------------------------------------------------------------------------------------------- errors


def failing(monkeypatch, error: BaseException) -> None:
    """Make `landscape list` raise this."""

    @click.command(cls=Command)
    def command() -> None:
        raise error

    module = cli.importlib.import_module("landscape.cli.listing")
    monkeypatch.setattr(module, "command", command)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (TaskError("first\n  second"), 1, "error: first second"),
        (
            KeyError("weights"),
            1,
            "error: KeyError: 'weights' (this is a bug or an unexpected error; --debug shows the traceback)",
        ),
        (PermissionError(13, "Permission denied", "run.h5"), 1, "error: run.h5: Permission denied"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9"),
            1,
            "error: out of memory (DefaultCPUAllocator: can't allocate memory: 9); give the task smaller batches: "
            "Task(batch_size=...)",
        ),
        (
            EOFError("ended"),
            1,
            "error: EOFError: ended (this is a bug or an unexpected error; --debug shows the traceback)",
        ),
        (KeyboardInterrupt(), 130, "interrupted: stopped by Ctrl-C"),
        (cli.Terminated(15), 143, "interrupted: stopped by signal 15"),
        (click.UsageError("which one?"), 2, "Error: which one?"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_goes_wrong_is_one_line(monkeypatch, error, status, line):
    failing(monkeypatch, error)
    result = landscape("list")
    assert result.exit_code == status
    assert result.stderr.strip().splitlines()[-1] == line
    assert "Traceback" not in result.output


def test_what_to_do_stands_below_the_line(monkeypatch):
    error = TaskError("no task")
    error.add_note("type this")
    failing(monkeypatch, error)
    assert landscape("list").stderr == "error: no task\ntype this\n"


@pytest.mark.parametrize("arguments", [["--debug", "list"], ["list", "--debug"]])
def test_debug_shows_the_traceback(monkeypatch, arguments):
    failing(monkeypatch, KeyError("weights"))
    result = landscape(*arguments)
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "KeyError: 'weights'" in result.stderr


def test_a_closed_pipe_is_quiet(world):
    done("probe", "tiny.pt", "--only", "performance", "-o", "tiny.h5")
    command = f"{sys.executable} -m landscape.cli show tiny.h5 | true"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    ended = subprocess.run(command, shell=True, cwd=world, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""


class Terminal:
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("no_color", "tty", "expected"), [("", True, True), ("1", True, False), ("", False, False)])
def test_colour_only_on_a_terminal_that_did_not_refuse_it(monkeypatch, no_color, tty, expected):
    monkeypatch.setenv("NO_COLOR", no_color)
    if tty:
        monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.coloured() is expected


def test_a_library_warning_is_one_line_on_stderr(monkeypatch):
    @click.command(cls=Command)
    def command() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("old\nformat", UserWarning, stacklevel=1)
        click.echo("result")

    monkeypatch.setattr(cli.importlib.import_module("landscape.cli.listing"), "command", command)
    before = warnings.showwarning
    result = landscape("list")
    assert (result.stdout, result.stderr) == ("result\n", "warning: old format\n")
    assert warnings.showwarning is before


# -------------------------------------------------------------------------------------------------- signals


def test_a_signal_inside_a_measurement_leaves_a_readable_archive(world, monkeypatch):
    monkeypatch.setenv("SIGNAL_MYSELF", str(int(signal.SIGTERM)))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    result = landscape("probe", "mine.pt", "--only", "performance,stopped")
    assert result.exit_code == 143
    assert "kept in" in result.stderr
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    kept = open_archive("mine.landscape.h5")
    assert (kept.status, [e.kind for e in kept.entries]) == ("interrupted", ["performance"])
    assert kept.entries[0].result.summary()["loss"]["train"] > 0


def test_a_signal_before_the_first_result_leaves_nothing(world, monkeypatch):
    monkeypatch.setenv("SIGNAL_MYSELF", str(int(signal.SIGINT)))
    result = landscape("probe", "mine.pt", "--only", "stopped")
    assert result.exit_code == 130
    assert list(world.glob("*.h5*")) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_is_stopped(world, number, status):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "landscape.cli", "probe", "mine.pt", "--only", "performance,stopped"]
    with subprocess.Popen(
        command, cwd=world, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        limit = time.monotonic() + 100
        while not (world / "waiting").exists():
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < limit
            time.sleep(0.05)
        child.send_signal(number)
        out, error = child.communicate(timeout=60)
    assert child.returncode == status
    assert out == ""
    assert "Traceback" not in error
    kept = open_archive(world / "mine.landscape.h5")
    assert (kept.status, [e.kind for e in kept.entries]) == ("interrupted", ["performance"])
    assert sorted(p.name for p in world.glob("*.h5*")) == ["mine.landscape.h5"]


# --------------------------------------------------------------------------------------------------- output


def test_not_finite_numbers_become_null_and_are_named():
    value = {"a": [1.0, float("nan"), {"b": float("inf")}], "c": {"d": -float("inf"), "e": True}, "f": "nan"}
    assert finite(value) == (
        {"a": [1.0, None, {"b": None}], "c": {"d": None, "e": True}, "f": "nan"},
        ["a[1]", "a[2].b", "c.d"],
    )


def test_a_table_lines_up():
    assert table([["a", "bb", "c"], ["aaa", "b"]], indent=1) == " a    bb  c\n aaa  b"


def test_a_terminal_without_a_character_gets_a_question_mark():
    result = CliRunner(charset="ascii").invoke(cli.main, ["--help"])
    assert result.exit_code == 0


# ----------------------------------------------------------------------------------------------------- list


def test_list_says_options_defaults_presets_and_sources():
    text = done("list")
    for m in registry.measurements().values():
        assert re.search(rf"^{m.name}( \*)?  \({m.section}\)", text, re.M)
        for name, option in m.options.items():
            assert re.search(rf"^    {name} .*{re.escape(option.source)}", text, re.M), (m.name, name)


def test_list_as_json():
    shown = json.loads(done("list", "measurements", "--json"))["measurements"]
    eigenvalues = next(m for m in shown if m["name"] == "eigenvalues")
    assert eigenvalues["section"] == "curvature"
    assert eigenvalues["options"]["k"]["default"] == 10
    assert eigenvalues["presets"]["quick"] == {"k": 5}


# ----------------------------------------------------------------------------------------------------- init


def test_init_writes_a_task_file_that_check_understands(world):
    result = landscape("init", "plain.pt")
    assert (result.exit_code, result.stdout) == (0, "plain_task.py\n")
    assert "landscape check plain_task.py plain.pt" in result.stderr
    written = (world / "plain_task.py").read_text()
    # The model is guessed from the names and shapes; the data are what only the user has.
    filled = written.replace("raise NotImplementedError", "from tasks import data\n    return data(), data()\n    #")
    (world / "plain_task.py").write_text(filled)
    assert "will be measured" in done("check", "plain_task.py", "plain.pt")


def test_init_refuses_to_replace(world):
    (world / "plain_task.py").write_text("mine")
    result = landscape("init", "plain.pt")
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert (world / "plain_task.py").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------- check


def test_check_as_json(world):
    shown = json.loads(done("check", "tasks.py:tiny", "tiny.pt", "--json"))
    assert shown["ok"] is True
    assert {f["level"] for f in shown["findings"]} == {"pass"}
    assert shown["measurements"]["eigenvalues"] == {"works": True, "reason": ""}
    assert shown["batch"]["samples"] == 200
    assert 0 < shown["presets"]["quick"]["seconds"][0] < shown["presets"]["quick"]["seconds"][1]


def test_check_of_what_cannot_be_measured_fails(world):
    result = landscape("check", "tasks.py:noisy")
    assert result.exit_code == 1
    assert re.search(r"^FAILS +loss +the loss is not deterministic", result.stdout, re.M)
    shown = landscape("check", "tasks.py:noisy", "--json")
    assert shown.exit_code == 1
    assert json.loads(shown.stdout)["ok"] is False


WAVES = """
import torch
from torch import nn

from landscape import Task, task


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.wave, self.out = nn.Parameter(torch.randn(5, 3) + 0j), nn.Linear(3, 3)

    def forward(self, x):
        return self.out((x.to(self.wave.dtype) @ self.wave).real)


@task
def waves():
    return Task(Net(), nn.CrossEntropyLoss(), train=(torch.randn(8, 5), torch.arange(8) % 3))
"""


def test_check_and_show_name_what_is_left_out_of_a_model_with_complex_weights(world):
    (world / "waves.py").write_text(WAVES)
    python("import torch; from waves import Net; torch.save(Net().state_dict(), 'waves.pt')", world)
    said = "1 complex parameter is held fixed (wave: 15 numbers of two parts, beside 12 real ones)"
    assert re.search(rf"^note +complex +{re.escape(said)}", done("check", "waves.py:waves", "waves.pt"), re.M)
    done("probe", "waves.pt", "--task", "waves.py:waves", "--only", "performance", "-o", "waves.h5")
    assert said in " ".join(done("show", "waves.h5").split())


def test_probes_are_listed_with_what_they_record():
    found = json.loads(done("list", "probes", "--json"))["probes"]
    assert {"GradientNorms", "Updates", "CurvatureProbe", "CalibrationProbe"} <= {p["class"] for p in found}
    assert all(p["doc"] for p in found)
    assert next(p for p in found if p["class"] == "CurvatureProbe")["arguments"]["k"] == 1
