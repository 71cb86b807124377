"""Does `to_precision` keep its word, and what does it save? On nets small enough to know the true full-data value.

Each situation is a trained net and a split; `to_precision` runs with other seeds (of the draw, of its parts and of the
measurement) and its interval is compared with the value on the whole split. The target is at least 89 of 100: what a
95% interval reaches with 99% probability. Cost is passes times samples over those of the measurement on the whole
split; processor time says what is left of that on nets so small that the bookkeeping of 21 measurements counts.

The large split is scikit-learn's 1,797 digits, shifted, brightened and with noise, 28 times each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from landscape import Task, eigenpairs, to_precision
from landscape.curvature.operators import Hessian

TARGET, PRECISION = 0.89, 0.05


@dataclass(frozen=True)
class Situation:
    name: str
    net: Callable[[], nn.Module]
    steps: int
    large: bool
    measurement: str
    pooled: bool = True


def mlp(activation: type[nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(16, 8), activation(), nn.Linear(8, 10))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 9, 10),
    )


SITUATIONS = (
    Situation("MLP (ReLU), trained, 50,316 samples, lambda_1", mlp(nn.ReLU), 3000, True, "eigenvalues"),
    Situation("MLP (tanh), half trained, 50,316 samples, lambda_1", mlp(nn.Tanh), 200, True, "eigenvalues"),
    Situation("MLP (ReLU), trained, 50,316 samples, trace", mlp(nn.ReLU), 3000, True, "trace"),
    Situation("softmax regression, 50,316 samples, lambda_1", lambda: nn.Linear(16, 10), 1500, True, "eigenvalues"),
    Situation("MLP (tanh), half trained, 1,797 samples, lambda_1", mlp(nn.Tanh), 200, False, "eigenvalues"),
)
OPTIONS: dict[str, dict[str, Any]] = {"eigenvalues": {"k": 1, "which": "largest"}, "trace": {"method": "xtrace"}}


def main() -> None:
    parser = argparse.ArgumentParser(description="Does to_precision keep its word, and what does it save?")
    parser.add_argument("--runs", type=int, default=100, help="runs of each situation (default 100)")
    parser.add_argument("--only", type=int, nargs="*", help="situations by number, from 0; earlier figures are kept")
    parser.add_argument("--costly", action="store_true", help="also time one run on a convolutional net")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"precision": PRECISION, "target": TARGET, "situations": {}}
    earlier = (given.out or harness.RESULTS) / "sampling.json"
    if given.only is not None and earlier.is_file():
        kept = json.loads(earlier.read_text(encoding="utf-8"))
        figures |= {k: kept[k] for k in ("situations", "convolutional net") if k in kept}
    for i, situation in enumerate(SITUATIONS):
        if given.only is None or i in given.only:
            found = coverage(situation, given.runs)
            figures["situations"][situation.name] = found
            print(
                f"{situation.name}: held {found['held']} of {found['runs']}; samples {found['samples']['median']}, "
                f"cost {found['cost']['median']} of the whole, processor time {found['processor_time']['median']}"
            )
            harness.write("sampling", figures, given.out)  # each as it comes: all of them take minutes
    if given.costly:
        figures["convolutional net"] = costly()
        print(figures["convolutional net"])
    print(harness.write("sampling", figures, given.out))


def coverage(situation: Situation, runs: int) -> dict[str, Any]:
    """Run one situation with `runs` seeds."""
    task = trained(situation)
    options = OPTIONS[situation.measurement]
    truth = exact(task, situation.measurement)
    whole, seconds = [], []
    for seed in range(3):
        begun = time.process_time()
        whole.append(to_precision(task.replace(seed=seed), situation.measurement, PRECISION, start=10**9, **options))
        seconds.append(time.process_time() - begun)
    passes = statistics.median(w.cost.passes * w.samples for w in whole)
    found = []
    for seed in range(runs):
        begun = time.process_time()
        result = to_precision(task.replace(seed=seed), situation.measurement, PRECISION, seed=seed, **options)
        taken = time.process_time() - begun
        low, high = result.interval[0]
        found.append((bool(low <= truth <= high), result, taken))
    results = [r for _, r, _ in found]
    part = [held for held, r, _ in found if r.samples < r.population]
    return {
        "truth": truth,
        "runs": runs,
        "held": sum(held for held, _, _ in found),
        "on_a_part_of_the_data": {"runs": len(part), "held": sum(part)},
        "reached": sum(r.status == "complete" for r in results),
        "error": summary([float(r.error[0]) for r in results]),
        "samples": summary([r.samples for r in results]),
        "samples_measured": summary([r.work for r in results]),
        "cost": summary([r.cost.passes * r.samples / passes for r in results]),
        "processor_time": summary([taken / statistics.median(seconds) for _, _, taken in found]),
    }


def summary(values: list[float]) -> dict[str, Any]:
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": round(float(median), 4), "quartiles": [round(float(low), 4), round(float(high), 4)]}


def exact(task: Task, measurement: str) -> float:
    """Return the value on the whole split: from the dense Hessian, column by column."""
    A = Hessian(task)
    with A:
        n = A.shape[0]
        dense = torch.cat([A @ part for part in torch.eye(n, dtype=A.dtype).split(16, dim=1)], dim=1).double()
    values = torch.linalg.eigvalsh((dense + dense.T) / 2)
    return float(values[-1] if measurement == "eigenvalues" else values.sum())


def trained(situation: Situation) -> Task:
    """Return the situation's task after Adam on batches of 128."""
    images, labels = digits(situation.large)
    inputs = nn.functional.avg_pool2d(images, 2).flatten(1) if situation.pooled else images
    torch.manual_seed(0)
    net = situation.net()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.005)
    generator = torch.Generator().manual_seed(0)
    for _ in range(situation.steps):
        chosen = torch.randint(len(inputs), (128,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[chosen]), labels[chosen]).backward()
        optimizer.step()
    net.eval()
    return Task(net, nn.CrossEntropyLoss(), (inputs, labels), batch_size=4096)


def digits(large: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (n, 1, 8, 8) and labels: scikit-learn's digits, or 28 changed copies of each."""
    data, target = load_digits(return_X_y=True)
    images = torch.tensor(data / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(target)
    if not large:
        return images, labels
    generator, copies = torch.Generator().manual_seed(3), []
    for _ in range(28):
        shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
        bright = 0.7 + 0.6 * torch.rand(len(images), 1, 1, 1, generator=generator)
        noise = 0.1 * torch.randn(images.shape, generator=generator)
        copies.append(torch.roll(images, shift, (2, 3)) * bright + noise)
    return torch.cat(copies), labels.repeat(28)


def costly() -> dict[str, Any]:
    """Time `to_precision` against the whole split where a sample costs more than the bookkeeping."""
    task = trained(Situation("", convolutional, 200, True, "eigenvalues", pooled=False))
    task = task.replace(batch_size=1024)
    begun = time.process_time()
    pairs = eigenpairs(Hessian(task), 1)
    whole = time.process_time() - begun
    begun = time.process_time()
    found = to_precision(task, "eigenvalues", PRECISION, **OPTIONS["eigenvalues"])
    taken = time.process_time() - begun
    return {
        "parameters": pairs.parameters,
        "truth": float(pairs.values[0]),
        "interval": found.interval[0].tolist(),
        "samples": found.samples,
        "samples_measured": round(found.work, 4),
        "processor_time": round(taken / whole, 4),
        "seconds": [round(taken, 2), round(whole, 2)],
    }


if __name__ == "__main__":
    main()
