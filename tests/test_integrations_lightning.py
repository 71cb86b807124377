"""The callback in Lightning's real Trainer: its numbers against hooks of the module's own, in every way of training."""

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
from landscape.errors import ArchiveError, MeasurementError
from landscape.probes import GradientNorms, LossTerms, every

pytestmark = [
    # Lightning 2.6 calls a name that torch 2.13 is about to drop.
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
    # Advice to a user.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    # A fit that goes on from a checkpoint: its folder holds one, of an epoch's middle, which loses its order of data.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]
lightning = pytest.importorskip("lightning.pytorch", reason="the test extra brings Lightning")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from landscape.probes.integrations.lightning import RecorderCallback  # noqa: E402


def norms(parameters: Any) -> list[float]:
    """The naive computation: each gradient's norm in float64."""
    return [float(p.grad.double().square().sum().sqrt()) for p in parameters]


class Net(lightning.LightningModule):
    """Three classes of eight numbers; keeps what its own hooks see: gradients before clipping, and as they are used."""

    def __init__(self, optimizer: Any = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        self.make = optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
        self.used, self.before, self.losses = [], [], []

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.losses.append(loss.detach().item())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, index: int) -> dict[str, torch.Tensor]:
        logits = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))
        return {"logits": logits, "labels": batch[1]}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.before.append(norms(self.parameters()))

    def configure_optimizers(self) -> Any:
        optimizer = self.make(self.parameters())
        optimizer.register_step_post_hook(lambda *_: self.used.append(norms(self.parameters())))
        return optimizer


def loader(n: int = 40, batch: int = 8, seed: int = 0) -> DataLoader:
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 8, generator=draw), torch.randint(0, 3, (n,), generator=draw)
    return DataLoader(TensorDataset(x, y), batch)


def trainer(folder: Path, callbacks: Any = (), **settings: Any) -> Any:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    where = {"accelerator": "cpu", "devices": 1, "default_root_dir": folder, "enable_checkpointing": False}
    return lightning.Trainer(callbacks=list(callbacks), **{"max_epochs": 2, **quiet, **where, **settings})


def fit(folder: Path, make: Any = None, callback: Any = None, **settings: Any) -> Any:
    """Train, recorded into folder/run.h5 unless `callback` is False; return the module."""
    torch.manual_seed(0)
    model = (make or Net)()
    if callback is None:
        callback = RecorderCallback(folder / "run.h5")
    callbacks = [*settings.pop("callbacks", ()), *([callback] if callback else [])]
    trainer(folder, callbacks, **settings).fit(model, loader(), loader(24, 16, 1))
    return model


def scaler() -> dict[str, Any]:
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))]}


