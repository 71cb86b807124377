"""Sparse tensors of all five layouts (COO, CSR, CSC, BSR, BSC): the dense tensors they consist of, and their rows.

Nothing here makes the first sparse tensor of a process, so that torch's remark on their state ("beta") stays with the
code that does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

_BY_ROW = (torch.sparse_csr, torch.sparse_bsr)
_BY_COLUMN = (torch.sparse_csc, torch.sparse_bsc)
LAYOUTS = (torch.sparse_coo, *_BY_ROW, *_BY_COLUMN)


def is_sparse(t: torch.Tensor) -> bool:
    """Say whether a tensor is sparse, in whatever layout; torch's own attribute knows COO alone."""
    return t.layout in LAYOUTS


def parts(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the dense tensors that hold a tensor's memory: indices and values; a dense one alone is its own part."""
    if t.layout == torch.sparse_coo:
        return t._indices(), t._values()  # the public ones refuse a tensor whose entries may repeat
    if t.layout in _BY_ROW:
        return t.crow_indices(), t.col_indices(), t.values()
    if t.layout in _BY_COLUMN:
        return t.ccol_indices(), t.row_indices(), t.values()
    return (t,)


def content(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the parts in which two tensors of one layout and shape differ, if they do.

    Entries that repeat are added up first; a zero that is stored is part of the pattern.
    """
    return parts(t.coalesce() if t.layout == torch.sparse_coo else t)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Say what torch.equal says of dense tensors, of those of any layout."""
    if a.layout != b.layout or a.shape != b.shape:
        return False
    return all(torch.equal(x, y) for x, y in zip(content(a), content(b), strict=True))


def bytes_of(t: torch.Tensor) -> int:
    """Return the bytes that a tensor's entries take, with their indices."""
    return sum(p.numel() * p.element_size() for p in parts(t))


def shape_of(t: torch.Tensor) -> str:
    """Return a tensor's shape, type and layout in words: "(3, 4) float32"; "(9, 9) float64 sparse CSR"."""
    layout = f" sparse {str(t.layout).removeprefix('torch.sparse_').upper()}" if is_sparse(t) else ""
    return f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}{layout}"


def rows_are_samples(t: torch.Tensor, others: int) -> bool:
    """Say whether the rows of a sparse tensor are certainly samples, beside `others` further tensors in its batch.

    The rows of an adjacency or incidence matrix are nodes, which depend on each other: cut, it would be another graph.
    So a matrix has to be the whole input (labels alone lie beside it) and not a square one, a stack of matrices has to
    have another length than they. Blocks of a batch of compressed matrices can't be cut at all.
    """
    if len(t) in t.shape[1:] or not _can_cut(t):
        return False
    return t.ndim > 2 or others <= 1


def _can_cut(t: torch.Tensor) -> bool:
    return t.layout == torch.sparse_coo or (t.ndim == 2 and t.layout in (torch.sparse_csr, torch.sparse_csc))


def rows(t: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the rows of a COO tensor or a CSR or CSC matrix at `index`, in the same layout."""
    index = index.to(t.device)
    if t.layout == torch.sparse_coo:
        return t.index_select(0, index)
    return t.to_sparse_coo().index_select(0, index).to_sparse(layout=t.layout)


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the rows of all of these, COO tensors or CSR or CSC matrices of one layout, in that layout."""
    found = torch.cat([t.to_sparse_coo() for t in tensors])
    return found if found.layout == tensors[0].layout else found.to_sparse(layout=tensors[0].layout)
