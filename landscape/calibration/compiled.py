"""The passes over class logits and over pairs as C kernels, where the user asks and a compiler is at hand."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MeasurementError

_SOURCES = [Path(__file__).with_name(name) for name in ("kernel.c", "count.c")]
_COMPILERS = ("cc", "gcc", "clang")
# Products and sums may become one operation, which rounds once; sums of a row may go in any order (omp simd). Nothing
# is assumed of NaN and infinity.
_FLAGS = ("-O3", "-std=c11", "-fopenmp-simd", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# How a compiler is told to use all that this processor has; without its vectors the kernel is slower than NumPy.
_NATIVE = ("-march=native", "-mcpu=native")
# How far the kernel may lie from NumPy (chosen by us: some dozen roundings).
_TOLERANCE = 1e-13


@dataclass(frozen=True)
class Kernel:
    """Goes through float32 logits, and counts pairs; `load` makes one."""

    sweeping: Any
    counting: Any

    def __call__(
        self,
        x: np.ndarray,
        top: np.ndarray,
        least: np.ndarray,
        total: np.ndarray,
        squares: np.ndarray | None = None,
    ) -> None:
        """Fill arrays for logits x (r, C) float32, all contiguous; nothing about them is checked here.

        `top` (r,) int64 gets the first largest class, `least` (r,) float32 the least logit (NaN where one is not
        finite), `total` (r,) float64 the sum of exp(x - largest), `squares` (r,) that of their squares. Cost: 0.7 ns a
        logit on one thread of an AMD Zen 4, `squares` 0.1 more. Other threads of Python run meanwhile.
        """
        of = None if squares is None else squares.ctypes.data
        self.sweeping(*_places(x, top, least, total), of, 0.0, None, None, None, None, None)

    def find(
        self,
        x: np.ndarray,
        top: np.ndarray,
        least: np.ndarray,
        total: np.ndarray,
        squares: np.ndarray | None,
        share: float,
        keep: np.ndarray | None,
        mass: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As a call, and return place in the flat x and exp(x - largest) of what has more than a share of its total.

        Looks at the rows that `keep` (r,) bool marks (None: all) and whose logits are finite, and adds each class's
        shares to `mass` (C,) float64.
        """
        n, classes = x.shape
        most = n * min(int(1 / share) + 1, classes)
        places, found, room = np.empty(most, dtype=np.int64), np.empty(most), np.empty(classes)
        of = None if squares is None else squares.ctypes.data
        kept = None if keep is None else keep.ctypes.data
        rest = [a.ctypes.data for a in (room, mass, places, found)]
        count = self.sweeping(*_places(x, top, least, total), of, share, kept, *rest)
        return places[:count].copy(), found[:count].copy()

    def count(
        self, confidence: np.ndarray, correct: np.ndarray, entries: np.ndarray, shift: float, table: np.ndarray
    ) -> None:
        """Add to `table` the bits of `shift` + confidence, at the key that the entries give each pair.

        `confidence` (n,) float32 must be known to lie in [2**-7, 1] and `correct` (n,) int64 to be 0 or 1, all arrays
        contiguous: nothing is checked here. `entries` are those of `Cells`, `table` that of `PackedSums`. Cost: 1 ns a
        pair.
        """
        n = len(confidence)
        self.counting(confidence.ctypes.data, correct.ctypes.data, n, entries.ctypes.data, shift, table.ctypes.data)


def _places(x: np.ndarray, *rows: np.ndarray) -> list[int]:
    return [x.ctypes.data, *x.shape, *(a.ctypes.data for a in rows)]


