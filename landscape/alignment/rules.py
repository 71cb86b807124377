"""What each of torch's operations asks of the axes of its tensors, and the axes of what it gives.

A rule takes a `Call` and returns the axes of every output tensor. It unifies what has to be in the same order (the
dimension that a product sums over; dimensions that are added to each other), and fixes what has an order of its own
(pixels, positions, what is indexed). What no rule knows is fixed in all its dimensions, so that a gap here leaves units
where they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .axes import Atom, Axis, Product, Sum, cut, factored, fix, regrouped, unify

Axes = list[Axis]


@dataclass(frozen=True)
class Call:
    """One operation: its arguments by their names in the schema, the tensors that came out, the axes of any tensor."""

    name: str
    arguments: Mapping[str, Any]
    outputs: Sequence[torch.Tensor]
    axes: Callable[[torch.Tensor], Axes]

    def get(self, *names: str) -> Any:
        """Return the first of these arguments that there is; None for none."""
        return next((self.arguments[n] for n in names if n in self.arguments), None)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [t for t in tree_leaves(list(self.arguments.values())) if isinstance(t, torch.Tensor)]

    @property
    def first(self) -> torch.Tensor:
        """The tensor that the operation is about, which every schema names first."""
        return self.tensors[0]

    def dims(self, *names: str) -> list[int]:
        """Return the dimensions that an argument names, counted from 0; all for None or an empty list."""
        given, n = self.get(*names), self.first.ndim
        if given is None or given == []:
            return list(range(n))
        return [d % n for d in (given if isinstance(given, list | tuple) else [given])] if n else []


Rule = Callable[[Call], list[Axes]]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_for(op: Any) -> Rule | None:
    """Return the rule of an operator of torch; None for one that is not known here."""
    name = name_of(op)
    if torch.Tag.nondeterministic_seeded in op.tags:
        return None
    found = RULES.get(name) or RULES.get(name.rstrip("_"))
    if found is None and torch.Tag.pointwise in op.tags:
        return elementwise
    return found


def name_of(op: Any) -> str:
    return str(op.overloadpacket).rpartition(".")[2]


def free(shape: Iterable[int]) -> Axes:
    return [Atom(n) for n in shape]


def fixed(shape: Iterable[int]) -> Axes:
    return [Atom(n, fixed=True) for n in shape]


def unknown(call: Call) -> list[Axes]:
    """Fix whatever goes in and comes out."""
    for t in call.tensors:
        fix(*call.axes(t))
    return [fixed(t.shape) for t in call.outputs]


def _joined(axes: Iterable[Axis]) -> Axis:
    first, *others = axes
    for other in others:
        unify(first, other)
    return first


def _broadcast(call: Call, tensors: Sequence[torch.Tensor], shape: Sequence[int]) -> Axes:
    made: Axes = []
    for behind in range(len(shape), 0, -1):
        size = shape[-behind]
        held = [call.axes(t)[-behind] for t in tensors if t.ndim >= behind and t.shape[-behind] == size]
        made.append(_joined(held) if held else Atom(size))
    return made


# -------------------------------------------------------------------------------- element by element, constants


@rule(
    "clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh", "lift", "copy", "hardswish",
    "log_sigmoid_forward", "_prelu_kernel", "_softmax", "_log_softmax", "_safe_softmax", "expand", "rsub",
)  # fmt: skip
def elementwise(call: Call) -> list[Axes]:
    if any(t.layout != torch.strided for t in call.tensors):
        return unknown(call)
    shape = torch.broadcast_shapes(*(t.shape for t in call.tensors), call.outputs[0].shape)
    made = _broadcast(call, call.tensors, shape)
    return [made if t.shape == shape else fixed(t.shape) for t in call.outputs]


@rule("copy_")
def _copy(call: Call) -> list[Axes]:
    return [_broadcast(call, call.tensors, call.first.shape)]


@rule(
    "empty", "zeros", "ones", "full", "new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like",
    "ones_like", "full_like", "scalar_tensor", "empty_strided", "new_empty_strided", "fill", "zero",
)  # fmt: skip
def _constant(call: Call) -> list[Axes]:
    """One number everywhere: any order is the same."""
    return [free(t.shape) for t in call.outputs]


# ------------------------------------------------------------------------------------------------------ shapes


@rule("view", "_unsafe_view", "reshape", "_reshape_alias")
def _view(call: Call) -> list[Axes]:
    if call.get("size", "shape") is None:  # as another dtype
        return unknown(call)
    return [regrouped(call.axes(call.first), call.outputs[0].shape)]


@rule("t", "numpy_T")
def _t(call: Call) -> list[Axes]:
    return [call.axes(call.first)[::-1]]


@rule("transpose", "swapaxes")
def _transpose(call: Call) -> list[Axes]:
    made = list(call.axes(call.first))
    a, b = (call.get(n) for n in ("dim0", "dim1"))
    made[a], made[b] = made[b], made[a]
    return [made]


@rule("permute")
def _permute(call: Call) -> list[Axes]:
    own = call.axes(call.first)
    return [[own[d] for d in call.get("dims")]]


@rule("squeeze", "unsqueeze")
def _squeeze(call: Call) -> list[Axes]:
    """Dimensions of size 1 come and go: the others stay in their order."""
    return [regrouped(call.axes(call.first), call.outputs[0].shape)]


@rule("select", "unbind")
def _select(call: Call) -> list[Axes]:
    own, dim = call.axes(call.first), call.get("dim") % call.first.ndim
    fix(own[dim])
    return [own[:dim] + own[dim + 1 :] for _ in call.outputs]


@rule("slice")
def _slice(call: Call) -> list[Axes]:
    own, dim = list(call.axes(call.first)), call.get("dim") % call.first.ndim
    size = call.first.shape[dim]
    start, _, step = slice(call.get("start"), call.get("end"), call.get("step")).indices(size)
    length = call.outputs[0].shape[dim]
    if step != 1:
        fix(own[dim])
        own[dim] = Atom(length, fixed=True)
    else:
        own[dim] = _pieces(own[dim], [start, length, size - start - length])[1]
    return [own]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def _split(call: Call) -> list[Axes]:
    own, dim = call.axes(call.first), call.get("dim") % call.first.ndim
    pieces = _pieces(own[dim], [t.shape[dim] for t in call.outputs])
    return [[*own[:dim], piece, *own[dim + 1 :]] for piece in pieces]


def _pieces(axis: Axis, sizes: Sequence[int]) -> Axes:
    """Return an axis cut into pieces of these sizes; fixed ones where its structure doesn't allow it."""
    made: Axes = []
    rest: Axis = axis
    for size in sizes:
        pair = cut(rest, size)
        if pair is None:
            fix(axis)
            return fixed(sizes)
        made.append(pair[0])
        rest = pair[1]
    return made


