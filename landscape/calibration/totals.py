"""What is left of any number of predictions once they are counted: the sums that every measure is made of. No torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .bins import Bins


@dataclass(frozen=True)
class Atoms:
    """Samples by confidence, rising, (m,): mean confidence, how many, and how many of them are right.

    `exact` says that each atom is one confidence; else it is a cell of neighbouring ones, with `wrong_sums` (m,) the
    summed confidence of those that are wrong, for bounds on what the order inside a cell could change.
    """

    confidence: np.ndarray
    counts: np.ndarray
    correct: np.ndarray
    wrong_sums: np.ndarray
    exact: bool

    @property
    def samples(self) -> int:
        return int(self.counts.sum())

    def folded(self) -> Atoms:
        """Return the atoms of the predicted label, yes above 1/2 or no, where these are of the probability of yes.

        A half is a no, as the first of two classes that tie.
        """
        yes = self.confidence > 0.5
        sure = np.where(yes, self.confidence, 1 - self.confidence)
        correct = np.where(yes, self.correct, self.counts - self.correct)
        sums = self.counts * self.confidence
        # Of a no, what is wrong is the yes among the labels: what was right before.
        wrong_sums = np.where(yes, self.wrong_sums, self.correct - (sums - self.wrong_sums))
        order = np.argsort(sure, kind="stable")
        values, at = np.unique(sure[order], return_inverse=True)
        joined = [np.zeros(len(values), x.dtype) for x in (self.counts, correct, wrong_sums)]
        for total, x in zip(joined, (self.counts, correct, wrong_sums), strict=True):
            np.add.at(total, at, x[order])
        counts, correct, wrong_sums = joined
        return Atoms(values, counts, correct, wrong_sums, self.exact)


@dataclass(frozen=True)
class Classes:
    """Sums for each class, (K,) or (K, bins); the tables are None where they weren't asked for.

    `labels` of each class (None: there are no classes); `predicted` as it, `right` among these and the sum of their
    `confidence` (None where nothing is predicted: several labels at once). `counts`, `hits` and `sums` are the class's
    own probability in equal-width bins: samples, labels of the class, summed probability.
    """

    labels: np.ndarray | None = None
    predicted: np.ndarray | None = None
    right: np.ndarray | None = None
    confidence: np.ndarray | None = None
    counts: np.ndarray | None = None
    hits: np.ndarray | None = None
    sums: np.ndarray | None = None


@dataclass(frozen=True)
class Groups:
    """Sums for each group of samples that belong together: counts, right ones and confidences in bins, and scores.

    `counts`, `correct` and `confidence_sums` (G, bins); `brier`, `nll` and `right`, the right top labels, (G,).
    """

    counts: np.ndarray
    correct: np.ndarray
    confidence_sums: np.ndarray
    brier: np.ndarray
    nll: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each group, (G,)."""
        return self.counts.sum(axis=1)


@dataclass(frozen=True)
class Totals:
    """Everything that `evaluate` needs.

    `moments` (2, 3) are the sums of the first, second and third powers of Brier score and NLL (None: not asked for),
    `right` counts right top labels, `infinite` NLLs that are inf and not in the sums.
    """

    table: Bins
    atoms: Atoms
    classes: Classes
    right: int
    moments: np.ndarray | None
    infinite: int
    groups: Groups | None = None
