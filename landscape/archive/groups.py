"""One Result as one HDF5 group with netCDF-4's dimension scales, so that xarray opens it without us.

`encode` checks a Result and lays it out as plain arrays; only then `write_group` touches a file. A variable
named like its only dimension is a netCDF coordinate; every other dimension is a scale without values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from ..errors import ArchiveError
from ..results import Result, StoredResult, Variable, kind_of
from .schema import Subject, attribute_name, dump_json, load_json, native, plain, storable, unpack

#: The netCDF-4 library's own wording for a dimension that has no values.
PLAIN_DIMENSION = "This is a netCDF dimension but not a netCDF variable."
#: xarray turns numbers with these units into timedeltas; the same units by their symbols stay numbers.
SYMBOLS = {
    "days": "d",
    "hours": "h",
    "minutes": "min",
    "seconds": "s",
    "milliseconds": "ms",
    "microseconds": "us",
    "nanoseconds": "ns",
}


@dataclass(frozen=True)
class Dataset:
    """One variable as it is stored: the array, the dimensions' names in the file, its attributes."""

    data: np.ndarray
    dims: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Encoded:
    """A Result ready to be written: nothing about it can be refused any more."""

    kind: str
    datasets: dict[str, Dataset]
    sizes: dict[str, int]
    attributes: dict[str, Any] = field(default_factory=dict)


