"""How sure is a share of right answers: exact intervals for counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import betaincinv


def share_interval(hits: Any, n: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact 95% interval of a share of `hits` among `n` independent draws; NaN where n is 0.

    Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404. Arrays of one shape, or numbers.
    """
    hits, n = np.asarray(hits, dtype=np.float64), np.asarray(n, dtype=np.float64)
    known = (n > 0) & (hits >= 0) & (hits <= n)
    h, m = np.where(known, hits, 0.0), np.where(known, n, 1.0)
    low = np.where(h == 0, 0.0, betaincinv(np.maximum(h, 1.0), m - h + 1, 0.025))
    high = np.where(h == m, 1.0, betaincinv(h + 1, np.maximum(m - h, 1.0), 0.975))
    return np.where(known, low, np.nan), np.where(known, high, np.nan)
