"""The recorder with Accelerate's real Accelerator: its numbers against hooks of the test's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from landscape import open_archive

accelerate = pytest.importorskip("accelerate", reason="the test extra brings Accelerate")

from landscape.probes.integrations.accelerate import record  # noqa: E402


@pytest.fixture(autouse=True)
def fresh():
    """Accelerate keeps its state for the whole process; every test begins without one."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


class Scaling(accelerate.Accelerator):
    """float16 with a scaler on a CPU, where Accelerate leaves both out; autocast stays off."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def prepare_model(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super().prepare_model(*args, **kwargs)
        self.native_amp = True
        return prepared

    @property
    def mixed_precision(self) -> str:
        return "fp16"


def norms(model: nn.Module) -> list[float]:
    """The naive computation: each gradient's norm in float64."""
    return [float(p.grad.double().square().sum().sqrt()) for p in model.parameters()]


class Training:
    """A loop as Accelerate's users write it; keeps what its own hooks see."""

    def __init__(self, accelerator: Any, overflow: int | None = None) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        draw = torch.Generator().manual_seed(0)
        data = TensorDataset(torch.randn(40, 8, generator=draw), torch.randint(0, 3, (40,), generator=draw))
        self.accelerator, self.overflow = accelerator, overflow
        self.losses, self.used, self.before = [], [], []
        optimizer.register_step_post_hook(lambda *_: self.used.append(norms(self.model)))
        self.wrapped, self.optimizer, self.loader = accelerator.prepare(self.model, optimizer, DataLoader(data, 8))

    def epoch(self, rec: Any = None, norm: float | None = None, value: float | None = None) -> None:
        for i, (x, y) in enumerate(self.loader):
            with self.accelerator.accumulate(self.wrapped):
                loss = nn.functional.cross_entropy(self.wrapped(x), y)
                self.losses.append(loss.item())
                if rec is not None:
                    rec.log(loss=loss)
                self.accelerator.backward(loss * (1e38 if i == self.overflow else 1.0))
                if self.accelerator.sync_gradients:
                    scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler is not None else 1.0
                    self.before.append(np.array(norms(self.model)) / scale)
                    if norm is not None:
                        self.accelerator.clip_grad_norm_(self.wrapped.parameters(), norm)
                    if value is not None:
                        self.accelerator.clip_grad_value_(self.wrapped.parameters(), value)
                self.optimizer.step()
                self.optimizer.zero_grad()


WAYS = {
    "plain": {},
    "clipped by norm": {"norm": 0.1},
    "clipped by value": {"value": 0.01},
}
ACCELERATORS = {
    "one batch a step": (accelerate.Accelerator, 1),
    "accumulated": (accelerate.Accelerator, 2),
    "scaled": (Scaling, 2),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ACCELERATORS)
def test_norms_equal_a_naive_computation_and_weights_those_of_a_run_without(way, kind, tmp_path):
    make, parts = ACCELERATORS[kind]
    bare = Training(make(cpu=True, gradient_accumulation_steps=parts))
    bare.epoch(**WAYS[way])
    accelerator = make(cpu=True, gradient_accumulation_steps=parts)
    training = Training(accelerator)
    with record(accelerator, tmp_path / "run.h5", training.wrapped, training.optimizer) as rec:
        training.epoch(rec, **WAYS[way])
    history = open_archive(tmp_path / "run.h5").history
    # 1e-6: the norms of float32 tensors, summed in float64 on both sides; those before clipping by norm are the norms
    # after over the coefficient, which rounds each gradient to float32 once.
    np.testing.assert_allclose(history["gradient_norm"].values[:, 1:], training.used, rtol=1e-6)
    if way != "plain":
        np.testing.assert_allclose(history["gradient_norm_before"].values[:, 1:], training.before, rtol=1e-6)
    assert all(torch.equal(p, q) for p, q in zip(training.model.parameters(), bare.model.parameters(), strict=True))
    each = [np.mean(training.losses[i : i + parts]) for i in range(0, 5, parts)]
    np.testing.assert_allclose(history["loss"].column("loss"), each, rtol=1e-6)
    assert "clip_grad_norm_" not in vars(accelerator)


def test_a_step_that_the_scaler_skips_is_counted_and_takes_no_row(tmp_path):
    accelerator = Scaling(cpu=True)
    training = Training(accelerator, overflow=2)
    with record(accelerator, tmp_path / "run.h5", training.wrapped, training.optimizer) as rec:
        training.epoch(rec, norm=0.1)
    history = open_archive(tmp_path / "run.h5").history
    assert history["gradient_norm"].steps.tolist() == [1, 2, 3, 4]
    assert [(e.step, e.kind) for e in history.events if e.kind == "skipped_step"] == [(3, "skipped_step")]
    kept = [loss for i, loss in enumerate(training.losses) if i != 2]
    np.testing.assert_allclose(history["loss"].column("loss"), kept, rtol=1e-6)


