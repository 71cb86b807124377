"""What recording adds to a training: norms at every step on small and larger nets, and all probes within a budget.

    python benchmarks/recorder_overhead.py [--quick] [--only mlp] [--only resnet20] [--only budget]

Processor time of the whole process (the writing thread included) on one thread, each way by turns with the bare loop,
in short blocks of steps; the figure is the median over the rounds of the ratio within a round. `inside` is what the
recorder itself says it spent, as a share of the step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, write
from resnets import ResNet
from torch import nn

from landscape.probes import (  # pyright: ignore[reportMissingImports]
    CalibrationProbe,
    CurvatureProbe,
    GradientNorms,
    LearningRate,
    LossTerms,
    Probe,
    Recorder,
    Updates,
    every,
    log_spaced,
)
from landscape.probes.demo.digits import digits  # pyright: ignore[reportMissingImports]

TITLES = {
    "mlp": "MLP, 26,122 parameters, batch 128",
    "resnet20": "ResNet-20, 269,722 parameters, batch 128",
    "budget": "digits, all cheap probes and curvature within 5%",
}
TENTH = every(steps=10)
WAYS: dict[str, Callable[[], list[Probe]]] = {
    "hooks alone": lambda: [],
    "gradient norms": lambda: [GradientNorms()],
    "gradient and update norms": lambda: [GradientNorms(), Updates()],
    "both, every tenth step": lambda: [GradientNorms(TENTH), Updates(TENTH)],
}


class Loop:
    """A training of one model on fixed batches, with or without a recorder."""

    def __init__(self, model: nn.Module, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self.model, self.batches = model, batches
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.recorder: Recorder | None = None
        self.taken = 0

    def steps(self, n: int) -> None:
        for _ in range(n):
            x, y = self.batches[self.taken % len(self.batches)]
            self.taken += 1
            loss = nn.functional.cross_entropy(self.model(x), y)
            if self.recorder is not None:
                self.recorder.log(loss=loss)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def random_batches(shape: tuple[int, ...], n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randn(*shape, generator=g), torch.randint(0, 10, shape[:1], generator=g)) for _ in range(n)]


def by_turns(make: Callable[[], Loop], folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Return each way's processor time over the bare loop's, medians over rounds."""
    took: dict[str, list[float]] = {"bare": [], **{name: [] for name in WAYS}}
    inside: dict[str, list[float]] = {name: [] for name in WAYS}
    loops = {name: make() for name in took}
    for name, loop in loops.items():
        if name in WAYS:
            path = folder / name.replace(" ", "-") / "run.h5"
            loop.recorder = Recorder(path, loop.model, loop.optimizer, probes=WAYS[name]())
        loop.steps(max(steps // 10, 1))
    for _ in range(rounds):
        for name, loop in loops.items():
            rec = loop.recorder
            before = rec.seconds if rec else 0.0
            begun, wall = time.process_time(), time.perf_counter()
            loop.steps(steps)
            inner = (rec.seconds - before) / (time.perf_counter() - wall) if rec else 0.0
            if rec:
                rec.flush()  # what the writing thread would do behind the block belongs to it
            took[name].append((time.process_time() - begun) / steps)
            if rec:
                inside[name].append(inner)
    for loop in loops.values():
        if loop.recorder:
            loop.recorder.close()
    step = statistics.median(took["bare"])
    load = round(os.getloadavg()[0], 1)
    figures: dict[str, Any] = {"bare_step_ms": round(1e3 * step, 4), "steps_a_block": steps, "rounds": rounds}
    figures["load_average"] = load
    for name in WAYS:
        ratios = [with_ / without for with_, without in zip(took[name], took["bare"], strict=True)]
        figures[name] = {
            "overhead": round(statistics.median(ratios) - 1, 4),
            "quartiles": [round(q - 1, 4) for q in statistics.quantiles(ratios, n=4)[::2]],
            "added_us": round(1e6 * (statistics.median(took[name]) - step), 1),
            "inside": round(statistics.median(inside[name]), 4),
        }
    return figures


def within_a_budget(folder: Path, seconds: float, rounds: int, batch: int, whole: float | None) -> dict[str, Any]:
    """Return what all cheap probes and curvature within 5% add to a training of this length, on the demo's digits.

    The 5% are the curvature's alone; `whole` is the budget of the recording as a whole, the cheap probes included.

    The bare training and the recorded one come one after the other, half a minute each, since the budget is one of the
    clock: where the machine's speed drifts meanwhile, `inside` says more than the ratio.
    """
    batches = None
    totals: dict[str, list[float]] = {"bare": [], "recorded": []}
    inside, measured, steps = [], 0, 0
    for i in range(rounds):
        for name in totals:
            task = digits()
            x, y = task.train
            batches = [(x[j : j + batch], y[j : j + batch]) for j in range(0, len(x) - batch, batch)]
            loop = Loop(task.model, batches)
            if not steps:
                loop.steps(20)
                begun = time.process_time()
                loop.steps(50)
                steps = int(50 * seconds / (time.process_time() - begun))
                loop = Loop(digits().model, batches)
                task = task.replace(model=loop.model)
            begun, wall = time.process_time(), time.perf_counter()
            if name == "recorded":
                probes = [GradientNorms(), Updates(), LearningRate(), LossTerms(), CalibrationProbe()]
                probes.append(CurvatureProbe(when=log_spaced(budget=0.05)))
                path = folder / f"b{i}" / "run.h5"
                with Recorder(path, loop.model, loop.optimizer, task=task, probes=probes, budget=whole) as rec:
                    loop.recorder = rec
                    for _ in range(10):
                        loop.steps(steps // 10)
                        rec.end_epoch()
                    inside.append(rec.seconds / (time.perf_counter() - wall - rec.seconds))
                measured = len(list((folder / f"b{i}").glob("run.h5")))
            else:
                loop.steps(steps // 10 * 10)
            totals[name].append(time.process_time() - begun)
    from landscape import open_archive

    points = len(open_archive(folder / "b0" / "run.h5").history["curvature"].steps) if measured else 0
    ratios = [a / b for a, b in zip(totals["recorded"], totals["bare"], strict=True)]
    return {
        "overhead": round(statistics.median(ratios) - 1, 4),
        "rounds": [round(r - 1, 4) for r in ratios],
        "inside": round(statistics.median(inside), 4),
        "bare_step_ms": round(1e3 * statistics.median(totals["bare"]) / steps, 2),
        "bare_seconds": round(statistics.median(totals["bare"]), 2),
        "load_average": round(os.getloadavg()[0], 1),
        "steps": steps,
        "curvature_points": points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What recording adds to a training.")
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs")
    parser.add_argument("--only", choices=TITLES, action="append")
    options = parser.parse_args()
    only = options.only or list(TITLES)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "mlp" in only:
            small = lambda: Loop(mlp(), random_batches((128, 64), 8))  # noqa: E731
            figures[TITLES["mlp"]] = by_turns(small, folder / "mlp", 300, 3 if options.quick else 50)
        if "resnet20" in only:
            large = lambda: Loop(ResNet(), random_batches((128, 3, 32, 32), 2))  # noqa: E731
            figures[TITLES["resnet20"]] = by_turns(large, folder / "resnet", 2, 2 if options.quick else 12)
        if "budget" in only:
            long, often = (3.0, 1) if options.quick else (30.0, 3)
            ways = {
                f"batch {batch}{f', the whole recording within {whole:.0%}' if whole else ''}": (batch, whole)
                for batch in (128, 512)
                for whole in (None, 0.05)
            }
            figures[TITLES["budget"]] = {
                name: within_a_budget(folder / str(i), long, often, *way) for i, (name, way) in enumerate(ways.items())
            }
    for title, found in figures.items():
        print(title)
        for name, value in found.items():
            print(f"  {name}: {value}")
    if not options.quick:
        kept = RESULTS / "recorder_overhead.json"
        before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
        print(write("recorder_overhead", {**{k: before[k] for k in TITLES.values() if k in before}, **figures}))


if __name__ == "__main__":
    main()
