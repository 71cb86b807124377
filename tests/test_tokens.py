"""Which label belongs to which position: the next token's where the loss has it so, never the one just read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape as ls
from landscape.errors import MeasurementError, TaskError
from landscape.objective import Objective
from landscape.tasks import Task

WORDS, LENGTH = 7, 6
Batch = dict[str, torch.Tensor]


class Bigram(nn.Module):
    """Logits of the next id from this one alone."""

    def __init__(self, wraps: str = "") -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, WORDS)
        self.wraps = wraps

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None):
        logits = self.table(input_ids)
        if self.wraps == "object":
            return SimpleNamespace(logits=logits)
        if self.wraps == "tuple":
            return None, logits
        return {"logits": logits} if self.wraps == "dict" else logits


def batches(labelled: bool = True) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    found: list[Batch] = []
    for n in (5, 3):
        ids = torch.randint(WORDS, (n, LENGTH), generator=generator)
        mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (n, 1), generator=generator)).long()
        batch = {"input_ids": ids, "attention_mask": mask}
        found.append({**batch, "labels": ids.masked_fill(mask == 0, -100)} if labelled else batch)
    return found


def pairs(model: nn.Module, data: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the next labels, token by token: the naive oracle."""
    logits, labels = [], []
    for batch in data:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            for t in range(LENGTH - 1):
                if mask[t + 1]:
                    logits.append(model.table.weight[ids[t]].detach())  # type: ignore[union-attr, index]
                    labels.append(ids[t + 1])
    return torch.stack(logits), torch.stack(labels)


def shifted_loss(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    target = batch["labels"][:, 1:]
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), target), (target != -100).sum()


