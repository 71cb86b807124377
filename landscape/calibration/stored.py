"""A recalibration as plain values and tensors, as it lies in a checkpoint that `weights_only=True` reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..results import Variable
from .maps import METHODS, PARAMETERS
from .recalibrated import Recalibration


def pack(recalibration: Recalibration) -> dict[str, Any]:
    """Return everything that the archive would hold of it, too."""
    return {
        "attributes": recalibration.attributes(),
        "variables": {k: torch.from_numpy(np.array(v.data)) for k, v in recalibration.variables().items()},
    }


def unpack(packed: Mapping[str, Any]) -> Recalibration:
    """Return the Recalibration that `pack` was given.

    Raises KeyError, TypeError or ValueError for what is not one, a map with parameters that are missing or not finite
    among it.
    """
    attributes, tensors = packed["attributes"], packed["variables"]
    variables = {}
    for name, tensor in tensors.items():
        data = tensor.numpy()
        variables[name] = Variable(data, tuple(f"{name}_{i}" for i in range(data.ndim)))
    method = attributes["method"]
    if method not in METHODS:
        raise ValueError(f"method {method!r} is not one of {', '.join(METHODS)}")
    for name in PARAMETERS[method]:
        if not np.isfinite(variables[name].data).all():
            raise ValueError(f"its {name} are not finite")
    found = Recalibration.restore(variables, attributes)
    assert isinstance(found, Recalibration)
    return found
