"""Memory and time of a trajectory through many checkpoints: 1,000 of 10 million parameters in less than 4 GB.

The checkpoints are made here, one at a time (a random walk that slows down, float32, one file each, 40 MB at 10 million
parameters), and removed at the end: 1,000 take 40 GB of disk. The trajectory runs in a process of its own, whose
largest resident set is the figure: mapped pages of files are part of it. Losses are evaluated at every checkpoint and
at its place on the plane, on a small draw, so that reading and algebra are what is timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch
from torch import nn

from landscape import Task
from landscape.surface.rows import MEMORY, Rows
from landscape.surface.trajectory import trajectory

LIMIT_GB = 4.0
INPUTS = 64


def net(parameters: int) -> nn.Sequential:
    """Return a network of two layers with about this many parameters, in the usual first draw."""
    torch.manual_seed(0)
    width = max(1, parameters // (INPUTS + 1 + 10))
    return nn.Sequential(nn.Linear(INPUTS, width), nn.Tanh(), nn.Linear(width, 10))


def make(folder: Path, count: int, parameters: int) -> list[str]:
    """Write the checkpoints of a walk whose steps shrink as 1 / (1 + 10 i / count), and return their paths."""
    model = net(parameters)
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    drift = {k: torch.randn_like(v) for k, v in state.items()}
    paths = []
    for i in range(count):
        path = folder / f"{i:05d}.pt"
        torch.save(state, path)
        paths.append(str(path))
        size = 1e-3 / (1 + 10 * i / count)
        for k, v in state.items():
            v.add_(torch.randn_like(v), alpha=size).add_(drift[k], alpha=size)
    return paths


def measure(folder: Path, parameters: int, memory: int) -> dict[str, Any]:
    """Run the trajectory in this process and return its figures."""
    paths = sorted(str(p) for p in folder.glob("*.pt"))
    g = torch.Generator().manual_seed(1)
    data = torch.randn(8, INPUTS, generator=g), torch.randint(10, (8,), generator=g)
    task = Task(net(parameters), nn.CrossEntropyLoss(), data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = Rows(paths, task.model, memory)
    begun, spent = time.perf_counter(), time.process_time()
    found = trajectory(task, paths, memory=memory)
    seconds, processor = time.perf_counter() - begun, time.process_time() - spent
    assert found.share is not None
    return {
        "checkpoints": len(paths),
        "parameters": found.parameters,
        "bytes_of_all": len(paths) * found.parameters * 4,
        "pieces": rows.pieces,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "largest_resident_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
        "resident_before_gb": round(before * 1024 / 1e9, 3),
        "share": [round(float(s), 6) for s in found.share[:2]],
        "captured": round(found.captured, 6),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of a trajectory through many checkpoints.")
    parser.add_argument("--checkpoints", type=int, default=1000, help="how many (default 1,000)")
    parser.add_argument("--parameters", type=int, default=10_000_000, help="of each (default 10 million)")
    parser.add_argument("--memory", type=int, default=MEMORY, help="bytes for the piece of all rows (default 1 GiB)")
    parser.add_argument("--folder", type=Path, help="where the checkpoints lie meanwhile (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(measure(given.child, given.parameters, given.memory)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        make(Path(folder), given.checkpoints, given.parameters)
        command = [sys.executable, __file__, "--child", folder]
        command += ["--parameters", str(given.parameters), "--memory", str(given.memory)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    reached = figures["largest_resident_gb"] < LIMIT_GB
    print(
        f"{figures['checkpoints']:,} checkpoints of {figures['parameters']:,} parameters: {figures['seconds']:g} s "
        f"({figures['processor_seconds']:g} s of processor time), "
        f"{figures['largest_resident_gb']:g} GB resident at most (target: below {LIMIT_GB:g} GB)"
    )
    print(harness.write("trajectory", {**figures, "limit_gb": LIMIT_GB, "reached": reached}, given.out))


if __name__ == "__main__":
    main()
