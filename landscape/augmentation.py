"""Does a data set give the same sample when it is read again, or another one each time, as augmentation does?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from .sparse import content

#: Samples that are read twice: of a flip in every other one, 15 of 16 data sets are found (chosen by us).
SAMPLES = 4


def random_sample(data: Any) -> int | None:
    """Return the index of a sample that differs between two reads, None where none was found.

    Looks at `SAMPLES` samples of what has an index: a data set, or that of a DataLoader. Costs two reads of each at
    most; draws from the global generators. A sample that can't be read by its index, or be compared, tells nothing.
    """
    source: Any = data.dataset if isinstance(data, DataLoader) else data
    if isinstance(source, IterableDataset | list | tuple | Mapping) or not hasattr(source, "__getitem__"):
        return None
    try:
        n = len(source)
        for i in sorted({round(k * (n - 1) / (SAMPLES - 1)) for k in range(SAMPLES)} if n else ()):
            if _differ(source[i], source[i]):
                return i
    except Exception:  # the draw itself says what is wrong with the data; this only looks for one thing
        return None
    return None


def _differ(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
            return True
        return any(map(_differing, content(a), content(b)))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return any(_differ(a[k], b[k]) for k in a if k in b)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) != len(b) or any(map(_differ, a, b))
    if isinstance(a, int | float | str) and isinstance(b, int | float | str):
        return a != b and (a == a or b == b)
    return False  # objects of other kinds need not be equal to their own copies


def _differing(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape != b.shape or not bool(((a == b) | ((a != a) & (b != b))).all())
