"""The gallery: every picture is there and small, every command beside one is a command that would run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from landscape.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gallery.md"


@pytest.mark.parametrize("page", ["README.md", "docs/gallery.md"])
def test_every_picture_is_there_and_small(page: str) -> None:
    path = ROOT / page
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text("utf-8"))
    assert pictures
    for picture in pictures:
        size = (path.parent / picture).stat().st_size
        assert 1_000 < size < 150_000, picture


def test_every_command_of_the_gallery_would_run(tmp_path: Path) -> None:
    commands = re.findall(r"^    (landscape .*)$", PAGE.read_text("utf-8"), flags=re.MULTILINE)
    assert len(commands) == len(list((ROOT / "docs" / "gallery").glob("*.png")))
    for text in commands:
        _, name, *arguments = shlex.split(text)
        command = main.get_command(click.Context(main), name)
        assert command is not None
        command.make_context(name, arguments)  # raises for an option or an argument that isn't known


def test_the_page_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("gallery", ROOT / "examples" / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    gallery = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gallery)
    text = PAGE.read_text("utf-8")
    for name, (title, seen, command) in gallery.PICTURES.items():
        for part in (title, seen, f"{command.format(demo='landscape-demo')} -o {name}.png"):
            assert part in text
