"""`python -m landscape.cli`: the same as the console script."""

from __future__ import annotations

from .main import main

main(prog_name="landscape")
