"""What every benchmark shares: facts about the machine, timing by turns, and a JSON file of the results.

Run a benchmark from the root, `python benchmarks/startup.py`; its figures land in benchmarks/results/, with what they
were measured on and nothing that names a machine, a user or a path.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
#: Libraries whose versions decide how fast things are.
LIBRARIES = ("landscape-probe", "torch", "numpy", "scipy", "h5py", "click", "pyhessian", "curvlinops-for-pytorch")


@dataclass(frozen=True)
class Timing:
    """Wall times of one way of doing something, in seconds, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def summary(self) -> dict[str, Any]:
        """Return median, quartiles, least and count, rounded to the microsecond."""
        low, _, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else [self.median] * 3
        found = {"median": self.median, "quartiles": [low, high], "least": min(self.seconds)}
        rounded = {k: [round(x, 6) for x in v] if isinstance(v, list) else round(v, 6) for k, v in found.items()}
        return {**rounded, "runs": len(self.seconds)}


def time_by_turns(
    ways: Mapping[str, Callable[[], object]],
    runs: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time each way `runs` times, one after the other in turn, so that a slow minute of the machine hits all alike.

    `warmup` rounds before that are not counted: they fill the file cache and compile bytecode (one is enough for both).
    `clock` may be time.process_time, for ways that run in this process on one thread of a busy machine.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(warmup + runs):
        for name, way in ways.items():
            begun = clock()
            way()
            if turn >= warmup:
                seconds[name].append(clock() - begun)
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def process(arguments: Sequence[str]) -> Callable[[], object]:
    """Return a way that runs a whole process, its output thrown away; raises when it fails."""
    return lambda: subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def machine() -> dict[str, Any]:
    """Return what the figures were measured on: processors, memory, system, Python and library versions, devices."""
    facts: dict[str, Any] = {
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: v for name in LIBRARIES if (v := _version(name))},
    }
    try:
        import psutil
    except ImportError:
        pass  # the bench extra is not installed: the figure stands without it
    else:
        facts["memory_gib"] = round(psutil.virtual_memory().total / 2**30, 1)
    torch = sys.modules.get("torch")  # a benchmark that does not use torch must not start it
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["devices"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def write(name: str, figures: Mapping[str, Any], out: Path | None = None) -> Path:
    """Write figures and machine facts to benchmarks/results/NAME.json (or below `out`), and return the path."""
    path = (out or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = datetime.now(UTC).date().isoformat()
    text = json.dumps({"benchmark": name, "measured": measured, "machine": machine(), **figures}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's model, which platform.processor() leaves out on Linux."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
