"""From a folder to the Python object in it: sharded and Transformers folders, torch.distributed.checkpoint."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .files import Found, read_bytes, read_file
from .safe_pickle import unpickle
from .strangers import Inert

_INDEXES = (
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors.index.json",
)
#: What PEFT calls the file of an adapter.
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_SINGLES = (
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"),
    *("diffusion_pytorch_model.bin", "model.pt", "pytorch_model.pt"),
    *ADAPTERS,
)
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def read_folder(folder: Path, *, trust_pickle: bool = False) -> Found:
    """Return what a checkpoint folder holds: {"model": weights, "optimizer": ..., ...}.

    Reads torch.distributed.checkpoint folders (without a process group), sharded safetensors or .bin files with
    their index, Transformers, Diffusers and Accelerate folders, and a folder with a single weights file.
    Raises CheckpointError where there are no weights, or more than one answer.
    """
    try:
        names = sorted(p.name for p in folder.iterdir())
    except PermissionError:
        raise CheckpointError(f"no permission to read {folder}") from None
    if ".metadata" in names:
        return _read_distributed(folder)
    index = next((n for n in _INDEXES if n in names), None) or next(
        (n for n in names if n.endswith((".safetensors.index.json", ".bin.index.json"))), None
    )
    single = next((n for n in _SINGLES if n in names), None)
    if index:
        found = read_index(folder / index, trust_pickle=trust_pickle)
    elif single:
        found = _wrap(read_file(folder / single, trust_pickle=trust_pickle))
    else:
        found = _only_file(folder, names, trust_pickle)
    return _with_neighbors(folder, names, found)


def read_index(path: Path, *, trust_pickle: bool = False) -> Found:
    """Return the weights of a sharded folder, joined as its index.json says. Raises CheckpointError."""
    index = _json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map; give the folder of the sharded checkpoint")
    shards = sorted({str(s) for s in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard:
            raise CheckpointError(f"{path} names a shard outside its folder ({shard!r}): refused")
    missing = [s for s in shards if not (path.parent / s).is_file()]
    if missing:
        raise CheckpointError(
            f"{path.parent} misses {len(missing)} of {len(shards)} shards ({', '.join(missing[:3])}); copy them too"
        )
    weights: dict[str, Any] = {}
    notes: list[str] = []
    for shard in shards:
        found = read_file(path.parent / shard, trust_pickle=trust_pickle)
        if not isinstance(found.value, dict):
            raise CheckpointError(f"{path.parent / shard} is no shard of weights, but a {type(found.value).__name__}")
        weights |= found.value
        notes += [n for n in found.notes if n not in notes]
    lost = [n for n in weight_map if n not in weights]
    if lost:
        raise CheckpointError(f"{path} promises {len(lost)} tensors that no shard holds ({lost[0]!r}, ...)")
    return Found({"model": weights}, (f"joined from {len(shards)} shards", *notes))


def _wrap(found: Found) -> Found:
    """Put bare weights under "model", so that an optimizer file can stand beside them."""
    value = found.value
    bare = isinstance(value, dict) and all(isinstance(v, torch.Tensor) for v in value.values())
    return Found({"model": value}, found.notes) if bare else found


def _only_file(folder: Path, names: list[str], trust: bool) -> Found:
    others = (*_OPTIMIZERS, "scheduler.pt", "scheduler.bin", "training_args.bin", "rng_state.pth", "scaler.pt")
    files = [n for n in names if n.endswith(_ENDINGS) and n not in others and not n.startswith("rng_state")]
    if len(files) == 1:
        found = _wrap(read_file(folder / files[0], trust_pickle=trust))
        return Found(found.value, (f"{files[0]} is the only weights file in the folder", *found.notes))
    if files:
        shown = ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")
        raise CheckpointError(f"{folder} holds {len(files)} weights files ({shown}); give one of them")
    if "latest" in names or any(n.startswith("zero_pp_rank") or n.startswith("mp_rank") for n in names):
        raise CheckpointError(f"{folder} is a DeepSpeed folder; join it first: python zero_to_fp32.py . weights/")
    inside = [n for n in names if (folder / n).is_dir()]
    below = [n for n in inside if any((folder / n / f).exists() for f in (".metadata", *_INDEXES, *_SINGLES))]
    if below:
        raise CheckpointError(f"{folder} holds {len(below)} checkpoints ({', '.join(below[:5])}); give one of them")
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise CheckpointError(f"{folder} is a directory without weights (it holds: {shown or 'nothing'})")


def _with_neighbors(folder: Path, names: list[str], found: Found) -> Found:
    """Add the optimizer, the trainer's state and the model's configuration from beside the weights."""
    value = dict(found.value) if isinstance(found.value, dict) else found.value
    facts = dict(found.facts)
    notes = list(found.notes)
    if "config.json" in names and isinstance(config := _json(folder / "config.json"), dict):
        facts["config"] = config
    if "trainer_state.json" in names and isinstance(state := _json(folder / "trainer_state.json"), dict):
        facts |= {k: state[k] for k in ("global_step", "epoch", "best_metric") if k in state}
    beside = next((n for n in _OPTIMIZERS if n in names), None)
    if beside and isinstance(value, dict) and "optimizer" not in value:
        other = read_file(folder / beside)
        value["optimizer"] = other.value
        notes += other.notes
    return Found(value, tuple(notes), facts | _adapter_config(folder))


def read_adapter(path: Path, *, trust_pickle: bool = False) -> Found:
    """Return what an adapter's own file holds, with its configuration from beside it. Raises CheckpointError."""
    found = read_file(path, trust_pickle=trust_pickle)
    return Found(found.value, found.notes, {**found.facts, **_adapter_config(path.parent)})


