"""Read a damaged HDF5 file piece by piece, in a process of its own that may crash or hang: `python -m` this module.

Tasks come as lines of JSON on the standard input: `["group", path]`, `["attributes", path]` (a group's),
`["dataset", path]`, `["rows", path, start, stop]` (0 and -1: all, which need not have rows). The answer to each is a
line of JSON, with the number of bytes in "bytes", and those bytes; or `{"error": why}`, with "foreign" where it can be
read, but is nothing that archives have. An empty line comes first, when everything is imported. `survey` asks, and says
how many seconds one answer may take: nothing else would end a loop inside HDF5 once who asked is gone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import sys
from typing import Any

import h5py
import numpy as np

from .schema import storable

#: Bytes of memory that a damaged shape may ask for beside the file's own size.
_MEMORY = 1 << 30
#: What HDF5 keeps of dimension scales in attributes: made anew by whoever writes them.
_OF_SCALES = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST")


class ForeignError(TypeError):
    """A type of attribute or numbers that no archive has: another program's."""


def attribute(value: Any) -> Any:
    """Return an attribute as JSON; `attribute_of` gives it back. ValueError for text that is no UTF-8."""
    if isinstance(value, h5py.Empty):
        return {"empty": value.dtype.str}
    if isinstance(value, str | bytes):
        return _utf8(value)
    found = np.asarray(value)
    if found.dtype.kind == "O":
        texts = found.ravel().tolist()
        if not all(isinstance(text, str | bytes) for text in texts):
            raise ForeignError(f"an attribute of type {found.dtype}")
        return {"texts": [_utf8(text) for text in texts], "shape": found.shape}
    if found.dtype.kind not in "biufcS":
        raise ForeignError(f"an attribute of type {found.dtype}")
    return {"dtype": found.dtype.str, "shape": found.shape, "data": base64.b64encode(found.tobytes()).decode()}


def _utf8(text: str | bytes) -> str:
    # h5py hands bytes that are no UTF-8 out as surrogates, which nothing would write again.
    return (text if isinstance(text, bytes) else text.encode("utf-8")).decode("utf-8")


def attribute_of(found: Any) -> Any:
    """Return what `attribute` was given."""
    if isinstance(found, str):
        return found
    if "empty" in found:
        return h5py.Empty(found["empty"])
    if "texts" in found:
        return np.array(found["texts"], dtype=object).reshape(found["shape"])
    return np.frombuffer(base64.b64decode(found["data"]), found["dtype"]).reshape(found["shape"])[()]


def answer(file: h5py.File, task: list[Any], memory: int) -> tuple[dict[str, Any], bytes]:
    """Return the answer to one task, and the bytes behind it."""
    what, path, *rows = task
    item: Any = file[path]
    if what == "group":
        return {"members": [(storable(name), _kind(item, name)) for name in item]}, b""
    if what == "attributes":
        return {"attributes": _attributes(item)}, b""
    if what == "dataset":
        return _described(item), b""
    if item.nbytes > memory:
        raise ValueError(f"{item.nbytes} bytes, more than the file holds")
    start, stop = rows
    text = h5py.check_string_dtype(item.dtype) is not None
    data: Any = (item.asstr() if text else item)[() if stop < 0 else slice(start, stop)]
    if text:
        content = json.dumps(data if isinstance(data, str) else data.tolist()).encode()
    else:
        content = np.asarray(data).tobytes()
    return {"bytes": len(content)}, content


def _kind(group: Any, name: str) -> str:
    """Return what a member is; "" for what can't be opened, or is neither."""
    try:
        return {h5py.Group: "group", h5py.Dataset: "dataset"}.get(type(group[name]), "")
    except Exception:  # of a damaged member, HDF5 raises nearly anything
        return ""


def _attributes(item: Any) -> dict[str, Any]:
    return {name: attribute(item.attrs[name]) for name in item.attrs if name not in _OF_SCALES}


def _described(dataset: Any) -> dict[str, Any]:
    text = h5py.check_string_dtype(dataset.dtype) is not None
    if not text and dataset.dtype.kind not in "biufc":
        raise ForeignError(f"numbers of type {dataset.dtype}")
    # A scale is found among its neighbours: HDF5 searches the whole file for the name of a reference.
    near = {}
    for name in dataset.parent:
        with contextlib.suppress(Exception):
            near[dataset.parent[name]] = name
    dims = [near.get(axis[0]) if len(axis) else None for axis in dataset.dims]
    name = dataset.attrs.get("NAME", b"")
    return {
        "text": text,
        "dtype": "" if text else dataset.dtype.str,
        "shape": dataset.shape,
        "growing": bool(dataset.chunks and dataset.maxshape and dataset.maxshape[0] is None),
        "chunk": dataset.chunks[0] if dataset.chunks else 0,
        "stored": dataset.id.get_storage_size() > 0,
        "attributes": _attributes(dataset),
        "scale": (name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name))
        if dataset.is_scale
        else None,
        "dims": dims,
    }


def main() -> None:
    """Answer until the input ends."""
    path, size, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    alarm = getattr(signal, "alarm", lambda seconds: 0)  # Windows has none
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (3 * _MEMORY + 2 * size, 3 * _MEMORY + 2 * size))
    out, file = sys.stdout.buffer, None
    out.write(b"\n")
    out.flush()
    for line in sys.stdin:
        content = b""
        alarm(seconds)  # nobody handles it: it ends this process
        try:
            file = file or h5py.File(path, "r", locking=False)
            found, content = answer(file, json.loads(line), _MEMORY + size)
        except Exception as error:  # of a damaged file, HDF5 raises nearly anything
            found: dict[str, Any] = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
            found["foreign"] = isinstance(error, ForeignError)
        alarm(0)
        out.write(json.dumps(found).encode() + b"\n" + content)
        out.flush()


if __name__ == "__main__":
    main()
