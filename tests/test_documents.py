"""What the README and the guides say: links lead somewhere; names, options, counts, messages are those of the code."""

from __future__ import annotations

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from documents import GUIDES, PAGES, ROOT, anchors, blocks, links

import landscape
from landscape.cli.main import main

#: Every page whose links are looked after.
LINKED = [*PAGES, "ARCHITECTURE.md", "CHANGELOG.md", "examples/README.md"]

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
    assert set(GUIDES) <= {link.partition("#")[0] for link in links("README.md")}


# ------------------------------------------------------------------------------------------------- facts


def test_names_of_the_package_that_a_page_uses_are_there() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python":
                for name in re.findall(r"\b(?:ls|landscape)\.(\w+)", block.text):
                    assert name in landscape.__all__ or name in ("probes", "training", "dynamics"), (block.where, name)


def test_the_page_of_names_is_up_to_date() -> None:
    module = runpy.run_path(str(ROOT / "docs" / "names.py"))
    assert (ROOT / "docs" / "python.md").read_text("utf-8") == module["page"](), "run `make names`"


def test_as_many_losses_schedules_and_optimizers_are_named_as_there_are() -> None:
    def own(registry: Any) -> int:
        """Return how many come with the package: other tests register their own."""
        return sum(registry._origins[name][0].startswith(("landscape.", "torch.")) for name in registry.names())

    losses, schedules, optimizers = map(own, (landscape.losses, landscape.schedules, landscape.optimizers))
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
