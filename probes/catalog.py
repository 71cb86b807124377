"""Which probes there are: what each records, and how it is made."""

from __future__ import annotations

import inspect
from typing import Any

from .probe import Probe
from .when import When


def known_probes() -> list[dict[str, Any]]:
    """Return name, class, first line of the documentation and arguments with their defaults of every public probe."""
    from landscape import probes

    found = (getattr(probes, name) for name in probes.__all__)
    classes = [c for c in found if isinstance(c, type) and issubclass(c, Probe) and c is not Probe]
    return [_described(c) for c in sorted(classes, key=lambda c: c.__name__)]


def _described(probe: type[Probe]) -> dict[str, Any]:
    signature = inspect.signature(probe)
    first = " ".join((inspect.getdoc(probe) or "").split("\n\n")[0].split())
    arguments = {n: _default(p.default) for n, p in signature.parameters.items()}
    return {"name": probe.name, "class": probe.__name__, "doc": first, "arguments": arguments}


def _default(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, When):
        return "every(" + ", ".join(f"{k}={v}" for k, v in value.describe().items()) + ")"
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
