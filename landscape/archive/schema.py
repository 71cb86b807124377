"""The archive's layout: names, version, subjects, and how settings become attributes. Begin here; no h5py.

    /                       attributes: format, format_version, created, status, run_id, versions, seed, ...
    /run                    attributes: loss, schedule, optimizer, batch_size, task and every setting
    /results/<kind>/<id>    one Result: its variables with dimension scales; `attributes` and `subject` as JSON
    /steps/<quantity>       the record of a training: (n, k) `value` over `step` and `name`; /epochs/<quantity> likewise
    /events                 what happened in it, and when
    /probes/<name>/<step>   Results that a probe measured in it, stored as those below /results
    /appended/<number>      attributes: provenance and settings of each later writing into the same file
    /unfinished/<key>       (n, columns) rows of a measurement that was interrupted, for `--resume`, and in
                            `facts` what they depend on; gone once complete

Any other group belongs to somebody else, and survives appending as it is.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "landscape-archive"
#: Raised when an older reader would misread a newer file. Groups and attributes may be added without that.
FORMAT_VERSION = 1
RESULTS = "results"
RUN = "run"
APPENDED = "appended"
UNFINISHED = "unfinished"
#: Groups of a training's record: quantities by step, quantities by epoch, what happened, Results of probes.
STEPS, EPOCHS, EVENTS, PROBES = "steps", "epochs", "events", "probes"
#: Root attribute: ids of segments, and names of files with Results, that the archive holds already. A kill between the
#: archive's renaming and the removal of the live folder leaves both.
COMPACTED = "compacted"
#: Root attribute of an archive that `landscape repair` made of a damaged one: from which, what is lost, and whether
#: what is there is proven.
SALVAGED = "salvaged"
#: Lists the attributes of a group whose text is JSON, so that a text that only looks like JSON stays a text.
JSON_NAMES = "json_attributes"

STATUSES = ("running", "complete", "failed", "interrupted")


def lost_by_damage(line: str) -> str:
    """Return what an event of a training's record says of a line of what `landscape repair` could not save."""
    return f"{line} (the archive was damaged)"


def salvaged_path(path: Path) -> Path:
    """Return where `landscape repair` writes what is left of a damaged archive: run.salvaged.h5 beside run.h5."""
    return path.with_name(f"{path.name.removesuffix('.h5')}.salvaged.h5")


@dataclass(frozen=True)
class Subject:
    """What was measured: one checkpoint under one set of circumstances (`facts`: device, dtype, seed, ...).

    Results whose subjects are equal belong together: one row of the report's table.
    """

    checkpoint: str = ""
    fingerprint: str = ""
    task: str = ""
    step: int | None = None
    epoch: int | None = None
    name: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        # Plain data from the start: a subject read back then equals the one that was written.
        object.__setattr__(self, "facts", plain(self.facts))

    @property
    def label(self) -> str:
        """Return a short name to show: the given one, else the checkpoint's file name, else the fingerprint."""
        return self.name or os.path.basename(self.checkpoint.rstrip("/\\")) or self.fingerprint[:12] or "unnamed"

    @property
    def named(self) -> bool:
        """Whether anything says whose weights they are; what Python measured between checkpoints has no one's."""
        return bool(self.name or self.checkpoint or self.fingerprint)

    @property
    def key(self) -> str:
        """Return a text that two subjects share if they are the same, NaN among the facts included."""
        return json.dumps(_marked(self.to_dict()), sort_keys=True)

    def to_dict(self) -> dict[str, Any]:
        """Return the subject as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Subject:
        """Rebuild a subject; keys of a newer version become facts."""
        own = {k: data[k] for k in cls.__dataclass_fields__ if k in data}
        newer = {k: v for k, v in data.items() if k not in own}
        return cls(**{**own, "facts": {**own.get("facts", {}), **newer}})


def plain(value: Any) -> Any:
    """Return `value` as JSON data: mappings, lists, text, numbers, bools and None; anything else by its `str`.

    A tuple becomes a list, a NumPy scalar a number; a path or a `torch.device` is recorded as it prints.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(v) for v in value), key=str)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if value is None or type(value) in (bool, int, float, str):
        return value
    return str(value)


def dump_json(value: Any) -> str:
    """Return strict JSON text: NaN and the infinities as `{"__float__": "nan"}`, anything odd as in `plain`."""
    return json.dumps(_marked(plain(value)), allow_nan=False)


def load_json(text: str) -> Any:
    """Return what `dump_json` was given."""
    return json.loads(text, object_hook=lambda d: float(d["__float__"]) if set(d) == {"__float__"} else d)


def _marked(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {"__float__": repr(value)}
    if isinstance(value, dict):
        return {k: _marked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_marked(v) for v in value]
    return value


def storable(text: str) -> str:
    """Return text that HDF5 takes: a NUL or an undecodable byte of a file name becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def attribute_name(key: Any) -> str:
    """Return a name that HDF5 takes and that is not ours; settings come from strangers' checkpoints too."""
    name = storable(str(key))[:1000]
    return f"{name}_" if name in ("", JSON_NAMES) else name


def native(value: Any) -> Any:
    """Return `value` as one HDF5 attribute that other programs read, or None where it needs JSON."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, bool):
        return np.int8(value)
    if isinstance(value, int):
        return np.int64(value) if -(2**63) <= value < 2**63 else None
    if isinstance(value, float):
        return np.float64(value)
    if isinstance(value, list) and value:
        if all(isinstance(v, str) for v in value):
            return [storable(v) for v in value]
        if all(type(v) in (int, float) for v in value) and all(native(v) is not None for v in value):
            return np.asarray(value)
    return None


def pack(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that hold `mapping`: text and numbers as they are, the rest as JSON, listed."""
    packed: dict[str, Any] = {}
    as_json = []
    for key, value in mapping.items():
        key, value = attribute_name(key), plain(value)
        simple = None if isinstance(value, bool | list) else native(value)
        if simple is None or (isinstance(value, str) and simple != value):
            as_json.append(key)
            simple = dump_json(value)
        packed[key] = simple
    if as_json:
        packed[JSON_NAMES] = json.dumps(as_json)
    return packed


def unpack(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping that `pack` was given, from attributes of any HDF5 program."""
    found = {k: _python(v) for k, v in attributes.items()}
    as_json = json.loads(found.pop(JSON_NAMES, "[]"))
    return {k: load_json(v) if k in as_json else v for k, v in found.items()}


def _python(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray):
        return [_python(v) for v in value.tolist()] if value.ndim else _python(value.item())
    if isinstance(value, np.generic):
        return _python(value.item())
    return value
