"""One Result as bytes, to go from one process to another: a small HDF5 file in memory, laid out as in an archive."""

from __future__ import annotations

import io
from dataclasses import dataclass

import h5py

from ..results import Result, rebuild
from .groups import encode, read_attributes, read_variables, write_group
from .schema import RESULTS, Subject, unpack


@dataclass(frozen=True)
class Parcel:
    """A Result, what it belongs to, and the request that it answers, as `ArchiveWriter.add` is told them."""

    result: Result
    subject: Subject
    asked: str = ""

    @property
    def status(self) -> str:
        """Return complete, partial or failed: how the measurement ended."""
        return self.result.status

    def pack(self) -> bytes:
        """Return it as bytes; ArchiveError where an archive could not store the Result either."""
        encoded = encode(self.result, self.subject)
        image = io.BytesIO()
        with h5py.File(image, "w", track_order=True) as file:
            about = {"kind": encoded.kind, "asked": self.asked}
            write_group(file, RESULTS, encoded, about)
        return image.getvalue()


def unpack_parcel(data: bytes) -> Parcel:
    """Return what was packed: the Result is a `StoredResult` where its class is not known in this process."""
    with h5py.File(io.BytesIO(data), "r") as file:
        group = file[RESULTS]
        assert isinstance(group, h5py.Group)
        attributes, subject = read_attributes(group)
        about = unpack({name: group.attrs[name] for name in ("kind", "asked")})
        return Parcel(rebuild(about["kind"], read_variables(group), attributes), subject, about["asked"])
