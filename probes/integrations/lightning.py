"""The recorder as a callback of Lightning's Trainer.

from landscape.probes.integrations.lightning import RecorderCallback

trainer = Trainer(callbacks=[RecorderCallback("runs/a/run.h5")])
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from landscape.errors import MeasurementError
from landscape.several import by_name

from ..recorder import Recorder
from .options import RecorderOptions, check_options, missing, with_facts
from .predictions import Predicted, Predictions, named_logits
from .wrapped import Wrapped


def _library() -> Any:
    """Return Lightning under the name that it is installed by."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in ("lightning", "pytorch_lightning"):
                raise  # it is there, and lacks something itself
    raise missing("lightning", "Lightning", "lightning")


lightning = _library()


class RecorderCallback(lightning.Callback):
    """Records a `fit`: one row for each optimizer step, automatic or manual, with everything that was logged.

    Gradient norms are unscaled and taken before and behind the clipping of `gradient_clip_val` or `clip_gradients`. The
    loss of a step is the mean over its micro-batches of what `training_step` returned; to record its terms, call
    `callback.recorder.log(loss={...})` in `training_step`. Every number that was logged by `self.log` is kept as
    `logged`. The recorder's state lies in Lightning's checkpoints: `fit(ckpt_path=...)` goes on with the archive. After
    an exception the archive's status is "failed", after Ctrl-C "interrupted".

    Args:
        path: the archive; by default run.h5 in the Trainer's `log_dir`.
        predictions: (outputs, batch) -> (logits, labels) of a validation batch, or a mapping with what
            `Recorder.observe` takes, to count them for calibration; by default the `logits` and `labels` (or `targets`
            ...) of a mapping that `validation_step` returned, labels of the batch where it holds none. The splits are
            "val", and "val.1" ... of further loaders; every process of a distributed run counts its share, samples
            that a sampler repeats to fill the last batch included.
        optimizers: names for several optimizers, in the order of `configure_optimizers`; by default
            those that a Recorder gives to a list.
        options: those of `landscape.probes.Recorder`.

    Raises TypeError for an option that the recorder doesn't have, and what Recorder raises when the training starts.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        predictions: Callable[[Any, Any], Predicted] | None = None,
        optimizers: Sequence[str] | None = None,
        **options: Unpack[RecorderOptions],
    ) -> None:
        super().__init__()
        check_options(options)
        self._path, self._options = path, options
        self._predictions = Predictions(predictions or named_logits)
        self._names = None if optimizers is None else tuple(optimizers)
        self._recorder: Recorder | None = None
        self._wrapped = Wrapped()
        self._state: dict[str, Any] = {}
        self._losses: list[Tensor] = []
        self._seen: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    @property
    def recorder(self) -> Recorder:
        """The recorder of the training that goes on. Raises MeasurementError before and after it."""
        if self._recorder is None:
            raise MeasurementError("the recorder is there between on_train_start and on_train_end of a fit")
        return self._recorder

    # --------------------------------------------------------------------------------------- beginning and end

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        named = self._named_optimizers(trainer)
        # Asked on every process: Lightning broadcasts it.
        path = self._path if self._path is not None else Path(trainer.log_dir or trainer.default_root_dir) / "run.h5"
        goes_on = trainer.global_step > 0
        options = with_facts(self._options, _facts(trainer, pl_module))
        recorder = Recorder(path, trainer.model, named, resume=goes_on, **options)
        if goes_on:
            # A checkpoint from before this callback was there has no state: its steps are those of all optimizers.
            steps = trainer.global_step // len(named)
            state = self._state or {"step": steps, "epoch": 0}
            # Saved at the last step of an epoch, before that ended: the Trainer goes on with the next one.
            recorder.load_state_dict({**state, "epoch": max(state["epoch"], trainer.current_epoch)})
        self._recorder, self._steps = recorder, recorder.steps
        self._losses, self._seen = [], {}
        self._watch_clipping(trainer, pl_module, named)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close(lambda recorder: recorder.close())

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close(lambda recorder: recorder.__exit__(type(exception), exception, exception.__traceback__))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._close(lambda recorder: recorder.close("interrupted"))

    def _close(self, close: Callable[[Recorder], None]) -> None:
        recorder, self._recorder = self._recorder, None
        self._wrapped.restore()
        if recorder is not None:
            self._state = recorder.state_dict()
            close(recorder)

    def _named_optimizers(self, trainer: Any) -> dict[str, Any]:
        names = self._names or tuple(by_name(trainer.optimizers))
        if len(names) != len(trainer.optimizers):
            raise MeasurementError(
                f"{len(names)} names ({', '.join(names)}) for the {len(trainer.optimizers)} optimizers of "
                "configure_optimizers; give one for each"
            )
        return dict(zip(names, trainer.optimizers, strict=True))

    # --------------------------------------------------------------------------------------- steps

    def _watch_clipping(self, trainer: Any, pl_module: Any, named: dict[str, Any]) -> None:
        """Take the norms before each clipping: `gradient_clip_val`, `clip_gradients` and what overrides call it all
        come down to this method of the precision plugin.
        """
        precision = trainer.precision_plugin

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def clip_gradients(optimizer: Any, clip_val: Any = 0.0, gradient_clip_algorithm: Any = "norm") -> Any:
                # In manual optimization gradients are still scaled here, and Lightning clips them so.
                scaled = not pl_module.automatic_optimization and getattr(precision, "scaler", None) is not None
                inner = getattr(optimizer, "optimizer", optimizer)
                name = next((n for n, o in named.items() if o is inner), None)
                if self._recorder is not None and name is not None and clip_val and clip_val > 0 and not scaled:
                    by_norm = str(getattr(gradient_clip_algorithm, "value", gradient_clip_algorithm)) == "norm"
                    self._recorder.clipping(float(clip_val), by_norm=by_norm, optimizer=name)
                return original(optimizer, clip_val, gradient_clip_algorithm)

            return clip_gradients

        self._wrapped.wrap(precision, "clip_gradients", make)

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if pl_module.automatic_optimization:
            self._losses = []  # of a step that was skipped

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        recorder = self._recorder
        if recorder is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            # Lightning hands out the share of an accumulated batch.
            share = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
            self._losses.append(loss.detach() * share)
        if recorder.steps == self._steps:
            return
        self._steps = recorder.steps
        if self._losses:
            recorder.log_at(recorder.step, {"loss": torch.stack([x.reshape(()) for x in self._losses]).mean()})
            self._losses = []
        self._log(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self._recorder is not None:
            self._log(trainer)
            self._recorder.end_epoch()

    def _log(self, trainer: Any) -> None:
        """Record what `self.log` was told since the last time."""
        recorder = self.recorder
        fresh = {}
        for name, value in trainer.callback_metrics.items():
            # Lightning goes on listing what was logged long ago; something new lies in memory of its own.
            last = self._seen.get(name)
            if isinstance(value, Tensor) and value.numel() == 1 and (last is None or _place(last) != _place(value)):
                self._seen[name] = fresh[name] = value
        if fresh:
            recorder.log_at(recorder.step, fresh)

    # --------------------------------------------------------------------------------------- validation

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._recorder is not None:
            split = f"val.{dataloader_idx}" if dataloader_idx else "val"
            self._predictions.observe(self._recorder, split, outputs, batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self._recorder is not None:
            self._log(trainer)
            self._recorder.end_evaluation(everywhere=True)

    # --------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return self._state if self._recorder is None else self._recorder.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict


def _place(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _facts(trainer: Any, pl_module: Any) -> dict[str, Any]:
    """Return what Lightning knows of the run: the module's hyperparameters, and the Trainer's settings."""
    loader = trainer.train_dataloader
    schedules = [type(c.scheduler).__name__ for c in trainer.lr_scheduler_configs]
    hyperparameters = {k: v for k, v in dict(pl_module.hparams).items() if isinstance(v, bool | int | float | str)}
    return {
        "framework": f"lightning {lightning.__version__}",
        "precision": str(trainer.precision),
        "batch_size": getattr(loader, "batch_size", None),
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val,
        "schedule": ", ".join(schedules) or None,
        **hyperparameters,
    }
