"""The compiled pass over logits: NumPy's numbers, ties and faults, and one line where it can't be made."""

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
    "change",
    ["s/> most ? x/>= 9 ? x/", "s/0.16666666666554314/0.1666/", "s/x.j. - x.j.;/0;/"],
    ids=["top", "exp", "nan"],
)
def test_a_kernel_that_errs_is_refused(change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = Path(compiled.__file__).with_name("kernel.c").read_text()
    tool = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))))
    changed = f"sed '{change}' {compiled.__file__.replace('compiled.py', 'kernel.c')} > {tmp_path}/changed.c"
    keep = f'for a; do shift; case "$a" in *kernel.c) a={tmp_path}/changed.c;; esac; set -- "$@" "$a"; done'
    monkeypatch.setenv("CC", script(tmp_path, f'{changed}; {keep}; exec {tool} "$@"'))
    with pytest.raises(MeasurementError, match="does not give NumPy's numbers here"):
        CalibrationAccumulator(compiled=True)
    assert (tmp_path / "changed.c").read_text() != source
