"""Saved predictions, and by which names scores, labels and groups are found in a file: never by their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MeasurementError
from .inputs import Kind

#: Names that are taken for what they say; a table's scores are these with the class behind them: logit_0, p_0.
NAMES: Mapping[str, tuple[str, ...]] = {
    "logits": ("logits", "logit"),
    "probabilities": ("probabilities", "probs", "probability", "prob", "p"),
    "labels": ("labels", "label", "targets", "target"),
}
KINDS: tuple[Kind, ...] = ("logits", "probabilities")


@dataclass(frozen=True)
class SavedPredictions:
    """Scores of one kind with their labels, as they lie in a file; `notes` say what was taken for what."""

    path: str
    kind: Kind
    scores: Any
    labels: Any
    groups: Any = None
    notes: tuple[str, ...] = ()

    @property
    def given(self) -> dict[str, Any]:
        """The arguments of `calibration_error` and `recalibrate`."""
        return {self.kind: self.scores, "labels": self.labels, "groups": self.groups}


def find_scores(path: Path, names: Sequence[str], named: Mapping[str, str | None], described: str) -> tuple[Kind, str]:
    """Return which kind the scores are and what they are called, by the option given or the usual names."""
    for kind in KINDS:
        key = named[kind]
        if key is not None:
            if key not in names:
                raise MeasurementError(f"{path} has no {key!r} (--{kind}); it holds {described}")
            return kind, key
    found: list[tuple[Kind, str]] = [(kind, n) for kind in KINDS for n in NAMES[kind] if n in names]
    if len(found) == 1:
        return found[0]
    raise which_scores(path, [n for _, n in found], described)


def which_scores(path: Path, found: Sequence[str], described: str) -> MeasurementError:
    """Return the error that asks which of the names `found`, or what else, holds the scores."""
    if found:
        return MeasurementError(
            f"{path} holds {' and '.join(found)}: say which to take with --logits NAME or --probabilities NAME"
        )
    return MeasurementError(
        f"{path} has neither logits nor probabilities by name; say what the scores are called, and which of the two "
        f"they are, with --logits NAME or --probabilities NAME; it holds {described}"
    )


def find_labels(path: Path, names: Sequence[str], named: Mapping[str, str | None], described: str) -> str:
    """Return what the labels are called."""
    key = named["labels"]
    found = [n for n in NAMES["labels"] if n in names] if key is None else [n for n in (key,) if n in names]
    if len(found) == 1:
        return found[0]
    if key is not None:
        raise MeasurementError(f"{path} has no {key!r} (--labels); it holds {described}")
    told = f"holds {' and '.join(found)}" if found else f"has no labels by name; it holds {described}"
    raise MeasurementError(f"{path} {told}; say what the labels are called with --labels NAME")


def find_groups(path: Path, names: Sequence[str], named: Mapping[str, str | None], described: str) -> str | None:
    """Return what the groups are called, where they are asked for."""
    key = named["groups"]
    if key is not None and key not in names:
        raise MeasurementError(f"{path} has no {key!r} (--groups); it holds {described}")
    return key


def in_short(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
