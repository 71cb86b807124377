"""The demo's short trainings: two losses by two learning rate schedules, each ending in a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from landscape.checkpoints.writing import save_checkpoint
from landscape.tasks import Task

from .digits import LOSSES, REFERENCE, digits

SCHEDULES = ("constant", "cosine")
#: Chosen by us, by trial: rate and batches are such that the constant schedule's last steps are visibly noisy, which
#: the cosine anneals away. 20 epochs take 2 seconds on one core.
EPOCHS, BATCH_SIZE, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 20, 32, 0.3, 0.9, 5e-4


def train_demo(out: Path, *, seed: int = 0, epochs: int = EPOCHS, progress: bool = True) -> list[Path]:
    """Train the digits with each loss and schedule, and return the four checkpoints, `out/<loss>-<schedule>.pt`.

    All four start from the same weights and see the same batches (`seed`). On one machine the same seed gives the
    same weights. Progress goes to stderr: one bar for the trainings, one for the epochs of the one under way.
    """
    out.mkdir(parents=True, exist_ok=True)
    cells = list(product(LOSSES, SCHEDULES))
    saved = []
    with tqdm(total=len(cells), desc="training", unit="net", disable=not progress) as bar, one_thread():
        for loss, schedule in cells:
            path = out / f"{loss}-{schedule}.pt"
            _train(path, loss, schedule, seed=seed, epochs=epochs, progress=progress)
            saved.append(path)
            bar.update()
    return saved


def _train(path: Path, loss: str, schedule: str, *, seed: int, epochs: int, progress: bool) -> None:
    settings = {"loss": loss, "schedule": schedule, "seed": seed}
    task = digits(**settings)
    model, criterion = task.model, task.loss
    assert criterion is not None
    order = torch.Generator().manual_seed(seed)
    batches = DataLoader(TensorDataset(*task.train), BATCH_SIZE, shuffle=True, generator=order)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    steps = epochs * len(batches)
    scheduler = _scheduler(schedule, optimizer, steps)
    model.train()
    with tqdm(range(epochs), desc=task.name, unit="epoch", leave=False, position=1, disable=not progress) as bar:
        for _ in bar:
            total = 0.0
            for images, labels in batches:
                value = criterion(model(images), labels)
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                scheduler.step()
                total += value.item() * len(labels)
            bar.set_postfix(loss=f"{total / len(task.train[1]):.3f}", accuracy=f"{_accuracy(task):.3f}")
    save_checkpoint(
        path,
        model.eval(),
        task=REFERENCE,
        settings=settings,
        optimizer=optimizer,
        step=steps,
        epoch=epochs,
        loss=loss,
        schedule=schedule,
        batch_size=BATCH_SIZE,
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        seed=seed,
    )


def _scheduler(schedule: str, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)  # to 0, without restarts
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _accuracy(task: Task) -> float:
    """Return the share of test images labelled right, with the running statistics; the mode is put back."""
    images, labels = task.test
    task.model.eval()
    with torch.no_grad():
        share = (task.model(images).argmax(dim=1) == labels).double().mean().item()
    task.model.train()
    return share


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one thread: a net this small gains nothing from two, and sums no longer depend on their number.

    Where other programs keep the cores busy, threads that wait for each other take ten times longer (measured).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