def test_clipping_a_part_of_the_parameters_says_nothing_of_the_others(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    training = Training(accelerator)
    with record(accelerator, tmp_path / "run.h5", training.wrapped, training.optimizer):
        accelerator.backward(training.wrapped(torch.ones(2, 8)).square().sum())
        accelerator.clip_grad_norm_(training.wrapped[0].parameters(), 0.01)
        training.optimizer.step()
    history = open_archive(tmp_path / "run.h5").history
    assert history.get("gradient_norm_before") is None
    np.testing.assert_allclose(history["gradient_norm"].values[:, 1:], training.used, rtol=1e-6)


def test_a_resumed_run_goes_on_with_the_archive(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    training = Training(accelerator)

    def first() -> None:
        with record(accelerator, tmp_path / "run.h5", training.wrapped, training.optimizer) as rec:
            training.epoch(rec)
            rec.end_epoch()
            accelerator.save_state(tmp_path / "state")
            training.overflow = 2
            training.epoch(rec)
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        first()
    assert open_archive(tmp_path / "run.h5").status == "failed"
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True)
    again = Training(accelerator)
    with record(accelerator, tmp_path / "run.h5", again.wrapped, again.optimizer, resume=True) as rec:
        accelerator.load_state(tmp_path / "state")
        assert (rec.step, rec.epoch) == (5, 1)
        again.epoch(rec)
        accelerator.load_state(tmp_path / "state")  # the best weights again, in the middle: the steps go on
        assert rec.step == 10
    archive = open_archive(tmp_path / "run.h5")
    series = archive.history["gradient_norm"]
    assert archive.status == "complete"
    assert series.current().steps.tolist() == list(range(1, 11))
    assert series.superseded.sum() == 5
    np.testing.assert_allclose(series.current().values[:, 1:], [*training.used[:5], *again.used], rtol=1e-6)


def test_predictions_are_gathered_by_the_accelerator(tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    training = Training(accelerator)
    with record(accelerator, tmp_path / "run.h5", training.wrapped, training.optimizer, facts={"loss": "ce"}) as rec:
        training.epoch(rec)
        with torch.no_grad():
            for x, y in training.loader:
                rec.observe(*accelerator.gather_for_metrics((training.wrapped(x), y)))
        rec.end_epoch()
    archive = open_archive(tmp_path / "run.h5")
    assert archive.history["calibration"].column("samples").tolist() == [40]
    assert archive.run["framework"] == f"accelerate {accelerate.__version__}"
    assert (archive.run["loss"], archive.run["precision"]) == ("ce", "no")


def test_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(TypeError, match="no option 'probe'"), record(None, tmp_path, None, None, probe=1):  # type: ignore[call-arg]
        pass


@pytest.mark.slow
def test_two_processes_write_one_archive(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    archive = open_archive(tmp_path / "run.h5")
    naive = json.loads((tmp_path / "naive.json").read_text(encoding="utf-8"))
    assert archive.status == "complete"
    np.testing.assert_allclose(archive.history["gradient_norm"].values[:, 1:], naive, rtol=1e-6)
    # 40 samples over two processes in batches of 8: the last one is filled up for training, and counted once here.
    assert archive.history["calibration"].column("samples").tolist() == [40]


SCRIPT = f"""
import json, os, sys
import torch
sys.path.insert(0, {str(Path(__file__).parent)!r})

def train(rank, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    from test_integrations_accelerate import Training, accelerate, record
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    training = Training(accelerator)
    with record(accelerator, "run.h5", training.wrapped, training.optimizer) as rec:
        training.epoch(rec, norm=0.1)
        with torch.no_grad():
            for x, y in training.loader:
                rec.observe(*accelerator.gather_for_metrics((training.wrapped(x), y)))
        rec.end_epoch()
    if accelerator.is_main_process:
        json.dump(training.used, open("naive.json", "w"))
    accelerator.wait_for_everyone()  # neither leaves while the other's last messages are under way
    accelerator.end_training()
    # On a busy machine gloo's threads were once still there when the interpreter took them apart: std::terminate.
    sys.stderr.flush()
    os._exit(0)

if __name__ == "__main__":
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torch.multiprocessing.spawn(train, (port,), nprocs=2)
"""
