"""An archive's seal: damage anywhere is said before HDF5 reads it, and sound, older and foreign files read as ever."""

from __future__ import annotations

import re
from pathlib import Path

import archive_fuzz
import h5py
import numpy as np
import pytest
from recorded_world import begin, pairs, session

from landscape import open_archive, save_archive
from landscape.archive import seal
from landscape.archive.compaction import compact
from landscape.errors import ArchiveError

SAID = re.compile(r"damaged|not an HDF5 file|cut short|no archive")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return save_archive(tmp_path / "run.h5", [pairs(2.0), pairs(3.0)])


@pytest.mark.parametrize("kind", archive_fuzz.KINDS)
def test_every_damage_is_said_in_one_line(archive, kind):
    for bad in archive_fuzz.variants_of(archive.read_bytes(), kind, 60, seed=0):
        archive.write_bytes(bad)
        with pytest.raises(ArchiveError, match=SAID) as error:
            open_archive(archive)
        assert "\n" not in str(error.value)


def test_damage_to_any_part_of_the_seal_is_said(archive):
    whole = archive.read_bytes()
    for place in (2, 10, 17, 20, 30, 36, 37, 40, 41):
        bad = bytearray(whole)
        bad[-place] ^= 4
        archive.write_bytes(bytes(bad))
        with pytest.raises(ArchiveError, match="is damaged"):
            open_archive(archive)
        archive.write_bytes(whole[: 1 - place])
        with pytest.raises(ArchiveError, match="is damaged"):
            open_archive(archive)
    own = seal.own_end(whole[:48])
    archive.write_bytes(whole[:own])  # all of the seal is gone, and nothing else
    assert len(open_archive(archive).entries) == 2
    archive.write_bytes(whole[: own - 1])
    with pytest.raises(ArchiveError, match="is damaged: it is cut short"):
        open_archive(archive)


def test_a_file_without_a_seal_is_read_as_ever(archive):
    with h5py.File(archive, "r+") as file:  # as another program does: HDF5 cuts the seal off
        file["own"] = 1.0
    assert len(open_archive(archive).entries) == 2
    assert seal._known(archive) is None
    save_archive(archive, [pairs(4.0)], append=True)
    assert seal._known(archive) is not None
    assert len(open_archive(archive).entries) == 3


def test_large_data_are_checked_when_their_rows_are_read_and_before_they_are_copied(tmp_path, monkeypatch):
    monkeypatch.setattr(seal, "LARGE", 1 << 20)
    path = begin(tmp_path / "run.h5")
    session(path, range(20_000), columns={"gradient_norm": [f"layer{i}" for i in range(30)]})
    compact(path, "complete")
    known = seal._known(path)
    assert known is not None
    assert 0.5 < known.deferred.mean() < 1
    value = open_archive(path).history["gradient_norm"].values
    whole = path.read_bytes()
    place = whole.index(value[12_345].tobytes())
    path.write_bytes(whole[: place + 5] + bytes([whole[place + 5] ^ 1]) + whole[place + 6 :])
    history = open_archive(path).history
    assert len(history["loss"].steps) == 20_000
    with pytest.raises(ArchiveError, match=r"is damaged: \d+ of \d+ blocks"):
        history["gradient_norm"]
    with pytest.raises(ArchiveError, match=r"is damaged: \d+ of \d+ blocks"):
        save_archive(path, [pairs(4.0)], append=True)


def test_the_checksum_tells_every_change_of_two_words_and_every_exchange():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 1 << 63, seal.BLOCK // 8, dtype=np.uint64)
    whole = seal._checksums(words.view(np.uint8))[0]
    for _ in range(100):
        a, b = rng.choice(len(words), 2, replace=False)
        other = words.copy()
        other[a] += np.uint64(1)
        other[b] -= np.uint64(1)  # the sum of all stays
        assert seal._checksums(other.view(np.uint8))[0] != whole
        other = words.copy()
        other[[a, b]] = other[[b, a]]
        assert seal._checksums(other.view(np.uint8))[0] != whole


@pytest.mark.slow
def test_no_command_hangs_crashes_or_shows_a_damaged_archives_numbers():
    rows = list(archive_fuzz.fuzz(seed=1, variants=20))
    assert rows
    assert [r for r in rows if r["end"] != "told"] == []
