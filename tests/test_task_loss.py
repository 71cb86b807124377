"""A loss of the registry in the place of a task's own, and in a checkpoint that names its task."""

from __future__ import annotations

import pytest
import torch
from small_world import build, train
from torch import nn

from landscape import Objective, Task, losses, read_checkpoint, save_checkpoint
from landscape.errors import CheckpointError, TrainingError
from landscape.probes import probe_checkpoints
from landscape.training.driver import drive
from landscape.training.task_loss import text_in_force, with_loss


def small(**changes) -> Task:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    return Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), (x, (x[:, 0] > 0).long()), **changes)


def test_the_loss_is_the_registrys_and_the_rest_of_the_task_stays():
    task = small(name="mine")
    other = with_loss(task, "focal(gamma=2)")
    assert other.name == "mine"
    assert other.model is task.model
    with Objective(other) as objective:
        found = objective.evaluate().loss
    x, y = task.train
    assert found == pytest.approx(losses.get("focal", gamma=2)(task.model(x), y).item())


def test_a_loss_that_looks_at_weights_sees_the_tasks_model():
    task = with_loss(small(), "cross_entropy + 0.1*l2")
    x, y = task.train
    assert task.loss is not None
    terms = _terms(task.loss(task.model(x), y))
    torch.testing.assert_close(terms["l2"], 0.1 * losses.build("l2").bind(task.model)(None))


def test_a_loss_that_couples_samples_keeps_the_batches_whole():
    assert small().rebatch
    assert not with_loss(small(), "cross_entropy + 0.1*mmce").rebatch


def masked(ignored: int) -> tuple[Task, torch.Tensor, torch.Tensor]:
    """A segmentation task of three classes whose loss leaves one label out; images of 5x5, and their labels."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, 5, 5, generator=g, dtype=torch.float64)
    y = torch.randint(3, (12, 5, 5), generator=g)
    y[torch.rand(12, 5, 5, generator=g) < torch.rand(12, 1, 1, generator=g)] = ignored
    torch.manual_seed(1)
    model = nn.Conv2d(2, 3, 1, dtype=torch.float64)
    return Task(model, nn.CrossEntropyLoss(ignore_index=ignored), (x, y), batch_size=5), x, y


@pytest.mark.parametrize("ignored", [255, 0])
@pytest.mark.parametrize("text", ["cross_entropy", "focal(gamma=2)", "0.7*cross_entropy + 0.3*brier"])
def test_labels_that_the_tasks_loss_leaves_out_stay_left_out(ignored, text):
    task, x, y = masked(ignored)
    keep = y != ignored
    rows = task.model(x).movedim(1, -1)[keep]
    found = _terms(losses.build(text)(rows, y[keep]))
    expected = sum(found.values()) if isinstance(found, dict) else found
    with Objective(with_loss(task, text)) as objective:
        evaluated = objective.evaluate(accuracy=True)
        gradient = objective.gradient()
    assert evaluated.loss == pytest.approx(float(expected.detach()), rel=1e-12)
    assert evaluated.accuracy == pytest.approx(float((rows.argmax(1) == y[keep]).double().mean()), rel=1e-12)
    for a, b in zip(gradient, torch.autograd.grad(expected, list(task.model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_overlaps_of_whole_masks_are_refused_where_labels_are_left_out():
    task, _, _ = masked(0)
    with pytest.raises(TrainingError, match=r"leaves the label 0 out .* dice would count it"):
        with_loss(task, "cross_entropy + dice")
    with_loss(task.replace(loss=nn.CrossEntropyLoss()), "cross_entropy + dice")


def test_a_task_that_computes_its_own_loss_refuses_another():
    task = Task(nn.Linear(2, 2), train=[(torch.zeros(1, 2),)], batch_loss=lambda m, b: m(b[0]).sum())
    with pytest.raises(TrainingError, match="batch_loss"):
        with_loss(task, "mse")


@pytest.mark.parametrize(
    ("text", "in_force", "expected"),
    [
        ("cross_entropy", {"lr": 0.1}, "cross_entropy"),
        ("focal(gamma=2)", {"loss.gamma": 0.5}, "focal(gamma=0.5)"),
        ("focal(2)", {"loss.gamma": 0.5}, "focal(gamma=0.5)"),
        ("0.9*cross_entropy + ramp(0, 0.1)*soft_ece", {"weight.soft_ece": 0.1}, "0.9*cross_entropy + 0.1*soft_ece"),
        (
            "cross_entropy + 0.5*cross_entropy(label_smoothing=0.1)",
            {"loss.cross_entropy_2.label_smoothing": 0.2},
            "cross_entropy + 0.5*cross_entropy(label_smoothing=0.2)",
        ),
        ("2*focal", {"loss.focal.gamma": 1.0}, "2*focal(gamma=1.0)"),
    ],
)
def test_what_is_in_force_becomes_a_number_in_the_text(text, in_force, expected):
    assert text_in_force(text, in_force) == expected


def test_the_text_in_force_is_the_loss_that_was_driven_to_the_end():
    text = "0.9*cross_entropy + ramp(0, 0.1)*soft_ece"
    task = with_loss(small(), text)
    driver = drive(None, {"loss.cross_entropy.label_smoothing": "ramp(0, 0.2)"}, 5, loss=task.loss)
    for _ in range(5):
        now = driver.step()
    x, y = task.train
    outputs = task.model(x)
    frozen = losses.build(text_in_force(text, now))(outputs, y)
    assert task.loss is not None
    driven = task.loss(outputs, y)
    for one, other in zip(_terms(frozen).values(), _terms(driven).values(), strict=True):
        torch.testing.assert_close(one, other)


def _terms(value):
    return value[0] if isinstance(value, tuple) else value


def test_a_checkpoint_that_names_a_loss_is_measured_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    model = train(0)
    save_checkpoint("swept.pt", model, task="tasks.py:tiny", task_loss="focal(gamma=2)", name="focal, seed 0", lr=0.5)
    said: list[str] = []
    (outcome,) = probe_checkpoints(["swept.pt"], out="run.h5", only=["performance"], say=said.append)
    assert any("focal(gamma=2)" in line for line in said)
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    expected = losses.get("focal", gamma=2)(model(x), y).item()
    assert outcome.as_dict()["loss"]["train"] == pytest.approx(expected, rel=1e-5)
    assert read_checkpoint("swept.pt").task.loss == "focal(gamma=2)"

    (outcome,) = probe_checkpoints(["swept.pt"], task="tasks.py:tiny", out="own.h5", only=["performance"])
    assert any("focal(gamma=2)" in text for text in outcome.warnings)


def test_a_name_in_the_checkpoint_is_the_name_in_the_archive(tmp_path, monkeypatch):
    from landscape import open_archive

    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    save_checkpoint("swept.pt", train(0), task="tasks.py:tiny", name="focal, seed 0")
    probe_checkpoints(["swept.pt"], out="run.h5", only=["performance"])
    (subject,) = open_archive("run.h5").subjects
    assert subject.label == "focal, seed 0"


def test_a_checkpoint_can_name_no_loss_of_an_unknown_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    save_checkpoint("bad.pt", train(0), task="tasks.py:tiny", task_loss="os.system('x')")
    with pytest.raises(TrainingError):
        probe_checkpoints(["bad.pt"], out="run.h5", only=["performance"])
    with pytest.raises(CheckpointError, match="task_loss belongs"):
        save_checkpoint("none.pt", train(0), task_loss="focal")