@rule("glu")
def _glu(call: Call) -> list[Axes]:
    own, dim = list(call.axes(call.first)), call.get("dim") % call.first.ndim
    half = call.first.shape[dim] // 2
    own[dim] = _joined(_pieces(own[dim], [half, half]))
    return [own]


@rule("cat")
def _cat(call: Call) -> list[Axes]:
    parts = [t for t in call.tensors if t.shape != (0,)]
    dim = call.get("dim") % call.outputs[0].ndim
    made = [_joined([call.axes(t)[d] for t in parts]) if d != dim else Atom(1) for d in range(call.outputs[0].ndim)]
    made[dim] = Sum(tuple(call.axes(t)[dim] for t in parts))
    return [made]


@rule("stack")
def _stack(call: Call) -> list[Axes]:
    dim = call.get("dim") % call.outputs[0].ndim
    made = _broadcast(call, call.tensors, call.first.shape)
    return [made[:dim] + fixed([len(call.tensors)]) + made[dim:]]


@rule("repeat")
def _repeat(call: Call) -> list[Axes]:
    own, times = call.axes(call.first), call.get("repeats")
    own = [Atom(1) for _ in range(len(times) - len(own))] + own
    return [[Product((Atom(k), axis)) for k, axis in zip(times, own, strict=True)]]


