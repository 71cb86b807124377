"""What an Accelerator clips, told to a recorder: Transformers' Trainer clips by one, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..recorder import Recorder
from .wrapped import Wrapped


def watch_clipping(wrapped: Wrapped, accelerator: Any, recorder: Recorder) -> None:
    """Tell the recorder of every clipping by this accelerator, until `wrapped` is restored."""
    about_to_clip: list[tuple[list[Tensor], float]] = []

    def norm(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_norm_(parameters: Any, max_norm: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            total = original(parameters, max_norm, *args, **kwargs)
            if isinstance(total, Tensor) and float(max_norm) != float("inf"):  # inf measures, and clips nothing
                for name in _covered(recorder, parameters):
                    recorder.clipped(total, float(max_norm), optimizer=name)
            return total

        return clip_grad_norm_

    def value(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip_grad_value_(parameters: Any, clip_value: Any) -> Any:
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            about_to_clip.append((parameters, float(clip_value)))
            try:
                return original(parameters, clip_value)
            finally:
                about_to_clip.clear()

        return clip_grad_value_

    def unscale(original: Callable[..., Any]) -> Callable[..., Any]:
        def unscale_gradients(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            # The last moment before values are clipped; nothing tells their norms afterwards.
            for parameters, limit in about_to_clip:
                for name in _covered(recorder, parameters):
                    recorder.clipping(limit, by_norm=False, optimizer=name)
            return found

        return unscale_gradients

    wrapped.wrap(accelerator, "clip_grad_norm_", norm)
    wrapped.wrap(accelerator, "clip_grad_value_", value)
    wrapped.wrap(accelerator, "unscale_gradients", unscale)


def _covered(recorder: Recorder, parameters: list[Tensor]) -> list[str]:
    """Return the optimizers all of whose gradients are clipped: one coefficient says nothing of the others."""
    clipped = {id(p) for p in parameters}
    return [f.name for f in recorder.followed if all(id(p) in clipped for p in f.parameters if p.grad is not None)]
