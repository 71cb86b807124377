"""The table of runs as CSV and as JSON: every number with its uncertainty, every gap with its reason."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from .effects import effects, name_of
from .measures import measures
from .runs import Run
from .sections import by_task
from .sections.checks import tally
from .value import Measure, Value

#: What a run is, ahead of its settings and numbers.
FACTS = ("run", "task", "checkpoint", "fingerprint", "step", "epoch", "status", "archive")


def as_csv(runs: Sequence[Run]) -> str:
    """Return one row for each run: facts, settings, then each measure with what bounds it.

    A measure `m` takes the columns m, m_error (its standard error, or the residual of an eigenvalue), m_low and m_high
    (95%), m_step (after how many steps, where it was measured while training), and m_missing (why there is none); those
    that no run has are left out. Numbers are written in full, NaN as
    nothing. Settings are "set.<name>". Text that a spreadsheet would take for a formula gets a leading apostrophe.
    """
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    columns = [m for m in measures(runs) if any(m.read(run).known for run in runs)]
    parts = {m.key: _parts(m, runs) for m in columns}
    head = [*FACTS, *(f"set.{n}" for n in names)]
    head += [f"{key}{part}" for key, found in parts.items() for part in found]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(head)
    for run in runs:
        row = [_cell(v) for v in (*_facts(run).values(), *(run.settings.get(n) for n in names))]
        for measure in columns:
            value = _numbers(measure.read(run))
            row += [_cell(value[part]) for part in parts[measure.key]]
        writer.writerow(row)
    return out.getvalue()


def as_json(runs: Sequence[Run]) -> str:
    """Return one strict JSON object: runs with settings and measures, and the effects of settings; NaN is null."""
    columns = measures(runs)
    objects = []
    for run in runs:
        passed, warned, failed = tally([run])
        found: dict[str, Any] = {}
        for measure in columns:
            v = measure.read(run)
            if v.known:
                found[measure.key] = {"value": v.number, "error": v.error, "low": v.low, "high": v.high, "by": v.how}
                if v.step is not None:
                    found[measure.key]["while_training_at_step"] = v.step
            elif v.missing:
                found[measure.key] = {"value": None, "missing": v.missing}
        objects.append(
            {
                **_facts(run),
                "settings": dict(run.settings),
                "measures": found,
                "checks": {"passed": passed, "to_look_at": warned, "failed": failed},
                "problems": list(run.problems),
                "salvaged": list(run.salvaged),
            }
        )
    told = {"schema": 1, "runs": objects, "effects": _effects(runs)}
    return json.dumps(_plain(told), allow_nan=False, ensure_ascii=False, indent=2) + "\n"


def _effects(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found = []
    for task, members in by_task(runs).items():
        for response in effects(members)[0]:
            for effect in response.found.effects:
                value, low, high = response.numbers(effect)
                found.append(
                    {
                        "task": task,
                        "measure": response.measure.key,
                        "effect": name_of(effect),
                        "settings": list(effect.factors),
                        "levels": [list(pair) for pair in effect.levels],
                        "kind": "factor" if response.ratio else "difference",
                        "value": value,
                        "low": low,
                        "high": high,
                        "df": effect.df,
                        "seeds": response.found.independent,
                    }
                )
    return found


def _facts(run: Run) -> dict[str, Any]:
    values = (run.name, run.task, run.checkpoint, run.fingerprint, run.step, run.epoch, run.status, run.archive)
    return dict(zip(FACTS, values, strict=True))


def _parts(measure: Measure, runs: Sequence[Run]) -> list[str]:
    """Return the columns that a measure needs: those that any run fills."""
    read = [_numbers(measure.read(run)) for run in runs]
    return [""] + [p for p in ("_error", "_low", "_high", "_step", "_missing") if any(_cell(r[p]) != "" for r in read)]


def _numbers(value: Value) -> dict[str, Any]:
    return {
        "": value.number,
        "_error": value.error,
        "_low": value.low,
        "_high": value.high,
        "_step": value.step,
        "_missing": value.missing,
    }


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float | int):
        return repr(float(value)) if isinstance(value, float) else value
    text = str(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
