"""The effective rank of layers' outputs while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.dynamics.embeddings import effective_rank
from landscape.errors import MeasurementError
from landscape.widest import widest

from .probe import Probe, Quantity, Run, Step
from .when import When, every


class Embeddings(Probe):
    """`embedding_rank`: the effective rank (RankMe) of the output of each named layer, in the step's own forward pass.

    Of the first forward pass in training mode of each of the probe's steps; rows are samples (and positions), columns
    features: channels of a map are its features. A layer that gives no matrix of at least two rows is NaN.

    Args:
        layers: names of modules, as `model.named_modules()` has them.
        when: which steps; every 100th by default (chosen by us: an SVD of 128 x 512 features takes 20 ms).
    """

    name = "embeddings"

    def __init__(self, layers: Sequence[str] | str, when: When | None = None) -> None:
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.when = when if when is not None else every(steps=100)
        self._handles: list[Any] = []
        self._waiting = False
        self._ranks: dict[str, Tensor] = {}
        self._seen: set[str] = set()
        self._trouble: Exception | None = None

    def start(self, run: Run) -> Sequence[Quantity]:
        modules = dict(run.model.named_modules())
        missing = [n for n in self.layers if n not in modules]
        if missing or not self.layers:
            named = ", ".join([n for n in modules if n][:20])
            raise MeasurementError(f"the model has no layer {missing[0] if missing else ''!r}; it has {named}")
        self.close()
        for name in self.layers:
            self._handles.append(modules[name].register_forward_hook(self._hook(run, name)))
        doc = "effective rank of a layer's output, exp of the entropy of its singular values"
        return [Quantity("embedding_rank", self.layers, "", doc)]

    def ready(self, run: Run, number: int) -> None:
        self._waiting = True
        self._ranks = {}

    def after(self, run: Run, step: Step) -> None:
        if self._trouble is not None:
            raise self._trouble
        if step.followed is not run.followed[0] or not self._ranks:
            return
        self._waiting = False
        some = next(iter(self._ranks.values()))
        absent = torch.full_like(some, torch.nan)
        run.record("embedding_rank", step.number, torch.stack([self._ranks.get(n, absent) for n in self.layers]))

    def lacked(self) -> str:
        unseen = [n for n in self.layers if n not in self._seen]
        if not unseen:
            return ""
        return (
            f" of {', '.join(unseen)}: no forward pass in training mode called it at any of the probe's steps; call "
            "model.train(), and name layers that the model itself calls, as Embeddings(layers=[...])"
        )

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, run: Run, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            # While another probe measures, the model runs on that probe's data.
            if not self._waiting or run.measuring or not module.training or name in self._ranks:
                return
            self._seen.add(name)
            try:
                self._ranks[name] = _rank_of(output[0] if isinstance(output, tuple | list) else output)
            except Exception as error:  # nothing may leave the user's forward pass: `after` says it
                self._trouble, self._waiting = error, False

        return hook


def _rank_of(output: Any) -> Tensor:
    if not isinstance(output, Tensor) or output.ndim < 2:
        return torch.full((), torch.nan, dtype=torch.float64, device="cpu")
    features = output.detach()
    if features.ndim == 4:
        features = features.movedim(1, -1)  # maps (n, channels, h, w): channels are the features
    try:
        return effective_rank(features)
    except MeasurementError:  # not finite, or empty
        return features.new_full((), torch.nan, dtype=widest(features.device))
