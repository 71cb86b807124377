"""The report follows runs that go on, and says what archives lack, whatever they lack."""

from __future__ import annotations

import os

import h5py
import pytest
from report_samples import about, calibration, line, performance, settings, write_archives
from test_report import Page
from training_samples import history, record, series

from landscape.archive.compaction import compact
from landscape.archive.history import History
from landscape.archive.live import LiveWriter
from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.archive.segments import hold, live_folder
from landscape.errors import ArchiveError
from landscape.report.formats import write_report
from landscape.report.rewriting import rewrites


class TestWatching:
    def test_it_is_written_again_when_rows_come_and_once_more_at_the_end(self, tmp_path):
        path, out = tmp_path / "a.h5", tmp_path / "r.html"
        record(path, history(steps=50), settings(0), attributes=about(0), finish=False)
        lock = hold(live_folder(path))
        assert lock is not None
        pages, looks = [], []

        def write() -> None:
            write_report(path, out)
            pages.append(Page(out.read_text("utf-8")).text)

        def sleep(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 2:  # nothing new at the first look
                writer = LiveWriter(live_folder(path), {"loss": ("loss",)})
                writer.append("loss", 51, [0.25])
                writer.close()
            if len(looks) == 3:
                os.close(lock)
                compact(path, "complete")

        write()
        assert list(rewrites([path], write, every=7, sleep=sleep)) == [None, None]
        assert looks == [7, 7, 7]
        assert "up to step 50" in pages[0]
        assert "up to step 51" in pages[1]
        assert "still going on: this page shows what there was at" in pages[1]
        assert "still training" not in pages[2]
        assert "going on" not in pages[2]

    def test_runs_that_have_ended_are_not_waited_for(self, tmp_path):
        paths = write_archives(tmp_path, 1, 5)
        assert list(rewrites(paths, lambda: pytest.fail("written"), sleep=lambda s: pytest.fail("waited"))) == []

    def test_a_writing_that_fails_is_told_and_tried_again(self, tmp_path):
        path = record(tmp_path / "a.h5", history(steps=50), settings(0), attributes=about(0), finish=False)
        lock = hold(live_folder(path))
        assert lock is not None
        tries = []

        def write() -> None:
            tries.append(1)
            if len(tries) == 1:
                raise ArchiveError("it is being renamed")

        def sleep(_: float) -> None:
            (live_folder(path) / "events.more").write_text(str(len(tries)))
            if len(tries) == 2:
                os.close(lock)

        told = list(rewrites([path], write, sleep=sleep))
        assert [str(t) for t in told[:2]] == ["it is being renamed", "None"]

    def test_the_page_says_when_it_was_written(self, tmp_path):
        text = Page(write_report(write_archives(tmp_path, 1, 5), tmp_path / "r.html").read_text("utf-8")).text
        assert "Written 20" in text
        assert "UTC by landscape-probe" in text


class TestPartsMissing:
    def archive(self, tmp_path, *results, name="a", **attributes):
        path = tmp_path / f"{name}.h5"
        subject = Subject("a.pt", "f", "digits", name=name)
        return save_archive(path, list(results), subject=subject, attributes=attributes or None)

    def read(self, tmp_path, *paths) -> Page:
        return Page(write_report(paths, tmp_path / "r.html").read_text("utf-8"))

    def test_only_calibration(self, tmp_path):
        found = self.read(tmp_path, self.archive(tmp_path, calibration()))
        assert "reliability" in found.charts
        assert "Not measured: loss train" in found.text

    def test_no_surface_beside_one_that_has_it(self, tmp_path):
        other = write_archives(tmp_path, 1, 9)
        found = self.read(tmp_path, self.archive(tmp_path, performance(), line()), *other)
        assert "No surface for a: not measured" in found.text

    @pytest.mark.parametrize("status", ["failed", "interrupted", "running", "something new"])
    def test_a_run_that_did_not_end(self, tmp_path, status):
        path = self.archive(tmp_path, performance())
        with h5py.File(path, "r+") as file:
            file.attrs["status"] = status
        found = self.read(tmp_path, path)
        assert status in found.text
        assert "Readable" in found.text

    def test_an_older_format(self, tmp_path):
        """What the first versions did not write: a version, subjects' facts, costs and checks."""
        path = self.archive(tmp_path, performance(), calibration())
        with h5py.File(path, "r+") as file:
            file.attrs["format_version"] = 0
            for group in (g for kind in file["results"].values() for g in kind.values()):
                for name in [n for n in group.attrs if n in ("order", "asked", "subject")]:
                    del group.attrs[name]
        found = self.read(tmp_path, path)
        assert "26,122" in found.text
        assert "reliability" in found.charts

    def test_a_record_and_results_that_lack_each_other(self, tmp_path):
        only = record(tmp_path / "only.h5", history(steps=60), settings(0), attributes=about(0))
        found = self.read(tmp_path, only, self.archive(tmp_path, performance()))
        assert "No record of the training: a." in found.text
        assert "losses" in found.charts

    def test_a_run_that_has_begun_and_recorded_nothing(self, tmp_path):
        path = record(
            tmp_path / "a.h5", History({"loss": series("loss", ("loss",), [], [])}), settings(0), attributes=about(0)
        )
        assert "hold no self-checks" in self.read(tmp_path, path).text
