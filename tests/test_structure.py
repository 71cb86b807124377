"""Three floors, arrows only down, one import name, light imports: ARCHITECTURE.md, checked on the source."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import landscape

ROOT = Path(__file__).resolve().parents[1]
#: Folder at the top level -> the name it installs under, lowest floor first.
FLOORS = {"landscape": "landscape", "probes": "landscape.probes", "cli": "landscape.cli"}
#: Everything that brings torch in with it.
TORCH = {
    "torch", "torchvision", "torchmetrics", "pyhessian", "lightning", "pytorch_lightning", "transformers",
    "accelerate", "safetensors", "netcal", "curvlinops",
}  # fmt: skip
#: Modules and packages that must never bring torch in, because `show`, `export`, `figure` and `report` use them.
TORCH_FREE = (
    "landscape.errors", "landscape.results", "landscape.performance", "landscape.curvature.spectrum",
    "landscape.curvature.estimates", "landscape.curvature.kernels",
    "landscape.surface.slices", "landscape.surface.routes", "landscape.surface.fields",
    "landscape.alignment.aligned",
    "landscape.calibration.table", "landscape.archive", "landscape.report", "landscape.comparison",
)  # fmt: skip
#: Third-party package -> the only folder that may import it.
CONFINED = {
    "h5py": "landscape.archive",
    "matplotlib": "landscape.report",
    "mpl_toolkits": "landscape.report",
    "plotly": "landscape.report",
    "jinja2": "landscape.report",
}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the three floors by the name it installs under."""
    found = {}
    for folder, package in FLOORS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


@cache
def imports(name: str) -> tuple[tuple[int, str], ...]:
    """Return (line, absolute name) of all that a module imports, at any depth, `import_module("...")` included.

    `from package import name` counts as both `package` and `package.name`, since the name may be a module.
    A lazy public name (`from landscape import Task`) counts as the module that it loads.
    """
    path = modules()[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return tuple(_imports(ast.parse(path.read_text(encoding="utf-8")), package))


def _imports(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])
            base = base if node.level else str(node.module)
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
                if base == "landscape" and alias.name in landscape._NAMES:
                    yield node.lineno, landscape._NAMES[alias.name]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def floor(name: str) -> int:
    """Return 0 for the core, 1 for the probes, 2 for the command line, -1 for everybody else's modules."""
    floors = [i for i, package in enumerate(FLOORS.values()) if within(name, package)]
    return max(floors, default=-1)


