"""Bad input: one line that says what was expected, what came and what to do. Nothing is guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from landscape.calibration.scores import calibration_error
from landscape.calibration.temperature import fit_temperature
from landscape.errors import LandscapeError, MeasurementError

N = 40
LOGITS = np.random.default_rng(0).normal(size=(N, 3)) * 2
LABELS = np.random.default_rng(1).integers(3, size=N)
P = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
BINARY = P[:, 0]
BITS = LABELS % 2


def changed(a: np.ndarray, where: Any, value: float) -> np.ndarray:
    a = a.copy()
    a[where] = value
    return a


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({"labels": LABELS}, "exactly one of them, got neither"),
    "both": ({"logits": LOGITS, "probabilities": P, "labels": LABELS}, "exactly one of them, got both"),
    "no labels": ({"logits": LOGITS}, "labels are missing"),
    "nan logit": ({"logits": changed(LOGITS, (17, 1), np.nan), "labels": LABELS}, "got nan in row 17 (1 of 40 rows"),
    "inf logit": ({"logits": changed(LOGITS, (3, 0), -np.inf), "labels": LABELS}, "got -inf in row 3"),
    "nan probability": ({"probabilities": changed(P, (5, 2), np.nan), "labels": LABELS}, "got nan in row 5"),
    "nan binary": ({"probabilities": changed(BINARY, 9, np.nan), "labels": BITS}, "got nan in row 9"),
    "nan pixel": (
        {
            "logits": changed(np.zeros((2, 3, 4, 5)), (1, 0, 2, 3), np.nan),
            "labels": np.arange(40).reshape(2, 4, 5) % 3,
        },
        "position (1, 2, 3)",
    ),
    "not normalized": ({"probabilities": P * 0.9, "labels": LABELS}, "must sum to 1 (within 0.001), got 0.9 in row 0"),
    "logits as probabilities": (
        {"probabilities": LOGITS, "labels": LABELS},
        "if these are logits, pass them as logits=",
    ),
    "negative probability": (
        {"probabilities": changed(changed(P, (8, 0), -0.1), (8, 1), 1.0), "labels": LABELS},
        "must lie in [0, 1], got -0.1 in row 8",
    ),
    "binary logits as probabilities": (
        {"probabilities": LOGITS[:, 0], "labels": BITS},
        "if these are logits, pass them as logits=",
    ),
    "probabilities as logits": ({"logits": P, "labels": LABELS}, "pass them as probabilities="),
    "label too big": (
        {"logits": LOGITS, "labels": changed(LABELS, 6, 3)},
        "label 3 in row 6 lies outside the 3 classes",
    ),
    "binary label 2": ({"probabilities": BINARY, "labels": changed(BITS, 6, 2)}, "outside the 2 classes"),
    "negative label": ({"logits": LOGITS, "labels": changed(LABELS, 4, -100)}, "pass ignore_index=-100"),
    "negative beside ignored": (
        {"logits": LOGITS, "labels": changed(changed(LABELS, 4, -100), 20, -1), "ignore_index": -100},
        "label -1 in row 20 is negative",
    ),
    "float labels": ({"logits": LOGITS, "labels": LABELS.astype(float)}, "integers), got float64"),
    "integer logits": ({"logits": LOGITS.astype(int), "labels": LABELS}, "must be floating point numbers"),
    "one-hot": ({"logits": LOGITS, "labels": np.eye(3, dtype=int)[LABELS]}, "not one-hot"),
    "lengths": ({"logits": LOGITS, "labels": LABELS[:-1]}, "expected labels of shape (40,)"),
    "binary lengths": ({"probabilities": BINARY, "labels": BITS[:-1]}, "40 probabilities for 39 labels"),
    "tokens": (
        {"logits": np.zeros((2, 20, 3)), "labels": np.zeros((2, 20), int), "class_dim": 0},
        "they fit with class_dim=-1",
    ),
    "scalar labels": ({"logits": LOGITS, "labels": np.int64(1)}, "don't fit labels of shape ()"),
    "class_dim": ({"logits": LOGITS, "labels": LABELS, "class_dim": 2}, "class_dim=2 is not a dimension"),
    "one column": ({"logits": LOGITS[:, :1], "labels": BITS}, "for a binary task give them with shape (n,)"),
    "few": ({"logits": LOGITS[:14], "labels": LABELS[:14]}, "14 samples for 15 bins"),
    "one": ({"logits": LOGITS[:1], "labels": LABELS[:1]}, "1 sample for 15 bins"),
    "one class": ({"logits": LOGITS, "labels": np.full(N, 2)}, "all 40 labels are class 2"),
    "empty": ({"logits": LOGITS[:0], "labels": LABELS[:0]}, "no predictions"),
    "all ignored": ({"logits": LOGITS, "labels": np.full(N, 7), "ignore_index": 7}, "all 40 labels are ignore_index=7"),
    "convention": ({"logits": LOGITS, "labels": LABELS, "convention": "sklearn"}, "is not one of 'torchmetrics'"),
    "mass": ({"logits": LOGITS, "labels": LABELS, "mass": "even"}, "is not one of 'width', 'equal'"),
    "confidence": ({"logits": LOGITS, "labels": LABELS, "confidence": "all"}, "is not one of 'top', 'positive'"),
    "positive of many": ({"logits": LOGITS, "labels": LABELS, "confidence": "positive"}, "needs a binary task"),
    "netcal top": ({"logits": LOGITS, "labels": LABELS, "convention": "netcal", "confidence": "top"}, "of class 1"),
    "netcal equal mass": ({"logits": LOGITS, "labels": LABELS, "convention": "netcal", "mass": "equal"}, "equal width"),
    "no bins": ({"logits": LOGITS, "labels": LABELS, "bins": 0}, "bins=0 must be at least 1"),
    "seed": ({"logits": LOGITS, "labels": LABELS, "seed": -1}, "seed=-1"),
}


def test_classes_behind_a_length_are_found_where_nothing_else_fits() -> None:
    tokens = np.random.default_rng(0).normal(size=(8, 5, 3))
    labels = np.random.default_rng(1).integers(3, size=(8, 5))
    found = calibration_error(logits=tokens, labels=labels)
    assert found.ece == calibration_error(logits=tokens, labels=labels, class_dim=-1).ece
    assert found.ece == calibration_error(logits=np.moveaxis(tokens, -1, 1), labels=labels).ece
    square, own = tokens[:, :3], labels[:, :3]  # as many positions as classes: torch's order, as ever
    moved = calibration_error(logits=np.moveaxis(square, -1, 1), labels=own, class_dim=-1)
    assert calibration_error(logits=square, labels=own).nll == moved.nll


@pytest.mark.parametrize(("arguments", "message"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_bad_input_is_one_clear_line(kind: str, arguments: dict[str, Any], message: str) -> None:
    if kind == "torch":
        arguments = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    with pytest.raises(MeasurementError) as caught:
        calibration_error(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, LandscapeError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [("bins", 15.0), ("bins", True), ("seed", "0"), ("strict", 1), ("ignore_index", 1.5), ("class_dim", "last")],
)
def test_a_setting_of_the_wrong_type_is_a_type_error(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name):
        calibration_error(logits=LOGITS, labels=LABELS, **{name: value})


def test_not_strict_makes_warnings_of_few_samples_and_one_class() -> None:
    found = calibration_error(logits=LOGITS[:5], labels=np.full(5, 1), strict=False)
    assert any("5 samples for 15 bins" in w for w in found.warnings)
    assert any("all 5 labels are class 1" in w for w in found.warnings)
    with pytest.raises(MeasurementError):
        calibration_error(logits=LOGITS[:5], labels=LABELS[:5], convention="guo", strict=True)


def test_binary_logits_inside_zero_and_one_are_taken_at_their_word_with_a_warning() -> None:
    found = calibration_error(logits=BINARY, labels=BITS)
    assert found.edges[1:][found.counts > 0].min() > 0.5  # sigmoid of [0, 1] is above 1/2: not taken for p
    assert any("pass them as probabilities=" in w for w in found.warnings)
    assert not calibration_error(logits=LOGITS[:, 0], labels=BITS).warnings


def test_arrays_of_every_layout_are_read() -> None:
    expected = calibration_error(probabilities=P, labels=LABELS).ece
    frozen = P.copy()
    frozen.setflags(write=False)
    for p, y in (
        (np.asfortranarray(P), LABELS.astype(np.uint16)),
        (P.astype(">f8"), LABELS.astype(">i4")),
        (P[::-1], LABELS[::-1]),
        (frozen, LABELS.astype(np.int8)),
        (np.repeat(P, 2, axis=1)[:, ::2], LABELS.tolist()),
    ):
        assert calibration_error(probabilities=p, labels=y).ece == pytest.approx(expected, rel=1e-13)


def test_a_batch_of_logits_inside_zero_and_one_is_not_taken_for_probabilities() -> None:
    z = np.random.default_rng(0).random((N, 3))
    found = calibration_error(logits=z, labels=LABELS)
    e = np.exp(z)
    assert np.nansum(found.confidences * found.counts) == pytest.approx((e.max(1) / e.sum(1)).sum(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounded_probabilities_still_sum_to_one(dtype: torch.dtype) -> None:
    p = torch.tensor(np.random.default_rng(0).dirichlet(np.full(1000, 0.1), size=50)).to(dtype)
    found = calibration_error(probabilities=p, labels=torch.arange(50))
    assert found.settings["dtype"] == str(dtype).removeprefix("torch.")
    with pytest.raises(MeasurementError, match="sum to 1"):
        calibration_error(probabilities=p * 0.95, labels=torch.arange(50))


def test_the_temperature_checks_its_input_in_the_same_way() -> None:
    with pytest.raises(MeasurementError, match="row 17"):
        fit_temperature(changed(LOGITS, (17, 1), np.nan), LABELS)
    with pytest.raises(MeasurementError, match="they are probabilities"):
        fit_temperature(P, LABELS)
    with pytest.raises(MeasurementError, match="no predictions"):
        fit_temperature(LOGITS[:0], LABELS[:0])
