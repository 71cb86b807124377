"""What one Hessian product costs in gradients, eager and compiled: a ResNet-18 and a GPT of nanoGPT's smallest size.

On a CUDA device at the sizes of curvlinops' published figures (512 images; 4 sequences of 256 tokens); elsewhere with
--small, which shows that everything runs, not what it costs:

    python benchmarks/product_cost.py            # needs a CUDA device
    python benchmarks/product_cost.py --small --device cpu --out /tmp
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpt
import harness
import resnets
import torch
import torch.nn.functional as F
from torch import nn

from landscape import Hessian, Objective, Task

#: Ratios to reach: of eager gradients (what curvlinops publishes for its compiled products), and of compiled ones.
TARGETS = {"ResNet-18": 1.7, "GPT": 2.8, "compiled gradients": 2.3}
STRATEGIES = ("auto", "keep", "rebuild", "compile")


def resnet18(device: str, small: bool) -> Task:
    torch.manual_seed(0)
    n, width = (4, 8) if small else (512, 64)
    model = resnets.ResNet(blocks=2, width=width, stages=4).to(device).eval()
    data = torch.randn(n, 3, 32, 32), torch.randint(0, 10, (n,))
    return Task(model, F.cross_entropy, data, batch_size=n, device=device)


def small_gpt(device: str, small: bool) -> Task:
    torch.manual_seed(0)
    n, length = (2, 16) if small else (4, 256)
    model = gpt.GPT(layers=2, width=32, heads=2, context=length) if small else gpt.GPT()
    tokens = torch.randint(0, gpt.VOCABULARY, (n, length + 1))
    data = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return Task(model.to(device).eval(), gpt.token_loss, data, batch_size=n, device=device)


def costs(task: Task, runs: int, wait: Callable[[], None]) -> dict[str, Any]:
    """Return seconds of the gradients, and each strategy's product in gradients and the memory that it took."""
    with Objective(task) as objective:
        ways: dict[str, Callable[[], object]] = {
            "gradient": objective.gradient,
            "compiled gradient": _compiled_gradient(task.model, objective),
        }
        timings = harness.time_by_turns({k: partial(_waited, w, wait) for k, w in ways.items()}, runs, warmup=2)
    figures: dict[str, Any] = {name: timing.summary() for name, timing in timings.items()}
    for strategy in STRATEGIES:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with Hessian(task, strategy=strategy) as h:  # pyright: ignore[reportArgumentType]
            v = torch.randn(h.shape[0], device=h.device)
            # In the steady state: what is made once (a kept graph, compiled code) is made in the rounds not counted.
            taken = harness.time_by_turns({strategy: partial(_waited, partial(h.__matmul__, v), wait)}, runs, warmup=3)
            figures[f"product, {strategy}"] = {
                **taken[strategy].summary(),
                "gradients": round(taken[strategy].median / timings["gradient"].median, 2),
                "compiled gradients": round(taken[strategy].median / timings["compiled gradient"].median, 2),
                "how": h.how,
            }
        if torch.cuda.is_available():
            figures[f"product, {strategy}"]["peak MiB"] = round(torch.cuda.max_memory_allocated() / 2**20)
    return figures


def _compiled_gradient(model: nn.Module, objective: Objective) -> Callable[[], object]:
    """Return the gradient of the one batch's loss by torch.compile, as a training loop would take it."""
    compiled, (x, y), loss = torch.compile(model), objective.batch(0), objective.task.loss
    assert loss is not None

    def gradient() -> object:
        with torch.compiler.set_stance("default"):  # the objective keeps compiled models eager
            found = loss(compiled(x), y)
            return torch.autograd.grad(found[0] if isinstance(found, tuple) else found, objective.parameters)

    return gradient


def _waited(call: Callable[[], object], wait: Callable[[], None]) -> None:
    call()
    wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="What one Hessian product costs, in gradients.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny nets: a trial of the benchmark itself")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --small --device cpu tries the benchmark out")
    if given.device != "cuda" and given.out is None:
        parser.error("figures of a trial are not kept: give --out")
    wait = torch.cuda.synchronize if given.device == "cuda" else lambda: None
    figures: dict[str, Any] = {"targets": TARGETS}
    for name, make in {"ResNet-18": resnet18, "GPT": small_gpt}.items():
        figures[name] = costs(make(given.device, given.small), given.runs, wait)
        for what, found in figures[name].items():
            ratio = ""
            if "gradients" in found:
                ratio = f" = {found['gradients']} gradients, {found['compiled gradients']} compiled ones"
            print(f"{name}, {what}: {1e3 * found['median']:.2f} ms{ratio}", flush=True)
    print(harness.write("product_cost", figures, given.out))


if __name__ == "__main__":
    main()
