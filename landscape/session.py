"""Prepare somebody's model to be measured, and leave everything as it was on every way out."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from .aliases import following, refuse_shared_memory
from .batch import in_precision
from .dynamics.sharded import is_sharded
from .errors import ObjectiveError
from .seeding import seeded


@contextlib.contextmanager
def prepared(
    model: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    mode: str,
    batchnorm: str,
    seed: int,
    loss: Any = None,
) -> Iterator[None]:
    """Put `model` (unwrapped) on `device` in `dtype` and `mode`, ready for two derivatives; undo it all at the end.
    A `loss` that is a module (with class weights, say) goes to the same device and precision.

    The caller's weight and buffer tensors are set aside and never written to: the model works on copies, so
    that putting the originals back is exact, whatever happened in between.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.enter_context(seeded(seed))
        stack.enter_context(_exact_arithmetic())
        stack.enter_context(twice_differentiable(model))
        stack.enter_context(_own_tensors(model, device, dtype))
        stack.enter_context(_plain_attributes(model))
        stack.enter_context(_without_backward_hooks(model))
        if isinstance(loss, nn.Module):
            stack.enter_context(_own_tensors(loss, device, dtype))
            stack.enter_context(_plain_attributes(loss))
            stack.enter_context(_without_backward_hooks(loss))
        stack.enter_context(_mode(model, mode, batchnorm))
        yield


@contextlib.contextmanager
def _exact_arithmetic() -> Iterator[None]:
    """Turn TF32 and autotuning off, and deterministic convolutions on."""
    backends: Any = torch.backends  # its newer members are not in torch's type stubs
    # Those of a whole backend first, since they set those of its operations, too.
    holders = [
        backends.cudnn,
        backends.cuda.matmul,
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.mkldnn.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.rnn,
    ]
    saved = [(h, h.fp32_precision) for h in holders]
    cudnn = (backends.cudnn.benchmark, backends.cudnn.deterministic)
    # A model that calls torch.backends.cudnn.flags() (for a CTC loss, say) reads cuDNN's older switch, which raises
    # where the newer ones say something else: it is set beside them. Set before them, since it sets them, too.
    older = _older_switch(backends.cudnn)
    try:
        if older is not None:
            backends.cudnn.allow_tf32 = False
        for holder in holders:
            holder.fp32_precision = "ieee"
        backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
        yield
    finally:
        if older is not None:
            backends.cudnn.allow_tf32 = older
        for holder, value in saved:
            holder.fp32_precision = value
        backends.cudnn.benchmark, backends.cudnn.deterministic = cudnn


def _older_switch(cudnn: Any) -> bool | None:
    """Return cuDNN's older TF32 switch; None where it cannot be read, since the newer ones contradict it."""
    try:
        return cudnn.allow_tf32
    except RuntimeError:
        return None


@contextlib.contextmanager
def _compiled_by_its_python() -> Iterator[None]:
    """Run what torch.compile compiled as the Python that it was made from.

    Setting a stance imports the compiler, which takes a second: where nobody did yet, the first thing compiled does.
    """
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            yield
            return
        compile_ = torch.compile

        def first(*args: Any, **options: Any) -> Any:
            torch.compile = compile_  # type: ignore[assignment]
            # A session around this one sets its stance here, and so has it back when this one ends.
            compiled = compile_(*args, **options)
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            return compiled

        torch.compile = first  # type: ignore[assignment]
        try:
            yield
        finally:
            if torch.compile is first:
                torch.compile = compile_  # type: ignore[assignment]


