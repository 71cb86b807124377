"""One cell: the weights of a hand-written loop, bit for bit, also when it was interrupted; divergence as a result."""

from __future__ import annotations

import json
import math

import pytest
import torch
from sweep_world import build
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from landscape import Task, load_task, open_archive, read_checkpoint
from landscape.errors import TrainingError
from landscape.probes import GradientNorms, Sweep
from landscape.probes.sweep.batches import Batches, _mixed
from landscape.probes.sweep.cell import train_cell
from landscape.probes.sweep.grid import Cell, grid
from landscape.probes.sweep.how import How
from landscape.probes.sweep.parts import make_parts
from landscape.probes.sweep.training import Diverged, Training, evaluate
from landscape.probes.workers.stopping import Stop
from landscape.report.runs import gather
from landscape.seeding import seed_all

#: Nothing beside the training: what is compared are weights.
BARE = How(record=False, measure=False)


@pytest.fixture(autouse=True)
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    build(tmp_path)
    return tmp_path


def cell(**changes) -> Cell:
    several = {k: [v] for k, v in changes.items() if k in ("loss", "schedule", "optimizer", "batch_size", "lr")}
    rest = {k: v for k, v in changes.items() if k not in several}
    seed = rest.pop("seed", 0)
    return grid(**several, **{"epochs": 3, **rest}, seeds=[seed])[0]


class After(Stop):
    """Asks to stop after so many looks at it: one a step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    @property
    def asked(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.signal = 15
        return self.left <= 0


def weights(path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path).weights


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------------------------------------- against a loop


def by_hand(epochs: int = 3, batch: int = 50, lr: float = 0.5, seed: int = 0) -> dict[str, torch.Tensor]:
    """Momentum and a cosine, written as people write it; only the order of the data is the sweep's."""
    torch.manual_seed(seed)
    task = load_task("tasks.py:tiny")
    model, (x, y) = task.model, task.train
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    total = epochs * math.ceil(len(x) / batch)
    step = 0
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(_mixed(seed, epoch)))
        for chosen in order.split(batch):
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / total))
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            step += 1
    return model.state_dict()


@pytest.mark.parametrize("record", [False, True])
def test_the_weights_are_those_of_a_loop_written_by_hand(record):
    chosen = cell(schedule="cosine", batch_size=50, lr=0.5, clip=0.5)
    result = train_cell(chosen, "tasks.py:tiny", "c", How(record=record, measure=False))
    assert result.status == "complete", result.reason
    assert same(weights("c/final.pt"), by_hand())


def test_the_callers_generators_are_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train_cell(cell(batch_size=50), "tasks.py:dropped", "c", BARE)
    # The training itself draws from the default generators, seeded by its cell: what the caller had is put back.
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_function_serves_as_a_task():
    def own():
        return load_task("tasks.py:tiny")

    one = train_cell(cell(batch_size=50), own, "one", BARE)
    other = train_cell(cell(batch_size=50), "tasks.py:tiny", "other", BARE)
    assert one.final_weights == other.final_weights
    assert read_checkpoint("one/final.pt").task is None
    assert read_checkpoint("other/final.pt").task.reference == "tasks.py:tiny"


# ------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("tiny", {"schedule": "cosine", "batch_size": 50, "lr": 0.5}),
        ("dropped", {"schedule": "plateau(patience=0, threshold=1)", "batch_size": 50, "optimizer": "adam(lr=0.05)"}),
        ("augmented", {"schedule": "warmup_cosine", "optimizer": "sgd(lr=0.3, momentum=0.9, nesterov=True)"}),
        ("dropped", {"loss": "0.9*cross_entropy + ramp(0, 0.1)*soft_ece", "batch_size": 64}),
        ("dropped", {"batch_size": 50, "clip": 1.0, "drive": {"clip": "ramp(5, 1)", "unfreeze": "unfreezing(2)"}}),
    ],
)
def test_a_cell_stopped_at_any_step_ends_with_the_same_weights(task, settings):
    chosen = cell(**settings)
    whole = train_cell(chosen, f"tasks.py:{task}", "whole", BARE)
    assert whole.status == "complete", whole.reason
    for after in (1, 2, 4, 5, 9, whole.steps):
        folder = f"after{after}"
        first = train_cell(chosen, f"tasks.py:{task}", folder, BARE, stop=After(after))
        assert (first.status, first.step) == ("interrupted", after)
        torch.manual_seed(1000 + after)  # whatever else the next process has drawn
        second = train_cell(chosen, f"tasks.py:{task}", folder, BARE)
        assert second.status == "complete", second.reason
        assert second.final_weights == whole.final_weights
        assert second.metrics == whole.metrics


