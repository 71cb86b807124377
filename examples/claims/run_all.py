"""Measure every claim, and write what came as a Markdown table: python run_all.py [--quick] [--only NAME] [-o FILE]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import edge_of_stability
import large_batches
import skip_connections
import squentropy
import step_decay
import warmup
from common import Claim, Measure, timed

#: Name of the script: what measures, over how many seeds.
CLAIMS: dict[str, tuple[Measure, int]] = {
    "large_batches": (large_batches.measure, 8),
    "warmup": (warmup.measure, 12),
    "skip_connections": (skip_connections.measure, 5),
    "edge_of_stability": (edge_of_stability.measure, 4),
    "squentropy": (squentropy.measure, 8),
    "step_decay": (step_decay.measure, 8),
}
HEAD = ("claim", "expected", "came (mean, 95% interval)", "here")


def rows_of(claim: Claim) -> list[tuple[str, ...]]:
    """Return a row for the claim and its verdict, and one for each finding."""
    seconds = f"{claim.seconds:.0f} s of processor time"
    rows = [(f"**{claim.says}** ({claim.source})", claim.setting, seconds, f"**{claim.verdict}**")]
    return rows + [
        ("", f.expected if f.decides else f"*beside:* {f.expected}", f.came, f.verdict) for f in claim.findings
    ]


def table(claims: list[Claim]) -> str:
    """Return the claims as a Markdown table."""
    rows = [HEAD, ("---",) * len(HEAD), *(row for claim in claims for row in rows_of(claim))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure every claim, and write what came as a Markdown table.")
    parser.add_argument("--quick", action="store_true", help="two seeds and little data: seconds, and no evidence")
    parser.add_argument("--only", action="append", choices=CLAIMS, help="this claim (repeat for several)")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw into this folder")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="the table; stdout where left out")
    asked = parser.parse_args()
    measured = []
    for name in asked.only or CLAIMS:
        measure, seeds = CLAIMS[name]
        measured.append(timed(measure, range(2 if asked.quick else seeds), asked.quick, asked.figures))
        print(measured[-1], "\n", file=sys.stderr, flush=True)
    if asked.output is None:
        print(table(measured), end="")
    else:
        asked.output.write_text(table(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
