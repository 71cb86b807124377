"""Surfaces: how few points a plane needs, how often what it states of its error holds, and what a point costs.

1. The 51 x 51 plane of a trained ResNet-20 with skips and without (256 images of 3 x 32 x 32, digits enlarged), with
   tol=0.01, against the full grid: points, all forward passes (checks, derivatives and the points held out among them),
   true and stated errors.
2. How often the stated maximum and the bound on the 95th percentile hold, replayed on the full grids of small nets and
   of both ResNets: other trainings and directions than those that the method was calibrated on.
3. One point against a bare forward pass; and the ResNet's plane against a plain loop over a DataLoader and against the
   loss-landscapes package (`--peer`, a Python that has it), which evaluate every point: one of theirs is timed.

Full grids take half an hour on one core. They are kept in `--grids`, with the weights, and read from there again.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from resnets import ResNet, images, train
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from landscape import Objective, Plane, Task, plane, random_direction
from landscape.surface.adaptive import Sheet, fill
from landscape.surface.grid import axis
from landscape.surface.points import Points

GRID, TOL, SAMPLES, BATCH = 51, 0.01, 256, 128
TARGETS = {
    "evaluations with skips": 0.09,
    "evaluations without skips": 0.25,
    "stated maximum holds": 0.80,
    "stated maximum under half of the true one": 0.01,
    "stated 95th percentile holds": 0.89,
    "passes for a point": 1.1,
    "speed against the peers": 5.0,
}
#: (tolerance, seed of the points held out) of each replay.
REPLAYS = ((0.01, 0), (0.01, 1), (0.005, 0), (0.02, 0), (0.03, 0))
#: Seed of the small nets' trainings, and of the directions of their planes: none of these was used for calibration.
SEED, DIRECTIONS = 11, (3, 4)


class Transformer(nn.Module):
    """Rows of a digit as tokens, two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.position = nn.Parameter(torch.randn(8, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(x.reshape(-1, 8, 8)) + self.position).mean(1))


