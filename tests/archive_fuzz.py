"""Damage sound archives at random, let commands read them in children, and say how each ended.

`python tests/archive_fuzz.py [SEED [VARIANTS]]` prints a table. Each command runs in a process forked from one that has
imported everything, so that a variant costs milliseconds; its end is one of

    told        exit 1 and one clear line
    untold      exit 1 and anything else: a traceback, "a bug or an unexpected error", several lines
    same        exit 0 and the very output of the sound archive
    warned      exit 0 and other output, with a warning
    silent      exit 0 and other output without a word: wrong numbers
    crash       ended by a signal
    hang        still at work after the time limit

Then `landscape repair` salvages damaged archives, and what it kept is compared with the sound one, number by number:

    salvaged    what it kept is what was measured, and what is missing is said
    told        nothing could be kept, in one clear line
    wrong       a number that was never measured
    unsaid      something is missing, and no line says so
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LIMIT = 20.0
MEMORY = 4 << 30
#: Command -> arguments, in a folder with the damaged a.h5 and the sound b.h5; what it writes lies in `out`.
COMMANDS = {
    "show": ("show", "a.h5", "--json"),
    "report": ("report", "a.h5", "-o", "out/report.md"),
    "compare": ("compare", "b.h5", "a.h5", "--json"),
    "export": ("export", "a.h5", "-o", "out/tables", "--format", "csv"),
    "repair": ("repair", "a.h5"),
}
READING = tuple(name for name in COMMANDS if name != "repair")
KINDS = ("byte", "bits", "zeros", "noise", "cut")
#: What a repair is tried at, too: a copy that was cut short.
REPAIRED = (*KINDS, "cut 50%", "cut 90%")


def damaged(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return the bytes with one damage of a kind somewhere."""
    found = bytearray(data)
    at = int(rng.integers(len(found)))
    if kind == "byte":
        found[at] ^= int(rng.integers(1, 256))
    elif kind == "bits":
        for place in rng.integers(len(found), size=8).tolist():
            found[place] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del found[at:]
    elif kind.startswith("cut "):
        del found[len(found) * int(kind[4:-1]) // 100 :]
    else:
        start = at - at % 512
        size = len(found[start : start + 512])
        found[start : start + size] = bytes(size) if kind == "zeros" else rng.bytes(size)
    return bytes(found)


def variants_of(data: bytes, kind: str, count: int, seed: int) -> Iterator[bytes]:
    """Yield damaged variants of these bytes, `count` or a few less: none is the same as they are."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        bad = damaged(data, kind, rng)
        if bad != data:
            yield bad


def sound(folder: Path) -> dict[str, bytes]:
    """Return sound archives by name: measured, recorded, both, and one that a run left running."""
    import report_samples as samples
    from training_samples import history, record

    from landscape.archive.save import save_archive

    (folder / "m").mkdir()
    samples.write_archives(folder / "m", 1, 7)
    save_archive(folder / "m" / "0.h5", samples.results(1, 5), append=True)
    (folder / "both").mkdir()
    samples.write_archives(folder / "both", 1, 7, steps=60)
    given = history(0, 200)
    made = {
        "measured": folder / "m" / "0.h5",
        "both": folder / "both" / "0.h5",
        "recorded": record(folder / "r.h5", given, samples.settings(), attributes=samples.about()),
        "running": record(folder / "w.h5", history(0, 20), {}, attributes=samples.about(), finish=False),
    }
    shutil.rmtree(folder / "w.h5.live")  # killed before its first row reached the disk: the status alone can be mended
    return {name: path.read_bytes() for name, path in made.items()}


def run(data: bytes, good: bytes, command: str, folder: Path) -> tuple[str, str, str]:
    """Run one command on an archive of these bytes in a child; return (code or why not, stdout and files, stderr)."""
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "out").mkdir(parents=True)
    (work / "a.h5").write_bytes(data)
    (work / "b.h5").write_bytes(good)
    child = os.fork()
    if not child:
        _child(work, command)
    code = _wait(child, LIMIT * (6 if command == "repair" else 1))  # whose own reader may hang at several pieces
    texts = {p.name: p.read_text("utf-8", "replace") for p in sorted((work / "out").rglob("*")) if p.is_file()}
    said = "\n".join([(work / "stdout").read_text("utf-8", "replace"), *(f"{n}\n{t}" for n, t in texts.items())])
    return code, said, (work / "stderr").read_text("utf-8", "replace")


def _child(work: Path, command: str) -> None:
    code = 1
    try:
        os.setsid()
        os.chdir(work)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8") for n in (1, 2))
        from landscape.cli.main import main

        main(list(COMMANDS[command]))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int, limit: float) -> str:
    until = time.monotonic() + limit
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if os.WIFSIGNALED(status):
                return f"crash {signal.Signals(os.WTERMSIG(status)).name}"
            return str(os.WEXITSTATUS(status))
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hang"


def verdict(code: str, said: str, errors: str, expected: str) -> str:
    """Return how a command ended, in a word of this file's head."""
    if code.startswith("crash") or code == "hang":
        return code.partition(" ")[0]
    lines = [line for line in errors.splitlines() if line.strip()]
    if code != "0":
        clear = lines and lines[-1].startswith("error: ") and sum(line.startswith("error:") for line in lines) == 1
        odd = "Traceback" in errors or "this is a bug" in errors
        return "told" if clear and not odd else "untold"
    if said == expected:
        return "same"
    return "warned" if any(line.startswith("warning:") for line in lines) else "silent"


def fuzz(seed: int, variants: int, commands: tuple[str, ...] = READING) -> Iterator[dict[str, str]]:
    """Yield a row for each variant and command: archive, kind, command, verdict, the last line said."""
    import landscape.archive.convert
    import landscape.archive.tables
    import landscape.cli.compare
    import landscape.cli.exporting
    import landscape.cli.report
    import landscape.cli.show
    import landscape.report.formats
    import landscape.report.page  # noqa: F401  once, before the forks

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        archives = sound(folder)
        expected = {}
        for name, data in archives.items():
            for command in commands:
                code, said, errors = run(data, archives["both"], command, folder)
                expected[name, command] = said
                assert code == "0" or verdict(code, said, errors, said) == "told", (name, command, code, errors)
        names = list(archives)
        for i in range(variants):
            name, kind = names[i % len(names)], KINDS[(i // len(names)) % len(KINDS)]
            bad = damaged(archives[name], kind, rng)
            for command in commands:
                code, said, errors = run(bad, archives["both"], command, folder)
                end = verdict(code, said, errors, expected[name, command])
                last = (errors.strip().splitlines() or [""])[-1]
                yield {"archive": name, "kind": kind, "command": command, "end": end, "code": code, "said": last}


def repairs(seed: int, variants: int, kinds: tuple[str, ...] = REPAIRED) -> Iterator[dict[str, Any]]:
    """Yield a row for each variant that was repaired: archive, kind, end, and the share of the rows that was kept."""
    import landscape.archive.salvage
    import landscape.cli.repair  # noqa: F401  once, before the forks

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        archives = {name: data for name, data in sound(folder).items() if name != "running"}
        expected = {name: numbers(folder / "work" / "b.h5", data) for name, data in archives.items()}
        names = list(archives)
        for i in range(variants):
            name, kind = names[i % len(names)], kinds[(i // len(names)) % len(kinds)]
            bad = damaged(archives[name], kind, rng)
            if bad == archives[name]:
                continue
            code, said, errors = run(bad, archives[name], "repair", folder)
            kept = folder / "work" / "a.salvaged.h5"
            share, end = 0.0, verdict(code, said, errors, "")
            if code == "0":
                share, end = judged(numbers(kept), expected[name], "lost: " in errors)
            assert (folder / "work" / "a.h5").read_bytes() == bad
            last = (errors.strip().splitlines() or [""])[-1]
            yield {"archive": name, "kind": kind, "end": end, "share": share, "code": code, "said": last}


def numbers(path: Path, data: bytes | None = None) -> dict[str, Counter[bytes]]:
    """Return what an archive holds by dataset, as its rows' bytes; rows of a training with their steps."""
    import h5py

    if data is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    found: dict[str, Counter[bytes]] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or not item.id.get_storage_size():
            return
        held = item[()]
        rows = [repr(held).encode()] if not item.ndim else [_row(row) for row in held]
        if name.startswith("events/"):
            rows = [r for r, kind in zip(rows, item.parent["kind"][()], strict=True) if kind != b"lost_rows"]
        elif name.startswith(("steps/", "epochs/")) and name.endswith(("/value", "/superseded")):
            rows = [b"%d %b" % pair for pair in zip(item.parent["step"][()].tolist(), rows, strict=True)]
        else:
            rows = [b"%d %b" % pair for pair in enumerate(rows)] if not name.startswith(("steps/", "epochs/")) else rows
        found[name] = Counter(rows)

    with h5py.File(path, "r", locking=False) as file:
        file.visititems(visit)
    return found


def _row(row: Any) -> bytes:
    return row if isinstance(row, bytes) else np.asarray(row).tobytes()


def judged(kept: dict[str, Counter[bytes]], whole: dict[str, Counter[bytes]], said: bool) -> tuple[float, str]:
    """Return the share of an archive's rows of numbers that were kept, and how the repair ended."""
    total = sum(rows.total() for rows in whole.values())
    left = sum(rows.total() for rows in kept.values())
    if any(rows - whole.get(name, Counter()) for name, rows in kept.items()):
        return left / total, "wrong"
    return left / total, "salvaged" if left == total or said else "unsaid"


def main() -> None:
    seed, variants = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 0), (2, 400)))
    ends: dict[str, Counter[str]] = {}
    for row in fuzz(seed, variants):
        ends.setdefault(row["command"], Counter())[row["end"]] += 1
        if row["end"] not in ("told", "same"):
            print(json.dumps(row), flush=True)
    for command, counted in ends.items():
        print(command, dict(counted))
    shares: dict[str, list[float]] = {}
    for row in repairs(seed, variants):
        shares.setdefault(row["kind"], []).append(row["share"])
        if row["end"] not in ("told", "salvaged"):
            print(json.dumps(row), flush=True)
    for kind, found in shares.items():
        print(f"repair, {kind}: {100 * np.mean(found):.0f}% of what was measured kept, of {len(found)}")


if __name__ == "__main__":
    main()
