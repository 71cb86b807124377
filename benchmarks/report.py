"""How long a report of many runs takes to write, how large it is, and how soon a browser shows it.

`python benchmarks/report.py` from the root; `--runs 100 1000`. The archives are made up by the tests' seeded generator:
every result, a surface of 25 x 25 points and a training of 600 steps in each. Beyond the first 100, whose making takes
longer than all that is measured, they are copies of those with a name, a seed and ids of their own; with `--archives
FOLDER` they stay there, and are taken from there the next time.

The page is written by the command in a process of its own, whose wall and processor time are told apart (another
program's work shows in the first alone), and opened by headless Chromium from disk with the network off, where there is
one.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import harness

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

#: What the report must reach for 100 runs: seconds to write on two cores, MB, seconds to the first paint.
TARGETS = {"write_seconds": 20.0, "megabytes": 15.0, "first_paint_seconds": 2.0}
#: Archives with numbers of their own.
DISTINCT = 100
_WRITE = """
import json, resource, sys
from landscape.report.formats import write_report
paths, out = sorted(sys.argv[2:]), sys.argv[1]
write_report(paths, out)
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "megabytes": used.ru_maxrss / 1024,
                  "torch": "torch" in sys.modules}))
"""


def main() -> None:
    """Measure each number of runs and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--points", type=int, default=25)
    parser.add_argument("--archives", type=Path, help="folder to keep the archives in")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    figures: dict[str, Any] = {
        "distinct_archives": DISTINCT,
        "targets_for_100_runs": TARGETS,
        "steps": given.steps,
        "points": given.points,
    }
    for runs in given.runs:
        with tempfile.TemporaryDirectory() as folder:
            paths = archives(given.archives or Path(folder), runs, given.points, given.steps)
            found = measure(paths, Path(folder) / "report.html")
        print(f"{runs} runs: {json.dumps(found)}")
        figures[f"{runs}_runs"] = found
        harness.write("report", figures, given.out)


def archives(folder: Path, runs: int, points: int, steps: int) -> list[Path]:
    """Return the archives of so many runs, made where they are not in the folder yet."""
    from report_samples import name, settings, write_archives  # pyright: ignore[reportMissingImports]

    where = folder / f"{points}-points-{steps}-steps"
    paths = [where / f"{i}.h5" for i in range(runs)]
    if not all(path.exists() for path in paths[:DISTINCT]):
        where.mkdir(parents=True, exist_ok=True)
        write_archives(where, min(runs, DISTINCT), points, steps)
    for i in range(DISTINCT, runs):
        if not paths[i].exists():
            shutil.copy(paths[i % DISTINCT], paths[i])
            rename(paths[i], i, name(i), settings(i))
    return paths


def rename(path: Path, place: int, name: str, settings: dict[str, Any]) -> None:
    """Make an archive that of another run: its name, settings and ids, in each place where a reader looks."""
    with h5py.File(path, "r+") as file:
        file.attrs["run_id"] = f"sample-{place}"
        file["run"].attrs.update(settings)
        results: Any = file["results"]
        for group in (g for kind in results.values() for g in kind.values()):
            subject = json.loads(group.attrs["subject"])
            subject |= {"name": name, "facts": settings, "checkpoint": f"runs/{place}.pt"}
            group.attrs["subject"] = json.dumps(subject | {"fingerprint": f"{place:04d}cd56"})


def measure(paths: Sequence[Path], page: Path) -> dict[str, Any]:
    """Return the figures of a report of these archives."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _WRITE, str(page), *map(str, paths)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - began
    told = json.loads(done.stdout)
    found: dict[str, Any] = {
        "write_seconds": round(wall, 2),
        "write_processor_seconds": round(told["cpu"], 2),
        "write_peak_megabytes": round(told["megabytes"]),
        "torch_imported": told["torch"],
        "megabytes": round(page.stat().st_size / 1e6, 2),
    }
    return found | opened(page)


def opened(path: Path) -> dict[str, Any]:
    """Return when a browser painted first and had everything, and how many elements the page has; empty without one."""
    from browser import browser, chromium  # pyright: ignore[reportMissingImports]

    if chromium() is None:
        return {}
    paints, loads = [], []
    elements = 0
    with browser() as chrome:
        for _ in range(3):
            page = chrome.open(path, 1280, 900)
            paints.append(page.value("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
            loads.append(page.value("performance.getEntriesByType('navigation')[0].domComplete"))
            elements = page.value("document.querySelectorAll('*').length")
            problems = page.complaints()
            page.close()
            if problems:
                raise RuntimeError(f"the page has errors: {problems}")
    return {
        "first_paint_seconds": round(sorted(paints)[1] / 1000, 3),
        "loaded_seconds": round(sorted(loads)[1] / 1000, 3),
        "elements": elements,
    }


if __name__ == "__main__":
    main()
