"""What recording costs: rows into segments, back out of them, and into the archive.

    python benchmarks/recorder.py --only archive

Section `archive`: a million steps of 200 names, as fast as one thread can hand them over, written with bounded memory;
the same compacted, in memory that is the process's own (mapped pages of the segments are the system's); and read back,
warm. Targets: at least 100,000 rows a second, at most 1.02 times the raw numbers on disk, read in 1 s.

Further sections are functions in `SECTIONS`; each keeps its figures in the same JSON file, beside those of the others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

STEPS, NAMES = 1_000_000, 200
TARGETS = {"rows_per_second": 100_000, "bytes_over_raw": 1.02, "read_seconds": 1.0}

#: Runs in a process of its own, so that its memory is its own: writes the rows, says what it took as JSON.
_WRITE = """
import json, sys, time
import numpy as np
from benchmarks_memory import Peak
from landscape.archive.compaction import begin_run
from landscape.archive.live import LiveWriter
from landscape.archive.segments import live_folder
path, steps, names = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begin_run(path, run={}, attributes={"run_id": "benchmark"}, force=True)
rows = np.random.default_rng(0).standard_normal((1024, names))
with Peak() as peak:
    wall, busy = time.perf_counter(), time.process_time()
    writer = LiveWriter(live_folder(path), {"gradient_norm": [f"layer{i}" for i in range(names)]})
    for step in range(steps):
        writer.append("gradient_norm", step, rows[step & 1023] + step)
    writer.close()
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
assert (writer.lost, writer.problem) == (0, None), (writer.lost, writer.problem)
print(json.dumps({"wall": wall, "busy": busy, "peak": peak.bytes, "size": writer.path.stat().st_size}))
"""
_COMPACT = """
import json, sys, time
from benchmarks_memory import Peak
from landscape.archive.compaction import compact
with Peak() as peak:
    wall, busy = time.perf_counter(), time.process_time()
    path = compact(sys.argv[1], "complete")
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
print(json.dumps({"wall": wall, "busy": busy, "peak": peak.bytes, "size": path.stat().st_size}))
"""


class Peak:
    """The greatest anonymous memory of this process in a block, beyond what it began with, in bytes.

    Mapped pages of files are the system's own to drop, and don't count. Linux only; elsewhere `bytes` is None.
    """

    def __enter__(self) -> Peak:
        self.bytes: int | None = None
        self._begun = _anonymous()
        self._most = self._begun or 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._begun is not None:
            self.bytes = self._most - self._begun

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._most = max(self._most, _anonymous() or 0)


def _anonymous() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), None)


def archive(given: argparse.Namespace) -> dict[str, Any]:
    """Write, compact and read a long run; medians of several runs, wall and processor time."""
    steps, raw = given.steps, given.steps * (NAMES + 1) * 8
    written, compacted = [], []
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        path = folder / "run.h5"
        for turn in range(given.runs):
            shutil.rmtree(f"{path}.live", ignore_errors=True)
            written.append(_child(_WRITE, path, steps, NAMES))
            live = written[-1]["size"]
            compacted.append(_child(_COMPACT, path))
            done = compacted[-1]
            print(
                f"run {turn + 1}: {steps / written[-1]['wall']:,.0f} rows/s ({steps / written[-1]['busy']:,.0f} a "
                f"second of processor), {live / raw:.4f} x raw; compacted in {done['wall']:.1f} s, "
                f"{done['size'] / raw:.4f} x raw"
            )
        timings = {
            clock: harness.time_by_turns({"read": lambda: _read(path, steps)}, given.runs, clock=ticks)["read"]
            for clock, ticks in (("wall", time.perf_counter), ("processor", time.process_time))
        }
    finally:
        shutil.rmtree(folder)

    def median(found: list[dict[str, Any]], key: str) -> float | None:
        known = [f[key] for f in found if f[key] is not None]
        return float(np.median(known)) if known else None

    wall, busy = median(written, "wall"), median(written, "busy")
    assert wall is not None
    assert busy is not None
    figures = {
        "steps": steps,
        "names": NAMES,
        "runs": given.runs,
        # Of a machine that others use too, wall times say little where this is above the number of processors.
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "targets": TARGETS,
        "rows_per_second": round(steps / wall),
        "rows_per_processor_second": round(steps / busy),
        "rows_per_second_of_each_run": [round(steps / w["wall"]) for w in written],
        "bytes_over_raw": round(max(w["size"] for w in written) / raw, 5),
        "bytes_over_raw_compacted": round(max(c["size"] for c in compacted) / raw, 5),
        "anonymous_megabytes_writing": _megabytes(median(written, "peak")),
        "anonymous_megabytes_compacting": _megabytes(median(compacted, "peak")),
        "compaction_seconds": round(median(compacted, "wall") or 0, 3),
        "compaction_processor_seconds": round(median(compacted, "busy") or 0, 3),
        "read_seconds": timings["wall"].summary(),
        "read_processor_seconds": timings["processor"].summary(),
    }
    print(
        f"{figures['rows_per_second']:,} rows/s (target {TARGETS['rows_per_second']:,}), "
        f"{figures['anonymous_megabytes_writing']} MB while writing, {figures['anonymous_megabytes_compacting']} MB "
        f"while compacting, read in {timings['wall'].median:.2f} s"
    )
    return figures


def _read(path: Path, steps: int) -> None:
    from landscape import open_archive

    found = open_archive(path).history["gradient_norm"]
    assert found.values.shape == (steps, NAMES)
    assert int(found.steps[-1]) == steps - 1


def _child(code: str, *arguments: object) -> dict[str, Any]:
    own = f"import importlib.util, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    own += "import recorder\nsys.modules['benchmarks_memory'] = recorder\n"
    command = [sys.executable, "-c", own + code, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def _megabytes(size: float | None) -> float | None:
    return None if size is None else round(size / 2**20, 1)


SECTIONS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"archive": archive}


def main() -> None:
    parser = argparse.ArgumentParser(description="What recording a training costs.")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="section to run; repeatable (default all)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each measurement (default 3)")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the long run (default 1,000,000)")
    parser.add_argument("--folder", type=Path, help="where the long run is written (default the system's own)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    given = parser.parse_args()
    kept = (given.out or harness.RESULTS) / "recorder.json"
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    figures = {name: before[name] for name in SECTIONS if name in before}
    for name in given.only or SECTIONS:
        figures[name] = SECTIONS[name](given)
        print(harness.write("recorder", figures, given.out))


if __name__ == "__main__":
    main()