def test_the_record_of_an_interrupted_training_is_that_of_a_whole_one():
    chosen = cell(schedule="cosine", batch_size=50)
    how = How(measure=False)
    train_cell(chosen, "tasks.py:dropped", "whole", how)
    train_cell(chosen, "tasks.py:dropped", "torn", how, stop=After(5))
    assert open_archive("torn/run.h5").status == "interrupted"
    assert train_cell(chosen, "tasks.py:dropped", "torn", how).status == "complete"
    one, other = open_archive("whole/run.h5"), open_archive("torn/run.h5")
    assert other.status == "complete"
    for name in ("loss", "gradient_norm", "learning_rate", "scheduled", "calibration", "epoch"):
        a, b = one.history[name].current(), other.history[name].current()
        assert a.names == b.names
        assert a.steps.tolist() == b.steps.tolist()
        torch.testing.assert_close(torch.tensor(a.values), torch.tensor(b.values), rtol=0, atol=0, equal_nan=True)


def test_a_finished_cell_is_not_trained_again():
    first = train_cell(cell(batch_size=50), "tasks.py:tiny", "c", BARE)
    again = train_cell(cell(batch_size=50), "tasks.py:tiny", "c", BARE)
    assert again == first


def test_a_damaged_state_is_a_failure_that_says_what_to_do(world):
    train_cell(cell(batch_size=50), "tasks.py:tiny", "c", BARE, stop=After(3))
    (world / "c/last.pt").write_bytes(b"PK\x03\x04 torn")
    result = train_cell(cell(batch_size=50), "tasks.py:tiny", "c", BARE)
    assert result.status == "failed"
    assert "delete it to train the cell from the start" in result.reason


def test_the_folder_of_another_cell_is_refused():
    train_cell(cell(batch_size=50), "tasks.py:tiny", "c", BARE)
    with pytest.raises(TrainingError, match="holds another cell"):
        train_cell(cell(batch_size=40), "tasks.py:tiny", "c", BARE)


def test_a_folder_in_use_is_refused():
    from landscape.probes.sweep.locking import locked

    (folder := __import__("pathlib").Path("c")).mkdir()
    with locked(folder), pytest.raises(TrainingError, match="another process"):
        train_cell(cell(batch_size=50), "tasks.py:tiny", "c", BARE, patience=0.2)


# ------------------------------------------------------------------------------------------------- what comes out


def test_a_cell_leaves_a_checkpoint_that_names_its_task_and_loss_and_an_archive_with_both_halves():
    text = "0.9*cross_entropy + ramp(0, 0.1)*soft_ece"
    chosen = cell(loss=text, schedule="cosine", batch_size=50, settings={"hidden": 6})
    how = How(only=["performance", "eigenvalues", "calibration"], checkpoints=1)
    result = train_cell(chosen, "tasks.py:tiny", "c", how)
    assert result.status == "complete", result.reason
    found = read_checkpoint("c/final.pt")
    assert (found.step, found.epoch) == (12, 3)
    assert found.task.settings == {"hidden": 6}
    assert found.facts["loss"] == text
    # The weight in force at the last step, 11 of 12: the ramp ends behind it.
    assert found.task.loss.startswith("0.9*cross_entropy + 0.09")
    (run,) = gather(["c/run.h5"])
    assert run.settings["loss"] == text
    assert "loss_at_end" not in run.settings  # what it was measured with is no setting of its own
    assert run.about["loss_at_end"] == found.task.loss
    archive = open_archive("c/run.h5")
    assert archive.status == "complete"
    assert archive.run["loss"] == text
    assert archive.run["optimizer"] == "sgd(momentum=0.9)"
    assert {e.kind for e in archive.entries} >= {"performance", "eigenvalues", "calibration"}
    assert {e.subject.label for e in archive.entries} == {"seed 0"}
    assert len(archive.history["loss"].steps) == 12
    assert set(archive.history["loss"].names) >= {"loss", "cross_entropy", "soft_ece"}
    assert archive.history["logged"].names == ("test_loss", "test_accuracy")
    assert result.metrics["curvature.eigenvalues"] > 0
    assert result.metrics["loss.test"] == pytest.approx(result.metrics["test_loss"], rel=0.05)
    assert len(list(result.archive.parent.glob("step-*.pt"))) == 3
    data = json.loads((result.archive.parent / "cell.json").read_text())
    assert data["status"] == "complete"


