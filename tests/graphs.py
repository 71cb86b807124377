"""Graphs with their adjacency matrix in every layout, and a small graph network that takes it dense or sparse."""

from __future__ import annotations

import warnings

import torch
from torch import nn

LAYOUTS = ("coo", "csr", "csc", "bsr", "bsc")


def graph(nodes: int = 12, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (normalized adjacency with loops (n, n), features (n, 4), labels (n,)), in float64."""
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(nodes, nodes, generator=g).double() < 0.3
    a = (a | a.T | torch.eye(nodes, dtype=torch.bool)).double()
    scale = a.sum(1).rsqrt()
    return scale[:, None] * a * scale, torch.randn(nodes, 4, generator=g).double(), torch.arange(nodes) % 3


def laid_out(matrix: torch.Tensor, layout: str, block: int = 3) -> torch.Tensor:
    """Return a matrix in a layout; "dense" leaves it."""
    if layout == "dense":
        return matrix
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*beta state")  # torch's, once in a process
        blocks = {"blocksize": (block, block)} if layout.startswith("bs") else {}
        return matrix.to_sparse(layout=getattr(torch, f"sparse_{layout}"), **blocks)


class GraphNet(nn.Module):
    """Two graph convolutions: A tanh(A x W) V."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, given: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        a, x = given
        if a.layout in (torch.sparse_bsr, torch.sparse_bsc):  # torch multiplies by no block layout's transpose on a CPU
            a = a.to_dense()
        return a @ self.outer(torch.tanh(a @ self.inner(x)))


def batches(layout: str, dtype: torch.dtype = torch.float64) -> list:
    """Return two graphs of different size as batches ((adjacency, features), labels)."""
    found = []
    for a, x, y in (graph(12, 1), graph(9, 2)):
        found.append(((laid_out(a.to(dtype), layout), x.to(dtype)), y))
    return found
