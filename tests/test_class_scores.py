"""How well each class is found: against scikit-learn, and whether intervals hold where pixels depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score, precision_score, recall_score
from torch import nn

from landscape.class_measure import count_classes, measure_classes, score_classes
from landscape.class_scores import ClassScores
from landscape.comparison.paired import independent_difference, pulled_difference
from landscape.objective import Objective
from landscape.passes import Predicted
from landscape.results import measurements
from landscape.tasks import Task


def pixels(n: int = 30, classes: int = 4) -> Task:
    """A net of one convolution on pictures (n, 3, 5, 5), a class for each pixel, 255 where none counts."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 5, 5, generator=g, dtype=torch.float64)
    net = nn.Conv2d(3, classes, 1, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.randn(net.weight.shape, generator=g, dtype=torch.float64))
        net.bias.zero_()
        y = (net(x) + 2 * torch.randn(n, classes, 5, 5, generator=g, dtype=torch.float64)).argmax(1)
    y[:, 0] = 255
    return Task(net, nn.CrossEntropyLoss(ignore_index=255), test=(x, y), batch_size=8)


def against_sklearn(found: ClassScores, y: np.ndarray, p: np.ndarray, classes: int) -> None:
    how = {"labels": range(classes), "average": None}
    assert found.iou == pytest.approx(jaccard_score(y, p, **how), rel=1e-12)
    assert found.f1 == pytest.approx(f1_score(y, p, **how), rel=1e-12)
    assert found.precision == pytest.approx(precision_score(y, p, **how), rel=1e-12)
    assert found.recall == pytest.approx(recall_score(y, p, **how), rel=1e-12)
    assert found.mean_iou == pytest.approx(jaccard_score(y, p, average="macro"), rel=1e-12)
    assert found.mean_f1 == pytest.approx(f1_score(y, p, average="macro"), rel=1e-12)


def test_pixels_are_scored_as_scikit_learn_does_without_what_is_ignored() -> None:
    task = pixels()
    found = measure_classes(task)
    x, y = task.test
    kept = y != 255
    truth, predicted = y[kept].numpy(), task.model(x).argmax(1)[kept].numpy()
    against_sklearn(found, truth, predicted, 4)
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted), rel=1e-12)
    assert found.labels.tolist() == np.bincount(truth, minlength=4).tolist()
    assert (found.groups, found.split, found.cost.passes) == (30, "test", 1)


def test_a_binary_task_has_two_classes_and_several_labels_one_each() -> None:
    g = torch.Generator().manual_seed(1)
    z, y = torch.randn(60, generator=g), torch.randint(2, (60,), generator=g)
    two = ClassScores(**score_classes(*(x.numpy() for x in count_classes(Predicted(z, y, None, 1)))))
    against_sklearn(two, y.numpy(), (z > 0).long().numpy(), 2)
    groups = torch.arange(20).repeat_interleave(3)
    three = ClassScores(**score_classes(*(x.numpy() for x in count_classes(Predicted(z, y, groups, 3)))))
    truth, predicted = y.view(20, 3).numpy(), (z > 0).long().view(20, 3).numpy()
    assert three.iou == pytest.approx(jaccard_score(truth, predicted, average=None), rel=1e-12)
    assert three.mean_f1 == pytest.approx(f1_score(truth, predicted, average="macro"), rel=1e-12)
    assert three.groups == 20


def test_a_class_that_is_nowhere_is_nan_and_no_part_of_a_mean() -> None:
    z, y = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 1, 1]], torch.tensor([0, 1, 1, 1, 1])
    found = ClassScores(**score_classes(*(x.numpy() for x in count_classes(Predicted(z, y, None, 1)))))
    assert found.iou == pytest.approx([1 / 2, 3 / 4, np.nan, np.nan], nan_ok=True)
    assert found.mean_iou == pytest.approx(5 / 8)
    assert np.isnan(found.iou_interval[2:]).all()


def test_shares_of_none_and_all_have_the_exact_bound_of_as_many_samples() -> None:
    z, y = torch.eye(2, dtype=torch.float64)[[0] * 9 + [1]], torch.tensor([0] * 10)
    found = ClassScores(**score_classes(*(x.numpy() for x in count_classes(Predicted(z, y, None, 1)))))
    assert found.precision_interval[0] == pytest.approx([0.025 ** (1 / 9), 1])
    assert found.recall_interval[0][0] < 0.9 < found.recall_interval[0][1] < 1
    assert np.isnan(found.precision_interval[1]).all()  # one prediction says nothing about its own error


