"""The exponential of float64 blocks on a CPU, by whichever of the two libraries at hand is the faster one here."""

from __future__ import annotations

import functools
import time

import numpy as np
import torch

# Numbers in a trial, and trials of each, of which the fastest counts (chosen by us: 2 ms in all; of 5 trials each, some
# processes on a busy machine found the other way than those beside them).
_SIZE, _TRIALS = 1 << 14, 40
# How much faster NumPy must be to be taken, so that noise does not decide (chosen by us).
_MARGIN = 1.2


def exponentiate(x: np.ndarray) -> None:
    """Replace x, float64 and contiguous, by its exponential, to a unit in the last place.

    NumPy has its own AVX-512 exponential, 0.8 ns a number where torch's takes 1.7 (AMD Zen 4); without AVX-512 it takes
    several times as long as torch.
    """
    if _by_numpy():
        np.exp(x, out=x)
    else:
        torch.from_numpy(x).exp_()


@functools.cache
def _by_numpy() -> bool:
    """Say whether NumPy is faster on this machine: a property of its processor, so that results stay the same."""
    x = torch.linspace(-20, 20, _SIZE, dtype=torch.float64, device="cpu")
    room = torch.empty_like(x)
    seconds: dict[str, list[float]] = {"numpy": [], "torch": []}
    for _ in range(_TRIALS):
        for name, taken in seconds.items():
            start = time.perf_counter()
            if name == "numpy":
                np.exp(x.numpy(), out=room.numpy())
            else:
                torch.exp(x, out=room)
            taken.append(time.perf_counter() - start)
    return min(seconds["numpy"]) * _MARGIN < min(seconds["torch"])
