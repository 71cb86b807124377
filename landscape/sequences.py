"""Packed sequences as batches of sequences: how many there are, some of them, several packs as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence


def count(packed: PackedSequence) -> int:
    """Return the number of sequences; `len` is that of the named tuple."""
    return int(packed.batch_sizes[0]) if len(packed.batch_sizes) else 0


def chosen(packed: PackedSequence, index: torch.Tensor) -> PackedSequence:
    """Return the sequences at `index`, in their order before packing."""
    found = unpack_sequence(packed)
    return pack_sequence([found[i] for i in index.tolist()], enforce_sorted=False)


def joined(packs: Sequence[PackedSequence]) -> PackedSequence:
    """Return one pack of the sequences of all of these; ValueError where their steps have different shapes."""
    if len({(p.data.dtype, p.data.device, p.data.shape[1:]) for p in packs}) > 1:
        raise ValueError("the steps of these sequences have different shapes")
    return pack_sequence([s for p in packs for s in unpack_sequence(p)], enforce_sorted=False)
