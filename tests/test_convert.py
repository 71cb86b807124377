"""Surfaces from and for other programs: loss-landscape's files bit for bit, ParaView's by their own grammar."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from report_samples import line, plane, trace

from landscape import Subject, open_archive, save_archive
from landscape.archive.convert import export_archive
from landscape.archive.describe import describe_archive
from landscape.archive.loss_landscape import read_surface, to_percent, to_share
from landscape.cli.main import main
from landscape.errors import ArchiveError
from landscape.report.page import render_report
from landscape.report.runs import gather

NX, NY = 5, 3
X, Y = np.linspace(-1, 1, NX), np.linspace(0, 2, NY)


def height(x: float, y: float) -> float:
    """Return a loss that tells the two axes apart."""
    return 1.0 + x + 10 * y


def crunched(x: np.ndarray, y: np.ndarray | None, value, until: int | None = None) -> np.ndarray:
    """Fill an array of -1 point by point, as plot_surface.py and scheduler.py do it: the flat array of shape
    (len(x), len(y)) in the order of numpy.meshgrid(x, y).
    """
    found = -np.ones((len(x),) if y is None else (len(x), len(y)))
    if y is None:
        places = [(a, None) for a in x]
    else:
        xs, ys = np.meshgrid(x, y)
        places = list(zip(xs.ravel(), ys.ravel(), strict=True))
    for i, place in enumerate(places[:until]):
        found.ravel()[i] = value(*place)
    return found


def surface(path: Path, x=X, y: np.ndarray | None = Y, *, until: int | None = None, **more: np.ndarray) -> Path:
    """Write a surface file as that program does."""
    with h5py.File(path, "w") as file:
        file["dir_file"] = "trained_nets/model_300.t7_weights_xignore=biasbn_xnorm=filter.h5"
        file["xcoordinates"] = x
        if y is not None:
            file["ycoordinates"] = y
        file["train_loss"] = crunched(x, y, height if y is not None else lambda a, b: height(a, 0), until)
        file["train_acc"] = crunched(x, y, lambda *p: 100.0 * (hash(p) % 50_000) / 50_000, until)
        for key, values in more.items():
            file[key] = values
    return path


def landscape(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], prog_name="landscape")


def same(a: Path, b: Path) -> None:
    """Assert that two HDF5 files hold the same datasets, bit for bit."""
    with h5py.File(a) as one, h5py.File(b) as other:
        assert set(one) == set(other)
        for key in one:
            left, right = one[key][()], other[key][()]
            if isinstance(left, bytes):
                assert left == right
                continue
            assert left.dtype == right.dtype, key
            assert left.shape == right.shape, key
            assert left.tobytes() == right.tobytes(), key


# ---------------------------------------------------------------------------------------------- loss-landscape


@pytest.mark.parametrize(("x", "y"), [(X, Y), (X, np.linspace(-1, 1, NX)), (Y, X)])
def test_points_lie_where_that_program_evaluated_them(tmp_path, x, y):
    (found,) = read_surface(surface(tmp_path / "s.h5", x, y)).results
    np.testing.assert_array_equal(found.loss, [[height(a, b) for b in y] for a in x])
    assert found.evaluated.all()
    assert found.status == "complete"
    assert found.split == "train"


def test_a_line_and_its_center(tmp_path):
    (found,) = read_surface(surface(tmp_path / "s.h5", y=None)).results
    np.testing.assert_array_equal(found.loss, 1 + X)
    assert found.center_loss == 1.0
    assert np.isnan(found.checkpoint_loss)
    assert {c.name: c.level for c in found.checks} == {"center": "warn", "finite": "pass"}


@pytest.mark.parametrize("y", [Y, None])
@pytest.mark.parametrize("until", [None, 4])
def test_a_round_trip_gives_the_same_file_bit_for_bit(tmp_path, y, until):
    shape = (NX, NY) if y is not None else (NX,)
    rng = np.random.default_rng(0)
    eigenvalues = {"min_eig": -rng.random(shape), "max_eig": rng.normal(size=shape)}
    eigenvalues["min_eig"].ravel()[-1], eigenvalues["max_eig"].ravel()[-1] = 1.0, -1.0  # not filled
    test_loss = rng.normal(size=shape)
    test_loss.ravel()[:3] = np.nan, np.inf, -0.0
    test = {"test_loss": test_loss, "test_acc": 100.0 * rng.integers(0, 10_000, shape) / 10_000}
    first = surface(tmp_path / "s.h5", y=y, until=until, **eigenvalues, **test)
    assert landscape("import", first, "-o", tmp_path / "run.h5").exit_code == 0
    done = landscape("export", tmp_path / "run.h5", "--format", "loss-landscape", "-o", tmp_path / "again.h5")
    assert done.exit_code == 0, done.output
    same(first, tmp_path / "again.h5")
    kinds = [e.kind for e in open_archive(tmp_path / "run.h5").entries]
    assert kinds == [*(["plane"] * 2 if y is not None else ["line"] * 2), "eigenvalue_map"]


def test_points_not_filled_are_not_evaluated_and_a_loss_below_zero_is_a_loss(tmp_path):
    first = surface(tmp_path / "s.h5", until=4)
    with h5py.File(first, "r+") as file:
        file["train_loss"][0, 0], file["train_acc"][0, 0] = -1.0, 25.0
        file["train_loss"][0, 1] = -3.0
    (found,) = read_surface(first).results
    assert int(found.evaluated.sum()) == 4
    assert found.loss[0, 0] == -1.0
    assert np.isnan(found.loss[~found.evaluated]).all()
    assert np.isnan(found.accuracy[~found.evaluated]).all()
    assert found.status == "partial"
    assert np.isnan(found.error)


def test_what_was_imported_is_drawn_with_what_is_unknown(tmp_path):
    shape = (NX, NY)
    first = surface(tmp_path / "s.h5", until=2, min_eig=-np.ones(shape), max_eig=np.full(shape, 3.0))
    assert landscape("import", first, "-o", tmp_path / "run.h5").exit_code == 0
    html = render_report(gather([tmp_path / "run.h5"]))
    for said in ("center unknown", "2 of 15 points evaluated, error unknown", "residuals unknown"):
        assert said in html
    assert "batchnorm unknown" in describe_archive(open_archive(tmp_path / "run.h5"))


def test_eigenvalues_may_be_negative(tmp_path):
    low, high = np.full((NX, NY), -2.0), np.full((NX, NY), -1.0)
    first = surface(tmp_path / "s.h5", min_eig=low, max_eig=high)
    found = read_surface(first).results[-1]
    assert found.kind == "eigenvalue_map"
    assert (found.largest == -1).all()
    np.testing.assert_array_equal(found.ratio, 2.0)


@pytest.mark.parametrize("n", [3, 7, 128, 9_999, 10_000, 50_000, 1_281_167])
def test_accuracies_come_back_as_the_same_percentage(n):
    rng = np.random.default_rng(n)
    for c in {0, 1, n - 1, n, *rng.integers(0, n, 100).tolist()}:
        assert to_share(100.0 * c / n) == c / n
        assert to_percent(c / n) == 100.0 * c / n


def test_norms_and_angle_come_from_the_direction_file_beside_it(tmp_path):
    first = surface(tmp_path / "s.h5")
    assert np.isnan(read_surface(first).results[0].direction_norms).all()
    file_beside = tmp_path / "model_300.t7_weights_xignore=biasbn_xnorm=filter.h5"
    with h5py.File(file_beside, "w") as file:
        for i, part in enumerate([np.full((2, 2), 1.5), np.zeros(3)]):
            file[f"xdirection/{i}"] = part
        for i, part in enumerate([np.array([[0, 0], [0, 2.0]]), np.zeros(3)]):
            file[f"ydirection/{i}"] = part
    found = read_surface(first).results[0]
    np.testing.assert_allclose(found.direction_norms, [3, 2])
    assert found.cosine == pytest.approx(0.5)
    assert read_surface(first, file_beside).results[0].cosine == found.cosine
    with pytest.raises(ArchiveError, match="no direction file at"):
        read_surface(first, tmp_path / "none.h5")
    with pytest.raises(ArchiveError, match="is no direction file for this surface"):
        read_surface(first, first)


def test_our_own_planes_are_written_for_that_program(tmp_path):
    ours = plane(n=4, m=6)
    save_archive(tmp_path / "run.h5", [ours, line()], subject=Subject(name="net"))
    export_archive(tmp_path / "run.h5", tmp_path / "s.h5", "loss-landscape")
    with h5py.File(tmp_path / "s.h5") as file:
        xs, ys = np.meshgrid(file["xcoordinates"][:], file["ycoordinates"][:])
        flat = file["train_loss"][:].ravel()
        for x, y, value in zip(xs.ravel(), ys.ravel(), flat, strict=True):
            i, j = np.flatnonzero(ours.alpha == x)[0], np.flatnonzero(ours.beta == y)[0]
            assert value == ours.loss[i, j]
        assert set(file) == {"dir_file", "xcoordinates", "ycoordinates", "train_loss", "train_acc"}


def test_the_other_split_goes_along(tmp_path):
    ours = plane(n=3, m=4)
    both = replace(ours, held_out_loss=2 * ours.loss, held_out_accuracy=0.5 * np.ones((3, 4)))
    save_archive(tmp_path / "run.h5", both)
    export_archive(tmp_path / "run.h5", tmp_path / "s.h5", "loss-landscape")
    train, test = read_surface(tmp_path / "s.h5").results
    np.testing.assert_array_equal(test.loss, 2 * train.loss)
    assert (test.accuracy == 0.5).all()
    assert "held_out_loss" in read_vtp(export_archive(tmp_path / "run.h5", tmp_path / "s.vtp"))[2]


def test_interpolated_points_are_marked(tmp_path):
    ours = plane(n=4)
    mask = np.ones((4, 4), dtype=bool)
    mask[1, 2] = False
    save_archive(tmp_path / "run.h5", replace(ours, evaluated=mask))
    export_archive(tmp_path / "run.h5", tmp_path / "s.h5", "loss-landscape")
    with h5py.File(tmp_path / "s.h5") as file:
        assert (file["train_loss"][:] != -1).all()
        np.testing.assert_array_equal(file["evaluated"][:].ravel().reshape(4, 4).T, mask)


# -------------------------------------------------------------------------------------------------------- VTK


def numbers(text: str | None) -> np.ndarray:
    return np.array((text or "").split(), dtype=float)


def read_vtp(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Parse a .vtp of quadrilaterals by its grammar."""
    (piece,) = ElementTree.parse(path).getroot().iter("Piece")
    points = numbers(piece.findtext("Points/DataArray")).reshape(-1, 3)
    arrays = {a.get("Name"): numbers(a.text) for a in piece.iter("DataArray")}
    assert len(points) == int(piece.get("NumberOfPoints"))
    assert arrays["offsets"].tolist() == [4 * i for i in range(1, int(piece.get("NumberOfPolys")) + 1)]
    data = {a.get("Name"): numbers(a.text) for a in piece.iterfind("PointData/DataArray")}
    return points, arrays["connectivity"].astype(int).reshape(-1, 4), data


