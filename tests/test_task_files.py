"""Tasks by name: what the user names is called; what a checkpoint names only where it may be."""

from __future__ import annotations

import ast
import math
import os
import sys
from pathlib import Path

import pytest

from landscape import task_files
from landscape.errors import LandscapeError, TaskError
from landscape.task_files import (
    LoadedTask,
    TaskReference,
    file_sha256,
    load_named_task,
    load_task,
    parse_setting,
    resolve_reference,
)
from landscape.tasks import Task

BODY = "    return Task(torch.nn.Linear(width, 2), torch.nn.MSELoss(), name=str(width))\n"
TINY = f"import torch\nfrom landscape import Task, task\n\n@task\ndef tiny(width=4, *, deep=False):\n{BODY}"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _line(*args, **kw) -> str:
    """The one line of the error that a call of the function that comes first raises."""
    function, *rest = args
    with pytest.raises(TaskError) as error:
        function(*rest, **kw)
    assert "\n" not in str(error.value)
    return str(error.value)


# What the user names ------------------------------------------------------------------------------------------


def test_every_way_to_name_a_task(here):
    _write("a/b/tiny.py", TINY)
    for spec in ("a/b/tiny.py:tiny", "a/b/tiny.py", str(here / "a/b/tiny.py"), "./a/../a/b/tiny.py:tiny"):
        assert load_task(spec, width=3).model.in_features == 3
    _write("pkg_of_this_test/__init__.py", "")
    _write("pkg_of_this_test/tiny.py", TINY)
    assert load_task("pkg_of_this_test.tiny:tiny").model.in_features == 4
    assert load_task("pkg_of_this_test.tiny").model.in_features == 4
    assert str(here) not in sys.path
    assert load_task("landscape.probes.demo.digits:digits", width=2).name


def test_names_that_do_not_lead_to_a_task(here):
    _write("tiny.py", TINY + "\ndef plain():\n    pass\n\nx = 3\n")
    _write("two.py", TINY + TINY.replace("def tiny", "def other"))
    _write("none.py", "raise SystemExit('imported')\n")
    _write("train.py", "from landscape import task\nopen('ran', 'w')\ndef main():\n    pass\n")
    Path("folder.py").mkdir()
    assert "no task file at nowhere.py; `landscape init CKPT`" in _line(load_task, "nowhere.py")
    assert "has 2 tasks (tiny, other); name one: two.py:tiny" in _line(load_task, "two.py")
    assert "no function marked @task" in _line(load_task, "none.py")
    assert "plain in tiny.py is not marked @task" in _line(load_task, "tiny.py:plain")
    assert "x in tiny.py is not marked @task" in _line(load_task, "tiny.py:x")
    assert "tiny.py has no tinny; its tasks are tiny" in _line(load_task, "tiny.py:tinny")
    assert "no module not_there_at_all" in _line(load_task, "not_there_at_all:f")
    assert "is not marked @task" in _line(load_task, "os:system")
    assert "is no Python file" in _line(load_task, "a/b:c")
    assert "cannot be read" in _line(load_task, "folder.py")
    assert "Nothing was run" in _line(load_task, "train.py:main")
    assert "Nothing was run" in _line(load_task, "train.py")
    assert not Path("ran").exists()
    with pytest.raises(TypeError, match=r"expected 'file.py:name'"):
        load_task(load_task)


def test_a_function_marked_by_a_call_or_imported_works_when_named(here):
    _write("made.py", "from landscape import task\nfrom tiny import tiny\n" + "other = task(lambda: tiny(width=7))\n")
    _write("tiny.py", TINY)
    assert load_task("made.py:tiny").model.in_features == 4
    assert load_task("made.py:other").model.in_features == 7


IMPORTED = {
    "by name": ("from tiny import tiny", "tiny"),
    "under another name": ("from tiny import tiny as other", "other"),
    "with a star": ("from tiny import *", "tiny"),
    "from a package": ("from pkg.inner import tiny", "tiny"),
    "through another file": ("from through import *", "tiny"),
    "in a try": ("try:\n    from tiny import tiny\nexcept ImportError:\n    raise", "tiny"),
    "of the package": ("from landscape.probes.demo.digits import digits as other", "other"),
}


