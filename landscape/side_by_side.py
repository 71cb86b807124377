"""How many processes share a machine's memory because they were begun to work side by side. No torch here."""

from __future__ import annotations

#: Processes by the kind of memory.
_PROCESSES = {"host": 1, "device": 1}


def share_memory(*, host: int, device: int) -> None:
    """Let this process count on its part alone: the host's memory is for `host` processes, its GPU's for `device`."""
    _PROCESSES.update(host=max(1, host), device=max(1, device))


def sharers(kind: str) -> int:
    """Return how many processes share the "host" memory or that of the "device"."""
    return _PROCESSES[kind]
