"""A training's record for xarray and pandas: `open_archive(path).to_xarray()` and `.to_pandas()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArchiveError
from .tables import epochs_at

if TYPE_CHECKING:
    from .reader import Archive


def to_xarray(archive: Archive, *, superseded: bool = False) -> Any:
    """Return the record as an xarray.DataTree: a dataset for each quantity, one for the events.

    `tree["gradient_norm/value"]` has the dimensions (step, name), the coordinates `step`, `name` and `epoch` (how many
    epochs had ended at that step), units and a description. Rows that a resumed run has overtaken are left out, or
    come with a coordinate `superseded`. The run's settings are attributes of the root. Raises ArchiveError without
    xarray, or a record.
    """
    xr = _library("xarray", "DataTree")
    history = _recorded(archive)
    epochs = epochs_at(history)
    found: dict[str, Any] = {"/": xr.Dataset(attrs=_attributes(archive.run))}
    for name in history.names:
        series = history[name] if superseded else history[name].current()
        about = {k: v for k, v in (("units", series.units), ("long_name", series.doc)) if v}
        coordinates = {
            "step": ("step", series.steps, {"long_name": "optimizer steps taken"}),
            "name": ("name", np.array(series.names, dtype=object)),
            "epoch": ("step", epochs(series.steps), {"long_name": "epochs ended at this step"}),
        }
        if superseded:
            coordinates["superseded"] = ("step", series.superseded)
        found[f"/{name}"] = xr.Dataset({"value": (("step", "name"), series.values, about)}, coordinates)
    events = [e for e in history.events if superseded or not e.superseded]
    if events:
        kinds = {"step": np.int64, "kind": object, "message": object, "seconds": float}
        columns = {c: ("event", np.array([getattr(e, c) for e in events], dtype=k)) for c, k in kinds.items()}
        found["/events"] = xr.Dataset(columns)
    return xr.DataTree.from_dict(found)


def to_pandas(archive: Archive, quantity: str | None = None, *, superseded: bool = False) -> Any:
    """Return the record as a pandas.DataFrame by step: of one quantity, or of all side by side.

    Columns are the quantity's own, or (quantity, name) pairs of all: `frame["loss"]["loss"]`; what was not recorded
    at a step is NaN. Rows that a resumed run has overtaken are left out, or come with a column `superseded` (of one
    quantity only). Raises ArchiveError without pandas, or a record; KeyError for a quantity that was not recorded.
    """
    pd = _library("pandas", "DataFrame")
    history = _recorded(archive)
    if quantity is not None:
        series = history[quantity] if superseded else history[quantity].current()
        frame = pd.DataFrame(series.values, pd.Index(series.steps, name="step"), list(series.names))
        if superseded:
            frame["superseded"] = series.superseded
        return frame
    if superseded:
        raise ArchiveError("rows that were overtaken have no place beside those that stand; ask for one quantity")
    frames = {}
    for name in history.names:
        frame = to_pandas(archive, name)
        # Several rows of one step, as of numbers that were logged one by one, are one row: the last of each column.
        frames[name] = frame if frame.index.is_unique else frame.groupby(level=0).last()
    return pd.concat(frames, axis=1, names=["quantity", "name"]).sort_index()


def _recorded(archive: Archive) -> Any:
    if not archive.history:
        raise ArchiveError(
            f"{archive.path} has no record of a training; its results open with "
            f"xarray.open_dataset(path, engine='h5netcdf', group=entry.group)"
        )
    return archive.history


def _library(name: str, needed: str) -> Any:
    import importlib

    try:
        library = importlib.import_module(name)
    except ImportError:
        raise ArchiveError(f"this needs {name}: pip install {name}") from None
    if not hasattr(library, needed):
        raise ArchiveError(f"this needs a newer {name}, with {needed}: pip install -U {name}")
    return library


def _attributes(run: Any) -> dict[str, Any]:
    return {k: v for k, v in run.items() if isinstance(v, str | int | float)}
