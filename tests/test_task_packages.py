"""Task files that lie in packages: imported as their modules, with relative imports, wherever the package begins."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from test_task_files import TINY, _line, _write, here  # noqa: F401  (a fixture)

from landscape import save_checkpoint
from landscape.checkpoint import read_checkpoint
from landscape.task_files import TaskReference, load_named_task, load_task

RELATIVE = TINY.replace("import torch\n", "import torch\nfrom .sizes import WIDTH\n", 1)
RELATIVE = RELATIVE.replace("width=4", "width=WIDTH")
ABOVE = RELATIVE.replace("from .sizes", "from ..sizes")


@pytest.fixture(autouse=True)
def _modules_as_before():
    """Leave no package of a test behind: the next one has others of the same name."""
    before = dict(sys.modules)
    yield
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] in ("pkg_t", "ns_t", "landscape_task_tiny"):
            del sys.modules[name]


def _package(folder: str, width: int, text: str = RELATIVE, *, init: bool = True) -> str:
    _write(f"{folder}/tasks.py", text)
    _write(f"{folder}/sizes.py", f"WIDTH = {width}\n")
    if init:
        _write(f"{folder}/__init__.py", "")
    return f"{folder}/tasks.py:tiny"


@pytest.mark.parametrize("folder", ["pkg_t", "src/pkg_t", "a b/src-1/pkg_t", "src/pkg-t"])
@pytest.mark.parametrize("init", [True, False], ids=["package", "namespace"])
def test_a_file_with_relative_imports_is_loaded_as_its_packages_module(here, folder, init):  # noqa: F811
    name = _package(folder, 3, init=init)
    for loaded in (load_task(name), load_task(name.partition(":")[0]), load_named_task(TaskReference(name)).task):
        assert loaded.model.in_features == 3
        assert loaded.made_by is not None
        assert loaded.made_by.module == f"{Path(folder).name}.tasks"
    assert not {str(here), str(here / folder), str(here / folder / "..")}.intersection(sys.path)


@pytest.mark.parametrize("inits", [("pkg_t", "pkg_t/sub"), ("pkg_t/sub",), ("pkg_t",), ()])
def test_packages_above_are_found_with_and_without_init_files(here, inits):  # noqa: F811
    _write("lib/pkg_t/sub/tasks.py", ABOVE)
    _write("lib/pkg_t/sizes.py", "WIDTH = 6\n")
    for folder in inits:
        _write(f"lib/{folder}/__init__.py", "")
    task = load_task("lib/pkg_t/sub/tasks.py")
    assert task.model.in_features == 6
    assert task.made_by is not None
    assert task.made_by.module == "pkg_t.sub.tasks"


def test_a_file_in_a_package_imports_it_absolutely_too_and_a_script_what_lies_beside_it(here):  # noqa: F811
    assert load_task(_package("src/pkg_t", 5, RELATIVE.replace(".sizes", "pkg_t.sizes"))).model.in_features == 5
    assert load_task(_package("own/pkg_t", 7, RELATIVE.replace(".sizes", "sizes"))).model.in_features == 7


def test_a_checkpoint_names_a_task_in_a_package_by_its_file(here):  # noqa: F811
    task = load_task(_package("src/pkg_t", 3), width=2)
    save_checkpoint("c.pt", task.model, task=task)
    named = read_checkpoint("c.pt").task
    assert named is not None
    assert named.reference == "src/pkg_t/tasks.py:tiny"
    loaded = load_named_task(named)
    assert loaded.task.model.in_features == 2
    assert loaded.warnings == ()


def test_two_packages_of_one_name_are_kept_apart(here):  # noqa: F811
    for init in (True, False):
        a, b = (_package(f"{folder}{init}/pkg_t", width, init=init) for folder, width in (("a", 3), ("b", 5)))
        late = "from . import sizes\nassert sizes.WIDTH == WIDTH\n"
        for name in (a, b):
            path = Path(name.partition(":")[0])
            path.write_text(path.read_text() + late)
        for _ in range(2):
            assert load_task(a).model.in_features == 3
            assert load_task(b).model.in_features == 5


def test_an_edited_file_of_a_package_is_read_anew_and_an_unchanged_one_kept(here):  # noqa: F811
    name = _package("pkg_t", 3)
    path = Path("pkg_t/tasks.py")
    load_task(name)
    module = sys.modules["pkg_t.tasks"]
    load_task(name)
    assert sys.modules["pkg_t.tasks"] is module
    path.write_text(path.read_text().replace("width=WIDTH", "width=9"))
    assert load_task(name).model.in_features == 9
    assert not list(Path("pkg_t/__pycache__").glob("tasks*"))


def test_a_package_that_imports_its_task_file_gets_the_same_module(here):  # noqa: F811
    name = _package("pkg_t", 3)
    _write("pkg_t/__init__.py", "from .tasks import tiny\n")
    _write("pkg_t/tasks.py", RELATIVE + "with open('runs', 'a') as f:\n    f.write('x')\n")
    load_task(name)
    assert Path("runs").read_text() == "x"
    assert sys.modules["pkg_t"].tiny is sys.modules["pkg_t.tasks"].tiny


def test_what_the_program_imported_itself_stays_its_own(here, monkeypatch):  # noqa: F811
    name = _package("pkg_t", 3)
    monkeypatch.syspath_prepend(str(here))
    own = importlib.import_module("pkg_t.tasks")
    Path("pkg_t/tasks.py").write_text(RELATIVE.replace("width=WIDTH", "width=WIDTH + 1"))
    assert load_task(name).model.in_features == 4
    assert sys.modules["pkg_t.tasks"] is own
    assert own.tiny().model.in_features == 3


def test_a_package_of_that_name_from_elsewhere_is_said_where_it_is_in_the_way(here, monkeypatch):  # noqa: F811
    _write("else/pkg_t/__init__.py", "")
    monkeypatch.syspath_prepend(str(here / "else"))
    elsewhere = importlib.import_module("pkg_t")
    said = _line(load_task, _package("pkg_t", 3))
    assert f"another pkg_t is in the way ({elsewhere.__file__}): rename the folder" in said
    assert sys.modules["pkg_t"] is elsewhere
    assert load_task(_package("pkg_t", 3, RELATIVE.replace(".sizes", "sizes"))).model.in_features == 3
    assert "another json is in the way" in _line(load_task, _package("json", 3))


def test_what_is_missing_is_said(here):  # noqa: F811
    name = _package("pkg_t", 3)
    Path("pkg_t/sizes.py").unlink()
    said = _line(load_task, name)
    assert "tasks.py, line 2: ModuleNotFoundError: No module named 'pkg_t.sizes' (while it was imported)" in said
    _write("pkg_t/sizes.py", "from ..above import WIDTH\n")
    said = _line(load_task, name)
    assert (
        "sizes.py, line 1: ImportError: attempted relative import beyond top-level package; where the package" in said
    )
    assert "v1.2' can be no package, for its dot" in _line(load_task, _package("v1.2", 3))
    deep = "." * 50
    assert "no folders above it for so many dots" in _line(
        load_task, _package("deep", 3, RELATIVE.replace(".sizes", f"{deep}sizes"))
    )


@pytest.mark.parametrize("text", [RELATIVE, ABOVE])
def test_a_checkpoint_starts_no_package_that_begins_above_the_root(here, text):  # noqa: F811
    _package("root/pkg_t", 3, text)
    _write("root/pkg_t/__init__.py", "open('ran', 'w')\n")
    _write("root/__init__.py", "open('ran', 'w')\n")
    said = _line(load_named_task, TaskReference("tasks.py:tiny"), root="root/pkg_t")
    assert f"begins above {here / 'root/pkg_t'}: give --root {here}" in said
    assert not Path("ran").exists()
    # A file that needs no package is imported alone, as ever.
    _package("root/pkg_t", 3, TINY)
    _write("root/pkg_t/__init__.py", "open('ran', 'w')\n")
    assert load_named_task(TaskReference("tasks.py:tiny"), root="root/pkg_t").task.model.in_features == 4
    assert not Path("ran").exists()


def test_a_marked_function_that_a_file_imports_relatively_is_its_task(here):  # noqa: F811
    _package("pkg_t", 3)
    _write("pkg_t/chosen.py", "from .tasks import *\n")
    assert load_task("pkg_t/chosen.py").model.in_features == 3
    assert load_named_task(TaskReference("pkg_t/chosen.py:tiny")).task.model.in_features == 3
