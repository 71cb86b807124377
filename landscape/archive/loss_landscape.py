"""The surface files of tomgoldstein/loss-landscape (Li et al. 2018), read and written.

    xcoordinates (nx,), ycoordinates (ny,)     steps; a file without ycoordinates is a line
    train_loss, train_acc, test_loss, test_acc (nx,) or (nx, ny); accuracies in percent; -1: not filled
    min_eig, max_eig                           the same; 1 and -1: not filled
    dir_file                                   the path of the direction file, with xdirection/0..n, ydirection/0..n

Their program fills the flat array of shape (nx, ny) in the order of numpy.meshgrid(x, y), whose shape is (ny, nx): read
as it is written there, entry k belongs to x[k % nx], y[k // nx], on square grids and others. Here it is [alpha, beta].
"""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import ArchiveError
from ..results import Check, Result
from ..surface.fields import EigenvalueMap
from ..surface.slices import Line, Plane
from .convert import exporter
from .reader import Entry, _line

SPLITS = ("train", "test")
UNFILLED = -1.0
#: Denominators up to which an accuracy is known to be a share of so many samples: two fractions below it differ by
#: more than rounding does (1e-14 against 1e-16).
MOST_SAMPLES = 10**7
#: HDF5's deflate makes data smaller by this factor at most.
PACKED = 1100


@dataclass(frozen=True)
class Imported:
    """What a surface file holds: a Line or Plane for each split, and an EigenvalueMap where there is one."""

    results: tuple[Result, ...]
    name: str


def read_surface(path: str | os.PathLike[str], directions: str | os.PathLike[str] | None = None) -> Imported:
    """Read a surface file, and the direction file beside it where there is one, for norms and the angle.

    `directions` names the direction file; by default the one that the surface file names is looked for, there and
    beside it. What the file doesn't tell is NaN, and said: the checkpoint's own loss, standard errors, the number of
    samples.

    Raises ArchiveError for a file that is missing, damaged, an archive of ours or no such surface.
    """
    where = Path(path)
    with _opened(where) as file:
        names = [_text(name) for name in file]  # in a damaged file, `in` may deny what is listed, and reading says why
        if "format" in file.attrs and "xcoordinates" not in names:
            raise ArchiveError(f"{where} is an archive already: `landscape show` reads it")
        if "xcoordinates" not in names:
            what = next((w for k, w in _OTHERS.items() if k in names), "no surface file of loss-landscape")
            raise ArchiveError(f"{where} is {what}: it has no xcoordinates (it holds {_some(names)})")
        x = _steps(where, file, "xcoordinates")
        y = _steps(where, file, "ycoordinates") if "ycoordinates" in names else None
        found = {k: _field(where, file, k, x, y) for k in _FIELDS if k in names}
        held = file["dir_file"] if "dir_file" in names else None
        dir_file = _text(held[()]) if isinstance(held, h5py.Dataset) and held.shape == () else ""
        left = sorted(set(names) - {*_FIELDS, "xcoordinates", "ycoordinates", "dir_file"})
    about = _directions(where, dir_file, directions, y is not None)
    notes = [
        "read from a surface file of loss-landscape, which doesn't hold the checkpoint's own loss, standard errors or "
        "the number of samples",
        about.said,
        *([f"not read: {_some(left)}"] if left else []),
    ]
    results: list[Result] = []
    for split in SPLITS:
        if f"{split}_loss" in found:
            results.append(_slice(split, x, y, found, dir_file, about, tuple(notes)))
    if "max_eig" in found and "min_eig" in found:
        results.append(_eigenvalues(x, y, found, dir_file, about, tuple(notes)))
    if not results:
        raise ArchiveError(f"{where} has coordinates, but neither losses nor eigenvalues over them yet")
    return Imported(tuple(results), where.stem)