def own_loss(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    target = batch["labels"]
    return F.cross_entropy(logits.transpose(1, 2), target), (target != -100).sum()


def smoothed(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    target = batch["labels"][:, 1:]
    return F.cross_entropy(logits[:, :-1].transpose(1, 2), target, label_smoothing=0.3), (target != -100).sum()


def with_terms(logits: torch.Tensor, batch: Batch):
    mean, weight = shifted_loss(logits, batch)
    return {"cross_entropy": mean, "z": 1e-2 * logits.logsumexp(-1).mean() ** 2}, weight


def of(loss, data: list[Batch] | None = None, model: nn.Module | None = None) -> Task:
    torch.manual_seed(1)
    return Task(
        model or Bigram().double(),
        loss,
        test=data or batches(),
        forward=lambda m, b: (m(b["input_ids"], b["attention_mask"]), b),
    )


@pytest.mark.parametrize("loss", [shifted_loss, with_terms], ids=["plain", "terms"])
def test_a_loss_that_shifts_its_labels_has_them_shifted_for_calibration_too(loss) -> None:
    task = of(loss)
    with Objective(task, "test") as objective:
        found = objective.all_predictions()
        accuracy = objective.evaluate(accuracy=True).accuracy
    expected = pairs(task.model, batches())
    assert torch.equal(found.logits, expected[0])
    assert torch.equal(found.labels, expected[1])
    assert accuracy == (expected[0].argmax(1) == expected[1]).double().mean().item()
    assert found.groups is not None
    assert found.groups.bincount().tolist() == [int(m.sum()) - 1 for b in batches() for m in b["attention_mask"]]


def test_a_loss_of_each_positions_own_label_keeps_it() -> None:
    task = of(own_loss)
    with Objective(task, "test") as objective:
        _, labels = objective.predictions()
    assert labels.tolist() == [int(x) for b in batches() for x in b["labels"].flatten() if x != -100]


def test_labels_that_are_no_copy_of_the_ids_are_their_own_positions() -> None:
    """Masked language models and taggers, whatever their loss is."""
    data = batches()
    for batch in data:
        batch["labels"] = torch.where(batch["labels"] == -100, -100, (batch["labels"] + 1) % WORDS)

    def own_and_smooth(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        target = batch["labels"]
        return F.cross_entropy(logits.transpose(1, 2), target, label_smoothing=0.3), (target != -100).sum()

    with Objective(of(own_and_smooth, data), "test") as objective:
        _, labels = objective.predictions()
    assert labels.tolist() == [int(x) for b in data for x in b["labels"].flatten() if x != -100]


def test_a_loss_that_does_not_show_the_pairing_gives_no_accuracy_and_says_what_to_write() -> None:
    with Objective(of(smoothed), "test") as objective:
        assert not objective.has_labels
        with pytest.raises(MeasurementError, match=r"own or the next one.*predict=.*landscape\.next_token"):
            objective.predictions()


def test_equal_logits_leave_it_to_the_labels() -> None:
    """An output layer that starts at zero: both cross entropies are log(vocabulary)."""
    model = Bigram().double()
    nn.init.zeros_(model.table.weight)
    with Objective(of(shifted_loss, model=model), "test") as objective:
        assert len(objective.predictions()[1]) == sum(
            int(b["attention_mask"].sum()) - len(b["labels"]) for b in batches()
        )


@pytest.mark.parametrize("wraps", ["", "object", "dict", "tuple"])
@pytest.mark.parametrize("labelled", [True, False])
def test_next_token_makes_a_task_of_a_causal_model(wraps: str, labelled: bool) -> None:
    torch.manual_seed(1)
    task = Task(Bigram(wraps).double(), F.cross_entropy, test=batches(labelled), forward=ls.next_token)
    expected = pairs(task.model, batches())
    with Objective(task, "test") as objective:
        logits, labels = objective.predictions()
        loss = objective.evaluate().loss
    assert torch.equal(logits, expected[0])
    assert torch.equal(labels, expected[1])
    assert loss == pytest.approx(F.cross_entropy(*expected).item(), rel=1e-12)  # rounding of sums in another order


def test_next_token_takes_ids_alone() -> None:
    logits, labels = ls.next_token(Bigram(), torch.arange(LENGTH).view(1, -1))
    assert logits.shape == (1, WORDS, LENGTH - 1)
    assert labels.tolist() == [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize("own", [True, False], ids=["the ids", "shifted already"])
def test_a_pairs_labels_may_be_the_ids_or_those_that_follow(own: bool) -> None:
    ids = torch.randint(WORDS, (4, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    pair = (ids, ids) if own else (ids[:, :-1], ids[:, 1:])
    logits, labels = ls.next_token(Bigram(), pair)
    assert torch.equal(labels, ids[:, 1:])
    assert logits.shape == (4, WORDS, LENGTH)


class LastOnly(Bigram):
    """As nanoGPT: all logits and the loss with targets, those of the last position without."""

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None):  # type: ignore[override]
        logits = self.table(idx)
        return (logits[:, -1:], None) if targets is None else (logits, F.cross_entropy(logits.mT, targets))


def test_a_model_that_gives_all_logits_only_with_targets_gets_them() -> None:
    ids = torch.randint(WORDS, (4, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    model = LastOnly()
    logits, labels = ls.next_token(model, (ids[:, :-1], ids[:, 1:]))
    assert torch.equal(logits, model.table(ids[:, :-1]).mT)
    assert torch.equal(labels, ids[:, 1:])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([torch.zeros(1, 4).long()] * 3, "got 3 parts"),
        ((torch.zeros(1, 4).long(), torch.ones(1, 4).long()), "neither the ids .* nor the ids that follow"),
        ({"pixels": torch.zeros(1, 4)}, "got a dict with pixels"),
        ({"input_ids": torch.zeros(1, 4).long(), "labels": torch.zeros(1, 3).long()}, r"the labels \(1, 3\)"),
    ],
)
def test_next_token_refuses_what_it_can_not_pair(batch, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        ls.next_token(Bigram(), batch)


def test_a_model_that_takes_no_labels_is_told_of_next_token() -> None:
    with (
        pytest.raises(TaskError, match=r"takes no labels of the batch.*say forward=landscape\.next_token"),
        Objective(Task(Bigram().double(), shifted_loss, test=batches()), "test"),
    ):
        pass


class Summing(Bigram):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.table(input_ids).sum(1)


def test_next_token_says_what_a_model_without_token_logits_returned() -> None:
    with pytest.raises(TaskError, match=r"Summing returned outputs of shape \(5, 7\) for labels of shape \(5, 6\)"):
        ls.next_token(Summing(), batches()[0])


def test_the_accuracys_error_is_over_sequences_not_tokens() -> None:
    """A sequence repeats one pair of ids: its tokens are all right or all wrong, so that it is worth one prediction."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.randint(WORDS, (40, 1), generator=generator)
    ids = (starts * torch.ones(1, LENGTH, dtype=torch.long)) % WORDS
    model = Bigram().double()
    with torch.no_grad():  # right about the first three ids
        model.table.weight.copy_(torch.roll(torch.eye(WORDS, dtype=torch.float64), 1, 1))
        model.table.weight[:3] = torch.eye(WORDS, dtype=torch.float64)[:3]
    task = Task(model, F.cross_entropy, test=[{"input_ids": x} for x in ids.split(8)], forward=ls.next_token)
    with Objective(task, "test") as objective:
        found = objective.evaluate(accuracy=True, stderr=True)
    share = (starts < 3).double().mean().item()
    assert found.accuracy == pytest.approx(share)
    assert found.accuracy_stderr == pytest.approx((share * (1 - share) / 39) ** 0.5, rel=1e-12)