@contextlib.contextmanager
def twice_differentiable(model: nn.Module | None = None) -> Iterator[None]:
    """Run attention on the math kernel, compiled code by its Python, checkpointing without reentrance, recurrent
    layers without cuDNN, embeddings with dense gradients, and nothing under autocast.

    The fused attention kernels, cuDNN's recurrent ones and sparse gradients have no second derivative, torch.compile
    has no double backward, reentrant checkpointing refuses torch.autograd.grad, and an autocast inside a forward would
    undo the precision that was asked for. torch._weight_norm has a second derivative, but a wrong one (gradgradcheck
    fails on it in torch 2.13): it is composed of operations whose derivatives are right.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    reentrant = torch.utils.checkpoint.CheckpointFunction
    modules = list(model.modules()) if model is not None else []
    sparse = [m for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse]
    cudnn: Any = torch.backends.cudnn
    enabled = cudnn.enabled
    enter = torch.autocast.__enter__
    # torch.nn.utils.weight_norm, the module, lies behind the function of the same name.
    weight_norms: list[tuple[Any, Any]] = [
        (m, m._weight_norm) for m in (torch, sys.modules["torch.nn.utils.weight_norm"])
    ]
    with sdpa_kernel(SDPBackend.MATH), _this_attention_kernel(), _compiled_by_its_python():
        torch.backends.mha.set_fastpath_enabled(False)
        torch.utils.checkpoint.CheckpointFunction = _NotReentrant  # type: ignore[misc, assignment]
        torch.autocast.__enter__ = _enter_disabled(enter)  # type: ignore[method-assign]
        for holder, _ in weight_norms:
            holder._weight_norm = _weight_norm
        try:
            if any(isinstance(m, nn.RNNBase) for m in modules):
                cudnn.enabled = False
            for m in sparse:
                m.sparse = False
            yield
        finally:
            for m in sparse:
                m.sparse = True
            cudnn.enabled = enabled
            torch.autocast.__enter__ = enter  # type: ignore[method-assign]
            for holder, original in weight_norms:
                holder._weight_norm = original
            torch.utils.checkpoint.CheckpointFunction = reentrant  # type: ignore[misc]
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextlib.contextmanager
def _this_attention_kernel() -> Iterator[None]:
    """Hold the attention kernel that is set: a model may set others in its forward, around its attention."""
    module: Any = torch.nn.attention
    choose = getattr(module, "_sdpa_kernel", None)
    if choose is None:  # a torch that does it otherwise: such a model's attention then says that it has no derivative
        yield
        return
    module._sdpa_kernel = lambda *_, **__: None
    try:
        yield
    finally:
        module._sdpa_kernel = choose


def _weight_norm(v: torch.Tensor, g: torch.Tensor, dim: int = 0) -> torch.Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _enter_disabled(enter: Any) -> Any:
    """Return an __enter__ for torch.autocast that leaves it disabled."""

    def disabled(self: Any) -> Any:
        wanted = self._enabled
        self._enabled = False
        try:
            return enter(self)
        finally:
            self._enabled = wanted

    return disabled


class _NotReentrant:
    """Stands in for torch's reentrant CheckpointFunction while a model is measured."""

    @staticmethod
    def apply(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
        return torch.utils.checkpoint.checkpoint(
            function, *args, use_reentrant=False, preserve_rng_state=preserve_rng_state
        )


@contextlib.contextmanager
def _own_tensors(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Let the model work on copies of its tensors; hooks on its parameters stay out of the measurement."""
    if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
        raise ObjectiveError("the model is, or holds, a TorchScript module: give the module that was scripted")
    if any(p.is_meta for p in model.parameters()):
        raise ObjectiveError("the model has parameters without values (device 'meta'); load its weights first")
    # By name: importing it takes a second. Its wrapped modules compute with other tensors than their parameters.
    if any(is_sharded(p) for p in model.parameters()) or any(
        type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()
    ):
        raise ObjectiveError(
            "the model is sharded (FSDP, tensor parallelism): no process holds its weights to move or differentiate "
            "them. Gather them into a whole model with torch.distributed.checkpoint.state_dict.get_model_state_dict("
            "model, options=StateDictOptions(full_state_dict=True)), or measure its checkpoints"
        )
    refuse_shared_memory(model)
    with following(model) as follow, _copies(model, device, dtype):
        follow()
        yield


@contextlib.contextmanager
def _copies(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    def own(t: torch.Tensor) -> torch.Tensor:
        return t.detach().to(device, in_precision(t.dtype, dtype), copy=True)

    parameters = list(model.parameters())
    modules = list(model.modules())
    kept = [(p, p.data, p.grad, p._backward_hooks) for p in parameters]
    # A graph that somebody made before remembers how often its tensors had been changed: they will not have been.
    unchanged = _unsafe_preserve_version_counter(tuple(parameters))
    buffers = [(m, dict(m._buffers)) for m in modules]
    # Plain tensor attributes: constants that .to() forgets, and what weight_norm's hook leaves behind.
    loose = [(m, {k: v for k, v in vars(m).items() if isinstance(v, torch.Tensor)}) for m in modules]
    copies: dict[int, torch.Tensor] = {}
    try:
        for p in parameters:
            p.grad = None
            p._backward_hooks = None
            p.data = own(p.data)
        for m, found in buffers:
            for name, b in found.items():
                if b is not None:
                    m._buffers[name] = copies.setdefault(id(b), own(b))
        for m, found in loose:
            for name, t in found.items():
                if not t.requires_grad:
                    vars(m)[name] = copies.setdefault(id(t), own(t))
        yield
    finally:
        for p, data, grad, hooks in kept:
            p.data = data
            p.grad = grad
            p._backward_hooks = hooks
        unchanged.__exit__()
        for m, found in buffers:
            m._buffers.clear()
            m._buffers.update(found)
        for m, found in loose:
            for name in [k for k, v in vars(m).items() if isinstance(v, torch.Tensor) and k not in found]:
                del vars(m)[name]
            vars(m).update(found)


@contextlib.contextmanager
def _plain_attributes(model: nn.Module) -> Iterator[None]:
    """Put back the numbers, strings and flags of modules and parameters, and what lists of the modules hold.

    They are what a model counts, collects, or remembers to have done to weights that are put back, too. Attributes that
    were not there are removed: what a model computes once and keeps is that of the copies it worked on.
    """

    def plain(m: nn.Module | nn.Parameter) -> dict[str, Any]:
        return {k: v for k, v in vars(m).items() if v is None or isinstance(v, bool | int | float | complex | str)}

    kept = [(m, plain(m), set(vars(m))) for m in (*model.modules(), *model.parameters())]
    lists = [(x, x.copy()) for m in model.modules() for x in vars(m).values() if type(x) is list]
    try:
        yield
    finally:
        for x, items in lists:
            x[:] = items
        for m, found, names in kept:
            for name in [k for k in vars(m) if k not in names]:
                del vars(m)[name]
            vars(m).update(found)


def have_backward_hooks(model: nn.Module) -> list[str]:
    """Return the names of the modules with hooks on what is passed back through them."""
    return [name for name, m in model.named_modules() if m._backward_hooks or m._backward_pre_hooks]


@contextlib.contextmanager
def _without_backward_hooks(model: nn.Module) -> Iterator[None]:
    """Set aside the modules' backward hooks: they serve a training, such as the gradients of each sample.

    They count on its one backward pass for each forward, and may change what is passed back: that is no derivative of
    the loss then.
    """
    kept = [(m, m._backward_hooks, m._backward_pre_hooks) for m in model.modules()]
    try:
        for m, _, _ in kept:
            m._backward_hooks, m._backward_pre_hooks = OrderedDict(), OrderedDict()
        yield
    finally:
        for m, hooks, before in kept:
            m._backward_hooks, m._backward_pre_hooks = hooks, before


@contextlib.contextmanager
def _mode(model: nn.Module, mode: str, batchnorm: str) -> Iterator[None]:
    """Set the modules' modes; `_plain_attributes` puts them back.

    For "eval" only the flags: a train() of the model's own may write to its weights (LoRA layers merge theirs in it,
    and the loss would no longer depend on what is trained). For "train" it is called, since it is there that layers
    are kept frozen.
    """
    if mode == "train":
        model.train()
    else:
        for m in model.modules():
            m.training = False
    for m in batchnorm_layers(model):
        m.training = batchnorm == "batch"
    yield


def batchnorm_layers(model: nn.Module) -> list[_NormBase]:
    """Return the layers that keep running statistics: BatchNorm, and InstanceNorm with track_running_stats=True."""
    return [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]


@contextlib.contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Estimate BatchNorm's running statistics anew: the average over the batches run inside, by the values of each.

    A plain average, as torch takes with momentum=None, would give a ragged last batch of 2 samples the weight of 256.
    """
    layers = batchnorm_layers(model)
    momenta = [(m, m.momentum) for m in layers]
    seen = dict.fromkeys(layers, 0.0)

    def weigh(layer: Any, args: Any, kwargs: Any) -> None:
        values = next((v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), None)
        count = 1.0 if values is None else values.numel() / values.shape[1]
        seen[layer] += count
        layer.momentum = count / seen[layer] if seen[layer] else 0.0

    hooks = [m.register_forward_pre_hook(weigh, with_kwargs=True) for m in layers]
    try:
        for m in layers:
            m.reset_running_stats()
            m.train()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for m, momentum in momenta:
            m.momentum = momentum
            m.eval()


@contextlib.contextmanager
def quiet_rnn() -> Iterator[None]:
    """Silence cuDNN's remark that recurrent weights are not one chunk: true of our copies, and harmless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous")
        yield
