"""Where every number came from, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...counted import counted
from ...results import Cost
from ..blocks import Block, Cell, Column, Folded, Row, Section, Table
from ..measures import setting
from ..numbers import count, given, seconds
from ..runs import Run
from . import section


@section(order=110)
def build(runs: Sequence[Run]) -> Section:
    """Return where each run lies and how it was measured, what each measurement cost, and all settings."""
    blocks: list[Block] = [_origin(runs), *_cost(runs), Folded("Command lines", (_commands(runs),))]
    blocks.append(Folded("Archives, checkpoints and data by their hashes", (_hashes(runs),)))
    blocks.append(Folded("Versions and platform", (_versions(runs),)))
    blocks.append(Folded("Every setting of every run and measurement", (_settings(runs), _measured(runs))))
    return Section("provenance", "Provenance and cost", blocks, "Provenance")


def _origin(runs: Sequence[Run]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("archive"),
        Column("checkpoint"),
        Column("step", numeric=True),
        Column("measured", nowrap=True),
        Column("status"),
        Column("device"),
        Column("dtype"),
        Column("preset"),
        Column("seed", numeric=True, note="of the measuring's own draws; the training's is a setting of the run"),
    ]
    rows = []
    for r in runs:
        texts = [
            r.archive,
            r.checkpoint,
            "" if r.step is None else count(r.step),
            _when(r.about.get("created")),
            r.status,
            r.about.get("device"),
            r.about.get("dtype"),
            r.about.get("preset"),
            r.about.get("seed"),
        ]
        rows.append(Row([Cell(r.name, sort=r.name), *(Cell(_text(t), sort=_text(t)) for t in texts)], r.index))
    return Table("Where each run's numbers come from.", columns, [("", rows)], sortable=len(rows) > 1)


def _commands(runs: Sequence[Run]) -> Table:
    """Return each command line once, with the runs that it measured."""
    came: dict[str, list[Run]] = {}
    for run in runs:
        lines = run.about.get("commands") or ([run.about["command_line"]] if run.about.get("command_line") else [])
        for text in lines:
            came.setdefault(str(text), []).append(run)
    rows = [
        Row([Cell(_names([r.name for r in found])), Cell(text)], found[0].index if len(found) == 1 else None)
        for text, found in came.items()
    ]
    caption = "What was typed to measure them." if rows else "The archives keep no command line."
    return Table(caption, [Column("Run", wide=True), Column("command", wide=True)], [("", rows)])


def _hashes(runs: Sequence[Run]) -> Table:
    columns = [
        Column("Run", wide=True),
        Column("archive (SHA-256)", wide=True, note="of the file as this page read it"),
        Column("weights", note="fingerprint of the checkpoint's tensors"),
        Column("data", wide=True, note="fingerprint of each split's draw: the same one means the same samples"),
    ]
    rows = []
    for run in runs:
        found = run.get("performance")
        marks = dict(zip(found.splits, found.fingerprints, strict=False)) if found is not None else {}  # type: ignore[attr-defined]
        data = "; ".join(f"{split} {mark}" for split, mark in marks.items())
        rows.append(Row([Cell(run.name), *(Cell(_text(t)) for t in (run.digest, run.fingerprint, data))], run.index))
    return Table("By these a number is traced to its bytes.", columns, [("", rows)])


def _cost(runs: Sequence[Run]) -> list[Block]:
    """Return what was spent: by measurement over all runs, and by run."""
    costs = [(run, kind, result.cost) for run in runs for kind, result in run.every()]
    if not costs:
        return []
    every = [cost for _, _, cost in costs]
    total = f"What was spent: {counted(sum(c.products for c in every), 'product')}, "
    total += f"{count(sum(c.passes for c in every))} passes over the data, "
    total += f"{seconds(float(sum(c.seconds for c in every)))} in all."
    by_kind: dict[str, list[Cost]] = {}
    for _, kind, cost in costs:
        by_kind.setdefault(kind, []).append(cost)
    heads = [
        Column("results", numeric=True),
        Column("products", numeric=True, note="operator-vector products"),
        Column("passes", numeric=True, note="passes over the data; a gradient counts 3"),
        Column("time", numeric=True),
    ]
    rows = [Row([Cell(kind, sort=kind), *_spent(found)], level="plain") for kind, found in by_kind.items()]
    blocks: list[Block] = [Table(total, [Column("Measurement"), *heads], [("", rows)], sortable=len(rows) > 1)]
    if len(runs) > 1:
        each = []
        for run in runs:
            own = [cost for owner, _, cost in costs if owner is run]
            each.append(Row([Cell(run.name, sort=run.name), *_spent(own)], run.index))
        table = Table("What each run cost to measure.", [Column("Run", wide=True), *heads], [("", each)], sortable=True)
        blocks.append(Folded("Cost of each run", (table,)))
    return blocks


def _spent(costs: Sequence[Cost]) -> list[Cell]:
    products, passes = sum(c.products for c in costs), sum(c.passes for c in costs)
    took = float(sum(c.seconds for c in costs))
    return [
        Cell(count(len(costs)), sort=float(len(costs))),
        Cell(count(products), sort=float(products)),
        Cell(count(round(passes)) if passes >= 1000 else given(float(f"{passes:.4g}")), sort=float(passes)),
        Cell(seconds(took), sort=took),
    ]


def _versions(runs: Sequence[Run]) -> Table:
    """Return what computed the numbers, once for all runs that it is the same for."""
    names: dict[str, None] = {}
    told = []
    for run in runs:
        versions = run.about.get("versions")
        found = {k: str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {}
        for key in ("python", "platform", "source_revision"):
            if run.about.get(key):
                found[key] = str(run.about[key])
        names.update(dict.fromkeys(found))
        told.append(found)
    columns = [Column("Run", wide=True), *(Column(n) for n in names)]
    alike: dict[tuple[str, ...], list[Run]] = {}
    for run, found in zip(runs, told, strict=True):
        alike.setdefault(tuple(_text(found.get(n)) for n in names), []).append(run)
    rows = [
        Row(
            [Cell(_names([r.name for r in group], len(runs))), *(Cell(t) for t in texts)],
            group[0].index if len(group) == 1 else None,
        )
        for texts, group in alike.items()
    ]
    return Table("Versions of what computed the numbers.", columns, [("", rows)])


def _settings(runs: Sequence[Run]) -> Table:
    names = dict.fromkeys(k for r in runs for k in r.settings)
    columns = [Column("Run", wide=True), *(Column(n) for n in names)]
    rows = [Row([Cell(r.name), *(Cell(setting(r, n)) for n in names)], r.index) for r in runs]
    return Table("Settings of each run.", columns, [("", rows)])


def _measured(runs: Sequence[Run]) -> Table:
    """Return the settings of each kind of measurement, once for all runs that had the same."""
    came: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        for kind, result in run.every():
            told = "; ".join(f"{k} {_text(v)}" for k, v in result.settings.items())
            came.setdefault((kind, told or "–"), {})[run.name] = None
    rows = [
        Row([Cell(kind, sort=kind), Cell(_names(list(names), len(runs))), Cell(told)], level="plain")
        for (kind, told), names in sorted(came.items(), key=lambda item: item[0][0])
    ]
    columns = [Column("Measurement"), Column("Run", wide=True), Column("settings", wide=True)]
    return Table("Settings of each measurement.", columns, [("", rows)])


def _names(names: Sequence[str], of: int = 0) -> str:
    if len(names) == of > 1:
        return "every run"
    return ", ".join(names[:4]) + (f" and {count(len(names) - 4)} more" if len(names) > 4 else "")


def _when(created: object) -> str:
    """Return "2026-03-14 09:26 UTC" for an ISO time in UTC, anything else as it is."""
    text = str(created or "")
    return f"{text[:10]} {text[11:16]} UTC" if text.endswith("Z") and len(text) >= 17 else text


def _text(value: object) -> str:
    return "–" if value is None or value == "" else str(value)
