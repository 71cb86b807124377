"""Tasks whose samples have several labels, each there or not: what is right, and how sure each label may be taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from landscape.archive.reader import open_archive
from landscape.calibration.measure import measure_calibration
from landscape.calibration.table import Calibration
from landscape.objective import Objective
from landscape.probes import CalibrationProbe, Recorder
from landscape.tasks import Task

N, LABELS = 240, 3


def data(seed: int, dependent: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs (n, 4) and labels (n, 3) of 0.0 and 1.0; dependent ones are the same for all labels of a sample."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 4, generator=g, dtype=torch.float64)
    p = (x @ torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, LABELS)).sigmoid()
    draw = torch.rand(N, 1 if dependent else LABELS, generator=g, dtype=torch.float64)
    return x, (draw < p).double()


def make(loss: nn.Module, dependent: bool = False, **more) -> Task:
    net = nn.Linear(4, LABELS, bias=False, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(2 * torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, LABELS).T)
    model = nn.Sequential(net, nn.Sigmoid()) if isinstance(loss, nn.BCELoss) else net
    return Task(model, loss, data(0), data(1, dependent), batch_size=100, **more)


LOSSES = [
    nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)),
    nn.BCELoss(),
    nn.MultiLabelSoftMarginLoss(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_accuracy_counts_each_label_and_its_error_is_between_samples(loss: nn.Module) -> None:
    task = make(loss, dependent=True)
    with Objective(task, "test") as objective:
        found = objective.evaluate(accuracy=True)
    x, y = task.test
    p = task.model(x).detach() if isinstance(loss, nn.BCELoss) else task.model(x).detach().sigmoid()
    share = ((p > 0.5) == (y == 1)).double().mean(dim=1)
    assert found.accuracy == pytest.approx(share.mean().item(), abs=1e-15)
    assert found.accuracy_stderr == pytest.approx((share.std() / N**0.5).item(), rel=1e-9)
    independent = (found.accuracy * (1 - found.accuracy) / N / LABELS) ** 0.5
    assert found.accuracy_stderr > 1.2 * independent


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_each_label_has_its_own_calibration_error_and_samples_are_groups(loss: nn.Module) -> None:
    task = make(loss)
    found = measure_calibration(task, bins=10)
    x, y = task.test
    p = task.model(x).detach() if isinstance(loss, nn.BCELoss) else task.model(x).detach().sigmoid()
    own = []
    for k in range(LABELS):
        place = (p[:, k] * 10).ceil().long()
        gaps = [(p[place == b, k] - y[place == b, k]).sum().abs() for b in range(11)]
        own.append((sum(gaps) / N).item())
    assert found.class_ece == pytest.approx(own, rel=1e-12)
    assert found.classwise_ece == pytest.approx(sum(own) / LABELS, rel=1e-12)
    assert found.class_counts is not None
    assert found.class_counts.tolist() == y.sum(dim=0).tolist()
    assert (found.samples, found.groups, found.classes, found.settings["kind"]) == (N * LABELS, N, LABELS, "multilabel")


def test_labels_of_the_logits_own_shape_count_where_predict_returns_them() -> None:
    def own(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, target) + 0 * outputs.square().mean()

    task = make(LOSSES[0]).replace(loss=own, predict=lambda model, batch: (model(batch[0]), batch[1]))
    found = measure_calibration(task)
    assert found.class_ece == pytest.approx(measure_calibration(make(LOSSES[0])).class_ece)
    # Without it, labels beside a loss that nobody knows may be one-hot, or no labels at all.
    with Objective(task.replace(predict=None), "test") as objective:
        assert not objective.has_labels


def test_soft_labels_are_no_classes() -> None:
    x, y = data(1)
    with Objective(make(LOSSES[0]).replace(test=(x, 0.9 * y + 0.05)), "test") as objective:
        assert not objective.has_labels


def test_a_recorder_counts_several_labels(tmp_path) -> None:
    task = make(LOSSES[0])
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    x, y = task.test
    with Recorder(tmp_path / "run.h5", task.model, optimizer, probes=[CalibrationProbe()]) as rec:
        task.model(x).sum().backward()
        optimizer.step()
        with torch.no_grad():
            for rows in (slice(0, 100), slice(100, None)):
                rec.observe(task.model(x[rows]), y[rows].long(), kind="multilabel")
        rec.end_epoch()
    (kept,) = [p.result for p in open_archive(tmp_path / "run.h5").history.probed["calibration"]]
    assert isinstance(kept, Calibration)
    assert kept.class_ece == pytest.approx(measure_calibration(task).class_ece)
    assert (kept.samples, kept.groups) == (N * LABELS, N)
