"""What is counted of predictions, on their device: sums that hold any number of them, and the first pairs as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .bins import equal_width_edges
from .cells import Cells
from .compiled import Kernel
from .inputs import Form, Predictions
from .packed import PackedSums
from .scoring import Scored, View


@dataclass(frozen=True)
class Counted:
    """What is counted: predictions of this `form` and so many `classes`, their confidence seen as `view`.

    `bins` is their number, `edges` theirs (None: equal-mass ones, not known yet). `scores`: Brier score and NLL too;
    `tabled`: a table for each class; `exact` pairs are kept as they are.
    """

    form: Form
    classes: int
    view: View
    bins: int
    edges: np.ndarray | None
    scores: bool
    tabled: bool
    exact: int

    @property
    def apart(self) -> bool:
        """Whether the top label may be right where the confidence, being that of class 1, did not come true."""
        return self.view == "positive" and self.form != "top-label"


@dataclass(frozen=True)
class GroupSums:
    """Sums of one update's groups: `ids` (G,) as named, or None; `table` (G * bins * 3,); `scores` (G * 3,)."""

    ids: torch.Tensor | None
    table: torch.Tensor
    scores: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores) // 3

    def to(self, device: torch.device) -> GroupSums:
        ids = None if self.ids is None else self.ids.to(device)
        return GroupSums(ids, self.table.to(device), self.scores.to(device))


