"""The compiled passes over logits and pairs: NumPy's numbers, ties and faults, and one line where it can't be made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_calibration_accumulator import assert_same

from landscape.calibration import compiled
from landscape.calibration.accumulator import CalibrationAccumulator
from landscape.errors import MeasurementError

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler here"
)


def logits_of(classes: int, scale: float, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(classes)
    z = torch.randn(400, classes, generator=g) * scale
    z[::3] = z[::3].round()  # ties, at the top too
    z[5] = 2.0
    return z.to(dtype), torch.randint(0, classes, (400,), generator=g).where(torch.arange(400) % 2 > 0, z.argmax(1))


def counted(batches: list[tuple[torch.Tensor, torch.Tensor]], **settings: Any) -> CalibrationAccumulator:
    accumulator = CalibrationAccumulator(**settings)
    for z, y in batches:
        accumulator.update(logits=z, labels=y)
    return accumulator


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (63, 4.0), (64, 30.0), (65, 0.1), (200, 1000.0)])
def test_it_gives_what_numpy_gives(classes: int, scale: float, dtype: torch.dtype) -> None:
    batch = logits_of(classes, scale, dtype)
    for settings in ({"scores": False, "classwise": False}, {"classwise": False}, {}):
        mine, plain = (counted([batch, batch], compiled=c, **settings).compute() for c in (True, False))
        # Rounding tells apart what is equal, which says where such predictions rank.
        assert_same(mine, plain, but=("aurc", "excess_aurc", "risk", "coverage"))


@needs_compiler
@pytest.mark.parametrize("scale", [1.0, 20.0, 1e30])
def test_confidences_are_those_of_float64(scale: float) -> None:
    z, y = logits_of(1000, scale)
    found = counted([(z, y)], compiled=True).totals()
    p = z.double().softmax(1)
    sure = p.amax(1)
    place = np.searchsorted(np.arange(1, 15) / 15, sure.numpy())
    assert found.table.counts.tolist() == np.bincount(place, minlength=15).tolist()
    assert int(found.table.correct.sum()) == int((z.numpy().argmax(1) == y.numpy()).sum())
    sums = np.bincount(place, sure.numpy(), minlength=15)
    np.testing.assert_allclose(found.table.confidence_sums, sums, rtol=1e-13, atol=0)


@needs_compiler
def test_the_first_of_equal_classes_wins_wherever_it_stands() -> None:
    for classes in (3, 64, 130, 1000):
        for first in {0, 1, 63, 64, 127, classes - 2} & set(range(classes - 1)):
            z = torch.zeros(1, classes)
            z[0, [first, classes - 1]] = 5.0
            for y, right in ((first, 1), (classes - 1, 0)):
                found = counted([(z, torch.tensor([y]))], compiled=True, exact=0).totals()
                assert int(found.table.correct.sum()) == right


@needs_compiler
@pytest.mark.parametrize("fault", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("column", [0, 40, 99])
def test_faults_are_named_and_leave_no_trace(fault: float, column: int) -> None:
    z, y = logits_of(100, 2.0)
    accumulator = counted([(z, y)], compiled=True)
    before = accumulator.compute()
    bad = z.clone()
    bad[17, column] = fault
    with pytest.raises(MeasurementError, match=r"logits must be finite.*row 17"):
        accumulator.update(logits=bad, labels=y)
    assert_same(accumulator.compute(), before)
    late = counted([(z, y), (bad, y)], compiled=True, defer=True)
    with pytest.raises(MeasurementError, match="row 17 of update 1"):
        late.compute()
    ignored = y.clone()
    ignored[17] = -1
    for defer in (False, True):
        found = counted([(bad, ignored)], compiled=True, defer=defer, ignore_index=-1).compute()
        rest = torch.arange(400) != 17
        assert_same(found, counted([(z[rest], y[rest])]).compute(), but=("label_counts",))


@needs_compiler
def test_merged_with_others_it_counts_all() -> None:
    first, second = logits_of(30, 2.0), logits_of(30, 5.0)
    mixed = counted([first], compiled=True).merge(counted([second]))
    assert_same(mixed.compute(), counted([first, second]).compute())
    assert CalibrationAccumulator().load_state_dict(mixed.state_dict()).samples == 800


# ------------------------------------------------------------------------------------------------ pairs


def pairs_of(n: int, least: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    c = 1 - (1 - least) * torch.rand(n, generator=g) ** 3
    c[:4] = torch.tensor([1.0, least, 0.2, 0.4])  # edges of five bins among them
    return c, (torch.rand(n, generator=g) < c).long()


def counted_pairs(batches: list[tuple[torch.Tensor, torch.Tensor]], **settings: Any) -> CalibrationAccumulator:
    accumulator = CalibrationAccumulator(**settings)
    for c, y in batches:
        accumulator.update(probabilities=c, labels=y)
    return accumulator


# Two edges that lie in one fine cell take the ordinary way, as does what is too small to be packed.
@needs_compiler
@pytest.mark.parametrize("edges", [5, 15, [0, 0.5, 0.50001, 0.50002, 1], [0, 0.9999999, 1]], ids=str)
@pytest.mark.parametrize("least", [2.0**-7, 1e-6, 0.0])
@pytest.mark.parametrize("kind", ["top-label", "binary"])
def test_pairs_are_counted_as_without_it(kind: Any, least: float, edges: Any) -> None:
    batches = [pairs_of(1000, least), pairs_of(200_000, least, 1), pairs_of(7, least, 2)]
    mine, plain = (
        counted_pairs(batches, kind=kind, confidence="positive", bins=edges, exact=0, scores=False, compiled=c).totals()
        for c in (True, False)
    )
    place = np.searchsorted(mine.table.edges[1:-1], np.concatenate([c.numpy().astype(float) for c, _ in batches]))
    assert mine.table.counts.tolist() == np.bincount(place, minlength=len(mine.table.counts)).tolist()
    for name in ("counts", "correct", "confidence_sums"):
        np.testing.assert_array_equal(getattr(mine.table, name), getattr(plain.table, name))
    for name in ("confidence", "counts", "correct", "wrong_sums"):
        np.testing.assert_array_equal(getattr(mine.atoms, name), getattr(plain.atoms, name))


@needs_compiler
def test_pairs_with_all_the_rest_are_counted_as_without_it() -> None:
    c, y = pairs_of(3000, 0.3)
    wide = torch.stack([c, -c], 1)[:, 0]  # not contiguous
    for rows in (c, wide, c.double(), c.half()):
        mine, plain = (counted_pairs([(rows, y)], kind="top-label", compiled=k).compute() for k in (True, False))
        assert_same(mine, plain)
    grouped = [
        CalibrationAccumulator(kind="top-label", compiled=k).update(
            probabilities=c, labels=y, groups=torch.arange(3000) // 7
        )
        for k in (True, False)
    ]
    assert_same(grouped[0].compute(), grouped[1].compute())


@needs_compiler
@pytest.mark.parametrize(
    ("score", "label"), [(1.5, 1), (float("nan"), 1), (-0.5, 1), (float("inf"), 0), (0.5, 2), (0.5, -1)]
)
def test_faulty_pairs_are_never_counted(score: float, label: int) -> None:
    good = pairs_of(500, 0.1)
    accumulator = counted_pairs([good], kind="top-label", compiled=True)
    before = accumulator.compute()
    c, y = (x.clone() for x in good)
    c[77], y[77] = score, label
    with pytest.raises(MeasurementError, match=r"row 77|outside the 2 classes|negative"):
        accumulator.update(probabilities=c, labels=y)
    assert_same(accumulator.compute(), before)


# ------------------------------------------------------------------------------------------------ no kernel


@pytest.fixture
def anew() -> Any:
    compiled.load.cache_clear()
    yield
    compiled.load.cache_clear()


def script(folder: Path, text: str) -> str:
    file = folder / "compiler"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


@pytest.mark.usefixtures("anew")
def test_a_missing_or_failing_compiler_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", script(tmp_path, "echo no such target >&2; exit 3"))
    with pytest.raises(MeasurementError, match=r"could not compile the kernel \(no such target\); set CC"):
        CalibrationAccumulator(compiled=True)
    monkeypatch.setenv("CC", str(tmp_path / "nothing"))
    with pytest.raises(MeasurementError, match=r"could not compile the kernel \(.*nothing"):
        CalibrationAccumulator(compiled=True)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(MeasurementError, match="needs a C compiler, found none of cc, gcc, clang; install one"):
        CalibrationAccumulator(compiled=True)
    assert CalibrationAccumulator().update(logits=4 * torch.eye(3), labels=torch.arange(3)).samples == 3


@pytest.mark.usefixtures("anew")
def test_a_library_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    writes = 'while [ "$1" != "-o" ]; do shift; done; echo hello > "$2"'
    monkeypatch.setenv("CC", script(tmp_path, writes))
    with pytest.raises(MeasurementError, match="the kernel cannot be loaded"):
        CalibrationAccumulator(compiled=True)


@needs_compiler
@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize(
    ("source", "change"),
    [
        ("kernel.c", "s/> most ? x/>= 9 ? x/"),
        ("kernel.c", "s/0.16666666666554314/0.1666/"),
        ("kernel.c", "s/x.j. - x.j.;/0;/"),
        ("count.c", "s/ + bits) >>/) >>/"),
        ("count.c", r"s/place >> LEADING |/(place >> LEADING \& 1023) |/"),
    ],
    ids=["top", "exp", "nan", "carry", "place"],
)
def test_a_kernel_that_errs_is_refused(
    source: str, change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = Path(compiled.__file__).with_name(source)
    tool = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    changed = f"sed '{change}' {file} > {tmp_path}/changed.c"
    keep = f'for a; do shift; case "$a" in *{source}) a={tmp_path}/changed.c;; esac; set -- "$@" "$a"; done'
    monkeypatch.setenv("CC", script(tmp_path, f'{changed}; {keep}; exec {tool} "$@"'))
    with pytest.raises(MeasurementError, match="does not give NumPy's numbers here"):
        CalibrationAccumulator(compiled=True)
    assert (tmp_path / "changed.c").read_text() != file.read_text()
