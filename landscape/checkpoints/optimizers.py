"""The states of optimizers in a checkpoint: all of them, under the names that the file has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CheckpointError
from .strangers import Inert

#: Where training scripts keep the state of an optimizer, most telling first.
NAMES = (
    *("optimizer", "optimizer_state_dict", "optimizer_state", "optim", "optimizer_states", "opt", "optimizers"),
    "optim_state_dict",
)


def states_of(
    top: Mapping[Any, Any], copied: Callable[[Any], Any]
) -> tuple[dict[str, dict[str, Any]], set[Any], list[str]]:
    """Return (states by name, the entries that they stood in, remarks).

    One alone is called "". Several are called as their entries are ("optimizerG", "g_optim"), those of a dict by its
    keys, those of a list by their places ("0", "1"). `copied` makes plain containers, and raises CheckpointError where
    only the file's own code could.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    used: set[Any] = set()
    notes = []
    for entry in (*(n for n in NAMES if n in top), *(k for k in top if k not in NAMES)):
        inside = _inside(top[entry])
        if not inside:
            continue
        used.add(entry)
        try:
            found |= {(str(entry), name): _numbered(copied(state)) for name, state in inside.items()}
        except CheckpointError as error:
            notes.append(f"the optimizer's state under {entry!r} is left out: it needs {error}")
    first = ("optimizer", "")
    if first in found and sum(entry == "optimizers" for entry, _ in found) > 1:
        del found[first]  # save_checkpoint's own form: the first one's state, and then those of all
    if len(found) == 1:
        return {"": next(iter(found.values()))}, used, notes
    entries = {entry for entry, _ in found}
    names = {(e, n): n if len(entries) == 1 else f"{e}.{n}" if n else e for e, n in found}
    return {names[key]: state for key, state in found.items()}, used, notes


def _inside(value: Any) -> dict[str, Any]:
    """Return the states in an entry by their names there, "" for one that is the entry itself."""
    if _is_state(value):
        return {"": value}
    if isinstance(value, Mapping):
        return {str(k): v for k, v in value.items()} if value and all(map(_is_state, value.values())) else {}
    if isinstance(value, list | tuple) and value and all(map(_is_state, value)):
        return {str(i): v for i, v in enumerate(value)}
    return {}


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and not isinstance(value, Inert) and {"param_groups", "state"} <= set(value)


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state whose parameters are numbers where its groups have numbers.

    torch.distributed.checkpoint writes the numbers of the parameters as text.
    """
    groups, moments = state["param_groups"], state["state"]
    if isinstance(moments, dict) and all(type(p) is int for g in groups for p in g.get("params", ())):
        state["state"] = {int(k) if str(k).isdigit() else k: v for k, v in moments.items()}
    return state
