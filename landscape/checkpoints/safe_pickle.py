"""Read what torch.save or pickle.dump wrote, without calling anything that the file names.

A pickle is a program: it may name any function of any module and call it. This reader runs that program with
its own short list of harmless parts (tensors, containers, NumPy numbers), each rebuilt by code of this file.
Whatever else is named becomes an `Inert` object that keeps what it was given and does nothing.
"""

from __future__ import annotations

import io
import pickle
import re
import reprlib
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch

from ..errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of every torch.save file before the zip format (torch < 1.6)

# Modules whose calls run programs, open files or load code: a file that names one is an attack, not a stranger.
_RUNS_CODE = frozenset(
    (
        *("os", "posix", "nt", "sys", "subprocess", "_posixsubprocess", "pty", "shutil", "socket", "_socket", "ctypes"),
        *("_ctypes", "runpy", "importlib", "imp", "pkgutil", "zipimport", "code", "codeop", "types", "marshal", "pdb"),
        *("bdb", "webbrowser", "urllib.request", "http.client", "ftplib", "smtplib", "pickle", "_pickle", "dill"),
        *("cloudpickle", "torch.hub", "torch.utils.cpp_extension"),
    )
)
_RUNS_CODE_PACKAGES = ("importlib.", "ctypes.", "dill.", "cloudpickle.")  # people name their own package "code"
_RUNS_CODE_NAMES = frozenset(
    {f"builtins.{n}" for n in ("eval", "exec", "compile", "open", "__import__", "breakpoint", "input")}
    | {f"{m}.{n}" for m in ("io", "_io") for n in ("open", "open_code", "FileIO")}
    | {"codecs.open", "torch.load", "torch.serialization.load", "torch.jit._serialization.load", "numpy.load"}
)
# Plain data classes of those modules, which people do keep beside their weights.
_HARMLESS = frozenset(
    {"types.SimpleNamespace", "types.MappingProxyType", "types.GenericAlias", "subprocess.CompletedProcess"}
    | {f"{m}.{n}" for m in ("os", "posix", "nt") for n in ("stat_result", "terminal_size", "uname_result")}
)


class Inert:
    """A class, function or object that the file names. It was not made: it keeps what it was given."""

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args
        self.state: Any = None
        self.items: list[Any] = []
        self.entries: list[tuple[Any, Any]] = []

    def __repr__(self) -> str:
        return self.name if self.args is None else f"{self.name}({', '.join(_short(a) for a in self.args)})"


@dataclass(frozen=True)
class Unpickled:
    """What a file holds, and the names that were made inert on the way (sorted, each once)."""

    value: Any
    strangers: tuple[str, ...]


@dataclass(frozen=True)
class _Allowed:
    """A name of the short list: the only thing on the unpickler's stack that may be called."""

    name: str
    call: Callable[..., Any]


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    """Raw bytes of a storage, (n,) uint8, and the type that the file gives them."""

    bytes: torch.Tensor
    dtype: torch.dtype


class _NumpyType:
    def __init__(self, spec: str) -> None:
        # Only plain numbers and text: 'O' would be arbitrary objects.
        if not re.fullmatch(r"[<>|=]?[biufcUS]\d*|bool|u?int\d+|float\d+|complex\d+", spec):
            raise pickle.UnpicklingError(f"NumPy type {spec!r}")
        self.dtype = np.dtype(spec)


class NumpyArray:
    """A NumPy array on its way: empty until the pickle gives its state."""

    def __init__(self) -> None:
        self.value: np.ndarray = np.empty(0)


def read_inert(file: BinaryIO) -> Unpickled:
    """Return what a torch file (zip or older) or a plain pickle holds, unknown classes made inert.

    Tensors come on the CPU, in their own dtypes; those that share a storage share it here. Cost: one read of
    the file. Nothing is imported and nothing called that is not in this module.

    Raises CheckpointError where the file asks for a call that runs programs (os.system, eval, ...), and
    pickle.UnpicklingError, EOFError, KeyError, ValueError, RuntimeError or zipfile.BadZipFile where it is damaged.
    """
    start = file.tell()
    if zipfile.is_zipfile(file):
        file.seek(start)
        return _read_zip(file)
    file.seek(start)
    return _read_stream(file)


