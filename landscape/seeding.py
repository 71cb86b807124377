"""The generators of random numbers that a model or a data set may draw from: seeded, and put back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch on every device, NumPy and random inside; put all their states back on every way out."""
    states = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    put_back_devices = _devices_as_they_are()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        put_back_devices()


def seed_all(seed: int) -> None:
    """Seed every generator that a model or a data set may use."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # torch.manual_seed notes down the call stack for devices that may come: up to a millisecond, for nothing.
        torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _devices_as_they_are() -> Callable[[], None]:
    """Return what puts the generators of the accelerators back to how they are now."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None:
        return lambda: None
    module: Any = torch.get_device_module(device.type)
    if not getattr(module, "is_initialized", lambda: True)():
        # A device that was not used yet keeps the last seed for its first use: it must be the caller's, not ours.
        # Whoever seeded torch seeded the CPU's generator with the same number; both begin with the same one, too.
        pending = torch.initial_seed()
        return lambda: module.manual_seed_all(pending)
    if hasattr(module, "get_rng_state_all"):
        states = module.get_rng_state_all()
        return lambda: module.set_rng_state_all(states)
    state = module.get_rng_state()
    return lambda: module.set_rng_state(state)
