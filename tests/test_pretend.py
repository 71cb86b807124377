"""The GPU's tests where there is no GPU, on a device that computes on the host and refuses what a GPU refuses."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("c++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="needs a C++ compiler and Python's headers",
)
def test_on_a_pretended_device_everything_is_as_on_the_cpu() -> None:
    # A process of its own: there is one such device in a process, and every later test would have it.
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pretend_device", "-p", "no:cacheprovider", "tests/test_gpu.py"],
        cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    passed = re.search(r"(\d+) passed|^([.s]+) +\[100%\]", found.stdout, re.MULTILINE)
    assert passed, found.stdout
    assert int(passed[1] or (passed[2] or "").count(".")) >= 20, found.stdout