def unpickle(file: BinaryIO) -> Unpickled:
    """Return the object of a plain pickle without tensors, unknown classes made inert. Raises as `read_inert`."""
    reader = _Unpickler(file)
    value = reader.load()
    return Unpickled(value, reader.strangers())


def _read_zip(file: BinaryIO) -> Unpickled:
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info for info in archive.infolist()}
        found = [n for n in records if n == "data.pkl" or n.endswith("/data.pkl")]
        if not found:
            raise pickle.UnpicklingError("a zip archive without data.pkl")
        root = min(found, key=len).removesuffix("data.pkl")
        if f"{root}byteorder" in records and archive.read(f"{root}byteorder") != b"little":
            raise pickle.UnpicklingError("written on a big-endian machine")
        storages: dict[str, _Storage] = {}

        def storage(pid: tuple[Any, ...]) -> _Storage:
            _, kind, key, _, numel = pid
            if key not in storages:
                info = records[f"{root}data/{key}"]
                size = numel * kind.dtype.itemsize
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != size:
                    raise pickle.UnpicklingError(f"storage {key} has {info.file_size} bytes, expected {size}")
                data = torch.empty(size, dtype=torch.uint8, device="cpu")
                with archive.open(info) as record:
                    _fill(record, data)
                storages[key] = _Storage(data, kind.dtype)
            return storages[key]

        reader = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl")), storage)
        value = reader.load()
        return Unpickled(value, reader.strangers())


def _read_stream(file: BinaryIO) -> Unpickled:
    """Read the format before torch 1.6: a row of pickles, then the storages; or a single plain pickle."""
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    first = _Unpickler(file)
    value = first.load()
    if type(value) is not int or value != _MAGIC:
        return Unpickled(value, first.strangers())
    for _ in range(2):  # protocol version, facts about the writing machine
        _Unpickler(file).load()
    storages: dict[str, _Storage] = {}

    def storage(pid: tuple[Any, ...]) -> _Storage:
        _, kind, key, _, numel, view = pid
        if key not in storages:
            if not 0 <= numel * kind.dtype.itemsize <= size:
                raise EOFError(f"storage {key} is larger than the file")
            storages[key] = _Storage(
                torch.empty(numel * kind.dtype.itemsize, dtype=torch.uint8, device="cpu"), kind.dtype
            )
        if view is None:
            return storages[key]
        _, offset, length = view
        width = kind.dtype.itemsize
        return _Storage(storages[key].bytes[offset * width : (offset + length) * width], kind.dtype)

    reader = _Unpickler(file, storage)
    value = reader.load()
    for key in _Unpickler(file).load():
        target = storages[key]
        (numel,) = struct.unpack("<q", _exactly(file, 8))
        if numel * target.dtype.itemsize != len(target.bytes):
            raise pickle.UnpicklingError(f"storage {key} has {numel} elements, expected another number")
        _fill(file, target.bytes)
    return Unpickled(value, reader.strangers())


def _fill(file: Any, data: torch.Tensor) -> None:
    view = data.numpy().data
    done = 0
    while done < len(view):
        got = file.readinto(view[done:])
        if not got:
            raise EOFError(f"{len(view) - done} bytes of a storage are missing")
        done += got


def _exactly(file: BinaryIO, n: int) -> bytes:
    data = file.read(n)
    if len(data) != n:
        raise EOFError(f"{n - len(data)} bytes are missing")
    return data


