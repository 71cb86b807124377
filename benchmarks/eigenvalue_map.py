"""What a warm start saves on a map of the Hessian's extreme eigenvalues, and how far the map is from the truth.

Planes of 9 x 9 points around trained MLPs on the digits (ReLU and tanh, 3,722 parameters, 512 samples), at the residual
tolerances of Li et al.'s code (1e-2) and ours (1e-3), each point started from nothing or from its neighbor's vectors.
Errors are against a map at 2e-5, as shares of the point's largest eigenvalue. Products are counted, not timed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from landscape import Task, eigenvalue_map

TRUTH = 2e-5


def trained(activation: type[nn.Module], x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    """Return an MLP after 20 epochs of Adam on 1,300 digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), activation(), nn.Linear(32, 32), activation(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        for part in torch.randperm(1300).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description="What a warm start saves on a map of extreme eigenvalues.")
    parser.add_argument("--grid", type=int, default=9, help="points of each side (default 9)")
    parser.add_argument("--out", type=Path, help="folder for the JSON file (default benchmarks/results)")
    given = parser.parse_args()
    digits: Any = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    steps = np.linspace(-1, 1, given.grid)
    rows = []
    for activation in (nn.ReLU, nn.Tanh):
        task = Task(trained(activation, x, y), nn.CrossEntropyLoss(), (x[:512], y[:512]))
        truth = eigenvalue_map(task, alphas=steps, betas=steps, tol=TRUTH, max_products=2000)
        for tol in (1e-2, 1e-3):
            for warm in (False, True):
                found = eigenvalue_map(task, alphas=steps, betas=steps, tol=tol, warm=warm)
                size = np.abs(truth.largest)
                rows.append(
                    {
                        "activation": activation.__name__,
                        "tol": tol,
                        "warm": warm,
                        "products_a_point": round(float(found.products.mean()), 2),
                        "worst_error_largest": float(f"{np.max(np.abs(found.largest - truth.largest) / size):.2g}"),
                        "worst_error_smallest": float(f"{np.max(np.abs(found.smallest - truth.smallest) / size):.2g}"),
                        "worst_error_ratio": float(f"{np.max(np.abs(found.ratio - truth.ratio)):.2g}"),
                        "converged": bool(found.converged.all()),
                    }
                )
                print(rows[-1])
    print(harness.write("eigenvalue_map", {"grid": given.grid, "truth_tol": TRUTH, "maps": rows}, given.out))


if __name__ == "__main__":
    main()
