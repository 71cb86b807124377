"""The demo's task and trainings: real data, the caller's generator untouched, the same seed the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from landscape import Objective, load_checkpoint
from landscape.errors import TaskError
from landscape.probes.demo.digits import LOSSES, REFERENCE, digits
from landscape.probes.demo.training import SCHEDULES, train_demo


def test_the_split_is_stratified_scaled_and_covers_every_image():
    task = digits()
    (x, y), (held_x, held_y) = task.train, task.test
    assert (len(y), len(held_y)) == (1437, 360)
    assert x.shape[1:] == held_x.shape[1:] == (1, 8, 8)
    shares = [np.bincount(labels, minlength=10) / len(labels) for labels in (y, held_y)]
    assert np.abs(shares[0] - shares[1]).max() < 1 / 360  # a class is cut to the nearest image
    # float32 sums over 92,000 pixels
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    everything = {tuple(image.flatten().round(decimals=3).tolist()) for image in torch.cat([x, held_x])}
    assert len(everything) == 1797, "an image is in both splits, or in none"


def test_the_seed_decides_split_and_weights_and_nothing_outside():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again, other = digits(seed=3), digits(seed=3), digits(seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    for a, b, c in zip(first.model.parameters(), again.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c)
    assert torch.equal(first.train[0], again.train[0])
    assert not torch.equal(first.test[1], other.test[1])


@pytest.mark.parametrize("loss", LOSSES)
def test_an_untrained_net_has_the_loss_of_guessing(loss):
    with Objective(digits(loss=loss), "test") as objective:
        # ln 10 for uniform guesses under either loss: smoothing mixes in a uniform target. 0.1 for a net that is
        # not quite uniform before training.
        assert objective.evaluate().loss == pytest.approx(np.log(10), abs=0.1)
        assert objective.has_labels


def test_another_loss_is_refused_by_name():
    with pytest.raises(TaskError, match=r"cross_entropy, label_smoothing, got 'hinge'"):
        digits(loss="hinge")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_demo(tmp_path_factory.mktemp("demo"), seed=0, epochs=3, progress=False)


def test_one_checkpoint_for_each_loss_and_schedule(trained):
    assert [path.name for path in trained] == [f"{loss}-{s}.pt" for loss in LOSSES for s in SCHEDULES]


def test_checkpoints_name_their_task_and_say_how_they_were_trained(trained):
    for path in trained:
        loss, schedule = path.stem.split("-")
        checkpoint = load_checkpoint(path, digits(loss=loss))
        assert checkpoint.task is not None
        assert checkpoint.task.reference == REFERENCE
        assert (checkpoint.step, checkpoint.epoch) == (3 * 45, 3)
        assert checkpoint.optimizer is not None
        facts = {"loss": loss, "schedule": schedule, "batch_size": 32, "lr": 0.3, "momentum": 0.9, "seed": 0}
        assert {name: checkpoint.facts[name] for name in facts} == facts


def test_training_learns_and_is_the_same_for_the_same_seed(trained, tmp_path):
    weights = {path.name: load_checkpoint(path, digits()).weights for path in trained}
    before = torch.get_num_threads(), torch.random.get_rng_state()
    for path in train_demo(tmp_path, seed=0, epochs=3, progress=False):
        for name, tensor in load_checkpoint(path, digits()).weights.items():
            assert torch.equal(tensor, weights[path.name][name]), f"{path.name}: {name} differs"
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    task = digits()
    for found in weights.values():
        task.model.load_state_dict(found)
        with Objective(task, "test") as objective:
            assert (
                objective.evaluate(accuracy=True).accuracy > 0.8
            )  # 0.1 is guessing; 0.94 and more seen after 3 epochs