@pytest.mark.parametrize("how", IMPORTED)
def test_a_marked_function_that_a_task_file_imports_is_its_task(here, how):
    text, name = IMPORTED[how]
    _write("tasks/tiny.py", TINY)
    _write("tasks/pkg/__init__.py", "")
    _write("tasks/pkg/inner.py", TINY)
    _write("tasks/through.py", "from tiny import *\n")
    _write("tasks/chosen.py", f"{text}\n\ndef plain():\n    pass\n")
    for loaded in (
        load_task(f"tasks/chosen.py:{name}", width=3),
        load_task("tasks/chosen.py", width=3),
        load_named_task(TaskReference(f"tasks/chosen.py:{name}", {"width": 3})).task,
    ):
        assert isinstance(loaded, Task)
    assert resolve_reference(f"tasks/chosen.py:{name}")[1] == name


NOT_IMPORTED = {
    "not marked there": "from unmarked import tiny",
    "not there": "from tiny import another as tiny",
    "of a file that is not there": "from nowhere import tiny",
    "defined anew": "from tiny import *\ndef tiny():\n    pass",
    "inside a function": "def f():\n    from tiny import tiny",
    "of each other": "from chosen import tiny",
    "of a folder above": "from ..tiny import tiny",
    "by a link that leads out": "from link import tiny",
}


@pytest.mark.parametrize("how", NOT_IMPORTED)
def test_what_a_task_file_imports_unmarked_is_no_task_of_a_checkpoint(here, how):
    _write("tasks/tiny.py", TINY)
    _write("outside/tiny.py", TINY)
    os.symlink(here / "outside" / "tiny.py", here / "tasks" / "link.py")
    _write("tasks/unmarked.py", f"{RUNS}def tiny():\n    pass\n")
    _write("tasks/chosen.py", f"{RUNS}{NOT_IMPORTED[how]}\n")
    _line(load_named_task, TaskReference("tasks/chosen.py:tiny"))
    assert "Nothing was run" in _line(load_task, "tasks/chosen.py")
    assert not Path("ran").exists()


def test_a_file_beside_that_cannot_be_read_is_said_where_it_is_imported(here):
    _write("broken.py", "def (:\n")
    _write("chosen.py", TINY + "from broken import *\n")
    assert "broken.py, line 1: SyntaxError" in _line(load_task, "chosen.py:tiny")


def test_each_file_of_a_project_is_read_once_however_its_imports_cross(here, monkeypatch):
    """Twelve modules that all import each other: along every path they would be read ten million times."""
    names = [f"part{i}" for i in range(12)]
    crossed = "".join(f"from {name} import *\n" for name in names)
    for name in names:
        _write(f"{name}.py", f"from __future__ import annotations\nfrom landscape.probes import *\n{crossed}")
    _write("part11.py", TINY)
    # Only read: running such modules is Python's affair.
    read: list[Path] = []
    monkeypatch.setattr(task_files, "_read", lambda path: read.append(path) or path.read_bytes())
    tree = ast.parse(f"from part0 import *\n{crossed}")
    assert task_files._marked(tree, here / "my_task.py") == (["tiny"], set())
    assert len(read) == len(set(read)) == 13  # landscape.probes is one of them, and what it imports none


def test_siblings_are_found_and_kept_apart(here):
    for folder, width in (("a", 3), ("b", 5)):
        _write(f"{folder}/sizes_of_this_test.py", f"WIDTH = {width}\n")
        late = "    from late_of_this_test import WIDTH as LATE\n    assert LATE == WIDTH\n"
        _write(f"{folder}/late_of_this_test.py", f"WIDTH = {width}\n")
        text = TINY.replace("import torch\n", "import torch\nfrom sizes_of_this_test import WIDTH\n", 1)
        _write(f"{folder}/tiny.py", text.replace("width=4, *, deep=False):\n", f"width=WIDTH):\n{late}"))
    for _ in range(2):
        assert load_task("a/tiny.py").model.in_features == 3
        assert load_task("b/tiny.py").model.in_features == 5