WAYS = {
    "plain": lambda: {},
    "clipped by norm": lambda: {"gradient_clip_val": 0.1},
    "clipped by value": lambda: {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulated and clipped": lambda: {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    "bfloat16": lambda: {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
    "float16 with a scaler": lambda: {**scaler(), "gradient_clip_val": 0.1},
}

# ------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("way", WAYS)
def test_norms_equal_a_naive_computation_before_and_behind_clipping(way, tmp_path):
    model = fit(tmp_path, **WAYS[way]())
    history = open_archive(tmp_path / "run.h5").history
    # 1e-6: the norms of float32 tensors, summed in float64 on both sides.
    np.testing.assert_allclose(history["gradient_norm"].values[:, 1:], model.used, rtol=1e-6)
    total = np.linalg.norm(model.used, axis=1)
    np.testing.assert_allclose(history["gradient_norm"].column("global"), total, rtol=1e-6)
    if way == "plain":
        assert history.get("gradient_norm_before") is None
        return
    np.testing.assert_allclose(history["gradient_norm_before"].values[:, 1:], model.before, rtol=1e-6)
    limit = history["clip"].column("limit")
    assert set(limit) == {0.01 if "value" in way else 0.1}
    if "value" not in way:
        ratio = total / np.linalg.norm(model.before, axis=1)
        # torch divides by the norm + 1e-6.
        np.testing.assert_allclose(history["clip"].column("coefficient"), ratio, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_the_weights_are_bit_for_bit_those_of_a_run_without(way, tmp_path):
    recorded, bare = (fit(tmp_path, callback=c, **WAYS[way]()) for c in (None, False))
    assert all(torch.equal(p, q) for p, q in zip(recorded.parameters(), bare.parameters(), strict=True))


def test_one_row_for_each_optimizer_step_with_the_mean_loss_of_its_micro_batches(tmp_path):
    model = fit(tmp_path, accumulate_grad_batches=2)
    history = open_archive(tmp_path / "run.h5").history
    # Five batches an epoch: two, two, and the one that is left.
    parts = [model.losses[i:j] for e in (0, 5) for i, j in ((e, e + 2), (e + 2, e + 4), (e + 4, e + 5))]
    assert history["loss"].steps.tolist() == history["gradient_norm"].steps.tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(history["loss"].column("loss"), [np.mean(p) for p in parts], rtol=1e-6)


def test_a_closure_that_is_called_again_and_again(tmp_path):
    model = fit(tmp_path, lambda: Net(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3)))
    history = open_archive(tmp_path / "run.h5").history
    np.testing.assert_allclose(history["gradient_norm"].values[:, 1:], model.used, rtol=1e-6)
    assert len(model.losses) > 10 == len(history["gradient_norm"].steps)


class Overflows(Net):
    """The loss of the third batch overflows once it is scaled."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        return loss * (1e38 if index == 2 and self.current_epoch == 0 else 1.0)


def test_a_step_that_the_scaler_skips_is_counted_and_takes_no_row(tmp_path):
    model = fit(tmp_path, Overflows, **scaler())
    history = open_archive(tmp_path / "run.h5").history
    assert history["gradient_norm"].steps.tolist() == list(range(1, 10))
    assert [(e.step, e.kind) for e in history.events if e.kind == "skipped_step"] == [(3, "skipped_step")]
    taken = [loss for i, loss in enumerate(model.losses) if i != 2]
    np.testing.assert_allclose(history["loss"].column("loss"), taken, rtol=1e-6)


class TwoOptimizers(Net):
    """Manual optimization: one optimizer for each layer, the second every other batch; its own clipping."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen = {"first": [], "second": []}
        self.unclipped = []

    def training_step(self, batch: Any, index: int) -> None:
        first, second = self.optimizers()
        loss = self.loss(batch)
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        self.unclipped.append(norms(self.net[0].parameters()))
        self.clip_gradients(first, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
        first.step()
        if index % 2:
            second.step()
        self.log("loss", loss)

    def configure_optimizers(self) -> Any:
        found = []
        for name, layer in (("first", self.net[0]), ("second", self.net[2])):
            optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
            hook = lambda *_, name=name, layer=layer: self.seen[name].append(norms(layer.parameters()))  # noqa: E731
            optimizer.register_step_post_hook(hook)
            found.append(optimizer)
        return found


def test_several_optimizers_in_manual_optimization(tmp_path):
    model = fit(tmp_path, TwoOptimizers, RecorderCallback(tmp_path / "run.h5", optimizers=["first", "second"]))
    history = open_archive(tmp_path / "run.h5").history
    for name, steps in (("first", 10), ("second", 4)):
        series = history[f"gradient_norm.{name}"]
        assert series.steps.tolist() == list(range(1, steps + 1))
        np.testing.assert_allclose(series.values[:, 1:], model.seen[name], rtol=1e-6)
    np.testing.assert_allclose(history["gradient_norm_before.first"].values[:, 1:], model.unclipped, rtol=1e-6)
    assert history.get("gradient_norm_before.second") is None
    assert len(history["loss"].steps) == 10  # logged by the name of loss, for there is no other


def test_own_checkpoints_hold_the_state_of_every_optimizer(tmp_path):
    recorder = RecorderCallback(tmp_path / "run.h5", optimizers=["first", "second"], checkpoints=every(epochs=1))
    model = fit(tmp_path, TwoOptimizers, recorder)
    saved = torch.load(tmp_path / "step-00000010.pt", weights_only=True)
    assert list(saved["optimizers"]) == ["first", "second"]
    for name, optimizer in zip(("first", "second"), model.trainer.optimizers, strict=True):
        state, expected = saved["optimizers"][name], optimizer.state_dict()
        assert state["param_groups"] == expected["param_groups"]
        for i, moments in expected["state"].items():
            assert all(torch.equal(state["state"][i][k], v) for k, v in moments.items())
    assert [int(s["state"][0]["step"]) for s in saved["optimizers"].values()] == [10, 4]


def test_the_number_of_names_has_to_fit_the_optimizers(tmp_path):
    with pytest.raises(MeasurementError, match=r"2 names \(a, b\) for the 1 optimizers"):
        fit(tmp_path, callback=RecorderCallback(tmp_path / "run.h5", optimizers=["a", "b"]))


# ------------------------------------------------------------------------------------------------- what is logged


def test_logged_numbers_come_once_each_where_they_were_new(tmp_path):
    model = fit(tmp_path)
    logged = open_archive(tmp_path / "run.h5").history["logged"]
    train, val = logged.column("train_loss"), logged.column("val_loss")
    np.testing.assert_allclose(train[~np.isnan(train)], model.losses, rtol=1e-6)
    assert logged.steps[~np.isnan(val)].tolist() == [5, 10]


def test_terms_that_the_module_logs_by_itself_stand(tmp_path):
    class Terms(Net):
        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            terms = {"fit": self.loss(batch), "size": 0.1 * sum(p.square().sum() for p in self.parameters())}
            recorder.recorder.log(loss=terms)
            return sum(terms.values())

    recorder = RecorderCallback(tmp_path / "run.h5", probes=[GradientNorms(), LossTerms(every(steps=1))])
    fit(tmp_path, Terms, recorder)
    history = open_archive(tmp_path / "run.h5").history
    assert history["loss"].names == ("loss", "fit", "size")
    assert history["loss"].steps.tolist() == list(range(1, 11))
    assert history["term_cosine"].names == ("fit|size",)
    with pytest.raises(MeasurementError, match="between on_train_start and on_train_end"):
        _ = recorder.recorder


def test_epochs_calibration_and_facts(tmp_path):
    model = fit(tmp_path)
    archive = open_archive(tmp_path / "run.h5")
    assert archive.status == "complete"
    assert archive.run["framework"] == f"lightning {lightning.__version__}"
    assert (archive.run["batch_size"], archive.run["optimizer"], archive.run["lr"]) == (8, "sgd", 0.1)
    assert archive.history["epoch"].steps.tolist() == [5, 10]
    calibration = archive.history["calibration"]
    # The sanity check's batches, before the training, are not counted.
    assert calibration.steps.tolist() == [5, 10]
    assert calibration.column("samples").tolist() == [24, 24]
    x, y = (torch.cat(t) for t in zip(*loader(24, 16, 1), strict=True))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model.net(x).double(), y)
    assert calibration.column("nll")[-1] == pytest.approx(float(loss), rel=1e-6)


def test_predictions_by_a_function_of_the_users(tmp_path):
    class Bare(Net):
        def validation_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0]).softmax(1)

    callback = RecorderCallback(
        tmp_path / "run.h5", predictions=lambda outputs, batch: {"probabilities": outputs, "labels": batch[1]}
    )
    fit(tmp_path, Bare, callback)
    assert open_archive(tmp_path / "run.h5").history["calibration"].column("samples").tolist() == [24, 24]


