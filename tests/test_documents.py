"""The README and the guides: each block of code runs, each line of output shown is printed, links lead somewhere.

A page's blocks run one after the other in a folder that holds `digits_task.py` of the examples and the `digits.pt` that
it trains, as the page tells its reader. A block of Python that begins with a line `# name.py` is that file. What
follows in a block of `text` is what the block before it prints, numbers aside. A comment above a block says what is
otherwise: `<!-- exit 1 -->` the exit status of its last command, `<!-- not run: ... -->` why it can't run here: then it
has to compile, or its commands to be known; `<!-- not compared: ... -->` why a block of output isn't looked for.
"""

from __future__ import annotations

import ast
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
from documents import ROOT, Block, anchors, blocks, commands, links, masked

import landscape
from landscape import results
from landscape.cli.main import main

GUIDES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", *GUIDES]
#: Every page whose links are looked after.
LINKED = [*PAGES, "ARCHITECTURE.md", "CHANGELOG.md", "examples/README.md"]
#: What is made smaller when a block runs here: (pattern, in its place).
SMALLER = [
    (r"--epochs 20", "--epochs 1"),
    (r"\bepochs=20", "epochs=1"),
    (r"f\"cuda:{os.environ\['LOCAL_RANK'\]}\"", '"cpu"'),
]
#: What torchrun tells a process: here, that it is the only one.
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


# ------------------------------------------------------------------------------------------------- the blocks


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


def test_names_of_the_package_that_a_page_uses_are_there() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                for name in re.findall(r"\b(?:ls|landscape)\.(\w+)", block.text):
                    assert name in landscape.__all__ or name in ("probes", "training", "dynamics"), (block.where, name)


def test_a_line_that_was_not_printed_is_told() -> None:
    block = Block("page", 1, "text", "loss 1.5\n...\nsmallest −0.3 of ...\n", "")
    shown(block, "loss   0.25\nother\nsmallest 3 × 10⁻⁴ of many\n")
    for printed in ("smallest 1 of many\nloss 2\n", "loss 2\nsmallest 1 from many\n"):
        with pytest.raises(AssertionError, match="not printed: smallest"):
            shown(block, printed)


# ------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", LINKED)
def test_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(str(target.relative_to(ROOT))), f"{page}: {link}"


def test_every_guide_is_reached_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in links("README.md")}
    assert {g for g in GUIDES if g != "docs/gallery.md"} <= linked | {"docs/gallery.md"}


# ------------------------------------------------------------------------------------------------- facts


def test_the_page_of_names_is_up_to_date() -> None:
    module = runpy.run_path(str(ROOT / "docs" / "names.py"))
    assert (ROOT / "docs" / "python.md").read_text("utf-8") == module["page"](), "run `make names`"


def test_as_many_losses_schedules_and_optimizers_are_named_as_there_are() -> None:
    counts = (landscape.losses.names(), landscape.schedules.names(), landscape.optimizers.names())
    losses, schedules, optimizers = map(len, counts)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"{losses} losses, {schedules} schedules and {optimizers} optimizers by name" in readme
    guide = (ROOT / "docs" / "sweeps.md").read_text("utf-8")
    assert f"{losses} by name: `landscape list losses`" in guide
    assert f"{schedules} by name: `landscape list schedules`" in guide


def test_options_that_a_page_names_are_options_of_a_command() -> None:
    context = click.Context(main)
    commands = [main.get_command(context, name) for name in main.list_commands(context)]
    options = {o for c in [main, *commands] if c for p in c.params for o in [*p.opts, *p.secondary_opts]}
    others = {"--nproc-per-node", "--array", "--signal", "--wrap"}  # of torchrun and sbatch
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        found = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        assert found <= options | others, (page, found - options - others)


def test_options_of_measurements_that_a_page_names_are_there() -> None:
    known = {f"{name}.{option}" for name, m in landscape.measurements().items() for option in m.options}
    assert len(known) > 50
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        named = set(re.findall(r"--option ([a-z_]+\.[a-z_]+)=", text))
        own = {n for n in named if f'measurement("{n.partition(".")[0]}"' in text}
        assert named - own <= known, (page, named - known)
        for listed in re.findall(r"`--only ([a-z_,]+)`", text):
            assert set(listed.split(",")) <= set(landscape.measurements()) | sections(), (page, listed)


def sections() -> set[str]:
    return {m.section for m in landscape.measurements().values()}


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    table = readme[readme.index("| command |") :].split("\n\n")[0]
    listed = set(re.findall(r"`(\w+)[^`]*`", table))
    assert set(main.list_commands(click.Context(main))) <= listed


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    said = "\n".join(text for folder in ("landscape", "probes", "cli") for text in strings(ROOT / folder))
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    messages = [m for table in re.split(r"^\| message ", page, flags=re.MULTILINE)[1:] for m in first_column(table)]
    assert len(messages) > 15
    assert [m for m in messages if any(piece.strip() not in said for piece in m.split("..."))] == []


def strings(folder: Path) -> Iterator[str]:
    """Yield every string in the code below a folder, docstrings apart."""
    for path in folder.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield node.value


def first_column(table: str) -> list[str]:
    """Return what stands as code in the first column of a table's rows."""
    rows = table.split("\n\n")[0].splitlines()[2:]
    return [found.group(1) for row in rows if (found := re.match(r"\| `([^`]+)` \|", row))]


def test_files_that_the_pages_about_the_code_name_are_there() -> None:
    there = [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    for page in ("ARCHITECTURE.md", "docs/decisions.md"):
        text = (ROOT / page).read_text("utf-8")
        named = set(re.findall(r"`([\w/]+\.(?:py|c|cpp))`", text)) - {"cli.py", "probes.py"}  # a user's own
        assert named
        assert [n for n in sorted(named) if not any(path.endswith(f"/{n}") for path in there)] == []
        folders = {f.rstrip("/") for f in re.findall(r"`((?:landscape|probes|cli|tests)/[\w/]*)`", text)}
        assert [f for f in sorted(folders) if not (ROOT / f).exists()] == []