def test_an_edited_file_is_read_anew_and_an_unchanged_one_kept(here):
    path = _write("tiny.py", TINY + "\nclass Kept:\n    pass\n")
    first = load_task("tiny.py")
    assert type(first) is Task
    names = {n for n in sys.modules if n.startswith("landscape_task_tiny")}
    kept = {n: sys.modules[n] for n in names}
    load_task("tiny.py")
    assert all(sys.modules[n] is m for n, m in kept.items())
    stat = path.stat()
    path.write_text(path.read_text().replace("width=4", "width=6"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as fast as an editor: no new time stamp
    assert load_task("tiny.py").model.in_features == 6
    assert not Path("__pycache__").exists()


# Failures of the user's code ----------------------------------------------------------------------------------


def test_errors_name_file_line_and_exception_and_keep_the_chain(here):
    cases = {
        "import missing_of_this_test\n" + TINY: (
            "line 1: ModuleNotFoundError: No module",
            "while it was imported",
        ),
        "1 / 0\n" + TINY: ("line 1: ZeroDivisionError: division by zero", "while it was imported"),
        TINY.replace("return", "raise KeyError('lr')\n    return"): ("line 6: KeyError: 'lr'", "in tiny()"),
        TINY.replace("return", "raise ValueError('a\\nb')\n    return"): ("line 6: ValueError: a (in tiny())", ""),
        TINY.replace("return", "import sys; sys.exit(3)\n    return"): ("it ended the program", "in tiny()"),
        TINY.replace("torch.nn.Linear(width, 2)", "'model'"): ("line 6: TypeError: Task needs a torch", ""),
        TINY.replace("return", "return Task(torch.nn.ReLU(), mode='odd')\n    return"): (
            "line 6: mode='odd' is not",
            "",
        ),
        TINY.replace("return", "raise NotImplementedError\n    return"): ("line 6: NotImplementedError (in", ""),
    }
    for i, (text, parts) in enumerate(cases.items()):
        path = _write(f"bad{i}.py", text)
        with pytest.raises(TaskError) as error:
            load_task(f"bad{i}.py:tiny")
        assert str(error.value).startswith(f"{path.resolve()}, "), str(error.value)
        assert "\n" not in str(error.value)
        assert all(part in str(error.value) for part in parts), str(error.value)
        assert error.value.__cause__ is not None
        assert not any(n.startswith(f"landscape_task_bad{i}") for n in sys.modules) or "while" not in parts[1]
    _write("syntax.py", TINY + "def f(:\n")
    assert "syntax.py, line 7: SyntaxError" in _line(load_task, "syntax.py")


def test_the_line_is_the_users_even_when_a_library_fails(here):
    _write("helper_of_this_test.py", "import json\n\ndef read():\n    return json.loads('{')\n")
    _write("tiny.py", TINY.replace("return", "import helper_of_this_test as h; h.read()\n    return"))
    assert "helper_of_this_test.py, line 4: JSONDecodeError" in _line(load_task, "tiny.py")


def test_interrupts_pass_through(here):
    _write("tiny.py", TINY.replace("return", "raise KeyboardInterrupt\n    return"))
    with pytest.raises(KeyboardInterrupt):
        load_task("tiny.py")


def test_what_is_returned_must_be_a_task(here):
    _write(
        "tiny.py",
        TINY.replace("return Task(", "return dict(").replace("torch.nn.Linear(width, 2), torch.nn.MSELoss(), ", ""),
    )
    assert "returned a dict, not a Task" in _line(load_task, "tiny.py")


def test_settings_are_checked_before_the_call(here):
    _write("tiny.py", TINY)
    assert "has no setting 'widht'; it takes width, deep; did you mean 'width'?" in _line(load_task, "tiny.py", widht=3)
    _write("strict.py", TINY.replace("width=4, *, deep=False", "width, **rest"))
    assert "needs the setting 'width'; type --set width=..." in _line(load_task, "strict.py", other=1)
    assert load_task("strict.py", width=2, anything=3).model.in_features == 2
    _write("bare.py", TINY.replace("width=4, *, deep=False", "").replace("width", "3"))
    assert "has no setting 'a'; it takes none" in _line(load_task, "bare.py", a=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3),
        ("a=-3", -3),
        ("a=1e-3", 0.001),
        ("a=.5", 0.5),
        ("a=1.", 1.0),
        ("a=inf", math.inf),
        ("a=-inf", -math.inf),
        ("a=true", True),
        ("a=False", False),
        ("a=None", None),
        ("a=null", None),
        ("a=", ""),
        ("a=b=c", "b=c"),
        ("a= text with spaces ", "text with spaces"),
        ('a="3"', "3"),
        ("a=[1, 2.5]", [1, 2.5]),
        ('a={"b": null}', {"b": None}),
        ("a=1_000", "1_000"),
        ("a=1e", "1e"),
        ("a=infinite", "infinite"),
        ("a=cuda:0", "cuda:0"),
    ],
)
def test_settings_as_typed(text, value):
    name, got = parse_setting(text)
    assert (name, type(got), got) == ("a", type(value), value)
    assert math.isnan(parse_setting("a=nan")[1])