def test_landscape_probe_finds_task_and_loss_by_itself():
    from landscape.probes import probe_checkpoints

    chosen = cell(loss="focal(gamma=2)", batch_size=50)
    result = train_cell(chosen, "tasks.py:tiny", "c", How(only=["performance"], record=False))
    (outcome,) = probe_checkpoints(["c/final.pt"], out="again.h5", only=["performance"], preset="quick")
    assert outcome.as_dict()["loss"]["train"] == pytest.approx(result.metrics["loss.train"], rel=1e-6)


def test_the_users_own_loss_is_known_by_name():
    result = train_cell(cell(loss="mine(power=1.5)", batch_size=50), "tasks.py:tiny", "c", BARE)
    assert result.status == "complete", result.reason


def test_a_task_without_test_data_or_labels_is_trained_and_measured():
    result = train_cell(cell(batch_size=50), "tasks.py:fixed", "a", How(only=["performance", "calibration"]))
    assert result.status == "complete", result.reason
    assert "test_loss" not in result.metrics
    result = train_cell(
        cell(lr=0.05, batch_size=50), "tasks.py:regression", "b", How(only=["performance", "calibration"])
    )
    assert result.status == "complete", result.reason
    assert any("not measured" in note for note in result.notes)
    result = train_cell(cell(), "tasks.py:own_loss", "c", How(only=["performance"]))
    assert result.status == "complete", result.reason


def test_a_loss_that_differentiates_inside_is_trained_and_evaluated():
    """A PINN: the end of an epoch evaluated it without autograd, and the cell failed."""
    result = train_cell(cell(batch_size=50, lr=0.05), "tasks.py:derived", "a", How(only=["performance"]))
    assert result.status == "complete", result.reason
    history, performance = open_archive("a/run.h5").history, result.metrics["test_loss"]
    last = next(history[n].values[-1, 0] for n in history.names if "test_loss" in history[n].names)
    assert last == pytest.approx(performance, rel=1e-5)


def test_the_test_loss_is_that_of_all_samples_by_the_losss_own_weights():
    """Batches of unequal weight: the mean of their means, or weighing them by samples, would be another number."""
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.arange(60) // 20
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.2]))
    parts = [(x[:20], y[:20]), (x[20:50], y[20:50]), (x[50:], y[50:])]
    task = Task(nn.Linear(4, 3), loss, train=parts, test=parts)
    found = evaluate(make_parts(cell(), task))
    logits = task.model(x).detach().double()
    assert found["test_loss"] == pytest.approx(
        float(nn.functional.cross_entropy(logits, y, loss.weight.double())), rel=1e-6
    )
    assert found["test_accuracy"] == float((logits.argmax(1) == y).double().mean())


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(("later", "diverged"), [(900.0, False), (2500.0, True)])
def test_a_loss_that_begins_at_0_diverges_where_its_mean_is_over_1000(later, diverged):
    """No multiple of 0 is a bound: a hinge or a penalty that is met at first may be missed afterwards."""
    steps = []

    def batch_loss(model, batch):
        steps.append(1)
        return model(batch[0]).mean() * 0 + (later if len(steps) > 1 else 0.0)

    x = torch.randn(8, 4)
    training = Training(
        make_parts(cell(epochs=1, batch_size=4), Task(nn.Linear(4, 3), train=(x,), batch_loss=batch_loss))
    )
    if diverged:
        with pytest.raises(Diverged, match=r"1\.25e\+03 on average before step 2"):
            training.run()
    else:
        training.run()
        assert training.metrics["train_loss"] == later / 2


