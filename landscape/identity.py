"""What a task computes beside its weights and data, in short texts: where these differ, numbers may.

For whoever keeps numbers of one run for another (`--resume`). A text is a name for people and a digest of all that
could be found out: settings of a loss, what a function closes over, the code of the user's own functions and classes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from .batch import raw
from .tasks import Task

_PARTS = ("model", "loss", "forward", "batch_loss", "predict")
#: What a class holds beside what its author wrote.
_NOT_WRITTEN = frozenset(
    {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__", "__static_attributes__"}
)
#: What every module keeps of torch's; its tensors, submodules and hooks are looked at one by one.
_TORCHS = frozenset(vars(nn.Module()))
_STANDARD = tuple(Path(sysconfig.get_path(p)).resolve() for p in ("stdlib", "platstdlib"))
#: Objects are followed so deep, and told by their types beyond it (chosen by us).
_DEPTH = 60
#: So many numbers of one type go into the digest as an array: text takes two seconds for a million (chosen by us).
_MANY = 64
#: Numbers of a tensor that is copied to its neighbours rather than read by itself (chosen by us).
_SMALL = 4096
#: What is told by its type and its text. Tuples, since isinstance takes a union of types four times as long.
_VALUES = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_SIMPLE = frozenset({bool, int, float, str, type(None)})


def describe(task: Task) -> dict[str, str]:
    """Return what the loss at given weights and data depends on, a short text by name ("loss", "model", "mode", ...).

    Two processes give the same texts for the same task. Parameters and buffers are told by name and shape alone. Code
    of installed packages counts by its names, and what a function reads elsewhere (a file, the environment) isn't seen.
    """
    found = {**_parts(task), **task.described}
    found |= {"mode": task.mode, "batchnorm": task.batchnorm, "rng": task.rng}
    if task.rng == "fixed":
        found["seed of its random numbers"] = str(task.seed)
    return found


def hold(task: Task) -> None:
    """Let the task's texts stay what they are now: a loss that counts its calls is the same loss after them."""
    task.described = _parts(task)


def _parts(task: Task) -> dict[str, str]:
    model, found = task.model, {}
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    own: dict[int, str] = {id(t): f"{name} {tuple(t.shape)}" for name, t in tensors}
    for part in _PARTS:
        value = getattr(task, part)
        if part in task.described or value is None:
            continue
        # A function that refers to the model needn't repeat what the model is.
        known = own if part == "model" else own | {id(m): f"module {name}" for name, m in model.named_modules()}
        found[part] = text_of(value, known, settings=part != "model")
    return found


def text_of(value: Any, own: Mapping[int, str] | None = None, *, settings: bool = True) -> str:
    """Return the text of one function or module: its name, with a module's settings, and a digest.

    `own` are names, by id, of what needn't be looked into.
    """
    digest = _Digest(own or {})
    digest.add(value)
    return f"{label(value, settings=settings)} #{digest}"


def label(value: Any, *, settings: bool = True) -> str:
    """Return what people call a loss or a function: CrossEntropyLoss(label_smoothing=0.1), hinge, partial's inside."""
    if isinstance(value, functools.partial):
        return f"{label(value.func, settings=False)}({_settings(value.keywords)})"
    if isinstance(value, MethodType):
        return f"{type(value.__self__).__name__}.{value.__name__}"
    name = getattr(value, "__name__", type(value).__name__)
    if settings and isinstance(value, nn.Module):
        name += f"({_settings({k: v for k, v in vars(value).items() if k not in _TORCHS and k[0] != '_'})})"
    return name


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v!r}" for k, v in values.items() if isinstance(v, bool | int | float | str))


