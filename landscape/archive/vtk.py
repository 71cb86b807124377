"""Surfaces as polygons for ParaView: VTK's XML PolyData (.vtp) and its legacy form (.vtk), both in text.

Written here: a mesh of one sheet takes forty lines, and the libraries that write it (vtk itself, 100 MB) are no light
dependency. Numbers are Python's shortest that read back as the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from ..errors import ArchiveError
from .convert import exporter
from .reader import Entry

_OPTIONS = {
    "split": "train or test: the split whose plane is written (default: the last plane)",
    "height": "loss, log10 (of the loss) or flat: what the third coordinate is (default loss)",
}


@dataclass(frozen=True)
class Mesh:
    """A sheet: points (n, 3), quadrilaterals (m, 4) of their numbers, and numbers at the points by name (n,)."""

    points: np.ndarray
    quads: np.ndarray
    data: dict[str, np.ndarray]
    title: str


@exporter("vtp", ".vtp", _OPTIONS)
def make_vtp(entries: Sequence[Entry], *, split: str | None = None, height: str = "loss") -> bytes:
    """VTK's XML PolyData: the plane as a surface of quadrilaterals, for ParaView.

    x and y are the steps along the two directions, z the height. Loss, accuracy, and whether a point was evaluated lie
    at the points. A point that is not finite is a hole: neither it nor the faces at it are written.
    """
    mesh = _mesh(entries, split, height)
    n, m = len(mesh.points), len(mesh.quads)
    arrays = "".join(
        f'        <DataArray type="Float64" Name={quoteattr(name)} format="ascii">\n'
        f"{_rows(values)}        </DataArray>\n"
        for name, values in mesh.data.items()
    )
    return (
        '<?xml version="1.0"?>\n'
        f"<!-- {mesh.title.replace('--', '- -')} -->\n"
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64">\n'
        "  <PolyData>\n"
        f'    <Piece NumberOfPoints="{n}" NumberOfVerts="0" NumberOfLines="0" NumberOfStrips="0" NumberOfPolys="{m}">\n'
        '      <PointData Scalars="loss">\n'
        f"{arrays}"
        "      </PointData>\n"
        "      <Points>\n"
        '        <DataArray type="Float64" Name="Points" NumberOfComponents="3" format="ascii">\n'
        f"{_rows(mesh.points)}"
        "        </DataArray>\n"
        "      </Points>\n"
        "      <Polys>\n"
        '        <DataArray type="Int64" Name="connectivity" format="ascii">\n'
        f"{_rows(mesh.quads)}"
        "        </DataArray>\n"
        '        <DataArray type="Int64" Name="offsets" format="ascii">\n'
        f"{_rows(4 * np.arange(1, m + 1))}"
        "        </DataArray>\n"
        "      </Polys>\n"
        "    </Piece>\n"
        "  </PolyData>\n"
        "</VTKFile>\n"
    ).encode()


@exporter("vtk", ".vtk", _OPTIONS)
def make_vtk(entries: Sequence[Entry], *, split: str | None = None, height: str = "loss") -> bytes:
    """VTK's legacy PolyData (version 3.0): the same surface as vtp, for older programs."""
    mesh = _mesh(entries, split, height)
    n, m = len(mesh.points), len(mesh.quads)
    fields = "".join(f"{name} 1 {n} double\n{_rows(values)}" for name, values in mesh.data.items())
    title = mesh.title.encode("ascii", "replace").decode()[:255]  # the format's limit is 256 with its newline
    faces = np.column_stack([np.full(m, 4), mesh.quads])
    return (
        f"# vtk DataFile Version 3.0\n{title}\nASCII\nDATASET POLYDATA\n"
        f"POINTS {n} double\n{_rows(mesh.points)}"
        f"POLYGONS {m} {5 * m}\n{_rows(faces)}"
        f"POINT_DATA {n}\nFIELD FieldData {len(mesh.data)}\n{fields}"
    ).encode("ascii")


def _mesh(entries: Sequence[Entry], split: str | None, height: str) -> Mesh:
    if height not in ("loss", "log10", "flat"):
        raise ArchiveError(f"height={height!r} is not one of loss, log10 and flat")
    found: list[tuple[Entry, Any]] = [
        (e, r)
        for e in entries
        if e.kind == "plane" and e.status != "failed"
        for r in [e.result]
        if split is None or getattr(r, "split", None) == split
    ]
    if not found:
        kinds = ", ".join(dict.fromkeys(e.kind for e in entries))
        of = f" of the {split} data" if split else ""
        raise ArchiveError(f"there is no plane{of} to write as a surface (the archive holds {kinds or 'nothing'})")
    entry, plane = found[-1]
    loss = np.asarray(plane.loss, dtype=float)
    there = np.isfinite(loss) if height != "log10" else np.isfinite(loss) & (loss > 0)
    if not there.any():
        raise ArchiveError(
            "no point of this plane is finite: there is no surface to write"
            if height != "log10"
            else "no loss of this plane is above 0: it has no logarithm; give --option height=loss"
        )
    z = np.zeros_like(loss) if height == "flat" else loss
    if height == "log10":
        z = np.log10(np.where(there, loss, 1.0))
    a, b = np.meshgrid(plane.alpha, plane.beta, indexing="ij")
    number = np.full(loss.shape, -1)
    number[there] = np.arange(int(there.sum()))
    corners = np.stack([number[:-1, :-1], number[1:, :-1], number[1:, 1:], number[:-1, 1:]], axis=-1).reshape(-1, 4)
    data = {"loss": loss, "evaluated": np.asarray(plane.evaluated, dtype=float)}
    for name in ("accuracy", "held_out_loss", "held_out_accuracy"):
        values = getattr(plane, name, None)
        # A text without a NaN: not every reader of these formats takes one.
        if values is not None and bool(np.isfinite(np.asarray(values)[there]).all()):
            data[name] = np.asarray(values, dtype=float)
    return Mesh(
        np.column_stack([v[there] for v in (a, b, z)]),
        corners[(corners >= 0).all(axis=1)],
        {name: values[there] for name, values in data.items()},
        f"{plane.split} loss over {' and '.join(d or 'an unknown direction' for d in plane.directions)}, "
        f"{entry.subject.label}".replace("\n", " "),
    )


def _rows(values: np.ndarray) -> str:
    """Return a row of numbers a line, each so that it reads back as the same bits."""
    rows = values.tolist()
    return "".join(" ".join(map(repr, r)) + "\n" if isinstance(r, list) else f"{r!r}\n" for r in rows)
