"""A task file for a model that takes a dict batch and computes its own loss, as language models do.

Train it, and probe where it ended up:

    python dict_batch_task.py progressions.pt
    landscape probe progressions.pt --task dict_batch_task.py:progressions --report progressions.html
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn import functional as F

from landscape import Task, task

WORDS, LENGTH, IGNORED = 11, 12, -100
Batch = dict[str, torch.Tensor]


class TinyTransformer(nn.Module):
    """One causal attention block; `forward(**batch)` returns the loss and the logits, and skips ignored positions."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(WORDS, width)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH, width))
        self.before = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.out = nn.Linear(width, WORDS)

    def forward(self, words: torch.Tensor, labels: torch.Tensor) -> Batch:
        x = self.words(words) + self.places
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(self.before(x)).chunk(3, -1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(attended.transpose(1, 2).flatten(-2))
        logits = self.out(x + self.feed(x))
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED), "logits": logits}


def batches(samples: int, seed: int, size: int = 64) -> list[Batch]:
    """Made data: arithmetic progressions modulo 11 of unequal length. From two words on, the next one is known."""
    generator = torch.Generator().manual_seed(seed)
    start, step = torch.randint(WORDS, (2, samples, 1), generator=generator)
    words = (start + step * torch.arange(LENGTH + 1)) % WORDS
    labels = words[:, 1:].clone()
    length = torch.randint(4, LENGTH + 1, (samples, 1), generator=generator)
    place = torch.arange(LENGTH)
    labels[(place == 0) | (place >= length)] = IGNORED  # the first can't be guessed, the others lie behind the end
    return [{"words": w, "labels": y} for w, y in zip(words[:, :-1].split(size), labels.split(size), strict=True)]


def loss_and_weight(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    # The mean is over the words that count, and batches hold unequal numbers of them: return its denominator too.
    return model(**batch)["loss"], int((batch["labels"] != IGNORED).sum())


def logits_and_labels(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    counted = batch["labels"] != IGNORED
    return model(**batch)["logits"][counted], batch["labels"][counted]


@task
def progressions(width: int = 32) -> Task:
    return Task(
        model=TinyTransformer(width),
        train=batches(1000, seed=1),
        test=batches(300, seed=2),
        batch_loss=loss_and_weight,
        predict=logits_and_labels,  # for accuracy and calibration, which batch_loss alone doesn't give
        name="progressions",
    )


def train(epochs: int = 15) -> nn.Module:
    torch.manual_seed(0)
    setup = progressions()
    optimizer = torch.optim.AdamW(setup.model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in setup.train:
            optimizer.zero_grad()
            setup.model(**batch)["loss"].backward()
            optimizer.step()
    return setup.model


if __name__ == "__main__":
    torch.save(train().state_dict(), sys.argv[1] if len(sys.argv) > 1 else "progressions.pt")