class _Digest:
    """A digest of anything by its contents, the same in every process: no addresses, no order of sets."""

    def __init__(self, own: Mapping[int, str]) -> None:
        self._own = own
        self._hash = hashlib.sha256()
        #: Each object once, by the order in which it came, and held, so that no id is used twice: cycles end.
        self._seen: dict[int, tuple[int, Any]] = {}
        self._depth = 0

    def __str__(self) -> str:
        return self._hash.hexdigest()[:16]

    def put(self, *texts: object) -> None:
        self._hash.update("".join([f"{text}\0" for text in texts]).encode("utf-8", "backslashreplace"))

    def add(self, value: Any) -> None:
        if id(value) in self._own:
            self.put("own", self._own[id(value)])
        elif value is None or isinstance(value, _VALUES):
            self.put(type(value).__name__, repr(value))
        elif id(value) in self._seen:
            self.put("again", self._seen[id(value)][0])
        else:
            if not isinstance(value, tuple | frozenset | CodeType):  # which constants are shared is the compiler's
                self._seen[id(value)] = (len(self._seen), value)
            self.put(type(value).__name__)
            self._depth += 1
            if self._depth <= _DEPTH:
                self._contents(value)
            self._depth -= 1

    def _contents(self, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray):
            self.put(value.dtype, value.shape)
            if value.dtype.hasobject:
                self._each(value.ravel().tolist())
            else:
                self._hash.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else b"")
        elif isinstance(value, list | tuple):
            self._each(value)
        elif isinstance(value, Mapping):
            self._each(list(value))
            self._each(list(value.values()))
        elif isinstance(value, set | frozenset):
            numbers = _packed(list(value))
            if numbers is None:
                self.put(*sorted(repr(v) if _plain(v) else type(v).__name__ for v in value))
            else:
                self.put(numbers.dtype, numbers.shape)
                self._hash.update(np.sort(numbers).data)
        elif isinstance(value, functools.partial):
            self._each((value.func, value.args, value.keywords))
        elif isinstance(value, MethodType):
            self._each((value.__func__, value.__self__))
        elif isinstance(value, staticmethod | classmethod):
            self.add(value.__func__)
        elif isinstance(value, property):
            self.add(value.fget)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, CodeType):
            self.put(value.co_code.hex(), *value.co_names)
            self._each(value.co_consts)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, ModuleType):
            self.put(value.__name__.rpartition(".")[2])
        else:
            self._object(value)

    def _tensor(self, value: torch.Tensor) -> None:
        if value.is_nested:
            self._each(value.unbind())
            return
        self.put(value.dtype, tuple(value.shape))
        if value.layout == torch.strided and not value.is_meta:
            self._hash.update(raw(value))

    def _each(self, values: Iterable[Any]) -> None:
        values = values if isinstance(values, list | tuple) else list(values)
        numbers = _packed(values)
        if numbers is not None:
            self.put(numbers.dtype, numbers.shape)
            self._hash.update(numbers.data)
        elif len(values) >= _MANY and set(map(type, values)) == {str}:
            self.put("texts", *map(len, values), "".join(values))
        elif self._are_new_tensors(values):
            self._tensors(values)
        else:
            self.put(len(values))
            for one in values:
                self.add(one)

    def _are_new_tensors(self, values: Sequence[Any]) -> bool:
        """Whether these are many dense tensors of one dtype, none of which came before or twice."""
        if len(values) < _MANY or set(map(type, values)) != {torch.Tensor}:
            return False
        ids = set(map(id, values))
        if len(ids) < len(values) or not (ids.isdisjoint(self._own) and ids.isdisjoint(self._seen)):
            return False
        dtype = values[0].dtype
        return all(t.dtype is dtype and t.layout is torch.strided and not (t.is_nested or t.is_meta) for t in values)

    def _tensors(self, values: Sequence[torch.Tensor]) -> None:
        """Add what `_are_new_tensors` holds of: each by itself takes 15 microseconds, most of them torch's calls."""
        for t in values:
            self._seen[id(t)] = (len(self._seen), t)
        self.put("tensors", values[0].dtype, [tuple(t.shape) for t in values])
        small = all(t.numel() <= _SMALL and t.device.type == "cpu" for t in values)
        with torch.no_grad():
            together = [torch.cat([t.reshape(-1) for t in values])] if small else values
            for t in together:
                self._hash.update(raw(t))

    def _function(self, f: FunctionType) -> None:
        self.put(f.__qualname__)
        self._each((f.__defaults__, f.__kwdefaults__))
        for cell in f.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not filled yet
                self.put("empty")
        if _installed(f.__module__):
            self.put(f.__module__)
            return
        self.add(f.__code__)
        names = _names(f.__code__)
        for name in names:
            found = f.__globals__.get(name)
            self.add(found)
            if isinstance(found, ModuleType) and not _installed(found.__name__):
                self._each(vars(found)[n] for n in names if n in vars(found))

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            self.put(base.__qualname__)
            if _installed(base.__module__):
                self.put(base.__module__)
                continue
            for name, one in sorted(vars(base).items()):
                if name not in _NOT_WRITTEN:
                    self.put(name)
                    self.add(one)

    def _object(self, value: Any) -> None:
        self._class(type(value))
        facts = vars(value) if hasattr(value, "__dict__") else {}
        self.add(facts.get("__wrapped__"))  # of functools.cache, for one
        home = type(value).__module__
        if _installed(home) and home.partition(".")[0] != "landscape":
            # A stranger's object may keep anything beside its settings: caches, locks, times.
            facts = {k: v for k, v in facts.items() if k[0] != "_" and _plain(v)}
        torchs = _TORCHS if isinstance(value, nn.Module) else ()
        for name, one in sorted(facts.items()):
            if name not in torchs:
                self.put(name)
                self.add(one)
        if isinstance(value, nn.Module):
            for held in (value._parameters, value._buffers, value._modules):
                self.add(dict(held))
            for hooks in (value._forward_hooks, value._forward_pre_hooks):  # keys are counted through the process
                self._each(hooks.values())


def _packed(values: list[Any] | tuple[Any, ...]) -> np.ndarray | None:
    """Return many floats, ints or bools of one type as an array; None for few, or anything else, told one by one."""
    kinds = set(map(type, values)) if len(values) >= _MANY else set()
    if kinds == {float}:
        numbers = np.array(values)
        numbers[np.isnan(numbers)] = np.nan  # one NaN is as good as another
        return numbers
    if kinds == {bool}:
        return np.array(values)
    with contextlib.suppress(OverflowError):  # an int of more than 64 bits
        return np.array(values, dtype=np.int64) if kinds == {int} else None
    return None


def _plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_plain, value.values()))
    if isinstance(value, list | tuple):
        return _SIMPLE.issuperset(map(type, value)) or all(map(_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, torch.Tensor, np.ndarray))


def _names(code: CodeType) -> list[str]:
    """Return the global names and attributes that a function's code uses, those of functions inside it too."""
    found = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += _names(constant)
    return list(dict.fromkeys(found))


@functools.cache
def _installed(module: str | None) -> bool:
    """Say whether a module is a library's, the standard one's or ours, whose names tell the code."""
    if module is None or module.partition(".")[0] in ("builtins", "landscape"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return module.partition(".")[0] in sys.stdlib_module_names and module != "__main__"
    path = Path(file).resolve()
    # Debian's Python, and Google Colab's with it, keeps libraries in dist-packages.
    library = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
    return library or any(path.is_relative_to(folder) for folder in _STANDARD)
