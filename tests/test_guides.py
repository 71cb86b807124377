"""The README and the guides: each block of code runs, each line of output that is shown is printed.

A page's blocks run one after the other in a folder that holds `digits_task.py` of the examples and the `digits.pt` that
it trains, as the page tells its reader. A block of Python that begins with a line `# name.py` is that file. What
follows in a block of `text` is what the block before it prints, numbers aside. A comment above a block says what is
otherwise: `<!-- exit 1 -->` the exit status of its last command, `<!-- not run: ... -->` why it can't run here: then it
has to compile, or its commands to be known; `<!-- not compared: ... -->` why a block of output isn't looked for.
"""

from __future__ import annotations

import contextlib
import glob
import io
import re
import runpy
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import click
import pytest
from click.testing import CliRunner
from documents import PAGES, ROOT, Block, blocks, commands, masked

import landscape
from landscape import results
from landscape.cli.main import main

#: What is made smaller when a block runs here: (pattern, in its place).
SMALLER = [
    (r"--epochs 20", "--epochs 1"),
    (r"\bepochs=20", "epochs=1"),
    (r"f\"cuda:{os.environ\['LOCAL_RANK'\]}\"", '"cpu"'),
]
#: What torchrun tells a process: here, that it is the only one.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the task of the examples and the checkpoint that it trains."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(ROOT / "examples" / "digits_task.py", folder)
    with contextlib.chdir(folder):
        run_script(["digits_task.py", "digits.pt"])
    return folder


def a_project(folder: Path) -> None:
    """What the README takes for granted: a checkpoint, and the module that its model comes from."""
    (folder / "digits.pt").rename(folder / "ckpt.pt")
    (folder / "my_project.py").write_text(PROJECT, encoding="utf-8")


PROJECT = """
from digits_task import digits, network as MyNet
_ = digits()
my_train_set, my_test_set = _.train, _.test
"""
PREPARED: dict[str, Callable[[Path], None]] = {"README.md": a_project}


@contextlib.contextmanager
def process(folder: Path) -> Iterator[None]:
    """Forget what a process of its own would: the folder's modules, the losses and measurements that they register."""
    before = set(sys.modules)
    landscape.losses.names()  # those of the package are loaded on first use, and stay
    landscape.measurements()
    owners = ((landscape.losses, ("_entries", "_origins")), (results, ("_MEASUREMENTS", "_KINDS")))
    with contextlib.ExitStack() as stack:
        for owner, names in owners:
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, dict(getattr(owner, name))))
        yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "work"
    shutil.copytree(place, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name, value in ALONE.items():
        monkeypatch.setenv(name, value)
    with process(folder):
        yield folder


def smaller(text: str) -> str:
    for pattern, instead in SMALLER:
        text = re.sub(pattern, instead, text)
    return text


def run_python(block: Block, names: dict[str, Any]) -> str:
    said = io.StringIO()
    code = compile("\n" * block.line + smaller(block.text), str(ROOT / block.page), "exec")
    with contextlib.redirect_stdout(said):
        exec(code, names)
    return said.getvalue()


def run_command(words: list[str]) -> tuple[str, int]:
    """Run one command in this process; return what it printed, and its exit status."""
    program, *arguments = [found for word in words for found in (sorted(glob.glob(word)) or [word])]
    if program == "landscape":
        done = CliRunner().invoke(main, arguments)
        if done.exception and not isinstance(done.exception, SystemExit):
            traceback.print_exception(done.exception)
            raise done.exception
        return done.output, done.exit_code
    assert program == "python", f"{program} is not run here: say so above the block, or run it"
    return run_script(arguments), 0


def run_script(arguments: list[str]) -> str:
    said = io.StringIO()
    before, sys.argv = sys.argv, arguments
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(arguments[0], run_name="__main__")
    finally:
        sys.argv = before
    return said.getvalue()


def run_commands(block: Block) -> str:
    expected = int(block.remark.removeprefix("exit ")) if block.remark.startswith("exit ") else 0
    said, every = "", commands(Block(block.page, block.line, block.language, smaller(block.text), ""))
    for i, words in enumerate(every):
        with process(Path.cwd()):
            output, status = run_command(words)
        assert status == (expected if i == len(every) - 1 else 0), f"{block.where}: {' '.join(words)}\n{output}"
        said += output
    return said


def known(words: list[str]) -> None:
    """Hold that a command which isn't run here would be understood."""
    program, *arguments = words
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE), words
    elif program == "pip":
        extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text("utf-8"), flags=re.MULTILINE)
        for extra in re.findall(r"\[(\w+)\]", " ".join(arguments)):
            assert extra in extras, words
    elif program == "landscape":
        name, *rest = arguments
        command = main.get_command(click.Context(main), name)
        assert command is not None, words
        command.make_context(name, rest)  # raises for an option or an argument that isn't known
    else:  # a job's own command is the words of one of its arguments
        assert program == "sbatch", words


def shown(block: Block, output: str) -> None:
    """Hold that each line of a block of output was printed, in this order.

    A line `...` stands for others, and at a line's end for the rest of it.
    """
    printed = iter(masked(output))
    for line in masked(block.text):
        rest = line.endswith("...")
        found = line == "..." or any(p.startswith(line[:-3]) if rest else p == line for p in printed)
        assert found, f"{block.where}: not printed: {line}\n--- printed:\n{output}"


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page: str, folder: Path) -> None:
    PREPARED.get(page, lambda _: None)(folder)
    names: dict[str, Any] = {"__name__": "page"}
    output = ""
    for block in blocks(page):
        if block.language == "text":
            if not block.remark.startswith("not compared: "):
                shown(block, output)
        elif block.remark.startswith("not run: "):
            if block.language == "python":
                compile(block.text, block.where, "exec")
            else:
                for words in commands(block):
                    known(words)
        elif block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            output = run_python(block, names)
        else:
            assert block.language == "bash", f"{block.where}: say what language this is"
            output = run_commands(block)


def test_a_line_that_was_not_printed_is_told() -> None:
    block = Block("page", 1, "text", "loss 1.5\n...\nsmallest −0.3 of ...\n", "")
    shown(block, "loss   0.25\nother\nsmallest 3 × 10⁻⁴ of many\n")
    for printed in ("smallest 1 of many\nloss 2\n", "loss 2\nsmallest 1 from many\n"):
        with pytest.raises(AssertionError, match="not printed: smallest"):
            shown(block, printed)
