"""A bit-for-bit picture of everything that a measurement must leave alone, and a model with all of it."""

from __future__ import annotations

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """BatchNorm with statistics of its own, and dropout: everything that a careless tool disturbs."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)).to(dtype)
    model(torch.randn(20, 5, dtype=dtype))
    return model


def data(n: int = 23, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(n, 5, generator=g, dtype=dtype), torch.randint(3, (n,), generator=g)


def messy() -> nn.Sequential:
    """A model in the middle of training: gradients, a frozen layer, one layer in another mode."""
    model = net(torch.float32)
    F.cross_entropy(model(data(dtype=torch.float32)[0]), data()[1]).backward()
    model[4].bias.requires_grad_(False)
    model[1].eval()
    return model


class State:
    """A bit-for-bit picture of everything that a measurement must leave alone."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.tensors = {k: (v, v.data_ptr(), v.clone()) for k, v in model.state_dict(keep_vars=True).items()}
        self.grads = {n: (p.grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()}
        self.requires = {n: p.requires_grad for n, p in model.named_parameters()}
        self.modes = [m.training for m in model.modules()]
        self.momenta = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)]
        self.rng = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
        self.flags = self.backend_flags()

    @staticmethod
    def backend_flags() -> tuple:
        b = torch.backends
        return (
            b.cuda.matmul.allow_tf32,
            b.cudnn.allow_tf32,
            torch.get_float32_matmul_precision(),
            b.cuda.matmul.fp32_precision,
            b.cudnn.conv.fp32_precision,
            b.mkldnn.matmul.fp32_precision,
            b.cudnn.benchmark,
            b.cudnn.deterministic,
            b.mha.get_fastpath_enabled(),
            b.cuda.flash_sdp_enabled(),
            b.cuda.math_sdp_enabled(),
            b.cuda.mem_efficient_sdp_enabled(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.utils.checkpoint.CheckpointFunction,
            torch.are_deterministic_algorithms_enabled(),
        )

    def unchanged(self) -> None:
        now = self.model.state_dict(keep_vars=True)
        assert list(now) == list(self.tensors)
        for k, (original, pointer, value) in self.tensors.items():
            assert now[k] is original, k
            assert now[k].data_ptr() == pointer, k
            assert now[k].dtype == value.dtype, k
            assert torch.equal(now[k], value), k
        for n, p in self.model.named_parameters():
            assert p.grad is self.grads[n][0]
            assert p.grad is None or torch.equal(p.grad, self.grads[n][1])
            assert p.requires_grad == self.requires[n]
        assert [m.training for m in self.model.modules()] == self.modes
        assert [m.momentum for m in self.model.modules() if isinstance(m, nn.BatchNorm1d)] == self.momenta
        assert torch.equal(torch.get_rng_state(), self.rng[0])
        assert random.getstate() == self.rng[1]
        assert (np.random.get_state()[1] == self.rng[2]).all()
        assert self.backend_flags() == self.flags