def simulated(rng: np.random.Generator, groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts of pictures: a share of right pixels that is the picture's own, and a class that is in a third."""
    size = np.stack([rng.integers(40, 80, groups), rng.integers(0, 30, groups) * (rng.random(groups) < 0.3)], axis=1)
    right = rng.binomial(size, rng.beta(4, 2, (groups, 1)))
    wrong = size - right
    return right, right + wrong[:, ::-1], size


@pytest.mark.parametrize("groups", [20, 60])
def test_intervals_cover_where_the_pixels_of_a_picture_depend_on_each_other(groups: int) -> None:
    rng = np.random.default_rng(0)
    truth = score_classes(*simulated(rng, 400_000))
    names = ("iou", "f1", "precision", "recall", "mean_iou", "mean_f1", "balanced_accuracy")
    draws, held = 400, dict.fromkeys(names, 0.0)
    independent = 0.0
    for _ in range(draws):
        counts = simulated(rng, groups)
        found = score_classes(*counts)
        for name in names:
            low, high = np.moveaxis(found[f"{name}_interval"], -1, 0)
            held[name] = held[name] + ((low <= truth[name]) & (truth[name] <= high)) / draws
        n = counts[2][:, 0].sum()
        spread = 1.96 * np.sqrt(found["recall"][0] * (1 - found["recall"][0]) / n)
        independent += abs(found["recall"][0] - truth["recall"][0]) <= spread
    # Of 1,000 draws 93.3 to 96.6% held; 400 of 95% have a standard error of 1.1%, and one class may be in one picture.
    for name, covered in held.items():
        assert np.min(covered) >= 0.9, (name, covered)
    assert independent / draws < 0.6  # what taking pixels for independent would do


def twice(rng: np.random.Generator, groups: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return the counts of two models of the same pictures: the second mends a fifth, and spoils a twentieth."""
    one, _, size = simulated(rng, groups)
    other = one + rng.binomial(size - one, 0.2) - rng.binomial(one, 0.05)
    return [(right, right + (size - right)[:, ::-1], size) for right in (one, other)]


def test_paired_differences_cover_and_are_narrower() -> None:
    rng, names = np.random.default_rng(1), ("mean_iou", "mean_f1", "balanced_accuracy")
    before, after = (score_classes(*counts) for counts in twice(rng, 400_000))
    draws, held, narrower = 300, dict.fromkeys(names, 0), 0
    for _ in range(draws):
        sides = [score_classes(*counts) for counts in twice(rng, 40)]
        for i, name in enumerate(names):
            pulls, rarest = [s["pull"][i] for s in sides], [int(s["held"][i]) for s in sides]
            found = pulled_difference([s[name] for s in sides], pulls, rarest)
            held[name] += found.low <= after[name] - before[name] <= found.high
        ends = [(s[name], *s[f"{name}_interval"]) for s in sides]
        alone = independent_difference(*ends)
        narrower += found.high - found.low < 0.6 * (alone.high - alone.low)
    for name, covered in held.items():  # of 300 draws, 95% has a standard error of 1.3%
        assert covered / draws >= 0.9, (name, covered)
    assert narrower > 0.9 * draws


def test_counts_of_many_samples_are_put_together_without_a_change_of_the_scores(monkeypatch) -> None:
    task = pixels()
    whole = measure_classes(task)
    monkeypatch.setattr("landscape.class_measure._GROUPS", 7)
    found = measure_classes(task)
    assert found.groups == 7
    assert found.iou.tolist() == whole.iou.tolist()


def test_it_is_registered_beside_the_accuracy_and_taken_on_request() -> None:
    m = measurements()["class_scores"]
    assert (m.section, m.default, m.needs, list(m.options)) == ("performance", False, ("labels",), ["split"])


def test_without_test_data_it_says_so() -> None:
    task = pixels()
    found = measure_classes(task.replace(train=task.test, test=None))
    assert found.split == "train"
    assert any("no test data" in w for w in found.warnings)
    with Objective(task, "test") as objective:
        assert measure_classes(objective).iou.tolist() == found.iou.tolist()
