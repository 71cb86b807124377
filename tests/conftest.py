"""What every test stands on: no network, no display, slow tests last, GPU tests only where a GPU is, or pretended."""

from __future__ import annotations

import os
import signal
import sys

import pytest

# Before any test module imports the libraries that read these at import.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)  # stable: quick failures come first
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and "pretend_device" not in sys.modules and not _cuda():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _cuda() -> bool:
    import torch  # only when a GPU test was collected: the torch-free tests start without it

    return torch.cuda.is_available()
