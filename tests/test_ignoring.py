"""A label that a loss leaves out by a mask of its own is found, and doesn't count as a prediction either."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape import Objective, Task
from landscape.errors import MeasurementError


def pixels(strange: int = 255, n: int = 12):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 2, 4, 4, generator=g).double()
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    y[torch.rand(y.shape, generator=g) < 0.3] = strange
    return x, y


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(2, 3, 1).double()


def dice(strange: int):
    """A mean over samples of the Dice loss of each class, by its own mask."""

    def loss(logits, y):
        keep = (y != strange)[:, None]
        p = logits.softmax(1) * keep
        t = F.one_hot(y.where(keep[:, 0], 0), 3).movedim(-1, 1) * keep
        return (1 - (2 * (p * t).sum((2, 3)) + 1) / ((p + t).sum((2, 3)) + 1)).mean()

    return loss


@pytest.mark.parametrize("strange", [255, -1])
def test_predictions_and_accuracy_are_those_of_the_pixels_that_count(strange):
    x, y = pixels(strange)
    model = net()
    with Objective(Task(model, dice(strange), (x, y), batch_size=5)) as objective:
        found = objective.evaluate(accuracy=True, stderr=True)
        logits, labels = objective.predictions()
        assert any(f"label {strange} is left out" in note for note in objective.notes)
    with torch.no_grad():
        right = (model(x).argmax(1) == y)[y != strange].double()
        expected = float(dice(strange)(model(x), y))
    assert torch.equal(labels, y[y != strange])
    assert logits.shape == (len(labels), 3)
    assert found.accuracy == pytest.approx(float(right.mean()), abs=1e-12)
    assert found.loss == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(found.accuracy_stderr)


def test_in_the_tokens_of_outputs_that_hold_logits():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 5, 4, generator=g), torch.randint(3, (8, 5), generator=g)
    y[:, 3:] = 99

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return {"logits": self.out(x)}

    def loss(outputs, y):
        keep = y != 99
        return F.cross_entropy(outputs["logits"][keep], y[keep]), keep.sum()

    torch.manual_seed(0)
    with Objective(Task(Tagger(), loss, (x, y))) as objective:
        assert torch.equal(objective.predictions()[1], y[:, :3].reshape(-1))


def test_a_label_that_counts_in_the_loss_is_refused_with_what_to_do():
    x, y = pixels()

    def clamped(logits, y):
        return F.cross_entropy(logits, y.clamp(max=2))

    with pytest.raises(MeasurementError, match=r"label 255 lies outside the 3 classes.*Task\(predict="):
        Objective(Task(net(), clamped, (x, y))).__enter__()


def test_two_labels_outside_are_none_that_is_left_out():
    x, y = pixels()
    y[0, 0, 0] = 254

    def masked(logits, y):
        return F.cross_entropy(logits.movedim(1, -1)[y < 3], y[y < 3]), (y < 3).sum()

    with pytest.raises(MeasurementError, match="lies outside the 3 classes"):
        Objective(Task(net(), masked, (x, y))).__enter__()


def test_another_loss_put_into_the_task_is_asked_anew():
    x, y = pixels()
    task = Task(net(), dice(255), (x, y))
    with Objective(task):
        assert task.ignored == 255
    task.loss = nn.CrossEntropyLoss()
    assert task.ignored is None