@pytest.mark.parametrize(
    ("settings", "task", "said"),
    [
        ({"optimizer": "sgd(lr=1e30)", "batch_size": 50}, "regression", "the loss was (inf|nan) at step"),
        (
            {"optimizer": "sgd(lr=20)", "epochs": 12, "batch_size": 50},
            "regression",
            "over 1000 times what it began with",
        ),
    ],
)
def test_a_training_that_diverges_is_a_result_with_its_reason(settings, task, said):
    result = train_cell(cell(**settings), f"tasks.py:{task}", "c", How(only=["performance"]))
    assert result.status == "diverged"
    assert __import__("re").search(said, result.reason), result.reason
    assert result.finished
    archive = open_archive("c/run.h5")
    assert archive.status == "failed"
    assert any(said.split(" ")[0] in e.message for e in archive.history.events)


def test_a_training_that_fails_is_a_result_with_its_reason_and_traceback(world):
    result = train_cell(cell(batch_size=50), "tasks.py:failing", "c", BARE)
    assert result.status == "complete"
    chosen = cell(batch_size=50, settings={"at": 5})
    result = train_cell(chosen, "tasks.py:failing", "d", BARE)
    assert (result.status, result.reason) == ("failed", "OSError: the disk with the images is gone")
    assert "Traceback" in (world / "d/error.txt").read_text()


