"""What a pickle names beside the short list: kept as a name that does nothing, or refused where it runs programs."""

from __future__ import annotations

import reprlib
from typing import Any

from ..errors import CheckpointError

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
        return self.name if self.args is None else f"{self.name}({', '.join(short(a) for a in self.args)})"


def refuse(function: Inert, args: tuple[Any, ...] | None = None) -> None:
    """Stop at a name that runs programs, opens files or loads code."""
    module = function.name.rpartition(".")[0]
    named = function.args is None and function.name not in _HARMLESS
    if named and (module in _RUNS_CODE or module.startswith(_RUNS_CODE_PACKAGES) or function.name in _RUNS_CODE_NAMES):
        raise CheckpointError(
            f"it asks to run {short(Inert(function.name, args))} while it is read, which was not done"
        )


def short(value: Any) -> str:
    """Return a value in at most 80 letters."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