@exporter("loss-landscape", "")
def write_surface(entries: Sequence[Entry]) -> bytes:
    """The HDF5 surface file of tomgoldstein/loss-landscape, which its plotting programs read.

    Takes the last plane of each split, else the last line, and the last eigenvalue map on the same steps. Points that
    were not evaluated and not interpolated are -1, "not filled" there; interpolated ones are written as losses, and the
    additional dataset "evaluated" tells them apart.
    """
    slices = _last_slices(entries)
    first = slices[0] if slices else None
    eigenvalues: Any = _last_map(entries, first)
    if first is None and eigenvalues is None:
        kinds = ", ".join(dict.fromkeys(e.kind for e in entries))
        raise ArchiveError(
            f"there is no plane, line or eigenvalue map to write (the archive holds {kinds or 'nothing'})"
        )
    source: Any = first if first is not None else eigenvalues
    alone = source.kind == "line" or bool(source.settings.get("one_dimensional"))
    beside = None if alone else np.asarray(source.beta)
    # HDF5 tells files in memory apart by their names; this one is stored nowhere.
    with h5py.File(uuid.uuid4().hex, "w", driver="core", backing_store=False) as file:
        file["dir_file"] = str(source.settings.get("dir_file", ""))
        file["xcoordinates"] = np.asarray(source.alpha)
        if beside is not None:
            file["ycoordinates"] = beside
        for one in slices:
            unfilled = _unfilled(one)
            for split, loss, accuracy in _held(one, {r.split for r in slices}):
                file[f"{split}_loss"] = _laid_out(np.where(unfilled, UNFILLED, loss))
                if accuracy is not None:
                    percent = np.vectorize(to_percent, otypes=[float])(accuracy)
                    file[f"{split}_acc"] = _laid_out(np.where(unfilled, UNFILLED, percent))
            if isinstance(one, Plane) and "evaluated" not in file and bool((~one.evaluated & ~unfilled).any()):
                file["evaluated"] = _laid_out(np.asarray(one.evaluated, dtype=np.int8))
        if eigenvalues is not None:
            empty = np.isnan(eigenvalues.largest) & np.isnan(eigenvalues.smallest)
            keep = (slice(None), 0) if alone else (slice(None), slice(None))
            file["min_eig"] = _laid_out(np.where(empty, 1.0, eigenvalues.smallest)[keep])
            file["max_eig"] = _laid_out(np.where(empty, UNFILLED, eigenvalues.largest)[keep])
        file.flush()
        return file.id.get_file_image()


def to_share(percent: float) -> float:
    """Return 100 c / n percent as c / n: the share itself, not the rounded percentage divided by 100.

    So that `to_percent` gives the same bits back. What is no share of at most ten million samples is divided.
    """
    if not math.isfinite(percent):
        return percent
    simple = (Fraction(percent) / 100).limit_denominator(MOST_SAMPLES)
    return float(simple) if float(100 * simple) == percent else percent / 100


def to_percent(share: float) -> float:
    """Return c / n as 100 c / n, rounded once; see `to_share`."""
    if not math.isfinite(share):
        return share
    simple = Fraction(share).limit_denominator(MOST_SAMPLES)
    return float(100 * simple) if float(simple) == share else 100 * share


# Reading ------------------------------------------------------------------------------------------------------

_FIELDS = ("train_loss", "train_acc", "test_loss", "test_acc", "min_eig", "max_eig")
_OTHERS = {
    "proj_xcoord": "a projected trajectory of loss-landscape, not its surface",
    "xdirection": "a direction file of loss-landscape, not a surface",
}


