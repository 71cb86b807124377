"""Import a task file: by itself, or as a module of the package that it lies in.

A file belongs to a package where its folder has an `__init__.py`, or where it imports relatively (`from .model import
Net`): then folders without one are namespace packages, as many as its dots ask for.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

from .errors import TaskError


@dataclass(frozen=True)
class Place:
    """Where a task file is imported from: `home` is on sys.path meanwhile, `packages` lead from there to the file.

    `relative` says that the file can't be imported without them.
    """

    path: Path
    home: Path
    packages: tuple[str, ...] = ()
    relative: bool = False

    @property
    def module(self) -> str:
        """The file's name as a module: package.module."""
        return ".".join((*self.packages, self.path.stem))

    @property
    def folders(self) -> tuple[Path, ...]:
        """What is put on sys.path: for a file that is written as a script, the files beside it come first."""
        return (self.home,) if self.relative else tuple(dict.fromkeys((self.path.parent, self.home)))


def place_of(path: Path, tree: ast.Module, within: Path | None = None) -> Place:
    """Return where a parsed task file is to be imported from; nothing is run.

    `within` bounds what may be run for it: the `__init__.py` of each package must lie there. Raises TaskError where
    a file that imports relatively lies in no package, or in one that begins elsewhere.
    """
    path = path.resolve()
    dots = max((n.level for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)), default=0)
    depth = 0
    while depth < len(path.parents) - 1 and (depth < dots or (path.parents[depth] / "__init__.py").is_file()):
        depth += 1
    alone = Place(path, path.parent)
    if not depth:
        return alone
    home, names = path.parents[depth], tuple(p.name for p in reversed(path.parents[:depth]))
    problem = ""
    if depth < dots:
        problem = "there are no folders above it for so many dots"
    elif odd := next((name for name in names if "." in name), ""):
        problem = f"the folder {odd!r} can be no package, for its dot: rename it"
    elif within is not None and not path.parents[depth - 1].is_relative_to(within.resolve()):
        problem = f"its package {names[0]} begins above {within.resolve()}: give --root {home}, or name it with --task"
    if problem and dots:
        raise TaskError(f"{path} imports relatively (from {'.' * dots}...), but {problem}")
    return alone if problem else Place(path, home, names, dots > 0)


#: Modules that a task file imported from its own home, and which; a program may have another of that name since.
_SIBLINGS: dict[str, tuple[Path, ModuleType]] = {}


@contextlib.contextmanager
def importable(home: Path, folders: Sequence[Path] = (), *, clear: bool = True) -> Iterator[None]:
    """Put folders (the home alone, unless given) first on sys.path, and keep apart modules that two homes both have."""
    home = home.resolve()
    if clear:
        for name, (other, module) in list(_SIBLINGS.items()):
            if other != home:
                if sys.modules.get(name) is module:
                    del sys.modules[name]
                del _SIBLINGS[name]
    before = set(sys.modules)
    own = [str(f) for f in folders or (home,)]
    sys.path[:0] = own
    importlib.invalidate_caches()  # a folder's new files are seen, however quickly they were made
    try:
        yield
    finally:
        for folder in own:
            with contextlib.suppress(ValueError):  # the file may have changed sys.path itself
                sys.path.remove(folder)
        for name in set(sys.modules) - before if clear else ():
            if _lies_in(sys.modules[name], home):
                _SIBLINGS[name] = home, sys.modules[name]


def _lies_in(module: ModuleType, home: Path) -> bool:
    file = getattr(module, "__file__", None)
    places = [file] if file else list(getattr(module, "__path__", ()))  # a namespace package has no file
    return bool(places) and all(Path(p).resolve().is_relative_to(home) and "site-packages" not in p for p in places)


def import_file(place: Place, source: bytes) -> ModuleType:
    """Import a task file: exactly the bytes that were read and hashed, no cached bytecode.

    Alone it gets a name of its own. In a package it is the package's module, unless the program imported that before,
    whose own stays as it is. Raises TaskError where another package of that name is in the way, and whatever the code
    raises.
    """
    digest = hashlib.sha256(source).hexdigest()
    name = _own_name(place.path)
    if place.packages:
        known = sys.modules.get(place.module)
        mine = "." not in place.path.stem and (known is None or hasattr(known, _DIGEST))
        within = place.module if mine else ".".join((*place.packages, name))
        with _served(within, place.path, source, digest):
            if _reachable(place):
                name = within
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == str(place.path) and getattr(known, _DIGEST, None) == digest:
            return known
        del sys.modules[name]
    with _served(name, place.path, source, digest):
        return importlib.import_module(name)


#: What a module that was imported here knows of its source.
_DIGEST = "__landscape_sha256__"


@contextlib.contextmanager
def _served(name: str, path: Path, source: bytes, digest: str) -> Iterator[None]:
    """Let whoever imports a module of this name meanwhile, the package itself too, get it from these bytes."""
    finder = _Finder(name, path, source, digest)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


def _own_name(path: Path) -> str:
    return f"landscape_task_{re.sub(r'[.]', '_', path.stem)}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def _reachable(place: Place) -> bool:
    """Import the file's packages; False where others of their names are in the way of a file that needs none.

    Raises TaskError where it needs them, and whatever their `__init__.py` raise.
    """
    folder = place.home
    for depth, name in enumerate(place.packages, 1):
        folder = folder / name
        package = ".".join(place.packages[:depth])
        try:
            found = sys.modules.get(package) or importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name != package:
                raise
            found = None
        if not any(Path(p).resolve() == folder for p in getattr(found, "__path__", ())):
            if not place.relative:
                return False
            file = getattr(found, "__file__", None)
            raise TaskError(
                f"{place.path} imports relatively, as a module of {package} in {place.home}, but another {package} is "
                f"in the way ({file or 'part of Python'}): rename the folder, or import what it needs absolutely"
            )
    return True


class _Finder:
    def __init__(self, name: str, path: Path, source: bytes, digest: str) -> None:
        self._name, self._path, self._source, self._digest = name, path, source, digest

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        loader = _Bytes(fullname, str(self._path), self._source, self._digest)
        return importlib.util.spec_from_file_location(fullname, self._path, loader=loader)


class _Bytes(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, source: bytes, digest: str) -> None:
        super().__init__(name, path)
        self._source, self._digest = source, digest

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        vars(module)[_DIGEST] = self._digest
