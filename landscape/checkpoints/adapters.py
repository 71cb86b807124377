"""An adapter's file (PEFT: LoRA, DoRA, IA3, ...): which tensors of a model it holds, the base model's being its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

#: Stands before each name in PEFT's files, whether or not the model was wrapped so.
PREFIX = "base_model.model."
# What the commonest methods call their tensors there.
_MARKS = re.compile(
    r"\.(lora_(A|B|embedding_A|embedding_B|magnitude_vector)|ia3_l|vera_lambda_[bd]|hada_w1_a|lokr_w1)\b"
)


@dataclass(frozen=True)
class Adapter:
    """Where the tensors of an adapter's file belong: {name in the file, without PREFIX: name in the model}.

    `names` are those that each file of this adapter holds, `beside` those of the base model, of which it may hold some
    (embeddings that were resized). `made_from_config`: nobody read the base model's weights from a file.
    """

    names: Mapping[str, str]
    beside: Mapping[str, str]
    made_from_config: bool


def is_adapter_file(names: Iterable[str]) -> bool:
    """Return whether these are the names of a file that PEFT wrote for an adapter, without its base model."""
    names = list(names)
    marked = any(_MARKS.search(n) for n in names)
    return marked and all(n.startswith(PREFIX) for n in names) and not any(".base_layer." in n for n in names)


def adapter_of(model: nn.Module) -> Adapter | None:
    """Return where an adapter's file belongs in a model whose active adapter it is; None for a model without one.

    PEFT itself names the tensors, whatever the method. None, too, for those whose file holds what the model computes
    rather than what it keeps (prompts).
    """
    peft = sys.modules.get("peft")  # who has such a model has imported it
    if peft is None:
        return None
    for inside, module in model.named_modules():
        adapters = getattr(module, "peft_config", None)
        if isinstance(adapters, Mapping) and adapters:
            return _adapter(peft, module, f"{inside}." if inside else "", adapters)
    return None


def _adapter(peft: Any, module: nn.Module, prefix: str, adapters: Mapping[str, Any]) -> Adapter | None:
    active = getattr(module, "active_adapter", None)
    label = active if isinstance(active, str) and active in adapters else next(iter(adapters))
    own = {k: v for k, v in module.state_dict(keep_vars=True).items() if isinstance(v, torch.Tensor)}
    # Embeddings are not asked for: PEFT would look on the hub whether they were resized.
    kept = peft.get_peft_model_state_dict(module, own, label, save_embedding_layers=False)
    at = {_place(v): k for k, v in own.items()}
    if not kept or not all(_place(v) in at for v in kept.values()):
        return None
    names = {k.removeprefix(PREFIX): prefix + at[_place(v)] for k, v in kept.items()}
    beside = {k.removeprefix(PREFIX): prefix + k for k in own if prefix + k not in names.values()}
    return Adapter(names, beside, getattr(getattr(module, "config", None), "_name_or_path", None) == "")


def _place(value: torch.Tensor) -> tuple[Any, ...]:
    return value.data_ptr(), tuple(value.shape), value.stride()
