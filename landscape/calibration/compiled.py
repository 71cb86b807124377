"""The pass over class logits as a C kernel, where the user asks for it and a compiler is at hand."""

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

_SOURCE = Path(__file__).with_name("kernel.c")
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
    """Goes through float32 logits; `load` makes one."""

    function: Any

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
        self.function(*_places(x, top, least, total), of, 0.0, None, None, None, None, None)

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
        count = self.function(*_places(x, top, least, total), of, share, kept, *rest)
        return places[:count].copy(), found[:count].copy()


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
            command = [*compiler, *_FLAGS, native, "-shared", "-fPIC", "-o", str(made), str(_SOURCE)]
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
        function = ctypes.CDLL(str(file)).landscape_sweep
    except OSError as error:
        raise MeasurementError(
            f"compiled=True: the kernel cannot be loaded ({error}); set TMPDIR to a folder whose files may be run, or "
            "leave compiled out"
        ) from None
    pointer, whole = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, whole, whole, *[pointer] * 4, ctypes.c_double, *[pointer] * 5]
    function.restype = whole
    return Kernel(function)


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
    if not same:
        raise MeasurementError(
            "compiled=True: the kernel that the compiler made does not give NumPy's numbers here; set CC to another "
            "compiler, or leave compiled out"
        )
    return kernel
