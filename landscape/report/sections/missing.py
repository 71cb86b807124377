"""Which runs lack a result that others have, and why: said once, beside the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..runs import Run
from ..scales import finite


def missing(runs: Sequence[Run], kind: str, what: str) -> list[tuple[str, str]]:
    """Return (level, statement) for the runs without a usable result of this kind, grouped by the reason."""
    reasons: dict[str, list[str]] = {}
    for run in runs:
        result = run.get(kind)
        if result is None:
            reasons.setdefault(run.missing(kind), []).append(run.name)
        elif not _any_finite(result):
            reasons.setdefault("not one finite number", []).append(run.name)
    return [
        (
            "fail" if reason.startswith(("failed", "not one")) else "info",
            f"No {what} for {_names(names)}: {reason.rstrip('.')}.",
        )
        for reason, names in reasons.items()
    ]


def _any_finite(result: object) -> bool:
    numbers = [
        np.asarray(v.data, dtype=float)
        for v in result.variables().values()  # type: ignore[attr-defined]
        if v.data.dtype.kind == "f" and not v.coordinate
    ]
    return not numbers or len(finite(numbers)) > 0


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
