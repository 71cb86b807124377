"""A decoder-only transformer of the size of nanoGPT's smallest example (6 layers, width 384; 10.7 million weights)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

#: Characters of the corpus that nanoGPT's example is trained on.
VOCABULARY = 65


class Layer(nn.Module):
    """Causal self-attention and a feed-forward part, each after a LayerNorm and beside a skip (pre-norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Tokens (n, length) -> logits (n, length, vocabulary); the head shares its weights with the embedding."""

    def __init__(self, layers: int = 6, width: int = 384, heads: int = 6, context: int = 256) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(context, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for layer in self.layers:
            x = layer(x)
        return self.norm(x) @ self.tokens.weight.T


def token_loss(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the mean cross entropy over all tokens (nats) and how many there are."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), targets.numel()
