"""The registered measurement: held-out predictions of a task, and the line it gives where there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from landscape.calibration import samples
from landscape.calibration.measure import measure_calibration
from landscape.calibration.recalibrated import Recalibration
from landscape.calibration.samples import SampleScores
from landscape.calibration.scores import calibration_error
from landscape.calibration.temperature import fit_temperature
from landscape.errors import LandscapeError, MeasurementError
from landscape.objective import Objective
from landscape.results import Result, measurements
from landscape.tasks import Task


def data(n: int, seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=g, dtype=torch.float64)
    weights = torch.randn(4, classes, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    p = (x @ weights).softmax(dim=1)
    return x, torch.multinomial(p, 1, generator=g).squeeze(1)


def model(scale: float = 1.0, classes: int = 3) -> nn.Module:
    """Return the net that generated the data, its logits multiplied by `scale`: its temperature is `scale`."""
    net = nn.Linear(4, classes, bias=False, dtype=torch.float64)
    weights = torch.randn(4, classes, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(weights.T * scale)
    return net


def make(scale: float = 2.0, n: int = 1500, **settings) -> Task:
    return Task(model(scale), nn.CrossEntropyLoss(), train=data(n, 0), test=data(n, 1), **settings)


def test_it_is_calibration_error_on_the_test_predictions() -> None:
    task = make()
    found = measure_calibration(task, bins=10)
    x, y = data(1500, 1)
    direct = calibration_error(logits=task.model(x).detach(), labels=y, bins=10)
    assert found.ece == direct.ece
    assert found.ece_interval.tolist() == direct.ece_interval.tolist()
    assert (found.split, found.bins, found.samples, found.classes) == ("test", 10, 1500, 3)
    assert found.cost.passes == 1
    assert found.cost.seconds > 0


def test_the_temperature_is_fitted_on_one_half_and_judged_on_the_other() -> None:
    task = make(scale=2.0)
    found = measure_calibration(task, seed=5)
    assert abs(found.temperature - 2.0) < 4 * found.temperature_stderr
    assert found.ece_after_temperature < 0.5 * found.ece_before_temperature
    x, y = data(1500, 1)
    logits = task.model(x).detach()
    order = np.random.default_rng(5).permutation(1500)
    fit, judge = order[:750], order[750:]
    assert found.temperature == fit_temperature(logits[fit], y[fit]).value
    after = calibration_error(logits=logits[judge] / found.temperature, labels=y[judge])
    assert found.ece_after_temperature == after.ece
    assert measure_calibration(task, seed=6).temperature != found.temperature
    assert measure_calibration(task, seed=5).temperature == found.temperature


def test_the_recalibration_and_the_single_scores_come_along_from_the_same_pass() -> None:
    found = measure_calibration(make(), method="vector")
    assert found.along is not None
    mended, scores = found.along
    assert isinstance(mended, Recalibration)
    assert isinstance(scores, SampleScores)
    assert (mended.method, mended.split, mended.judged) == ("vector", "test", 750)
    assert mended.fingerprint == scores.fingerprint
    assert len(mended.fingerprint) == 64
    assert math.isnan(found.temperature)
    assert scores.correct.mean() == pytest.approx(found.accuracy, rel=1e-12)
    assert scores.nll.mean(dtype=float) == pytest.approx(found.nll, rel=1e-6)  # kept in float32
    assert scores.brier.mean(dtype=float) == pytest.approx(found.brier, rel=1e-6)
    assert scores.confidence.mean() == pytest.approx(found.mean_confidence, rel=1e-12)
    assert scores.predictions == len(scores.confidence) == 1500
    assert measure_calibration(make()).along[0].temperature == measure_calibration(make()).temperature  # type: ignore[index, attr-defined]


def test_of_many_predictions_evenly_spaced_ones_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(samples, "KEPT", 100)
    found = measure_calibration(make())
    scores = found.along[1]  # type: ignore[index]
    assert isinstance(scores, SampleScores)
    assert (len(scores.confidence), scores.predictions) == (100, 1500)
    x, _ = data(1500, 1)
    confidence = make().model(x).detach().softmax(dim=1).amax(dim=1)
    np.testing.assert_allclose(scores.confidence, confidence[::15], rtol=1e-12)
    assert scores.notes[-1] == "the scores of 100 of 1,500 predictions are kept, evenly spaced"


def test_it_is_registered_with_its_options() -> None:
    known = measurements()["calibration"]
    assert known.run is measure_calibration
    assert known.settings("quick") == {"bins": 15, "split": "test", "method": "temperature"}
    assert isinstance(known.run(make(), seed=0, progress=False, **known.settings()), Result)


def test_an_entered_objective_is_measured_on_its_split() -> None:
    task = make()
    with Objective(task, "train") as objective:
        found = measure_calibration(objective)
    assert found.split == "train"
    assert found.ece == measure_calibration(task, split="train").ece


def test_without_test_data_the_train_data_are_used_and_it_says_so() -> None:
    task = Task(model(), nn.CrossEntropyLoss(), train=data(300, 0))
    found = measure_calibration(task)
    assert found.split == "train"
    assert any("no test data" in w for w in found.warnings)
    assert any("says little about new data" in w for w in found.warnings)
    assert not any("says little" in w for w in measure_calibration(make()).warnings)


def test_a_draw_of_few_samples_has_no_temperature_and_says_so() -> None:
    found = measure_calibration(make(max_samples=20))
    assert found.samples == 20
    assert math.isnan(found.temperature)
    assert any("too few to fit a temperature" in w for w in found.warnings)
    with pytest.raises(MeasurementError, match="10 samples for 15 bins"):
        measure_calibration(make(max_samples=10))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_binary_task_from_logits_and_from_probabilities(sigmoid: bool) -> None:
    x, y = data(800, 1)
    y = (y == 0).double()[:, None]
    net = nn.Sequential(model(3.0, 1), nn.Sigmoid()) if sigmoid else model(3.0, 1)
    loss = nn.BCELoss() if sigmoid else nn.BCEWithLogitsLoss()
    found = measure_calibration(Task(net, loss, test=(x, y)))
    direct = calibration_error(logits=model(3.0, 1)(x).detach()[:, 0], labels=y[:, 0].long())
    assert found.classes == 2
    assert found.ece == pytest.approx(direct.ece, rel=1e-9)
    assert found.nll == pytest.approx(direct.nll, rel=1e-9)
    assert found.temperature > 1


def test_probabilities_of_exactly_zero_and_one_are_measured() -> None:
    x, y = data(400, 1)
    y = (y == 0).double()[:, None]
    found = measure_calibration(Task(nn.Sequential(model(3e3, 1), nn.Sigmoid()), nn.BCELoss(), test=(x, y)))
    assert found.nll == math.inf
    assert math.isnan(found.temperature)
    assert any("exactly 0 or 1" in w for w in found.warnings)


def tokens(**how) -> tuple[Task, torch.Tensor, torch.Tensor]:
    """40 sequences of 6 tokens, some ignored, in batches of unequal size; the logits by hand, and the labels."""
    torch.manual_seed(0)
    x, y = torch.randn(40, 6, 3), torch.randint(4, (40, 6))
    y[::3, 2:4] = -100
    model = nn.Linear(3, 4)

    def forward(m, batch):
        return m(batch[0]).movedim(-1, 1), batch[1]

    how.setdefault("forward", forward)
    task = Task(model, nn.CrossEntropyLoss(), None, [(x[:7], y[:7]), (x[7:32], y[7:32]), (x[32:], y[32:])], **how)
    with torch.no_grad():
        return task, model(x), y


def test_tokens_of_one_sequence_are_a_group() -> None:
    task, logits, y = tokens()
    kept = y != -100
    groups = torch.arange(40).unsqueeze(1).expand(40, 6)[kept]
    with Objective(task, "test") as objective:
        found = objective.all_predictions()
        assert torch.equal(found.labels, y[kept])
        assert torch.allclose(found.logits, logits[kept])
        assert found.groups is not None
        assert torch.equal(found.groups, groups)
    result = measure_calibration(task)
    by_hand = calibration_error(logits=logits[kept], labels=y[kept], groups=groups)
    assert (result.ece, result.groups) == (by_hand.ece, 40)
    assert result.ece_interval.tolist() == by_hand.ece_interval.tolist()
    assert not any("too narrow" in w for w in result.warnings)


def test_flat_predictions_of_several_a_sample_are_named_dependent() -> None:
    task, _, _ = tokens(predict=lambda m, batch: (m(batch[0]).flatten(0, 1), batch[1].flatten()))
    result = measure_calibration(task)
    assert result.groups == 0
    assert any("which from which isn't known" in w and "too narrow" in w for w in result.warnings)


def test_one_prediction_a_sample_needs_no_groups() -> None:
    torch.manual_seed(0)
    task = Task(nn.Linear(3, 4), nn.CrossEntropyLoss(), None, (torch.randn(50, 3), torch.randint(4, (50,))))
    with Objective(task, "test") as objective:
        groups = objective.all_predictions().groups
        assert groups is not None
        assert torch.equal(groups, torch.arange(50))
    assert measure_calibration(task).groups == 0


def test_outputs_that_are_no_classes_are_refused_with_a_line() -> None:
    x, _ = data(100, 1)
    task = Task(model(classes=1), nn.MSELoss(), test=(x, x[:, :1]), name="fit")
    with pytest.raises(MeasurementError, match="fit has no class labels on its test data"):
        measure_calibration(task)
    task = Task(model(), batch_loss=lambda net, batch: net(batch[0]).square().mean(), test=data(100, 1))
    with pytest.raises(MeasurementError, match="no class labels"):
        measure_calibration(task)
    with pytest.raises(LandscapeError, match="val"):
        measure_calibration(make(), split="val")
