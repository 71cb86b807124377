"""Top eigenvalues of Hessians against PyHessian and curvlinops: time, products and error, side by side in one run.

Nets: ResNet-20 on 512 images of 3 x 32 x 32 (digits, enlarged) in batches of 128, and an MLP of 26,122 parameters on
512 digits, both trained. Every way finds the 10 largest eigenvalues; errors are against our own run at a tolerance of
1e-4, the worst of the ten as a share of lambda_1. `--by-count` spares the hour that the peers take on the ResNet: their
own algorithms run on our products, and their count is multiplied by what a product of theirs takes. Then what one
product costs in gradients, what memory a whole run takes beyond a gradient pass (each in a process of its own), and
what warm starts save along a training.

Needs the bench extra; the peers that are not installed are left out, and said. What a product costs on a CUDA device is
product_cost.py's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import resnets
import torch
import torch.nn.functional as F
from scipy.sparse import linalg
from sklearn.datasets import load_digits
from torch import nn

from landscape import Hessian, Objective, Task, eigenpairs

TOP, SAMPLES, BATCH = 10, 512, 128
eigsh: Any = linalg.eigsh  # type checkers take its tolerance for an int
#: The figures to reach, as ratios (chosen for the product: see the project's plan).
TARGETS = {"PyHessian": 10.0, "curvlinops, eigsh": 3.0, "products of eigsh": 1.4, "gradients a product": 2.3}

Data = tuple[torch.Tensor, torch.Tensor]


def resnet20() -> tuple[nn.Module, Data]:
    torch.manual_seed(0)
    x, y = resnets.images()
    model = resnets.ResNet()
    resnets.train(model, x, y, epochs=5)
    return model, (x[:SAMPLES], y[:SAMPLES])


def mlp(steps: int = 300) -> tuple[nn.Module, Data]:
    x, y = digits()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    for _ in descend(model, x, y, steps):
        pass
    return model.eval(), (x[:SAMPLES], y[:SAMPLES])


def digits() -> Data:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)


def descend(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, lr: float = 0.1) -> Any:
    """Train by SGD with momentum, yielding the number of each step after it was taken."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rows = torch.randint(0, len(x), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        yield step + 1


NETS: dict[str, Callable[[], tuple[nn.Module, Data]]] = {"ResNet-20": resnet20, "MLP": mlp}


def task_of(model: nn.Module, data: Data) -> Task:
    return Task(model, F.cross_entropy, data, batch_size=BATCH)


def batches(data: Data) -> list[Data]:
    return list(zip(data[0].split(BATCH), data[1].split(BATCH), strict=True))


# ------------------------------------------------------------------------------------------------ eigenvalues


def ours(model: nn.Module, data: Data, stop: Any, verify: bool) -> tuple[np.ndarray, int]:
    found = eigenpairs(Hessian(task_of(model, data)), TOP, tol=1e-3, stop=stop, verify=verify)
    return found.values, int(found.products)


def ours_with_eigsh(model: nn.Module, data: Data) -> tuple[np.ndarray, int]:
    with Hessian(task_of(model, data)) as h:
        values = eigsh(h.to_scipy(), k=TOP, which="LA", tol=1e-3, v0=_start(h.shape[0]), return_eigenvectors=False)
        return np.sort(values)[::-1], h.products


def pyhessian(model: nn.Module, data: Data, products: Any = None, tol: float = 1e-3) -> tuple[np.ndarray, int]:
    """Run PyHessian's eigenvalues; with `products`, a Hessian of ours, through that one's products."""
    from pyhessian import hessian

    count, honest = [0], hessian.dataloader_hv_product

    def counted(self: Any, v: Any) -> Any:
        count[0] += 1
        if products is None:
            return honest(self, v)
        found = products @ torch.cat([part.reshape(-1) for part in v])
        parts = [t.view_as(w) for t, w in zip(found.split([w.numel() for w in v]), v, strict=True)]
        return sum(float((t * w).sum()) for t, w in zip(parts, v, strict=True)), parts

    hessian.dataloader_hv_product = counted  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            h = hessian(model, nn.CrossEntropyLoss(), dataloader=batches(data), cuda=False)
            values, _ = h.eigenvalues(maxIter=1000 if tol < 1e-3 else 100, tol=tol, top_n=TOP)
    finally:
        hessian.dataloader_hv_product = honest  # pyright: ignore[reportAttributeAccessIssue]
    return np.sort(np.array(values))[::-1], count[0]


