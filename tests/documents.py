"""Read Markdown pages as tests need them: their blocks of code, their links, the anchors of their headings."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GUIDES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))
PAGES = ["README.md", *GUIDES]
#: A number as the command line prints one: signs, exponents and separators of thousands belong to it.
NUMBER = re.compile(r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?: × 10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)?")
#: Bars, curves and rules drawn in letters.
BAR = re.compile(r"[·=▁▂▃▄▅▆▇█<>]{4,}|-{4,}")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, where it stands, and the comment `<!-- ... -->` right above it."""

    page: str
    line: int
    language: str
    text: str
    remark: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str:
        """The name of the file that a Python block is, by a first line such as `# my_task.py`; else ""."""
        found = re.match(r"# ([\w/]+\.py)\n", self.text)
        return found.group(1) if found and self.language == "python" else ""


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page (a path below the root), in order."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    found, i = [], 0
    while i < len(lines):
        if fence := re.match(r"```(\w*)$", lines[i]):
            end = lines.index("```", i + 1)
            remark = re.fullmatch(r"<!-- (.*) -->", lines[i - 1]) if i else None
            text = "\n".join(lines[i + 1 : end]) + "\n"
            found.append(Block(page, i + 1, fence.group(1), text, remark.group(1) if remark else ""))
            i = end
        i += 1
    return found


def commands(block: Block) -> list[list[str]]:
    """Return the commands of a block of the shell, as words; a line that ends in a backslash goes on."""
    joined = block.text.replace("\\\n", " ")
    words = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [w for w in words if w]


def masked(text: str) -> list[str]:
    """Return the lines of what was printed, with numbers, bars and runs of blanks made alike."""
    lines = (NUMBER.sub("#", BAR.sub("~", line)) for line in text.splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def prose(page: str) -> str:
    """Return a page without its fenced blocks, and without code within lines."""
    text = (ROOT / page).read_text("utf-8")
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def links(page: str) -> list[str]:
    """Return where the links and pictures of a page lead."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    made: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number, taken = 0, anchor
        while taken in made:
            number += 1
            taken = f"{anchor}-{number}"
        made.add(taken)
    return made
