"""Where a number came from: versions, command line, seed, device, source revision. No torch here."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

#: The libraries whose versions can change a number.
LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "scikit-learn",
    "h5py",
    "pyhessian",
    "lightning",
    "transformers",
    "accelerate",
)
#: Seconds that git may take on a large or remote work tree before we go on without it. Chosen by us.
GIT_TIMEOUT = 2.0


def provenance(
    *, seed: int | None = None, device: str | None = None, command: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return what an archive's root says about the run that wrote it; it never fails.

    run_id (random), created (UTC), versions, platform, python, command_line (`command`, by default sys.argv
    with the program's folder cut off), source_revision (git of the working directory: the commit, "-dirty" if
    a tracked file differs; "" without git), seed and device as given. No host, user or home folder is
    recorded beyond what the command line names.
    """
    return {
        "run_id": uuid.uuid4().hex,
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "versions": versions(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "command_line": command_line(sys.argv if command is None else command),
        "source_revision": source_revision(),
        "seed": seed,
        "device": "" if device is None else str(device),
    }


def versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that are installed, without importing them."""
    from . import __version__

    found = {"landscape-probe": __version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def command_line(argv: Sequence[str]) -> str:
    """Return a command as a shell takes it, its program without the folder; "(notebook)" inside Jupyter."""
    if not argv:
        return ""
    program = os.path.basename(argv[0])
    if program == "ipykernel_launcher.py":
        return "(notebook)"  # its arguments name a file in the user's home folder
    return shlex.join([program, *argv[1:]])


def source_revision(folder: str | None = None) -> str:
    """Return the commit of the git work tree that holds `folder` (default: the working directory), or ""."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return ""
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _git(folder: str | None, *arguments: str) -> str:
    # A repository's own settings must not start programs or wait for anybody, nor its index be rewritten.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=GIT_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""
