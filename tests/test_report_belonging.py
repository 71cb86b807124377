"""A training that names no task stands with its own checkpoints where these say so, and by itself otherwise."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner
from report_samples import about, results, settings
from training_samples import history, record

from landscape.archive.save import save_archive
from landscape.archive.schema import Subject
from landscape.cli.main import main
from landscape.report.page import render_report
from landscape.report.runs import Run, gather


def recorded(folder: Path, run_id: str) -> Path:
    """Return the archive of a training that was only recorded, and names no task."""
    attributes = {k: v for k, v in about(0).items() if k != "run_id"}
    return record(folder / f"{run_id}.h5", history(0, 60), settings(0), attributes=attributes)


def measured(folder: Path, name: str, task: str, recorded_in: str) -> Path:
    """Return what was measured on a checkpoint that a recorder wrote."""
    subject = Subject(f"{name}.pt", f"{name}cd56", task, 60, 1, name, {**settings(0), "recorded_in": recorded_in})
    return save_archive(folder / f"{name}-{task}.landscape.h5", results(0, 9), subject=subject, run=settings(0))


def tasks(runs: list[Run]) -> dict[str, tuple[str, str]]:
    return {r.name: (r.task, r.task_from) for r in runs}


def test_a_training_takes_the_task_of_the_checkpoint_that_its_recorder_wrote(tmp_path):
    runs = gather([recorded(tmp_path, "gd"), measured(tmp_path, "step-60", "digits", "gd")])
    assert tasks(runs) == {"gd": ("digits", "step-60"), "step-60": ("digits", "")}
    assert "recorded_in" not in runs[1].settings
    page = render_report(runs)
    assert "gd names no task: it stands with step-60, a checkpoint that its recorder wrote." in page
    assert "Task not named" not in page
    assert "belong to 2 tasks" not in page


def test_nothing_but_the_archives_id_tells_whose_a_checkpoint_is(tmp_path):
    runs = gather([recorded(tmp_path, "gd"), measured(tmp_path, "gd-step-60", "digits", "another")])
    assert tasks(runs)["gd"] == ("", "")
    assert "belong to 2 tasks (not named, digits)" in render_report(runs)


def test_checkpoints_of_several_tasks_leave_it_open(tmp_path):
    paths = [measured(tmp_path, "step-60", task, "gd") for task in ("digits", "other")]
    assert tasks(gather([recorded(tmp_path, "gd"), *paths]))["gd"] == ("", "")


def test_compare_does_not_warn_of_two_tasks(tmp_path):
    run, checkpoint = recorded(tmp_path, "gd"), measured(tmp_path, "step-60", "digits", "gd")
    done = CliRunner().invoke(main, ["compare", str(run), str(checkpoint)])
    assert done.exit_code == 0, done.output
    assert "tasks" not in done.stderr
