"""Results on their way between processes, and results of several at a time in one archive: as of one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from landscape import Result, array
from landscape.archive import writer
from landscape.archive.parcel import Parcel, unpack_parcel
from landscape.archive.reader import open_archive
from landscape.archive.schema import Subject, dump_json
from landscape.archive.writer import ArchiveWriter
from landscape.results import Check, Cost

FIXED = {"run_id": "r", "created": "2026-01-01T00:00:00Z"}


@dataclass(frozen=True, kw_only=True)
class Odd(Result, kind="odd_parcel"):
    value: float = array(units="seconds", stderr="error", doc="a number")
    error: float = array(doc="its error")
    names: np.ndarray = array("row", doc="words")
    flags: np.ndarray = array("row", doc="bools")
    half: np.ndarray = array("row", "column", doc="of half precision")


def odd(i: int = 0) -> Odd:
    return Odd(
        value=0.1 + i,
        error=float("nan"),
        names=np.array(["", "ä"]),
        flags=np.array([True, False]),
        half=np.full((2, 3), 0.1, dtype=np.float16),
        settings={"k": [1, None, float("inf")]},
        notes=("one", "two"),
        checks=(Check("bound", "warn", "look"),),
        cost=Cost(passes=3, seconds=0.5),
    )


SUBJECT = Subject("a.pt", "ab", "t.py:t", step=3, name="a", facts={"seed": 0, "nan": float("nan"), "on": True})


def written(path: Path, *parcels: Parcel, ranks: tuple[int, ...] = ()) -> str:
    with ArchiveWriter(path, attributes=FIXED) as archive:
        for i, p in enumerate(parcels):
            archive.add(p.result, subject=p.subject, asked=p.asked, rank=ranks[i] if ranks else 0)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_parcel_holds_what_an_archive_would(tmp_path):
    sent = Parcel(odd(), SUBJECT, '{"measurement": "odd"}')
    came = unpack_parcel(sent.pack())
    assert came.asked == sent.asked
    assert came.subject.key == SUBJECT.key
    assert isinstance(came.result, Odd)
    assert dump_json(came.result.attributes()) == dump_json(sent.result.attributes())
    # To the last byte: what is written of the one is what is written of the other.
    assert written(tmp_path / "came.h5", came) == written(tmp_path / "sent.h5", sent)


def test_results_of_several_at_a_time_are_archived_in_the_order_of_their_ranks(tmp_path):
    a, b, c = (Parcel(odd(i), Subject(f"{i}.pt"), f"{i}") for i in range(3))
    plain = written(tmp_path / "plain.h5", a, a, b, c)
    assert written(tmp_path / "mixed.h5", c, a, b, a, ranks=(2, 0, 1, 0)) == plain
    assert [e.subject.checkpoint for e in open_archive(tmp_path / "mixed.h5").entries] == [
        *["0.pt"] * 2,
        "1.pt",
        "2.pt",
    ]


@pytest.mark.parametrize("ranks", [(), (5, 4)])
def test_what_was_there_stays_before_what_is_added(tmp_path, ranks):
    a, b, c = (Parcel(odd(i), Subject(f"{i}.pt")) for i in range(3))
    written(tmp_path / "run.h5", c)
    with ArchiveWriter(tmp_path / "run.h5", attributes={**FIXED, "run_id": "s"}, mode="append") as archive:
        for i, p in enumerate((b, a)):
            archive.add(p.result, subject=p.subject, rank=ranks[i] if ranks else 0)
    found = [(e.subject.checkpoint, e.id) for e in open_archive(tmp_path / "run.h5").entries]
    later = ["0.pt", "1.pt"] if ranks else ["1.pt", "0.pt"]
    assert found == [("2.pt", "0001"), (later[0], "0002"), (later[1], "0003")]


def test_what_one_measurement_gives_is_stored_whole_or_not_at_all(tmp_path, monkeypatch):
    encode, calls = writer.encode, 0

    def interrupted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(writer, "encode", interrupted)

    def write() -> None:
        with ArchiveWriter(tmp_path / "run.h5") as archive:
            archive.add(odd(), asked="1")
            archive.add_all([odd(1), odd(2)], asked="2")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [e.asked for e in open_archive(tmp_path / "run.h5").entries] == ["1"]
