"""`landscape demo`: checkpoints, archives and one report, by the same code as `landscape probe`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import small_world
from small_world import done, landscape

from landscape import open_archive
from landscape.probes.demo import training
from landscape.probes.demo.digits import LOSSES


def test_each_checkpoint_is_probed_and_compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_world.build(tmp_path)

    def trained(out: Path, *, seed: int, progress: bool) -> list[Path]:
        assert (seed, progress) == (3, False)
        paths = [out / name for name in ("tiny.pt", "other.pt")]
        for path in paths:
            path.write_bytes((tmp_path / path.name).read_bytes())
        return paths

    monkeypatch.setattr(training, "train_demo", trained)
    result = landscape("demo", "-o", "shown", "--seed", 3)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "shown/report.html"
    assert "landscape probe shown/tiny.pt -o shown/tiny.landscape.h5" in result.stderr
    names = {"tiny.pt", "tiny.landscape.h5", "other.pt", "other.landscape.h5", "report.html"}
    names |= {"surfaces.png", "calibration.png"}
    assert {p.name for p in (tmp_path / "shown").iterdir()} == names
    for name in ("tiny", "other"):
        archive = open_archive(tmp_path / "shown" / f"{name}.landscape.h5")
        assert archive.status == "complete"
        assert {e.status for e in archive.entries} == {"complete"}
    assert "cosine" in (tmp_path / "shown" / "report.html").read_text()

    again = landscape("demo", "-o", "shown", "--seed", 3)
    assert again.exit_code == 1
    assert "--force" in again.stderr
    done("demo", "-o", "shown", "--seed", 3, "--force")


@pytest.mark.slow
def test_the_demo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.process_time()
    result = landscape("demo")
    assert result.exit_code == 0, result.output
    assert time.process_time() - start < 180  # the three minutes that it may take, on one core
    folder = tmp_path / "landscape-demo"
    names = [f"{loss}-{schedule}" for loss in LOSSES for schedule in training.SCHEDULES]
    assert {p.name for p in folder.glob("*.pt")} == {f"{name}.pt" for name in names}
    for name in names:
        archive = open_archive(folder / f"{name}.landscape.h5")
        assert archive.status == "complete"
        (performance,) = archive.select("performance")
        assert performance.result.summary()["accuracy"]["test"] > 0.95
        (pairs,) = archive.select("eigenvalues")
        assert pairs.result.converged.all()
    for name in ("surfaces", "calibration"):
        assert 5_000 < (folder / f"{name}.png").stat().st_size < 150_000
    page = (folder / "report.html").read_text()
    assert all(name in page for name in names)
