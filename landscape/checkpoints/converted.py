"""Weights of a Transformers file in another form than the model's: renamed, or an expert each, as they were published.

`save_pretrained` writes the published form, which only the library's own loading turns into the model's.
"""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..seeding import seeded


def by_its_library(weights: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor] | None:
    """Return the weights in the form of a Transformers `model`; None where it is none, or the library finds no fit.

    Costs a second model of the kind, for a moment. What the library would fill in at random is no fit.
    """
    library = sys.modules.get("transformers.modeling_utils")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    kind: Any = type(model)
    try:
        with seeded(None), _quiet():
            loaded, found = kind.from_pretrained(
                None,
                config=copy.deepcopy(model.config),
                state_dict=dict(weights),
                dtype=dtype,
                output_loading_info=True,
            )
    except Exception:  # whatever it is, what doesn't fit is said by the names
        return None
    if any(found.values()):
        return None
    return {k: v for k, v in loaded.state_dict().items() if isinstance(v, torch.Tensor)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have the library show no progress and no report of what it loads."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
