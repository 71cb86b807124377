"""From what was counted on a device to the totals that every measure is made of, on the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..errors import MeasurementError
from .bins import Bins, equal_mass_edges, right_closed
from .counting import Counts
from .totals import Atoms, Classes, Groups, Totals


def collect(counts: Counts, grouped: bool) -> Totals:
    """Return the totals of all that was counted, a sample at least (waits for the device).

    Raises MeasurementError for equal-mass bins of `grouped` samples of which not every pair was kept.
    """
    sums = {k: v.cpu().numpy() for k, v in counts.sums.items()}
    atoms = _atoms(counts, sums)
    table, index = _table(counts, sums, grouped)
    return Totals(
        table=table,
        atoms=atoms,
        classes=_class_totals(counts, sums),
        right=int(sums["right"][0]) if counts.counted.apart else int(_by_side(sums["counts"])[:, 1].sum()),
        moments=sums["moments"].reshape(2, 3) if counts.counted.scores else None,
        infinite=int(sums["infinite"][0]),
        groups=_group_totals(counts, table.edges, index),
    )


def _by_side(column: np.ndarray) -> np.ndarray:
    """Return a column of sums as (cells, 2): of the wrong ones, and of the right ones."""
    return column.reshape(2, -1).T


def _host_pairs(counts: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    assert counts.pairs is not None
    columns = [torch.cat(column).cpu().numpy() for column in zip(*counts.pairs, strict=True)]
    there = ~np.isnan(columns[0])
    return columns[0][there], columns[1][there], columns[2][there] if len(columns[2]) else columns[2]


def _atoms(counts: Counts, sums: Mapping[str, np.ndarray]) -> Atoms:
    if counts.pairs is not None:
        sure, correct, _ = _host_pairs(counts)
        order = np.argsort(sure, kind="stable")
        sure, correct = sure[order], correct[order]
        first = np.flatnonzero(np.diff(sure, prepend=-1.0))
        size = np.diff(first, append=len(sure))
        right = np.add.reduceat(correct.astype(np.int64), first)
        return Atoms(sure[first], size, right, sure[first] * (size - right), exact=True)
    cells, parts = _by_side(sums["counts"]), _by_side(sums["confidence"])
    filled = cells.sum(axis=1) > 0
    cells, parts = cells[filled], parts[filled]
    size = cells.sum(axis=1)
    return Atoms(parts.sum(axis=1) / size, size, cells[:, 1], parts[:, 0], exact=False)


def _table(counts: Counts, sums: Mapping[str, np.ndarray], grouped: bool) -> tuple[Bins, np.ndarray | None]:
    """Return the bins, and for equal-mass ones made from pairs the bin of each pair."""
    counted = counts.counted
    cells, parts = _by_side(sums["counts"]), _by_side(sums["confidence"])
    if counted.edges is not None:
        return Bins(counted.edges).add_cells(counts.cells.bin_of, cells, parts), None
    if counts.pairs is not None:
        sure, correct, _ = _host_pairs(counts)
        edges = equal_mass_edges(sure, counted.bins)
        index = right_closed(sure, edges)
        return Bins(edges).add(sure, correct, index), index
    if grouped:
        raise MeasurementError(
            f"equal-mass bins of grouped samples need every pair, and {counts.held} exceed exact={counted.exact}; "
            "raise exact=, or give bins= the edges of a first run without groups"
        )
    # From cells: an edge where a cell ends.
    size = cells.sum(axis=1)
    ends = np.searchsorted(np.cumsum(size), np.arange(1, counted.bins) * size.sum() / counted.bins)
    inner = np.unique(ends)
    inner = inner[inner < np.flatnonzero(size)[-1]]  # the last bin ends at 1, and is not empty
    edges = np.concatenate([[0.0], counts.cells.upper_ends()[inner], [1.0]])
    return Bins(edges).add_cells(np.searchsorted(inner, np.arange(len(cells))), cells, parts), None


def _class_totals(counts: Counts, sums: Mapping[str, np.ndarray]) -> Classes:
    if "class labels" not in sums:
        return Classes()
    counted = counts.counted
    tables: dict[str, np.ndarray] = {}
    if counted.tabled:
        shape = counted.classes, counted.bins
        size, hits, p = (sums[f"class {name}"].reshape(shape).copy() for name in ("counts", "hits", "sums"))
        if counted.form == "multiclass":  # what the counted ones leave to the first bin
            size[:, 0] = sums["counts"].sum() - size[:, 1:].sum(axis=1)
            p[:, 0] = sums["class mass"] - p[:, 1:].sum(axis=1)
        tables = {"counts": size, "hits": hits, "sums": p}
    if counted.form == "multiclass":
        tables |= {name: sums[f"class {name}"] for name in ("predicted", "right", "confidence")}
    return Classes(labels=sums["class labels"], **tables)


def _group_totals(counts: Counts, edges: np.ndarray, index: np.ndarray | None) -> Groups | None:
    groups = counts.groups
    if not groups:
        return None
    bins = len(edges) - 1
    scores = torch.cat([g.scores for g in groups]).cpu().numpy().reshape(-1, 3)
    if index is None:
        table = torch.cat([g.table for g in groups]).cpu().numpy().reshape(-1, bins, 3)
    else:
        sure, correct, rows = _host_pairs(counts)
        at = rows * bins + index
        columns = [np.bincount(at, of, minlength=len(scores) * bins) for of in (np.ones(len(at)), correct, sure)]
        table = np.stack(columns, axis=1).reshape(-1, bins, 3)
    ids, free = [], -1
    for g in groups:
        names = np.arange(free, free - len(g), -1) if g.ids is None else g.ids.cpu().numpy()
        free -= len(g) if g.ids is None else 0
        ids.append(names)
    if any(g.ids is not None for g in groups):
        found, rows = np.unique(np.concatenate(ids), return_inverse=True)
        whole_table, whole_scores = np.zeros((len(found), bins, 3)), np.zeros((len(found), 3))
        np.add.at(whole_table, rows, table)
        np.add.at(whole_scores, rows, scores)
        table, scores = whole_table, whole_scores
    there = table[:, :, 0].sum(axis=1) > 0
    table, scores = table[there], scores[there]
    return Groups(table[:, :, 0], table[:, :, 1], table[:, :, 2], scores[:, 1], scores[:, 2], scores[:, 0])
