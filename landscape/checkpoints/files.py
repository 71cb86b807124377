"""From one file to the Python object in it: torch's formats, safetensors, and what is mistaken for them."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import stat
import struct
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..errors import CheckpointError
from .checksums import check_bytes, check_entries
from .safe_pickle import read_inert

# What damaged bytes raise inside the readers: none of these is a fault of ours, all mean "not readable".
_DAMAGE = (
    *(pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError),
    *(AssertionError, OverflowError, MemoryError, zipfile.BadZipFile, struct.error, OSError),
)
_FOREIGN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (a Keras model, or an archive: `landscape show` reads those)"),
    (b"\x93NUMPY", "a NumPy array, not a checkpoint; save a state_dict"),
    (b"GGUF", "a GGUF file, whose weights are quantized; give the original safetensors"),
    (b"\x1f\x8b", "gzip-compressed; unpack it first"),
    (b"BZh", "bzip2-compressed; unpack it first"),
    (b"\xfd7zXZ\x00", "xz-compressed; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed; unpack it first"),
    (b"\x08\x03\x12", "a TensorFlow or ONNX graph, not a PyTorch checkpoint"),
)
SAVE_STATE_DICT = "torch.save(model.state_dict(), 'weights.pt')"


@dataclass(frozen=True)
class Found:
    """The object in a file or folder, with what was said on the way and facts from beside it."""

    value: Any
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def read_file(path: Path, *, trust_pickle: bool = False) -> Found:
    """Return what one checkpoint file holds.

    Tries `torch.load(weights_only=True)` first. Where unknown classes stand in the file it is read again with
    those made inert (nothing is called, and they are named); a file that cannot be read so is unpickled in full
    with `trust_pickle` and refused without.

    Raises CheckpointError for everything that is not a checkpoint, or damaged, or refused.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path} is neither a file nor a folder; give a checkpoint")
        with open(path, "rb") as file:
            head = file.read(512)
            size = os.fstat(file.fileno()).st_size
            kind = _kind(path, head, size, file)
            if kind == "safetensors" or path.suffix == ".safetensors":
                return Found(read_safetensors(path))
            if kind in ("zip", "torchscript"):
                check_entries(path)
            return _read_torch(path, file, kind, trust_pickle)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}; check the path") from None
    except PermissionError:
        raise CheckpointError(f"no permission to read {path}") from None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of one .safetensors file, on the CPU. Raises CheckpointError."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(f"{path} needs safetensors; pip install 'landscape-probe[safetensors]'") from None
    try:
        return load_file(path)
    except (SafetensorError, *_DAMAGE) as error:
        raise CheckpointError(f"{path} is a damaged safetensors file ({_reason(error)}); copy it again") from error


def read_bytes(data: bytes, name: str) -> Any:
    """Return what the bytes of one torch file hold, safely (an entry of a distributed checkpoint)."""
    check_bytes(data, name)
    try:
        with _quiet():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _DAMAGE:
        try:
            return read_inert(io.BytesIO(data)).value
        except _DAMAGE as error:
            if isinstance(error, CheckpointError):
                raise CheckpointError(f"{name}: {error}") from None
            raise CheckpointError(f"{name} is damaged ({_reason(error)}); copy it again") from error


def _kind(path: Path, head: bytes, size: int, file: BinaryIO) -> str:
    """Return "safetensors", "zip" or "stream"; raise a line for everything that is no checkpoint."""
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes); it was never written, or not copied")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull` to fetch them")
    for magic, what in _FOREIGN:
        if head.startswith(magic):
            raise CheckpointError(f"{path} is {what}")
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length >= 2:
        if length + 8 > size:
            raise CheckpointError(f"{path} is a truncated safetensors file ({size:,} bytes); copy it again")
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return _zip_kind(path, size, file)
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CheckpointError(f"{path} is an HTML page, not weights: a download that went wrong; fetch the file itself")
    if _is_text(head):
        shown = head.decode("utf-8", "replace").strip().splitlines()
        raise CheckpointError(f"{path} is a text file ({(shown or [''])[0][:60]!r}), not a checkpoint")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:"):
            pass
    except tarfile.TarError:
        file.seek(0)
        return "stream"
    raise CheckpointError(
        f"{path} is a tar archive; unpack it, or, if PyTorch before 0.1.10 wrote it, save its state_dict anew"
    )


