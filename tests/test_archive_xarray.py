"""xarray opens an archive without us: named dimensions, coordinates, units, and numbers as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.writer import ArchiveWriter
from landscape.calibration.table import Calibration
from landscape.curvature.spectrum import Eigenpairs
from landscape.results import Result, array
from landscape.surface.slices import Plane

xarray = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")


@dataclass(frozen=True, kw_only=True)
class Awkward(Result, kind="awkward_xarray"):
    """What xarray refuses, decodes into something else or warns about, if it is stored as declared."""

    seconds: np.ndarray = array("step", units="seconds")
    rank: float = array(default=2.0)
    values: np.ndarray = array("rank")
    confusion: np.ndarray = array("label", "label")
    step: np.ndarray = array("step", coordinate=True)
    names: np.ndarray = array("step")
    phase: np.ndarray = array("step")
    half: np.ndarray = array("step")


def plane() -> Plane:
    rng = np.random.default_rng(0)
    loss = rng.random((4, 3))
    loss[0, 0], loss[1, 1] = np.nan, np.inf
    return Plane(
        alpha=np.linspace(-1, 1, 4),
        beta=np.linspace(0, 1, 3),
        loss=loss,
        evaluated=rng.random((4, 3)) > 0.5,
        center_loss=0.5,
        checkpoint_loss=0.5,
        loss_stderr=0.1,
        cosine=0.0,
        direction_norms=np.ones(2),
        settings={"grid": [4, 3]},
    )


def eigenpairs() -> Eigenpairs:
    none = np.zeros(0)
    return Eigenpairs(
        values=np.array([3.0, 1.0]),
        residuals=np.array([1e-3, 1e-4]),
        converged=np.array([True, False]),
        smallest=none,
        smallest_residuals=none,
        smallest_converged=none.astype(bool),
    )


def calibration() -> Calibration:
    rng = np.random.default_rng(0)
    return Calibration(
        ece=0.1,
        ece_interval=np.array([0.05, 0.2]),
        mce=0.3,
        debiased_l2=0.0,
        brier=0.2,
        nll=0.5,
        accuracy=0.8,
        edges=np.arange(6) / 5,
        counts=np.arange(5),
        confidences=rng.random(5),
        accuracies=rng.random(5),
        accuracy_interval=rng.random((5, 2)),
        consistency_band=rng.random((5, 2)),
    )


@pytest.fixture
def path(tmp_path):
    with ArchiveWriter(tmp_path / "run.h5", run={"loss": "ce"}) as archive:
        for result in (plane(), eigenpairs(), calibration()):
            archive.add(result, subject=Subject("a.pt", step=3, facts={"device": "cpu"}))
    save_archive(tmp_path / "run.h5", plane(), append=True)
    return tmp_path / "run.h5"


def load(path, group, **options):
    with xarray.open_dataset(path, engine="h5netcdf", group=group, **options) as dataset:
        return dataset.load()


@pytest.mark.parametrize("group", ["results/plane/0001", "results/plane/0002"])
@pytest.mark.parametrize("options", [{}, {"decode_coords": "all"}, {"decode_cf": False}])
def test_a_plane_has_named_dimensions_coordinates_and_units(path, group, options):
    data = load(path, group, **options)
    wanted = plane()
    assert data.loss.dims == ("alpha", "beta")
    assert np.array_equal(data.loss, wanted.loss, equal_nan=True)
    assert data.loss.attrs["units"] == "loss"
    assert data.loss.attrs["long_name"] == "mean loss over the samples"
    assert data.indexes["alpha"].tolist() == wanted.alpha.tolist()
    assert data.indexes["beta"].tolist() == wanted.beta.tolist()
    assert data.checkpoint_loss.attrs["ancillary_variables"] == "loss_stderr"
    assert data.loss_stderr.item() == 0.1
    if options.get("decode_cf", True):
        assert data.evaluated.dtype == bool
        assert np.array_equal(data.evaluated, wanted.evaluated)
    assert float(data.loss.sel(alpha=1.0, beta=0.5)) == wanted.loss[3, 1]


def test_a_group_says_natively_what_it_belongs_to(path):
    about = load(path, "results/plane/0001").attrs
    assert (about["checkpoint"], about["step"], about["device"], about["split"]) == ("a.pt", 3, "cpu", "train")
    assert about["cost_seconds"] == 0.0
    assert about["status"] == "complete"


def test_empty_dimensions_and_bools(path):
    data = load(path, "results/eigenvalues/0001")
    assert data.sizes == {"rank": 2, "rank_smallest": 0}
    assert data.smallest.shape == (0,)
    assert data.converged.values.tolist() == [True, False]
    assert "rank" not in data.coords


def test_edges_of_bins_are_a_variable_over_a_plain_dimension(path):
    data = load(path, "results/calibration/0001")
    assert data.edges.dims == ("edge",)
    assert data.accuracy_interval.dims == ("bin", "bound")
    assert data.accuracies.attrs["ancillary_variables"] == "accuracy_interval"
    assert data.ece.attrs["interval"] == "ece_interval"
    assert dict(data.coords) == {}


def test_the_whole_archive_opens_as_a_tree(path):
    with xarray.open_datatree(path, engine="h5netcdf") as tree:
        assert tree.attrs["format"] == "landscape-archive"
        assert tree["run"].attrs["loss"] == "ce"
        assert {"plane", "eigenvalues", "calibration"} == set(tree["results"].children)
        assert tree["results/plane/0002"].to_dataset().loss.dims == ("alpha", "beta")


def test_types_and_names_that_xarray_would_stumble_over(tmp_path):
    result = Awkward(
        seconds=np.array([1.0, 2.0]),
        values=np.arange(3.0),
        confusion=np.eye(2),
        step=np.array([10, 20]),
        names=np.array(["a", "ü"]),
        phase=np.array([1j, 2.0]),
        half=np.array([0.5, 2.0], dtype=np.float16),
    )
    data = load(save_archive(tmp_path / "run.h5", result), "results/awkward_xarray/0001")
    assert data.seconds.dtype == float
    assert data.seconds.attrs["units"] == "s"  # xarray before 2026 made timedeltas of "seconds"
    assert data["rank"].item() == 2.0
    assert data["values"].dims == ("rank_dim",)
    assert data.confusion.dims == ("label", "label__2")
    assert data.names.values.tolist() == ["a", "ü"]
    assert data.phase.values.tolist() == [1j, 2.0]
    assert data.half.values.tolist() == [0.5, 2.0]
    assert data.seconds.sel(step=20).item() == 2.0
