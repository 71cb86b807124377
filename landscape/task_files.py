"""Find and call the function that returns a Task: named by the user, or, more narrowly, by a checkpoint."""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import LandscapeError, TaskError
from .task_modules import Place, import_file, importable, place_of

if TYPE_CHECKING:
    from .tasks import Task

_MARK = "__landscape_task__"
_OWN_MODULE = re.compile(r"landscape(\.[A-Za-z_]\w*)+")
_TEMPLATE = "mark it: `from landscape import Task, task`, and @task above the function"


@dataclass(frozen=True)
class TaskReference:
    """How a checkpoint names its task: "file.py:name" or "landscape.module:name", with the settings it was given.

    `sha256` is of the file when the checkpoint was written; None if it was not kept. `loss` is a loss of the registry
    (a string as for `landscape.losses.build`, in which nothing is evaluated) that stood in for the task's own, or "".
    """

    reference: str
    settings: dict[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    loss: str = ""


@dataclass(frozen=True)
class LoadedTask:
    """A task that a checkpoint named, and where it came from. `warnings` are for the user, one line each.

    `loss` is the loss of the registry that stands in for the task's own, or "".
    """

    task: Task
    reference: str
    path: Path
    settings: dict[str, Any]
    warnings: tuple[str, ...]
    loss: str = ""


def load_task(spec: str, **settings: Any) -> Task:
    """Return the Task of the function that the user names, called with the settings.

    Args:
        spec: "path/to/file.py:name", "package.module:name", or "path/to/file.py" when it has exactly one @task.
            The file's folder (for modules: the current one) is on sys.path while it is imported and called. A file in
            a package is imported as the package's module, so that `from .model import Net` works.
        settings: keyword arguments of the function.

    Raises TaskError where there is no such function, it is not marked @task (a file is then not imported), it
    does not take the settings, it fails (file, line and error are named), or returns no Task.
    """
    with _found(spec) as (function, path):
        return _call(function, settings, path)


def function_of(spec: str) -> tuple[Callable[..., Any], Path]:
    """Return the function marked @task that the user names, and its file, without calling it; as `load_task`."""
    with _found(spec) as found:
        return found


@contextlib.contextmanager
def _found(spec: str) -> Iterator[tuple[Callable[..., Any], Path]]:
    """Yield the function that the user names and its file, whose folder is on sys.path until the end."""
    if not isinstance(spec, str):
        raise TypeError(f"expected 'file.py:name', got {type(spec).__name__}")
    where, name = split_reference(spec)
    if where.endswith(".py"):
        path = Path(where).expanduser()
        source = _read(path)
        tree = _parsed(source, path)
        marked, functions = _marked(tree, path)
        if name and name in functions and name not in marked:
            raise TaskError(f"{name} in {where} is not marked @task; {_TEMPLATE}. Nothing was run")
        if not name and not marked:
            raise TaskError(
                f"{where} has no function marked @task; {_TEMPLATE}, or name one that it imports, as {where}:name. "
                "Nothing was run"
            )
        place = place_of(path, tree)
        with importable(place.home, place.folders):
            yield _function(_import_file(place, source), name, where), path
        return
    if os.sep in where or Path(where).exists():
        raise TaskError(f"{where} is no Python file; name a task as path/to/file.py:name or package.module:name")
    with importable(Path.cwd(), clear=False):
        module = _import_module(where)
        yield _function(module, name, where), Path(module.__file__ or where)


def load_named_task(
    reference: TaskReference, *, root: str | os.PathLike[str] = ".", settings: Mapping[str, Any] | None = None
) -> LoadedTask:
    """Return the Task that a checkpoint names, if it may be called.

    A checkpoint is somebody else's file, so only a function marked @task is called, in a Python file under `root`
    (no absolute path, no "..", symbolic links followed first) or in the installed `landscape` package. The file
    is parsed first, and imported only when it has such a function. `settings` replace single settings of the
    reference (`--set key=value`).

    Returns the task with a warning when the file is not the one that the checkpoint was written with.
    Raises TaskError where the reference is refused, and as `load_task`.
    """
    path, name = resolve_reference(reference.reference, root=root)
    source = _read(path)
    given = {**reference.settings, **(settings or {})}
    where, _ = split_reference(reference.reference)
    if where.endswith(".py"):
        place = place_of(path, _parsed(source, path), Path(root))
        with importable(place.home, place.folders):
            task = _call(_function(_import_file(place, source), name, where), given, path)
    else:
        task = _call(_function(_import_module(where), name, where), given, path)
    if reference.loss:
        from .training.task_loss import with_loss  # after the file, which may have registered the loss

        task = with_loss(task, reference.loss)
    warnings = ()
    if reference.sha256 and reference.sha256 != _sha256(source):
        warnings = (f"{where} changed since the checkpoint was written; the model, loss or data may be others",)
    return LoadedTask(task, reference.reference, path, given, warnings, reference.loss)


def resolve_reference(reference: str, *, root: str | os.PathLike[str] = ".") -> tuple[Path, str]:
    """Return the file and the function's name of a reference that a checkpoint may hold; imports nothing of it.

    Raises TaskError where it is refused: see `load_named_task`.
    """
    where, name = split_reference(reference)
    if not re.fullmatch(r"[A-Za-z_]\w*", name or ""):
        raise TaskError(f"{reference!r} names no function; a checkpoint names its task as file.py:name")
    if where.endswith(".py"):
        path = _under(Path(root), where)
    elif _OWN_MODULE.fullmatch(where):
        path = _own_module(where)
    else:
        raise TaskError(
            f"the checkpoint names {reference!r}, which is neither a .py file under the root nor a task of landscape: "
            "refused. Name the task yourself with --task"
        )
    marked, functions = _marked(_parsed(_read(path), path), path, own=not where.endswith(".py"))
    if name not in marked:
        there = "is not marked @task" if name in functions else "is not there"
        have = f" (marked: {', '.join(marked)})" if marked else ""
        raise TaskError(f"the checkpoint names {reference!r}, but {name} {there}{have}; it was not run. {_TEMPLATE}")
    return path, name


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, hexadecimal."""
    return _sha256(Path(path).read_bytes())


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the name and value of a "key=value" as typed: int, float, bool, None, JSON, else text.

    Raises TaskError where there is no "=" or the key is no Python name.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not key.isidentifier():
        raise TaskError(f"{text!r} is no setting; type --set key=value")
    words = {"true": True, "false": False, "none": None, "null": None}
    if value.lower() in words:
        return key, words[value.lower()]
    if re.fullmatch(r"[+-]?\d+", value):
        return key, int(value)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan", value):
        return key, float(value)
    if value[:1] in ("[", "{", '"'):
        try:
            return key, json.loads(value)
        except ValueError as error:
            raise TaskError(f"the value of {key!r} is no JSON ({error}); quote it for the shell") from None
    return key, value


def split_reference(spec: str) -> tuple[str, str]:
    """Return "file.py:name" or "module:name" as (where, name), without a name as (where, "")."""
    where, colon, name = spec.rpartition(":")
    drive = "/" in name or "\\" in name  # the colon is that of C:\tasks.py
    return (where, name) if colon and not drive else (spec, "")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Where a checkpoint may point ---------------------------------------------------------------------------------


def _under(root: Path, where: str) -> Path:
    """Return the file, which lies under root even after its symbolic links are followed."""
    parts = PurePosixPath(where.replace("\\", "/")).parts
    if where.startswith(("/", "\\", "~")) or ".." in parts or ":" in where or "\0" in where:
        raise TaskError(
            f"the checkpoint names the task file {where!r}; only a path below the root (no absolute path, no ..) is "
            "followed: refused. Name the task yourself with --task"
        )
    root = root.resolve()
    path = (root / where).resolve()
    if not path.is_relative_to(root):
        raise TaskError(f"the task file {where!r} leads out of {root} by a link: refused. Name it with --task")
    if not path.is_file():
        raise TaskError(
            f"the checkpoint names {where!r}, which is not under {root}; change --root, or name it with --task"
        )
    return path


def _own_module(where: str) -> Path:
    """Return the file of a module of this package; only its parent packages are imported, which are ours."""
    try:
        spec = importlib.util.find_spec(where)
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise TaskError(f"this version of landscape has no {where}; name the task with --task")
    return Path(spec.origin)


def _marked(tree: ast.Module, path: Path, *, own: bool = False) -> tuple[list[str], set[str]]:
    """Return the functions marked @task, in order, and the names of all functions that a file itself defines.

    The decorator counts only if the file imports it from landscape, under whatever name. A function that the file
    imports from a file beside it, or from this package, counts as it does there: files are read, and none is run.
    `own`: a module of this package, where the decorator may be imported relatively.
    """
    return _marked_in(tree, path, own, {path.resolve(): []})


def _marked_in(tree: ast.Module, path: Path, own: bool, read: dict[Path, list[str]]) -> tuple[list[str], set[str]]:
    # Each file is read once: along every path of a project's imports they would be read for minutes. Our own modules
    # mark their functions themselves.
    imported = {} if own else dict.fromkeys(_imported(tree, path, read), True)
    names = _decorators(tree, own)
    defined: dict[str, bool] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            sync = isinstance(node, ast.FunctionDef)
            defined[node.name] = sync and any(ast.unparse(d) in names for d in node.decorator_list)
    return [n for n, is_marked in {**imported, **defined}.items() if is_marked], set(defined)


def _parsed(source: bytes, path: Path) -> ast.Module:
    try:
        return ast.parse(source, filename=str(path))
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise TaskError(f"{path}{line}: {type(error).__name__}: {getattr(error, 'msg', error)}") from error


def _decorators(tree: ast.Module, own: bool) -> set[str]:
    """Return what a file calls the decorator."""
    names: set[str] = set()
    for node in _at_the_top(tree.body):
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name in ("landscape", "landscape.tasks"):
                    # `import landscape.tasks` binds landscape; with `as` it binds the submodule itself.
                    bound = a.asname or "landscape"
                    names.add(f"{bound}.task")
                    if not a.asname:
                        names.add("landscape.tasks.task")
        elif isinstance(node, ast.ImportFrom):
            at = node.module or ""
            home = (node.level == 0 and at in ("landscape", "landscape.tasks")) or (
                own and node.level > 0 and at in ("", "tasks")
            )
            for a in node.names if home else ():
                if a.name in ("task", "*"):
                    names.add(a.asname or "task")
                elif a.name == "tasks":
                    names.add(f"{a.asname or 'tasks'}.task")
    return names


def _imported(tree: ast.Module, path: Path, read: dict[Path, list[str]]) -> list[str]:
    """Return the names under which a file imports marked functions from files beside it or from this package.

    `read` holds what was found in the files that were read; of one that is being read (a cycle) nothing yet.
    """
    found = []
    for node in _at_the_top(tree.body):
        if not isinstance(node, ast.ImportFrom) or node.level > 1 or not node.module:
            continue
        file, own = _beside(node.module, path.parent), False
        if file is None and not node.level and _OWN_MODULE.fullmatch(node.module):
            with contextlib.suppress(TaskError):
                file, own = _own_module(node.module), True
        if file is None:
            continue
        resolved = file.resolve()
        if resolved not in read:
            read[resolved] = []
            with contextlib.suppress(TaskError):  # what is wrong there is said where it is imported
                read[resolved] = _marked_in(_parsed(_read(file), file), file, own, read)[0]
        for a in node.names:
            if a.name == "*":
                found += [name for name in read[resolved] if not name.startswith("_")]
            elif a.name in read[resolved]:
                found.append(a.asname or a.name)
    return found


def _beside(module: str, folder: Path) -> Path | None:
    """Return the file of a module in a folder, which is where a task file's imports are looked for first."""
    where = folder.joinpath(*module.split("."))
    files = (where / "__init__.py", where.with_name(f"{where.name}.py"))
    inside = folder.resolve()
    return next((f for f in files if f.is_file() and f.resolve().is_relative_to(inside)), None)


def _at_the_top(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Walk the statements of a file that run in its own namespace: also those under try, if and with."""
    for node in body:
        yield node
        for inner in ("body", "orelse", "finalbody", "handlers"):
            if isinstance(node, ast.Try | ast.If | ast.With | ast.ExceptHandler):
                yield from _at_the_top(getattr(node, inner, []))


# Import and call ----------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise TaskError(f"no task file at {path}; `landscape init CKPT` writes one") from None
    except OSError as error:
        raise TaskError(f"{path} cannot be read ({error.strerror}); give a Python file") from None


def _import_file(place: Place, source: bytes) -> ModuleType:
    try:
        return import_file(place, source)
    except TaskError:
        raise
    except BaseException as error:
        if isinstance(error, ImportError) and "beyond top-level package" in str(error):
            error.add_note("where the package begins in a folder further up, go there and name it package.module:name")
        _reraise(error, place.path, "while it was imported", place.home)


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise TaskError(f"no module {name}; name a task as path/to/file.py:name or package.module:name") from error
        _reraise(error, Path(name), "while it was imported")
    except BaseException as error:
        _reraise(error, Path(name), "while it was imported")


def _function(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    tasks = {n: f for n, f in vars(module).items() if callable(f) and getattr(f, _MARK, False)}
    if not name:
        here = {n: f for n, f in tasks.items() if f.__module__ == module.__name__} or tasks
        if len(here) == 1:
            return next(iter(here.values()))
        if not here:
            raise TaskError(f"{where} has no function marked @task; {_TEMPLATE}")
        raise TaskError(f"{where} has {len(here)} tasks ({', '.join(here)}); name one: {where}:{next(iter(here))}")
    if name in tasks:
        return tasks[name]
    if hasattr(module, name):
        raise TaskError(f"{name} in {where} is not marked @task; {_TEMPLATE}")
    have = f"; its tasks are {', '.join(tasks)}" if tasks else f"; {_TEMPLATE}"
    raise TaskError(f"{where} has no {name}{have}")


def _call(function: Callable[..., Any], settings: Mapping[str, Any], path: Path) -> Task:
    from .tasks import Task

    _check_settings(function, settings)
    try:
        made = function(**settings)
    except BaseException as error:
        _reraise(error, path, f"in {function.__name__}()")
    if not isinstance(made, Task):
        raise TaskError(
            f"{function.__name__}() in {path} returned a {type(made).__name__}, not a Task; return Task(model, ...)"
        )
    return made


def _check_settings(function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    takes = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    said = f"it takes {', '.join(takes)}" if takes else "it takes none"
    for name in settings:
        if name not in takes and not takes_any:
            near = difflib.get_close_matches(name, takes, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise TaskError(f"{function.__name__}() has no setting {name!r}; {said}{meant}")
    for name in takes:
        if parameters[name].default is inspect.Parameter.empty and name not in settings:
            raise TaskError(f"{function.__name__}() needs the setting {name!r}; type --set {name}=...")


def _reraise(error: BaseException, path: Path, when: str, folder: Path | None = None) -> NoReturn:
    """Raise a TaskError that names file, line and error of the user's code; the chain is kept for --debug."""
    if not isinstance(error, Exception | SystemExit):
        raise error  # Ctrl-C is not the task's failure
    if isinstance(error, SyntaxError) and error.filename:
        raise TaskError(f"{error.filename}, line {error.lineno}: SyntaxError: {error.msg} ({when})") from error
    frames = traceback.extract_tb(error.__traceback__)
    folder = (folder or path.parent).resolve()
    inside = [f for f in frames if _lies_in(f.filename, folder)]
    at = f"{inside[-1].filename}, line {inside[-1].lineno}" if inside else str(path)
    lines = str(error).strip().splitlines() or [""]
    kind = "" if isinstance(error, LandscapeError) else f"{type(error).__name__}: "
    text = "it ended the program (sys.exit)" if isinstance(error, SystemExit) else f"{kind}{lines[0]}"
    text = "; ".join((text, *getattr(error, "__notes__", ())))
    raise TaskError(f"{at}: {text.rstrip(': ')} ({when})") from error


def _lies_in(filename: str, folder: Path) -> bool:
    path = Path(filename)
    own = Path(__file__).resolve().parent
    if not path.is_absolute() or path.resolve() == Path(__file__).resolve() or "site-packages" in path.parts:
        return False
    resolved = path.resolve()
    return resolved.is_relative_to(folder) and (not resolved.is_relative_to(own) or folder.is_relative_to(own))