@rule("constant_pad_nd")
def _pad(call: Call) -> list[Axes]:
    own, pad = list(call.axes(call.first)), call.get("pad")
    for i in range(len(pad) // 2):
        before, after = pad[2 * i : 2 * i + 2]
        if min(before, after) < 0:
            return unknown(call)
        own[-1 - i] = Sum((Atom(before), own[-1 - i], Atom(after)))
    return [own]


@rule(
    "flip", "roll", "cumsum", "cumprod", "logcumsumexp", "sort", "topk", "argsort", "kthvalue", "unfold", "triu", "tril"
)
def _in_order(call: Call) -> list[Axes]:
    """The order along some dimensions matters; the others go through."""
    own = call.axes(call.first)
    n = len(own)
    dims = [n - 2, n - 1] if call.name in ("triu", "tril") else call.dims("dim", "dims", "dimension")
    fix(*(own[d] for d in dims))
    return [
        [own[d] if d < n and d not in dims and t.shape[d] == call.first.shape[d] else Atom(size, fixed=True)
         for d, size in enumerate(t.shape)]
        for t in call.outputs
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- reductions


@rule(
    "sum", "mean", "prod", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm",
    "logsumexp", "any", "all", "nansum",
)  # fmt: skip
def _reduce(call: Call) -> list[Axes]:
    """Sums and their like are the same in any order."""
    return _without(call, call.dims("dim"))


@rule("max", "min", "median", "nanmedian", "mode", "argmax", "argmin", "aminmax")
def _extreme(call: Call) -> list[Axes]:
    """A largest value is the same in any order, its place is not."""
    if len(call.tensors) > 1:
        return unknown(call)
    dims = call.dims("dim")
    if any(not t.is_floating_point() for t in call.outputs):
        fix(*(call.axes(call.first)[d] for d in dims))
    return _without(call, dims)


def _without(call: Call, dims: Sequence[int]) -> list[Axes]:
    own, keep = call.axes(call.first), call.get("keepdim")
    left: Axes = [Atom(1) if d in dims else a for d, a in enumerate(own) if keep or d not in dims]
    return [left if len(left) == t.ndim else fixed(t.shape) for t in call.outputs]


# ------------------------------------------------------------------------------------------------------ products


@rule("mm", "bmm", "dot", "vdot", "mv", "linear", "addmm", "baddbmm", "addmv", "addbmm")
def _product(call: Call) -> list[Axes]:
    added, a, b = _factors(call)
    if any(t.layout != torch.strided for t in call.tensors):
        return unknown(call)
    left, right = call.axes(a), call.axes(b)
    if call.name == "linear":
        right = right[::-1]
    batch: Axes = []
    if call.name in ("bmm", "baddbmm", "addbmm"):
        unify(left[0], right[0])
        batch, left, right = [left[0]], left[1:], right[1:]
    unify(left[-1], right[0])
    made = ([] if call.name == "addbmm" else batch) + left[:-1] + right[1:]
    if added is not None:
        for axis, out, n in zip(reversed(call.axes(added)), reversed(made), reversed(added.shape), strict=False):
            if n != 1:
                unify(axis, out)
    return [made]


def _factors(call: Call) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    if call.name == "linear":
        return call.get("bias"), call.get("input"), call.get("weight")
    *added, a, b = call.tensors
    return added[0] if added else None, a, b


@rule("convolution", "_convolution")
def _convolution(call: Call) -> list[Axes]:
    x, w = call.axes(call.get("input")), call.axes(call.get("weight"))
    groups = call.get("groups")
    fix(*x[2:], *w[2:])
    if groups == 1:
        entering, leaving = (w[0], w[1]) if call.get("transposed") else (w[1], w[0])
        unify(x[1], entering)
    else:
        # Groups may change places, and channels within all groups at once.
        outer = factored(w[0], groups)
        if outer is None:
            return unknown(call)
        if call.get("transposed"):
            unify(x[1], w[0])
            leaving = Product((outer[0], w[1]))
        else:
            unify(x[1], Product((outer[0], w[1])))
            leaving = w[0]
    if call.get("bias") is not None:
        unify(leaving, call.axes(call.get("bias"))[0])
    return [[x[0], leaving, *fixed(call.outputs[0].shape[2:])]]


# ------------------------------------------------------------------------------------------------ normalization


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "miopen_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm",
)  # fmt: skip
def _batch_norm(call: Call) -> list[Axes]:
    own = call.axes(call.first)
    beside = [call.get(n) for n in ("weight", "bias", "running_mean", "running_var")]
    _joined([own[1], *(call.axes(t)[0] for t in beside if t is not None and t.ndim == 1)])
    channels = call.first.shape[1]
    return [own, *([own[1]] if t.shape == (channels,) else fixed(t.shape) for t in call.outputs[1:])]


@rule("native_layer_norm", "_fused_rms_norm", "layer_norm")
def _layer_norm(call: Call) -> list[Axes]:
    own, k = call.axes(call.first), len(call.get("normalized_shape"))
    for t in (call.get("weight"), call.get("bias")):
        if t is not None:
            for a, b in zip(own[-k:], call.axes(t), strict=True):
                unify(a, b)
    ahead = own[:-k] + [Atom(1) for _ in range(k)]
    return [own, *(ahead if t.ndim == len(own) else fixed(t.shape) for t in call.outputs[1:])]


@rule("native_group_norm")
def _group_norm(call: Call) -> list[Axes]:
    own, pair = call.axes(call.first), factored(call.axes(call.first)[1], call.get("group"))
    if pair is None:
        return unknown(call)
    beside = [call.get(n) for n in ("weight", "bias")]
    _joined([own[1], *(call.axes(t)[0] for t in beside if t is not None)])
    return [own, *([own[0], pair[0]] for _ in call.outputs[1:])]


# ------------------------------------------------------------------------------------------------ pixels, places

_SPATIAL = re.compile(r"(pool|upsample_\w+|pad)(\d)d")


@rule(
    *(f"{kind}{k}d{end}" for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool",
      "adaptive_max_pool") for k in (1, 2, 3) for end in ("", "_with_indices")),
    *(f"{kind}_pad{k}d" for kind in ("reflection", "replication") for k in (1, 2, 3)),
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "upsample_trilinear3d",
)  # fmt: skip
def _pixels(call: Call) -> list[Axes]:
    found = _SPATIAL.search(call.name) or re.search(r"()(\d)d", call.name)
    assert found is not None
    k, own = int(found[2]), call.axes(call.first)
    fix(*own[-k:])
    return [own[:-k] + fixed(t.shape[-k:]) for t in call.outputs]


