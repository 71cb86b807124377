"""What sharing a draw between processes saves: the same measurements by one process and by two, each with one thread.

Wall times are by turns, so that other work on the machine hits all alike; processor time is that of the process that
took longest, and says how much of the work fell to each without what it waited for the other. Target: 0.55 of one
process for two (chosen by us: half, and a tenth of it for exchanges and what each does for itself).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from resnets import ResNet, images

import landscape as ls
from landscape.objective import Objective

SAMPLES, BATCH = 256, 32


def measurements() -> dict[str, Callable[[Objective], object]]:
    def eigenvalues(objective: Objective) -> object:
        with ls.Hessian(objective, strategy="keep") as H:
            return ls.eigenpairs(H, k=2, tol=1e-2, verify=False).values

    def plane(objective: Objective) -> object:
        return ls.plane(objective, alphas=[-0.5, 0.0, 0.5], betas=[-0.5, 0.0, 0.5])

    return {"eigenvalues": eigenvalues, "plane of 3 x 3": plane}


def work(folder: Path, rank: int, world: int) -> None:
    """Measure as one process of several, and write down the seconds of each measurement."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if world > 1:
        store = f"file://{folder}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    x, y = (t[:SAMPLES] for t in images())
    task = ls.Task(ResNet(), torch.nn.CrossEntropyLoss(), (x, y), batch_size=BATCH)
    taken: dict[str, dict[str, float]] = {}
    with Objective(task, process_group=True if world > 1 else None) as objective:
        for name, measure in measurements().items():
            begun, busy = time.perf_counter(), time.process_time()
            measure(objective)
            taken[name] = {"wall": time.perf_counter() - begun, "processor": time.process_time() - busy}
    (folder / f"{rank}.json").write_text(json.dumps(taken))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may still be there


def measured(world: int) -> dict[str, dict[str, float]]:
    """Return the most that any of so many processes took, by measurement."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--rank"]
        processes = [subprocess.Popen([*command, str(r), str(world), folder]) for r in range(world)]
        if any(p.wait() for p in processes):
            raise RuntimeError("a process failed")
        found = [json.loads((Path(folder) / f"{r}.json").read_text()) for r in range(world)]
    return {name: {kind: max(f[name][kind] for f in found) for kind in found[0][name]} for name in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder of the JSON file; benchmarks/results by default")
    parser.add_argument("--rank", nargs=3, metavar=("RANK", "WORLD", "FOLDER"), help="be one of the processes")
    given = parser.parse_args()
    if given.rank:
        work(Path(given.rank[2]), int(given.rank[0]), int(given.rank[1]))
    seen = [(measured(1), measured(2)) for _ in range(given.runs)]
    figures: dict[str, Any] = {}
    for name in measurements():
        for kind in ("wall", "processor"):
            ratio = statistics.median(two[name][kind] / one[name][kind] for one, two in seen)
            figures.setdefault(name, {})[kind] = {
                "one": round(statistics.median(one[name][kind] for one, _ in seen), 3),
                "two": round(statistics.median(two[name][kind] for _, two in seen), 3),
                "ratio": round(ratio, 3),
            }
            print(f"{name}: {kind} time of two processes {ratio:.2f} of one's")
    settings = {"samples": SAMPLES, "batch_size": BATCH, "runs": given.runs}
    print(harness.write("shared_draw", {**settings, "figures": figures}, given.out))


if __name__ == "__main__":
    main()
