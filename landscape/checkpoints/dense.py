"""Which last layer gives a value at each pixel: the outputs of segmentation nets, U-Nets, autoencoders, generators."""

from __future__ import annotations

import re
from collections.abc import Mapping

_OUTPUT = re.compile(
    r"(^|[._])(out|outc|output|head|last|final|logits|score|cls|classifier)([._]|\d|$)|segmentation_head"
    r"|(^|[._])(conv_?(out|last|final)|(out|last|final)_?conv)([._]|\d|$)"
)
# Parts on the way from small to large (names of diffusers, guided diffusion, monai and common U-Nets; chosen by us).
_UPWARD = re.compile(
    r"(^|[._])(dec|decoders?|decode|ups?|up_?(conv|block|sample|layer)s?|deconvs?|output_blocks)(\d*[._])"
)
_INPUT = re.compile(r"(^|[._])(inc|stem|input|conv_?in|in_?conv)([._]|\d|$)")
_CONVOLUTION = (3, 4, 5)  # dimensions of a convolution's weight


def stage(name: str) -> int:
    """Return where a part stands by its name alone: -1 at the input, 1 on the way up, 2 at the output, else 0."""
    top = ".".join(name.split(".")[:2])
    return 2 if _OUTPUT.search(top) else 1 if _UPWARD.search(top) else -1 if _INPUT.search(top) else 0


def transposed(weight: tuple[int, ...], bias: tuple[int, ...] | None, channels: int | None) -> bool:
    """Whether a convolution's weight is a transposed one's, (in, out/groups, ...); `channels` come in (None: unknown).

    Where a layer without a bias has as many outputs as inputs, nothing tells them apart, nor has to.
    """
    if bias:
        return bias != (weight[0],)
    return channels not in (None, weight[1]) and channels == weight[0]


def dense_outputs(weights: Mapping[str, tuple[int, ...]]) -> int | None:
    """Return how many values the model gives for each pixel; None where it looks like one of another kind.

    Its last layer (the one that is called so, else the last in order) must be a convolution. Beside that it has size 1
    and no matrix stands anywhere, or it has fewer outputs than inputs and is no normalized layer of a backbone;
    where there are matrices, too (of a time, a latent code, attention), something must lead up to it.
    """
    names = list(weights)
    layers = [k for k in names if k.rpartition(".")[2] == "weight" and len(weights[k]) >= 2]
    spatial = [k for k in layers if len(weights[k]) in _CONVOLUTION]
    if not spatial:
        return None
    called = [k for k in spatial if stage(k) == 2]  # only near the top: blocks of a U-Net have parts called out, too
    last = called[-1] if called else layers[-1]
    if last not in spatial:
        return None
    shape, bias = weights[last], weights.get(f"{last.removesuffix('weight')}bias")
    before = [weights[k] for k in names[: names.index(last)] if k.rpartition(".")[2] == "weight"]
    up = transposed(shape, bias, before[-1][0] if before else None)
    outputs = (bias[0] if bias else shape[1]) if up else shape[0]
    inputs = shape[0] if up else shape[1]
    convolutions_alone = len(spatial) == len(layers)
    if convolutions_alone and set(shape[2:]) == {1}:
        return outputs
    normalized = any(len(weights[k]) == 1 for k in names[names.index(last) :] if k.rpartition(".")[2] == "weight")
    if outputs >= inputs or (normalized and not called):
        return None
    leads_up = up or any(_UPWARD.search(k) for k in spatial)
    return outputs if convolutions_alone or leads_up else None