def read_vtk(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Parse a legacy .vtk of quadrilaterals by its grammar."""
    lines = path.read_text(encoding="ascii").split("\n")
    assert lines[0] == "# vtk DataFile Version 3.0"
    assert lines[2:4] == ["ASCII", "DATASET POLYDATA"]
    words = iter(" ".join(lines[4:]).split())

    def expect(*wanted: str) -> None:
        assert [next(words) for _ in wanted] == list(wanted)

    expect("POINTS")
    n = int(next(words))
    expect("double")
    points = np.array([float(next(words)) for _ in range(3 * n)]).reshape(n, 3)
    expect("POLYGONS")
    m, size = int(next(words)), int(next(words))
    assert size == 5 * m
    faces = np.array([int(next(words)) for _ in range(size)]).reshape(m, 5)
    assert (faces[:, 0] == 4).all()
    expect("POINT_DATA", str(n), "FIELD", "FieldData")
    data = {}
    for _ in range(int(next(words))):
        name = next(words)
        expect("1", str(n), "double")
        data[name] = np.array([float(next(words)) for _ in range(n)])
    assert next(words, None) is None
    return points, faces[:, 1:], data


@pytest.mark.parametrize(("ending", "read"), [("vtp", read_vtp), ("vtk", read_vtk)])
def test_a_plane_becomes_a_sheet_bit_for_bit(tmp_path, ending, read):
    ours = plane(n=4, m=5)
    save_archive(tmp_path / "run.h5", ours, subject=Subject(name="a < b & -- c"))
    points, quads, data = read(export_archive(tmp_path / "run.h5", tmp_path / f"s.{ending}"))
    a, b = np.meshgrid(ours.alpha, ours.beta, indexing="ij")
    np.testing.assert_array_equal(points, np.column_stack([a.ravel(), b.ravel(), ours.loss.ravel()]))
    np.testing.assert_array_equal(data["loss"], ours.loss.ravel())
    np.testing.assert_array_equal(data["accuracy"], ours.accuracy.ravel())
    assert data["evaluated"].all()
    assert len(quads) == 3 * 4
    flat = points[:, :2]
    for face in quads:  # each is one cell of the grid, its corners in turn
        x, y = flat[face].T
        area = 0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))
        assert area == pytest.approx((ours.alpha[1] - ours.alpha[0]) * (ours.beta[1] - ours.beta[0]), rel=1e-12)


@pytest.mark.parametrize(("ending", "read"), [("vtp", read_vtp), ("vtk", read_vtk)])
def test_holes_and_logarithms(tmp_path, ending, read):
    ours = plane(n=5)
    loss = ours.loss.copy()
    loss[2, 2], loss[0, 0] = np.nan, -1.0
    save_archive(tmp_path / "run.h5", replace(ours, loss=loss))
    points, quads, _ = read(export_archive(tmp_path / "run.h5", tmp_path / f"s.{ending}"))
    assert (len(points), len(quads)) == (24, 12)
    assert quads.max() == 23
    points, quads, data = read(export_archive(tmp_path / "run.h5", tmp_path / f"t.{ending}", height="log10"))
    assert (len(points), len(quads)) == (23, 11)
    np.testing.assert_allclose(points[:, 2], np.log10(data["loss"]), rtol=1e-15)
    flat = read(export_archive(tmp_path / "run.h5", tmp_path / f"u.{ending}", height="flat"))[0]
    assert (flat[:, 2] == 0).all()


# --------------------------------------------------------------------------------------------------- bad input


def failed(*arguments: object) -> str:
    result = landscape(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


def test_what_cannot_be_imported_is_one_line(tmp_path):
    target = tmp_path / "run.h5"
    assert "no surface file at" in failed("import", tmp_path / "none.h5", "-o", target)
    (tmp_path / "text.h5").write_text("hello")
    assert "no HDF5 file" in failed("import", tmp_path / "text.h5", "-o", target)
    save_archive(tmp_path / "ours.h5", plane(n=3))
    assert "is an archive already" in failed("import", tmp_path / "ours.h5", "-o", target)
    for key, said in (("proj_xcoord", "projected trajectory"), ("xdirection", "direction file"), ("z", "no surface")):
        with h5py.File(tmp_path / f"{key}.h5", "w") as file:
            file[key] = np.zeros(3)
        assert said in failed("import", tmp_path / f"{key}.h5", "-o", target)
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["xcoordinates"] = X
    assert "neither losses nor eigenvalues" in failed("import", tmp_path / "empty.h5", "-o", target)
    for wrong, said in ((X[::-1], "do not increase"), (np.array([0.0, np.nan]), "finite"), (X[:2], "has shape")):
        first = surface(tmp_path / "wrong.h5")
        with h5py.File(first, "r+") as file:
            del file["xcoordinates"]
            file["xcoordinates"] = wrong
        assert said in failed("import", first, "-o", target)
    cut = surface(tmp_path / "cut.h5")
    cut.write_bytes(cut.read_bytes()[:900])
    assert "damaged" in failed("import", cut, "-o", target)
    assert not target.exists()
    surface(tmp_path / "good.h5")
    assert landscape("import", tmp_path / "good.h5", "-o", target).exit_code == 0
    assert "--force" in failed("import", tmp_path / "good.h5", "-o", target)
    assert landscape("import", tmp_path / "good.h5", "-o", target, "--append", "--name", "two").exit_code == 0
    assert [s.label for s in open_archive(target).subjects] == ["good", "two"]
    assert landscape("import", tmp_path / "good.h5", "--append", "--force").exit_code == 2


def test_what_cannot_be_exported_is_one_line(tmp_path):
    run, out = tmp_path / "run.h5", tmp_path / "s.vtp"
    save_archive(run, plane(n=3), subject=Subject(name="one"))
    assert "tells no format" in failed("export", run, "-o", tmp_path / "s.xyz")
    assert "tells no format" in failed("export", run, "-o", tmp_path / "s.h5")
    assert "there is no format 'csw'" in failed("export", run, "-o", out, "--format", "csw")
    assert "has no option 'hight'" in failed("export", run, "-o", out, "--option", "hight=1")
    assert "not one of loss" in failed("export", run, "-o", out, "--option", "height=up")
    assert "no plane of the test data" in failed("export", run, "-o", out, "--option", "split=test")
    assert "does not exist" in failed("export", run, "-o", tmp_path / "none" / "s.vtp")
    assert "holds no checkpoint 'two'" in failed("export", run, "-o", out, "--checkpoint", "two")
    assert landscape("export", run, "-o", out, "--option", "height").exit_code == 2
    assert not out.exists()
    assert landscape("export", run, "-o", out).stdout.strip() == str(out)
    assert "--force" in failed("export", run, "-o", out)
    assert landscape("export", run, "-o", out, "--force").exit_code == 0
    save_archive(run, plane(n=4), subject=Subject(name="two"), append=True)
    assert "one, two" in failed("export", run, "-o", out, "--force")
    assert landscape("export", run, "-o", out, "--force", "--checkpoint", "two").exit_code == 0
    assert len(read_vtp(out)[0]) == 16
    save_archive(tmp_path / "bare.h5", trace())
    for ending in ("vtp", "h5"):
        name = "loss-landscape" if ending == "h5" else "vtp"
        said = failed("export", tmp_path / "bare.h5", "-o", tmp_path / f"x.{ending}", "--format", name)
        assert "there is no plane" in said
        assert "trace" in said


def test_results_of_an_interrupted_run_are_not_overwritten(tmp_path):
    run, out = tmp_path / "run.h5", tmp_path / "other.h5"
    save_archive(run, plane(n=3))
    left = tmp_path / "other.h5.partial"
    left.write_bytes(b"results")
    said = failed("export", run, "-o", out, "--format", "loss-landscape")
    assert "resume that run" in said
    assert left.read_bytes() == b"results"
    assert not out.exists()


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    run, out = tmp_path / "run.h5", tmp_path / "s.vtp"
    save_archive(run, plane(n=3))
    out.write_text("before")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ArchiveError, match="No space left on device; what was there before is untouched"):
        export_archive(run, out, force=True)
    monkeypatch.undo()
    assert out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.h5", "s.vtp"]


def held(tmp_path: Path) -> tuple[Path, Path]:
    """Write a surface file, and its direction file beside it."""
    first = surface(tmp_path / "s.h5")
    beside = tmp_path / "model_300.t7_weights_xignore=biasbn_xnorm=filter.h5"
    with h5py.File(beside, "w") as file:
        for axis in "xy":
            file[f"{axis}direction/0"] = np.random.default_rng(ord(axis)).normal(size=(4, 3, 2, 2))
    return first, beside


@pytest.mark.parametrize("which", [0, 1], ids=["surface", "directions"])
def test_a_file_that_is_cut_short_anywhere_is_said_to_be_in_one_line(tmp_path, which):
    files = held(tmp_path)
    whole = files[which].read_bytes()
    for length in (0, 1, 7, 8, 100, *range(400, len(whole), 400), len(whole) - 1):
        files[which].write_bytes(whole[:length])
        said = failed("import", files[0], "-o", tmp_path / "run.h5")
        assert files[which].name in said
        assert "bug" not in said
        assert re.search("is empty|is no HDF5 file|is cut short or damaged|can't be read|damaged", said), said
    assert not (tmp_path / "run.h5").exists()


@pytest.mark.parametrize("which", [0, 1], ids=["surface", "directions"])
def test_flipped_bytes_are_read_or_refused_in_one_line(tmp_path, which):
    files = held(tmp_path)
    whole = files[which].read_bytes()
    refused = []
    # Every eighth byte of the first 2,000, in which HDF5 keeps its own, set to what it was not.
    for at in range(0, 2000, 8):
        files[which].write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_surface(files[0])
        except ArchiveError as error:
            refused.append(str(error))
    assert len(refused) > 20
    assert all(files[which].name in said and "\n" not in said for said in refused)


@pytest.mark.parametrize("values", [np.array([b"1", b"2"]), np.zeros((2, 2)), np.zeros(0), np.float64(1)])
@pytest.mark.parametrize("key", ["xcoordinates", "train_loss"])
def test_numbers_of_another_kind_or_shape_are_refused(tmp_path, key, values):
    first = surface(tmp_path / "s.h5")
    with h5py.File(first, "r+") as file:
        del file[key]
        file[key] = values
    assert f"{key} of" in failed("import", first, "-o", tmp_path / "run.h5")


def test_a_shape_beyond_what_a_file_can_hold_is_not_read(tmp_path):
    first = surface(tmp_path / "s.h5")
    with h5py.File(first, "r+") as file:
        del file["xcoordinates"]
        file.create_dataset("xcoordinates", (10**12,), dtype=float, chunks=(1000,))
    assert "more than the file can hold" in failed("import", first, "-o", tmp_path / "run.h5")


def test_a_file_that_may_not_be_read_is_said_to_be(tmp_path, monkeypatch):
    first = surface(tmp_path / "s.h5")

    def refuse(self: Path, *given: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read: Permission denied" in failed("import", first, "-o", tmp_path / "run.h5")