@dataclass(frozen=True)
class _About:
    """What the direction file tells: norms, cosine, and how it is said."""

    norms: tuple[float, float]
    cosine: float
    labels: tuple[str, str]
    said: str


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Yield the HDF5 file at `path`, read-only. What reading it raises inside becomes an ArchiveError: damaged."""
    try:
        if not path.is_file():
            raise ArchiveError(f"no surface file at {path}; check the path")
        with path.open("rb") as head:
            empty = not head.read(1)
        if empty or not h5py.is_hdf5(path):
            what = "is empty" if empty else "is no HDF5 file"
            raise ArchiveError(f"{path} {what}, so it is no surface file of loss-landscape; check the path")
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ArchiveError:
        raise
    except PermissionError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # of a damaged file, HDF5 raises nearly anything
        raise ArchiveError(f"{path} is cut short or damaged ({_line(error)}); copy it again") from error


def _numbers(path: Path, file: h5py.File, key: str) -> np.ndarray:
    held = file[key]
    if not isinstance(held, h5py.Dataset) or held.dtype.kind not in "fiu":
        raise ArchiveError(f"{key} of {path} can't be read as numbers; copy the file again")
    if held.nbytes > max(10**7, PACKED * path.stat().st_size):  # before anything of a damaged shape is read
        raise ArchiveError(f"{key} of {path} has shape {held.shape}, more than the file can hold: damaged")
    return np.asarray(held[()], dtype=float)


def _steps(path: Path, file: h5py.File, key: str) -> np.ndarray:
    values = _numbers(path, file, key)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ArchiveError(f"{key} of {path} are not a list of finite steps")
    if len(values) > 1 and not (np.diff(values) > 0).all():
        raise ArchiveError(f"{key} of {path} do not increase: write them from low to high")
    return values


def _field(path: Path, file: h5py.File, key: str, x: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    values = _numbers(path, file, key)
    expected = (len(x),) if y is None else (len(x), len(y))
    if values.shape != expected:
        raise ArchiveError(f"{key} of {path} has shape {values.shape}, its coordinates {expected}: damaged or mixed up")
    return values if y is None else values.ravel().reshape(len(y), len(x)).T


def _laid_out(values: np.ndarray) -> np.ndarray:
    """Return [alpha, beta] as it lies in their files; a line as it is."""
    return values if values.ndim == 1 else np.ascontiguousarray(values.T).ravel().reshape(values.shape)


def _slice(
    split: str,
    x: np.ndarray,
    y: np.ndarray | None,
    found: dict[str, np.ndarray],
    dir_file: str,
    about: _About,
    notes: tuple[str, ...],
) -> Result:
    loss, percent = found[f"{split}_loss"], found.get(f"{split}_acc")
    unfilled = loss == UNFILLED
    if percent is not None:
        unfilled &= percent == UNFILLED  # a loss of -1 with an accuracy is a loss
    loss = np.where(unfilled, np.nan, loss)
    share = None if percent is None else np.vectorize(to_share, otypes=[float])(np.where(unfilled, np.nan, percent))
    missing = int(unfilled.sum())
    at = np.flatnonzero(x == 0)
    center = math.nan
    if len(at):
        if y is None:
            center = float(loss[at[0]])
        elif (y == 0).any():
            center = float(loss[at[0], np.flatnonzero(y == 0)[0]])
    wrong = int((~np.isfinite(loss) & ~unfilled).sum())
    made = [
        Check(
            "center",
            "warn",
            "the file doesn't hold the checkpoint's own loss, so the center can't be compared with it",
        ),
        Check(
            "finite",
            "warn" if wrong else "pass",
            f"{wrong} of {loss.size - missing} points are not finite",
            wrong / max(1, loss.size - missing),
            0.0,
        ),
    ]
    if missing:
        made.append(
            Check("filled", "warn", f"{missing} of {loss.size} points are not filled", missing / loss.size, 0.0)
        )
    common: dict[str, Any] = {
        "status": "partial" if missing else "complete",
        "loss": loss,
        "accuracy": share,
        "center_loss": center,
        "checkpoint_loss": math.nan,
        "split": split,
        "batchnorm": "unknown",
        "checks": tuple(made),
        "notes": notes,
    }
    settings: dict[str, Any] = {"imported_from": "loss-landscape", "dir_file": dir_file}
    if y is None:
        settings["unfilled"] = np.flatnonzero(unfilled).tolist()
        return Line(alpha=x, direction=about.labels[0], direction_norm=about.norms[0], settings=settings, **common)
    return Plane(
        alpha=x,
        beta=y,
        evaluated=~unfilled,
        error=math.nan if missing else 0.0,  # of what was not filled, nothing is known
        error_p95=math.nan if missing else 0.0,
        cosine=about.cosine,
        direction_norms=np.array(about.norms),
        directions=about.labels,
        settings=settings,
        **common,
    )


def _eigenvalues(
    x: np.ndarray,
    y: np.ndarray | None,
    found: dict[str, np.ndarray],
    dir_file: str,
    about: _About,
    notes: tuple[str, ...],
) -> EigenvalueMap:
    largest, smallest = found["max_eig"], found["min_eig"]
    unfilled = (largest == UNFILLED) & (smallest == 1.0)
    column = (lambda v: v[:, None]) if y is None else (lambda v: v)
    missing = int(unfilled.sum())
    unknown = np.full(column(largest).shape, np.nan)
    return EigenvalueMap(
        status="partial" if missing else "complete",
        alpha=x,
        beta=np.zeros(1) if y is None else y,
        largest=column(np.where(unfilled, np.nan, largest)),
        smallest=column(np.where(unfilled, np.nan, smallest)),
        largest_residual=unknown,
        smallest_residual=unknown,
        converged=np.zeros(unknown.shape, dtype=bool),
        products=np.zeros(unknown.shape, dtype=int),
        cosine=about.cosine,
        direction_norms=np.array(about.norms),
        directions=about.labels,
        batchnorm="unknown",
        settings={"imported_from": "loss-landscape", "dir_file": dir_file, "one_dimensional": y is None},
        checks=(
            Check(
                "convergence",
                "warn",
                "the file holds no residuals; eigenvalues of loss-landscape are those of the batches' sum, over "
                "parameters of more than one dimension",
            ),
        ),
        notes=notes,
    )


def _directions(path: Path, named: str, given: str | os.PathLike[str] | None, two: bool) -> _About:
    """Return norms and angle of the directions, from their file where there is one."""
    unknown = (math.nan, math.nan)
    own = os.path.basename(named.replace("\\", "/"))
    labels = (f"xdirection of {own}" if own else "unknown", f"ydirection of {own}" if own else "unknown")
    candidates = [Path(given)] if given is not None else [Path(named), path.with_name(own)] if own else []
    file = next((c for c in candidates if c.is_file()), None)
    if file is None:
        if given is not None:
            raise ArchiveError(f"no direction file at {given}; check the path")
        said = f"its direction file ({own}) is not beside it" if own else "it names no direction file"
        return _About(unknown, math.nan, labels, f"{said}: norms and angle of the directions are unknown")
    with _opened(file) as opened:
        if "xdirection" not in opened or (two and "ydirection" not in opened):
            raise ArchiveError(
                f"{file} is no direction file for this surface: it holds {_some([_text(name) for name in opened])}"
            )
        first = _vector(file, opened, "xdirection")
        if not two:
            return _About((float(np.linalg.norm(first)), math.nan), math.nan, labels, f"directions from {file.name}")
        second = _vector(file, opened, "ydirection")
    if first.shape != second.shape:
        raise ArchiveError(f"the two directions of {file} have {first.size} and {second.size} numbers: damaged")
    norms = float(np.linalg.norm(first)), float(np.linalg.norm(second))
    cosine = float(first @ second) / (norms[0] * norms[1]) if norms[0] * norms[1] else math.nan
    return _About(norms, cosine, labels, f"norms and angle of the directions are those of {file.name}")


def _vector(path: Path, file: h5py.File, key: str) -> np.ndarray:
    group = file[key]
    if not isinstance(group, h5py.Group):
        raise ArchiveError(f"{key} of {path} is no group of tensors: damaged")
    parts = [_numbers(path, file, f"{key}/{i}").ravel() for i in range(len(group)) if f"{i}" in group]
    return np.concatenate(parts) if parts else np.empty(0)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") or "nothing"


# Writing ------------------------------------------------------------------------------------------------------


def _last_slices(entries: Sequence[Entry]) -> list[Any]:
    """Return the last plane of each split, all on the steps of the first; lines where there is no plane."""
    for kind in ("plane", "line"):
        last: dict[str, Any] = {}
        for entry in entries:
            if entry.kind == kind and entry.status != "failed":
                result: Any = entry.result
                last[result.split] = result
        found = [last[s] for s in SPLITS if s in last]
        if found:
            return [r for r in found if _same_steps(found[0], r)]
    return []


def _held(one: Any, splits: set[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yield (split, loss, accuracy) of a slice, and of the other split where it was measured along with it."""
    yield one.split, one.loss, one.accuracy
    other = next((s for s in SPLITS if s != one.split), "")
    if one.held_out_loss is not None and other not in splits:
        yield other, one.held_out_loss, one.held_out_accuracy


def _last_map(entries: Sequence[Entry], beside: Any) -> Any:
    maps: list[Any] = [e.result for e in entries if e.kind == "eigenvalue_map" and e.status != "failed"]
    fitting = [m for m in maps if beside is None or _same_steps(beside, m)]
    return fitting[-1] if fitting else None


def _same_steps(a: Any, b: Any) -> bool:
    if not np.array_equal(a.alpha, b.alpha):
        return False
    first, second = (np.asarray(getattr(r, "beta", np.zeros(1))) for r in (a, b))
    return np.array_equal(first, second)


def _unfilled(one: Any) -> np.ndarray:
    """Return where nothing is known: neither evaluated nor interpolated."""
    if isinstance(one, Line):
        mask = np.zeros(np.shape(one.loss), dtype=bool)
        mask[list(one.settings.get("unfilled", []))] = True
        return mask
    return ~np.asarray(one.evaluated, dtype=bool) & np.isnan(one.loss)
