"""Record a training by Lightning: writes runs/lightning/run.h5, which `landscape watch` follows."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from digits_task import digits, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from landscape import open_archive
from landscape.probes import CalibrationProbe, CurvatureProbe, GradientNorms, Updates, every  # pyright: ignore[reportMissingImports]
from landscape.probes.integrations.lightning import RecorderCallback  # pyright: ignore[reportMissingImports]


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, index):
        return {"logits": self(batch[0]), "labels": batch[1]}  # counted for calibration

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0)
    model, task = Digits(), digits()
    probes = [GradientNorms(), Updates(), CalibrationProbe(), CurvatureProbe(k=1, when=every(epochs=2))]
    # The task gives the curvature its data: the largest eigenvalue on a fixed batch, against the optimizer's threshold.
    recorder = RecorderCallback("runs/lightning/run.h5", probes=probes, task=task.replace(model=model), force=True)
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = pl.Trainer(max_epochs=6, gradient_clip_val=1.0, accelerator="cpu", callbacks=[recorder], **quiet)
    trainer.fit(
        model, DataLoader(TensorDataset(*task.train), 64, shuffle=True), DataLoader(TensorDataset(*task.test), 64)
    )

    history = open_archive("runs/lightning/run.h5").history
    print("gradient norm before clipping", history["gradient_norm_before"].column("global")[-3:])
    print("calibration error after each epoch", history["calibration"].column("ece"))
    print("largest eigenvalue", history["eigenvalue"].column("1"))
