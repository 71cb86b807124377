"""Batches as detectors take them: a list of pictures, and of each a dict of as many boxes as it has."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from landscape.batch import batch_size_of, join, slice_batch
from landscape.errors import ObjectiveError
from landscape.objective import Objective
from landscape.probes.inspection import inspect_task
from landscape.tasks import Task


def sample(i: int, boxes: int | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(i)
    count = int(torch.randint(0, 4, (), generator=g)) if boxes is None else boxes
    box = torch.rand(count, 4, generator=g, dtype=torch.float64)
    target = {"boxes": box, "labels": torch.randint(3, (count,), generator=g)}
    return torch.randn(3, 4 + i % 3, 6, generator=g, dtype=torch.float64), target


def collate(samples: list) -> tuple:
    return tuple(zip(*samples, strict=True))


def test_a_batch_counts_by_its_pictures_however_many_boxes_they_have() -> None:
    for n in (1, 2, 3, 5):
        assert batch_size_of(collate([sample(i) for i in range(n)])) == n
        # Three channels and three boxes each agree by chance, on nothing that counts samples.
        assert batch_size_of(collate([sample(i, boxes=3) for i in range(n)])) == n
        stacked = {"images": torch.zeros(n, 3, 8, 8), "targets": [sample(i)[1] for i in range(n)]}
        assert batch_size_of(stacked) == n


def test_dicts_whose_rows_are_the_samples_are_no_list_of_samples() -> None:
    left, right = ({"ids": torch.zeros(8, 5), "mask": torch.ones(8, 5)} for _ in range(2))
    assert batch_size_of(((left, right), torch.zeros(8))) == 8
    assert batch_size_of((left, right)) == 8
    cut = slice_batch(((left, right), torch.zeros(8)), 2, 5, 8)
    assert [p["ids"].shape[0] for p in cut[0]] == [3, 3]
    # Two samples with two dicts beside them, too.
    left, right = ({"ids": torch.zeros(2, 5)} for _ in range(2))
    cut = slice_batch(((left, right), torch.zeros(2)), 0, 1, 2)
    assert [p["ids"].shape[0] for p in cut[0]] == [1, 1]


def test_cutting_takes_pictures_and_joining_puts_them_back() -> None:
    for n in (2, 3, 5):
        whole = collate([sample(i) for i in range(n)])
        parts = [slice_batch(whole, 0, 1, n), slice_batch(whole, 1, n, n)]
        assert [len(p[0]) for p in parts] == [1, n - 1]
        assert all(t is u for t, u in zip(parts[1][0], whole[0][1:], strict=True))
        targets = slice_batch(whole[1], 1, n, n)
        assert [t["boxes"].tolist() for t in targets] == [t["boxes"].tolist() for t in parts[1][1]]
        again = join(parts, [1, n - 1])
        assert [len(p) for p in again] == [n, n]
        assert all(torch.equal(a, b) for a, b in zip(again[0], whole[0], strict=True))
        assert [t["boxes"].tolist() for t in again[1]] == [t["boxes"].tolist() for t in whole[1]]


class Detector(nn.Module):
    """A dict of losses of lists of pictures and targets, as torchvision's detectors return it."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.kind = nn.Linear(3, 4, dtype=torch.float64), nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, images, targets):
        seen = torch.stack([x.mean(dim=(1, 2)) for x in images])
        box = torch.stack([(self.box(s) - t["boxes"]).square().sum() for s, t in zip(seen, targets, strict=True)])
        wanted = torch.stack([t["labels"].bincount(minlength=3).double() for t in targets])
        kind = nn.functional.binary_cross_entropy_with_logits(self.kind(seen), wanted.clamp(max=1))
        return {"box": box.mean(), "kind": kind}


class Pictures(Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int):
        return sample(i)


def detector() -> Task:
    torch.manual_seed(0)
    loader = DataLoader(Pictures(), batch_size=8, collate_fn=collate)
    return Task(Detector(), batch_loss=lambda model, batch: model(*batch), train=loader, name="detector")


def test_a_detectors_losses_are_means_over_its_pictures() -> None:
    task = detector()
    with Objective(task) as objective:
        found = objective.evaluate(stderr=True)
        assert objective.samples == 20
        assert any("verified" in n for n in objective.notes)
    each = [task.model(*collate([sample(i)])) for i in range(20)]
    values = torch.stack([d["box"] + d["kind"] for d in each]).detach()
    assert found.loss == pytest.approx(values.mean().item(), rel=1e-12)
    assert found.stderr == pytest.approx((values.std() / 20**0.5).item(), rel=1e-9)
    with Objective(task.replace(max_samples=5)) as objective:
        assert objective.samples == 5


def test_check_shows_a_few_shapes_and_counts_the_rest(tmp_path, monkeypatch) -> None:
    (tmp_path / "found_task.py").write_text(
        "from landscape import task\nimport test_detection_batches as t\n\n\n"
        "@task\ndef found():\n    return t.detector()\n"
    )
    monkeypatch.chdir(tmp_path)
    found = inspect_task("found_task.py:found")
    (shown,) = [c.message for c in found.findings if c.name == "train data"]
    assert shown.endswith("tensors more")
    assert shown.count("float64") == 6
    assert found.ok
    assert found.speed is not None
    assert found.speed.samples == 8


def test_the_term_that_is_no_mean_over_the_pictures_is_named() -> None:
    def losses(model: nn.Module, batch: tuple) -> dict[str, torch.Tensor]:
        found = model(*batch)
        boxes = sum(len(t["boxes"]) for t in batch[1])
        return {"kind": found["kind"], "box": found["box"] * len(batch[1]) / max(boxes, 1)}

    with pytest.raises(
        ObjectiveError, match=r"the term 'box' can't say its weight: .*divide its sum by the number.*rebatch=False"
    ):
        Objective(detector().replace(batch_loss=losses)).__enter__()
    with Objective(detector().replace(batch_loss=losses, rebatch=False)) as objective:
        assert objective.samples == 20
