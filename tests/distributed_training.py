"""Two processes that train together, each recorded: run by test_recorder_distributed.py, one process for each rank.

Prints nothing; writes what each rank saw to `<folder>/rank<r>.json`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from landscape import Hessian, Task, eigenpairs
from landscape.errors import ArchiveError, ObjectiveError
from landscape.parameters import unwrap
from landscape.probes import (
    CurvatureProbe,
    GradientNoise,
    GradientNorms,
    LearningRate,
    Recorder,
    SurfaceProbe,
    Updates,
    every,
)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(5, 6, generator=g), torch.randint(0, 3, (5,), generator=g)


def naive(tensors) -> list[float]:
    each = [math.sqrt(float((t.detach().double() ** 2).sum())) for t in tensors]
    return [math.sqrt(sum(v * v for v in each)), *each]


def expensive(shared: bool) -> list:
    return [
        CurvatureProbe(k=2, tol=1e-4, when=every(steps=2), draws=2, shared=shared),
        SurfaceProbe(3, when=every(steps=2), shared=shared),
    ]


def train(
    folder: Path,
    name: str,
    rank: int,
    wrap,
    probes,
    *,
    recorded: bool = True,
    accumulate: bool = False,
    data: int = 0,
    dtype=None,
    logs: bool = True,
) -> dict:
    """Train, and return what this rank computed by itself."""
    model = wrap(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen: dict[str, list] = {"gradients": [], "local": [], "updates": []}
    task = Task(unwrap(model), nn.CrossEntropyLoss(), batch(data, 0), dtype=dtype) if data >= 0 else None
    rec = Recorder(folder / name / "run.h5", model, optimizer, task=task, probes=probes) if recorded else None
    for step in range(4):
        x, y = batch(rank, step)
        if accumulate and isinstance(model, DistributedDataParallel):
            with model.no_sync():
                nn.functional.cross_entropy(model(x), y).backward()
        loss = nn.functional.cross_entropy(model(x), y)
        if rec is not None and logs:
            rec.log(loss=loss)
        loss.backward()
        whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
        seen["gradients"].append(naive(whole))
        before = [_whole(p).clone() for p in model.parameters()]
        if rec is not None:
            rec.clip_grad_norm_(0.5)
        else:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        seen["updates"].append(
            naive(_whole(p).double() - b.double() for p, b in zip(model.parameters(), before, strict=True))
        )
        alone = net()
        alone.load_state_dict(
            {n.removeprefix("module."): b for (n, _), b in zip(model.named_parameters(), before, strict=True)}
        )
        own = torch.autograd.grad(nn.functional.cross_entropy(alone(x), y), list(alone.parameters()))
        seen["local"].append(naive(own)[0] ** 2)
    if rec is not None:
        rec.close()
    seen["weights"] = [_whole(p).flatten().tolist() for p in model.parameters()]
    return seen


def _whole(p) -> torch.Tensor:
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).detach()


def sharded(model: nn.Sequential) -> nn.Module:
    for layer in (model[0], model[2]):
        fully_shard(layer)
    return fully_shard(model)


def resume(folder: Path) -> dict:
    """Go on with the sharded run, two steps, and return where each process went on from."""
    model = sharded(net())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(
        folder / "fsdp" / "run.h5", model, optimizer, probes=[GradientNorms(every(steps=2))], resume=True
    ) as rec:
        begun = rec.step
        while rec.step < 6:
            nn.functional.cross_entropy(model(batch(0, 9)[0]), batch(0, 9)[1]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"begun": begun, "ended": rec.step}


def again(folder: Path, rank: int) -> list[int]:
    """Take steps again without the budget that left points of a shared probe out; return where each process ended."""
    ended = []
    for budget, steps in ((1e-9, 4), (None, 6)):
        model = DistributedDataParallel(net())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        task = Task(unwrap(model), nn.CrossEntropyLoss(), batch(0, 0))
        probes = [CurvatureProbe(when=every(steps=1, budget=budget), shared=True)]
        with Recorder(folder / "again" / "run.h5", model, optimizer, task=task, probes=probes, resume=True) as rec:
            if ended:
                rec.load_state_dict({**rec.state_dict(), "step": 2, "epoch": 0, "taken": None})
            while rec.step < steps:
                nn.functional.cross_entropy(model(batch(rank, 9)[0]), batch(rank, 9)[1]).backward()
                optimizer.step()
                optimizer.zero_grad()
        ended.append(rec.step)
    return ended


def exists(folder: Path) -> str:
    """Return what each process is told where the archive is there already."""
    model = net()
    try:
        Recorder(folder / "ddp" / "run.h5", model, torch.optim.SGD(model.parameters(), lr=0.1))
    except ArchiveError as error:
        return str(error)
    return ""


def refused(rank: int) -> dict[str, list]:
    """Return what is told where hooks of DDP, or shards, are in the way, and the gradients of DDP before and behind."""
    data = batch(0, 0)

    def told(model: nn.Module, dtype=None) -> str:
        try:
            with Hessian(Task(model, nn.CrossEntropyLoss(), data, dtype=dtype)) as H:
                eigenpairs(H, k=1)
        except ObjectiveError as error:
            return str(error)
        return "measured"

    def gradients(model: nn.Module) -> list[float]:
        model.zero_grad()
        x, y = batch(rank, 1)
        nn.functional.cross_entropy(model(x), y).backward()
        return naive(p.grad for p in model.parameters())

    ddp = DistributedDataParallel(net())
    before = gradients(ddp)
    found = [told(ddp.module, torch.float64), told(ddp.module)]
    flat = FullyShardedDataParallel(net(), device_id=torch.device("cpu"), use_orig_params=True)
    return {
        "ddp": found,
        "gradients": [before, gradients(ddp)],
        "sharded": [told(sharded(net())), told(flat)],
    }


def main(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    where = Path(folder)
    own = lambda: [GradientNorms(), Updates(), LearningRate()]  # noqa: E731
    found = {
        "ddp": train(where, "ddp", rank, DistributedDataParallel, own()),
        "ddp bare": train(where, "", rank, DistributedDataParallel, (), recorded=False),
        "accumulated": train(where, "accumulated", rank, DistributedDataParallel, own(), accumulate=True),
        "noise": train(
            where, "noise", rank, DistributedDataParallel, [GradientNoise(5, source="ranks", when=every(steps=1))]
        ),
        "alone": train(where, "alone", rank, DistributedDataParallel, expensive(shared=False)),
        "shared": train(where, "shared", rank, DistributedDataParallel, expensive(shared=True)),
        "logged by one": train(where, "by one", rank, DistributedDataParallel, expensive(shared=True), logs=rank == 0),
        "apart": train(where, "apart", rank, DistributedDataParallel, expensive(shared=True), data=rank),
        "without": train(where, "without", rank, DistributedDataParallel, expensive(shared=True), data=-rank),
        "in float64": train(where, "float64", rank, DistributedDataParallel, expensive(False), dtype=torch.float64),
        "fsdp": train(where, "fsdp", rank, sharded, [*own(), CurvatureProbe()]),
        "fsdp bare": train(where, "", rank, sharded, (), recorded=False),
        "fsdp budget": train(where, "budget", rank, sharded, [GradientNorms(every(steps=1, budget=1e-9))]),
    }
    found["resumed"] = resume(where)
    found["exists"] = exists(where)
    found["again"] = again(where, rank)
    found["refused"] = refused(rank)
    (where / f"rank{rank}.json").write_text(json.dumps(found))
    dist.barrier()  # neither leaves while the other's last messages are under way
    dist.destroy_process_group()
    # On a busy machine gloo's threads were once still there when the interpreter took them apart: std::terminate.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
