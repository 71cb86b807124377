"""A training's record in other programs: CSV, Parquet, TensorBoard, pandas xarray hold the archive's numbers."""

from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from recorded_world import EPOCH, begin, pairs, session

from landscape import open_archive, save_archive
from landscape.archive.compaction import compact
from landscape.archive.convert import export_archive, formats
from landscape.archive.schema import Subject
from landscape.cli.main import main
from landscape.errors import ArchiveError

EVENTS = [{"step": 3, "kind": "switch", "message": 'a, "quoted" one', "seconds": 1.5}]


@pytest.fixture(params=["live", "compacted"])
def run(tmp_path, request):
    """A run that was resumed, beside its archive and in it."""
    path = begin(tmp_path / "run.h5")
    session(path, range(1, 41), events=EVENTS)
    session(path, range(31, 51), number=1, resumed_at=30)
    if request.param == "compacted":
        compact(path, "complete")
    return path


@pytest.fixture
def probed(tmp_path):
    """An archive of results alone."""
    save_archive(tmp_path / "probed.h5", [pairs(3.5)], subject=Subject("a.pt", step=7))
    return tmp_path / "probed.h5"


def numbers(path) -> tuple[list[str], np.ndarray]:
    with open(path, newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return head, np.array([[float(c) if c else np.nan for c in row] for row in rows])


def test_a_record_is_a_mapping_of_its_quantities(run, probed):
    with open_archive(run) as archive:
        history = archive.history
        assert list(history) == list(history.keys()) == list(history.names)
        assert len(history) == len(history.names) > 1
        assert all(name in history and history[name] is found for name, found in history.items())
        assert [list(s.steps) for s in history.values()] == [list(history[name].steps) for name in history]
        assert "nothing" not in history
        assert 0 not in history
        assert history.get("nothing") is None
        with pytest.raises(KeyError, match=f"no 'nothing' was recorded; there are {history.names[0]}"):
            history["nothing"]
        assert list(history.current()) == list(history)
    assert list(open_archive(probed).history) == []
    assert not open_archive(probed).history


class TestTables:
    def test_csv_holds_every_bit(self, run, tmp_path):
        out = export_archive(run, tmp_path / "out", "csv")
        history = open_archive(run).history.current()
        for name in history.names:
            head, rows = numbers(out / f"{name}.csv")
            assert head[:2] == ["step", "epoch"]
            assert [h.rstrip("_") for h in head[2:]] == list(history[name].names)
            np.testing.assert_array_equal(rows[:, 0], history[name].steps)
            np.testing.assert_array_equal(rows[:, 1], history[name].steps // EPOCH)
            np.testing.assert_array_equal(rows[:, 2:], history[name].values)
        with open(out / "events.csv", newline="", encoding="utf-8") as file:
            (event,) = csv.DictReader(file)
        assert event == {"step": "3", "kind": "switch", "message": 'a, "quoted" one', "seconds": "1.5"}
        assert json.loads((out / "run.json").read_text())["run"]["loss"] == "ce"

    def test_rows_that_were_overtaken_come_when_asked_for(self, run, tmp_path):
        head, rows = numbers(export_archive(run, tmp_path / "out", "csv", superseded="yes") / "loss.csv")
        assert head == ["step", "epoch", "superseded", "loss"]
        assert (len(rows), rows[:, 2].sum()) == (60, 10)

    def test_parquet_holds_the_same(self, run, tmp_path):
        parquet = pytest.importorskip("pyarrow.parquet")
        out = export_archive(run, tmp_path / "out", "parquet")
        history = open_archive(run).history.current()
        for name in history.names:
            table = parquet.read_table(out / f"{name}.parquet")
            np.testing.assert_array_equal(table.column("step").to_numpy(), history[name].steps)
            for i in range(len(history[name].names)):
                np.testing.assert_array_equal(table.column(2 + i).to_numpy(), history[name].values[:, i])
        assert parquet.read_schema(out / "loss.parquet").metadata == {b"units": b"nats", b"long_name": b"what loss is"}

    @pytest.mark.parametrize("suffix", [".csv", ".parquet"])
    def test_one_file_has_a_row_for_each_number(self, run, tmp_path, suffix):
        pandas = pytest.importorskip("pandas")
        out = export_archive(run, tmp_path / f"all{suffix}")
        frame = pandas.read_csv(out) if suffix == ".csv" else pandas.read_parquet(out)
        history = open_archive(run).history.current()
        assert len(frame) == sum(s.values.size for s in history.quantities.values())
        one = frame[(frame.quantity == "gradient_norm") & (frame.name == "0.weight")]
        np.testing.assert_array_equal(one.value, history["gradient_norm"].column("0.weight"))
        np.testing.assert_array_equal(one.epoch, history["gradient_norm"].steps // EPOCH)

    def test_results_come_with_their_checkpoint(self, probed, tmp_path):
        out = export_archive(probed, tmp_path / "out", "csv")
        with open(out / "results.csv", newline="", encoding="utf-8") as file:
            rows = {(r["quantity"], r["name"]): r for r in csv.DictReader(file)}
        assert rows["eigenvalues.values", "0"]["value"] == "3.5"
        assert rows["eigenvalues.values", "1"]["checkpoint"] == "a.pt"
        assert rows["eigenvalues.values", "1"]["step"] == "7"
        assert rows["eigenvalues.values", "1"]["epoch"] == ""

    def test_missing_is_empty(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        session(path, range(1, 3))
        session(path, range(3, 5), columns={"loss": ("loss", "term")})
        out = export_archive(path, tmp_path / "out", "csv")
        assert [line.rpartition(",")[2] == "" for line in (out / "loss.csv").read_text().splitlines()] == [
            False, True, True, False, False,
        ]  # fmt: skip


class TestTensorBoard:
    @staticmethod
    def read(folder):
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
        found.Reload()
        return {tag: found.Scalars(tag) for tag in found.Tags()["scalars"]}

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_it_is_read_back_by_tensorboard(self, run, tmp_path):
        found = self.read(export_archive(run, tmp_path / "out", "tensorboard"))
        history = open_archive(run).history.current()
        for name in history.names:
            for i, column in enumerate(history[name].names):
                scalars = found[name if (name,) == history[name].names else f"{name}/{column}"]
                assert [s.step for s in scalars] == history[name].steps.tolist()
                np.testing.assert_array_equal([s.value for s in scalars], history[name].values[:, i].astype(np.float32))
        times = np.array([s.wall_time for s in found["loss"]])
        np.testing.assert_allclose(np.diff(times), 0.5, atol=1e-6)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_results_and_thinned_curves(self, run, probed, tmp_path):
        found = self.read(export_archive(run, tmp_path / "a", "tensorboard", points="7"))
        steps = [s.step for s in found["loss"]]
        assert len(steps) <= 7
        assert steps[-1] == 50
        assert set(np.diff(steps)) == {8}
        found = self.read(export_archive(probed, tmp_path / "b", "tensorboard"))
        assert [(s.step, s.value) for s in found["results/eigenvalues/values/0"]] == [(7, 3.5)]

    def test_written_again_it_takes_the_place_of_the_first(self, run, tmp_path):
        pytest.importorskip("tensorboard")
        export_archive(run, tmp_path / "out", "tensorboard")
        # Neither the clock nor a file that was touched meanwhile gives the same run another name.
        os.utime(run, (1, 1))
        with pytest.raises(ArchiveError, match="exists; pass --force"):
            export_archive(run, tmp_path / "out", "tensorboard")
        export_archive(run, tmp_path / "out", "tensorboard", force=True)
        assert len(list((tmp_path / "out").iterdir())) == 1


class TestFrames:
    def test_xarray(self, run):
        pytest.importorskip("xarray")
        tree = open_archive(run).to_xarray()
        history = open_archive(run).history.current()
        assert set(tree.children) == {*history.names, "events"}
        found = tree["gradient_norm"]
        np.testing.assert_array_equal(found["value"].sel(name="0.bias"), history["gradient_norm"].column("0.bias"))
        np.testing.assert_array_equal(found["epoch"], history["gradient_norm"].steps // EPOCH)
        assert tree["loss/value"].attrs == {"units": "nats", "long_name": "what loss is"}
        assert tree.attrs["loss"] == "ce"
        assert tree["loss"]["value"].sel(step=35).item() == history["loss"].values[34, 0]
        whole = open_archive(run).to_xarray(superseded=True)
        assert int(whole["loss"]["superseded"].sum()) == 10

    def test_pandas(self, run):
        pandas = pytest.importorskip("pandas")
        archive = open_archive(run)
        frame = archive.to_pandas()
        assert frame.index.tolist() == list(range(1, 51))
        np.testing.assert_array_equal(frame["loss"]["loss"], archive.history["loss"].current().values[:, 0])
        ece = frame["calibration"]["ece"]
        assert ece.dropna().index.tolist() == [10, 20, 30, 40, 50]
        assert isinstance(archive.to_pandas("time"), pandas.DataFrame)
        assert archive.to_pandas("time", superseded=True)["superseded"].sum() == 10

    def test_steps_that_were_logged_twice_are_one_row(self, tmp_path):
        pytest.importorskip("pandas")
        path = begin(tmp_path / "run.h5")
        columns = {"logged": ("a", "b")}
        session(path, range(1, 3), columns=columns)
        session(path, range(2, 4), columns=columns)
        archive = open_archive(path)
        assert archive.to_pandas().index.tolist() == [1, 2, 3]
        np.testing.assert_array_equal(archive.to_pandas()["logged"].loc[2], archive.history["logged"].values[2])

    def test_no_record(self, probed):
        for read in (open_archive(probed).to_xarray, open_archive(probed).to_pandas):
            with pytest.raises(ArchiveError, match="no record of a training"):
                read()


class TestBadInput:
    def test_nothing_to_write(self, tmp_path):
        path = begin(tmp_path / "run.h5")
        for name in ("csv", "parquet", "tensorboard"):
            if name == "tensorboard":
                continue
            with pytest.raises(ArchiveError, match="neither a training's record nor results"):
                export_archive(path, tmp_path / name, name)
            assert not (tmp_path / name).exists()

    @pytest.mark.parametrize("name", ["csv", "parquet"])
    def test_what_is_there_stays(self, run, tmp_path, name):
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "mine.txt").write_text("x")
        with pytest.raises(ArchiveError, match="is not empty; pass --force"):
            export_archive(run, tmp_path / "full", name)
        export_archive(run, tmp_path / "full", name, force=True)
        assert (tmp_path / "full" / "mine.txt").read_text() == "x"
        (tmp_path / "file").write_text("x")
        with pytest.raises(ArchiveError, match="is a file, expected a folder"):
            export_archive(run, tmp_path / "file", name, force=True)
        with pytest.raises(ArchiveError, match="does not exist"):
            export_archive(run, tmp_path / "none" / "out", name)
        assert not list(tmp_path.glob("*.partial"))

    def test_a_failure_leaves_nothing(self, run, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("landscape.archive.tabular._csv", full)
        with pytest.raises(ArchiveError, match="No space left"):
            export_archive(run, tmp_path / "out", "csv")
        with pytest.raises(ArchiveError, match="No space left"):
            export_archive(run, tmp_path / "out.csv")
        assert not list(tmp_path.glob("out*"))

    def test_options(self, run, tmp_path):
        pytest.importorskip("tensorboard")
        with pytest.raises(ArchiveError, match="no number of points"):
            export_archive(run, tmp_path / "out", "tensorboard", points="few")
        with pytest.raises(ArchiveError, match="no option 'points'"):
            export_archive(run, tmp_path / "out", "csv", points="3")
        with pytest.raises(ArchiveError, match="needs a folder"):
            export_archive(run, tmp_path / "out.csv", superseded="yes")

    def test_the_command(self, run, tmp_path):
        done = CliRunner().invoke(main, ["export", str(run), "-o", str(tmp_path / "out"), "--format", "csv"])
        assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'out'}\n")
        assert {"csv", "parquet", "tensorboard", "vtp"} <= set(formats())

    def test_the_standard_output_is_no_folder(self, run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(main, ["export", str(run), "-o", "-", "--format", "csv"])
        assert (done.exit_code, done.stdout) == (2, "")
        assert "name one, such as run.csv" in done.stderr
        assert not (tmp_path / "-").exists()