class Counts:
    """Counts and sums of predictions on one device, memory O(cells + classes * bins).

    `sums` by name, `pairs` (confidence, correct, group) as long as all are kept, else None, and how many came (`held`);
    `groups` of every update, `rows` of them. By cell, the wrong ones come first, then the right ones. A `kernel` counts
    float32 pairs that are in no group.
    """

    def __init__(self, counted: Counted, device: torch.device, kernel: Kernel | None = None) -> None:
        self.counted = counted
        self.device = device
        self.kernel = kernel
        edges = np.array([0.0, 1.0]) if counted.edges is None else counted.edges
        self.cells = Cells(edges, device)
        self.pairs: list[tuple[torch.Tensor, ...]] | None = []
        self.held = 0
        self.groups: list[GroupSums] = []
        self.rows = 0
        self._sums = self._zeros()
        self._packed = PackedSums(2 * len(self.cells))
        self._bin_of = torch.from_numpy(np.tile(self.cells.bin_of, 2)).to(device)
        self._class_edges = torch.from_numpy(equal_width_edges(counted.bins)[1:-1]).to(device)
        self._ones = torch.zeros(0, dtype=torch.int64, device=device)

    def _zeros(self) -> dict[str, torch.Tensor]:
        counted = self.counted
        cells, k, tables = 2 * len(self.cells), counted.classes, counted.classes * counted.bins

        def zeros(size: int, whole: bool = True) -> torch.Tensor:
            return torch.zeros(size, dtype=torch.int64 if whole else torch.float64, device=self.device)

        sums = {
            "counts": zeros(cells),
            "confidence": zeros(cells, whole=False),
            "right": zeros(1),
            "infinite": zeros(1),
        }
        if counted.scores:
            sums["moments"] = zeros(6, whole=False)
        if counted.form != "top-label":
            sums["class labels"] = zeros(k)
        if counted.form == "multiclass":
            sums |= {"class predicted": zeros(k), "class right": zeros(k)}
            sums |= {"class confidence": zeros(k, whole=False), "class mass": zeros(k, whole=False)}
        if counted.tabled:
            sums |= {"class counts": zeros(tables), "class hits": zeros(tables)}
            sums["class sums"] = zeros(tables, whole=False)
        return sums

    @property
    def sums(self) -> dict[str, torch.Tensor]:
        """Everything counted so far, by name."""
        self._packed.take(self._sums["counts"], self._sums["confidence"])
        return self._sums

    @property
    def samples(self) -> int:
        """Predictions counted so far (waits for the device)."""
        return int(self.sums["counts"].sum())

    # ---------------------------------------------------------------------------------------------- one block

    def open_groups(self, ids: torch.Tensor | None, size: int) -> GroupSums:
        """Return sums of so many groups, all 0; they join the others once they are appended to `groups`."""
        bins = 0 if self.counted.edges is None else self.counted.bins  # equal-mass bins are not known yet
        table = torch.zeros(size * bins * 3, dtype=torch.float64, device=self.device)
        return GroupSums(ids, table, torch.zeros(3 * size, dtype=torch.float64, device=self.device))

    def close_groups(self, group: GroupSums) -> None:
        """Join an update's groups to the others."""
        self.groups.append(group)
        self.rows += len(group)

    def add(self, part: Predictions, scored: Scored, keep: torch.Tensor | None, group: GroupSums | None) -> None:
        """Add the rows of a block that `keep` marks (None: all)."""
        sure, correct, right = scored.confidence, scored.correct, scored.right
        if keep is not None:
            same = right is correct
            sure, correct = sure.where(keep, 0), correct * keep
            right = correct if same else right * keep
        sure, keys = self._add_pairs(sure, correct, keep, keyed=group is not None)
        if right is not correct:
            self._sums["right"] += right.sum()
        brier, nll = self._add_scores(scored, keep)
        if group is not None:
            assert part.groups is not None
            assert keys is not None
            if self.counted.edges is not None:
                at = (part.groups * self.counted.bins + self._bin_of[keys]) * 3
                for offset, of in enumerate((self._one(correct, keep).double(), correct.double(), sure.double())):
                    group.table.scatter_add_(0, at + offset, of)
            for offset, of in enumerate((right.double(), brier, nll)):
                if of is not None:
                    group.scores.scatter_add_(0, 3 * part.groups + offset, of)
        if self.pairs is not None:
            self._keep_pair(sure.double(), correct, keep, part.groups)
        if "class labels" in self._sums:
            self._add_classes(part, scored, sure.double(), correct, keep)

    def _add_pairs(
        self, sure: torch.Tensor, correct: torch.Tensor, keep: torch.Tensor | None, keyed: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Count by cell, and return the confidences without -0.0 and their keys (None where not `keyed`)."""
        if keep is None and self._packed.fits(sure):
            if not self._packed.room(len(sure)):
                self._packed.take(self._sums["counts"], self._sums["confidence"])
            if (
                self.kernel is not None
                and not keyed
                and self._packed.add_compiled(self.kernel, self.cells, sure, correct)
            ):
                return sure, None
            keys = self.cells.keys(sure, correct)
            self._packed.add(keys, sure)
            return sure, keys
        sure = sure + 0.0  # -0.0 has the bits of a huge number
        keys = self.cells.keys(sure, correct)
        self._scatter("counts", keys, self._one(correct, keep))
        self._scatter("confidence", keys, sure.double())
        return sure, keys

    def _scatter(self, name: str, at: torch.Tensor, of: torch.Tensor) -> None:
        self._sums[name].scatter_add_(0, at, of)

    def _one(self, like: torch.Tensor, keep: torch.Tensor | None) -> torch.Tensor:
        """Return 1 for each row to be counted, else 0, (n,) int64."""
        if keep is not None:
            return keep.long()
        if len(self._ones) < len(like):
            self._ones = torch.ones_like(like)
        return self._ones[: len(like)]

    def _add_scores(
        self, scored: Scored, keep: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
        """Add the moments, and return Brier scores and NLLs with 0 for those that are not counted or infinite."""
        if scored.brier is None or scored.nll is None:
            return None, None
        endless = torch.isinf(scored.nll)
        brier, nll = scored.brier, scored.nll.masked_fill(endless, 0)
        if keep is not None:
            brier, nll, endless = brier.where(keep, 0), nll.where(keep, 0), endless & keep
        self._sums["infinite"] += endless.sum()
        powers = [x @ of for x in (brier, nll) for of in (torch.ones_like(x), x, x * x)]
        self._sums["moments"] += torch.stack(powers)
        return brier, nll

    def _keep_pair(
        self, sure: torch.Tensor, correct: torch.Tensor, keep: torch.Tensor | None, groups: torch.Tensor | None
    ) -> None:
        assert self.pairs is not None
        self.held += len(sure)
        if self.held > self.counted.exact:
            self.pairs = None
            return
        marked = sure if keep is None else sure.where(keep, torch.nan)
        # Clones, not views: a block's own tensors hold more than these.
        rows = torch.zeros(0, dtype=torch.int64, device=sure.device) if groups is None else groups + self.rows
        self.pairs.append((marked.clone(), correct.clone(), rows))

    def _add_classes(
        self,
        part: Predictions,
        scored: Scored,
        sure: torch.Tensor,
        correct: torch.Tensor,
        keep: torch.Tensor | None,
    ) -> None:
        add, bins, one = self._scatter, self.counted.bins, self._one(correct, keep)

        def place(p: torch.Tensor) -> torch.Tensor:
            return torch.bucketize(p, self._class_edges)

        y = part.truth if keep is None else part.truth.where(keep, 0)
        if part.column is not None:
            p = sure if self.counted.view == "positive" else _positive(part, keep)
            add("class labels", part.column, y)
            if self.counted.tabled:
                at = part.column * bins + place(p)
                add("class counts", at, one)
                add("class hits", at, y)
                add("class sums", at, p if keep is None else p.where(keep, 0))
            return
        add("class labels", y, one)
        if scored.predicted is None:
            return
        add("class predicted", scored.predicted, one)
        add("class right", scored.predicted, correct)
        add("class confidence", scored.predicted, sure)
        if scored.likely is None or scored.own is None:
            return
        # A class with less than 1 / bins lies in the first bin, which is what the others leave: few are counted one by
        # one, and what falls in the first bin all the same is not read.
        likely = scored.likely
        self._sums["class mass"] += likely.mass
        own = scored.own.clamp_max(1)
        add("class hits", y * bins + place(own if keep is None else own.where(keep, 0)), one)
        at = likely.classes * bins + place(likely.probability)
        add("class counts", at, torch.ones_like(at) if keep is None else (likely.probability > 0).long())
        add("class sums", at, likely.probability)

    # ---------------------------------------------------------------------------------------------- as a whole

    def merge(self, other: Counts) -> None:
        """Add what another one of the same kind has counted, on any device; it stays as it is."""
        for name, value in other.sums.items():
            self.sums[name] += value.to(self.device)
        self.held += other.held
        if self.pairs is None or other.pairs is None or self.held > self.counted.exact:
            self.pairs = None
        else:
            moved = [tuple(x.to(self.device) for x in pair) for pair in other.pairs]
            self.pairs += [(c, y, g + self.rows) for c, y, g in moved]
        self.groups += [group.to(self.device) for group in other.groups]
        self.rows += other.rows

    def state(self) -> dict[str, Any]:
        """Return all of it as plain data, which shares memory with it."""
        return {
            "sums": dict(self.sums),
            "pairs": None if self.pairs is None else list(self.pairs),
            "held": self.held,
            "groups": [(g.ids, g.table, g.scores) for g in self.groups],
        }

    def snapshot(self) -> tuple[dict[str, torch.Tensor], list[tuple[torch.Tensor, ...]] | None, int]:
        """Return what `restore` needs to take back blocks that come after."""
        sums = {name: value.clone() for name, value in self.sums.items()}
        return sums, None if self.pairs is None else list(self.pairs), self.held

    def restore(self, saved: tuple[dict[str, torch.Tensor], list[tuple[torch.Tensor, ...]] | None, int]) -> None:
        """Forget the blocks that were added since `snapshot`."""
        self._packed = PackedSums(2 * len(self.cells))
        self._sums, self.pairs, self.held = saved

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a `state`; what was counted here is forgotten."""
        self._packed = PackedSums(2 * len(self.cells))
        self._sums = {name: value.clone() for name, value in state["sums"].items()}
        self.pairs = None if state["pairs"] is None else [tuple(pair) for pair in state["pairs"]]
        self.held = state["held"]
        self.groups = [GroupSums(*group) for group in state["groups"]]
        self.rows = sum(len(g) for g in self.groups)


def _positive(part: Predictions, keep: torch.Tensor | None) -> torch.Tensor:
    """Return the probability of class 1 of each row, float64; 0 where it is not to be kept."""
    p = part.scores.double()
    p = torch.sigmoid(p) if part.kind == "logits" else p
    return p if keep is None else p.where(keep, 0)