class _Unpickler(pickle._Unpickler):
    """pickle's own interpreter (all protocols), with every operation that could run code replaced.

    The pure-Python class: the C one calls `__setstate__`, `extend` and constructors by itself, beyond our reach.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    # Attributes of the class above that its type stubs leave out.
    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: BinaryIO, storage: Callable[[tuple[Any, ...]], _Storage] | None = None) -> None:
        # surrogateescape keeps the raw bytes of Python 2 strings, so that NumPy data in them can be recovered.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._storage = storage
        self._strangers: set[str] = set()

    def strangers(self) -> tuple[str, ...]:
        """Return the names made inert; refuse the file if one of them runs code, even where it was not called."""
        for name in sorted(self._strangers):
            _refuse(Inert(name))
        return tuple(sorted(self._strangers - _QUIET))

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, torch's own, writes the names of Python 2: __builtin__, copy_reg, commands.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full in _ALLOWED:
            return _ALLOWED[full]
        if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and isinstance(found := vars(torch).get(name), torch.dtype):
            return found
        self._strangers.add(full)
        return Inert(full)

    def get_extension(self, code: int) -> Any:
        raise pickle.UnpicklingError(f"extension code {code}")  # they would bypass find_class through a cache

    def persistent_load(self, pid: Any) -> Any:
        parts: list[Any] = list(pid) if isinstance(pid, tuple) else []
        if parts[:1] == ["module"] and len(parts) > 1:  # torch < 1.6: a class together with its source text
            return parts[1]
        if self._storage and parts[:1] == ["storage"] and isinstance(parts[1], _StorageType):
            return self._storage(pid)
        raise pickle.UnpicklingError(f"persistent id {_short(pid)}")

    def _call(self, function: Any, args: Any, keywords: Any = None) -> Any:
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError("arguments that are no tuple")
        if isinstance(function, _Allowed):
            if keywords:
                raise pickle.UnpicklingError(f"keywords for {function.name}")
            return function.call(*args)
        if not isinstance(function, Inert):
            raise pickle.UnpicklingError(f"a call of {type(function).__name__}")
        if function.name in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__") and args:
            return self._call(args[0], ())  # the class stands in the arguments: no call, only its name
        _refuse(function, args)
        made = Inert(function.name, args)
        made.state = dict(keywords) if isinstance(keywords, dict) and keywords else None
        return made

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(self._call(klass, tuple(args)))

    def load_reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args)

    def load_newobj(self) -> None:
        self.load_reduce()

    def load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        args = self.stack.pop()
        self.stack[-1] = self._call(self.stack[-1], args, keywords)

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Inert):
            if target.args is None:
                raise pickle.UnpicklingError(f"state for the class {target.name} itself")
            target.state = state
        elif isinstance(target, NumpyArray):
            target.value = _numpy_array(state)
        elif isinstance(target, _NumpyType):
            order = state[1]
            if order in ("<", ">"):
                target.dtype = target.dtype.newbyteorder(order)
        elif type(target) is not OrderedDict:  # an OrderedDict's state is only module versions (_metadata)
            raise pickle.UnpicklingError(f"state for a {type(target).__name__}")

    def load_append(self) -> None:
        value = self.stack.pop()
        self._extend(self.stack[-1], [value])

    def load_appends(self) -> None:
        values = self.pop_mark()
        self._extend(self.stack[-1], values)

    def load_additems(self) -> None:
        values = self.pop_mark()
        target = self.stack[-1]
        if type(target) is set:
            target.update(values)
        else:
            self._extend(target, values)

    def _extend(self, target: Any, values: list[Any]) -> None:
        if type(target) is list:
            target.extend(values)
        elif isinstance(target, Inert):
            target.items.extend(values)
        else:
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")

    def load_setitem(self) -> None:
        value = self.stack.pop()
        key = self.stack.pop()
        self._update(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self._update(self.stack[-1], items)

    def _update(self, target: Any, items: list[Any]) -> None:
        pairs = zip(items[::2], items[1::2], strict=True)
        if type(target) in (dict, OrderedDict):
            target.update(pairs)
        elif isinstance(target, Inert):
            target.entries.extend(pairs)
        else:
            raise pickle.UnpicklingError(f"entries for a {type(target).__name__}")

    for _op, _method in (
        (pickle.REDUCE, load_reduce),
        (pickle.NEWOBJ, load_newobj),
        (pickle.NEWOBJ_EX, load_newobj_ex),
        (pickle.BUILD, load_build),
        (pickle.APPEND, load_append),
        (pickle.APPENDS, load_appends),
        (pickle.ADDITEMS, load_additems),
        (pickle.SETITEM, load_setitem),
        (pickle.SETITEMS, load_setitems),
    ):
        dispatch[_op[0]] = _method
    del _op, _method


def _refuse(function: Inert, args: tuple[Any, ...] | None = None) -> None:
    """Stop at a name that runs programs, opens files or loads code."""
    module = function.name.rpartition(".")[0]
    named = function.args is None and function.name not in _HARMLESS
    if named and (module in _RUNS_CODE or module.startswith(_RUNS_CODE_PACKAGES) or function.name in _RUNS_CODE_NAMES):
        raise CheckpointError(
            f"it asks to run {_short(Inert(function.name, args))} while it is read, which was not done"
        )


def _short(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


# Tensors ------------------------------------------------------------------------------------------------------


def _tensor(storage: Any, offset: int, size: Any, stride: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError(f"a tensor over {_short(storage)}")
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
    if isinstance(function, _Allowed) and function.name in _REBUILDS:
        return function.call(*args)
    if not isinstance(function, Inert):
        raise pickle.UnpicklingError(f"a tensor rebuilt by {_short(function)}")
    _refuse(function, args)
    return Inert(function.name, args)


def _from_cpu_tensor(data: Any, dtype: Any, *_rest: Any) -> torch.Tensor:
    if isinstance(data, NumpyArray):
        data = torch.from_numpy(data.value.copy())
    if not isinstance(data, torch.Tensor) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a device tensor without data")
    return data.to(dtype)


def _storage_from_bytes(data: Any) -> Any:
    """Return the storage in a plain pickle of a tensor; torch's own function calls an unrestricted torch.load."""
    value = _read_stream(io.BytesIO(data)).value
    if not isinstance(value, _Storage):
        raise pickle.UnpicklingError("a storage that is something else")
    return value


