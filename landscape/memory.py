"""Running out of memory: told from other errors on every device, and said in one line with what to do."""

from __future__ import annotations

import torch

from .errors import OutOfMemory

#: What the host's allocators say in a RuntimeError, since they raise nothing more precise (torch 2.13, by system).
_HOSTS = ("can't allocate memory", "not enough memory: you tried to allocate")
REMEDY = "give smaller batches (Task(batch_size=...)), fewer samples (--max-samples), or Task(device='cpu')"


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was no memory left, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError | OutOfMemory):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _HOSTS)


def give_back(device: torch.device) -> None:
    """Let torch give back what it holds of a GPU's memory without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
