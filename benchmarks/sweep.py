"""A sweep of 18 digits cells in at most 10 minutes on 2 cores, and what the sweep adds to a loop written by hand.

The sweep is the command as a user types it: 3 losses x 3 schedules x 2 seeds of the demo's net (24,058 parameters, 20
epochs in batches of 32), each trained, recorded and measured by `landscape probe`'s quick preset, on 2 workers.

The overhead compares one cell's training with the same training written by hand (the same batches, loss, schedule of
PyTorch's, and one evaluation of the test images an epoch), by turns in this process on one thread, in processor time:
other programs on the machine then don't count. The recorder's own share is given beside it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import torch
from torch import nn

from landscape.probes.demo.digits import digits  # pyright: ignore[reportMissingImports]
from landscape.probes.sweep.batches import _mixed  # pyright: ignore[reportMissingImports]
from landscape.probes.sweep.cell import train_cell  # pyright: ignore[reportMissingImports]
from landscape.probes.sweep.grid import Cell, grid  # pyright: ignore[reportMissingImports]
from landscape.probes.sweep.how import How  # pyright: ignore[reportMissingImports]

TASK = "landscape.probes.demo.digits:digits"
LOSSES = ("cross_entropy", "cross_entropy(label_smoothing=0.1)", "focal(gamma=2)")
SCHEDULES = ("constant", "cosine", "warmup_cosine")
LIMIT_SECONDS, LIMIT_SHARE = 600.0, 0.03


def whole_sweep(epochs: int, workers: int) -> dict[str, Any]:
    """Run the 18 cells as a user would, and return how long they took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "landscape.cli", "sweep", TASK, "--loss", ",".join(LOSSES)]
        command += ["--schedule", ",".join(SCHEDULES), "--seeds", "2", "--lr", "0.3", "--batch-size", "32"]
        command += ["--epochs", str(epochs), "--workers", str(workers), "-o", f"{folder}/runs"]
        begun, spent = time.perf_counter(), _children()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds, processor = time.perf_counter() - begun, _children() - spent
        archives = list(Path(folder).glob("runs/*/run.h5"))
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    return {
        "cells": len(archives),
        "epochs": epochs,
        "workers": workers,
        "seconds": round(seconds, 1),
        # Beside the wall time, which other programs on the machine lengthen.
        "processor_seconds": round(processor, 1),
        "load_average": round(os.getloadavg()[1], 1),
        "limit_seconds": LIMIT_SECONDS,
        "within": seconds <= LIMIT_SECONDS,
        "bytes": size,
    }


def _children() -> float:
    """Return the processor time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def by_hand(cell: Cell) -> None:
    """The cell's training as people write it."""
    task = digits(seed=cell.seed)
    model, (x, y), (x_test, y_test) = task.model, task.train, task.test
    criterion = nn.CrossEntropyLoss()
    assert isinstance(cell.batch_size, int)
    assert cell.lr is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=cell.lr, momentum=0.9)
    steps = cell.epochs * -(-len(x) // cell.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for epoch in range(cell.epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(_mixed(cell.seed, epoch)))
        total = 0.0
        for chosen in order.split(cell.batch_size):
            loss = criterion(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            for part, labels in zip(x_test.split(256), y_test.split(256), strict=True):
                outputs = model(part)
                criterion(outputs, labels).item()
                (outputs.argmax(dim=1) == labels).sum().item()
        model.train()


def overhead(runs: int, epochs: int) -> dict[str, Any]:
    """Compare a cell with the same training by hand, by turns; shares of the processor's time."""
    (cell,) = grid(loss=["cross_entropy"], schedule=["cosine"], lr=[0.3], batch_size=[32], epochs=epochs)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        number = iter(range(10_000))

        def swept(record: bool) -> None:
            how = How(record=record, measure=False, device="cpu")
            result = train_cell(cell, TASK, f"{folder}/{next(number)}", how)
            assert result.status == "complete", result.reason

        ways = {
            "by hand": lambda: by_hand(cell),
            "sweep": lambda: swept(False),
            "sweep, recorded": lambda: swept(True),
        }
        timed = harness.time_by_turns(ways, runs, clock=time.process_time)
    base = timed["by hand"].seconds

    def share(name: str) -> dict[str, Any]:
        own = timed[name].seconds
        low, middle, high = statistics.quantiles([a / b - 1 for a, b in zip(own, base, strict=True)], n=4)
        # Of the fastest turns, which nobody disturbed; and by turns.
        least = min(own) / min(base) - 1
        return {"share": round(least, 4), "median": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)]}

    found = share("sweep")
    return {
        "seconds": {name: t.summary() for name, t in timed.items()},
        "steps": epochs * 45,
        "overhead": found,
        "overhead_recorded": share("sweep, recorded"),
        "limit": LIMIT_SHARE,
        "within": found["share"] <= LIMIT_SHARE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=11, help="turns of the overhead")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", choices=["overhead", "sweep"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    if given.only != "sweep":
        figures["overhead"] = overhead(given.runs, given.epochs)
        print(figures["overhead"])
    if given.only != "overhead":
        figures["sweep"] = whole_sweep(given.epochs, given.workers)
        print(figures["sweep"])
    if given.only is None:
        print(harness.write("sweep", figures, given.out))


if __name__ == "__main__":
    main()