# NumPy --------------------------------------------------------------------------------------------------------


def _raw(data: Any) -> bytes:
    return data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)


def _numpy_scalar(kind: Any, data: Any = None) -> Any:
    if not isinstance(kind, _NumpyType) or data is None:
        raise pickle.UnpicklingError("a NumPy scalar of unknown type")
    return np.frombuffer(_raw(data), dtype=kind.dtype, count=1)[0].item()


def _numpy_array(state: Any) -> np.ndarray:
    _, shape, kind, fortran, data = state
    if not isinstance(kind, _NumpyType):
        raise pickle.UnpicklingError("a NumPy array of unknown type")
    flat = np.frombuffer(_raw(data), dtype=kind.dtype)
    return flat.reshape(tuple(shape), order="F" if fortran else "C").copy()


def _numpy_from_buffer(data: Any, kind: Any, shape: Any, order: Any = "C") -> NumpyArray:
    made = NumpyArray()
    made.value = _numpy_array((1, shape, kind, order == "F", data))
    return made


def _encode(text: str, encoding: str = "utf-8", *_rest: Any) -> bytes:
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):  # codecs are looked up by name: no foreign ones
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode(encoding)


def _mapping(*args: Any) -> dict[Any, Any]:
    content = args[-1] if args else None
    return dict(content) if isinstance(content, dict) else {}


_STORAGES = {
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
    "torch.storage._load_from_bytes": _storage_from_bytes,
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
    "numpy.dtype": lambda spec, *_: _NumpyType(spec if isinstance(spec, str) else str(spec)),
    **{f"{core}.scalar": _numpy_scalar for core in _NUMPY_CORES},
    **{f"{core}._reconstruct": lambda *_: NumpyArray() for core in _NUMPY_CORES},
    **{f"{core}._frombuffer": _numpy_from_buffer for core in ("numpy.core.numeric", "numpy._core.numeric")},
}
_ALLOWED = {name: _Allowed(name, call) for name, call in _CALLS.items()}
_REBUILDS = frozenset(n for n in _CALLS if n.startswith("torch._utils."))
# Named only as the class of something that is rebuilt here anyway: nothing that a user needs to hear of.
_QUIET = frozenset(
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