def test_predictions_that_fail_are_told_once_and_the_training_goes_on(tmp_path):
    callback = RecorderCallback(tmp_path / "run.h5", predictions=lambda outputs, batch: outputs["nothing"])
    with pytest.warns(RuntimeWarning, match="can't be counted for calibration.*KeyError") as told:
        fit(tmp_path, callback=callback)
    assert len([w for w in told if "calibration" in str(w.message)]) == 1
    assert open_archive(tmp_path / "run.h5").status == "complete"


def test_the_archive_lies_in_the_log_dir_by_default(tmp_path):
    fit(tmp_path, callback=RecorderCallback())
    assert open_archive(tmp_path / "run.h5").status == "complete"


# ------------------------------------------------------------------------------------------------- ends


class Stops(Net):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        if self.current_epoch == 1 and index == 2:
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [(ValueError("no"), ValueError, "failed"), (KeyboardInterrupt(), SystemExit, "interrupted")],
)
def test_a_training_that_breaks_off_says_so(error, raised, status, tmp_path):
    with pytest.raises(raised):
        fit(tmp_path, lambda: Stops(error))
    archive = open_archive(tmp_path / "run.h5")
    assert archive.status == status
    assert archive.history["gradient_norm"].steps.tolist() == list(range(1, 8))


def test_an_archive_that_is_there_is_refused_unless_it_may_be_replaced(tmp_path):
    fit(tmp_path)
    with pytest.raises(ArchiveError, match="exists"):
        fit(tmp_path)
    fit(tmp_path, callback=RecorderCallback(tmp_path / "run.h5", force=True))


