"""What losses take: the shapes of outputs and targets by name, how they are checked, and small examples of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ObjectiveError

#: Samples and classes of the examples: small enough for second derivatives by finite differences.
SAMPLES, CLASSES = 6, 4


@dataclass(frozen=True)
class Takes:
    """Outputs and targets that a loss takes.

    Attributes:
        text: the shapes, for people.
        misfit: `(outputs, target) -> ""` where they fit, otherwise what is wrong. Looks at shapes and dtypes only, so
            that it costs no wait for a device.
        example: `generator -> (outputs, target)` in float64.
    """

    text: str
    misfit: Callable[[Any, Any], str] = field(repr=False)
    example: Callable[[torch.Generator], tuple[Any, Any]] = field(repr=False)
    #: How many of several outputs are scores that may be large; None: all.
    scores: int | None = None

    def __reduce__(self) -> Any:
        """Pickle those of this module by their name, so that a loss goes to another process."""
        return next((n for n, v in globals().items() if v is self), super().__reduce__())

    def check(self, outputs: Any, target: Any, name: str) -> None:
        """Raise ObjectiveError unless outputs and target fit."""
        wrong = self.misfit(outputs, target)
        if wrong:
            raise ObjectiveError(f"{name} takes {self.text}; {wrong}")


def _shape(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
    if isinstance(x, Mapping):
        return f"a dict of {', '.join(map(str, x))}"
    return f"{len(x)} parts" if isinstance(x, list | tuple) else f"a {type(x).__name__}"


def _floating(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _integers(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and not x.is_floating_point() and not x.is_complex()


def _got(outputs: Any, target: Any) -> str:
    return f"got outputs {_shape(outputs)}, target {_shape(target)}"


def _normal(g: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu")


def _labels(g: torch.Generator, *shape: int, classes: int = CLASSES) -> torch.Tensor:
    return torch.randint(classes, shape, generator=g, device="cpu")


def _same(outputs: Any, target: Any) -> str:
    fits = _floating(outputs) and _floating(target) and outputs.shape == target.shape
    return "" if fits else _got(outputs, target)


def _quantiles(outputs: Any, target: Any) -> str:
    fits = _floating(outputs) and _floating(target) and outputs.ndim >= 2 and outputs.shape[:-1] == target.shape
    return "" if fits else _got(outputs, target)


def _classified(outputs: Any, target: Any) -> str:
    fits = _floating(outputs) and outputs.ndim >= 2 and outputs.shape[1] >= 2 and _integers(target)
    if fits and target.shape == outputs.shape[:1] + outputs.shape[2:]:
        return ""
    return _got(outputs, target)


def _binary(outputs: Any, target: Any) -> str:
    fits = _floating(outputs) and isinstance(target, torch.Tensor) and outputs.shape == target.shape
    return "" if fits else _got(outputs, target)


def _flat(outputs: Any, target: Any) -> str:
    fits = _floating(outputs) and outputs.ndim == 2 and _integers(target) and target.shape == outputs.shape[:1]
    return "" if fits else _got(outputs, target)


def _several(outputs: Any, count: int, *, alike: bool) -> bool:
    if not isinstance(outputs, Sequence) or isinstance(outputs, str) or len(outputs) != count:
        return False
    if not all(_floating(o) and o.ndim >= 1 for o in outputs):
        return False
    return all(o.shape == outputs[0].shape for o in outputs) if alike else True


def _two_alike(outputs: Any, target: Any) -> str:
    return "" if _several(outputs, 2, alike=True) else _got(outputs, target)


def _domains(outputs: Any, target: Any) -> str:
    fits = _several(outputs, 2, alike=False) and all(o.ndim == 2 for o in outputs)
    return "" if fits and outputs[0].shape[1] == outputs[1].shape[1] else _got(outputs, target)


def _pairs(outputs: Any, target: Any) -> str:
    fits = _several(outputs, 2, alike=True) and isinstance(target, torch.Tensor)
    return "" if fits and outputs[0].ndim == 2 and target.shape == outputs[0].shape[:1] else _got(outputs, target)


def _triplets(outputs: Any, target: Any) -> str:
    return "" if _several(outputs, 3, alike=True) and outputs[0].ndim == 2 else _got(outputs, target)


def _cosines_and_norms(outputs: Any, target: Any) -> str:
    fits = _several(outputs, 2, alike=False) and outputs[1].shape == outputs[0].shape[:1]
    return "" if fits and not _flat(outputs[0], target) else _got(outputs, target)


def _timed(outputs: Any, target: Any) -> str:
    fits = _several(outputs, 2, alike=False) and not _same(outputs[0], target)
    return "" if fits and outputs[1].shape == outputs[0].shape[:1] else _got(outputs, target)


def _boxed(outputs: Any, target: Any) -> str:
    fits = not _same(outputs, target) and outputs.ndim == 2 and outputs.shape[1] == 4
    return "" if fits else _got(outputs, target)


def _detected(outputs: Any, target: Any) -> str:
    parts = ("cls", "box", "obj")
    for what in (outputs, target):
        if not isinstance(what, Mapping) or any(not isinstance(what.get(p), torch.Tensor) for p in parts):
            return _got(outputs, target)
    wrong = _flat(outputs["cls"], target["cls"]) or _boxed(outputs["box"], target["box"])
    return wrong or _binary(outputs["obj"], target["obj"])


def _dense(outputs: Any, target: Any) -> str:
    if not _floating(outputs) or outputs.ndim < 3:
        return _got(outputs, target)
    soft = _floating(target) and target.shape == outputs.shape
    return "" if soft else _classified(outputs, target)


def _maps(outputs: Any, target: Any) -> str:
    return "" if _floating(outputs) and outputs.ndim >= 3 and outputs.shape[1] >= 2 else _got(outputs, target)


def _with_inputs(outputs: Any, target: Any) -> str:
    return "" if _several(outputs, 2, alike=False) else _got(outputs, target)


def _boxes(g: torch.Generator) -> torch.Tensor:
    corner, size = _normal(g, SAMPLES, 2), torch.rand(SAMPLES, 2, generator=g, dtype=torch.float64, device="cpu") + 0.5
    return torch.cat([corner, corner + size], dim=1)


def _detection_example(g: torch.Generator) -> tuple[Any, Any]:
    outputs = {"cls": _normal(g, SAMPLES, CLASSES), "box": _boxes(g), "obj": _normal(g, SAMPLES)}
    there = torch.tensor([1.0, 0.0] * (SAMPLES // 2), dtype=torch.float64, device="cpu")
    return outputs, {"cls": _labels(g, SAMPLES), "box": _boxes(g), "obj": there}


VALUES = Takes(
    "values and targets of one shape (n, ...)", _same, lambda g: (_normal(g, SAMPLES, 2), _normal(g, SAMPLES, 2))
)
QUANTILES = Takes(
    "quantiles (n, ..., q), those of one target last, and targets (n, ...)",
    _quantiles,
    lambda g: (_normal(g, SAMPLES, 2, 3), _normal(g, SAMPLES, 2)),
)
TIMED_VALUES = Takes(
    "(values (n, ...), time in [0, 1] (n,)) and targets (n, ...)",
    _timed,
    lambda g: (
        (_normal(g, SAMPLES, 2), torch.linspace(0.1, 0.9, SAMPLES, dtype=torch.float64, device="cpu")),
        _normal(g, SAMPLES, 2),
    ),
    scores=1,
)
LOGITS = Takes(
    "logits (n, classes, ...) and integer labels (n, ...)",
    _classified,
    lambda g: (_normal(g, SAMPLES, CLASSES), _labels(g, SAMPLES)),
)
ROWS = Takes(
    "logits (n, classes) and integer labels (n,)",
    _flat,
    lambda g: (_normal(g, SAMPLES, CLASSES), _labels(g, SAMPLES)),
)
COSINES = Takes(
    "cosines (n, classes) in [-1, 1] and integer labels (n,)",
    _flat,
    lambda g: (0.5 * torch.tanh(_normal(g, SAMPLES, CLASSES)), _labels(g, SAMPLES)),
)
COSINES_AND_NORMS = Takes(
    "(cosines (n, classes), norms of the features (n,)) and integer labels (n,)",
    _cosines_and_norms,
    lambda g: (
        (0.5 * torch.tanh(_normal(g, SAMPLES, CLASSES)), 20 + 5 * _normal(g, SAMPLES)),
        _labels(g, SAMPLES),
    ),
)
BINARY = Takes(
    "logits (n, ...) and targets 0 or 1 of the same shape",
    _binary,
    lambda g: (_normal(g, SAMPLES), (_normal(g, SAMPLES) > 0).double()),
)
SHARES = Takes(
    "logits (n, ...) and floating-point targets in [0, 1] of the same shape",
    _same,
    lambda g: (_normal(g, SAMPLES), (_normal(g, SAMPLES) > 0).double()),
)
SIGNED = Takes(
    "scores (n, ...) and targets -1 or 1 (or 0 and 1) of the same shape",
    _binary,
    lambda g: (_normal(g, SAMPLES), torch.tensor([1.0, -1.0] * (SAMPLES // 2), dtype=torch.float64, device="cpu")),
)
EMBEDDINGS = Takes(
    "embeddings (n, d) and integer labels (n,)",
    _flat,
    lambda g: (_normal(g, SAMPLES, 3), torch.arange(SAMPLES, device="cpu") // 2),
)
PAIRS = Takes(
    "two embeddings ((n, d), (n, d)) and 0 for similar, 1 for dissimilar (n,)",
    _pairs,
    lambda g: (
        (_normal(g, SAMPLES, 3), 0.5 * _normal(g, SAMPLES, 3)),
        torch.tensor([0.0, 1.0] * (SAMPLES // 2), dtype=torch.float64, device="cpu"),
    ),
)
TRIPLETS = Takes(
    "anchor, positive and negative embeddings, (n, d) each; the target is not looked at",
    _triplets,
    lambda g: ((_normal(g, SAMPLES, 3), _normal(g, SAMPLES, 3), _normal(g, SAMPLES, 3)), None),
)
VIEWS = Takes(
    "two views ((n, d), (n, d)), row i of one belonging to row i of the other; the target is not looked at",
    _two_alike,
    lambda g: ((_normal(g, SAMPLES, 3), _normal(g, SAMPLES, 3)), None),
)
TWO_LOGITS = Takes(
    "logits of the model and of its teacher (or of a second view), (n, classes, ...) each; the target is not looked at",
    _two_alike,
    lambda g: ((_normal(g, SAMPLES, CLASSES), _normal(g, SAMPLES, CLASSES)), None),
)
DOMAINS = Takes(
    "features of two domains, (n, d) and (m, d); the target is not looked at",
    _domains,
    lambda g: ((_normal(g, SAMPLES, 3), _normal(g, SAMPLES - 1, 3) + 0.5), None),
)
MASKS = Takes(
    "logits (n, classes, height, width) and integer labels (n, height, width) or class shares of the logits' shape",
    _dense,
    lambda g: (_normal(g, 2, 3, 3, 3), _labels(g, 2, 3, 3, classes=3)),
)
MAPS = Takes(
    "logits (n, classes, height, width); the target is not looked at",
    _maps,
    lambda g: (_normal(g, 2, 3, 3, 3), None),
)
BOXES = Takes("boxes (n, 4) and target boxes (n, 4), each x1, y1, x2, y2", _boxed, lambda g: (_boxes(g), _boxes(g)))
DETECTION = Takes(
    "two dicts of cls (n, classes) logits and (n,) labels, box (n, 4) and obj (n,) logits and 0 or 1",
    _detected,
    _detection_example,
)
WEIGHTS = Takes(
    "the weights of a model (loss.bind(model)); outputs and target are not looked at",
    lambda outputs, target: "",
    lambda g: (None, None),
)
LOGITS_AND_INPUTS = Takes(
    "(logits, inputs) and the model (loss.bind(model)); the target is not looked at",
    _with_inputs,
    lambda g: ((_normal(g, SAMPLES, CLASSES), _normal(g, SAMPLES, 3)), None),
    scores=1,
)
