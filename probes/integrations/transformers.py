"""The recorder as a callback of Transformers' Trainer.

from landscape.probes.integrations.transformers import RecorderCallback

trainer = Trainer(model, args, train_dataset=data, ...)
RecorderCallback("runs/a/run.h5").attach(trainer)
trainer.train()
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from landscape.errors import MeasurementError
from landscape.labels import IGNORE_INDEX
from landscape.parameters import unwrap
from landscape.tokens import cross_entropies

from ..recorder import Recorder
from .clipping import watch_clipping
from .options import RecorderOptions, check_options, missing, with_facts
from .predictions import Predicted, Predictions, named_logits
from .wrapped import Wrapped

try:
    import transformers
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ModuleNotFoundError as error:
    raise missing("transformers", "Transformers", "transformers") from error

#: The recorder's state in the folder of a checkpoint.
STATE = "landscape_recorder.pt"

#: What the Trainer logs about its own running, with eval_ or another prefix: seconds, speeds, operations, memory.
_BOOKS = re.compile(
    r"total_flos|num_input_tokens_seen|\w+_(runtime|per_second|preparation_time|compilation_time)|\w+_mem_[cg]pu(_\w+)?"
)


class RecorderCallback(TrainerCallback):
    """Records what a Trainer does: one row for each optimizer step, with everything that the Trainer logs.

    A callback is told neither a step's loss, nor the gradients before clipping, nor predictions, nor that the training
    failed. `attach(trainer)` looks after all four. Given as `Trainer(callbacks=[...])` alone, it records the norms of
    the gradients that are used (unscaled, behind clipping), updates, learning rates and whatever is logged: the loss as
    the mean since the last time (`logging_steps`), the norm before clipping as `grad_norm`; a training that fails
    leaves an archive with the status "interrupted" when Python ends.

    The recorder's state is saved in each checkpoint's folder, as landscape_recorder.pt: `train(resume_from_checkpoint=
    ...)` goes on with the archive. What the Trainer logs about its own running (`eval_runtime`, `*_per_second`,
    `total_flos` ...) is kept as `bookkeeping`, and stands in no table.

    Args:
        path: the archive; by default run.h5 in `output_dir`.
        predictions: (logits, labels, inputs) -> (logits, labels) of a batch of an evaluation, or a mapping with what
            `Recorder.observe` takes, to count them for calibration (when attached); by default as they are, label -100
            left out, tokens shifted by one where the model or its loss says so; a regression is left alone. The splits
            are "val", and the names of further evaluation datasets; every process counts its share, samples repeated to
            fill the last batch included. The NLL of a causal language model is the mean over the tokens that are
            predicted; the Trainer's own `eval_loss` may divide by the first ones, too, and be lower by that share.
        options: those of `landscape.probes.Recorder`.

    Raises TypeError for an option that the recorder doesn't have, and what Recorder raises when the training starts.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        predictions: Callable[[Any, Any, Any], Predicted] | None = None,
        **options: Unpack[RecorderOptions],
    ) -> None:
        check_options(options)
        self._path, self._options = path, options
        self._find = predictions
        self._predictions = Predictions(self._predicted)
        self._trainer: Any = None
        self._recorder: Recorder | None = None
        self._lasting, self._wrapped = Wrapped(), Wrapped()
        self._resumed: Path | None = None
        self._loss: Tensor | None = None
        self._split = "val"
        #: Whether tokens predict the label behind their own, once that is known.
        self._shifts: bool | None = None

    @property
    def recorder(self) -> Recorder:
        """The recorder of the training that goes on. Raises MeasurementError before and after it."""
        if self._recorder is None:
            raise MeasurementError("the recorder is there between on_train_begin and on_train_end of a training")
        return self._recorder

    def attach(self, trainer: Any) -> RecorderCallback:
        """Add this callback to a Trainer that is made, and watch its losses, clipping and evaluations; returns it."""
        if self._trainer is not None:
            raise MeasurementError("this callback is attached to a Trainer already; make one for each Trainer")
        self._trainer = trainer
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)
        self._lasting.wrap(trainer, "train", self._train)
        return self

    # --------------------------------------------------------------------------------------- beginning and end

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A second beginning without an end is an attempt that ran out of memory, and starts again with smaller batches.
        again = self._recorder is not None
        self._close(lambda recorder: recorder.close("failed"))
        path = self._path if self._path is not None else Path(args.output_dir) / "run.h5"
        options: Any = with_facts(self._options, _facts(args))
        if again:
            options["force"] = True
        model = kwargs["model"] if self._trainer is None else self._trainer.model_wrapped
        goes_on = state.global_step > 0
        recorder = Recorder(path, model, kwargs["optimizer"], resume=goes_on, **options)
        if goes_on:
            recorder.load_state_dict(self._saved(args, state))
        self._recorder, self._loss = recorder, None
        if self._trainer is not None:
            self._wrapped.wrap(self._trainer, "training_step", self._training_step)
            self._wrapped.wrap(self._trainer, "prediction_step", self._prediction_step)
            self._wrapped.wrap(self._trainer, "evaluation_loop", self._evaluation_loop)
            watch_clipping(self._wrapped, self._trainer.accelerator, recorder)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close(lambda recorder: recorder.close())

    def _close(self, close: Callable[[Recorder], None]) -> None:
        recorder, self._recorder = self._recorder, None
        self._wrapped.restore()
        if recorder is not None:
            close(recorder)

    def _train(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def train(resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
            found = isinstance(resume_from_checkpoint, str | os.PathLike)
            self._resumed = Path(resume_from_checkpoint) if found else None
            try:
                return original(resume_from_checkpoint, *args, **kwargs)
            except BaseException as error:
                failure = error
                self._close(lambda recorder: recorder.__exit__(type(failure), failure, failure.__traceback__))
                raise

        return train

    # --------------------------------------------------------------------------------------- steps

    def _training_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = original(*args, **kwargs)
            # Each micro-batch returns its share of the step's loss.
            self._loss = loss.detach().clone() if self._loss is None else self._loss + loss.detach()
            return loss

        return training_step

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        recorder, loss, self._loss = self._recorder, self._loss, None
        if recorder is None:
            return
        if getattr(kwargs.get("optimizer"), "step_was_skipped", False):
            recorder.skipped_step()  # the Trainer clears gradients by the model, which the recorder doesn't see
        elif loss is not None:
            recorder.log_at(recorder.step, {"loss": loss})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._recorder is not None and logs:
            values = {n: v for n, v in logs.items() if isinstance(v, int | float) and n != "epoch"}
            if self._trainer is not None:
                values.pop("loss", None)  # a mean of losses that are there already
            books = {n: v for n, v in values.items() if _BOOKS.fullmatch(n)}
            self._recorder.log_at(self._recorder.step, books, bookkeeping=True)
            values = {n: v for n, v in values.items() if n not in books}
            self._recorder.log_at(self._recorder.step, values)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._recorder is not None:
            self._recorder.end_epoch()

    # --------------------------------------------------------------------------------------- evaluation

    def _evaluation_loop(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def evaluation_loop(*args: Any, **kwargs: Any) -> Any:
            prefix = kwargs.get("metric_key_prefix", args[4] if len(args) > 4 else "eval")
            self._split = "val" if prefix == "eval" else str(prefix).removeprefix("eval_")
            return original(*args, **kwargs)

        return evaluation_loop

    def _prediction_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def prediction_step(
            model: Any, inputs: Any, prediction_loss_only: bool, *args: Any, **kwargs: Any
        ) -> tuple[Any, Any, Any]:
            generates = getattr(self._trainer.args, "predict_with_generate", False)
            if self._recorder is None or generates:  # text instead of logits, and slow
                return original(model, inputs, prediction_loss_only, *args, **kwargs)
            # The model computes logits in any case; asked for the loss only, the Trainer drops them, as is done below.
            loss, logits, labels = original(model, inputs, False, *args, **kwargs)
            self._predictions.observe(self._recorder, self._split, logits, labels, inputs, loss)
            return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

        return prediction_step

    def _predicted(self, logits: Any, labels: Any, inputs: Any, loss: Any) -> Predicted:
        if self._find is not None:
            return self._find(logits, labels, inputs)
        if isinstance(logits, tuple | list):
            logits = next((x for x in logits if isinstance(x, Tensor)), None)
        if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
            return None
        if logits.ndim == 3 and labels.shape == logits.shape[:2] and not labels.is_floating_point():
            if self._shifts is None:
                self._shifts = _predicts_the_next(type(unwrap(self._trainer.model)).__name__, logits, labels, loss)
            if self._shifts:
                logits, labels = logits[:, :-1], labels[:, 1:]
            # By sequences, whose tokens depend on each other; classes where torch has them, whatever the lengths are.
            return logits.transpose(1, 2), labels
        return named_logits({"logits": logits, "labels": labels})

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._recorder is not None:
            self._recorder.end_evaluation(everywhere=True)

    # --------------------------------------------------------------------------------------- checkpoints

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = self._folder(args, state)
        if self._recorder is None or not state.is_world_process_zero or not folder.is_dir():
            return
        with contextlib.suppress(OSError):  # a full disk fails the Trainer's own files, and says so
            aside = folder / f"{STATE}.tmp"
            torch.save(self._recorder.state_dict(), aside)
            aside.replace(folder / STATE)

    def _folder(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"

    def _saved(self, args: Any, state: Any) -> dict[str, Any]:
        """Return the recorder's state in the checkpoint that the Trainer goes on from.

        A checkpoint without one, from before the callback was there, tells its step and epoch alone.
        """
        ended = int(state.epoch)
        for folder in filter(None, (self._resumed, self._folder(args, state))):
            if (folder / STATE).is_file():
                saved = torch.load(folder / STATE, map_location="cpu", weights_only=True)
                # Saved at the last step of an epoch, before that ended: the Trainer goes on with the next one.
                return {**saved, "epoch": max(saved["epoch"], ended)}
        return {"step": state.global_step, "epoch": ended}


def _facts(args: Any) -> dict[str, Any]:
    """Return what the Trainer's arguments say of the run."""
    schedule = args.lr_scheduler_type
    return {
        "framework": f"transformers {transformers.__version__}",
        "precision": "fp16" if args.fp16 else "bf16" if args.bf16 else None,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "accumulate_grad_batches": args.gradient_accumulation_steps,
        "gradient_clip_val": args.max_grad_norm,
        "schedule": str(getattr(schedule, "value", schedule)),
        "seed": args.seed,
    }


def _predicts_the_next(name: str, logits: Tensor, labels: Tensor, loss: Any) -> bool:
    """Return whether each token predicts the next label, as in causal language models, and not its own.

    By the model's class where its name says so, for no attribute does (`loss_type` is None for GPT-2); else the one of
    the two cross entropies that comes closer to the loss. The Trainer may divide the sum by the labels before they are
    shifted.
    """
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return True
    if name.endswith(("ForTokenClassification", "ForMaskedLM")) or not isinstance(loss, Tensor):
        return False
    own, following = cross_entropies(logits, labels, IGNORE_INDEX)
    share = float((labels[:, 1:] != IGNORE_INDEX).sum() / (labels != IGNORE_INDEX).sum())
    value = float(loss.detach().float().mean())
    return min(abs(following - value), abs(following * share - value)) < abs(own - value)