@pytest.mark.parametrize(
    ("settings", "task", "said"),
    [
        ({"loss": "focl"}, "tiny", "no loss or schedule 'focl'; did you mean focal"),
        ({"loss": "focal(gama=2)"}, "tiny", "focal has no parameter 'gama'"),
        ({"schedule": "cosin"}, "tiny", "no schedule 'cosin'; did you mean cosine"),
        ({"optimizer": "sdg"}, "tiny", "no optimizer 'sdg'; did you mean sgd"),
        ({"optimizer": "sgd(lr=-1)"}, "tiny", "sgd can't be made"),
        ({"optimizer": "sgd(lr=0.1)", "lr": 0.2}, "tiny", "has a learning rate of its own"),
        ({"schedule": "multi_step([100])"}, "tiny", "is longer than the run"),
        ({"drive": {"lr": "cosine"}}, "tiny", "is driven again"),
        ({"drive": {"wieght_decay": "ramp(0, 1)"}}, "tiny", "did you mean weight_decay"),
        ({"batch_size": 500}, "tiny", "exceeds the 200 training samples"),
        ({"optimizer": "gd", "batch_size": 50}, "tiny", "batch-size full"),
        ({"batch_size": 50}, "own_loss", None),
        ({"loss": "mse"}, "own_loss", "computes its own loss"),
        ({"settings": {"hiden": 3}}, "tiny", "has no setting 'hiden'"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_trained(settings, task, said):
    if said is None:
        assert train_cell(cell(**settings), f"tasks.py:{task}", "c", BARE).status == "complete"
        return
    with pytest.raises(ValueError, match=said):
        train_cell(cell(**settings), f"tasks.py:{task}", "c", BARE)


def test_full_batches_step_once_an_epoch_with_every_optimizer_that_wants_them():
    for optimizer in ("gd(lr=0.5)", "lbfgs"):
        result = train_cell(cell(optimizer=optimizer, epochs=4), "tasks.py:tiny", optimizer[:2], How(measure=False))
        assert result.status == "complete", result.reason
        assert (result.step, result.steps) == (4, 4)
        assert result.metrics["train_loss"] < 1.0


# ------------------------------------------------------------------------------------------------- order of the data


def flat(batches: Batches, epoch: int = 0, start: int = 0) -> list[float]:
    return [v for x, _ in batches.epoch(epoch, start) for v in x[:, 0].tolist()]


def numbered(n: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n, dtype=torch.float32).view(-1, 1), torch.arange(n)


def test_all_forms_of_the_data_come_in_the_same_order():
    columns = numbered()
    dataset = TensorDataset(*columns)
    forms = [columns, dataset, DataLoader(dataset, batch_size=4, shuffle=True), [(x, y) for x, y in dataset]]
    forms.append(DataLoader(list(zip(*columns, strict=True)), batch_size=4))
    orders = [flat(Batches(form, 4, seed=3)) for form in forms]
    assert all(order == orders[0] for order in orders)
    assert sorted(orders[0]) == list(range(23))


def test_the_order_is_the_seeds_and_the_epochs_and_no_batch_sizes():
    orders = {(s, e, b): flat(Batches(numbered(), b, seed=s), e) for s in (0, 1) for e in (0, 1) for b in (4, 5)}
    for seed in (0, 1):
        for epoch in (0, 1):
            assert orders[seed, epoch, 4] == orders[seed, epoch, 5]
    assert len({tuple(o) for o in orders.values()}) == 4
    assert Batches(numbered(), 4, seed=0).fingerprint() == Batches(numbered(), 5, seed=0).fingerprint()
    assert Batches(numbered(), 4, seed=0).fingerprint() != Batches(numbered(), 4, seed=1).fingerprint()


def test_an_epoch_goes_on_at_any_batch():
    for form in (numbered(), DataLoader(list(zip(*numbered(), strict=True)), batch_size=4)):
        batches = Batches(form, seed=0, default=4)
        whole = flat(batches)
        for start in range(batches.per_epoch + 1):
            assert flat(batches, 0, start) == whole[4 * start :]


def test_random_data_depend_on_seed_epoch_and_sample_alone_and_leave_the_generators():
    class Random(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return torch.tensor([float(i), torch.rand(()).item(), __import__("random").random()]), 0

    seed_all(0)
    before = torch.get_rng_state()
    one = torch.cat([x for x, _ in Batches(Random(), 4, seed=0).epoch(0)])
    other = torch.cat([x for x, _ in Batches(Random(), 3, seed=0).epoch(0)])
    loader = DataLoader(Random(), batch_size=4, num_workers=1)
    third = torch.cat([x for x, _ in Batches(loader, seed=0).epoch(0)])
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(one, third, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(one, torch.cat([x for x, _ in Batches(Random(), 4, seed=0).epoch(1)]))


def test_a_sampler_of_the_users_own_decides_the_order_and_is_seeded():
    dataset = TensorDataset(*numbered(10))
    sampler = WeightedRandomSampler([1.0] * 9 + [0.0], 40)
    batches = Batches(DataLoader(dataset, batch_size=8, sampler=sampler), seed=0)
    assert (batches.samples, batches.per_epoch) == (40, 5)
    assert flat(batches) == flat(batches)
    assert 9.0 not in flat(batches)
    assert flat(batches) != flat(batches, 1)


def test_finished_batches_are_shuffled_as_they_are_and_not_cut():
    finished = [(torch.full((k, 1), float(k)), torch.zeros(k)) for k in range(1, 6)]
    batches = Batches(finished, seed=0)
    assert batches.notes[0].startswith("the train data come as finished batches: ")
    assert batches.per_epoch == 5
    assert sorted(len(x) for x, _ in batches.epoch(0)) == [1, 2, 3, 4, 5]
    with pytest.raises(TrainingError, match="finished batches"):
        Batches(finished, 2)
    once = Batches(iter(finished), seed=0)
    assert flat(once) == flat(once) == flat(batches)


def test_batch_norm_is_spared_a_batch_of_one():
    batches = Batches(numbered(9), 4, drop_single=True)
    assert batches.per_epoch == 2
    assert "BatchNorm" in batches.notes[0]
    assert Batches(numbered(9), 4).per_epoch == 3
    assert Batches(DataLoader(TensorDataset(*numbered(9)), batch_size=4, drop_last=True)).per_epoch == 2


def test_data_that_change_their_length_are_said(world):
    from landscape import Task

    class Shrinking:
        def __init__(self):
            self.calls = 0

        def __len__(self):
            return 12

        def __iter__(self):
            self.calls += 1
            return iter(list(range(12))[: 12 if self.calls < 2 else 4])

    def own():
        data = TensorDataset(torch.randn(12, 4), torch.zeros(12, dtype=torch.long))
        loader = DataLoader(data, batch_size=4, sampler=Shrinking())
        return Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), loader)

    result = train_cell(cell(), own, "c", BARE)
    assert result.status == "failed"
    assert "same length in every epoch" in result.reason


def test_probes_that_are_handed_over_begin_anew_in_each_cell(tmp_path):
    how = How(measure=False, probes=[GradientNorms()])
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        train_cell(cell(seed=seed, clip=0.1), "tasks.py:tiny", folder, how)
        assert "gradient_norm_before" in open_archive(folder / "run.h5").history, "the second was told of no clipping"


def test_cells_of_several_grids_get_folders_of_their_own(tmp_path):
    cells = [cell(lr=lr) for lr in (0.1, 0.2)]
    assert len({c.name for c in cells}) == 1
    assert len({c.name for c in Sweep("tasks.py:tiny", tmp_path / "runs", cells=cells).cells}) == 2