def encode(result: Result, subject: Subject) -> Encoded:
    """Return `result` laid out for a group. ArchiveError where it has no kind, or a variable cannot be stored."""
    kind = kind_of(result)
    if not kind or "/" in kind or kind.strip(".") == "":
        raise ArchiveError(
            f"{type(result).__name__} has the kind {kind!r}, which names no group; declare it as "
            f'class {type(result).__name__}(Result, kind="...")'
        )
    variables = result.variables()
    sizes: dict[str, int] = {}
    datasets = {}
    for name, variable in variables.items():
        dims = _dimensions(variable, variables)
        for dim, size in zip(dims, variable.data.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ArchiveError(
                    f"{kind}.{name} has {size} entries along {dim!r}, where another variable has {sizes[dim]}; "
                    f"give the two dimensions different names"
                )
        data, attributes = _stored(f"{kind}.{name}", variable.data)
        datasets[name] = Dataset(data, dims, {**attributes, **_described(variable, dims)})
    return Encoded(kind, datasets, sizes, _attributes(result, subject))


def _dimensions(variable: Variable, variables: Mapping[str, Variable]) -> tuple[str, ...]:
    """Return unique names that xarray accepts: no repeated one, none of a variable with another shape."""
    dims: list[str] = []
    for dim in variable.dims:
        namesake = variables.get(dim)
        name = dim if namesake is None or namesake.dims == (dim,) else f"{dim}_dim"
        copies = sum(d == name or d.startswith(f"{name}__") for d in dims)
        dims.append(f"{name}__{copies + 1}" if copies else name)
    return tuple(dims)


def _stored(where: str, data: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the array in a type that netCDF-4 has, and the attribute that says what it was."""
    if data.dtype.kind == "b":
        return data.astype(np.int8), {"dtype": "bool"}
    if data.dtype == np.float16:
        return data.astype(np.float32), {"stored_from": "float16"}
    if data.dtype.kind in "UO":
        values = data.ravel().tolist()
        if all(isinstance(v, str) for v in values):
            text = np.empty(len(values), dtype=object)
            text[:] = [storable(v) for v in values]
            return text.reshape(data.shape), {}
    elif data.dtype.kind in "iufc":
        return np.ascontiguousarray(data).reshape(data.shape), {}
    raise ArchiveError(
        f"{where} has the type {data.dtype}, which an archive cannot hold; make it numbers, bools or text"
    )


def _described(variable: Variable, dims: tuple[str, ...]) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if variable.doc:
        attributes["long_name"] = storable(variable.doc)
    if variable.units:
        attributes["units"] = storable(SYMBOLS.get(variable.units, variable.units))
    beside = [name for name in (variable.stderr, variable.interval) if name]
    if beside:
        attributes["ancillary_variables"] = " ".join(beside)
    if variable.stderr:
        attributes["stderr"] = variable.stderr
    if variable.interval:
        attributes["interval"] = variable.interval
    if variable.coordinate:
        attributes["coordinate"] = np.int8(1)
    if dims != variable.dims:
        attributes["dims"] = dump_json(variable.dims)
    return attributes


def _attributes(result: Result, subject: Subject) -> dict[str, Any]:
    """Return the group's attributes: two JSON texts that are read back, and the simple ones for other programs."""
    own = plain(result.attributes())
    if isinstance(result, StoredResult):
        own = {**{k: v for k, v in own.items() if k not in ("stored_kind", "extra")}, **own["extra"]}
    about = subject.to_dict()
    simple = {
        **about.pop("facts"),
        "checkpoint_fingerprint": about.pop("fingerprint"),
        "subject_name": about.pop("name"),
        **about,
        **{f"cost_{k}": v for k, v in own.get("cost", {}).items()},
        **own,
    }
    natives = {attribute_name(k): native(v) for k, v in simple.items() if v != ""}
    return {
        **{k: v for k, v in natives.items() if v is not None},
        "kind": kind_of(result),
        "attributes": dump_json(own),
        "subject": dump_json(subject.to_dict()),
    }


def write_group(parent: h5py.Group, path: str, encoded: Encoded, attributes: Mapping[str, Any]) -> None:
    """Write one Result at `path` under `parent`, in place of what an interrupted attempt left there."""
    if path in parent:
        del parent[path]
    # Insertion order is kept: netCDF-4 asks for it, and variables are shown as the Result declares them.
    group = parent.create_group(path, track_order=True)
    for dim, size in encoded.sizes.items():
        if dim not in encoded.datasets:
            # Never written to, so it takes no space; the type is the netCDF-4 library's own.
            scale = group.create_dataset(dim, shape=(size,), dtype=">f4")
            scale.make_scale(f"{PLAIN_DIMENSION} {size:10d}")
    made = {}
    for name, dataset in encoded.datasets.items():
        text = h5py.string_dtype() if dataset.data.dtype.kind == "O" else None
        made[name] = group.create_dataset(name, data=dataset.data, dtype=text)
        made[name].attrs.update(dataset.attributes)
        if dataset.dims == (name,):
            made[name].make_scale(name)
    for name, dataset in encoded.datasets.items():
        if dataset.dims != (name,):
            for axis, dim in enumerate(dataset.dims):
                made[name].dims[axis].attach_scale(group[dim])
    for key, value in {**encoded.attributes, **attributes}.items():
        group.attrs[key] = value


def read_variables(group: h5py.Group) -> dict[str, Variable]:
    """Return every variable of a group, with the types, dimensions and descriptions it was written with."""
    # A scale found by itself, not by `scale.name`: HDF5 searches the whole file for the name of a reference.
    datasets = {name: item for name, item in group.items() if isinstance(item, h5py.Dataset)}
    scales = {dataset: name for name, dataset in datasets.items() if dataset.is_scale}
    found = {}
    for name, dataset in datasets.items():
        about = {key: dataset.attrs[key] for key in _READ.intersection(dataset.attrs)}
        if not _text(about.get("NAME")).startswith(PLAIN_DIMENSION):
            found[name] = _read(name, dataset, scales, about)
    return found


#: Attributes of a dataset that describe a variable: the only ones fetched (each fetch costs as much as a small array).
_READ = frozenset({"NAME", "dtype", "stored_from", "dims", "units", "long_name", "coordinate", "stderr", "interval"})


def read_attributes(group: h5py.Group) -> tuple[dict[str, Any], Subject]:
    """Return a Result's attributes and its subject; empty ones where the group says nothing."""
    found = unpack(group.attrs)
    attributes = load_json(found.get("attributes", "{}"))
    return attributes, Subject.from_dict(load_json(found.get("subject", "{}")))


def _read(
    name: str, dataset: h5py.Dataset, scales: Mapping[h5py.Dataset, str], attributes: Mapping[str, Any]
) -> Variable:
    if h5py.check_string_dtype(dataset.dtype) is not None:
        data = np.asarray(dataset.asstr()[()], dtype=str)
    else:
        data = np.asarray(dataset[()])
    if _text(attributes.get("dtype")) == "bool":
        data = data.astype(bool)
    if "stored_from" in attributes:
        data = data.astype(_text(attributes["stored_from"]))
    if "dims" in attributes:
        dims = tuple(load_json(_text(attributes["dims"])))
    elif dataset.is_scale:
        dims = (name,)
    else:
        dims = tuple(
            scales.get(attached[0], f"dim_{axis}") if len(attached) else f"dim_{axis}"
            for axis, attached in enumerate(dataset.dims)
        )
    return Variable(
        data,
        dims,
        units=_text(attributes.get("units")),
        doc=_text(attributes.get("long_name")),
        coordinate=bool(attributes.get("coordinate", False)),
        stderr=_text(attributes.get("stderr")) or None,
        interval=_text(attributes.get("interval")) or None,
    )


def _text(value: Any) -> str:
    return "" if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