@functools.cache
def load() -> Kernel:
    """Compile the kernel for this processor, once in a process (0.3 s), and hold it against NumPy.

    The compiler is $CC, or the first of cc, gcc and clang. Nothing stays on the disk: another machine that shares it
    may have another processor. Raises MeasurementError where there is no compiler, or what it made is not right.
    """
    compiler = _compiler()
    said = ""
    # A library stays in memory when its file has gone.
    with tempfile.TemporaryDirectory(prefix="landscape-kernel-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "kernel.so"
        for native in _NATIVE:
            command = [*compiler, *_FLAGS, native, "-shared", "-fPIC", "-o", str(made), *map(str, _SOURCES)]
            try:
                result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            except OSError as error:
                said = str(error)
                break
            if result.returncode == 0:
                return _checked(_loaded(made))
            said = said or next(iter(result.stderr.strip().splitlines()), f"exit status {result.returncode}")
    raise MeasurementError(
        f"compiled=True: {shlex.join(compiler)} could not compile the kernel ({said}); set CC to another compiler, or "
        "leave compiled out"
    )


def _compiler() -> list[str]:
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise MeasurementError(
        f"compiled=True needs a C compiler, found none of {', '.join(_COMPILERS)}; install one, set CC, or leave "
        "compiled out"
    )


def _loaded(file: Path) -> Kernel:
    try:
        library = ctypes.CDLL(str(file))
    except OSError as error:
        raise MeasurementError(
            f"compiled=True: the kernel cannot be loaded ({error}); set TMPDIR to a folder whose files may be run, or "
            "leave compiled out"
        ) from None
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    sweep, count = library.landscape_sweep, library.landscape_count
    sweep.argtypes = [pointer, whole, whole, *[pointer] * 4, ctypes.c_double, *[pointer] * 5]
    sweep.restype = whole
    count.argtypes = [pointer, pointer, whole, pointer, ctypes.c_double, pointer]
    count.restype = None
    return Kernel(sweep, count)


def _checked(kernel: Kernel) -> Kernel:
    """Return the kernel if it gives what NumPy does for a table with ties, far and faulty numbers."""
    x = np.random.default_rng(0).normal(scale=5, size=(64, 203)).astype(np.float32)
    x[::3] = np.round(x[::3])
    x[5, 7], x[6, 8], x[7, :] = -1e30, 1e4, 3
    top, least = np.empty(64, dtype=np.int64), np.empty(64, dtype=np.float32)
    (alone, total, also, squares), mass = np.empty((4, 64)), np.zeros(203)
    kernel(x, top, least, alone)
    kernel(x, top, least, total, squares)
    keep = np.arange(64) != 20
    places, found = kernel.find(x, top, least, also, None, 0.1, keep, mass)
    exact = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    sums = exact.sum(axis=1)
    above = np.flatnonzero((exact > 0.1 * sums[:, None]) & keep[:, None])
    same = np.array_equal(top, x.argmax(axis=1)) and np.array_equal(least, x.min(axis=1))
    pairs = [(alone, sums), (total, sums), (also, sums), (squares, np.square(exact).sum(axis=1))]
    pairs += [(mass, (1 / sums * keep) @ exact)]
    same = same and all(np.allclose(a, b, rtol=_TOLERANCE, atol=0) for a, b in pairs)
    same = same and np.array_equal(places, above)
    same = same and np.allclose(found, exact.reshape(-1)[above], rtol=_TOLERANCE, atol=0)
    for fault in (np.nan, np.inf, -np.inf):
        x[3, 200] = fault
        kernel(x, top, least, total)
        same = same and np.flatnonzero(np.isnan(least)).tolist() == [3]
    if not (same and _counts(kernel)):
        raise MeasurementError(
            "compiled=True: the kernel that the compiler made does not give NumPy's numbers here; set CC to another "
            "compiler, or leave compiled out"
        )
    return kernel


def _counts(kernel: Kernel) -> bool:
    """Say whether pairs are counted as NumPy counts them, with entries below, at and above a carry."""
    rng = np.random.default_rng(1)
    confidence = np.concatenate([1 - 0.99 * rng.random(500) ** 3, [1, 2**-7, 0.5, 0.5]]).astype(np.float32)
    correct = rng.integers(0, 2, len(confidence))
    bits, lacking = confidence.view(np.int32), (np.float32(1) - confidence).view(np.int32)
    at = lacking >> 15 | correct << 15
    entries = rng.integers(0, 90, 1 << 16) << 31
    entries[at] += (1 << 31) - bits.astype(np.int64) - rng.integers(0, 2, len(at))
    expected, table = np.zeros((2, 91), dtype=np.int64)
    np.add.at(expected, entries[at] + bits >> 31, (confidence.astype(np.float64) + 2.0**22).view(np.int64))
    kernel.count(confidence, correct, entries, 2.0**22, table)
    return np.array_equal(expected, table)
