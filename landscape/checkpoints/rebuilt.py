"""The short list: harmless parts that a pickle may ask for, each rebuilt by code of this file."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .strangers import Inert, refuse, short


@dataclass(frozen=True)
class Allowed:
    """A name of the short list: the only thing on the unpickler's stack that may be called."""

    name: str
    call: Callable[..., Any]


@dataclass(frozen=True)
class StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class Storage:
    """Raw bytes of a storage, (n,) uint8, and the type that the file gives them."""

    bytes: torch.Tensor
    dtype: torch.dtype


class NumpyType:
    def __init__(self, spec: str) -> None:
        # Only plain numbers and text: 'O' would be arbitrary objects.
        if not re.fullmatch(r"[<>|=]?[biufcUS]\d*|bool|u?int\d+|float\d+|complex\d+", spec):
            raise pickle.UnpicklingError(f"NumPy type {spec!r}")
        self.dtype = np.dtype(spec)


class NumpyArray:
    """A NumPy array on its way: empty until the pickle gives its state."""

    def __init__(self) -> None:
        self.value: np.ndarray = np.empty(0)


# Tensors ------------------------------------------------------------------------------------------------------


def _tensor(storage: Any, offset: int, size: Any, stride: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError(f"a tensor over {short(storage)}")
    flat = storage.bytes.view(dtype or storage.dtype)
    # as_strided itself raises where the sizes ask for more than there is; its offset counts from the base of a view.
    return torch.as_strided(flat, tuple(size), tuple(stride), offset + flat.storage_offset())


def _tensor_v2(
    storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, metadata: Any = None
) -> torch.Tensor:
    return _tensor_v3(storage, offset, size, stride, _grad, _hooks, None, metadata)


def _tensor_v3(
    storage: Any, offset: int, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, metadata: Any = None
) -> torch.Tensor:
    if metadata:  # lazily conjugated or negated: the bytes alone would be wrong
        raise pickle.UnpicklingError("a tensor with a conjugate or negative bit")
    return _tensor(storage, offset, size, stride, dtype)


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


def _from_type(function: Any, _kind: Any, args: Any, _state: Any) -> Any:
    """Return the plain tensor of a tensor subclass; the subclass and its state are left behind."""
    if isinstance(function, Allowed) and function.name in _REBUILDS:
        return function.call(*args)
    if not isinstance(function, Inert):
        raise pickle.UnpicklingError(f"a tensor rebuilt by {short(function)}")
    refuse(function, args)
    return Inert(function.name, args)


def _from_cpu_tensor(data: Any, dtype: Any, *_rest: Any) -> torch.Tensor:
    if isinstance(data, NumpyArray):
        data = torch.from_numpy(data.value.copy())
    if not isinstance(data, torch.Tensor) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a device tensor without data")
    return data.to(dtype)


# NumPy --------------------------------------------------------------------------------------------------------


def _raw(data: Any) -> bytes:
    return data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)


def _numpy_scalar(kind: Any, data: Any = None) -> Any:
    if not isinstance(kind, NumpyType) or data is None:
        raise pickle.UnpicklingError("a NumPy scalar of unknown type")
    return np.frombuffer(_raw(data), dtype=kind.dtype, count=1)[0].item()


def numpy_array(state: Any) -> np.ndarray:
    _, shape, kind, fortran, data = state
    if not isinstance(kind, NumpyType):
        raise pickle.UnpicklingError("a NumPy array of unknown type")
    flat = np.frombuffer(_raw(data), dtype=kind.dtype)
    return flat.reshape(tuple(shape), order="F" if fortran else "C").copy()


def _numpy_from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C") -> NumpyArray:
    made = NumpyArray()
    made.value = numpy_array((1, shape, kind, order == "F", data))
    return made


def _encode(text: str, encoding: str = "utf-8", *_rest: Any) -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):  # codecs are looked up by name: no foreign ones
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode(encoding)


def _mapping(*args: Any) -> dict[Any, Any]:
    content = args[-1] if args else None
    return dict(content) if isinstance(content, dict) else {}


STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
_NUMPY_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu_tensor,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_cpu_tensor,
    "torch._utils._rebuild_xla_tensor": _from_cpu_tensor,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": tuple,
    "torch.device": lambda *args: ":".join(map(str, args)),
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "collections.deque": lambda items=(), *_: list(items),
    "_codecs.encode": _encode,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.bytearray": lambda data=b"", *_: _raw(data),
    "numpy.dtype": lambda spec, *_: NumpyType(spec if isinstance(spec, str) else str(spec)),
    **{f"{core}.scalar": _numpy_scalar for core in _NUMPY_CORES},
    **{f"{core}._reconstruct": lambda *_: NumpyArray() for core in _NUMPY_CORES},
    **{f"{core}._frombuffer": _numpy_from_buffer for core in ("numpy.core.numeric", "numpy._core.numeric")},
}
ALLOWED = {name: Allowed(name, call) for name, call in _CALLS.items()}
_REBUILDS = frozenset(n for n in _CALLS if n.startswith("torch._utils."))
# Named only as the class of something that is rebuilt here anyway: nothing that a user needs to hear of.
QUIET = frozenset(
    {
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "numpy.ndarray",
        "copyreg._reconstructor",
        "copyreg.__newobj__",
        "copyreg.__newobj_ex__",
        *(f"builtins.{n}" for n in ("object", "dict", "list", "int", "float", "str")),
    }
)