@pytest.mark.parametrize("text", ["a", "=3", "a b=3", "1a=3", "a=[1", 'a={"b"}'])
def test_settings_that_are_none(text):
    _line(parse_setting, text)


# What a checkpoint names --------------------------------------------------------------------------------------

MARKS = {
    "from landscape import Task, task": "task",
    "from landscape import Task, task as t": "t",
    "from landscape import *": "task",
    "from landscape.tasks import Task, task": "task",
    "from landscape import Task, tasks": "tasks.task",
    "from landscape import Task, tasks as lt": "lt.task",
    "import landscape; from landscape import Task": "landscape.task",
    "import landscape as ls; from landscape import Task": "ls.task",
    "import landscape.tasks; from landscape import Task": "landscape.tasks.task",
    "import landscape.tasks as lt; from landscape import Task": "lt.task",
    "try:\n    from landscape import Task, task\nexcept ImportError:\n    pass": "task",
}


@pytest.mark.parametrize("how", list(MARKS))
def test_a_marked_function_under_the_root_is_called(here, how):
    text = f"import torch\n{how}\n\n@{MARKS[how]}\ndef tiny(width=4):\n{BODY}"
    path = _write("tasks/tiny.py", text)
    loaded = load_named_task(TaskReference("tasks/tiny.py:tiny", {"width": 3}, file_sha256(path)))
    assert isinstance(loaded, LoadedTask)
    assert loaded.task.model.in_features == 3
    assert (loaded.reference, loaded.path, loaded.warnings) == ("tasks/tiny.py:tiny", path.resolve(), ())
    assert loaded.settings == {"width": 3}
    over = load_named_task(TaskReference("tiny.py:tiny", {"width": 3}), root="tasks", settings={"width": 5})
    assert over.task.model.in_features == 5
    assert over.settings == {"width": 5}


def test_a_task_of_the_package_is_called():
    loaded = load_named_task(TaskReference("landscape.probes.demo.digits:digits", {"width": 2}))
    assert loaded.path.name == "digits.py"
    assert isinstance(loaded.task, Task)


