"""The wheel holds every module and data file and nothing else; what is pinned is what the extras bring."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"landscape": "landscape", "probes": "landscape/probes", "cli": "landscape/cli"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
#: Extras that the tests do without: the trackers are large, and stand-ins take their place.
APART = {"wandb", "mlflow"}
REQUIREMENTS = [
    requirement
    for listed in (PROJECT["dependencies"], *(v for k, v in PROJECT["optional-dependencies"].items() if k not in APART))
    for requirement in map(Requirement, listed)
    if requirement.name != PROJECT["name"]
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a source archive and, from that, the wheel, offline, in a copy: nothing is left in the checkout."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for folder in FLOORS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", PROJECT["readme"], *PROJECT["license-files"]):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_three_folders_and_no_other(wheel):
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FLOORS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "landscape/py.typed" in held
    assert {Path(name).suffix for name in held} >= {".py", ".j2", ".css", ".js"}


def test_the_wheel_says_what_it_is(wheel):
    assert wheel.name == f"landscape_probe-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = f"landscape_probe-{PROJECT['version']}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        license_text = archive.read(f"{info}/licenses/LICENSE").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "landscape = landscape.cli.main:main" in scripts
    assert "Apache License" in license_text
    assert "END OF TERMS AND CONDITIONS" in license_text


def test_the_wheel_works_without_the_checkout(wheel, tmp_path):
    # Unpacked ahead of the checkout on the path; CI installs it in a clean environment as well.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import json, landscape, landscape.probes.demo, landscape.cli, landscape.results as r\n"
        "from importlib.resources import files\n"
        "names = [landscape.__file__, landscape.probes.demo.__file__, landscape.cli.__file__]\n"
        "held = sorted(p.name for p in files('landscape.report').joinpath('templates').iterdir())\n"
        "print(json.dumps([names, held, landscape.Result is r.Result]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    names, held, same = json.loads(done.stdout)
    assert all(Path(name).is_relative_to(tmp_path) for name in names)
    assert {Path(name).suffix for name in held} >= {".j2", ".css", ".js"}
    assert same is True


def test_the_version_is_said_once():
    import landscape

    assert PROJECT["version"] == landscape.__version__


def test_torch_has_no_upper_cap():
    (torch,) = [requirement for requirement in REQUIREMENTS if requirement.name == "torch"]
    assert {s.operator for s in torch.specifier} == {">="}


def pins(file: str = "constraints.txt") -> dict[str, str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_pins_are_exact_sorted_and_fit_every_build():
    found = pins()
    assert list(found) == sorted(found, key=str.lower)
    assert found["torch"] == "2.13.0"
    assert [v for v in found.values() if not re.fullmatch(r"\d+(\.\d+)*(\.?(post|rc)\d+)?", v)] == []
    versions = {canonicalize_name(name): version for name, version in found.items()}
    for requirement in REQUIREMENTS:
        pinned = versions[canonicalize_name(requirement.name)]
        assert pinned in requirement.specifier, f"{requirement} leaves out the pinned {pinned}"


def test_what_is_tried_as_the_lowest_is_what_is_promised():
    extras = ("lightning", "transformers", "accelerate", "parquet", "tensorboard", "bench")
    listed = [*PROJECT["dependencies"], *(line for e in extras for line in PROJECT["optional-dependencies"][e])]
    promised = {r.name: Version(next(iter(r.specifier)).version) for r in map(Requirement, listed) if r.name != "torch"}
    assert {name: Version(version) for name, version in pins("constraints-lowest.txt").items()} == promised


def test_everything_that_the_test_extra_brings_is_pinned():
    pinned = {canonicalize_name(name) for name in pins()}
    assert sorted(_closure() - pinned) == []
    # What a platform does not need (another Python, no CUDA) may be pinned here and missing there, not made up.
    assert len(pinned - _closure()) <= 5, sorted(pinned - _closure())


def _closure() -> set[str]:
    """Return every distribution that the test extra needs here, followed through the installed metadata."""
    todo = list(REQUIREMENTS)
    seen: set[tuple[str, tuple[str, ...]]] = set()
    while todo:
        requirement = todo.pop()
        name, extras = canonicalize_name(requirement.name), tuple(sorted(requirement.extras))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for text in importlib.metadata.distribution(name).requires or []:
            needed = Requirement(text)
            wanted = ({"extra": extra} for extra in (*extras, ""))
            if needed.marker is None or any(needed.marker.evaluate(w) for w in wanted):
                todo.append(needed)
    # A CUDA build of torch pins its own companions exactly.
    return {n for n, _ in seen if not n.startswith(("nvidia-", "triton", "cuda-"))}