@pytest.mark.parametrize(("when", "at"), [("the end of an epoch", 5), ("its last step", 5), ("the middle of one", 7)])
def test_a_resumed_fit_goes_on_with_the_archive(when, at, tmp_path):
    step = {"every_n_train_steps": at, "save_top_k": -1}
    end = {"every_n_epochs": 1, "save_top_k": -1, "save_on_train_epoch_end": True}
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", **(end if "end" in when else step))
    with pytest.raises(ValueError, match="no"):
        fit(tmp_path, lambda: Stops(ValueError("no")), callbacks=[keep], enable_checkpointing=True)
    torch.manual_seed(0)
    again, callback = Net(), RecorderCallback(tmp_path / "run.h5")
    whole = trainer(tmp_path, [keep, callback], enable_checkpointing=True)
    whole.fit(again, loader(), loader(24, 16, 1), ckpt_path=tmp_path / "kept" / f"step={at}.ckpt", weights_only=True)
    archive = open_archive(tmp_path / "run.h5")
    series = archive.history["gradient_norm"]
    assert archive.status == "complete"
    assert series.current().steps.tolist() == list(range(1, 11))
    assert series.superseded.sum() == 7 - at
    straight = tmp_path / "straight"
    fit(straight)
    expected = open_archive(straight / "run.h5").history
    # In the middle of an epoch Lightning begins its data anew, where the loader can't go on: the rest differs.
    same = at if "middle" in when else 10
    np.testing.assert_array_equal(series.current().values[:same], expected["gradient_norm"].values[:same])
    assert archive.history["epoch"].current().values.tolist() == [[1.0], [2.0]]


def test_own_checkpoints_along_the_way(tmp_path):
    fit(tmp_path, callback=RecorderCallback(tmp_path / "run.h5", checkpoints=every(epochs=1)))
    assert [p.name for p in sorted(tmp_path.glob("*.pt"))] == ["step-00000005.pt", "step-00000010.pt"]


# ------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_two_processes_write_one_archive(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    archive = open_archive(tmp_path / "run.h5")
    history = archive.history
    naive = json.loads((tmp_path / "naive.json").read_text(encoding="utf-8"))
    assert archive.status == "complete"
    assert sorted(p.name for p in tmp_path.glob("run.h5*")) == ["run.h5"]
    np.testing.assert_allclose(history["gradient_norm"].values[:, 1:], naive, rtol=1e-6)
    # 24 samples in all, of which each process sees 12.
    assert history["calibration"].column("samples").tolist() == [24.0]


SCRIPT = f"""
import json, sys
import torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_integrations_lightning import Net, loader, lightning
from landscape.probes.integrations.lightning import RecorderCallback

if __name__ == "__main__":
    torch.manual_seed(0)
    model = Net()
    callback = RecorderCallback("run.h5")
    trainer = lightning.Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback],
    )
    trainer.fit(model, loader(), loader(24, 4, 1))
    if trainer.is_global_zero:
        json.dump(model.used, open("naive.json", "w"))
"""
