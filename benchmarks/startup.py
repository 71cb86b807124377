"""How long the command line takes to answer: `landscape --help` against `python -c "import click"`.

The target is a ratio of 3 at most: reading an archive or asking for help must not wait for torch. The floor is an
interpreter that does nothing. `landscape show` reads a small archive written here, and so pays for h5py and NumPy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np

from landscape import Eigenpairs, Plane, save_archive

TARGET = 3.0
FLOOR, CLICK, HELP, SHOW = "python -c pass", 'python -c "import click"', "landscape --help", "landscape show"


def main() -> None:
    parser = argparse.ArgumentParser(description="How long the command line takes to answer.")
    parser.add_argument("--runs", type=int, default=30, help="runs of each command (default 30)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    given = parser.parse_args()
    landscape = str(Path(sys.executable).with_name("landscape"))
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "run.h5"
        write_small_archive(archive)
        timings = harness.time_by_turns(
            {
                FLOOR: harness.process([sys.executable, "-c", "pass"]),
                CLICK: harness.process([sys.executable, "-c", "import click"]),
                HELP: harness.process([landscape, "--help"]),
                SHOW: harness.process([landscape, "show", str(archive)]),
            },
            runs=given.runs,
        )
    for name, timing in timings.items():
        print(f"{timing.median * 1000:8.1f} ms  {timing.median / timings[CLICK].median:5.2f}x  {name}")
    ratio = timings[HELP].median / timings[CLICK].median
    print(f"{HELP} takes {ratio:.2f} times {CLICK}; the target is at most {TARGET:g}")
    figures = {
        "seconds": {name: timing.summary() for name, timing in timings.items()},
        "ratio": {"help_over_click": round(ratio, 3), "target": TARGET},
    }
    print(harness.write("startup", figures, given.out))


def write_small_archive(path: Path) -> None:
    """Write what `landscape probe --preset quick` leaves of one checkpoint: eigenvalues and a 15 x 15 plane."""
    steps, ten = np.linspace(-1, 1, 15), np.linspace(10, 1, 10)
    none = np.empty(0)
    pairs = Eigenpairs(
        values=ten,
        residuals=1e-3 * ten,
        converged=ten > 0,
        smallest=none,
        smallest_residuals=none,
        smallest_converged=none > 0,
    )
    plane = Plane(
        alpha=steps,
        beta=steps,
        loss=np.add.outer(steps**2, steps**2),
        evaluated=np.ones((15, 15), dtype=bool),
        center_loss=0.0,
        checkpoint_loss=0.0,
        cosine=0.0,
        direction_norms=np.ones(2),
    )
    save_archive(path, [pairs, plane])


if __name__ == "__main__":
    main()
