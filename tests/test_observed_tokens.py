"""Predictions of sequences that a loop shows the recorder: ignored labels, unequal lengths, tokens that depend."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recorded_training import small
from torch.nn.functional import pad

from landscape import calibration_error, open_archive
from landscape.calibration.temperature import fit_temperature
from landscape.probes import CalibrationProbe, Recorder
from landscape.probes.observed import Observed

CLASSES = 5


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (n, length, classes) and labels, -100 behind each sequence's end; each batch as long as its longest."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for n, length in ((12, 7), (9, 4), (11, 6)):
        logits = torch.randn(n, length, CLASSES, generator=generator, dtype=torch.float64)
        labels = torch.randint(CLASSES, (n, length), generator=generator)
        ends = torch.randint(2, length + 1, (n, 1), generator=generator)
        found.append((logits, labels.masked_fill(torch.arange(length) >= ends, -100)))
    return found


def whole() -> tuple[torch.Tensor, torch.Tensor]:
    pairs = [(pad(x, [0, 0, 0, 7 - x.shape[1]]), pad(y, [0, 7 - y.shape[1]], value=-100)) for x, y in batches()]
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@pytest.mark.parametrize("classes", ["last", "behind the samples"])
def test_sequences_of_every_length_are_counted_and_tempered(tmp_path: Path, classes: str) -> None:
    model, optimizer = small()
    with Recorder(tmp_path / "run.h5", model, optimizer, probes=[CalibrationProbe()]) as rec:
        for logits, labels in batches():
            rec.observe(logits if classes == "last" else logits.mT, labels)
        rec.end_epoch()
    (found,) = open_archive(tmp_path / "run.h5").history.probed["calibration"]
    expected = calibration_error(logits=whole()[0], labels=whole()[1], ignore_index=-100)
    fitted = fit_temperature(*whole(), ignore_index=-100)
    result = found.result
    assert result.ece == pytest.approx(expected.ece, abs=1e-12)  # type: ignore[attr-defined]
    assert result.ece_interval == pytest.approx(expected.ece_interval, abs=1e-6)  # type: ignore[attr-defined]
    assert result.temperature == pytest.approx(fitted.value, rel=1e-9)  # type: ignore[attr-defined]
    assert result.temperature_stderr == pytest.approx(fitted.stderr, rel=1e-9)  # type: ignore[attr-defined]


def test_without_a_label_to_ignore_those_of_the_first_length_are_kept() -> None:
    seen = Observed(None)
    for logits, labels in batches():
        seen.update(logits, labels.clamp(min=0))
    assert seen.kept is not None
    assert seen.kept[0].shape == (12, 7, CLASSES)