def run(code: str) -> dict:
    """Run code in a fresh interpreter from the root, warnings as errors; return the JSON that it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


# ------------------------------------------------------------------------------------------------- layout


def test_the_packages_of_pyproject_are_the_folders_on_disk():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = set()
    for folder, package in FLOORS.items():
        for path in [ROOT / folder, *(ROOT / folder).rglob("*")]:
            if path.is_dir() and path.name != "__pycache__" and any(p.is_file() for p in path.iterdir()):
                folders.add(".".join([package, *path.relative_to(ROOT / folder).parts]))
    assert set(settings["packages"]) == folders
    assert len(settings["packages"]) == len(folders), "a package is listed twice"
    assert settings["package-dir"] == {package: folder for folder, package in FLOORS.items()}


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in modules().values()}
    assert [str(f.relative_to(ROOT)) for f in sorted(folders) if not (f / "__init__.py").is_file()] == []


@pytest.mark.parametrize("folder", ["probes", "cli"])
def test_nothing_lies_where_a_floor_installs(folder):
    # It would shadow the real folder in a checkout, and be replaced by it in the wheel.
    assert not (ROOT / "landscape" / folder).exists()
    assert not (ROOT / "landscape" / f"{folder}.py").exists()


def test_nothing_imports_probes_or_cli_from_the_top_level():
    # A second copy of every class: isinstance fails across the two.
    found = []
    for path in sorted(ROOT.glob("*/**/*.py")):
        where = path.relative_to(ROOT)
        if where.parts[0].startswith(".") or where.parts[0] == "build":
            continue
        package = ".".join(["checkout", *where.parent.parts])
        for line, name in _imports(ast.parse(path.read_text(encoding="utf-8")), package):
            if name.split(".")[0] in ("probes", "cli"):
                found.append(f"{where}:{line} imports {name}")
    assert found == []


# ------------------------------------------------------------------------------------------------- arrows


def test_imports_point_down_only():
    upward = [
        f"{name}:{line} imports {target}"
        for name in modules()
        for line, target in imports(name)
        if floor(target) > floor(name)
    ]
    assert upward == []


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_in_their_folder(library):
    found = [
        f"{name}:{line} imports {target}"
        for name in modules()
        for line, target in imports(name)
        if within(target, library) and not within(name, CONFINED[library])
    ]
    assert found == []


def test_torch_free_modules_reach_no_torch_by_any_import():
    # The closure over every import, those inside functions and TYPE_CHECKING blocks included: `landscape`
    # itself is left out of it, because its TYPE_CHECKING block names everything and runs nothing.
    reached: dict[str, str] = {name: name for name in modules() if any(within(name, f) for f in TORCH_FREE)}
    assert len(reached) > len(TORCH_FREE) // 2, "the names in TORCH_FREE no longer exist"
    todo, found = list(reached), []
    while todo:
        name = todo.pop()
        for line, target in imports(name):
            if target.split(".")[0] in TORCH:
                found.append(f"{reached[name]} -> {name}:{line} imports {target}")
            if target in modules() and target not in reached and target != "landscape":
                reached[target] = f"{reached[name]} -> {target}"
                todo.append(target)
    assert found == []


def test_torch_free_modules_import_without_torch():
    names = [name for name in modules() if any(within(name, f) for f in TORCH_FREE)]
    loaded = run(
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps({'torch': 'torch' in sys.modules}))"
    )
    assert loaded == {"torch": False}


def test_importing_landscape_imports_no_heavy_library():
    loaded = run("import json, sys, landscape; dir(landscape); print(json.dumps(sorted(sys.modules)))")
    heavy = {"torch", "h5py", "matplotlib", "plotly", "jinja2", "sklearn", "scipy", "numpy", "click"}
    assert heavy & set(loaded) == set()


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--help"], ["report", "--help"], ["probe", "--help"]])
def test_help_imports_no_heavy_library(arguments):
    loaded = run(
        "import contextlib, io, json, sys\n"
        "from landscape.cli.main import main\n"
        f"sys.argv = ['landscape', *{arguments!r}]\n"
        "out = io.StringIO()\n"
        "try:\n"
        "    with contextlib.redirect_stdout(out): main()\n"
        "except SystemExit as stop: code = stop.code\n"
        "else: code = 0\n"
        "assert not code and 'Usage' in out.getvalue(), (code, out.getvalue())\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    assert {"torch", "h5py", "matplotlib", "plotly", "sklearn", "scipy"} & set(loaded) == set()


def test_a_probe_imports_no_compiler_and_no_statistics_and_takes_what_is_compiled_on_the_way():
    found = run(
        "import json, sys, torch\n"
        "import landscape, landscape.probes.posthoc\n"
        "from landscape.results import measurements\n"
        "measurements()\n"
        "x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(3, (8,))\n"
        "class Net(torch.nn.Linear):\n"
        "    late = False\n"
        "    def forward(self, x):\n"
        "        act = torch.compile(torch.tanh) if self.late else torch.tanh\n"
        "        return act(super().forward(x))\n"
        "net, loss = Net(3, 3).double(), torch.nn.CrossEntropyLoss()\n"
        "compile = torch.compile\n"
        "def matrix():\n"
        "    with landscape.Hessian(landscape.Task(net, loss, [(x, y)])) as H:\n"
        "        return H @ torch.eye(12, dtype=torch.float64)\n"
        "expected = matrix()\n"
        "early = [n for n in ('torch._dynamo', 'scipy.stats', 'scipy.interpolate') if n in sys.modules]\n"
        "net.late = True\n"
        "import warnings\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # what torch's compiler remarks on itself\n"
        "with landscape.Objective(landscape.Task(net, loss, [(x, y)])) as around:\n"
        "    error = float((matrix() - expected).abs().max())\n"
        "    stance = torch._dynamo.eval_frame._stance.stance\n"
        "after = torch._dynamo.eval_frame._stance.stance\n"
        "print(json.dumps([early, error < 1e-12, stance, after, torch.compile is compile]))"
    )
    assert found == [[], True, "force_eager", "default", True]


# ------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", sorted(landscape._NAMES))
def test_every_public_name_resolves(name):
    assert getattr(landscape, name) is getattr(sys.modules[landscape._NAMES[name]], name)


def test_public_names_are_the_ones_that_type_checkers_see():
    tree = ast.parse((ROOT / "landscape" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    seen = {
        alias.asname or alias.name: f"landscape.{node.module}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == landscape._NAMES


def test_no_public_name_is_the_name_of_a_module_beside_it():
    clashes = []
    for package, path in modules().items():
        if path.name != "__init__.py":
            continue
        beside = {m.rpartition(".")[2] for m in modules() if m.rpartition(".")[0] == package}
        named = set(getattr(importlib.import_module(package), "_NAMES", ()))
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                named.add(node.name)
            elif isinstance(node, ast.Assign):
                named |= {t.id for t in node.targets if isinstance(t, ast.Name)}
            elif isinstance(node, ast.ImportFrom) and node.module:
                named |= {a.asname or a.name for a in node.names}
        clashes += [f"{package}.{name}" for name in sorted(named & beside)]
    assert clashes == []


@pytest.mark.parametrize("first", ["before", pytest.param("after", marks=pytest.mark.slow)])
def test_public_names_survive_the_import_of_every_module(first):
    early = "from landscape import task, line, plane, trace, sharpness\n" if first == "before" else ""
    kinds = run(
        "import importlib, json, sys\n"
        f"{early}"
        f"for name in {[m for m in modules() if not m.endswith('__main__')]!r}: importlib.import_module(name)\n"
        "import landscape\n"
        "from landscape import task\n"
        "wrong = [n for n, m in landscape._NAMES.items() if getattr(landscape, n) is not getattr(sys.modules[m], n)]\n"
        "wrong += [n for n in landscape._NAMES if type(getattr(landscape, n)).__name__ == 'module']\n"
        "marked = task(lambda: None)\n"
        "print(json.dumps({'wrong': wrong, 'marked': marked.__landscape_task__,\n"
        "    'second copies': [n for n in sys.modules if n.split('.')[0] in ('probes', 'cli')]}))"
    )
    assert kinds == {"wrong": [], "marked": True, "second copies": []}


#: What a user writes with torch's own habits: the default device is theirs to choose there.
OF_THE_USERS_DEVICE = {"landscape.training.losses.margins", "landscape.training.losses.imbalance"}


def test_tensors_say_on_which_device_they_are_made() -> None:
    # Whoever calls torch.set_default_device("cuda") would get ours there too, beside those that lie on the CPU.
    makers = {
        "zeros", "ones", "empty", "full", "tensor", "as_tensor", "arange", "rand", "randn",
        "randint", "randperm", "linspace", "eye",
    }  # fmt: skip
    silent = [
        f"{name}:{node.lineno} torch.{node.func.attr}"
        for name, path in modules().items()
        if name not in OF_THE_USERS_DEVICE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr in makers) == ("torch", True)
        and not any(k.arg == "device" for k in node.keywords)
    ]
    assert not silent, "give device=: " + ", ".join(silent)
