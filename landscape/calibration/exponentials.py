"""The exponential of float64 blocks on a CPU, by whichever of the two libraries at hand is the faster one there."""

from __future__ import annotations

import functools

import numpy as np
import torch

#: What NumPy calls the processors with AVX-512, before 2.4 and since.
_AVX512 = {"AVX512F", "AVX512_SKX", "X86_V4"}


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
    """Say whether NumPy has vectors of AVX-512 for it here.

    Asked, not timed, so that all processes of a machine give the same numbers to the last bit. Of an
    older NumPy that can't be asked, torch's is taken.
    """
    try:
        from numpy.lib.introspect import opt_func_info
    except ImportError:
        return False
    kinds = opt_func_info(func_name="^exp$", signature="float64").get("exp", {})
    return any(kind["current"] in _AVX512 for kind in kinds.values())
