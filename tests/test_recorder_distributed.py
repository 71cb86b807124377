"""Recording where several processes train together: two gloo processes, DDP and FSDP2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from landscape import open_archive
from landscape.dynamics.noise import NoiseScale

SCRIPT = Path(__file__).with_name("distributed_training.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, list[dict]]:
    """Return the folder of the runs, and what each rank saw."""
    folder = tmp_path_factory.mktemp("distributed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            cwd=SCRIPT.parents[1],
        )
        for rank in range(2)
    ]
    said = [p.communicate(timeout=300)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(said)
    return folder, [json.loads((folder / f"rank{r}.json").read_text()) for r in range(2)]


def history(trained, name: str):
    return open_archive(trained[0] / name / "run.h5").history


@pytest.mark.parametrize("name", ["ddp", "fsdp", "accumulated"])
def test_norms_are_those_of_the_whole_gradient(trained, name):
    h, seen = history(trained, name), trained[1][0][name]
    np.testing.assert_allclose(h["gradient_norm_before"].values, seen["gradients"], rtol=1e-6)
    coefficient = np.minimum(1, 0.5 / (np.array(seen["gradients"])[:, :1] + 1e-6))
    found = h["gradient_norm"].values[:4]  # the sharded run was resumed
    np.testing.assert_allclose(found, np.array(seen["gradients"]) * coefficient, rtol=2e-6)
    np.testing.assert_allclose(h["update_norm"].values, seen["updates"], rtol=1e-5, atol=1e-7)
    assert h["gradient_norm"].names == ("global", "0.weight", "0.bias", "2.weight", "2.bias")


def test_processes_measure_together_what_the_first_one_does_alone(trained):
    alone, shared = history(trained, "alone"), history(trained, "shared")
    for name in ("eigenvalue", "surface"):
        assert len(alone[name].steps) >= 2
        np.testing.assert_allclose(shared[name].values, alone[name].values, rtol=1e-5, atol=1e-6)
    for column in ("lambda_max", "trace"):
        found, expected = ([h["curvature"].values[:, h["curvature"].names.index(column)]] for h in (shared, alone))
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert not [e for e in shared.events if e.kind == "probe_failed"]


def test_processes_measure_together_where_the_first_one_alone_logs(trained):
    shared, found = history(trained, "shared"), history(trained, "by one")
    for name in ("eigenvalue", "surface"):
        np.testing.assert_array_equal(found[name].steps, shared[name].steps)
        np.testing.assert_allclose(found[name].values, shared[name].values, rtol=1e-5, atol=1e-6)


def test_a_resumed_run_leaves_out_in_all_processes_what_was_left_out(trained):
    assert [seen["again"] for seen in trained[1]] == [[4, 6]] * 2
    # Steps 3 and 4 are taken again, and decided as before; 5 and 6 are new.
    np.testing.assert_array_equal(history(trained, "again")["eigenvalue"].steps, [0, 5, 6])


@pytest.mark.parametrize(
    ("name", "why"), [("apart", "other data or weights"), ("without", "switched off in process 1")]
)
def test_processes_that_cannot_measure_together_train_on(trained, name, why):
    failed = [e.message for e in history(trained, name).events if e.kind == "probe_failed"]
    assert len(failed) == 2
    assert all(why in message for message in failed), failed
    for seen in trained[1]:
        assert seen[name]["weights"] == seen["alone"]["weights"]


def test_nothing_is_measured_that_would_cut_off_the_hooks_of_ddp(trained):
    failed = [e.message for e in history(trained, "float64").events if e.kind == "probe_failed"]
    assert len(failed) == 2
    assert all("can't be measured in float64 on cpu where its weights are float32" in m for m in failed), failed
    for seen in trained[1]:
        assert seen["in float64"]["weights"] == seen["alone"]["weights"]


def test_the_module_inside_ddp_is_not_measured_where_that_would_cut_off_its_hooks(trained):
    for seen in trained[1]:
        told, gradients = seen["refused"]["ddp"], seen["refused"]["gradients"]
        assert "inside DistributedDataParallel can't be measured in float64 on cpu" in told[0]
        assert told[1] == "measured"
        assert gradients[0] == gradients[1]
    assert trained[1][0]["refused"]["gradients"] == trained[1][1]["refused"]["gradients"]


def test_sharded_models_are_refused_rather_than_measured_in_part(trained):
    for seen in trained[1]:
        assert all("the model is sharded" in told for told in seen["refused"]["sharded"])


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_training_is_bit_for_bit_the_same(trained, name):
    for seen in trained[1]:
        assert seen[name]["weights"] == seen[f"{name} bare"]["weights"]


def test_the_first_process_alone_writes(trained):
    for name in ("ddp", "fsdp"):
        assert [p.name for p in (trained[0] / name).iterdir()] == ["run.h5"]
        np.testing.assert_array_equal(history(trained, name)["loss"].steps, np.arange(1, 5))


def test_the_noise_scale_of_ranks_is_the_naive_one(trained):
    scale, expected = NoiseScale(), []
    ranks = [seen["noise"] for seen in trained[1]]
    for step in range(4):
        small = (ranks[0]["local"][step] + ranks[1]["local"][step]) / 2
        scale.add(small, ranks[0]["gradients"][step][0] ** 2, 5, 10)
        expected.append([scale.value, scale.squared_gradient, scale.variance])
    np.testing.assert_allclose(history(trained, "noise")["noise_scale"].values, expected, rtol=1e-4)


def test_a_budget_is_decided_once_for_all_processes(trained):
    # The first point is always taken; then nothing fits a billionth of the time, on either process, or they would hang.
    np.testing.assert_array_equal(history(trained, "budget")["gradient_norm"].steps, [1])


def test_curvature_of_a_sharded_model_is_refused_and_training_goes_on(trained):
    said = [e.message for e in history(trained, "fsdp").events if e.kind == "probe_failed"]
    assert len(said) == 1
    assert "sharded" in said[0]


def test_all_processes_resume_from_the_same_step(trained):
    assert [seen["resumed"] for seen in trained[1]] == [{"begun": 4, "ended": 6}] * 2
    np.testing.assert_array_equal(history(trained, "fsdp")["gradient_norm"].steps, [1, 2, 3, 4, 6])


def test_what_the_first_process_is_refused_all_are(trained):
    assert ["exists" in seen["exists"] for seen in trained[1]] == [True, True]
