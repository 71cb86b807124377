"""Read what torch.save or pickle.dump wrote, without calling anything that the file names.

A pickle is a program: it may name any function of any module and call it. This reader runs that program with
its own short list of harmless parts (`rebuilt.py`: tensors, containers, NumPy numbers). Whatever else is named becomes
an `Inert` object that keeps what it was given and does nothing, or is refused (`strangers.py`).
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import torch

from .rebuilt import ALLOWED, QUIET, STORAGES, Allowed, NumpyArray, NumpyType, Storage, StorageType, numpy_array
from .strangers import Inert, refuse, short

_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of every torch.save file before the zip format (torch < 1.6)


@dataclass(frozen=True)
class Unpickled:
    """What a file holds, and the names that were made inert on the way (sorted, each once)."""

    value: Any
    strangers: tuple[str, ...]


def read_inert(file: BinaryIO) -> Unpickled:
    """Return what a torch file (zip or older) or a plain pickle holds, unknown classes made inert.

    Tensors come on the CPU, in their own dtypes; those that share a storage share it here. Cost: one read of
    the file. Nothing is imported, and nothing called that is not on the short list.

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
        storages: dict[str, Storage] = {}

        def storage(pid: tuple[Any, ...]) -> Storage:
            _, kind, key, _, numel = pid
            if key not in storages:
                info = records[f"{root}data/{key}"]
                size = numel * kind.dtype.itemsize
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != size:
                    raise pickle.UnpicklingError(f"storage {key} has {info.file_size} bytes, expected {size}")
                data = torch.empty(size, dtype=torch.uint8, device="cpu")
                with archive.open(info) as record:
                    _fill(record, data)
                storages[key] = Storage(data, kind.dtype)
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
    storages: dict[str, Storage] = {}

    def storage(pid: tuple[Any, ...]) -> Storage:
        _, kind, key, _, numel, view = pid
        if key not in storages:
            if not 0 <= numel * kind.dtype.itemsize <= size:
                raise EOFError(f"storage {key} is larger than the file")
            storages[key] = Storage(
                torch.empty(numel * kind.dtype.itemsize, dtype=torch.uint8, device="cpu"), kind.dtype
            )
        if view is None:
            return storages[key]
        _, offset, length = view
        width = kind.dtype.itemsize
        return Storage(storages[key].bytes[offset * width : (offset + length) * width], kind.dtype)

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

    def __init__(self, file: BinaryIO, storage: Callable[[tuple[Any, ...]], Storage] | None = None) -> None:
        # surrogateescape keeps the raw bytes of Python 2 strings, so that NumPy data in them can be recovered.
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._storage = storage
        self._strangers: set[str] = set()

    def strangers(self) -> tuple[str, ...]:
        """Return the names made inert; refuse the file if one of them runs code, even where it was not called."""
        for name in sorted(self._strangers):
            refuse(Inert(name))
        return tuple(sorted(self._strangers - QUIET))

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, torch's own, writes the names of Python 2: __builtin__, copy_reg, commands.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        if full in _ALLOWED:
            return _ALLOWED[full]
        if module in ("torch", "torch.storage", "torch.cuda") and name in STORAGES:
            return StorageType(STORAGES[name])
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
        if self._storage and parts[:1] == ["storage"] and isinstance(parts[1], StorageType):
            return self._storage(pid)
        raise pickle.UnpicklingError(f"persistent id {short(pid)}")

    def _call(self, function: Any, args: Any, keywords: Any = None) -> Any:
        if not isinstance(args, tuple):
            raise pickle.UnpicklingError("arguments that are no tuple")
        if isinstance(function, Allowed):
            if keywords:
                raise pickle.UnpicklingError(f"keywords for {function.name}")
            return function.call(*args)
        if not isinstance(function, Inert):
            raise pickle.UnpicklingError(f"a call of {type(function).__name__}")
        if function.name in ("copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__") and args:
            return self._call(args[0], ())  # the class stands in the arguments: no call, only its name
        refuse(function, args)
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
            target.value = numpy_array(state)
        elif isinstance(target, NumpyType):
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


def _storage_from_bytes(data: Any) -> Any:
    """Return the storage in a plain pickle of a tensor; torch's own function calls an unrestricted torch.load."""
    value = _read_stream(io.BytesIO(data)).value
    if not isinstance(value, Storage):
        raise pickle.UnpicklingError("a storage that is something else")
    return value


_NESTED = "torch.storage._load_from_bytes"
#: All that is ever called: the short list, and a storage within a plain pickle, which is a stream again.
_ALLOWED = {**ALLOWED, _NESTED: Allowed(_NESTED, _storage_from_bytes)}