def mlp(sizes: list[int], activation: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


#: Net -> (how to make it, epochs of Adam; None: a residual net, six epochs of resnets.train at 16 x 16).
NETS: dict[str, tuple[Callable[[], nn.Module], int | None]] = {
    "tanh": (lambda: mlp([64, 64, 64, 10], nn.Tanh), 30),
    "relu": (lambda: mlp([64, 128, 64, 10], nn.ReLU), 30),
    "deep": (lambda: mlp([64] + [48] * 8 + [10], nn.ReLU), 30),
    "mse": (lambda: mlp([64, 64, 10], nn.Tanh), 30),
    "deeptanh": (lambda: mlp([64] + [32] * 6 + [10], nn.Tanh), 30),
    "conv": (convolutions, 15),
    "transformer": (Transformer, 20),
    "res8": (lambda: ResNet(1, 8), None),
    "plain8": (lambda: ResNet(1, 8, False), None),
    "res14": (lambda: ResNet(2, 8), None),
    "plain14": (lambda: ResNet(2, 8, False), None),
}


def small(name: str) -> Task:
    """Return a trained small net with its data."""
    make, epochs = NETS[name]
    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 8 - 1, torch.tensor(labels)
    torch.manual_seed(SEED)
    model = make()
    if epochs is None:
        x, _ = images(16)
        train(model, x, y, epochs=6)
        samples = BATCH if name.endswith("14") else SAMPLES
        return Task(model, nn.CrossEntropyLoss(), (x, y), batch_size=BATCH, max_samples=samples, name=name)
    loss = nn.MSELoss() if name == "mse" else nn.CrossEntropyLoss()
    target = nn.functional.one_hot(y, 10).float() if name == "mse" else y
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss(model(x[rows]), target[rows]).backward()
            optimizer.step()
    return Task(model.eval(), loss, (x, target), batch_size=BATCH, max_samples=SAMPLES, name=name)


def resnet20(skip: bool, folder: Path) -> Task:
    """Return the trained ResNet-20 with its data; its weights are kept in `folder`."""
    x, y = images()
    torch.manual_seed(0)
    model = ResNet(skip=skip)
    kept = folder / f"resnet20-{'skips' if skip else 'plain'}.pt"
    if kept.exists():
        model.load_state_dict(torch.load(kept))
    else:
        train(model, x, y)
        torch.save(model.state_dict(), kept)
    return Task(model.eval(), nn.CrossEntropyLoss(), (x, y), batch_size=BATCH, max_samples=SAMPLES, name=kept.stem)


def full_grid(task: Task, seed: int, kept: Path) -> np.ndarray:
    """Return the losses of the full plane, from `kept` where it was measured before, for these weights."""
    with Objective(task) as objective:
        center = objective.evaluate().loss
    if kept.exists():
        loss = np.load(kept)["loss"]
        if loss[GRID // 2, GRID // 2] == center:
            return loss
        print(f"{kept.name} is of other weights: measured anew")
    steps = axis(1.0, GRID)
    loss = plane(task, alphas=steps, betas=steps, seed=seed, accuracy=False, bend=False).loss
    np.savez(kept, loss=loss)
    return loss


def errors(found: Any, loss: np.ndarray, heights: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the errors of the points that were not evaluated, as shares of the range of the true heights."""
    true = heights(loss)
    return np.abs(heights(found.loss) - true)[~found.evaluated] / np.ptp(true)


def adaptive(task: Task, loss: np.ndarray) -> dict[str, Any]:
    """Measure the plane with a tolerance, and compare it with the full grid."""
    steps = axis(1.0, GRID)
    begun = time.process_time()
    found: Plane = plane(task, alphas=steps, betas=steps, tol=TOL, accuracy=False)
    seconds = time.process_time() - begun
    assert np.array_equal(found.loss[found.evaluated], loss[found.evaluated])
    off = errors(found, loss, np.log)
    return {
        "points": int(found.evaluated.sum()),
        "passes": found.cost.passes,
        "share of the grid, everything included": round(found.cost.passes / loss.size, 4),
        "true maximum": float(off.max()),
        "stated maximum": found.error,
        "true 95th percentile": float(np.quantile(off, 0.95)),
        "stated 95th percentile": found.error_p95,
        "log range": float(np.ptp(np.log(loss))),
        "processor seconds": round(seconds, 2),
    }


def replay(loss: np.ndarray, tol: float, seed: int) -> dict[str, float]:
    """Return what the method states of a plane whose full grid is known, and what is true."""
    steps = axis(1.0, GRID)
    sheet = Sheet(steps, steps, lambda points: ((p, loss[p]) for p in points), float(loss[GRID // 2, GRID // 2]))
    found = fill(sheet, tol, seed=seed)
    off = errors(found, loss, found.heights.forward)
    whole = not len(off)
    return {
        "points": float(found.evaluated.sum()),
        "stated": found.error,
        "true": 0.0 if whole else float(off.max()),
        "stated p95": found.error_p95,
        "true p95": 0.0 if whole else float(np.quantile(off, 0.95)),
    }


def coverage(grids: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return how often what is stated holds, over all grids and replays, and at each tolerance."""
    rows = [
        {"net": name, "tol": tol, **replay(loss, tol, seed)} for name, loss in grids.items() for tol, seed in REPLAYS
    ]
    found: dict[str, Any] = {"grids": len(grids), "nets": len({n.rsplit("-", 1)[0] for n in grids})}
    for label, chosen in [
        ("all", rows),
        *((f"{t:g}", [r for r in rows if r["tol"] == t]) for t in (0.005, 0.01, 0.02, 0.03)),
    ]:
        stated, true = (np.array([r[k] for r in chosen]) for k in ("stated", "true"))
        found[label] = {
            "cases": len(chosen),
            "stated maximum holds": round(float(np.mean(stated >= true)), 3),
            "stated maximum under half of the true one": round(float(np.mean(stated < true / 2)), 3),
            "stated 95th percentile holds": round(
                float(np.mean([r["stated p95"] >= r["true p95"] for r in chosen])), 3
            ),
            "true maximum within the tolerance": round(float(np.mean([r["true"] <= r["tol"] for r in chosen])), 3),
            "stated over true maximum, median": round(float(np.median(stated[true > 0] / true[true > 0])), 2),
            "points, median": statistics.median(r["points"] for r in chosen),
        }
    found["points at 1%"] = {
        name: [int(r["points"]) for r in rows if r["net"] == name and r["tol"] == TOL] for name in grids
    }
    return found


def point_cost(task: Task, runs: int) -> dict[str, Any]:
    """Return what one point of a plane costs in bare forward passes over the same batches."""
    with Objective(task) as objective:
        chosen = tuple(random_direction(objective, s) for s in (0, 1))
        points = Points(objective, chosen, checkpoint=objective.evaluate())
        batches = [objective.batch(i) for i in range(len(objective))]
        model, loss = objective.model, task.loss
        assert loss is not None

        def bare() -> float:
            with torch.no_grad():
                total = sum(loss(model(x), y) * len(x) for x, y in batches)
            return float(total) / objective.samples

        ways = {"forward": bare, "point": lambda: points.at((0.3, -0.2)), "forward again": bare}
        timings = harness.time_by_turns(ways, runs, 3, clock=time.process_time)
    ratios = [
        2 * p / (a + b)
        for a, p, b in zip(*(timings[k].seconds for k in ("forward", "point", "forward again")), strict=True)
    ]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "milliseconds of a forward pass": round(1000 * timings["forward"].median, 3),
        "accuracy": points.names[1:2] == ("accuracy",),
        "runs": runs,
    }


def plain_loop(task: Task) -> float:
    """Return the processor seconds of one point as the first tool does it: new weights, one pass over a DataLoader."""
    x, y = next(iter(DataLoader(TensorDataset(*task.train), SAMPLES)))
    loader = DataLoader(TensorDataset(x, y), BATCH)
    model = copy.deepcopy(task.model)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    direction = random_direction(task)
    loss = nn.CrossEntropyLoss()
    begun = time.process_time()
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(weights[n] + 0.3 * direction[n])
        total = right = 0.0
        for inputs, targets in loader:
            outputs = model(inputs)
            total += loss(outputs, targets).item() * len(inputs)
            right += outputs.argmax(1).eq(targets).sum().item()
    return time.process_time() - begun


def peer_point(python: str, task: Task, steps: int = 4) -> dict[str, Any]:
    """Return the processor seconds of one point of the loss-landscapes package, by the Python that has it."""
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        weights, data = Path(folder) / "weights.pt", Path(folder) / "data.pt"
        torch.save(task.model.state_dict(), weights)
        torch.save(tuple(t[:SAMPLES] for t in task.train), data)
        command = [python, str(here / "surface_peer.py"), str(weights), str(data), str(steps)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Points, errors and seconds of surfaces.")
    parser.add_argument("--grids", type=Path, default=Path("build/grids"), help="where full grids and weights are kept")
    parser.add_argument("--peer", help="a Python that has the loss-landscapes package")
    parser.add_argument("--runs", type=int, default=15, help="runs of each timing (default 15)")
    parser.add_argument("--nets", default=",".join(NETS), help="small nets to replay")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.grids.mkdir(parents=True, exist_ok=True)

    figures: dict[str, Any] = {"targets": TARGETS, "grid": [GRID, GRID], "tolerance": TOL, "ResNet-20": {}, "point": {}}
    grids: dict[str, np.ndarray] = {}
    tasks: dict[str, Task] = {}
    for name in filter(None, given.nets.split(",")):
        task = small(name)
        if name in ("tanh", "relu", "conv", "res8"):
            tasks[name] = task
        for seed in DIRECTIONS:
            grids[f"{name}-{seed}"] = full_grid(task, seed, given.grids / f"{name}-{seed}.npz")
    for skip in (True, False):
        task = resnet20(skip, given.grids)
        loss = grids[f"{task.name}-0"] = full_grid(task, 0, given.grids / f"{task.name}-0.npz")
        figures["ResNet-20"][task.name] = adaptive(task, loss)
        print(task.name, json.dumps(figures["ResNet-20"][task.name], indent=1), flush=True)
        tasks.setdefault("resnet20", task)
    figures["stated"] = coverage(grids)
    print(json.dumps(figures["stated"], indent=1), flush=True)

    for name, task in tasks.items():
        figures["point"][name] = point_cost(task, given.runs)
        print(name, figures["point"][name], flush=True)
    task = tasks["resnet20"]
    ours = figures["ResNet-20"][task.name]
    seconds = {"plain loop over a DataLoader": statistics.median(plain_loop(task) for _ in range(given.runs))}
    if given.peer:
        turns = [peer_point(given.peer, task) for _ in range(3)]
        seconds[f"loss-landscapes {turns[0]['version']}"] = statistics.median(t["seconds"] for t in turns)
    figures["the same picture"] = {
        name: {
            "processor seconds of a point": round(each, 4),
            "of the whole grid": round(each * GRID**2, 1),
            "times ours": round(each * GRID**2 / ours["processor seconds"], 1),
        }
        for name, each in seconds.items()
    }
    print(json.dumps(figures["the same picture"], indent=1))
    print(harness.write("surface", figures, given.out))


if __name__ == "__main__":
    main()