RUNS = "open('ran', 'w')\n"
NOT_MARKED = {
    "unmarked": f"{RUNS}from landscape import task\ndef tiny():\n    pass\n",
    "other decorator": f"{RUNS}from functools import cache as task\n@task\ndef tiny():\n    pass\n",
    "imported elsewhere": f"{RUNS}def f():\n    from landscape import task\n@task\ndef tiny():\n    pass\n",
    "own decorator": f"{RUNS}def task(f):\n    return f\n@task\ndef tiny():\n    pass\n",
    "not imported": f"{RUNS}@task\ndef tiny():\n    pass\n",
    "of another package": f"{RUNS}from other.landscape import task\n@task\ndef tiny():\n    pass\n",
    "marked by a call": f"{RUNS}from landscape import task\ndef f():\n    pass\ntiny = task(f)\n",
    "a method": f"{RUNS}from landscape import task\nclass A:\n    @task\n    def tiny():\n        pass\n",
    "nested": f"{RUNS}from landscape import task\ndef f():\n    @task\n    def tiny():\n        pass\n",
    "defined again": f"{RUNS}from landscape import task\n@task\ndef tiny():\n    pass\ndef tiny():\n    pass\n",
    "asynchronous": f"{RUNS}from landscape import task\n@task\nasync def tiny():\n    pass\n",
    "a class": f"{RUNS}from landscape import task\n@task\nclass tiny:\n    pass\n",
    "relative import": f"{RUNS}from .tasks import task\n@task\ndef tiny():\n    pass\n",
    "not Python": f"{RUNS}def tiny(:\n",
    "null byte": f"{RUNS}\0",
}


@pytest.mark.parametrize("kind", list(NOT_MARKED))
def test_a_file_without_the_marked_function_is_not_even_imported(here, kind):
    _write("train.py", NOT_MARKED[kind])
    _line(load_named_task, TaskReference("train.py:tiny"))
    assert not Path("ran").exists()


def test_references_that_lead_elsewhere_are_refused(here):
    root = here / "root"
    _write("outside/tiny.py", RUNS + TINY)
    _write("root/inside/tiny.py", TINY)
    os.symlink(here / "outside", root / "link")
    os.symlink(here / "outside" / "tiny.py", root / "file.py")
    os.symlink(root / "inside", root / "fine")
    refused = {
        "os:system": "neither a .py file",
        "subprocess:run": "neither a .py file",
        "landscape.errors:TaskError": "not marked @task",
        "landscape.cli.main:main": "",
        "landscape:task": "neither a .py file",
        "landscape.os:system": "no landscape.os",
        "landscape.checkpoints.safe_pickle.os:system": "",
        "landscape_x.y:f": "neither a .py file",
        "inside.tiny:tiny": "neither a .py file",
        f"{here}/outside/tiny.py:tiny": "no absolute path",
        "../outside/tiny.py:tiny": "no ..",
        "inside/../../outside/tiny.py:tiny": "no ..",
        "..\\outside\\tiny.py:tiny": "no ..",
        "C:\\x\\tiny.py:tiny": "refused",
        "~/tiny.py:tiny": "refused",
        "link/tiny.py:tiny": "by a link: refused",
        "file.py:tiny": "by a link: refused",
        "none.py:tiny": "not under",
        "inside:tiny": "neither a .py file",
        "inside/tiny.py": "names no function",
        "inside/tiny.py:": "names no function",
        "inside/tiny.py:tiny.__call__": "names no function",
        "": "names no function",
        "inside/tiny.py\0:tiny": "neither a .py",
        "a\0.py:tiny": "refused",
    }
    for reference, line in refused.items():
        assert line in _line(load_named_task, TaskReference(reference), root=root), reference
    assert not Path("ran").exists()
    assert load_named_task(TaskReference("fine/tiny.py:tiny"), root=root).path == root / "inside/tiny.py"


def test_a_changed_file_is_a_warning(here):
    path = _write("tiny.py", TINY)
    old = file_sha256(path)
    path.write_text(TINY + "# another word\n")
    loaded = load_named_task(TaskReference("tiny.py:tiny", {}, old))
    assert len(loaded.warnings) == 1
    assert loaded.warnings[0].startswith("tiny.py changed since the checkpoint was written")
    assert load_named_task(TaskReference("tiny.py:tiny", {}, None)).warnings == ()


def test_resolving_imports_nothing(here):
    _write("tiny.py", RUNS + TINY)
    assert resolve_reference("tiny.py:tiny") == ((here / "tiny.py").resolve(), "tiny")
    assert not Path("ran").exists()


def test_every_error_is_one_of_ours():
    assert issubclass(TaskError, LandscapeError)