def by_count(way: str, model: nn.Module, data: Data, clock: Callable[[], float]) -> tuple[np.ndarray, int, float]:
    """Return a peer's values and products, found through our products, and the seconds that one of its own takes."""
    v, seconds = torch.from_numpy(_start(sum(p.numel() for p in model.parameters()))), []
    if way == "PyHessian":
        from pyhessian import hessian

        with Hessian(task_of(model, data)) as h:
            values, products = pyhessian(model, data, h)
        theirs = hessian(model, nn.CrossEntropyLoss(), dataloader=batches(data), cuda=False)
        parts = [t.view_as(p) for t, p in zip(v.split([p.numel() for p in theirs.params]), theirs.params, strict=True)]
        call: Callable[[], Any] = partial(theirs.dataloader_hv_product, parts)
    else:
        values, products = ours_with_eigsh(model, data)
        operator = _curvlinops_operator(model, data)
        call = partial(operator.__matmul__, v)
    for _ in range(3):
        begun = clock()
        call()
        seconds.append(clock() - begun)
    return values, products, statistics.median(seconds)


def curvlinops(model: nn.Module, data: Data) -> tuple[np.ndarray, int]:
    h, count = _curvlinops_operator(model, data), [0]
    wrapped = h.to_scipy()
    honest = wrapped.matvec

    def counted(v: np.ndarray) -> np.ndarray:
        count[0] += 1
        return honest(v)

    make: Any = linalg.LinearOperator
    operator = make(wrapped.shape, matvec=counted, dtype=np.float32)
    values = eigsh(operator, k=TOP, which="LA", tol=1e-3, v0=_start(h.shape[0]), return_eigenvectors=False)
    return np.sort(values)[::-1], count[0]


def _curvlinops_operator(model: nn.Module, data: Data) -> Any:
    from curvlinops import HessianLinearOperator  # pyright: ignore[reportMissingImports]

    parameters = [p for p in model.parameters() if p.requires_grad]
    return HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, batches(data), check_deterministic=False)


def _start(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(n).astype(np.float32)


def eigenvalues(
    model: nn.Module, data: Data, runs: int, clock: Callable[[], float], without: tuple[str, ...], counting: bool
) -> dict[str, Any]:
    """Return for each way the median seconds, products and worst error, and the ratios to ours."""
    # An isolated eigenvalue's own error is about the square of its residual.
    reference = eigenpairs(Hessian(task_of(model, data)), TOP, tol=1e-4).values
    ways: dict[str, Callable[[], tuple[np.ndarray, int]]] = {
        "ours": lambda: ours(model, data, "residual", True),
        "ours, not audited": lambda: ours(model, data, "residual", False),
        "ours, by value": lambda: ours(model, data, "value", True),
        "ours, by value, not audited": lambda: ours(model, data, "value", False),
    }
    if not _installed("curvlinops"):  # else its own run says how many products eigsh takes
        ways["our products, eigsh"] = lambda: ours_with_eigsh(model, data)
    peers = {"PyHessian": ("pyhessian", pyhessian), "curvlinops, eigsh": ("curvlinops", curvlinops)}
    for name, (package, way) in list(peers.items()):
        if not _installed(package):
            print(f"  {name} is not installed: left out")
            del peers[name]
        elif not counting:
            ways[name] = lambda way=way: way(model, data)
    ways = {name: way for name, way in ways.items() if not name.startswith(without or ("-",))}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, tuple[np.ndarray, int]] = {}
    for _ in range(runs):
        for name, way in ways.items():
            begun = clock()
            found[name] = way()
            seconds[name].append(clock() - begun)
            print(f"  {seconds[name][-1]:9.2f} s  {found[name][1]:4d} products  {name}", flush=True)
    for name in peers if counting else ():
        if not name.startswith(without or ("-",)):
            values, products, one = by_count(name, model, data, clock)
            found[name], seconds[name] = (values, products), [products * one]
    figures = {}
    for name, (values, products) in found.items():
        error = float(np.abs(values[:TOP] - reference).max() / abs(reference[0]))
        taken = statistics.median(seconds[name])
        figures[name] = {"seconds": round(taken, 3), "products": products, "error": float(f"{error:.2g}")}
        print(f"  {taken:9.2f} s  {products:4d} products  error {error:.1e}  {name}")
    mine = [name for name in figures if name.startswith("ours")]
    ratios = {
        f"{name} over {our}": round(figures[name]["seconds"] / figures[our]["seconds"], 2)
        for name in ("PyHessian", "curvlinops, eigsh", "our products, eigsh")
        if name in figures
        for our in mine
    }
    how = "count times one product" if counting else "whole runs"
    eigsh_products = next(f["products"] for name, f in figures.items() if name.endswith("eigsh"))
    for name in mine:
        ratios[f"products of eigsh over those of {name}"] = round(eigsh_products / figures[name]["products"], 2)
    for name, ratio in ratios.items():
        print(f"  {ratio:9.2f}    {name}")
    return {"ways": figures, "ratios": ratios, "lambda_1": float(reference[0]), "peers": how}