def _zip_kind(path: Path, size: int, file: BinaryIO) -> str:
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path} is truncated: a PyTorch file whose end is missing ({size:,} bytes)") from None
    except _DAMAGE as error:
        raise CheckpointError(_damaged(path, error)) from error
    ends = {n.rpartition("/")[2] for n in names}
    if any("/code/" in n for n in names) and "constants.pkl" in ends:
        return "torchscript"
    if "data.pkl" in ends:
        return "zip"
    if any(n.endswith(".npy") for n in names):
        raise CheckpointError(f"{path} is a NumPy .npz file; save a state_dict: {SAVE_STATE_DICT}")
    if "archive_format" in ends:
        raise CheckpointError(f"{path} is an exported program (torch.export); save a state_dict: {SAVE_STATE_DICT}")
    raise CheckpointError(f"{path} is a zip archive without weights ({', '.join(names[:3]) or 'empty'})")


def _is_text(head: bytes) -> bool:
    """Whether these bytes are readable text; the last character may be cut in half."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\r\n\t" for c in text)


def _read_torch(path: Path, file: BinaryIO, kind: str, trust: bool) -> Found:
    if kind == "torchscript":
        if not trust:
            raise CheckpointError(
                f"{path} is a TorchScript program, not weights; save {SAVE_STATE_DICT}, or pass --trust-pickle"
            )
        with _quiet():
            return Found(torch.jit.load(path, map_location="cpu").state_dict(), ("read from a TorchScript program",))
    if not (kind == "zip" and _has_strangers(path)):
        try:
            with _quiet():
                return Found(torch.load(path, map_location="cpu", weights_only=True))
        except _DAMAGE:
            pass  # strangers beside the weights, or damage: the second reader tells which
    file.seek(0)
    try:
        read = read_inert(file)
    except CheckpointError as error:
        if trust:
            return unpickle_in_full(path)
        raise CheckpointError(
            f"{path} is refused: {error}. Get the weights as safetensors from their author, or pass --trust-pickle "
            "if you wrote this file yourself"
        ) from None
    except _DAMAGE as error:
        if trust:
            return unpickle_in_full(path)
        raise CheckpointError(_damaged(path, error)) from error
    notes = ()
    if read.strangers:
        shown = ", ".join(read.strangers[:6]) + (f" and {len(read.strangers) - 6} more" * (len(read.strangers) > 6))
        notes = (f"unknown classes beside the weights were made inert, nothing of them was called: {shown}",)
    return Found(read.value, notes)


def _has_strangers(path: Path) -> bool:
    """Look at the names in the pickle alone, so that the weights are not read twice."""
    try:
        with _quiet():
            return bool(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except _DAMAGE:  # a newer pickle protocol: torch.load itself decides
        return False


def unpickle_in_full(path: Path) -> Found:
    """Run the whole pickle: only where the user says that the file is trusted."""
    here = os.getcwd()
    sys.path.insert(0, here)  # where a training script's own classes lie
    try:
        with _quiet():
            value = torch.load(path, map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path} needs classes that cannot be imported here ({_reason(error)}); run from the folder of the code "
            f"that wrote it, or save {SAVE_STATE_DICT} there"
        ) from error
    except Exception as error:
        raise CheckpointError(_damaged(path, error)) from error
    finally:
        sys.path.remove(here)
    return Found(value, ("unpickled in full, as --trust-pickle says: the file could run any code",))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks on old formats and protocols from the user: what matters is said in the notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _damaged(path: Path, error: BaseException) -> str:
    size = path.stat().st_size
    return f"{path} is damaged, truncated or no checkpoint ({size:,} bytes; {_reason(error)}); copy it again"


def _reason(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0][:120]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
