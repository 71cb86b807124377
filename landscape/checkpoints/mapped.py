"""Weights of a file that stay on disk until they are read: for many checkpoints at once, a part of each at a time."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from ..errors import CheckpointError
from .contents import Contents, take_apart


def map_file(path: Path) -> Contents | None:
    """Return the parts of a torch file with its tensors mapped from disk, read only where they are looked at.

    None for what can't be mapped so: a file from before the zip format, strangers beside the weights, a folder, and
    anything damaged or missing (`read_checkpoint` reads it whole, or says what is wrong). Costs the file's index, not
    its weights; they stay mapped as long as a tensor of them lives.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return take_apart(value)
    except (CheckpointError, pickle.UnpicklingError, RuntimeError, ValueError, KeyError, TypeError, OSError):
        return None