# --------------------------------------------------------------------------------------------------- products


def products(model: nn.Module, data: Data, runs: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Return what one product costs in gradients, by turns: through kept graphs, torch's own derivatives, the peers."""
    task = task_of(model, data)
    ways: dict[str, Callable[[], Any]] = {}
    with Objective(task) as objective, Hessian(objective) as kept:
        h = Hessian(objective, strategy="rebuild")
        v = torch.randn(kept.shape[0], generator=torch.Generator().manual_seed(0))
        sizes = [q.numel() for q in objective.parameters]
        parts = [p.view_as(q) for p, q in zip(v.split(sizes), objective.parameters, strict=True)]
        graphs = []
        for i in range(len(objective)):
            gradient = torch.autograd.grad(objective.batch_loss(i)[0], objective.parameters, create_graph=True)
            graphs.append(gradient)
        ways["gradient"] = objective.gradient
        ways["ours, graphs kept"] = lambda: kept @ v
        ways["ours, graphs rebuilt"] = lambda: h @ v
        ways["torch's own double backward, graphs kept"] = lambda: [
            torch.autograd.grad(g, objective.parameters, grad_outputs=parts, retain_graph=True) for g in graphs
        ]
        if _installed("curvlinops"):
            other = _curvlinops_operator(model, data)
            ways["curvlinops"] = lambda: other @ v
        timings = harness.time_by_turns(ways, runs, clock=clock)
        how = kept.how
    one = timings["gradient"].median
    ratios = {name: round(t.median / one, 2) for name, t in timings.items()}
    for name, ratio in ratios.items():
        print(f"  {ratio:6.2f} gradients  {timings[name].median * 1e3:9.1f} ms  {name}")
    return {"gradients": ratios, "seconds": {k: t.summary() for k, t in timings.items()}, "how": how}


# ----------------------------------------------------------------------------------------------------- memory


def memory(net: str) -> dict[str, Any]:
    """Return the largest resident set of a gradient pass, and of a whole run, each in a process of its own."""
    found = {}
    for what in ("gradient", "rebuild", "auto"):
        command = [sys.executable, __file__, "--memory", what, "--nets", net]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[what] = json.loads(done.stdout.splitlines()[-1])
    beyond = {k: found[k]["peak"] - found["gradient"]["peak"] for k in ("rebuild", "auto")}
    allowed = found["auto"]["basis"] + found["auto"]["graphs"]
    print(
        f"  peak {found['gradient']['peak']:.0f} MiB for a gradient; beyond it {beyond['rebuild']:.0f} MiB with graphs "
        f"rebuilt, {beyond['auto']:.0f} MiB with graphs kept (basis and graphs by count: {allowed:.0f} MiB)"
    )
    return {"MiB": found, "beyond a gradient, MiB": beyond, "basis and graphs by count, MiB": allowed}


def memory_of(net: str, what: str) -> None:
    """Print the peak of one run in this process as JSON."""
    torch.manual_seed(0)
    model: nn.Module
    if net == "ResNet-20":
        model, data = resnets.ResNet(), (torch.randn(SAMPLES, 3, 32, 32), torch.randint(0, 10, (SAMPLES,)))
    else:
        model, data = mlp(1)
    task, extra = task_of(model, data), {}
    if what == "gradient":
        with Objective(task) as objective:
            objective.gradient()
            objective.gradient()
    else:
        with Hessian(task, strategy=what) as h:  # pyright: ignore[reportArgumentType]
            done = eigenpairs(h, 3, tol=1e-2, max_products=10, verify=False)
            size, count = h.held
            extra = {"basis": done.products * h.shape[0] * 4 / 2**20, "graphs": count * size / 2**20}
    print(json.dumps({"peak": _peak(), **extra}))


def _peak() -> float:
    """Return the largest resident set of this process in MiB; where the system says, without that of its parent.

    (On Linux a process that a larger one has started counts the parent's memory in ru_maxrss.)
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(found.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ------------------------------------------------------------------------------------------------ warm starts


def warm_starts() -> dict[str, Any]:
    """Return what starting from the last eigenvectors saves, every 20 steps along a training of the MLP.

    Once with the audit, once without: what proves that nothing is missing has to begin at random, warm or cold, and
    for k = 1 it costs more products than the eigenvector does.
    """
    x, y = digits()
    figures = {}
    for k, audited in itertools.product((1, 5), (True, False)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
        task, cold, warm, missed, start = task_of(model, (x[:SAMPLES], y[:SAMPLES])), [], [], 0, None
        for step in descend(model, x, y, 400, lr=0.05):
            if step % 20:
                continue
            with Hessian(task) as h:
                true = eigenpairs(h, k, tol=1e-4, seed=step)
                first = eigenpairs(h, k, seed=step, verify=audited)
                again = eigenpairs(h, k, seed=step, start=start, verify=audited)
            if start is not None:
                cold.append(int(first.products))
                warm.append(int(again.products))
                missed += int(np.abs(true.values - again.values).max() > 2e-3 * abs(true.values[0]))
            start = again.vectors
        name = f"k={k}, {'audited' if audited else 'not audited'}"
        figures[name] = {
            "cold": sum(cold),
            "warm": sum(warm),
            "ratio": round(sum(cold) / sum(warm), 3),
            "missed": missed,
            "times": len(cold),
        }
        print(f"  {name}: {sum(cold)} products cold, {sum(warm)} warm ({sum(cold) / sum(warm):.2f}x), missed {missed}")
    return figures


def _installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Hessian spectra against the published tools.")
    parser.add_argument("--nets", default=",".join(NETS), help="of ResNet-20, MLP (default both)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way on the MLP; the ResNet gets one")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count processor time: on a busy machine, with one thread (OMP_NUM_THREADS)",
    )
    parser.add_argument(
        "--by-count", action="store_true", help="the ResNet's peers by their count and the time of one product"
    )
    parser.add_argument("--without", default="", help="ways to leave out, by the beginning of their names, a,b")
    parser.add_argument("--memory", choices=["gradient", "rebuild", "auto"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    given = parser.parse_args()
    if given.memory:
        memory_of(given.nets, given.memory)
        return
    clock = time.process_time if given.cpu_time else time.perf_counter
    figures: dict[str, Any] = {"targets": TARGETS, "clock": "processor time" if given.cpu_time else "wall time"}
    for net in given.nets.split(","):
        print(net)
        model, data = NETS[net]()
        few = 1 if net == "ResNet-20" else given.runs
        figures[net] = {
            "products": products(model, data, 3 if net == "ResNet-20" else 30, clock),
            "eigenvalues": eigenvalues(
                model,
                data,
                few,
                clock,
                tuple(filter(None, given.without.split(","))),
                given.by_count and net == "ResNet-20",
            ),
            "memory": memory(net),
        }
    print("warm starts")
    figures["warm starts"] = warm_starts()
    print(harness.write("curvature", figures, given.out))


if __name__ == "__main__":
    main()
