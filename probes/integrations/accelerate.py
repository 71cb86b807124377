"""The recorder in a loop of one's own with Accelerate.

from landscape.probes.integrations.accelerate import record

model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
with record(accelerator, "runs/a/run.h5", model, optimizer) as rec:
    for x, y in loader:
        with accelerator.accumulate(model):
            loss = criterion(model(x), y)
            rec.log(loss=loss)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(); optimizer.zero_grad()
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any, Unpack

from torch import nn

from landscape.errors import MeasurementError

from ..following import Optimizers
from ..recorder import Recorder
from .clipping import watch_clipping
from .options import RecorderOptions, check_options, missing, with_facts
from .wrapped import Wrapped

try:
    import accelerate
except ModuleNotFoundError as error:
    raise missing("accelerate", "Accelerate", "accelerate") from error


@contextlib.contextmanager
def record(
    accelerator: Any,
    path: str | os.PathLike[str],
    model: nn.Module,
    optimizer: Optimizers,
    *,
    resume: bool = False,
    checkpointing: bool = True,
    **options: Unpack[RecorderOptions],
) -> Iterator[Recorder]:
    """Attach a `landscape.probes.Recorder` to what `accelerator.prepare` returned; yields it.

    One row for each optimizer step, whatever is accumulated; log the loss of each micro-batch. Norms are those of
    unscaled gradients, before and behind `accelerator.clip_grad_norm_` and `clip_grad_value_`. Predictions for
    calibration are shown with `rec.observe(*accelerator.gather_for_metrics((logits, labels)))`. Leave the block by an
    exception, and the archive's status is "failed".

    Args:
        accelerator: an accelerate.Accelerator.
        path, model, optimizer: as for Recorder; prepared.
        resume: go on with the archive that is there; `accelerator.load_state` inside the block says from which step.
        checkpointing: register the recorder's state for `save_state` and `load_state`. Accelerate loads a checkpoint
            only where as many objects are registered as were when it was saved: say False to load one from before.
        options: those of Recorder.

    Raises TypeError for an option that the recorder doesn't have, and whatever Recorder raises.
    """
    check_options(options)
    known: Any = with_facts(options, _facts(accelerator))
    wrapped = Wrapped()
    with Recorder(path, model, optimizer, resume=resume, **known) as recorder:
        try:
            watch_clipping(wrapped, accelerator, recorder)
            if checkpointing:
                accelerator.register_for_checkpointing(_State(recorder))
            yield recorder
        finally:
            wrapped.restore()


class _State:
    """The recorder's state as `register_for_checkpointing` wants it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def state_dict(self) -> dict[str, Any]:
        return self._recorder.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with contextlib.suppress(MeasurementError):  # weights that are loaded in the middle: the steps go on
            self._recorder.load_state_dict(state)


def _facts(accelerator: Any) -> dict[str, Any]:
    """Return what the accelerator says of the run."""
    return {
        "framework": f"accelerate {accelerate.__version__}",
        "precision": accelerator.mixed_precision,
        "accumulate_grad_batches": accelerator.gradient_accumulation_steps,
    }