@rule("embedding")
def _embedding(call: Call) -> list[Axes]:
    table = call.axes(call.get("weight"))
    fix(table[0])
    return [[*call.axes(call.get("indices")), table[1]]]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(call: Call) -> list[Axes]:
    table = call.axes(call.get("weight"))
    fix(table[0])
    for t in call.tensors[1:]:
        fix(*call.axes(t))
    return [[Atom(call.outputs[0].shape[0], fixed=True), table[1]], *(fixed(t.shape) for t in call.outputs[1:])]


@rule("index")
def _index(call: Call) -> list[Axes]:
    own, given = call.axes(call.first), list(call.get("indices"))
    named = [d for d, t in enumerate(given) if t is not None]
    if len(named) != 1 or given[named[0]].dtype == torch.bool:
        return unknown(call)
    dim = named[0]
    fix(own[dim])
    return [own[:dim] + call.axes(given[dim]) + own[dim + 1 :]]


@rule("index_select", "index_fill")
def _index_select(call: Call) -> list[Axes]:
    own, dim = list(call.axes(call.first)), call.dims("dim")[0]
    fix(own[dim])
    own[dim] = Atom(call.outputs[0].shape[dim], fixed=True)
    return [own]


@rule("gather", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy")
def _scatter(call: Call) -> list[Axes]:
    """One dimension is indexed; along the others, where they are as long, all tensors go together."""
    dim, n = call.dims("dim")[0], call.first.ndim
    together = [t for t in (*call.tensors, *call.outputs[:1]) if t.ndim == n]
    made = fixed(call.outputs[0].shape)
    for t in call.tensors:
        if t.ndim != n:
            fix(*call.axes(t))
    for d in range(n):
        axes = [call.axes(t)[d] for t in together[:-1]]
        if d == dim or len({t.shape[d] for t in together}) > 1:
            fix(*axes)
        else:
            made[d] = _joined(axes)
    return [made]
