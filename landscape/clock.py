"""The clock by which trials are timed: what a computation takes by itself, whoever else uses the machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch


def cpu_clock(device: torch.device | str) -> Callable[[], float]:
    """Return a function that gives seconds, of which differences time what this thread has a device compute.

    On a CPU these are the processor's seconds in the calling thread, from which other programs take nothing: with two
    others for each core the clock on the wall showed 2 to 3 times as many. With several threads of torch they are as
    right: the calling thread computes its share of every operation, and all shares are equal, so that its own time is
    what the wall shows where each thread has a core (the process's time over the number of threads would take an n-th
    of what one thread does alone). What a model computes in Python threads of its own is left out. On every other
    device, where this thread only waits, it is the clock on the wall, after all that was asked of the device; likewise
    on Windows, whose threads' time moves in steps of 16 ms.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return time.perf_counter if sys.platform == "win32" else time.thread_time

    def clock() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return clock