def _adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    config = _json(path) if path.is_file() else None
    return {"adapter_config": config} if isinstance(config, dict) else {}


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({str(error)[:80]}); copy it again") from error


def _read_distributed(folder: Path) -> Found:
    """Read a torch.distributed.checkpoint folder by its .metadata, which is a pickle, and whose own reader runs it.

    The classes in it (torch.distributed.checkpoint.metadata) are taken as inert records, never imported.
    """
    try:
        with open(folder / ".metadata", "rb") as file:
            meta = _record(unpickle(file).value)
        entries, places = meta["state_dict_metadata"], meta["storage_data"]
        paths = meta.get("planner_data") or {}
        stored: dict[str, list[tuple[tuple[int, ...], dict[str, Any]]]] = {}
        for index, info in places.items():
            key, place = _record(index), _record(info)
            stored.setdefault(key["fqn"], []).append((tuple(key.get("offset") or ()), place))
        tree: dict[str, Any] = {}
        for name, entry in entries.items():
            value = _read_entry(folder, name, _record(entry), stored.get(name, []))
            path = paths.get(name, (name,)) if isinstance(paths, dict) else (name,)
            _put(tree, tuple(path), value)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    except PermissionError:
        raise CheckpointError(f"no permission to read {folder}") from None
    except Exception as error:  # any shape of damage in a pickle that others wrote
        raise CheckpointError(
            f"{folder}/.metadata is damaged, or of a newer torch.distributed.checkpoint ({type(error).__name__}: "
            f"{str(error)[:80]}); convert it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        ) from error
    return Found(_listed(tree), ("read from a torch.distributed.checkpoint folder, without a process group",))


def _record(value: Any) -> dict[str, Any]:
    if isinstance(value, Inert) and isinstance(value.state, dict):
        return value.state
    if isinstance(value, Inert) and value.state is None:  # BytesStorageMetadata has no fields
        return {}
    raise CheckpointError(f"{value!r} is not a record of torch.distributed.checkpoint")


def _read_entry(
    folder: Path, name: str, entry: dict[str, Any], stored: list[tuple[tuple[int, ...], dict[str, Any]]]
) -> Any:
    if not stored:
        raise CheckpointError(f"{name!r} has no data in the folder; copy it again")
    if "chunks" not in entry:
        return read_bytes(_slice(folder, name, stored[0][1]), name)
    size = tuple(entry["size"])
    parts = []
    for offset, place in stored:
        part = read_bytes(_slice(folder, name, place), name)
        if not isinstance(part, torch.Tensor) or part.dim() != len(size):
            raise CheckpointError(f"{name!r} holds no tensor of shape {size}")
        parts.append((offset or (0,) * len(size), part))
    whole = torch.empty(size, dtype=parts[0][1].dtype, device="cpu")
    filled = 0
    for offset, part in parts:
        ends = [o + n for o, n in zip(offset, part.shape, strict=True)]
        if any(o < 0 or e > s for o, e, s in zip(offset, ends, size, strict=True)):
            raise CheckpointError(f"{name!r}: a chunk at {offset} of shape {tuple(part.shape)} outside {size}")
        whole[tuple(slice(o, e) for o, e in zip(offset, ends, strict=True))] = part
        filled += part.numel()
    if filled < whole.numel():
        raise CheckpointError(f"{name!r} has {filled} of {whole.numel()} elements; a shard is missing")
    return whole


def _slice(folder: Path, name: str, place: dict[str, Any]) -> bytes:
    relative = str(place["relative_path"])
    if os.path.isabs(relative) or ".." in Path(relative).parts:
        raise CheckpointError(f"{name!r} lies outside the folder ({relative!r}): refused")
    if place.get("transform_descriptors"):
        raise CheckpointError(f"{name!r} is stored transformed ({place['transform_descriptors']}); save it plainly")
    path = folder / relative
    if not path.is_file():
        raise CheckpointError(f"{relative} is missing; copy it too")
    with open(path, "rb") as file:
        file.seek(place["offset"])
        data = file.read(place["length"])
    if len(data) != place["length"]:
        raise CheckpointError(f"{relative} is truncated; copy it again")
    return data


def _put(tree: dict[Any, Any], path: tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        tree = tree.setdefault(step, {})
    tree[path[-1]] = value


def _listed(value: Any) -> Any:
    """Turn {0: ..., 1: ...}, as lists are flattened there, back into lists; an optimizer's state stays a dict."""
    if not isinstance(value, dict):
        return value
    inner = {k: (v if k == "state" else _listed(v)) for k, v in value.items()}
    if inner and all(type(k) is int for k in inner) and sorted(inner) == list(range(len(inner))):
        return [inner[i] for i in range(len(inner))]
    return inner


def shard_of(path: Path) -> int | None:
    """Return how many shards there are when this file is one of several, by its name; None otherwise."""
    match = re.search(r"-\d{5}-of-(\d{5})\.(safetensors|bin)$", path.name)
    return int(match[1]) if match and int(match[1]) > 1 else None
